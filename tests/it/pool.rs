//! Several endpoints of one upstream: who goes where, and what happens when some of them fail.

use std::{collections::HashMap, fmt::Write as _, time::Duration};

use futures_util::future::join_all;
use serde_json::Value;

use crate::support::{
    ALICE, Node, Ring, RingOptions, Ws, eventually, http,
    process::free_port,
    responses::{Turn, create, user},
    scripted::Upstream,
};

/// How long an endpoint that is back may stay unnoticed.
const NOTICED: Duration = Duration::from_secs(20);

/// A route at `path` to an upstream `pool` with these endpoints.
fn pool(profile: &str, path: &str, endpoints: &[(&str, String, u32)]) -> String {
    let mut tables = format!("[[upstream]]\nname = \"pool\"\nurl = \"{}\"\n", endpoints[0].1);
    for (name, url, weight) in endpoints {
        write!(
            tables,
            "[[upstream.endpoint]]\nname = \"{name}\"\nurl = \"{url}\"\nweight = {weight}\n"
        )
        .unwrap();
    }
    let keys = if profile == "opaque" { "session_key = [\"query:session\"]\n" } else { "" };
    tables
        + &format!(
            "[[route]]\npath = \"{path}\"\nprofile = \"{profile}\"\nupstream = \"pool\"\n\
             detach_ttl = \"0s\"\n{keys}"
        )
}

/// The breakers of a node, by endpoint: 0 closed, 1 half open, 2 open.
async fn breakers(node: &Node) -> HashMap<String, u64> {
    let text = http::get(&format!("{}/metrics", node.admin_url), &[]).await.text();
    let ours = text.lines().filter_map(|line| line.strip_prefix("ringspan_breaker_state{"));
    ours.filter(|line| line.contains("upstream=\"pool\""))
        .map(|line| {
            let name = line.split("endpoint=\"").nth(1).unwrap().split('"').next().unwrap();
            (name.to_owned(), line.rsplit(' ').next().unwrap().parse().unwrap())
        })
        .collect()
}

async fn said(socket: &mut Ws, text: &str) -> Turn {
    Turn::run(socket, &create(&[user(text)], None)).await
}

#[tokio::test]
async fn every_session_is_served_while_one_endpoint_of_four_is_sound() {
    let (hanging, failing) = (Upstream::hanging().await, Upstream::failing().await);
    let mut options = RingOptions::nodes(2)
        .setting("dial_timeout", "\"4s\"")
        .setting("breaker_failures", 2)
        .setting("breaker_open", "\"5s\"");
    options.tables = pool(
        "responses",
        "/pool/responses",
        &[
            ("dead", "ws://127.0.0.1:1".into(), 100),
            ("hanging", hanging.url.clone(), 100),
            ("failing", failing.url.clone(), 100),
            ("sound", "ws://{sample}/v1/responses".into(), 100),
        ],
    );
    let ring = Ring::start(options).await;
    for n in 0..24 {
        let mut socket = Ws::open(&ring.node(n % 2).url("/pool/responses"), &[ALICE]).await;
        let turn = said(&mut socket, "hello").await;
        assert_eq!(turn.last()["type"], "response.completed", "session {n}: {turn:?}");
    }
    let mut given_up = 0;
    for node in &ring.nodes {
        let breakers = breakers(node).await;
        assert_eq!(breakers.len(), 4, "{breakers:?}");
        assert_eq!(breakers["sound"], 0, "{breakers:?}");
        given_up += breakers.values().filter(|state| **state > 0).count();
    }
    assert!(given_up >= 3, "endpoints that fail are left alone, so far {given_up}");
}

#[tokio::test]
async fn a_session_leaves_an_endpoint_that_fell_silent_at_its_next_turn() {
    let silent = Upstream::silent().await;
    // No breaker opens here: one session alone has to get away.
    let mut options = RingOptions::nodes(1)
        .setting("turn_idle_timeout", "\"1s\"")
        .setting("breaker_failures", 1000);
    options.tables = pool(
        "responses",
        "/pool/responses",
        &[("silent", silent.url.clone(), 100), ("sound", "ws://{sample}/v1/responses".into(), 100)],
    );
    let ring = Ring::start(options).await;
    let mut stuck = 0;
    for _ in 0..12 {
        let mut socket = Ws::open(&ring.node(0).url("/pool/responses"), &[ALICE]).await;
        let first = said(&mut socket, "one").await;
        if first.last()["type"] != "response.completed" {
            assert_eq!(first.last()["error"]["code"], "outcome_unknown", "{first:?}");
            stuck += 1;
            let second = said(&mut socket, "two").await;
            assert_eq!(second.last()["type"], "response.completed", "{second:?}");
        }
    }
    assert!(stuck > 0, "no session was on the silent endpoint");
}

/// Two nodes, and the sessions of the first that met an endpoint which says nothing. Their clients
/// are at the second.
struct Wedged {
    ring: Ring,
    stuck: Vec<Ws>,
    _silent: Upstream,
}

impl Wedged {
    async fn start() -> Self {
        let silent = Upstream::silent().await;
        // No breaker opens here, and what another session met is of no help.
        let mut options = RingOptions::nodes(2)
            .setting("turn_idle_timeout", "\"1s\"")
            .setting("breaker_failures", 1000);
        let sound = "ws://{sample}/v1/responses".into();
        let endpoints = [("silent", silent.url.clone(), 100), ("sound", sound, 100)];
        options.tables = pool("responses", "/pool/responses", &endpoints);
        let ring = Ring::start(options).await;
        let url = ring.node(1).url("/pool/responses");
        let met = join_all((0..32).map(async |n| {
            let key = format!("wedged-{n}");
            let mut socket = Ws::open(&url, &[ALICE, ("session-id", &key)]).await;
            let first = said(&mut socket, "one").await;
            let stuck = first.last()["error"]["code"] == "outcome_unknown";
            let moves = ring.owner_of(&key).await.id == ring.node(0).id;
            (stuck && moves).then_some(socket)
        }));
        let stuck: Vec<Ws> = met.await.into_iter().flatten().collect();
        assert!(stuck.len() > 1, "{} sessions of the first node met it", stuck.len());
        Self { ring, stuck, _silent: silent }
    }

    /// So many of the sessions take a turn.
    async fn go_on(&mut self, sessions: usize, text: &str) {
        for socket in &mut self.stuck[..sessions] {
            let turn = said(socket, text).await;
            assert_eq!(turn.last()["type"], "response.completed", "{turn:?}");
        }
    }
}

#[tokio::test]
async fn a_wedged_endpoint_does_not_follow_a_session_through_a_drain() {
    let mut wedged = Wedged::start().await;
    let all = wedged.stuck.len();
    // Whether or not they have found that another endpoint is sound.
    wedged.go_on(all / 2, "before").await;
    wedged.ring.node(0).sigterm();
    assert_eq!(wedged.ring.node(0).wait_exit(NOTICED).await, 0);
    wedged.go_on(all, "after").await;
}

#[tokio::test]
async fn a_wedged_endpoint_does_not_follow_a_session_that_is_taken_over() {
    let mut wedged = Wedged::start().await;
    let all = wedged.stuck.len();
    // What its heir knows of it is what came with the copy of its last turn.
    wedged.go_on(all, "before").await;
    wedged.ring.node(0).kill9().await;
    wedged.go_on(all, "after").await;
}

#[tokio::test]
async fn with_every_endpoint_given_up_a_refusal_is_quick_and_says_which_upstream_and_when() {
    let ports = [free_port(), free_port()];
    let url = |port: u16| format!("ws://127.0.0.1:{port}");
    let mut options = RingOptions::nodes(2).setting("breaker_failures", 1);
    options.tables =
        pool("opaque", "/pool", &[("one", url(ports[0]), 100), ("two", url(ports[1]), 100)]);
    let ring = Ring::start(options).await;
    let mut attempts = 0..1000;
    let refused = loop {
        let n = attempts.next().expect("a refusal by the breakers");
        let path = format!("/pool?session=s{n}");
        let began = std::time::Instant::now();
        let refused = Ws::connect(&ring.node(0).url(&path), &[ALICE]).await.unwrap_err();
        assert_eq!(refused.status, 502, "{refused:?}");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        if refused.body.contains("every endpoint") {
            break refused;
        }
    };
    let body: Value = serde_json::from_str(&refused.body).unwrap();
    assert_eq!(body["error"]["code"], "upstream_unavailable");
    assert!(body["error"]["message"].as_str().unwrap().contains("\"pool\""), "{body}");
    assert!(refused.retry_after().is_some_and(|after| (1..=10).contains(&after)), "{refused:?}");

    let _back = Upstream::scripted_at(&format!("127.0.0.1:{}", ports[1])).await;
    for node in &ring.nodes {
        let mut n = 0;
        let mut socket = eventually("the endpoint that is back is used", NOTICED, async || {
            n += 1;
            let path = format!("/pool?session={}-{n}", node.id);
            Ws::connect(&node.url(&path), &[ALICE]).await.ok()
        })
        .await;
        socket.text("here").await;
        assert_eq!(socket.expect_text().await, "here");
    }
    let back = [breakers(ring.node(0)).await["two"], breakers(ring.node(1)).await["two"]];
    assert!(back.contains(&0), "the owner of a session knows that it is back: {back:?}");
}

#[tokio::test]
async fn a_session_has_the_same_endpoint_whichever_node_owns_it() {
    let upstreams =
        [Upstream::named("a").await, Upstream::named("b").await, Upstream::named("c").await];
    let [a, b, c] = [0, 1, 2].map(|at: usize| upstreams[at].url.clone());
    let mut options = RingOptions::nodes(2);
    options.tables = pool("opaque", "/pool", &[("a", a, 100), ("b", b, 100), ("c", c, 100)]);
    let ring = Ring::start(options).await;
    let ask = async |node: &Node, n: u32| {
        let path = format!("/pool?session=s{n}");
        let mut socket = Ws::open(&node.url(&path), &[ALICE]).await;
        let name = socket.expect_text().await;
        socket.close(1000, "").await;
        name
    };
    let mut before = Vec::new();
    for n in 0..16 {
        before.push(ask(ring.node(0), n).await);
    }
    let different: std::collections::HashSet<_> = before.iter().collect();
    assert!(different.len() > 1, "sessions are spread: {before:?}");
    // Whoever owned them, all of them are opened anew by the other one.
    eventually("no session is left", NOTICED, async || {
        ring.sessions().await.iter().all(|session| session["state"] != "LIVE").then_some(())
    })
    .await;
    ring.node(0).kill9().await;
    for (n, name) in (0..).zip(&before) {
        assert_eq!(ask(ring.node(1), n).await, *name, "session {n}");
    }
}
