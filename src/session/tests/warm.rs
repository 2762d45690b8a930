//! What a node keeps as heir of others' sessions.

use http::{HeaderMap, HeaderValue};

use super::*;
use crate::{
    ids::{Incarnation, Principal, SessionId},
    session::warm::{Prepared, Warm, WarmStore},
    upstream::Upgrade,
};

#[tokio::test]
async fn what_clients_sent_with_their_upgrades_counts_for_what_is_kept() {
    const HEAD: usize = 64 * 1024;
    const MOST: usize = 256 * 1024 * 1024 / HEAD;
    let gate = Gate::open(SampleAuth::Open).await;
    let mut headers = HeaderMap::new();
    headers.insert("x-large", HeaderValue::try_from("x".repeat(HEAD)).unwrap());
    let warm = Warm {
        principal: Principal([1; 16]),
        route: Arc::new(route(Profile::Responses, &gate)),
        key_label: "thread".into(),
        upgrade: Upgrade { headers, ..Upgrade::default() },
        past: Vec::new(),
        cut: Vec::new(),
    };
    let prepared = |n: usize| Prepared {
        session: SessionId((n as u128).to_be_bytes()),
        from: Some(Incarnation(1)),
        append: false,
        warm: warm.clone(),
    };
    let (store, limits) = (WarmStore::default(), limits());
    let kept = (0..=MOST).take_while(|n| store.keep(prepared(*n), &limits)).count();
    assert!((MOST / 2..=MOST).contains(&kept), "{kept}");
    assert_eq!(store.len(), kept);
    assert!(!store.keep(prepared(kept), &limits), "it stays refused");
    store.let_go(Incarnation(1), &[prepared(0).session]);
    assert!(store.keep(prepared(kept), &limits), "what was let go of left its room");
}
