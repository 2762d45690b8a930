//! I2, I3, I5 and I8: what became of each turn.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::{
    facts::{Change, Conduct, Create, History, Seen, Table, What},
    talks::{Talks, TurnFacts},
    verdict::{Invariant, Verdict},
};

/// How long the last events of a run may be on their way: a network, and a busy process.
const ON_ITS_WAY_MS: u64 = 250;

pub fn judge(history: &History, talks: &Talks, verdict: &mut Verdict) {
    dispatches(history, talks, verdict);
    for (session, turns) in talks {
        for turn in turns {
            ends(session, turn, verdict);
            outcome(history.conduct, session, turn, verdict);
            hops(session, turn, verdict);
        }
    }
    terminals(history, verdict);
    if history.conduct.is_planned() {
        let by_plan = history.conduct == Conduct::Planned;
        for create in &history.creates {
            let cut = create.was_cut() && (by_plan || !create.was_cut_upstream());
            verdict.check(Invariant::I5, !cut, || {
                format!("{}: {:?} was {} upstream", create.session, create.response, create.outcome)
            });
        }
    }
    ledger(history, verdict);
}

/// The upstream's word for a connection that is as old as it may be.
pub const TOO_OLD: &str = "websocket_connection_limit_reached";

/// How often a client of a ring that lost nothing asks again for a turn that ran: where the
/// upstream told it to.
fn told_to_ask_again(turn: &TurnFacts) -> usize {
    let told = |seen: &&Seen| matches!(&seen.what, What::Error { code, .. } if code == TOO_OLD);
    turn.seen.iter().filter(told).count()
}

/// Whether the connection of a run was lost before its last events could have been received.
fn end_was_lost(history: &History, create: &Create) -> bool {
    let connection = history.connections.iter().find(|it| it.id == create.connection);
    let closed = connection.and_then(|connection| connection.closed);
    closed.zip(create.ended).is_some_and(|(closed, ended)| closed <= ended + ON_ITS_WAY_MS)
}

/// Each turn ran once; or again by the rule, or because the client asked again.
fn dispatches(history: &History, talks: &Talks, verdict: &mut Verdict) {
    let mut runs: BTreeMap<(&str, &str), Vec<&Create>> = BTreeMap::new();
    for create in history.creates.iter().filter(|create| create.ran()) {
        runs.entry((&create.session, &create.conversation)).or_default().push(create);
    }
    for ((session, conversation), mut creates) in runs {
        creates.sort_by_key(|create| create.at);
        let turn = talks
            .get(session)
            .and_then(|turns| turns.iter().find(|turn| turn.expected == conversation));
        let planned = history.conduct.is_planned();
        let Some(turn) = turn else {
            // Its client kept no history that could excuse a second run.
            verdict.check(Invariant::I2, creates.len() == 1 || !planned, || {
                format!("{session}: {conversation} ran {} times: {creates:?}", creates.len())
            });
            continue;
        };
        let mut asked_again = if planned { told_to_ask_again(turn) } else { turn.sent - 1 };
        // The session may once; where owners are lost, edge and next owner too.
        let mut by_rule = if planned { 1 } else { usize::MAX };
        let mut unheard: usize = match history.conduct {
            Conduct::Planned | Conduct::Upstream | Conduct::Losses => 0,
            Conduct::Partitions => 1,
            Conduct::Freezes => usize::MAX,
        };
        verdict.check(Invariant::I2, true, String::new);
        for earlier in &creates[..creates.len() - 1] {
            let unseen = earlier.response.as_deref().is_none_or(|response| !turn.saw(response));
            if earlier.was_cut() && !turn.stored && unseen && by_rule > 0 {
                by_rule -= 1;
                verdict.note("turns run again by the rule: nothing stored, nothing seen");
                continue;
            }
            if !planned && !turn.stored && unseen && end_was_lost(history, earlier) {
                verdict.note(
                    "turns run again by the rule: their end was on its way to one that was lost",
                );
                continue;
            }
            // Who lost sight of an owner that lives on cannot have its run cut off.
            if unheard > 0 && !turn.stored && unseen {
                unheard -= 1;
                verdict.note("turns run again by the rule although they had ended, unheard");
                continue;
            }
            if asked_again > 0 {
                asked_again -= 1;
                verdict.note("turns run again because the client sent them again");
                continue;
            }
            verdict.check(Invariant::I2, false, || {
                format!("{session}: {:?} ran {} times: {creates:?}", turn.text, creates.len())
            });
        }
    }
}

/// Each attempt has one end, and nothing after it; a turn completes once.
fn ends(session: &str, turn: &TurnFacts, verdict: &mut Verdict) {
    let mut over: BTreeMap<usize, bool> = BTreeMap::new();
    let mut completed = 0;
    for seen in &turn.seen {
        let is_end = match &seen.what {
            What::Ended { .. } | What::Error { .. } | What::Cut { .. } => true,
            What::Event { .. } => false,
            What::Attached { .. }
            | What::Sent { .. }
            | What::Resumed { .. }
            | What::Message { .. } => continue,
        };
        completed += usize::from(seen.what.is_answer());
        let over = over.entry(seen.attempt).or_insert(false);
        verdict.check(Invariant::I3, !*over, || {
            format!("{session}: {:?} after the end of {:?}", seen.what, turn.text)
        });
        *over = is_end;
    }
    verdict.check(Invariant::I3, completed <= 1, || {
        format!("{session}: {:?} completed {completed} times", turn.text)
    });
    for (attempt, over) in over {
        verdict.check(Invariant::I3, over, || {
            format!("{session}: attempt {attempt} of {:?} has no end", turn.text)
        });
    }
}

/// No response ends twice, whoever watches it.
fn terminals(history: &History, verdict: &mut Verdict) {
    let mut ended: HashMap<&str, &str> = HashMap::new();
    for seen in &history.clients {
        let What::Ended { response, .. } = &seen.what else { continue };
        let before = ended.insert(response, &seen.session);
        verdict.check(Invariant::I3, before.is_none(), || {
            format!("{response} ended for {before:?} and again for {}", seen.session)
        });
    }
}

/// What is unknown is told, and after a clean drain nothing is.
fn outcome(conduct: Conduct, session: &str, turn: &TurnFacts, verdict: &mut Verdict) {
    let unknown = turn
        .seen
        .iter()
        .any(|seen| matches!(&seen.what, What::Error { code, .. } if code == "outcome_unknown"));
    let mut begun = false;
    let mut broken_off = false;
    for seen in &turn.seen {
        begun |= matches!(seen.what, What::Event { .. });
        broken_off |= begun && matches!(seen.what, What::Cut { .. });
    }
    if conduct.is_planned() {
        let excused = conduct == Conduct::Upstream
            && (turn.never_arrived() || turn.creates.iter().any(Create::was_cut_upstream));
        verdict.check(Invariant::I5, !unknown || excused, || {
            format!("{session}: the outcome of {:?} is unknown: {:?}", turn.text, turn.creates)
        });
        verdict.check(Invariant::I5, !broken_off, || {
            format!("{session}: {:?} was cut in its middle", turn.text)
        });
    }
    if unknown {
        verdict.note("turns whose outcome was said to be unknown");
    } else if broken_off && !conduct.is_planned() {
        verdict.note("turns whose client socket was cut in their middle");
    }
}

/// Nobody was passed on too often.
fn hops(session: &str, turn: &TurnFacts, verdict: &mut Verdict) {
    for seen in &turn.seen {
        let refused = matches!(&seen.what, What::Error { message, .. } if message.contains("passed on too often"));
        if refused || matches!(seen.what, What::Sent { .. }) {
            verdict.check(Invariant::I8, !refused, || {
                format!("{session}: {:?} was passed on too often", turn.text)
            });
        }
    }
}

/// Turns that the upstream broke off, of which the ledger may not know how they ended.
struct Lost<'a> {
    responses: HashSet<&'a str>,
    /// How many the ledger may have no name for.
    unnamed: usize,
}

impl<'a> Lost<'a> {
    fn of(history: &'a History) -> Self {
        let granted = history.conduct == Conduct::Upstream;
        let creates = history.creates.iter().filter(|it| granted && it.was_cut_upstream());
        let responses: HashSet<_> = creates.filter_map(|it| it.response.as_deref()).collect();
        Self { unnamed: responses.len(), responses }
    }

    fn explains(&mut self, response: &Value) -> bool {
        if let Some(response) = response.as_str() {
            return self.responses.contains(response);
        }
        let any = self.unnamed > 0;
        self.unnamed = self.unnamed.saturating_sub(1);
        any
    }
}

/// The ledger of turns, where there is one. A turn is dispatched again only while no response
/// of it is known, and counted; else a final state stays.
fn ledger(history: &History, verdict: &mut Verdict) {
    let mut lost = Lost::of(history);
    for Change { table, before, after, .. } in &history.changes {
        if *table != Table::Turn {
            continue;
        }
        let (from, Some(to)) = (before["state"].as_str(), after["state"].as_str()) else {
            continue;
        };
        if history.conduct.is_planned() && from != Some(to) {
            verdict.check(
                Invariant::I5,
                to != "UNKNOWN" || lost.explains(&after["response"]),
                || format!("the ledger has a turn of unknown outcome: {after}"),
            );
        }
        let counted = after["dispatches"].as_u64() > before["dispatches"].as_u64();
        let Some(from) = from.filter(|from| *from != to || counted) else { continue };
        if to == "DISPATCHED" {
            let unseen = from != "DONE" && before["response"].is_null();
            verdict.check(Invariant::I2, counted && unseen, || {
                format!(
                    "the ledger has a turn that was {from} and dispatched again: {before} {after}"
                )
            });
        } else {
            verdict.check(Invariant::I3, !matches!(from, "DONE" | "FAILED" | "UNKNOWN"), || {
                format!("the ledger has a turn that was {from} and became {to}: {after}")
            });
        }
    }
}
