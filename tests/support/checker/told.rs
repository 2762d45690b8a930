//! I3 against the upstream's own record: how a turn ended is told once, in the upstream's words.

use std::collections::HashMap;

use super::{
    facts::{Conduct, Create, History, Seen, What},
    talks::{Talks, TurnFacts},
    turns::TOO_OLD,
    verdict::{Invariant, Verdict},
};

/// The ring's own refusals of what it has not sent; their client comes again.
const NOT_SENT: [&str; 3] = ["owner_moving", "session_unavailable", "node_draining"];

/// The ring's word for what was broken off.
const UNKNOWN: &str = "outcome_unknown";

pub fn judge(history: &History, talks: &Talks, verdict: &mut Verdict) {
    words(history, verdict);
    // Where nodes are lost, the end of a turn may be lost with them.
    if history.conduct.is_planned() {
        for (session, turns) in talks {
            for turn in turns {
                each_end_once(history.conduct, session, turn, verdict);
            }
        }
    }
}

/// What is said of a response is what the upstream said of it.
fn words(history: &History, verdict: &mut Verdict) {
    let outcomes: HashMap<&str, &str> = history
        .creates
        .iter()
        .filter_map(|create| Some((create.response.as_deref()?, create.outcome.as_str())))
        .collect();
    for seen in &history.clients {
        let What::Ended { response, outcome, .. } = &seen.what else { continue };
        let Some(said) = outcomes.get(response.as_str()) else { continue };
        verdict.check(Invariant::I3, *said == outcome.as_str(), || {
            format!("{}: {response} was told as {outcome}, and was {said}", seen.session)
        });
    }
}

/// Each run of a turn has one end that its client is told of, unless the turn ran again unseen.
fn each_end_once(conduct: Conduct, session: &str, turn: &TurnFacts, verdict: &mut Verdict) {
    let told: Vec<_> = turn.seen.iter().filter_map(end).collect();
    if conduct == Conduct::Upstream && turn.never_arrived() && told == [UNKNOWN] {
        verdict.note("turns that were sent on a connection that its upstream was ending");
        return;
    }
    let mut words = told.iter();
    let mut creates = turn.creates.iter();
    while let Some(create) = creates.next() {
        let unseen = create.response.as_deref().is_none_or(|response| !turn.saw(response));
        let ran_again = create.was_cut() && !turn.stored && unseen && creates.len() > 0;
        if ran_again && words.len() <= creates.len() {
            continue;
        }
        let said = words.next();
        verdict.check(Invariant::I3, said.is_some_and(|said| is_word_for(said, create)), || {
            format!("{session}: of {:?} was told {said:?}, and it was {create:?}", turn.text)
        });
    }
    verdict.check(Invariant::I3, words.len() == 0, || {
        format!("{session}: of {:?} was told {told:?}: {:?}", turn.text, turn.creates)
    });
}

/// The end of a run, as its client was told.
fn end(seen: &Seen) -> Option<&str> {
    match &seen.what {
        What::Ended { outcome, .. } => Some(outcome),
        What::Error { code, .. } if !NOT_SENT.contains(&code.as_str()) => Some(code),
        _ => None,
    }
}

/// Whether a client may be told so of this run.
fn is_word_for(said: &str, create: &Create) -> bool {
    match create.outcome.strip_prefix("refused:") {
        Some(code) => said == code,
        None if create.was_cut() => said == UNKNOWN || create.outcome == "aged" && said == TOO_OLD,
        None => said == create.outcome,
    }
}
