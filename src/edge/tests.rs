//! The client listener with a real node behind it, spoken to by a WebSocket library that
//! shares no code with ours.

mod bodies;
mod http;
mod leaving;
mod limits;
mod routes;
mod told;

use std::{collections::BTreeMap, io::Write as _, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest as _, protocol::CloseFrame},
};

use super::*;
use crate::{
    config::{ApiKeys, Auth, Endpoint, Profile, Upstream},
    sample::SampleAuth,
    session::tests::node::{Gate, Node, PATIENCE, eventually, limits, route, soon},
    store::{
        Store as _,
        memory::{Fault, Memory},
    },
};

/// A file with this key alone, and who is let in by it.
fn key(secret: &str) -> (NamedTempFile, Auth) {
    let mut file = NamedTempFile::new().unwrap();
    write!(file, "alice ").unwrap();
    for byte in Sha256::digest(secret) {
        write!(file, "{byte:02x}").unwrap();
    }
    let keys = ApiKeys { fixed: Vec::new(), file: Some(file.path().into()) };
    (file, Auth::ApiKey(keys))
}

/// An upstream that begins to answer each connection with this, and never ends one.
async fn answering(name: &str, answer: impl Into<String>) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
    let answer = answer.into();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.read_u8().await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            open.push(stream);
        }
    });
    Upstream {
        name: name.into(),
        endpoints: vec![Endpoint::sole(url)],
        max_connection_age: Duration::MAX,
        compression: false,
        ca_file: None,
    }
}

/// For a client that asks once.
const CLOSE: &str = "connection: close\r\n";

/// A request as it is sent; `headers` each with the end of its line.
fn post(path: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let (body, line) = (body.as_ref(), format!("POST {path} HTTP/1.1\r\nhost: x\r\n"));
    let length = format!("content-length: {}\r\n\r\n", body.len());
    [line.as_bytes(), headers.as_bytes(), length.as_bytes(), body].concat()
}

/// A node with a client listener, an opaque and a responses route.
struct Front {
    node: Node,
    gate: Gate,
    edge: Arc<Edge>,
    addr: SocketAddr,
}

impl Front {
    async fn start(limits: Limits) -> Self {
        Self::before(Gate::open(SampleAuth::Open).await, limits).await
    }

    /// Before an upstream that may refuse.
    async fn before(gate: Gate, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, gate, limits, Auth::None).await
    }

    /// For who has this key alone, which is in the file.
    async fn with_key(secret: &str, gate: Gate) -> (NamedTempFile, Self) {
        let (file, auth) = key(secret);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        (file, Self::on(listener, gate, limits(), auth).await)
    }

    async fn on(listener: TcpListener, gate: Gate, limits: Limits, auth: Auth) -> Self {
        let routes = [Profile::Opaque, Profile::Responses].map(|profile| route(profile, &gate));
        Self::with(listener, gate, routes, limits, auth).await
    }

    /// With routes of the test's own.
    async fn with(
        listener: TcpListener,
        gate: Gate,
        routes: [Route; 2],
        limits: Limits,
        auth: Auth,
    ) -> Self {
        let routes: Arc<[_]> = routes.map(Arc::new).into();
        let node = Node::start(&Arc::new(Memory::default()), "a", limits, routes.iter()).await;
        let cluster = node.store.cluster().await.unwrap();
        let upstreams: Vec<_> = routes.iter().map(|route| Arc::clone(&route.upstream)).collect();
        let edge = Arc::new(Edge {
            node_id: Arc::clone(&node.name),
            router: Arc::new(crate::route::tests::router(&node)),
            routes,
            auth: Authenticator::new(
                auth,
                Vec::new(),
                cluster.secret,
                node.dialer.fetcher().unwrap(),
            ),
            limits,
            metrics: node.metrics.clone(),
            http: HttpClient::new(&upstreams, &node.dialer, PATIENCE),
            drain: Drain::default(),
            unfinished: super::budget(&limits),
            tracker: node.tracker.clone(),
        });
        let addr = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::clone(&edge), node.stop.clone()));
        Self { node, gate, edge, addr }
    }

    /// Takes the key of this file away, and lets the node see that.
    fn revoke(&self, file: &NamedTempFile) {
        file.as_file().set_len(0).unwrap();
        self.edge.auth.look();
    }

    /// A drain as clients meet it that are kept as long as can be.
    fn last_call(&self) {
        self.edge.drain.closing.cancel();
        self.edge.drain.last_call.cancel();
    }

    /// Sends bytes, and reads the one answer to the end of the connection.
    async fn answer(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        soon("the answer", stream.read_to_string(&mut answer)).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
        let (status, headers) = head.split_once("\r\n").unwrap();
        let status = status.split(' ').nth(1).unwrap().parse().unwrap();
        let headers = headers.lines().map(|line| line.split_once(": ").unwrap());
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Answer { status, headers: headers.collect(), body: body.to_owned() }
    }

    async fn client(&self, path: &str) -> Client {
        self.client_of(path, "").await
    }

    async fn client_of(&self, path: &str, thread: &str) -> Client {
        self.client_with(path, "thread-id", thread).await
    }

    async fn client_with(&self, path: &str, header: &'static str, value: &str) -> Client {
        let mut request = format!("ws://{}{path}", self.addr).into_client_request().unwrap();
        if !value.is_empty() {
            request.headers_mut().insert(header, value.parse().unwrap());
        }
        let (socket, response) = soon("the upgrade", connect_async(request)).await.unwrap();
        Client { socket, headers: response.headers().clone() }
    }
}

/// An HTTP answer, to the byte.
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        let length: usize = self.headers["content-length"].parse().unwrap();
        assert_eq!(length, self.body.len(), "{}", self.body);
        assert_eq!(self.headers["content-type"], "application/json");
        serde_json::from_str(&self.body).unwrap()
    }
}

struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    headers: HeaderMap,
}

impl Client {
    async fn send(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    async fn create(&mut self, input: &str) {
        let event =
            json!({ "type": "response.create", "model": "m", "store": false, "input": input });
        self.send(Message::text(event.to_string())).await;
    }

    async fn message(&mut self) -> Option<tungstenite::Result<Message>> {
        soon("a message", self.socket.next()).await
    }

    async fn event(&mut self) -> Value {
        let message = self.message().await.unwrap().unwrap();
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    }

    async fn until(&mut self, kind: &str) -> Value {
        loop {
            let event = self.event().await;
            if event["type"] == kind {
                return event;
            }
        }
    }

    /// The close frame that comes next; anything else is a failure.
    async fn closed(&mut self) -> CloseFrame {
        match self.message().await {
            Some(Ok(Message::Close(Some(close)))) => close,
            other => panic!("expected a close, got {other:?}"),
        }
    }

    async fn closed_with(&mut self, code: u16) -> String {
        let close = self.closed().await;
        assert_eq!(u16::from(close.code), code, "{close:?}");
        close.reason.to_string()
    }
}

#[tokio::test]
async fn text_binary_pings_and_close_codes_pass_an_opaque_route() {
    let front = Front::start(limits()).await;
    let mut client = front.client("/rooms/a").await;
    assert_eq!(client.headers["ringspan-resume"], "new");
    assert!(client.headers.contains_key("ringspan-session"));
    for message in [Message::text("text"), Message::binary(&b"\0\xff"[..])] {
        client.send(message.clone()).await;
        assert_eq!(client.message().await.unwrap().unwrap(), message);
    }
    client.send(Message::Ping("are you there".into())).await;
    let pong = client.message().await.unwrap().unwrap();
    assert_eq!(pong, Message::Pong("are you there".into()), "the upstream's own");
}

#[tokio::test]
async fn a_client_that_comes_back_says_what_it_had_and_gets_the_rest() {
    let front = Front::start(limits()).await;
    let mut client = front.client("/rooms/a").await;
    for text in ["1", "2", "3"] {
        client.send(Message::text(text)).await;
        assert_eq!(client.message().await.unwrap().unwrap(), Message::text(text));
    }
    drop(client);
    let mut back = front.client("/rooms/a?last_seq=1").await;
    assert_eq!(back.headers["ringspan-resume"], "ok");
    for text in ["2", "3"] {
        assert_eq!(back.message().await.unwrap().unwrap(), Message::text(text));
    }
    let ahead = front.client("/rooms/a?last_seq=99").await;
    assert_eq!(ahead.headers["ringspan-resume"], "gap; floor=1");
}

#[tokio::test]
async fn a_turn_runs_over_the_client_listener_from_create_to_completed() {
    let front = Front::start(limits()).await;
    let mut client = front.client("/v1/responses").await;
    client.create("hello").await;
    let done = client.until("response.completed").await;
    let text = done["response"]["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("hello"), "{text}");
    assert_eq!(front.gate.dials(), 1);
}

#[tokio::test]
async fn a_responses_clients_ping_is_answered_by_its_edge() {
    let front = Front::start(limits()).await;
    let mut client = front.client("/v1/responses").await;
    client.send(Message::Ping("x".into())).await;
    assert_eq!(client.message().await.unwrap().unwrap(), Message::Pong("x".into()));
    assert_eq!(front.gate.dials(), 0, "a ping needs no upstream");
}

#[tokio::test]
async fn a_store_that_fails_for_a_moment_refuses_no_client() {
    let front = Front::start(limits()).await;
    front.node.store.fail_reads([Fault::RequestLost; 2]);
    let mut client = front.client_of("/v1/responses", "t").await;
    client.create("hello").await;
    client.until("response.completed").await;
}
