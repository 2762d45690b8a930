//! Ownership, ledger and handoff as a state machine, every state of it within bounds.
//!
//! Nodes, store, edge, client and upstream are made of the rules that run: the store's
//! [`Table`](crate::store::memory::table::Table), [`Turns`](crate::session::turns::Turns), the
//! edge's [`Outstanding`](crate::edge::outstanding::Outstanding), the
//! [`Lease`](crate::ownership::lease::Lease), and what the answers to claims, transfers and the
//! ledger mean. The model's own are the order of steps that tasks make, and the surroundings:
//! what is under way may be late, lost or executed unheard, clocks drift, processes end.
//!
//! `./test.sh model` prints the tables and runs the larger bounds.

#![expect(clippy::unused_self, reason = "steps have one shape, whether they can be broken or not")]

mod mutants;
mod outside;
mod protocol;
mod session;
mod steps;
mod world;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use stateright::{Checker, HasDiscoveries, Model};

use self::{
    mutants::Mutant,
    protocol::{Ask, Protocol},
    world::Budget,
};

const NONE: Budget = Budget {
    crashes: 0,
    cuts: 0,
    hang_ups: 0,
    losses: 0,
    drains: 0,
    deadlines: 0,
    balances: 0,
    retries: 0,
    ticks: 0,
};

const STORED: Ask = Ask { store: true, keyed: false, chained: false };
const KEYED: Ask = Ask { store: true, keyed: true, chained: false };
const UNSTORED: Ask = Ask { store: false, keyed: false, chained: false };
const UNSTORED_KEYED: Ask = Ask { store: false, keyed: true, chained: false };
const CHAINED: Ask = Ask { store: false, keyed: false, chained: true };

/// Bounds that are checked to the last state, and what must be seen within them.
struct Scenario {
    name: &'static str,
    nodes: usize,
    asks: &'static [Ask],
    budget: Budget,
    sights: &'static [&'static str],
    /// Rules whose loss shows within these bounds.
    mutants: &'static [Mutant],
}

impl Scenario {
    fn model(&self, mutant: Option<Mutant>) -> Protocol {
        Protocol {
            nodes: self.nodes,
            budget: self.budget,
            requests: self.asks.to_vec(),
            mutant,
            sights: Arc::default(),
        }
    }
}

/// Checked at every change.
const SMALL: &[Scenario] = &[
    Scenario {
        name: "leases end",
        nodes: 2,
        asks: &[],
        budget: Budget { ticks: 2, ..NONE },
        sights: &["a dead node's session is taken over", "a node learns that it was declared dead"],
        mutants: &[
            Mutant::NoMargin,
            Mutant::LeaseFromTheAnswer,
            Mutant::NoLookAtTheLease,
            Mutant::TheDeadGoOn,
            Mutant::ClaimFromTheLiving,
        ],
    },
    Scenario {
        name: "owners die, stored turn",
        nodes: 2,
        asks: &[STORED],
        budget: Budget { crashes: 1, cuts: 1, hang_ups: 1, ..NONE },
        sights: &["an outcome is said to be unknown"],
        mutants: &[
            Mutant::EdgeRedispatches,
            Mutant::StoredTurnsRunAgain,
            Mutant::OpenTurnsStay,
            Mutant::LossIsSilent,
        ],
    },
    Scenario {
        name: "owners die, turn that may run again",
        nodes: 2,
        asks: &[UNSTORED],
        budget: Budget { crashes: 1, hang_ups: 1, ..NONE },
        sights: &[
            "the edge keeps a request for the next owner",
            "a turn is dispatched again on another connection",
            "a turn that ran again is answered",
        ],
        mutants: &[],
    },
    Scenario {
        name: "idempotency key",
        nodes: 2,
        asks: &[KEYED],
        budget: Budget { crashes: 1, losses: 1, retries: 1, ..NONE },
        sights: &[
            "the ledger knows a key",
            "a client asks again by its key",
            "a turn is found that was given up before its answer came",
        ],
        mutants: &[Mutant::NoLedger, Mutant::SendBeforeTheLedger, Mutant::UnknownKeysRunAgain],
    },
    Scenario {
        name: "idempotency key, connection lost",
        nodes: 2,
        asks: &[KEYED],
        budget: Budget { hang_ups: 1, cuts: 1, retries: 1, ..NONE },
        sights: &["the ledger knows a key", "a client asks again by its key"],
        mutants: &[Mutant::SentCountsAsFailed],
    },
    Scenario {
        name: "drain",
        nodes: 2,
        asks: &[UNSTORED],
        budget: Budget { drains: 1, losses: 1, ..NONE },
        sights: &[
            "a session is handed over",
            "the heir of a transfer opens the session",
            "a transfer whose answer was lost is found done",
            "a waiting request follows its session",
        ],
        mutants: &[Mutant::TransferInMidTurn, Mutant::EpochStays],
    },
    Scenario {
        name: "drain to its deadline",
        nodes: 2,
        asks: &[KEYED],
        budget: Budget { drains: 1, deadlines: 1, losses: 1, ..NONE },
        sights: &["a turn is severed at the deadline"],
        mutants: &[Mutant::UnfencedLedger],
    },
    Scenario {
        name: "balance",
        nodes: 2,
        asks: &[UNSTORED],
        budget: Budget { balances: 1, losses: 1, ..NONE },
        sights: &["a session that could as well stay stays"],
        mutants: &[Mutant::UnansweredIsFailed],
    },
    Scenario {
        name: "owners die, conversation",
        nodes: 2,
        asks: &[UNSTORED, CHAINED],
        budget: Budget { crashes: 1, ..NONE },
        sights: &[],
        mutants: &[Mutant::EndBeforeTheCopy],
    },
];

/// Checked by command: everything at once, and more of it.
const LARGE: &[Scenario] = &[
    Scenario {
        name: "a key that may run again",
        nodes: 2,
        asks: &[UNSTORED_KEYED],
        budget: Budget { crashes: 1, losses: 1, retries: 2, hang_ups: 1, ..NONE },
        sights: &["the ledger knows a key", "a turn that ran again is answered"],
        mutants: &[],
    },
    Scenario {
        name: "drain of three",
        nodes: 3,
        asks: &[KEYED],
        budget: Budget { drains: 2, deadlines: 1, ..NONE },
        sights: &["a turn is severed at the deadline", "a session is handed over"],
        mutants: &[],
    },
    Scenario {
        name: "a key, two crashes",
        nodes: 3,
        asks: &[KEYED],
        budget: Budget { crashes: 2, losses: 1, retries: 1, ..NONE },
        sights: &["the ledger knows a key"],
        mutants: &[],
    },
    Scenario {
        name: "drain, conversation",
        nodes: 2,
        asks: &[UNSTORED, CHAINED],
        budget: Budget { drains: 1, losses: 1, ..NONE },
        sights: &[
            "an heir opens the session before its client asks",
            "a drain offers a conversation again",
        ],
        mutants: &[Mutant::NothingPrepared],
    },
    Scenario {
        name: "leases end in a drain",
        nodes: 2,
        asks: &[],
        budget: Budget { ticks: 2, drains: 1, ..NONE },
        sights: &[],
        mutants: &[Mutant::UnfencedRelease],
    },
    Scenario {
        name: "leases end in mid-turn",
        nodes: 2,
        asks: &[STORED],
        budget: Budget { ticks: 2, ..NONE },
        sights: &["a dead node's session is taken over", "an answer to a renewal comes late"],
        mutants: &[],
    },
    Scenario {
        name: "owners die, three nodes",
        nodes: 3,
        asks: &[UNSTORED],
        budget: Budget { crashes: 2, ..NONE },
        sights: &["a dead node's session is taken over", "a turn that ran again is answered"],
        mutants: &[],
    },
    Scenario {
        name: "drain and crash, two turns",
        nodes: 2,
        asks: &[UNSTORED, CHAINED],
        budget: Budget { drains: 1, crashes: 1, losses: 1, ..NONE },
        sights: &["a session is handed over"],
        mutants: &[],
    },
];

/// What a run found.
struct Found {
    states: usize,
    unique: usize,
    depth: usize,
    took: Duration,
    sights: BTreeSet<&'static str>,
    /// The broken property, and the steps that break it.
    broken: Option<(&'static str, Vec<String>)>,
}

fn run(model: Protocol) -> Found {
    let sights = Arc::clone(&model.sights);
    let started = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = model
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let broken =
        checker.discoveries().into_iter().min_by_key(|(_, path)| path.clone().into_actions().len());
    let broken = broken.map(|(name, path)| {
        (name, path.into_actions().iter().map(|act| format!("{act:?}")).collect())
    });
    Found {
        states: checker.state_count(),
        unique: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: started.elapsed(),
        sights: std::mem::take(&mut sights.lock()),
        broken,
    }
}

/// Checks bounds to their last state.
fn check(scenarios: &[Scenario]) {
    let mut failed = Vec::new();
    println!("| Bounds | Nodes | Faults and plans | States | Steps | Depth | Seconds |");
    println!("|---|---|---|---|---|---|---|");
    for scenario in scenarios {
        let found = run(scenario.model(None));
        println!(
            "| {} | {} | {} | {} | {} | {} | {:.1} |",
            scenario.name,
            scenario.nodes,
            scenario.budget,
            found.unique,
            found.states,
            found.depth,
            found.took.as_secs_f64(),
        );
        if let Some((property, trace)) = found.broken {
            println!("broken: {property}: {trace:?}");
            failed.push(format!("{}: broken: {property}\n  {}", scenario.name, trace.join("\n  ")));
        }
        for sight in scenario.sights {
            if !found.sights.contains(sight) {
                failed.push(format!(
                    "{}: never seen: {sight}; but {:?}",
                    scenario.name, found.sights
                ));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_state_within_small_bounds_keeps_the_invariants() {
    check(SMALL);
}

#[test]
#[ignore = "minutes: ./test.sh model"]
fn every_state_within_large_bounds_keeps_the_invariants() {
    check(LARGE);
}

#[test]
fn every_broken_rule_breaks_an_invariant() {
    let mut missed = Vec::new();
    println!("| Broken rule | Bounds | Property that fails | Steps |");
    println!("|---|---|---|---|");
    for &mutant in Mutant::ALL {
        let mut all = SMALL.iter().chain(LARGE);
        let scenario = all.find(|scenario| scenario.mutants.contains(&mutant));
        let scenario = scenario.unwrap_or_else(|| panic!("{mutant:?} has no bounds"));
        let found = run(scenario.model(Some(mutant)));
        if let Some((property, trace)) = found.broken {
            println!("| {mutant} | {} | {property} | {} |", scenario.name, trace.len());
        } else {
            println!("| {mutant} | {} | none | {} states |", scenario.name, found.unique);
            missed.push(mutant);
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
