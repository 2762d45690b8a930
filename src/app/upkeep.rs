//! What a node does beside serving: says how loaded it is, forgets peers that left and what they
//! left here, sweeps rows that nobody needs.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{Node, strays::Strays};
use crate::{
    jitter::spread,
    session::{KEEP_CLOSED as KEEP, keep_closed},
    store::{Cursor, Store, Sweep},
};

/// How often the load is looked at; heartbeats carry it.
const LOOK: Duration = Duration::from_millis(500);

/// How often each node sweeps, give or take: a sweep of nothing costs a few index look-ups.
const SWEEP: Duration = Duration::from_mins(2);

/// Rows of one statement: some ten milliseconds of the database's time.
const ROWS: u32 = 2_000;

/// How long rows of one kind may keep the others waiting.
const TURN: Duration = Duration::from_secs(5);

/// Runs until the node ends.
pub(super) async fn run(node: Arc<Node>) {
    let all = async {
        tokio::join!(look(&node), sweep(&node), release_strays(&node), let_go_of_copies(&node))
    };
    node.stop.background.run_until_cancelled(all).await;
}

async fn look(node: &Node) {
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        node.load.store(u32::try_from(node.registry.len()).unwrap_or(u32::MAX), Relaxed);
        let live: Vec<_> = node.ring.borrow().alive().map(|member| member.incarnation).collect();
        node.peers.retain(&live);
    }
}

async fn sweep(node: &Node) {
    let mut sweeper = Sweeper::new(node.turn_retention);
    loop {
        next_sweep().await;
        while sweeper.round(&*node.store).await == Round::More {
            tracing::debug!("more is left to sweep");
        }
    }
}

async fn next_sweep() {
    sleep(spread(SWEEP)).await;
}

async fn release_strays(node: &Node) {
    let mut strays = Strays::default();
    loop {
        next_sweep().await;
        if let Err(error) = strays.release(&*node.store, &node.registry, node.me).await {
            tracing::debug!(%error, "looking for strays failed");
        }
    }
}

async fn let_go_of_copies(node: &Node) {
    loop {
        next_sweep().await;
        let there: HashSet<_> =
            node.ring.borrow().alive().map(|member| member.incarnation).collect();
        node.registry.let_go_of_orphans(|leaver| there.contains(&leaver));
    }
}

/// Whether another round is due at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    More,
    Done,
}

/// Takes all that is old enough, statement by statement, and remembers how far each kind is.
pub(super) struct Sweeper {
    turn_retention: Duration,
    /// Where each kind of [`Sweep::ALL`] goes on.
    cursors: [Cursor; Sweep::ALL.len()],
}

impl Sweeper {
    pub(super) fn new(turn_retention: Duration) -> Self {
        Self { turn_retention, cursors: [Cursor::START; Sweep::ALL.len()] }
    }

    /// Gives each kind its turn. One that fails holds up none of the others.
    pub(super) async fn round(&mut self, store: &dyn Store) -> Round {
        let (mut round, mut failed) = (Round::Done, false);
        for (what, cursor) in Sweep::ALL.into_iter().zip(&mut self.cursors) {
            let age = match what {
                Sweep::Turns => self.turn_retention,
                Sweep::Sessions => keep_closed(self.turn_retention),
                _ => KEEP,
            };
            let (mut gone, begun) = (0, Instant::now());
            loop {
                let step = Instant::now();
                match store.sweep(what, age, ROWS, *cursor).await {
                    Ok(swept) => {
                        gone += swept.rows;
                        *cursor = swept.next.unwrap_or(Cursor::START);
                        if swept.next.is_none() {
                            break;
                        }
                    }
                    // One warning for a round: what ails one kind may well ail all.
                    Err(error) if !std::mem::replace(&mut failed, true) => {
                        tracing::warn!(what = what.as_str(), %error, "sweeping the database failed");
                        break;
                    }
                    Err(error) => {
                        tracing::debug!(what = what.as_str(), %error, "sweeping failed");
                        break;
                    }
                }
                if begun.elapsed() >= TURN {
                    round = Round::More;
                    break;
                }
                // Others have the database for at least as long.
                sleep(step.elapsed()).await;
            }
            if gone > 0 {
                tracing::debug!(what = what.as_str(), rows = gone, "swept");
            }
        }
        // One that fails is not asked again at once.
        if failed { Round::Done } else { round }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{Principal, SessionId},
        store::{
            Alias, AliasKind, Began, Claim, Claimed, NewMember, NewTurn, TurnKey,
            memory::{Fault, Memory},
        },
    };

    /// A store with so many aliases of no session, which are old enough at once.
    async fn store(aliases: u64) -> (Memory, impl Fn()) {
        let passed = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (start, is_over) = (Instant::now(), Arc::clone(&passed));
        let clock = move || start + if is_over.load(Relaxed) { 2 * KEEP } else { Duration::ZERO };
        let store = Memory::new(Arc::new(clock));
        let aliases: Vec<_> = (0..aliases)
            .map(|n| {
                let principal = Principal(u128::from(n).to_be_bytes());
                let (kind, session) = (AliasKind::Response, SessionId([0; 16]));
                Alias { principal, kind, digest: [0; 16], session }
            })
            .collect();
        store.put_aliases(&aliases).await.unwrap();
        (store, move || passed.store(true, Relaxed))
    }

    async fn is_known(store: &Memory, n: u64) -> bool {
        let principal = Principal(u128::from(n).to_be_bytes());
        store.alias(principal, AliasKind::Response, [0; 16]).await.unwrap().is_some()
    }

    #[tokio::test]
    async fn a_sweep_takes_all_that_is_old_whatever_a_statement_takes() {
        let many = 3 * u64::from(ROWS) + 1;
        let (store, pass) = store(many).await;
        let mut sweeper = Sweeper::new(KEEP);
        assert_eq!(sweeper.round(&store).await, Round::Done);
        assert!(is_known(&store, 0).await, "nothing is that old");
        pass();
        assert_eq!(sweeper.round(&store).await, Round::Done);
        for n in [0, u64::from(ROWS), many - 1] {
            assert!(!is_known(&store, n).await, "{n}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_swept_holds_up_nothing_else() {
        let (store, pass) = store(1).await;
        pass();
        store.fail_sweeps([Fault::RequestLost]);
        assert_eq!(Sweeper::new(KEEP).round(&store).await, Round::Done);
        assert!(!is_known(&store, 0).await, "closed sessions come before the aliases");
    }

    /// A closed session whose only turn has this key.
    async fn close_with_a_turn(store: &Memory, id: SessionId, key: TurnKey) {
        let me = store.register(&NewMember::ordinary("a"), KEEP).await.unwrap();
        store.activate(me).await.unwrap();
        let claim = Claim {
            id,
            principal: Principal([1; 16]),
            route: "/v1/responses".into(),
            key_label: String::new(),
            me,
            seen: None,
            limit: None,
        };
        let Claimed::Won { epoch, .. } = store.claim(&claim).await.unwrap() else {
            panic!("it is somebody's");
        };
        let (key, request) = (Some(key), [1; 16]);
        let turn = NewTurn { session: id, epoch, no: 1, key, request, repeatable: false };
        assert_eq!(store.begin_turns(me, &[turn]).await, Ok(vec![Began::Begun]));
        assert_eq!(store.release(id, me, epoch).await, Ok(true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_session_stays_as_long_as_the_ledger_remembers_its_keys() {
        let (store, id, key) = (Memory::default(), SessionId([1; 16]), TurnKey::of("k"));
        close_with_a_turn(&store, id, key).await;
        let mut sweeper = Sweeper::new(3 * KEEP);
        let mut is_known = async |after| {
            tokio::time::advance(after).await;
            sweeper.round(&store).await;
            store.turn_by_key(id, key).await.unwrap().is_some()
        };
        assert!(is_known(2 * KEEP).await);
        assert!(!is_known(KEEP).await);
    }
}
