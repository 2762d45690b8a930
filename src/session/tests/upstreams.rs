//! Upstreams that go away, refuse, or end what they have just accepted.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::handshake::{
        derive_accept_key,
        server::{ErrorResponse, Request, Response},
    },
};

use super::*;
use crate::{
    config::{Endpoint, Route},
    session::{
        stats::UpstreamState,
        warm::{Cut, Prepared, Warm},
    },
    wire::{Batch, Message},
};

fn create(input: &str) -> String {
    format!(r#"{{"type":"response.create","model":"m","store":false,"input":"{input}"}}"#)
}

/// A Responses route to these endpoints instead of the gate.
fn route_to(gate: &Gate, urls: &[String]) -> Arc<Route> {
    let mut route = route(Profile::Responses, gate);
    let endpoint = |(at, url): (usize, &String)| Endpoint {
        name: at.to_string(),
        ..Endpoint::sole(url.parse().unwrap())
    };
    Arc::make_mut(&mut route.upstream).endpoints = urls.iter().enumerate().map(endpoint).collect();
    Arc::new(route)
}

/// An upstream that writes this after the head of each request, and its dials. `KEY` is what
/// an upgrade is accepted with.
async fn answering(answer: &'static str, then: &'static [u8]) -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let dials = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&dials);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counter.fetch_add(1, Relaxed);
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let length = stream.read(&mut head).await.unwrap();
                let head = String::from_utf8(head[..length].to_vec()).unwrap();
                let key = head.lines().find_map(|line| {
                    let (name, value) = line.split_once(": ")?;
                    name.eq_ignore_ascii_case("sec-websocket-key").then_some(value)
                });
                let key = derive_accept_key(key.unwrap().as_bytes());
                let mut bytes = answer.replace("KEY", &key).into_bytes();
                bytes.extend_from_slice(then);
                drop(stream.write_all(&bytes).await);
                // It hears the end of what the other side says.
                drop(stream.read_to_end(&mut Vec::new()).await);
            });
        }
    });
    (url, dials)
}

const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
    upgrade: websocket\r\nsec-websocket-accept: KEY\r\n\r\n";

/// A Close with code 1000.
const CLOSE: &[u8] = b"\x88\x02\x03\xe8";

#[tokio::test]
async fn an_upstream_that_ends_each_connection_at_once_is_told_to_who_waits() {
    let gate = Gate::open(SampleAuth::Open).await;
    let said = b"\x81\x39{\"type\":\"error\",\"status\":429,\"error\":{\"code\":\"too_many\"}}\x88\x02\x03\xe8";
    assert_eq!(said.len() - 6, usize::from(said[1]), "the frame is as long as it says");
    // That word alone ends it.
    let too_old = "websocket_connection_limit_reached";
    let aged = b"\x81\x53{\"type\":\"error\",\"status\":400,\"error\":{\"code\":\"websocket_connection_limit_reached\"}}";
    assert_eq!(aged.len() - 2, usize::from(aged[1]), "the frame is as long as it says");
    for (then, told) in [
        (CLOSE, (502, "upstream_unavailable")),
        (&said[..], (429, "too_many")),
        (&aged[..], (400, too_old)),
    ] {
        let (url, dials) = answering(ACCEPTED, then).await;
        let route = route_to(&gate, &[url]);
        let store = Arc::new(Memory::default());
        let node = Node::start(&store, "a", limits(), [&route]).await;
        store.slow_begins(Duration::from_millis(20));
        let mut client = Reader::new(node.attach(&wish(&route, "thread")).await.unwrap().link);
        let asked = Instant::now();
        client.send(&create("hello"));
        let end = client.until("error").await;
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        assert_eq!((&end["status"], &end["error"]["code"]), (&told.0.into(), &told.1.into()));
        assert!(dials.load(Relaxed) <= 3, "{} dials", dials.load(Relaxed));
    }
}

#[tokio::test]
async fn a_session_whose_endpoint_ends_each_connection_at_once_is_served_by_the_sound_one() {
    let gate = Gate::open(SampleAuth::Open).await;
    let (url, dials) = answering(ACCEPTED, CLOSE).await;
    let sound = format!("ws://{}/v1/responses", gate.addr);
    let route = route_to(&gate, &[url, sound]);
    let store = Arc::new(Memory::default());
    let node = Node::start(&store, "a", limits(), [&route]).await;
    store.slow_begins(Duration::from_millis(20));
    for key in 0..8 {
        let attach = wish(&route, &format!("thread {key}"));
        let mut client = Reader::new(node.attach(&attach).await.unwrap().link);
        client.send(&create("hello"));
        client.until("response.completed").await;
    }
    assert!(dials.load(Relaxed) > 0, "no session began at the endpoint that ends connections");
}

#[tokio::test]
async fn a_refusal_without_an_error_object_is_told_with_its_status_to_a_turn_that_waited() {
    let gate = Gate::open(SampleAuth::Open).await;
    for refusal in [
        "HTTP/1.1 401 no\r\nretry-after: 7\r\ncontent-length: 4\r\n\r\n\"no\"",
        "HTTP/1.1 401 no\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\n[]",
    ] {
        let (refusing, _) = answering(refusal, b"").await;
        let (ending, _) = answering(ACCEPTED, CLOSE).await;
        // It takes the first connection and refuses the second.
        let route = route_to(&gate, &[ending, refusing]);
        let store = Arc::new(Memory::default());
        let node = Node::start(&store, "a", limits(), [&route]).await;
        store.slow_begins(Duration::from_millis(20));
        let mut keys = 0..;
        let link = loop {
            let attach = wish(&route, &format!("thread {}", keys.next().unwrap()));
            if let Ok(attached) = node.attach(&attach).await {
                break attached.link;
            }
        };
        let mut client = Reader::new(link);
        client.send(&create("hello"));
        let end = client.until("error").await;
        assert_eq!(end["status"], 401, "{end}");
        assert_eq!(end["error"]["code"], "upstream_unavailable", "{end}");
        assert_eq!(end["headers"]["retry-after"], "7", "{end}");
    }
}

/// How an upstream was asked: path and query, `Authorization`, `openai-beta`.
type Asked = (String, Option<String>, Option<String>);

/// An upstream that takes every connection, says nothing, and notes how it was asked.
async fn noting() -> (String, Arc<Mutex<Vec<Asked>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/v1/responses", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let notes = Arc::clone(&notes);
            tokio::spawn(async move {
                #[expect(clippy::result_large_err, reason = "the signature is tungstenite's")]
                let note = |request: &Request, response: Response| -> Result<_, ErrorResponse> {
                    let header =
                        |name| Some(request.headers().get(name)?.to_str().ok()?.to_owned());
                    let path = request.uri().path_and_query().unwrap().to_string();
                    notes.lock().push((path, header("authorization"), header("openai-beta")));
                    Ok(response)
                };
                let mut socket = accept_hdr_async(stream, note).await.unwrap();
                while let Some(Ok(_)) = socket.next().await {}
            });
        }
    });
    (url, asked)
}

/// A client's socket, as its first upgrade asked, and a `GET` of a response beside it.
fn socket_and_reader(route: &Arc<Route>) -> (Attach, Attach) {
    let asks = |path: &str, headers: [(&'static str, &'static str); 2]| {
        let headers = headers.map(|(name, value)| {
            (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
        });
        let headers = headers.into_iter().collect();
        let upgrade = Upgrade { path_and_query: path.into(), headers, subprotocols: Vec::new() };
        Attach { upgrade, ..wish(route, "thread") }
    };
    let socket = asks(
        "/v1/responses?api-version=preview",
        [("authorization", "Bearer old"), ("openai-beta", "of the socket")],
    );
    let reader =
        asks("/v1/responses", [("authorization", "Bearer new"), ("openai-beta", "of the reader")]);
    let client = ClientLabel { edge_node: "edge".into(), kind: ClientKind::Http };
    (socket, Attach { reads: true, client, ..reader })
}

/// As the socket asked, with the reader's credential.
fn of_both() -> Asked {
    let path = "/v1/responses?api-version=preview".to_owned();
    (path, Some("Bearer new".to_owned()), Some("of the socket".to_owned()))
}

#[tokio::test]
async fn who_only_reads_changes_the_credential_of_the_next_dial_and_nothing_else() {
    let gate = Gate::open(SampleAuth::Open).await;
    let (url, asked) = noting().await;
    let mut route = route_to(&gate, &[url]);
    let upstream = &mut Arc::make_mut(&mut route).upstream;
    Arc::make_mut(upstream).max_connection_age = Duration::from_millis(200);
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let (socket, reader) = socket_and_reader(&route);
    let _socket = node.attach(&socket).await.unwrap();
    let _reader = node.attach(&reader).await.unwrap();
    let before = asked.lock().len();
    eventually("it is dialled twice more", async || asked.lock().len() > before + 1).await;
    assert_eq!(asked.lock().last(), Some(&of_both()));
}

#[tokio::test]
async fn an_heir_whose_first_client_only_reads_asks_the_upstream_as_it_was_asked_before() {
    let gate = Gate::open(SampleAuth::Open).await;
    let (url, asked) = noting().await;
    let route = route_to(&gate, &[url]);
    let store = Arc::new(Memory::default());
    let (node, earlier) = tokio::join!(
        Node::start(&store, "a", limits(), [&route]),
        Node::start(&store, "b", limits(), [&route])
    );
    let (socket, reader) = socket_and_reader(&route);
    drop(earlier.attach(&socket).await.unwrap());
    let stop = Error::new(Code::OwnerMoving, "moved");
    earlier.registry.get(socket.session).unwrap().stop(stop).await;
    eventually("it has no owner", async || node.row(socket.session).await.owner.is_none()).await;
    assert!(node.registry.keep(left(&socket, None, Vec::new())));
    let _reader = node.attach(&reader).await.unwrap();
    assert_eq!(asked.lock().last(), Some(&of_both()));
}

/// The events of a response, as a later client is told them once more, up to its end.
async fn asked_again(node: &Node, attach: &Attach, id: &str) -> Vec<Value> {
    let mut later = Reader::new(node.attach(attach).await.unwrap().link);
    later.send(&format!(r#"{{"type":"ringspan.resume","response_id":"{id}"}}"#));
    let mut events: Vec<Value> = Vec::new();
    while events.last().is_none_or(|event| event["type"] != "error") {
        events.push(serde_json::from_str(&later.text().await).unwrap());
    }
    events
}

/// The session has no upstream, and dials none.
async fn upstream_given_up(node: &Node, attach: &Attach) {
    eventually("the dial has failed", async || {
        let handle = node.registry.get(attach.session).expect("the session is still there");
        handle.stats.upstream() == UpstreamState::None
    })
    .await;
}

/// What an earlier owner leaves of that client's session.
fn left(attach: &Attach, shunned: Option<&str>, cut: Vec<Cut>) -> Prepared {
    let warm = Warm {
        principal: attach.principal,
        route: Arc::clone(&attach.route),
        key_label: attach.key_label.clone(),
        upgrade: attach.upgrade.clone(),
        past: Vec::new(),
        shunned: shunned.map(str::to_owned),
        cut,
    };
    Prepared { session: attach.session, from: None, append: false, warm }
}

#[tokio::test]
async fn what_was_said_before_the_upstream_was_lost_can_be_asked_for_while_it_is_away() {
    let gate = Gate::with_permits(SampleAuth::Open, 1).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let short = crate::config::Limits { dial_timeout: Duration::from_secs(1), ..limits() };
    let node = Node::start(&Arc::new(Memory::default()), "a", short, [&route]).await;
    for kind in [ClientKind::Http, ClientKind::WebSocket] {
        let client = ClientLabel { edge_node: "edge".into(), kind };
        let attach = Attach { client, ..wish(&route, kind.as_str()) };
        let mut client = Reader::new(node.attach(&attach).await.unwrap().link);
        client.send(&create("[deltas=20][delay=2ms][close=0][close_after=5] long"));
        let created = client.until("response.created").await;
        let end = client.until("error").await;
        assert_eq!(end["error"]["code"], "outcome_unknown");
        drop(client);
        // The gate lets nobody through any more.
        let id = created["response"]["id"].as_str().unwrap();
        for _ in 0..2 {
            let events = asked_again(&node, &attach, id).await;
            assert_eq!((&events[0], events.last()), (&created, Some(&end)));
            upstream_given_up(&node, &attach).await;
        }
        gate.permits.add_permits(1);
    }
}

#[tokio::test]
async fn what_an_earlier_owner_severed_can_be_asked_for_while_the_upstream_is_away() {
    // Only the earlier owner reached it.
    let gate = Gate::with_permits(SampleAuth::Open, 1).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let store = Arc::new(Memory::default());
    let short = crate::config::Limits { dial_timeout: Duration::from_secs(1), ..limits() };
    let (node, earlier) = tokio::join!(
        Node::start(&store, "a", short, [&route]),
        Node::start(&store, "b", short, [&route])
    );
    let attach = wish(&route, "thread");
    let _client = earlier.attach(&attach).await.unwrap();
    let stop = Error::new(Code::OwnerMoving, "moved");
    earlier.registry.get(attach.session).unwrap().stop(stop).await;
    eventually("it has no owner", async || node.row(attach.session).await.owner.is_none()).await;
    let end = r#"{"type":"error","status":502,"error":{"code":"outcome_unknown"}}"#;
    let events = Batch::one(&Message::text(end));
    let cut = vec![Cut { response_id: "r1".into(), events }];
    assert!(node.registry.keep(left(&attach, None, cut)));
    node.registry.activate(attach.session).await.unwrap();
    eventually("the heir dials", async || gate.dials() == 2).await;
    upstream_given_up(&node, &attach).await;
    let told = asked_again(&node, &attach, "r1").await;
    assert_eq!(told, [serde_json::from_str::<Value>(end).unwrap()]);
}

#[tokio::test]
async fn an_heir_avoids_the_endpoint_that_failed_the_session_if_it_has_one_of_that_name() {
    let gates = [Gate::open(SampleAuth::Open).await, Gate::open(SampleAuth::Open).await];
    let urls = gates.each_ref().map(|gate| format!("ws://{}/v1/responses", gate.addr));
    let route = route_to(&gates[0], &urls);
    let store = Arc::new(Memory::default());
    let node = Node::start(&store, "a", limits(), [&route]).await;
    let dialled = async |shunned: Option<&str>| {
        let attach = wish(&route, "thread");
        drop(node.attach(&attach).await.unwrap());
        let stop = Error::new(Code::OwnerMoving, "moved");
        node.registry.get(attach.session).unwrap().stop(stop).await;
        eventually("it has no owner", async || {
            !node.registry.knows(attach.session) && node.row(attach.session).await.owner.is_none()
        })
        .await;
        let before = gates.each_ref().map(Gate::dials);
        assert!(node.registry.keep(left(&attach, shunned, Vec::new())));
        node.registry.activate(attach.session).await.unwrap();
        eventually("the heir dials", async || gates.each_ref().map(Gate::dials) != before).await;
        usize::from(gates[1].dials() != before[1])
    };
    let usual = dialled(None).await;
    assert_eq!(dialled(Some("of-another-configuration")).await, usual);
    assert_eq!(dialled(Some(&usual.to_string())).await, 1 - usual);
    assert_eq!(dialled(Some(&(1 - usual).to_string())).await, usual);
}

#[tokio::test]
async fn a_session_that_is_never_idle_is_renewed_before_its_upstream_would_end_it() {
    let gate = Gate::open(SampleAuth::Open).await;
    let mut route = route(Profile::Responses, &gate);
    Arc::make_mut(&mut route.upstream).max_connection_age = Duration::from_millis(200);
    let route = Arc::new(route);
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let mut client = Reader::new(node.attach(&wish(&route, "thread")).await.unwrap().link);
    for turn in 0..8 {
        for lane in ["x", "y"] {
            let text = create(&format!("[deltas=10][delay=10ms] turn {turn}"));
            client.send(&text.replacen('{', &format!(r#"{{"stream_id":"{lane}","#), 1));
        }
    }
    let mut ended = 0;
    while ended < 16 {
        let event: Value = serde_json::from_str(&client.text().await).unwrap();
        assert_ne!(event["type"], "error", "{event}");
        ended += usize::from(event["type"] == "response.completed");
    }
    assert!(gate.dials() >= 3, "{} connections in eight tenths of a second", gate.dials());
}
