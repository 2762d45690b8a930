//! The same random calls to every store must get the same answers.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use ringspan::{
    ids::{Epoch, Incarnation, Principal, SessionId},
    store::{
        Alias, AliasKind, Began, Claim, Claimed, Cursor, Death, NewMember, NewTurn, Result,
        SessionFilter, SessionRow, Store, StoreError, StoreOptions, Sweep, Transferred, TurnKey,
        TurnMark, TurnRow, TurnState, memory::Memory, schema,
    },
};
use sqlx::{Connection, Executor, PgConnection};

use crate::{
    postgres_server::Server,
    ring::{LONG, OVER, member, options},
};

const CASES: u32 = 96;
const CALLS: usize = 60;

/// Which epoch a call presents for a session.
#[derive(Clone, Copy, Debug)]
enum Seen {
    None,
    Current,
    Earlier,
}

/// A turn to begin. The last number has no key; `other` is another request.
#[derive(Clone, Debug)]
struct Wish {
    session: u8,
    seen: Seen,
    who: usize,
    turn: u8,
    repeatable: bool,
    other: bool,
}

const TURNS: u8 = 4;

/// One call. Members and epochs are named by their place in the order of their making,
/// since the numbers themselves differ between stores.
#[derive(Clone, Debug)]
enum Call {
    Register { node: u8, long: bool, supersede: bool },
    Heartbeat { who: usize, long: bool },
    Activate(usize),
    Drain(usize),
    Leave(usize),
    MarkDead { who: usize, proven: bool },
    Claim { session: u8, who: usize, seen: Seen, thief: bool },
    Release { session: u8, who: usize, seen: Seen },
    Quiesce { session: u8, who: usize, seen: Seen },
    Resume { session: u8, who: usize, seen: Seen },
    Transfer { session: u8, who: usize, seen: Seen, heir: usize, forced: bool },
    BeginTurns(Vec<Wish>),
    MarkTurns(Vec<(u8, Seen, u8, TurnState, Option<u8>)>),
    SweepTurns { all: bool, limit: u32 },
    List { owner: Option<usize>, label: Option<u8>, after: Option<u8>, limit: u32 },
    PutAliases(Vec<(u8, bool, u8, u8)>),
    Alias(u8, bool, u8),
    Sweep { all: bool },
}

fn call() -> impl Strategy<Value = Call> {
    let who = || 0..5_usize;
    let session = || 0..4_u8;
    let seen =
        || prop_oneof![1 => Just(Seen::None), 6 => Just(Seen::Current), 1 => Just(Seen::Earlier)];
    let mostly = || prop::bool::weighted(0.85);
    let rarely = || prop::bool::weighted(0.1);
    let held = || (session(), who(), seen());
    let wish = (held(), 0..TURNS, any::<bool>(), rarely()).prop_map(
        |((session, who, seen), turn, repeatable, other)| Wish {
            session,
            seen,
            who,
            turn,
            repeatable,
            other,
        },
    );
    let state = prop_oneof![
        2 => Just(TurnState::Visible),
        1 => Just(TurnState::Done),
        1 => Just(TurnState::Failed),
        2 => Just(TurnState::Unknown),
    ];
    prop_oneof![
        3 => (0..4_u8, mostly(), rarely())
            .prop_map(|(node, long, supersede)| Call::Register { node, long, supersede }),
        2 => (who(), mostly()).prop_map(|(who, long)| Call::Heartbeat { who, long }),
        4 => who().prop_map(Call::Activate),
        1 => who().prop_map(Call::Drain),
        1 => who().prop_map(Call::Leave),
        1 => (who(), rarely()).prop_map(|(who, proven)| Call::MarkDead { who, proven }),
        8 => (held(), rarely()).prop_map(|((session, who, seen), thief)| Call::Claim { session, who, seen, thief }),
        2 => held().prop_map(|(session, who, seen)| Call::Release { session, who, seen }),
        4 => held().prop_map(|(session, who, seen)| Call::Quiesce { session, who, seen }),
        1 => held().prop_map(|(session, who, seen)| Call::Resume { session, who, seen }),
        4 => (held(), who(), any::<bool>()).prop_map(|((session, who, seen), heir, forced)| Call::Transfer { session, who, seen, heir, forced }),
        10 => vec(wish, 0..4).prop_map(Call::BeginTurns),
        6 => vec((session(), seen(), 0..TURNS, state, prop::option::of(0..3_u8)), 0..4).prop_map(Call::MarkTurns),
        1 => (any::<bool>(), 0..3_u32).prop_map(|(all, limit)| Call::SweepTurns { all, limit }),
        1 => (prop::option::of(who()), prop::option::of(session()), prop::option::of(session()), 0..6_u32)
            .prop_map(|(owner, label, after, limit)| Call::List { owner, label, after, limit }),
        1 => vec((0..2_u8, any::<bool>(), 0..3_u8, session()), 0..4).prop_map(Call::PutAliases),
        1 => (0..2_u8, any::<bool>(), 0..3_u8).prop_map(|(p, k, d)| Call::Alias(p, k, d)),
        1 => rarely().prop_map(|all| Call::Sweep { all }),
    ]
}

/// A store, and the names of what it made.
struct Subject {
    store: Arc<dyn Store>,
    members: Vec<Incarnation>,
    epochs: Vec<Epoch>,
}

fn session_id(session: u8) -> SessionId {
    SessionId([session; 16])
}

fn turn_key(turn: u8) -> Option<TurnKey> {
    (turn + 1 < TURNS).then_some(TurnKey([turn; 16]))
}

fn alias_of(principal: u8, response: bool, digest: u8, session: u8) -> Alias {
    let kind = if response { AliasKind::Response } else { AliasKind::TurnState };
    let principal = Principal([principal; 16]);
    Alias { principal, kind, digest: [digest; 16], session: session_id(session) }
}

impl Subject {
    fn new(store: Arc<dyn Store>) -> Self {
        Self { store, members: Vec::new(), epochs: Vec::new() }
    }

    fn who(&self, index: usize) -> Incarnation {
        let newest = self.members.len().saturating_sub(index + 1);
        self.members.get(newest).copied().unwrap_or(Incarnation(999_999))
    }

    /// An incarnation's name, the same for every store.
    fn member(&self, incarnation: Incarnation) -> String {
        let place = self.members.iter().position(|it| *it == incarnation);
        place.map_or_else(|| "nobody".into(), |place| format!("m{place}"))
    }

    /// An epoch's name; a new one must exceed all before it.
    fn epoch(&mut self, epoch: Epoch) -> String {
        let place = self.epochs.iter().position(|it| *it == epoch).unwrap_or_else(|| {
            assert!(self.epochs.iter().all(|it| *it < epoch), "{epoch} is not the greatest");
            self.epochs.push(epoch);
            self.epochs.len() - 1
        });
        format!("e{place}")
    }

    async fn seen(&self, session: u8, seen: Seen) -> Option<Epoch> {
        let row = self.store.session(session_id(session)).await.unwrap();
        let current = row.map_or(Epoch(0), |row| row.epoch);
        match seen {
            Seen::None => None,
            Seen::Current => Some(current),
            Seen::Earlier => Some(self.epochs.first().copied().unwrap_or_default()),
        }
    }

    async fn fence(&self, session: u8, who: usize, seen: Seen) -> (SessionId, Incarnation, Epoch) {
        let epoch = self.seen(session, seen).await.unwrap_or_default();
        (session_id(session), self.who(who), epoch)
    }

    fn row(&mut self, row: &SessionRow) -> String {
        let owner = row.owner.map(|owner| self.member(owner));
        let epoch = self.epoch(row.epoch);
        format!(
            "{} {} {} {} {owner:?} {:?} {:?} {epoch} {:?}",
            row.id,
            row.principal,
            row.route,
            row.key_label,
            row.owner_state,
            row.owner_addr,
            row.state
        )
    }

    fn turn(&mut self, row: &TurnRow) -> String {
        let epoch = self.epoch(row.epoch);
        format!("{} {epoch} {} {:?} {:?}", row.session, row.no, row.state, row.response)
    }

    fn error(&self, error: StoreError) -> String {
        match error {
            StoreError::Fenced(me) => format!("fenced {}", self.member(me)),
            StoreError::NodeIdInUse { holder, remaining, .. } => {
                format!("in use by {} {}", self.member(holder), remaining.is_zero())
            }
            StoreError::Corrupt(_) => "corrupt".into(),
            other => panic!("{}: {other}", self.store.backend()),
        }
    }

    /// Makes a call; answers what a caller would learn, in names.
    async fn answer(&mut self, call: &Call) -> String {
        match self.try_answer(call).await {
            Ok(answer) => answer,
            Err(error) => self.error(error),
        }
    }

    async fn try_answer(&mut self, call: &Call) -> Result<String> {
        let lease = |long: bool| if long { LONG } else { OVER };
        let store = Arc::clone(&self.store);
        Ok(match *call {
            Call::Register { node, long, supersede } => {
                let new = NewMember { supersede, ..member(&format!("n{node}")) };
                let me = store.register(&new, lease(long)).await?;
                assert!(self.members.iter().all(|earlier| *earlier < me));
                self.members.push(me);
                self.member(me)
            }
            Call::Heartbeat { who, long } => {
                format!("{:?}", store.heartbeat(self.who(who), lease(long), 3).await?)
            }
            Call::Activate(who) => format!("{:?}", store.activate(self.who(who)).await?),
            Call::Drain(who) => format!("{:?}", store.begin_drain(self.who(who)).await?),
            Call::Leave(who) => format!("{:?}", store.leave(self.who(who)).await?),
            Call::MarkDead { who, proven } => {
                let who = self.who(who);
                let ring = store.ring().await?;
                let lease = ring.members.iter().find(|member| member.incarnation == who);
                let death = match lease {
                    Some(member) if !proven => Death::Lapsed(member.lease),
                    _ => Death::Proven,
                };
                format!("{:?}", store.mark_dead(who, death).await?)
            }
            Call::Claim { session, who, seen, thief } => {
                let claim = Claim {
                    id: session_id(session),
                    principal: Principal([if thief { 0xee } else { session }; 16]),
                    route: "/r".into(),
                    key_label: format!("k{}", session % 2),
                    me: self.who(who),
                    seen: self.seen(session, seen).await,
                    limit: None,
                };
                match store.claim(&claim).await? {
                    Claimed::Won { epoch, from } => {
                        let from = from.map(|from| self.member(from));
                        format!("won {} {from:?}", self.epoch(epoch))
                    }
                    Claimed::Lost(row) => format!("lost {}", self.row(&row)),
                    Claimed::Fenced => "fenced".into(),
                    Claimed::Full => "full".into(),
                }
            }
            Call::Release { session, who, seen } => {
                let (id, me, epoch) = self.fence(session, who, seen).await;
                format!("{:?}", store.release(id, me, epoch).await?)
            }
            Call::Quiesce { session, who, seen } => {
                let (id, me, epoch) = self.fence(session, who, seen).await;
                format!("{:?}", store.quiesce(id, me, epoch).await?)
            }
            Call::Resume { session, who, seen } => {
                let (id, me, epoch) = self.fence(session, who, seen).await;
                format!("{:?}", store.resume(id, me, epoch).await?)
            }
            Call::Transfer { session, who, seen, heir, forced } => {
                let (id, me, epoch) = self.fence(session, who, seen).await;
                match store.transfer(id, me, epoch, self.who(heir), forced).await? {
                    Transferred::Moved(epoch) => format!("moved {}", self.epoch(epoch)),
                    refused => format!("{refused:?}"),
                }
            }
            Call::BeginTurns(..) | Call::MarkTurns(..) | Call::SweepTurns { .. } => {
                self.turns_answer(call).await?
            }
            Call::List { owner, label, after, limit } => {
                let filter = SessionFilter {
                    owner: owner.map(|owner| self.who(owner)),
                    key_label: label.map(|label| format!("k{}", label % 2)),
                    after: after.map(session_id),
                    limit,
                };
                let rows = store.sessions(&filter).await?;
                rows.iter().map(|row| self.row(row) + "\n").collect()
            }
            Call::PutAliases(ref aliases) => {
                let aliases: Vec<_> =
                    aliases.iter().map(|(p, k, d, s)| alias_of(*p, *k, *d, *s)).collect();
                format!("{:?}", store.put_aliases(&aliases).await?)
            }
            Call::Alias(principal, kind, digest) => {
                let it = alias_of(principal, kind, digest, 0);
                format!("{:?}", store.alias(it.principal, it.kind, it.digest).await?)
            }
            Call::Sweep { all } => {
                let age = if all { Duration::ZERO } else { LONG };
                format!("{:?}", crate::ring::sweep(&*store, age, 1000).await?)
            }
        })
    }

    /// The part of [`Subject::try_answer`] that is about turns.
    async fn turns_answer(&mut self, call: &Call) -> Result<String> {
        let store = Arc::clone(&self.store);
        Ok(match *call {
            Call::BeginTurns(ref wishes) => {
                let me = self.who(wishes.first().map_or(0, |wish| wish.who));
                let mut turns = Vec::new();
                for wish in wishes {
                    let (session, _, epoch) = self.fence(wish.session, wish.who, wish.seen).await;
                    turns.push(NewTurn {
                        session,
                        epoch,
                        no: u64::from(wish.turn),
                        key: turn_key(wish.turn),
                        request: [u8::from(wish.other); 16],
                        repeatable: wish.repeatable,
                    });
                }
                let began = store.begin_turns(me, &turns).await?;
                let began = began.into_iter().map(|began| match began {
                    Began::Duplicate(row) => format!("duplicate {} ", self.turn(&row)),
                    other => format!("{other:?} "),
                });
                began.collect()
            }
            Call::MarkTurns(ref wishes) => {
                let mut marks = Vec::new();
                for (session, seen, turn, state, response) in wishes {
                    let (session, _, epoch) = self.fence(*session, 0, *seen).await;
                    let response = response.map(|it| format!("resp_{it}"));
                    let (no, state) = (u64::from(*turn), *state);
                    marks.push(TurnMark { session, epoch, no, state, response });
                }
                format!("{:?}", store.mark_turns(&marks).await?)
            }
            Call::SweepTurns { all, limit } => {
                let (age, limit) = if all { (Duration::ZERO, 1000) } else { (LONG, limit) };
                format!("{:?}", store.sweep(Sweep::Turns, age, limit, Cursor::START).await?.rows)
            }
            _ => String::new(),
        })
    }

    /// All that can be seen from outside.
    async fn everything(&mut self) -> String {
        let view = self.store.ring().await.unwrap();
        let mut text = format!("version {}\n", view.version);
        for m in view.members {
            let name = self.member(m.incarnation);
            let _ = writeln!(
                text,
                "{name} {} {:?} load {} over {}",
                m.node_id,
                m.state,
                m.load,
                m.lease_remaining.is_zero()
            );
        }
        for session in 0..4 {
            for turn in 0..TURNS {
                let Some(key) = turn_key(turn) else { continue };
                if let Some(row) = self.store.turn_by_key(session_id(session), key).await.unwrap() {
                    text += &(self.turn(&row) + "\n");
                }
            }
        }
        let all = Call::List { owner: None, label: None, after: None, limit: 100 };
        text + &self.answer(&all).await
    }
}

/// Empty stores of every backend.
async fn subjects(postgres: &StoreOptions) -> (Vec<Subject>, tempfile::TempDir) {
    let mut connection = PgConnection::connect(&postgres.url).await.unwrap();
    connection
        .execute("TRUNCATE session, alias, member, turn; UPDATE ring_meta SET version = 0")
        .await
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let sqlite = options(format!("sqlite://{}", dir.path().join("ring.db").display()));
    schema::migrate(&sqlite, |_| {}).await.unwrap();
    let sqlite = ringspan::store::open(&sqlite).await.unwrap();
    let stores: [Arc<dyn Store>; 3] =
        [Arc::new(Memory::default()), sqlite, ringspan::store::open(postgres).await.unwrap()];
    (stores.into_iter().map(Subject::new).collect(), dir)
}

#[test]
fn random_calls_get_the_same_answers_from_every_store() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let postgres = runtime.block_on(async {
        let postgres = options(Server::shared().database().await);
        schema::migrate(&postgres, |_| {}).await.unwrap();
        postgres
    });
    let seed: u64 = std::env::var("RINGSPAN_TEST_SEED")
        .map_or_else(|_| rand::random(), |text| text.parse().expect("a number"));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = Config { cases: CASES, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome = runner.run(&vec(call(), 1..CALLS), |calls| {
        runtime.block_on(async {
            let (mut subjects, _dir) = subjects(&postgres).await;
            for call in &calls {
                let mut answers = Vec::new();
                for subject in &mut subjects {
                    answers.push(subject.answer(call).await + "\n" + &subject.everything().await);
                }
                for (subject, answer) in subjects.iter().zip(&answers) {
                    prop_assert_eq!(
                        &answers[0],
                        answer,
                        "{} after {:?}",
                        subject.store.backend(),
                        call
                    );
                }
            }
            Ok(())
        })
    });
    if let Err(failure) = outcome {
        panic!("RINGSPAN_TEST_SEED={seed}\n{failure}");
    }
}
