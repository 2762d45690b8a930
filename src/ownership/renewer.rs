//! Renews this node's lease, on a thread and a connection of its own: a stalled runtime or
//! an exhausted pool must not cost the lease.
//!
//! The same thread looks at the others' leases, because whether others may be declared dead
//! depends on our own heartbeats ([`super::reaper`]).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{lease::LeaseHandle, process, witness::Witness};
use crate::{
    config::Timing,
    ids::Incarnation,
    store::{self, Death, Member, MemberState, RingView, Store, StoreError, StoreOptions},
    telemetry::metrics::Metrics,
};

/// How often the thread looks up from its sleep: bounds how late a stop or a proven death
/// is noticed.
const TICK: Duration = Duration::from_millis(250);

/// The renewing thread. Stops when dropped, which waits for a tick and one bounded store call.
pub struct Renewer {
    stop: Arc<AtomicBool>,
    place: Place,
}

impl Renewer {
    /// Starts the thread. `load` is read at each heartbeat: the sessions owned now.
    ///
    /// # Errors
    /// No thread or runtime could be made.
    pub fn start(
        options: StoreOptions,
        me: Incarnation,
        timing: Timing,
        lease: LeaseHandle,
        witness: Witness,
        load: Arc<AtomicU32>,
        metrics: Metrics,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let task = Task {
            options,
            me,
            timing,
            lease,
            witness,
            load,
            metrics,
            stop: Arc::clone(&stop),
            view: RingView::default(),
        };
        Ok(Self { stop, place: Place::start(task.run())? })
    }

    /// Stops it without holding up the runtime. No heartbeat follows.
    #[cfg(not(feature = "simulation"))]
    pub async fn stop(self) {
        self.stop.store(true, Relaxed);
        drop(tokio::task::spawn_blocking(move || drop(self)).await);
    }

    /// Stops it. No heartbeat follows.
    #[cfg(feature = "simulation")]
    pub async fn stop(mut self) {
        self.stop.store(true, Relaxed);
        drop((&mut self.place.0).await);
    }
}

impl Drop for Renewer {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.place.end();
    }
}

/// Where the renewing goes on: on a thread with a runtime of its own.
#[cfg(not(feature = "simulation"))]
struct Place(Option<std::thread::JoinHandle<()>>);

#[cfg(not(feature = "simulation"))]
impl Place {
    fn start(task: impl Future<Output = ()> + Send + 'static) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name("lease".into())
            .spawn(move || runtime.block_on(task))?;
        Ok(Self(Some(thread)))
    }

    fn end(&mut self) {
        if let Some(thread) = self.0.take() {
            drop(thread.join());
        }
    }
}

/// A simulation has one thread, and time moves on that one only.
#[cfg(feature = "simulation")]
struct Place(tokio::task::JoinHandle<()>);

#[cfg(feature = "simulation")]
impl Place {
    #[expect(clippy::unnecessary_wraps, reason = "a thread may not start")]
    fn start(task: impl Future<Output = ()> + Send + 'static) -> std::io::Result<Self> {
        Ok(Self(tokio::spawn(task)))
    }

    fn end(&mut self) {
        self.0.abort();
    }
}

struct Task {
    options: StoreOptions,
    me: Incarnation,
    timing: Timing,
    lease: LeaseHandle,
    witness: Witness,
    load: Arc<AtomicU32>,
    metrics: Metrics,
    stop: Arc<AtomicBool>,
    /// The members as of the last heartbeat.
    view: RingView,
}

impl Task {
    async fn run(mut self) {
        let mut store: Option<Arc<dyn Store>> = None;
        while !self.stop.load(Relaxed) {
            let begun = Instant::now();
            let result = match &store {
                Some(store) => self.beat(&**store).await,
                None => match store::open_single(&self.options).await {
                    Ok(opened) => {
                        let result = self.beat(&*opened).await;
                        store = Some(opened);
                        result
                    }
                    Err(error) => Err(error),
                },
            };
            match result {
                Ok(()) => {}
                Err(StoreError::Fenced(_)) => {
                    tracing::error!(incarnation = %self.me, "this node was declared dead by the ring; it stops serving");
                    self.lease.fenced();
                    return;
                }
                Err(error) => {
                    self.metrics.store_error("heartbeat", (&error).into());
                    // Said once: how an outage goes on, certificates say.
                    if self.witness.missed() {
                        tracing::warn!(%error, "the database does not answer; owned sessions go on, none is claimed");
                    } else {
                        tracing::debug!(%error, "lease not renewed");
                    }
                }
            }
            self.metrics.store_away(self.witness.unreachable(Instant::now()));
            self.metrics.lease_until(self.lease.until().map(Into::into));
            self.sleep_until(begun + jittered(self.timing.heartbeat_interval), store.as_deref())
                .await;
        }
    }

    /// One renewal, and a look at the others.
    async fn beat(&mut self, store: &dyn Store) -> store::Result<()> {
        let sent = Instant::now();
        let ttl = self.timing.lease_ttl;
        store.heartbeat(self.me, ttl, self.load.load(Relaxed)).await?;
        self.metrics.store("heartbeat", sent.elapsed());
        self.lease.renewed(sent, ttl, self.timing.lease_margin);
        if let Some(away) = self.witness.renewed(sent) {
            tracing::info!(?away, "the database answers again");
        }
        if let Err(error) = self.look(store).await {
            tracing::debug!(%error, "looking at the others' leases failed");
            self.witness.blind();
        }
        Ok(())
    }

    /// Declares dead whom the rules allow.
    async fn look(&mut self, store: &dyn Store) -> store::Result<()> {
        let asked = Instant::now();
        self.view = store.ring().await?;
        let mut due = self.witness.verdict(&self.view, asked).into_iter();
        let result = self.declare(store, &mut due, asked + self.timing.heartbeat_interval).await;
        for unsent in due {
            self.witness.withdraw(unsent);
        }
        result
    }

    /// Declares these dead, and begins with none after `until`: many that died together must
    /// not cost this node its own heartbeat. The next look names those that are left.
    async fn declare(
        &self,
        store: &dyn Store,
        due: &mut impl Iterator<Item = Incarnation>,
        until: Instant,
    ) -> store::Result<()> {
        for expired in due {
            let judged = self.view.members.iter().find(|member| member.incarnation == expired);
            let Some(Member { lease, .. }) = judged else { continue };
            let dead = store.mark_dead(expired, Death::Lapsed(*lease)).await?;
            if dead {
                tracing::warn!(incarnation = %expired, "lease expired, declared dead");
            }
            self.witness.settled(expired, dead);
            if Instant::now() >= until {
                break;
            }
        }
        Ok(())
    }

    async fn sleep_until(&mut self, deadline: Instant, store: Option<&dyn Store>) {
        while Instant::now() < deadline && !self.stop.load(Relaxed) {
            if let Some(store) = store
                && let Err(error) = prove_deaths(store, self.me, &mut self.view, deadline).await
            {
                tracing::debug!(%error, "looking for proven deaths failed");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(TICK)).await;
        }
    }
}

/// Declares dead whose processes on this machine are gone: they need not be waited for. As
/// [`Task::declare`], begins with none after `until`; a later call goes on with those that are
/// left.
async fn prove_deaths(
    store: &dyn Store,
    me: Incarnation,
    view: &mut RingView,
    until: Instant,
) -> store::Result<()> {
    let others = |member: &&mut Member| member.state.is_alive() && member.incarnation != me;
    for member in view.members.iter_mut().filter(others) {
        if !process::is_proven_dead(&member.process) {
            continue;
        }
        if store.mark_dead(member.incarnation, Death::Proven).await? {
            tracing::warn!(incarnation = %member.incarnation, node = %member.node_id, "process is gone, declared dead");
        }
        // By us or by another: nothing more is to be said of it.
        member.state = MemberState::Dead;
        if Instant::now() >= until {
            break;
        }
    }
    Ok(())
}

/// Spreads heartbeats of nodes that started together, always to the early side.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.9..1.0))
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::{
        ownership::process::tests::ended,
        store::{NewMember, memory::Memory},
    };

    #[tokio::test]
    async fn many_processes_that_are_gone_together_cost_no_heartbeat() {
        const DEAD: usize = 15;
        const TTL: Duration = Duration::from_secs(15);

        let store = Memory::default();
        let process = ended();
        let mut members = Vec::new();
        for n in 0..=DEAD {
            let process = if n == 0 { process::identity() } else { process.clone() };
            let member = NewMember { process, ..NewMember::ordinary(&format!("node-{n}")) };
            members.push(store.register(&member, TTL).await.unwrap());
        }
        let mut view = store.ring().await.unwrap();
        for marked in 1..=DEAD {
            // The time for the next heartbeat has come.
            prove_deaths(&store, members[0], &mut view, Instant::now()).await.unwrap();
            let ring = store.ring().await.unwrap();
            let alive = ring.members.iter().filter(|member| member.state.is_alive()).count();
            assert_eq!(alive, 1 + DEAD - marked, "one a call, and none twice");
        }
    }
}
