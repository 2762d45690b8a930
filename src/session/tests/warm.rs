//! What a node keeps as heir of others' sessions.

use http::{HeaderMap, HeaderValue};

use super::*;
use crate::{
    ids::{Incarnation, Principal, SessionId},
    session::warm::{Prepared, Warm, WarmStore},
    upstream::Upgrade,
};

/// What a session leaves here that is called so and owned by that node.
fn prepared(name: u128, from: Option<Incarnation>, warm: &Warm) -> Prepared {
    Prepared { session: SessionId(name.to_be_bytes()), from, append: false, warm: warm.clone() }
}

fn warm(gate: &Gate, headers: HeaderMap) -> Warm {
    Warm {
        principal: Principal([1; 16]),
        route: Arc::new(route(Profile::Responses, gate)),
        key_label: "thread".into(),
        upgrade: Upgrade { headers, ..Upgrade::default() },
        past: Vec::new(),
        shunned: None,
        cut: Vec::new(),
    }
}

#[tokio::test]
async fn a_copy_outlives_the_node_that_left_it_by_the_time_of_a_takeover_and_no_longer() {
    let gate = Gate::open(SampleAuth::Open).await;
    tokio::time::pause();
    let warm = warm(&gate, HeaderMap::new());
    let (store, limits) = (WarmStore::default(), limits());
    for (name, from) in [(1, Some(Incarnation(1))), (2, Some(Incarnation(2))), (3, None)] {
        assert!(store.keep(prepared(name, from, &warm), &limits));
    }
    let kept = || [1u128, 2, 3].map(|name| store.has(SessionId(name.to_be_bytes())));
    // However long its session says nothing, while its owner is there.
    tokio::time::advance(Duration::from_hours(1)).await;
    store.let_go_of_orphans(|leaver| leaver == Incarnation(2));
    tokio::time::advance(warm.route.detach_ttl + Duration::from_mins(1)).await;
    store.let_go_of_orphans(|leaver| leaver == Incarnation(2));
    assert_eq!(kept(), [true; 3], "a takeover may need them");
    tokio::time::advance(Duration::from_mins(1)).await;
    store.let_go_of_orphans(|leaver| leaver == Incarnation(2));
    assert_eq!(kept(), [false, true, false]);
}

#[tokio::test]
async fn what_clients_sent_with_their_upgrades_counts_for_what_is_kept() {
    const HEAD: usize = 64 * 1024;
    const MOST: usize = 256 * 1024 * 1024 / HEAD;
    let gate = Gate::open(SampleAuth::Open).await;
    let mut headers = HeaderMap::new();
    headers.insert("x-large", HeaderValue::try_from("x".repeat(HEAD)).unwrap());
    let warm = warm(&gate, headers);
    let prepared = |n: usize| prepared(n as u128, Some(Incarnation(1)), &warm);
    let (store, limits) = (WarmStore::default(), limits());
    let kept = (0..=MOST).take_while(|n| store.keep(prepared(*n), &limits)).count();
    assert!((MOST / 2..=MOST).contains(&kept), "{kept}");
    assert_eq!(store.len(), kept);
    assert!(!store.keep(prepared(kept), &limits), "it stays refused");
    store.let_go(Incarnation(1), &[prepared(0).session]);
    assert!(store.keep(prepared(kept), &limits), "what was let go of left its room");
}
