//! I7, and I4 as far as it shows outside of the database.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    facts::{Conduct, Connection, History, Seen, What},
    verdict::{Invariant, Verdict},
};

/// How much later than the next connection's beginning the upstream may notice an end: the
/// two are noted by different tasks of a busy process.
const NOTICE_MS: u64 = 250;

pub fn judge(history: &History, verdict: &mut Verdict) {
    numbers(history, verdict);
    messages(history, verdict);
    connections(history, verdict);
    outputs(history, verdict);
}

/// Events of an attempt are numbered without gap or repetition.
fn numbers(history: &History, verdict: &mut Verdict) {
    let mut next: HashMap<(&str, usize, usize), (u64, &str)> = HashMap::new();
    for seen in &history.clients {
        let attempt = (seen.session.as_str(), seen.turn, seen.attempt);
        let (response, sequence, proof) = match &seen.what {
            What::Resumed { after } => {
                next.insert(attempt, (after + 1, ""));
                continue;
            }
            What::Event { response, sequence } => (response, Some(*sequence), &None),
            What::Ended { response, sequence, proof, .. } => (response, *sequence, proof),
            _ => continue,
        };
        if let Some(proof) = proof {
            verdict.check(Invariant::I7, proof.whole, || {
                format!("{}: the deltas are not the final text", place(seen))
            });
        }
        let Some(sequence) = sequence else { continue };
        let (wanted, of) = next.entry(attempt).or_insert((0, ""));
        verdict.check(Invariant::I7, sequence == *wanted, || {
            format!("{}: event {sequence} where {wanted} was due", place(seen))
        });
        let same = of.is_empty() || *of == response;
        verdict.check(Invariant::I7, same, || {
            format!("{}: {response} in the middle of {of}", place(seen))
        });
        (*wanted, *of) = (sequence + 1, response);
    }
}

/// Messages of an opaque session come in the order in which they were sent, once.
fn messages(history: &History, verdict: &mut Verdict) {
    let mut had: HashMap<&str, BTreeSet<u64>> = HashMap::new();
    for seen in &history.clients {
        let What::Message { number } = seen.what else { continue };
        let had = had.entry(&seen.session).or_default();
        let last = had.last().copied();
        let in_order = last.is_none_or(|last| last < number);
        let once = had.insert(number);
        // A network that comes back may still deliver what was said on a socket that its
        // client has given up since.
        let late = once && !in_order && history.conduct == Conduct::Freezes;
        if late {
            verdict.note("messages of a socket that was given up, come late");
        }
        verdict.check(Invariant::I7, once && (in_order || late), || {
            format!("{}: message {number} after {last:?}", place(seen))
        });
    }
}

/// A session has one upstream connection at a time, and a replaced one is asked nothing more.
fn connections(history: &History, verdict: &mut Verdict) {
    let mut sessions: BTreeMap<&str, Vec<&Connection>> = BTreeMap::new();
    for connection in &history.connections {
        sessions.entry(&connection.session).or_default().push(connection);
    }
    for (session, mut connections) in sessions {
        connections.sort_by_key(|connection| (connection.opened, connection.id));
        // One that was frozen keeps its connection, and cannot do otherwise.
        let frozen = history.conduct == Conduct::Freezes;
        for pair in connections.windows(2).filter(|_| !frozen) {
            let closed = pair[0].closed.unwrap_or(u64::MAX);
            verdict.check(Invariant::I4, closed <= pair[1].opened + NOTICE_MS, || {
                let (one, two) = (pair[0], pair[1]);
                format!(
                    "{session}: connection {} ({}..{:?}) overlaps {} (from {})",
                    one.id, one.opened, one.closed, two.id, two.opened
                )
            });
        }
        let rank = |id| connections.iter().position(|connection| connection.id == id);
        let mut creates: Vec<_> =
            history.creates.iter().filter(|create| create.session == session).collect();
        creates.sort_by_key(|create| create.at);
        for pair in creates.windows(2) {
            // Within one millisecond there is no order.
            let holds =
                pair[0].at == pair[1].at || rank(pair[0].connection) <= rank(pair[1].connection);
            verdict.check(Invariant::I4, holds, || {
                format!(
                    "{session}: {:?} was dispatched on connection {} after the newer {} was used",
                    pair[1].response, pair[1].connection, pair[0].connection
                )
            });
        }
    }
}

/// A client never sees output of an older connection after that of a newer one.
fn outputs(history: &History, verdict: &mut Verdict) {
    let opened: HashMap<u64, u64> =
        history.connections.iter().map(|connection| (connection.id, connection.opened)).collect();
    let made: HashMap<&str, u64> = history
        .creates
        .iter()
        .filter_map(|create| Some((create.response.as_deref()?, *opened.get(&create.connection)?)))
        .collect();
    let mut newest: HashMap<&str, (u64, &str)> = HashMap::new();
    for seen in &history.clients {
        let (What::Event { response, .. } | What::Ended { response, .. }) = &seen.what else {
            continue;
        };
        let Some(at) = made.get(response.as_str()) else { continue };
        let newest = newest.entry(&seen.session).or_insert((*at, response));
        verdict.check(Invariant::I4, *at >= newest.0, || {
            format!("{}: {response} of an older connection after {}", place(seen), newest.1)
        });
        *newest = (*at.max(&newest.0), response);
    }
}

/// Where in the clients' history.
fn place(seen: &Seen) -> String {
    let Seen { at, session, turn, attempt, .. } = seen;
    format!("{session} turn {turn} attempt {attempt} at {} ms", at / 1000)
}
