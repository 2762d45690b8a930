//! Requests that two readers could understand in two ways, and what a client could try to
//! have an upstream believe. They go to a real node as bytes; an upstream that only listens
//! keeps what arrives, byte by byte.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::timeout,
};

use crate::support::{Ring, RingOptions, Store, eventually};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Credential of the operator, in mode `api_key`.
const OPERATOR: &str = "the-operators-own-credential";
/// A client's key.
const KEY: &str = "alices-key";

/// A header that asks the recorder for no answer, and thus to hear the whole request.
const UNANSWERED: &str = "X-Unanswered: yes\r\n";

/// An upstream that answers every head with 200 and remembers what it was sent.
struct Recorder {
    addr: String,
    heard: Arc<Mutex<Vec<u8>>>,
    /// Connections that have ended.
    ended: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Recorder {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let heard: Arc<Mutex<Vec<u8>>> = Arc::default();
        let ended: Arc<AtomicUsize> = Arc::default();
        let (all, over) = (Arc::clone(&heard), Arc::clone(&ended));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (all, over) = (Arc::clone(&all), Arc::clone(&over));
                tokio::spawn(async move {
                    record(stream, all).await;
                    over.fetch_add(1, Relaxed);
                });
            }
        });
        Self { addr, heard, ended, task: task.abort_handle() }
    }

    async fn until_heard(&self, words: &str) {
        eventually(&format!("the upstream hears {words:?}"), ANSWER, async || {
            String::from_utf8_lossy(&self.heard.lock()).contains(words).then_some(())
        })
        .await;
    }

    async fn until_ended(&self, connections: usize) {
        eventually("the upstream's connection ends", ANSWER, async || {
            (self.ended.load(Relaxed) >= connections).then_some(())
        })
        .await;
    }

    /// What has come since the last look, in lower case.
    fn take(&self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut *self.heard.lock())).to_lowercase()
    }
}

/// Requests that are here whole, as an upstream would read them.
fn requests(mut bytes: &[u8]) -> usize {
    let position = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|at| at == what);
    let mut whole = 0;
    while let Some(head) = position(bytes, b"\r\n\r\n") {
        let lines = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
        let length = lines.lines().find_map(|line| line.strip_prefix("content-length:"));
        let body = if lines.contains("transfer-encoding: chunked") {
            // From the end of the head on, where a body without any chunk begins.
            position(&bytes[head + 2..], b"\r\n0\r\n\r\n").map(|end| end + 5)
        } else {
            Some(length.map_or(0, |length| length.trim().parse().unwrap()))
        };
        let Some(rest) = body.and_then(|body| bytes.get(head + 4 + body..)) else { break };
        bytes = rest;
        whole += 1;
    }
    whole
}

/// Answers as often as a request has come, so a smuggled one would be answered too.
async fn record(mut stream: TcpStream, heard: Arc<Mutex<Vec<u8>>>) {
    let (mut own, mut answered) = (Vec::new(), 0);
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        own.extend_from_slice(&buffer[..read]);
        heard.lock().extend_from_slice(&buffer[..read]);
        let whole = requests(&own);
        let unanswered = String::from_utf8_lossy(&own).to_lowercase().contains("x-unanswered");
        if whole > answered && !unanswered {
            answered = whole;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}

struct Bench {
    ring: Ring,
    upstream: Recorder,
}

/// A responses route to the recorder at `addr`, which is shown the client's credential or
/// the operator's.
fn responses(addr: &str, auth: &str) -> String {
    format!(
        r#"
[[upstream]]
name = "recorder"
url = "ws://{addr}/api/responses"
auth = {auth}

[[route]]
path = "/api/responses"
profile = "responses"
upstream = "recorder"
"#
    )
}

/// An opaque route to it.
fn raw(addr: &str) -> String {
    format!(
        r#"
[[upstream]]
name = "recorder-raw"
url = "ws://{addr}"
auth = "passthrough"

[[route]]
path = "/raw"
profile = "opaque"
upstream = "recorder-raw"
session_key = ["query:session"]
"#
    )
}

impl Bench {
    async fn start() -> Self {
        Self::with(|addr| responses(addr, "\"passthrough\"") + &raw(addr), &[]).await
    }

    /// With the tables that `tables` makes of the recorder's address, and these variables.
    async fn with(tables: impl FnOnce(&str) -> String, env: &[(&str, &str)]) -> Self {
        let upstream = Recorder::start().await;
        let mut options = RingOptions::nodes(1).store(Store::Sqlite);
        options.tables = tables(&upstream.addr);
        let mut ring = Ring::prepare(options).await;
        let node = ring.nodes.remove(0);
        ring.nodes.push(env.iter().fold(node, |node, (name, value)| node.with(name, value)));
        ring.migrate().await;
        ring.start_nodes().await;
        Self { ring, upstream }
    }

    async fn connect(&self) -> TcpStream {
        let addr = self.ring.node(0).client_url.trim_start_matches("http://");
        TcpStream::connect(addr).await.unwrap()
    }

    /// Sends bytes; the status of the first answer, or 0 for a connection that just ends.
    async fn status(&self, request: &[u8]) -> u16 {
        let mut stream = self.connect().await;
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        let read = async {
            while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
                if stream.read_buf(&mut answer).await.unwrap_or(0) == 0 {
                    break;
                }
            }
        };
        timeout(ANSWER, read).await.expect("an answer, or the end of the connection");
        let answer = String::from_utf8_lossy(&answer);
        answer.split(' ').nth(1).map_or(0, |status| status.parse().unwrap())
    }

    /// The request is refused, and the upstream hears nothing of it.
    async fn refused(&self, what: &str, request: &str) {
        let status = self.status(request.as_bytes()).await;
        assert!(matches!(status, 0 | 400 | 404 | 405 | 501), "{what}: {status}");
        assert_eq!(self.upstream.take(), "", "{what}");
    }

    /// The upstream is asked once; what it was sent.
    async fn passed(&self, what: &str, request: &str) -> String {
        assert_eq!(self.status(request.as_bytes()).await, 200, "{what}");
        let heard = self.upstream.take();
        assert_eq!(heard.matches(" http/1.1\r\n").count(), 1, "{what}: {heard}");
        heard
    }
}

fn get(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: edge\r\n{lines}\r\n")
}

fn post(lines: &str, body: &str) -> String {
    post_to("/api/echo", lines, body)
}

fn post_to(path: &str, lines: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: edge\r\n{lines}\r\n{body}")
}

fn upgrade(path: &str, lines: &str) -> String {
    let lines = format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}"
    );
    get(path, &lines)
}

#[tokio::test]
async fn a_request_that_could_be_two_is_refused() {
    let bench = Bench::start().await;
    let inner = "0\r\n\r\nGET /api/stolen HTTP/1.1\r\nHost: edge\r\n\r\n";
    let len = inner.len();
    for (what, request) in [
        ("two lengths", post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!")),
        ("a list of lengths", post("Content-Length: 5, 6\r\n", "hello!")),
        ("a signed length", post("Content-Length: +5\r\n", "hello")),
        ("a negative length", post("Content-Length: -1\r\n", "")),
        ("chunked is not last", post("Transfer-Encoding: chunked, identity\r\n", inner)),
        ("an unknown coding", post("Transfer-Encoding: xchunked\r\n", inner)),
        ("a space before the colon", post("Transfer-Encoding : chunked\r\n", inner)),
        ("a folded line", post(&format!("X-A: b\r\n c\r\nContent-Length: {len}\r\n"), inner)),
        ("a folded coding", post("Transfer-Encoding:\r\n chunked\r\n", inner)),
        ("NUL in a value", get("/api/x", "X-A: a\0b\r\n")),
        ("a bare CR in a value", get("/api/x", "X-A: a\rX-B: b\r\n")),
        ("a control in a name", get("/api/x", "X\x01A: a\r\n")),
        ("an empty name", get("/api/x", ": a\r\n")),
        ("a line without a colon", get("/api/x", "nonsense\r\n")),
        ("a space in the path", get("/api/x y", "")),
        ("an upgrade with a body", upgrade("/raw", "Content-Length: 5\r\n") + "hello"),
        ("an upgrade with chunks", upgrade("/raw", "Transfer-Encoding: chunked\r\n") + inner),
        (
            "two credentials",
            get("/api/x", "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"),
        ),
        ("a path upwards", get("/api/../secret", "")),
        ("the same, encoded", get("/api/%2e%2E/secret", "")),
        ("another upgrade", get("/raw", "Connection: Upgrade\r\nUpgrade: h2c\r\n")),
        ("a tunnel", "CONNECT other:80 HTTP/1.1\r\nHost: other:80\r\n\r\n".to_owned()),
        ("HTTP/2 out of nowhere", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
    ] {
        bench.refused(what, &request).await;
    }
}

#[tokio::test]
async fn no_way_to_write_a_routes_path_leads_past_it() {
    let bench = Bench::start().await;
    for path in [
        "/api/%72esponses",
        "/api/%2572esponses",
        "/api/responses/",
        "/api//responses",
        "/api/%2fresponses",
        "/api/x/../responses",
        "/api/x/%252e%252e/responses",
        "/api/responses;x",
        "/api/responses/;x",
        "/api/RESPONSES",
    ] {
        bench.refused(path, &post_to(&format!("{path}?x=1"), "Content-Length: 2\r\n", "{}")).await;
    }
    for path in ["/api/models/a%2Fb", "/api/models/", "/api/responses/resp_1/cancel", "/api/ft%3Aa"]
    {
        let heard = bench.passed(path, &post_to(path, "Content-Length: 2\r\n", "{}")).await;
        assert!(heard.starts_with(&format!("post {} ", path.to_lowercase())), "{path}: {heard}");
    }
}

#[tokio::test]
async fn bytes_behind_chunks_never_become_a_request() {
    let bench = Bench::start().await;
    let hidden = "5\r\nhello\r\n0\r\n\r\nGET /api/stolen HTTP/1.1\r\nHost: edge\r\n\r\n";
    let len = hidden.len();
    for lines in [
        "Transfer-Encoding: chunked\r\n".to_owned(),
        format!("Content-Length: {len}\r\nTransfer-Encoding: chunked\r\n"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {len}\r\n"),
    ] {
        let mut stream = bench.connect().await;
        stream.write_all(post(&lines, hidden).as_bytes()).await.unwrap();
        let mut answers = Vec::new();
        timeout(ANSWER, stream.read_to_end(&mut answers))
            .await
            .expect("the connection ends")
            .unwrap();
        let answers = String::from_utf8_lossy(&answers).into_owned();
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{lines}: {answers}");
        let heard = bench.upstream.take();
        assert!(!heard.contains("stolen") && !heard.contains("content-length"), "{lines}: {heard}");
        assert_eq!(heard.matches(" http/1.1\r\n").count(), 1, "{lines}: {heard}: {answers}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_never_ends_for_the_upstream() {
    let bench = Bench::start().await;
    let lines = format!("{UNANSWERED}Transfer-Encoding: chunked\r\n");
    for (n, rest) in
        ["ffffffffffffffff1\r\n", "-1\r\n", "5\r\nhelloX\r\n", ""].into_iter().enumerate()
    {
        let mut stream = bench.connect().await;
        stream.write_all(post(&lines, "5\r\nfirst\r\n").as_bytes()).await.unwrap();
        bench.upstream.until_heard("first").await;
        stream.write_all(rest.as_bytes()).await.unwrap();
        if rest.is_empty() {
            drop(stream);
        }
        bench.upstream.until_ended(n + 1).await;
        let heard = bench.upstream.take();
        assert!(heard.starts_with("post /api/echo http/1.1\r\n"), "{rest:?}: {heard}");
        assert!(!heard.contains("\r\n0\r\n"), "{rest:?}: {heard}");
    }
}

#[tokio::test]
async fn what_is_passed_on_is_one_request_in_our_own_words() {
    let bench = Bench::start().await;
    let host = format!("host: {}\r\n", bench.upstream.addr);

    let equal = post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello");
    let heard = bench.passed("equal lengths", &equal).await;
    assert_eq!(heard.matches("content-length").count(), 1);
    let bare = "GET /api/x HTTP/1.1\nHost: edge\nX-A: 1\n\n";
    let heard = bench.passed("line ends without CR", bare).await;
    assert!(heard.contains("x-a: 1\r\n") && !heard.replace("\r\n", "").contains('\n'), "{heard}");
    let chunks = "5;ext=\"x\"\r\nhello\r\n0\r\nX-Trailer: t\r\n\r\n";
    let heard = bench
        .passed("extensions and trailers", &post("Transfer-Encoding: chunked\r\n", chunks))
        .await;
    assert!(!heard.contains("ext=") && !heard.contains("x-trailer"), "{heard}");
    // The name in the request line is the client's; where the request goes is ours.
    let heard = bench.passed("another host", &get("http://elsewhere.example/api/x", "")).await;
    assert!(heard.starts_with("get /api/x http/1.1\r\n") && heard.contains(&host), "{heard}");
    assert!(!heard.contains("elsewhere") && !heard.contains("edge"), "{heard}");
}

#[tokio::test]
async fn an_upstream_hears_nothing_that_was_meant_for_the_hop_or_claims_to_come_from_it() {
    let bench = Bench::start().await;
    let tricks = "Connection: keep-alive, X-Private, Content-Length\r\nX-Private: p\r\n\
                  Keep-Alive: timeout=9\r\nProxy-Authorization: Basic x\r\nProxy-Connection: close\r\n\
                  TE: trailers\r\nTrailer: X-T\r\nExpect-X: 1\r\n\
                  X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Proto: https\r\n\
                  Forwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nX-Original-URL: /admin\r\n\
                  X-Rewrite-URL: /admin\r\nRingspan-Last-Seq: 3\r\nRingspan-Last-Epoch: 4\r\n\
                  Authorization: Bearer mine\r\nX-Kept: yes\r\n";
    let never = [
        "x-private",
        "keep-alive: timeout",
        "proxy-",
        "trailers",
        "x-forwarded",
        "forwarded:",
        "6.6.6.6",
        "evil",
        "/admin",
        "ringspan-",
        "host: edge",
    ];
    let plain = bench.passed("a plain request", &get("/api/x", tricks)).await;
    // Its upgrade is answered with 200, which is no upgrade; what counts is what it was sent.
    let status = bench.status(upgrade("/raw?last%5Fseq=3&session=s&x=1", tricks).as_bytes()).await;
    assert_eq!(status, 502);
    let raw = bench.upstream.take();
    assert!(raw.starts_with("get /raw?session=s&x=1 http/1.1\r\n"), "{raw}");
    for heard in [plain, raw] {
        for word in never {
            assert!(!heard.contains(word), "{word} in {heard}");
        }
        assert!(heard.contains("authorization: bearer mine\r\n"), "{heard}");
        assert!(heard.contains("x-kept: yes\r\n"), "{heard}");
    }
}

#[tokio::test]
async fn a_clients_words_cannot_become_lines_of_a_request_or_of_a_log() {
    let bench = Bench::start().await;
    let words = "a%0d%0aInjected:%20yes%0a%7B%22level%22:%22INFO%22%7D";
    bench.refused("a key of lines", &upgrade(&format!("/raw?session={words}"), "")).await;
    let target = format!("/raw?session=a&note={words}");
    bench.status(upgrade(&target, "Sec-WebSocket-Protocol: a\r\n").as_bytes()).await;
    let heard = bench.upstream.take();
    assert!(!heard.contains("\r\ninjected") && heard.contains("%0d%0ainjected"), "{heard}");
    bench
        .refused("a protocol that is no token", &upgrade("/raw", "Sec-WebSocket-Protocol: a b\r\n"))
        .await;
    let log = bench.ring.node(0).log();
    // All but what a terminal is told once the node is ready.
    for line in log.lines().filter(|line| !line.starts_with("node-0 is ready: ")) {
        let whole: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(whole.is_ok_and(|line| line["timestamp"].is_string()), "{line}");
    }
    assert!(!log.contains("Injected"), "session keys are not logged");
}

#[tokio::test]
async fn a_client_can_neither_swap_nor_learn_the_operators_credential() {
    use std::fmt::Write as _;

    let mut sha256 = String::new();
    for byte in aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, KEY.as_bytes()).as_ref() {
        write!(sha256, "{byte:02x}").unwrap();
    }
    let keys = format!(
        "[auth]\nmode = \"api_key\"\n[[auth.key]]\nname = \"alice\"\nsha256 = \"{sha256}\"\n"
    );
    let tables = |addr: &str| responses(addr, "{ bearer_env = \"OPERATOR_KEY\" }") + &keys;
    let bench = Bench::with(tables, &[("OPERATOR_KEY", OPERATOR)]).await;
    let operator = format!("authorization: bearer {OPERATOR}\r\n");
    for connection in ["close", "authorization", "close, Authorization"] {
        let lines = format!("Authorization: Bearer {KEY}\r\nConnection: {connection}\r\n");
        let heard = bench.passed(connection, &get("/api/x", &lines)).await;
        assert_eq!(heard.matches("authorization").count(), 1, "{heard}");
        assert!(heard.contains(&operator) && !heard.contains(KEY), "{heard}");
    }
    for (what, lines) in [
        ("no key", ""),
        ("another scheme", "Authorization: Basic YWxpY2Vz\r\n"),
        ("the operator's own", &format!("Authorization: Bearer {OPERATOR}\r\n")),
    ] {
        assert_eq!(bench.status(get("/api/x", lines).as_bytes()).await, 401, "{what}");
        assert_eq!(bench.upstream.take(), "", "{what}");
    }
    let log = bench.ring.node(0).log();
    assert!(!log.contains(KEY) && !log.contains(OPERATOR));
}
