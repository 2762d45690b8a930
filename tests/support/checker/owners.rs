//! I1 and the database's half of I4: the rows of sessions and members.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
};

use super::{
    facts::{Change, History, Table, What},
    verdict::{Invariant, Verdict},
};

/// What is known of one session's row.
#[derive(Default)]
struct Row {
    epoch: i64,
    /// Who ever held each epoch.
    holders: BTreeMap<i64, i64>,
}

pub fn judge(history: &History, verdict: &mut Verdict) {
    let mut members: HashMap<i64, String> = HashMap::new();
    let mut rows: HashMap<&str, Row> = HashMap::new();
    let mut granted: HashMap<&str, HashSet<i64>> = HashMap::new();
    for change in &history.changes {
        match change.table {
            Table::Member => member(change, &mut members, verdict),
            Table::Session => {
                session(change, &mut rows, &members, verdict);
                if let (Some(key), Some(epoch)) =
                    (change.after["key_label"].as_str(), change.after["epoch"].as_i64())
                {
                    granted.entry(key).or_default().insert(epoch);
                }
            }
            Table::Turn => {}
        }
    }
    clients(history, &granted, verdict);
}

/// `DEAD` and `GONE` are one-way.
fn member(change: &Change, members: &mut HashMap<i64, String>, verdict: &mut Verdict) {
    let (before, after) = (&change.before["state"], &change.after["state"]);
    if let (Some(incarnation), Some(state)) = (change.after["incarnation"].as_i64(), after.as_str())
    {
        let holds = !ended(before.as_str()) || before == after || ended(after.as_str());
        verdict.check(Invariant::I4, holds, || {
            format!("incarnation {incarnation} was {before} and became {after}")
        });
        members.insert(incarnation, state.to_owned());
    }
}

fn ended(state: Option<&str>) -> bool {
    matches!(state, Some("DEAD" | "GONE"))
}

fn session<'a>(
    change: &'a Change,
    rows: &mut HashMap<&'a str, Row>,
    members: &HashMap<i64, String>,
    verdict: &mut Verdict,
) {
    let (before, after) = (&change.before, &change.after);
    let Some(id) = after["id"].as_str() else { return };
    let name = || after["key_label"].as_str().unwrap_or(id).to_owned();
    let row = rows.entry(id).or_default();
    let epoch = after["epoch"].as_i64().unwrap_or(0);
    verdict.check(Invariant::I1, epoch >= row.epoch, || {
        format!("{}: epoch {epoch} after {}", name(), row.epoch)
    });
    row.epoch = row.epoch.max(epoch);
    let Some(owner) = after["owner"].as_i64() else { return };
    let holder = *row.holders.entry(epoch).or_insert(owner);
    verdict.check(Invariant::I1, holder == owner, || {
        format!("{}: epoch {epoch} was held by {holder} and then by {owner}", name())
    });
    let Some(from) = before["owner"].as_i64().filter(|from| *from != owner) else { return };
    // From a live owner a session goes by its own transfer only, which quiesces first.
    let given = before["state"] == "QUIESCING";
    let lost = members.get(&from).is_none_or(|state| ended(Some(state)));
    verdict.check(Invariant::I4, given || lost, || {
        format!(
            "{}: {owner} took it from {from}, {:?} and not quiescing",
            name(),
            members.get(&from)
        )
    });
}

/// What clients were told of epochs only grows, and was granted.
fn clients(history: &History, granted: &HashMap<&str, HashSet<i64>>, verdict: &mut Verdict) {
    let mut highest: HashMap<&str, i64> = HashMap::new();
    for seen in &history.clients {
        let What::Attached { epoch, .. } = seen.what else { continue };
        let last = highest.entry(&seen.session).or_insert(epoch);
        verdict.check(Invariant::I1, epoch >= *last, || {
            format!("{} turn {}: attached at epoch {epoch} after {last}", seen.session, seen.turn)
        });
        *last = epoch.max(*last);
        if let Some(granted) = granted.get(seen.session.as_str()) {
            verdict.check(Invariant::I1, granted.contains(&epoch), || {
                format!("{}: attached at epoch {epoch}, which nobody was given", seen.session)
            });
        }
    }
}

/// How often each session changed its owner, by key, within these orders.
pub fn moves(changes: &[Change], within: Range<i64>) -> BTreeMap<String, usize> {
    let mut moves = BTreeMap::new();
    let sessions = changes.iter().filter(|change| change.table == Table::Session);
    for change in sessions.filter(|change| within.contains(&change.order)) {
        let (from, to) = (&change.before["owner"], &change.after["owner"]);
        if !from.is_null() && !to.is_null() && from != to {
            let key = change.after["key_label"].as_str().unwrap_or_default();
            *moves.entry(key.to_owned()).or_insert(0) += 1;
        }
    }
    moves
}
