//! What one principal may do on all nodes together, asked before a turn is sent.
//!
//! The store counts. A node tells it how many turns of a principal it may be running, before
//! a further one begins and after some have ended; so the sum over living nodes is never less
//! than what runs, whatever is lost on the way. Principals have no limits by default, and
//! without limits nobody is asked.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as Gate, Notify, mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_util::task::TaskTracker;

use crate::{
    config::PrincipalLimits,
    error::{Code, Error},
    ids::{Incarnation, Principal},
    jitter::spread,
    store::{Pace, Store, TurnAdmission, TurnWish},
    telemetry::metrics::{Metrics, QuotaLimit},
};

/// How long a turn waits for another one's place before its client is refused: turns that
/// follow each other closely are not at once, though the news of an end takes its time.
const PATIENCE: Duration = Duration::from_millis(500);

/// Pause before asking again for a place.
const PAUSE: Duration = Duration::from_millis(50);

/// Limit of the whole question. The store's own time-out may be longer.
const LIMIT: Duration = Duration::from_secs(2);

/// Pause after the store did not take what has ended.
const RETRY: Duration = Duration::from_secs(1);

/// Principals whose ended turns the store is told of at a time.
const RETURNS: usize = 16;

/// Counts the turns of principals that have limits. A cheap handle.
#[derive(Clone)]
pub struct Quotas {
    shared: Arc<Shared>,
    tracker: TaskTracker,
    /// The returning task ends when every handle is gone.
    _alive: mpsc::Sender<()>,
}

struct Shared {
    me: Incarnation,
    store: Arc<dyn Store>,
    metrics: Metrics,
    at_once: Option<u32>,
    per_minute: Option<u32>,
    /// Principals with turns that run here, or that the store may believe to.
    uses: Mutex<HashMap<Principal, Arc<Use>>>,
    /// Those of which the store may believe more than is true.
    ended: Mutex<BTreeSet<Principal>>,
    more: Notify,
}

/// What a principal has here.
#[derive(Default)]
struct Use {
    running: Mutex<u32>,
    /// Held while the store is asked.
    told: Gate<Told>,
}

/// How many turns the store believes to run here. Two numbers, since an answer may get lost:
/// it believes at least `sure`, and `running` is never more than that.
#[derive(Clone, Copy, Default)]
struct Told {
    sure: u32,
    most: u32,
}

impl Told {
    /// The store is told this number, and may or may not hear of it.
    fn tell(&mut self, running: u32) {
        self.sure = self.sure.min(running);
        self.most = self.most.max(running);
    }

    /// The store has taken this number.
    fn settle(&mut self, running: u32) {
        *self = Self { sure: running, most: running };
    }
}

/// A turn that is counted; it is as long as this lives.
pub struct Slot {
    principal: Principal,
    used: Arc<Use>,
    shared: Arc<Shared>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        *self.used.running.lock() -= 1;
        self.shared.return_soon(self.principal);
    }
}

impl Quotas {
    /// None where turns have no limits.
    pub fn start(
        me: Incarnation,
        limits: PrincipalLimits,
        store: Arc<dyn Store>,
        metrics: Metrics,
        tracker: &TaskTracker,
    ) -> Option<Self> {
        let PrincipalLimits { turns: at_once, turns_per_minute: per_minute, .. } = limits;
        at_once.or(per_minute)?;
        let shared = Arc::new(Shared {
            me,
            store,
            metrics,
            at_once,
            per_minute,
            uses: Mutex::default(),
            ended: Mutex::default(),
            more: Notify::new(),
        });
        let (alive, gone) = mpsc::channel(1);
        tracker.spawn(Arc::clone(&shared).return_all(gone));
        Some(Self { shared, tracker: tracker.clone(), _alive: alive })
    }

    /// Asks for one more turn, and answers within two seconds. Cancel-safe: a turn whose
    /// caller went away is not counted.
    pub(super) fn admit(
        &self,
        principal: Principal,
    ) -> impl Future<Output = Result<Slot, Error>> + Send + Sync + use<> {
        let (reply, answer) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        self.tracker.spawn(async move {
            let admitted = timeout(LIMIT, shared.admit(principal));
            drop(reply.send(admitted.await.unwrap_or_else(|_| Err(unknown()))));
        });
        async move { answer.await.unwrap_or_else(|_| Err(unknown())) }
    }
}

impl Shared {
    async fn admit(self: &Arc<Self>, principal: Principal) -> Result<Slot, Error> {
        let used = Arc::clone(self.uses.lock().entry(principal).or_default());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut told = used.told.lock().await;
            let running = used.running.lock().saturating_add(1);
            let granted = self.per_minute.is_none() && told.sure >= running;
            let wish = TurnWish {
                principal,
                me: self.me,
                running,
                at_once: self.at_once,
                pace: self.per_minute.map(Pace::per_minute),
            };
            let admission = if granted {
                Ok(TurnAdmission::Admitted)
            } else {
                // Whether it hears of it or not, it is told again when this is over.
                let unsure = Unsure { shared: self, principal };
                let before = *told;
                told.tell(running);
                let admission = self.store.admit_turn(&wish).await;
                match admission {
                    Ok(TurnAdmission::Admitted) => told.settle(running),
                    Ok(TurnAdmission::TooMany | TurnAdmission::TooFast(_)) => *told = before,
                    Err(_) => {}
                }
                drop(unsure);
                admission
            };
            match admission {
                Ok(TurnAdmission::Admitted) => {
                    // Not what was asked for: others may have ended meanwhile.
                    *used.running.lock() += 1;
                    drop(told);
                    return Ok(Slot { principal, used, shared: Arc::clone(self) });
                }
                Ok(TurnAdmission::TooMany) if Instant::now() < deadline => {
                    drop(told);
                    sleep(spread(PAUSE)).await;
                }
                Ok(TurnAdmission::TooMany) => {
                    self.metrics.quota_refusal(QuotaLimit::TurnsAtOnce);
                    let limit = self.at_once.unwrap_or_default();
                    let text = format!("at most {limit} turns may run at once; retry after one");
                    return Err(Error::new(Code::RateLimited, text));
                }
                Ok(TurnAdmission::TooFast(wait)) => {
                    self.metrics.quota_refusal(QuotaLimit::TurnRate);
                    let rate = self.per_minute.unwrap_or_default();
                    let seconds = wait.as_secs_f64();
                    let text = format!(
                        "at most {rate} turns may begin in a minute; please try again in {seconds:.3}s"
                    );
                    return Err(Error::new(Code::RateLimited, text).after(wait));
                }
                Err(error) => {
                    tracing::debug!(%error, "a principal's limits could not be asked for");
                    return Err(unknown());
                }
            }
        }
    }

    fn return_soon(&self, principal: Principal) {
        self.ended.lock().insert(principal);
        self.more.notify_one();
    }

    /// Tells the store of turns that ended, until every handle is gone.
    async fn return_all(self: Arc<Self>, mut alive: mpsc::Receiver<()>) {
        let mut returning = FuturesUnordered::new();
        loop {
            while returning.len() < RETURNS
                && let Some(principal) = self.next_ended()
            {
                returning.push(self.give_back(principal));
            }
            tokio::select! {
                () = self.more.notified() => {}
                Some(()) = returning.next() => {}
                _ = alive.recv() => return,
            }
        }
    }

    fn next_ended(&self) -> Option<Principal> {
        self.ended.lock().pop_first()
    }

    /// Tells the store what a principal still runs. If it does not answer, that is put off.
    async fn give_back(&self, principal: Principal) {
        let Some(used) = self.uses.lock().get(&principal).cloned() else { return };
        let mut told = used.told.lock().await;
        let running = *used.running.lock();
        if told.most > running && self.at_once.is_some() {
            told.tell(running);
            if let Err(error) = self.store.keep_turns(self.me, principal, running).await {
                tracing::debug!(%error, "what a principal uses could not be written");
                drop(told);
                sleep(RETRY).await;
                return self.return_soon(principal);
            }
            told.settle(running);
        }
        drop(told);
        // Whoever holds it besides the map and this is about to use it.
        let mut all = self.uses.lock();
        if running == 0 && Arc::strong_count(&used) == 2 {
            all.remove(&principal);
        }
    }
}

/// A question whose answer may get lost: what the store believes is corrected afterwards.
struct Unsure<'a> {
    shared: &'a Shared,
    principal: Principal,
}

impl Drop for Unsure<'_> {
    fn drop(&mut self) {
        self.shared.return_soon(self.principal);
    }
}

fn unknown() -> Error {
    let text = "the limits of this principal cannot be looked up now; the turn was not sent, retry";
    Error::new(Code::SessionUnavailable, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        session::tests::node::{Node, eventually, limits},
        store::memory::{Fault, Memory},
    };

    const ALICE: Principal = Principal([1; 16]);
    const BOB: Principal = Principal([2; 16]);

    fn quotas(node: &Node, turns: u32) -> Quotas {
        let limits = PrincipalLimits { turns: Some(turns), ..PrincipalLimits::default() };
        let store: Arc<dyn Store> = Arc::clone(&node.store) as _;
        Quotas::start(node.me, limits, store, node.metrics.clone(), &node.tracker).unwrap()
    }

    #[tokio::test]
    async fn turns_on_two_nodes_never_exceed_the_limit_and_every_place_is_used_again() {
        let store = Arc::new(Memory::default());
        let nodes = [
            Node::start(&store, "a", limits(), []).await,
            Node::start(&store, "b", limits(), []).await,
        ];
        let quotas = [quotas(&nodes[0], 3), quotas(&nodes[1], 3)];
        let running = Arc::new(Mutex::new(0_u32));
        let mut turns = Vec::new();
        for n in 0..60 {
            let (admitted, running) = (quotas[n % 2].admit(ALICE), Arc::clone(&running));
            turns.push(tokio::spawn(async move {
                let Ok(slot) = admitted.await else { return false };
                {
                    let mut running = running.lock();
                    *running += 1;
                    assert!(*running <= 3, "{running} at once");
                }
                tokio::task::yield_now().await;
                *running.lock() -= 1;
                drop(slot);
                true
            }));
        }
        let mut ran = 0;
        for turn in turns {
            ran += u32::from(turn.await.unwrap());
        }
        assert!(ran > 6, "places are used again: {ran}");
        eventually("nothing is held for anybody", async || {
            quotas.iter().all(|quotas| quotas.shared.uses.lock().is_empty())
        })
        .await;
    }

    #[tokio::test]
    async fn a_turn_beyond_the_limit_is_refused_and_one_after_it_is_not() {
        let store = Arc::new(Memory::default());
        let node = Node::start(&store, "a", limits(), []).await;
        let other = Node::start(&store, "b", limits(), []).await;
        let (here, there) = (quotas(&node, 1), quotas(&other, 1));
        let slot = here.admit(ALICE).await.unwrap_or_else(|error| panic!("{error}"));
        let Err(refused) = there.admit(ALICE).await else { panic!("a second one at once") };
        assert_eq!((refused.code, refused.code.status()), (Code::RateLimited, 429));
        assert!(refused.retry_after().is_some());
        drop(slot);
        assert!(there.admit(ALICE).await.is_ok());
    }

    /// A turn that is admitted.
    async fn admitted(quotas: &Quotas, principal: Principal) -> Slot {
        quotas.admit(principal).await.unwrap_or_else(|error| panic!("{error}"))
    }

    #[tokio::test]
    async fn a_turn_that_ends_while_another_ones_question_is_under_way_is_not_counted_for_good() {
        // Between a question and its answer the store asks for the time.
        let ending = Arc::new(Mutex::new(None::<Slot>));
        let clock = Arc::clone(&ending);
        let clock = Arc::new(move || {
            drop(clock.lock().take());
            Instant::now()
        });
        let node = Node::start(&Arc::new(Memory::new(clock)), "a", limits(), []).await;
        let quotas = quotas(&node, 3);
        let first = admitted(&quotas, ALICE).await;
        *ending.lock() = Some(first);
        let second = admitted(&quotas, ALICE).await;
        assert!(ending.lock().is_none());
        drop(second);
        eventually("nothing is counted", async || quotas.shared.uses.lock().is_empty()).await;
    }

    #[tokio::test]
    async fn while_the_store_is_away_no_turn_passes_the_limit() {
        let store = Arc::new(Memory::default());
        let node = Node::start(&store, "a", limits(), []).await;
        let quotas = quotas(&node, 1);
        let _running = admitted(&quotas, ALICE).await;
        store.fail_quotas([Fault::RequestLost; 100]);
        for _ in 0..4 {
            assert!(quotas.admit(ALICE).await.is_err(), "a second one at once");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_whose_return_was_not_answered_is_asked_for_again() {
        let store = Arc::new(Memory::default());
        let nodes = [
            Node::start(&store, "a", limits(), []).await,
            Node::start(&store, "b", limits(), []).await,
        ];
        let (here, there) = (quotas(&nodes[0], 2), quotas(&nodes[1], 2));
        let (ended, _goes_on) = (admitted(&here, ALICE).await, admitted(&here, ALICE).await);
        store.fail_quotas([Fault::ReplyLost]);
        drop(ended);
        let _elsewhere = admitted(&there, ALICE).await;
        assert!(here.admit(ALICE).await.is_err(), "a third one at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_free_at_once_though_the_store_did_not_take_that_of_another_principal() {
        let store = Arc::new(Memory::default());
        let nodes = [
            Node::start(&store, "a", limits(), []).await,
            Node::start(&store, "b", limits(), []).await,
        ];
        let (here, there) = (quotas(&nodes[0], 1), quotas(&nodes[1], 1));
        let (alices, bobs) = (admitted(&here, ALICE).await, admitted(&here, BOB).await);
        store.fail_quotas([Fault::RequestLost]);
        drop(alices);
        tokio::task::yield_now().await;
        drop(bobs);
        admitted(&there, BOB).await;
        assert!(there.admit(ALICE).await.is_err(), "hers is still taken");
        sleep(RETRY).await;
        admitted(&there, ALICE).await;
    }
}
