use std::sync::atomic::Ordering;

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::{
    client::{Client, ClientError},
    view::{DrainAnswer, DrainOrder, SessionQuery},
    *,
};

pub(in crate::admin) mod fake;

use fake::Fake;

/// A node that is asked from this address.
fn at(fake: &Arc<Fake>, peer: &str, token: AdminToken) -> Router {
    let peer: std::net::SocketAddr = peer.parse().unwrap();
    router(fake.clone(), Metrics::new(), token, CancellationToken::new())
        .layer(axum::Extension(axum::extract::ConnectInfo(listener::Caller(peer))))
}

fn node(fake: &Arc<Fake>) -> Router {
    at(fake, "127.0.0.1:1", AdminToken::None)
}

async fn ask(router: &Router, request: Request<Body>) -> (StatusCode, http::HeaderMap, String) {
    let answer = router.clone().oneshot(request).await.unwrap();
    let (head, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
}

fn get_request(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

async fn json(router: &Router, path: &str) -> (StatusCode, Value) {
    let (status, _, body) = ask(router, get_request(path)).await;
    (status, serde_json::from_str(&body).unwrap())
}

#[tokio::test]
async fn a_draining_node_is_alive_and_not_ready() {
    let fake = Arc::new(Fake::default());
    let node = node(&fake);
    assert_eq!(json(&node, "/health/ready").await.0, StatusCode::OK);
    fake.draining.store(true, Ordering::Relaxed);
    let (status, body) = json(&node, "/health/ready").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((&body["ready"], &body["draining"]), (&false.into(), &true.into()));
    assert_eq!(json(&node, "/health/live").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_database_that_is_away_does_not_take_every_node_out_of_the_balancer() {
    let fake = Arc::new(Fake::default());
    fake.store_down.store(true, Ordering::Relaxed);
    let node = node(&fake);
    let (status, body) = json(&node, "/health/ready").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body["database"], "unreachable");
    let (status, headers, body) = ask(&node, get_request("/api/v1/sessions")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(headers["retry-after"], "1");
    assert!(body.contains("session_unavailable"), "{body}");
}

#[tokio::test]
async fn sessions_come_in_pages_that_are_bounded() {
    let fake = Arc::new(Fake { sessions: 5, ..Fake::default() });
    let node = node(&fake);
    let mut seen = Vec::new();
    let mut path = "/api/v1/sessions?limit=2".to_owned();
    loop {
        let (_, page) = json(&node, &path).await;
        let ids = page["sessions"].as_array().unwrap().iter();
        seen.extend(ids.map(|session| session["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/api/v1/sessions?limit=2&after={next}");
    }
    let all: Vec<String> = (0..5).map(|n| fake::session(n).id).collect();
    assert_eq!(seen, all);
    assert_eq!(SessionQuery { limit: Some(usize::MAX), ..Default::default() }.limit(), 1_000);
}

#[tokio::test]
async fn every_failure_is_json_in_our_words() {
    let node = node(&Arc::new(Fake::default()));
    for (path, status, code) in [
        ("/nowhere", 404, "not_found"),
        ("/api/v1/sessions/ffff", 404, "not_found"),
        ("/api/v1/sessions?limit=many", 400, "invalid_request"),
        ("/api/v1/sessions?colour=red", 400, "invalid_request"),
    ] {
        let (got, body) = json(&node, path).await;
        assert_eq!(got.as_u16(), status, "{path}");
        assert_eq!(body["error"]["code"], code, "{path}");
    }
}

#[tokio::test]
async fn a_method_that_a_path_does_not_have_is_refused_in_json_with_those_that_it_has() {
    let node = node(&Arc::new(Fake::default()));
    for (method, path, allowed) in [
        ("GET", "/api/v1/drain", "POST"),
        ("POST", "/api/v1/ring", "GET,HEAD"),
        ("DELETE", "/health/live", "GET,HEAD"),
    ] {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let (status, headers, body) = ask(&node, request).await;
        assert_eq!((status.as_u16(), headers["allow"].to_str().unwrap()), (405, allowed), "{path}");
        assert_eq!(headers["content-type"], "application/json", "{path}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["error"]["code"], "invalid_request", "{path}");
    }
}

#[tokio::test]
async fn a_page_of_another_site_cannot_drain_the_node() {
    let fake = Arc::new(Fake::default());
    let node = node(&fake);
    for (name, value) in [("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")] {
        let request = Request::post("/api/v1/drain").header("host", "127.0.0.1:9090");
        let request = request.header(name, value).body(Body::empty()).unwrap();
        assert_eq!(ask(&node, request).await.0, StatusCode::FORBIDDEN, "{name}");
    }
    assert!(!fake.draining.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_page_whose_name_was_made_to_lead_here_reads_nothing_of_the_api() {
    const TOKEN: &str = "a-token-of-the-operators";
    let fake = Arc::new(Fake::default());
    let token = || AdminToken::Fixed(crate::config::Secret::new(TOKEN));
    let sent = async |peer: &str, request: http::request::Builder| {
        ask(&at(&fake, peer, token()), request.body(Body::empty()).unwrap()).await.0
    };
    let asked = async |peer: &str, host: &str, path: &str| {
        sent(peer, Request::get(path).header("host", host)).await
    };
    let here = "127.0.0.1:1";
    for host in ["evil.example:9090", "evil.example.:9090", "127.0.0.1.evil.example", "a b"] {
        for path in ["/api/v1/ring", "/api/v1/sessions", "/api/v1/events"] {
            assert_eq!(asked(here, host, path).await, StatusCode::FORBIDDEN, "{host} {path}");
        }
        assert_eq!(asked(here, host, "/metrics").await, StatusCode::OK, "{host}");
    }
    for host in ["127.0.0.1:9090", "localhost:9090", "[::1]:9090", "ringspan", "a.b.svc:9090"] {
        assert_eq!(asked(here, host, "/api/v1/ring").await, StatusCode::OK, "{host}");
    }
    // By an ingress, say, whose business names are.
    assert_eq!(asked("10.1.2.3:4", "ring.example", "/api/v1/ring").await, StatusCode::OK);
    // A page cannot know the token, so who does is none.
    for (shown, status) in [(TOKEN, StatusCode::OK), ("a guess", StatusCode::FORBIDDEN)] {
        let request = Request::get("/api/v1/ring").header("host", "ring.example");
        let shown = request.header("authorization", format!("Bearer {shown}"));
        assert_eq!(sent(here, shown).await, status);
    }
}

#[tokio::test]
async fn an_order_that_cannot_be_read_is_refused_in_our_words_and_drains_nothing() {
    let fake = Arc::new(Fake::default());
    let node = node(&fake);
    for order in ["{", "{\"within\": 1}", &"x".repeat(3 << 20)] {
        let request = Request::post("/api/v1/drain").body(Body::from(order.to_owned())).unwrap();
        let (status, _, body) = ask(&node, request).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["error"]["code"], "invalid_request");
    }
    assert!(!fake.draining.load(Ordering::Relaxed));
}

#[tokio::test]
async fn from_elsewhere_a_node_is_read_by_anybody_and_drained_by_the_token_alone() {
    const TOKEN: &str = "a-token-of-the-operators";
    let drain = |shown: Option<&str>| {
        let request = Request::post("/api/v1/drain");
        let shown = shown.map(|token| format!("Bearer {token}"));
        let request = shown.into_iter().fold(request, |r, shown| r.header("authorization", shown));
        request.body(Body::empty()).unwrap()
    };
    let fake = Arc::new(Fake::default());
    let bare = at(&fake, "10.1.2.3:4", AdminToken::None);
    assert_eq!(ask(&bare, drain(Some(TOKEN))).await.0, StatusCode::FORBIDDEN);
    let guarded = at(&fake, "10.1.2.3:4", AdminToken::Fixed(crate::config::Secret::new(TOKEN)));
    for path in ["/health/live", "/health/ready", "/metrics", "/api/v1/ring", "/"] {
        assert_eq!(ask(&guarded, get_request(path)).await.0, StatusCode::OK, "{path}");
    }
    for shown in [None, Some("a-guess-of-somebody")] {
        let (status, headers, _) = ask(&guarded, drain(shown)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert_eq!(headers["www-authenticate"], "Bearer");
    }
    assert!(!fake.draining.load(Ordering::Relaxed));
    assert_eq!(ask(&guarded, drain(Some(TOKEN))).await.0, StatusCode::ACCEPTED);
    assert!(fake.draining.load(Ordering::Relaxed));
}

#[tokio::test]
async fn metrics_are_told_in_the_text_that_the_scraper_reads() {
    const OPEN: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";
    // Prometheus 2 and 3, a Prometheus that was told to ask for text, curl, a browser.
    let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                      application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;\
                      q=0.3,*/*;q=0.2";
    for (accept, expected) in [
        (prometheus, OPEN),
        ("application/openmetrics-text", OPEN),
        ("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.4", CLASSIC),
        ("application/openmetrics-text;q=0,*/*", CLASSIC),
        ("text/plain", CLASSIC),
        ("*/*", CLASSIC),
        ("text/html,application/xhtml+xml,*/*;q=0.8", CLASSIC),
        ("", CLASSIC),
    ] {
        let request = Request::get("/metrics").header("accept", accept);
        let node = node(&Arc::new(Fake::default()));
        let (status, headers, body) = ask(&node, request.body(Body::empty()).unwrap()).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers["content-type"], expected, "{accept}");
        assert_eq!(body.ends_with("# EOF\n"), expected == OPEN, "{accept}");
        assert_eq!(body.contains("# TYPE ringspan_build_info gauge"), expected == CLASSIC);
    }
    let (_, headers, _) = ask(&node(&Arc::new(Fake::default())), get_request("/metrics")).await;
    assert_eq!(headers["content-type"], CLASSIC);
}

#[tokio::test]
async fn the_page_runs_nothing_but_its_own_script() {
    let node = node(&Arc::new(Fake::default()));
    let (status, headers, body) = ask(&node, get_request("/")).await;
    assert_eq!(status, StatusCode::OK);
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    for foreign in ["src=\"http", "href=\"http", "innerHTML", "style=\"", "onclick="] {
        assert!(!body.contains(foreign), "{foreign}");
    }
    assert!(!body.contains("/*script*/") && !body.contains("/*style*/"));
}

/// The next SSE event of a body as `(name, data)`.
async fn next_event(stream: &mut (impl StreamExt<Item = String> + Unpin)) -> (String, Value) {
    loop {
        let chunk = stream.next().await.expect("the stream goes on");
        let field = |name: &str| {
            chunk
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|rest| rest.trim().to_owned())
        };
        if let (Some(name), Some(data)) = (field("event:"), field("data:")) {
            return (name, serde_json::from_str(&data).unwrap());
        }
    }
}

async fn watch(node: &Router) -> impl StreamExt<Item = String> + Unpin + use<> {
    let answer = node.clone().oneshot(get_request("/api/v1/events")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let chunks = answer.into_body().into_data_stream();
    chunks.map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_watcher_sees_a_snapshot_and_then_what_happens() {
    let fake = Arc::new(Fake { sessions: 300, ..Fake::default() });
    let node = node(&fake);
    let mut events = watch(&node).await;
    let (name, snapshot) = next_event(&mut events).await;
    assert_eq!(name, "snapshot");
    assert_eq!(snapshot["ring"]["version"], 12);
    assert_eq!(snapshot["sessions"].as_array().unwrap().len(), 200);
    assert_eq!(snapshot["truncated"], true);
    fake.events.send(fake::event(1)).unwrap();
    let (name, event) = next_event(&mut events).await;
    assert_eq!((&*name, &event["kind"]), ("node", &"handoff".into()));
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_lags_is_told_so_and_starts_afresh() {
    let fake = Arc::new(Fake::default());
    let node = node(&fake);
    let mut events = watch(&node).await;
    assert_eq!(next_event(&mut events).await.0, "snapshot");
    for n in 0..10 {
        fake.events.send(fake::event(n)).unwrap();
    }
    let (name, missed) = next_event(&mut events).await;
    assert_eq!((&*name, &missed["missed"]), ("resync", &6.into()));
    assert_eq!(next_event(&mut events).await.0, "snapshot");
}

#[tokio::test(start_paused = true)]
async fn watchers_are_bounded_and_a_closed_one_makes_room() {
    let node = node(&Arc::new(Fake::default()));
    let mut open = Vec::new();
    for _ in 0..32 {
        open.push(watch(&node).await);
    }
    let (status, body) = json(&node, "/api/v1/events").await;
    assert_eq!((status.as_u16(), &body["error"]["code"]), (429, &"queue_full".into()));
    open.pop();
    drop(watch(&node).await);
}

#[tokio::test]
async fn the_command_line_reads_what_the_node_says() {
    let fake = Arc::new(Fake::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(serve(
        listener,
        fake.clone(),
        Metrics::new(),
        AdminToken::None,
        shutdown.clone(),
    ));
    let client = Client::new(&addr.to_string()).unwrap();
    assert_eq!(client.ring().await.unwrap(), fake::ring());
    let query = SessionQuery { key: Some("room-3".into()), ..Default::default() };
    assert_eq!(client.sessions(&query).await.unwrap().sessions, [fake::session(3)]);
    assert_eq!(client.session(&fake::session(2).id).await.unwrap(), fake::session(2));
    let order = DrainOrder { within_seconds: Some(9), force: true };
    assert_eq!(client.drain(order).await.unwrap(), DrainAnswer::Accepted);
    assert_eq!(client.drain(order).await.unwrap(), DrainAnswer::Already);
    assert!(client.health().await.unwrap().draining, "a node that is not ready answers too");
    let missing = client.session("nothing/here?").await.unwrap_err();
    assert!(matches!(missing, ClientError::Refused { status: 404, .. }), "{missing}");
    shutdown.cancel();
    server.await.unwrap().unwrap();
    drop(client);
    let gone = Client::new(&addr.to_string()).unwrap().ring().await.unwrap_err();
    assert!(gone.to_string().contains("refused"), "{gone}");
    assert!(matches!(Client::new("https://x:1"), Err(ClientError::BadUrl(_))));
}

#[tokio::test]
async fn shutdown_ends_open_event_streams() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let view = Arc::new(Fake::default());
    let server =
        tokio::spawn(serve(listener, view, Metrics::new(), AdminToken::None, shutdown.clone()));
    let mut socket = tokio::net::TcpStream::connect(addr).await.unwrap();
    let request = b"GET /api/v1/events HTTP/1.1\r\nhost: x\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut socket, request).await.unwrap();
    tokio::io::AsyncReadExt::read_u8(&mut socket).await.unwrap();
    shutdown.cancel();
    tokio::time::timeout(LINGER / 2, server)
        .await
        .expect("well before the limit")
        .unwrap()
        .unwrap();
}

/// `cargo test --lib admin::tests::look -- --ignored`, then open the page it names.
#[tokio::test]
#[ignore = "serves a page to look at until it is killed"]
async fn look_at_the_page() {
    let addr = std::env::var("LOOK").unwrap_or_else(|_| "127.0.0.1:0".to_owned());
    let listener = TcpListener::bind(addr).await.unwrap();
    println!("http://{}/", listener.local_addr().unwrap());
    let fake = Arc::new(Fake { sessions: 240, ..Fake::default() });
    let events = fake.events.clone();
    tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_millis(700));
        for n in 0.. {
            every.tick().await;
            let _ = events.send(fake::event(n));
        }
    });
    serve(listener, fake, Metrics::new(), AdminToken::None, CancellationToken::new())
        .await
        .unwrap();
}
