//! What a simulation showed.

use std::{collections::BTreeMap, time::Duration};

use ringspan::store::memory::{Audited, Change as Row};
use serde::{Deserialize, Serialize};

use crate::{
    plan::Plan,
    support::checker::{self, Change, Conduct, Invariant, Table, What},
    talk::Outcome,
};

/// The result of one seed, as its process hands it over.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub seed: u64,
    pub conduct: String,
    /// Over all that was seen, done and written: the same seed gives the same.
    pub trace: u64,
    pub simulated_ms: u64,
    pub turns: usize,
    pub unknown: usize,
    pub forgotten: usize,
    pub other: usize,
    pub moves: usize,
    pub takeovers: usize,
    pub recovered_ms: u64,
    pub facts: usize,
    pub faults: BTreeMap<String, usize>,
    pub notes: BTreeMap<String, usize>,
    /// Violations by invariant.
    pub broken: BTreeMap<String, usize>,
    pub evidence: Vec<String>,
}

pub fn judge(
    plan: &Plan,
    outcome: Outcome,
    rows: &[Row],
    faults: BTreeMap<&'static str, usize>,
    elapsed: Duration,
    trace: u64,
) -> Report {
    let changes: Vec<Change> = (0..).zip(rows).map(|(n, row)| change(n, row)).collect();
    let mut report = Report {
        seed: plan.seed,
        conduct: format!("{:?}", plan.conduct),
        trace,
        simulated_ms: millis(elapsed),
        turns: outcome.turns,
        unknown: outcome.unknown,
        forgotten: outcome.forgotten,
        other: outcome.other,
        moves: checker::moves(&changes, 0..i64::MAX).into_values().sum(),
        takeovers: changes.iter().filter(|change| is_takeover(change)).count(),
        recovered_ms: millis(outcome.recovered_in),
        faults: faults.into_iter().map(|(what, count)| (what.to_owned(), count)).collect(),
        ..Report::default()
    };
    for violation in outcome.violations {
        *report.broken.entry("service".into()).or_default() += 1;
        report.evidence.push(violation);
    }
    if plan.conduct != Conduct::Freezes {
        // Everybody can reach everybody, so whoever asks is answered.
        for seen in &outcome.seen {
            if let What::Cut { how } = &seen.what
                && how.contains("Silence")
            {
                *report.broken.entry("service".into()).or_default() += 1;
                report.evidence.push(format!("silence: {seen:?}"));
            }
        }
    }
    let Some(upstream) = outcome.upstream else { return report };
    let (connections, creates) = upstream.facts();
    let clients = outcome.seen;
    let history =
        checker::History { conduct: plan.conduct, clients, connections, creates, changes };
    let verdict = checker::judge(&history);
    report.facts = Invariant::ALL.into_iter().map(|of| verdict.checked(of)).sum();
    for of in verdict.broken() {
        *report.broken.entry(format!("{of:?}")).or_default() += verdict.violations(of);
    }
    if !verdict.broken().is_empty() {
        report.evidence.push(verdict.to_string());
    }
    for (what, count) in verdict.notes() {
        report.notes.insert((*what).to_owned(), *count);
    }
    report
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn is_takeover(change: &Change) -> bool {
    let (before, after) = (&change.before["owner"], &change.after["owner"]);
    change.table == Table::Session
        && !before.is_null()
        && !after.is_null()
        && before != after
        && change.before["state"] != "QUIESCING"
}

fn change(order: i64, row: &Row) -> Change {
    let table = match row.table {
        Audited::Session => Table::Session,
        Audited::Member => Table::Member,
        Audited::Turn => Table::Turn,
    };
    Change { order, table, before: row.before.clone(), after: row.after.clone() }
}
