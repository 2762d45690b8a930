//! Rows that name a node for sessions that it does not serve.

use std::sync::Arc;

use crate::{
    app::strays::Strays,
    config::Profile,
    ids::{Principal, SessionId},
    sample::SampleAuth,
    session::tests::node::{Gate, Node, limits, route, wish},
    store::{Claim, Claimed, Store as _},
};

#[tokio::test]
async fn a_claim_that_nobody_came_for_is_released_and_an_open_session_is_not() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Opaque, &gate));
    let a = Node::start(&Arc::default(), "a", limits(), [&route]).await;
    let open = wish(&route, "open");
    let _client = a.attach(&open).await.unwrap();
    let stray = SessionId([7; 16]);
    let claim = Claim {
        id: stray,
        principal: Principal([1; 16]),
        route: route.path.clone(),
        key_label: "stray".into(),
        me: a.me,
        seen: None,
        limit: None,
    };
    assert!(matches!(a.store.claim(&claim).await.unwrap(), Claimed::Won { .. }));

    let mut strays = Strays::default();
    strays.release(&*a.store, &a.registry, a.me).await.unwrap();
    assert_eq!(a.row(stray).await.owner, Some(a.me), "it may be on its way");
    strays.release(&*a.store, &a.registry, a.me).await.unwrap();
    assert_eq!(a.row(stray).await.owner, None);
    assert_eq!(a.row(open.session).await.owner, Some(a.me));
}
