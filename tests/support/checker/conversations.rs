//! I6, and that answers belong to their turns: what the model saw.

use std::collections::HashMap;

use super::{
    facts::{Create, History, What},
    talks::Talks,
    verdict::{Invariant, Verdict},
};

pub fn judge(history: &History, talks: &Talks, verdict: &mut Verdict) {
    let made: HashMap<&str, &Create> = history
        .creates
        .iter()
        .filter_map(|create| Some((create.response.as_deref()?, create)))
        .collect();
    for (session, turns) in talks {
        for turn in turns {
            for seen in &turn.seen {
                let What::Ended { response, proof, .. } = &seen.what else { continue };
                if !seen.what.is_answer() {
                    continue;
                }
                // The digest is over every acknowledged text before, and this one.
                verdict.check(
                    Invariant::I6,
                    proof.as_ref().is_some_and(|proof| proof.digest == turn.expected),
                    || format!("{session}: the answer to {:?} proves {proof:?}", turn.text),
                );
                let create = made.get(response.as_str());
                let same = create.is_none_or(|create| {
                    create.session == *session && create.conversation == turn.expected
                });
                verdict.check(Invariant::I3, same, || {
                    format!("{session}: {response}, shown for {:?}, is of {create:?}", turn.text)
                });
            }
        }
    }
}
