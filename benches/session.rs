//! What does a session cost beside its frames? A turn's rules, the replay log, and the ledger
//! with what gathers in it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a bench that cannot run has nothing to report"
)]

mod parts;

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use ringspan::{
    ids::{Epoch, Incarnation, Principal, SessionId},
    session::{ledger::Ledger, log::Log},
    store::{
        self, Began, Claim, Claimed, Cursor, NewMember, NewTurn, Store, StoreOptions, Sweep,
        memory::Memory, schema,
    },
    telemetry::metrics::Metrics,
};
use tokio::{runtime::Runtime, time::Instant};
use tokio_util::task::TaskTracker;

use self::parts::{Script, logged, replayed, run, turn, turns};

/// Deltas of a turn.
const DELTAS: usize = 20;

/// Bound of the replay log, as it is by default.
const REPLAY_BYTES: usize = 1 << 20;

/// Longer than any bench.
const LEASE: Duration = Duration::from_hours(1);

fn rules(criterion: &mut Criterion) {
    let script = Script::new(DELTAS);
    let mut group = criterion.benchmark_group("turn");
    let events = script.events.len() as u64;
    group.throughput(Throughput::Elements(events));
    group.bench_function("20 deltas", |bencher| {
        bencher.iter_batched_ref(
            turns,
            |turns| assert_eq!(u64::from(turn(turns, &script).unwrap()), events),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn log(criterion: &mut Criterion) {
    let now = Instant::now();
    let mut group = criterion.benchmark_group("replay log");
    for (name, frames, bytes) in [("1 x 200 B", 1, 200), ("32 x 100 B", 32, 100)] {
        let run = run(frames, bytes);
        let mut log = Log::default();
        while log.floor() == 1 {
            logged(&mut log, &run, REPLAY_BYTES, now).unwrap();
        }
        group.throughput(Throughput::Elements(u64::from(frames)));
        // The log is full: each append drops as much at its other end.
        group.bench_function(format!("append, read and drop {name}"), |bencher| {
            bencher.iter(|| logged(&mut log, &run, REPLAY_BYTES, now).unwrap());
        });
        let half = log.floor() + (log.head() - log.floor()) / 2;
        let missed = log.head() + 1 - half;
        group.throughput(Throughput::Elements(missed));
        group.bench_function(format!("replay half of it, {name}"), |bencher| {
            bencher.iter(|| assert_eq!(replayed(black_box(&log), half), missed));
        });
    }
    group.finish();
}

/// A session that is owned, and the ledger of its owner.
struct Owned {
    store: Arc<dyn Store>,
    ledger: Ledger,
    session: SessionId,
    epoch: Epoch,
    /// Of the next turn.
    next: u64,
}

impl Owned {
    async fn new(store: Arc<dyn Store>) -> Self {
        let me = register(&*store).await;
        let session = SessionId([1; 16]);
        let claim = Claim {
            id: session,
            principal: Principal([1; 16]),
            route: "/v1/responses".into(),
            key_label: "bench".into(),
            me,
            seen: None,
            limit: None,
        };
        let Claimed::Won { epoch, .. } = store.claim(&claim).await.unwrap() else {
            panic!("the session is somebody else's");
        };
        let ledger = Ledger::start(me, Arc::clone(&store), Metrics::new(), &TaskTracker::new());
        Self { store, ledger, session, epoch, next: 1 }
    }

    /// So many turns that begin at once: how long until the last of them may be sent.
    async fn begin(&mut self, turns: u64) -> Duration {
        let wishes: Vec<_> = (self.next..self.next + turns)
            .map(|no| NewTurn {
                session: self.session,
                epoch: self.epoch,
                no,
                key: None,
                request: [0; 16],
                repeatable: true,
            })
            .collect();
        self.next += turns;
        let started = Instant::now();
        let began = join_all(wishes.into_iter().map(|turn| self.ledger.begin(turn))).await;
        let spent = started.elapsed();
        assert!(began.into_iter().all(|began| began == Ok(Began::Begun)), "a turn did not begin");
        // Or the table would grow with the length of the bench.
        self.store.sweep(Sweep::Turns, Duration::ZERO, u32::MAX >> 1, Cursor::START).await.unwrap();
        spent
    }
}

async fn register(store: &dyn Store) -> Incarnation {
    let member = NewMember {
        node_id: "bench".into(),
        peer_addr: "127.0.0.1:1".into(),
        build: "1.0.0".into(),
        zone: None,
        weight: 100,
        capacity: 1000,
        process: String::new(),
        supersede: false,
    };
    let me = store.register(&member, LEASE).await.unwrap();
    store.activate(me).await.unwrap();
    me
}

async fn sqlite(dir: &std::path::Path) -> Arc<dyn Store> {
    let options = StoreOptions {
        url: format!("sqlite://{}", dir.join("ring.db").display()),
        direct_url: None,
        max_connections: 2,
        timeout: Duration::from_secs(5),
    };
    schema::migrate(&options, |_| {}).await.unwrap();
    store::open(&options).await.unwrap()
}

fn begins(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut group = criterion.benchmark_group("ledger, turns that begin at once");
    let stores: [(&str, Arc<dyn Store>); 2] =
        [("memory", Arc::new(Memory::default())), ("SQLite", runtime.block_on(sqlite(dir.path())))];
    for (name, store) in stores {
        let mut owned = runtime.block_on(Owned::new(store));
        for turns in [1, 64] {
            group.throughput(Throughput::Elements(turns));
            group.bench_function(format!("{name}, {turns}"), |bencher| {
                bencher.iter_custom(|times| {
                    runtime.block_on(async {
                        let mut spent = Duration::ZERO;
                        for _ in 0..times {
                            spent += owned.begin(turns).await;
                        }
                        spent
                    })
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, rules, log, begins);
criterion_main!(benches);
