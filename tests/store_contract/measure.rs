//! What a store does in a second, for those who ask: `cargo test --test store_contract
//! measure -- --ignored --nocapture`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ringspan::{
    ids::{Epoch, Incarnation, SessionId},
    store::{self, Began, Claimed, NewTurn, Store, TurnMark, TurnState, schema},
};

use crate::{
    postgres_server::Server,
    ring::{LONG, Ring, claim, options},
};

const FOR: Duration = Duration::from_secs(5);
/// Callers at once: two for each connection, so that none of them idles.
const CALLERS: u64 = 10;

/// Repeats a call from all callers; answers calls per second.
async fn rate<F: Future<Output = ()> + Send>(
    call: impl Fn(u64, u64) -> F + Clone + Send + 'static,
) -> f64 {
    let start = Instant::now();
    let callers = (0..CALLERS).map(|caller| {
        let call = call.clone();
        tokio::spawn(async move {
            let mut done = 0;
            while start.elapsed() < FOR {
                call(caller, done).await;
                done += 1;
            }
            done
        })
    });
    let mut done = 0;
    for caller in callers.collect::<Vec<_>>() {
        done += caller.await.unwrap();
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate is read by people")]
    let rate = done as f64 / start.elapsed().as_secs_f64();
    rate
}

async fn measure(name: &str, store: Arc<dyn Store>, me: Incarnation) {
    let heartbeats = {
        let store = Arc::clone(&store);
        rate(move |_, _| {
            let store = Arc::clone(&store);
            async move { assert!(store.heartbeat(me, LONG, 0).await.is_ok()) }
        })
        .await
    };
    let claims = {
        let store = Arc::clone(&store);
        rate(move |caller, n| {
            let store = Arc::clone(&store);
            async move {
                let claimed = store.claim(&claim(me, &format!("{caller}/{n}"), None)).await;
                assert!(matches!(claimed, Ok(Claimed::Won { .. })));
            }
        })
        .await
    };
    let reads = rate(move |caller, n| {
        let store = Arc::clone(&store);
        async move {
            assert!(store.session(crate::ring::id(&format!("{caller}/{n}"))).await.is_ok());
        }
    })
    .await;
    println!("{name}: {heartbeats:.0} heartbeats/s, {claims:.0} claims/s, {reads:.0} reads/s");
}

/// Turns begun and ended in a second, by one writer as a node has it, `sessions` in a
/// statement.
async fn ledger(name: &str, store: &dyn Store, me: Incarnation, sessions: u64) {
    let mut owned = Vec::new();
    for n in 0..sessions {
        let claim = claim(me, &format!("ledger/{sessions}/{n}"), None);
        let Ok(Claimed::Won { epoch, .. }) = store.claim(&claim).await else { panic!("not won") };
        owned.push((claim.id, epoch));
    }
    let (start, mut no) = (Instant::now(), 0);
    while start.elapsed() < FOR {
        no += 1;
        let new = |&(session, epoch): &(SessionId, Epoch)| NewTurn {
            session,
            epoch,
            no,
            key: None,
            request: [7; 16],
            repeatable: true,
        };
        let began = store.begin_turns(me, &owned.iter().map(new).collect::<Vec<_>>()).await;
        assert!(began.unwrap().iter().all(|began| *began == Began::Begun));
        let mark = |&(session, epoch): &(SessionId, Epoch)| TurnMark {
            session,
            epoch,
            no,
            state: TurnState::Done,
            response: Some(TurnMark::response("resp_0123456789")),
        };
        let marks = owned.iter().map(mark).collect::<Vec<_>>();
        assert_eq!(store.mark_turns(&marks).await.unwrap(), sessions);
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate is read by people")]
    let rate = (no * sessions) as f64 / start.elapsed().as_secs_f64();
    println!("{name}: {rate:.0} turns/s begun and ended, {sessions} in a statement");
}

#[ignore = "takes half a minute and asserts nothing"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_many_calls_a_store_answers_in_a_second() {
    let mut five = options(Server::shared().database().await);
    five.max_connections = 5;
    schema::migrate(&five, |_| {}).await.unwrap();
    let store = store::open(&five).await.unwrap();
    let me = store.register(&crate::ring::member("n1"), LONG).await.unwrap();
    measure("postgres, 5 connections", Arc::clone(&store), me).await;
    for sessions in [1, 16, 256] {
        ledger("postgres", &*store, me, sessions).await;
    }
    let ring = Ring::sqlite().await;
    let me = ring.node("n1").await;
    measure("sqlite", Arc::clone(&ring.store), me).await;
    for sessions in [1, 16, 256] {
        ledger("sqlite", &*ring.store, me, sessions).await;
    }
}
