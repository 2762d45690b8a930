//! What clients and operators entrust to a ring, looked for wherever somebody else may read: logs,
//! metrics, what a collector is sent, the admin listener, errors, and the database.

use std::{collections::BTreeMap, fmt::Write as _, fs, sync::Arc, time::Duration};

use ::http::Method;
use aws_lc_rs::digest;
use axum::{
    Router,
    extract::{Path, State},
    routing::post,
};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio::net::TcpListener;

use crate::support::{
    Node, Received, Ring, RingOptions, Ws, http,
    postgres::PASSWORD,
    responses::{Turn, body, create, user},
    ring::PEER_TOKEN,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// What a client shows by the header `authorization`, behind its scheme.
const CREDENTIAL: &str = "canary-credential-of-the-client";
const ACCOUNT: &str = "canary-account-of-the-client";
const OTHER_KEY: &str = "canary-key-in-a-header-of-its-own";
const COOKIE: &str = "canary-in-a-cookie";
const QUERY: &str = "canary-in-the-query";
const STRANGER: &str = "canary-credential-of-a-stranger";
const OPERATOR: &str = "canary-credential-for-the-upstream";
const ADMIN: &str = "canary-token-of-the-operators";
const GUESS: &str = "canary-guess-of-the-admin-token";
const COLLECTOR: &str = "canary-credential-for-the-collector";
const SAID: &str = "canary-said-in-a-turn";
const CALLED: &str = "canary-said-in-a-room";

/// Not one of these may be seen.
const SECRETS: [&str; 14] = [
    CREDENTIAL, ACCOUNT, OTHER_KEY, COOKIE, QUERY, STRANGER, OPERATOR, ADMIN, GUESS, COLLECTOR,
    SAID, CALLED, PEER_TOKEN, PASSWORD,
];

/// Keys of sessions, which operators are shown on the admin listener, and nowhere else.
const ROOM: &str = "canary-room";
const THREAD: &str = "canary-thread";

/// Paths of the sample, and of the same behind the operator's credential.
const TURNS: [&str; 2] = ["/v1/responses", "/guarded/responses"];

/// What somebody may read, by where.
type Seen = BTreeMap<String, Vec<u8>>;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// A secret as it is, in hexadecimal digits, and as a digest without a key, by which it could be
/// guessed.
fn forms(secret: &str) -> [String; 3] {
    let digest = digest::digest(&digest::SHA256, secret.as_bytes());
    [secret.to_owned(), hex(secret.as_bytes()), hex(&digest.as_ref()[..16])]
}

fn shows(bytes: &[u8], word: &str) -> bool {
    memchr::memmem::find(bytes, word.as_bytes()).is_some()
}

/// What of `secrets` is seen, as `place: secret`.
fn found(seen: &Seen, secrets: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (place, bytes) in seen {
        assert!(!bytes.is_empty(), "{place} is empty: nothing was looked at");
        let forms = secrets.iter().flat_map(|secret| forms(secret));
        found.extend(forms.filter(|it| shows(bytes, it)).map(|it| format!("{place}: {it}")));
    }
    found
}

/// A collector that keeps what it is sent over HTTP, by signal. In protobuf texts stand as they are.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Seen>>);

impl Collector {
    /// With its URL. Ends with the test.
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let take =
            async |State(Self(kept)): State<Self>, Path(signal): Path<String>, sent: Bytes| {
                kept.lock().entry(format!("OTLP {signal}")).or_default().extend_from_slice(&sent);
            };
        let service = Router::new().route("/v1/{signal}", post(take)).with_state(collector.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        (collector, url)
    }

    /// All that was sent; `words` of each signal have to be there.
    fn take(&self, words: [(&str, &[&str]); 3]) -> Seen {
        let seen = std::mem::take(&mut *self.0.lock());
        for (signal, words) in words {
            let sent = seen.get(&format!("OTLP {signal}")).map_or(&[][..], Vec::as_slice);
            for word in words {
                assert!(shows(sent, word), "no {word} among the {signal}: {} bytes", sent.len());
            }
        }
        seen
    }
}

/// Two nodes that tell all that they can, and whoever asks for it.
async fn talkative(auth: &str, collector: &str) -> Ring {
    let mut options = RingOptions::nodes(2)
        .setting("log_filter", "\"debug\"")
        .setting("otlp_endpoint", format!("{collector:?}"))
        .route("/gone", "ws://127.0.0.1:9");
    write!(
        options.tables,
        "[[upstream]]\nname = \"guarded\"\nurl = \"ws://{{sample}}/v1/responses\"\n\
         auth = {{ bearer_env = \"OPERATOR_KEY\" }}\n\
         [[route]]\npath = \"/guarded/responses\"\nprofile = \"responses\"\nupstream = \"guarded\"\n\
         {auth}"
    )
    .unwrap();
    let mut ring = Ring::prepare(options).await;
    let admin = ring.dir().join("admin.token");
    fs::write(&admin, ADMIN).unwrap();
    let told = |node: Node| {
        node.with("OPERATOR_KEY", OPERATOR)
            .with("RINGSPAN_ADMIN_TOKEN_FILE", admin.to_str().unwrap())
            .with("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
            .with("OTEL_EXPORTER_OTLP_HEADERS", &format!("authorization=Bearer%20{COLLECTOR}"))
            .with("OTEL_METRIC_EXPORT_INTERVAL", "500")
    };
    ring.nodes = std::mem::take(&mut ring.nodes).into_iter().map(told).collect();
    ring.migrate().await;
    ring.start_nodes().await;
    ring
}

/// Turns and messages on both nodes, of one session each; the sockets stay open.
async fn talk(ring: &Ring, client: &[(&str, &str)]) -> Vec<Ws> {
    let mut sockets = Vec::new();
    let shown = [client, &[("session-id", THREAD)]].concat();
    for node in &ring.nodes {
        for path in TURNS {
            let url = node.url(path);
            for stream in [false, true] {
                let answer = http::post(&url, client, &body(&[user(SAID)], None, stream)).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert!(answer.text().contains(SAID), "the sample quotes: {}", answer.text());
            }
            let mut socket = Ws::open(&url, &shown).await;
            Turn::run(&mut socket, &create(&[user(SAID)], None)).await.id();
            sockets.push(socket);
        }
        let mut room = Ws::open(&node.url(&format!("/rooms/{ROOM}?token={QUERY}")), client).await;
        room.text(CALLED).await;
        assert_eq!(room.expect_text().await, CALLED);
        sockets.push(room);
    }
    sockets
}

/// Errors of all kinds, as their clients read them.
async fn errors(node: &Node, client: &[(&str, &str)]) -> Seen {
    let mut seen = Seen::new();
    let mut told = |what: &str, status: u16, text: String| {
        assert!(status >= 400, "{what}: {status} {text}");
        seen.insert(format!("error of {}: {what}", node.id), text.into());
    };
    let stranger = format!("Bearer {STRANGER}");
    let stranger = [("authorization", &*stranger)];
    for (what, path, headers, body) in [
        ("no JSON", TURNS[0], client, format!("{{\"input\": {SAID}")),
        ("no object", TURNS[0], client, json!([SAID]).to_string()),
        ("no input", TURNS[1], client, json!({ "input": { "text": SAID } }).to_string()),
        ("unknown response", TURNS[1], client, {
            body(&[user(SAID)], Some("resp_of_nobody"), false).to_string()
        }),
        ("failed turn", TURNS[0], client, {
            body(&[user(&format!("{SAID} [fail=503]"))], None, false).to_string()
        }),
        ("no route", "/nowhere", client, SAID.to_owned()),
    ] {
        let answer = http::request(Method::POST, &node.url(path), headers, body).await.unwrap();
        told(what, answer.status.as_u16(), answer.text());
    }
    for (what, path, headers) in [
        ("dead upstream", format!("/gone?session={ROOM}&token={QUERY}"), client),
        ("bad cursor", format!("/rooms/{ROOM}?last_seq={SAID}"), client),
        ("stranger", format!("/gone?session={ROOM}"), &stranger[..]),
    ] {
        let refused = Ws::connect(&node.url(&path), headers).await.unwrap_err();
        told(what, refused.status, refused.body);
    }
    let mut socket = Ws::open(&node.url(TURNS[0]), client).await;
    socket.text(format!("{{\"type\": \"response.create\", \"input\": {SAID}")).await;
    match socket.data().await {
        Received::Text(text) => told("no event", 400, text),
        other => panic!("{other:?}"),
    }
    let drain = format!("{}/api/v1/drain", node.admin_url);
    for (what, token) in [("drain by a guess", GUESS), ("drain, some time", ADMIN)] {
        let bearer = format!("Bearer {token}");
        let order = json!({ "within": SAID });
        let answer = http::post(&drain, &[("authorization", &bearer)], &order).await;
        told(what, answer.status.as_u16(), answer.text());
    }
    seen
}

/// All that the admin listener says, but for metrics.
async fn status(node: &Node) -> Seen {
    let mut seen = Seen::new();
    let mut paths =
        ["/", "/health/ready", "/api/v1/ring", "/api/v1/sessions"].map(str::to_owned).to_vec();
    let list = http::get(&format!("{}/api/v1/sessions", node.admin_url), &[]).await.json();
    let ids = list["sessions"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap());
    paths.extend(ids.map(|id| format!("/api/v1/sessions/{id}")));
    for path in paths {
        let answer = http::get(&format!("{}{path}", node.admin_url), &[]).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        seen.insert(format!("{path} of {}", node.id), answer.body.into());
    }
    let events = format!("{}/api/v1/events", node.admin_url);
    let mut events = http::open(Method::GET, &events, &[], "").await.unwrap();
    let first = events.event().await.unwrap().unwrap_or(Value::Null);
    seen.insert(format!("/api/v1/events of {}", node.id), first.to_string().into());
    seen
}

async fn metrics(node: &Node) -> Seen {
    let mut seen = Seen::new();
    for accept in ["text/plain", "application/openmetrics-text"] {
        let answer = http::get(&format!("{}/metrics", node.admin_url), &[("accept", accept)]).await;
        let text = answer.text();
        let lost = text.lines().filter(|line| line.starts_with("ringspan_otlp_lost_total"));
        for line in lost {
            assert!(line.ends_with(" 0"), "a collector must be sent all: {line}");
        }
        seen.insert(format!("/metrics of {} as {accept}", node.id), text.into());
    }
    seen
}

/// Every row of every table, with bytes as hexadecimal digits.
async fn rows(ring: &Ring) -> Seen {
    let mut connection = PgConnection::connect(&ring.database_url).await.unwrap();
    let tables = "SELECT table_name::text FROM information_schema.tables \
                  WHERE table_schema = 'public' AND table_type = 'BASE TABLE'";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut connection).await.unwrap();
    let mut seen = Seen::new();
    for table in tables {
        let rows = sqlx::AssertSqlSafe(format!("SELECT row_to_json(t)::text FROM \"{table}\" t"));
        let rows: Vec<String> = sqlx::query_scalar(rows).fetch_all(&mut connection).await.unwrap();
        // Some are for what did not happen here.
        if !rows.is_empty() {
            seen.insert(format!("table {table}"), rows.concat().into());
        }
    }
    for table in ["ring_meta", "member", "session", "alias", "turn"] {
        assert!(seen.contains_key(&format!("table {table}")), "no rows in {table}");
    }
    seen
}

/// Uses a ring in every way, and looks for the secrets of it everywhere.
async fn look_everywhere(auth: &str, client: &[(&str, &str)]) {
    let (collector, url) = Collector::start().await;
    let ring = talkative(auth, &url).await;
    let sockets = talk(&ring, client).await;
    let mut operators = rows(&ring).await;
    let mut others = Seen::new();
    for node in &ring.nodes {
        others.extend(errors(node, client).await);
        operators.extend(status(node).await);
        others.extend(metrics(node).await);
    }
    // What has to be there shows that the search finds what is there.
    for place in ["table session", "/api/v1/sessions of node-0"] {
        assert!([ROOM, THREAD].iter().all(|key| shows(&operators[place], key)), "{place}");
    }
    // What clients keep open would hold the drains up.
    drop(sockets);
    for node in &ring.nodes {
        node.sigterm();
        node.wait_exit(PATIENCE).await;
        others.insert(format!("log of {}", node.id), node.log().into());
    }
    others.extend(collector.take([
        ("traces", &["attach", "dial", "turn", "handoff", "node-0", "node-1"]),
        ("logs", &["drained", "node-0", "node-1"]),
        ("metrics", &["ringspan_turns", "node-0", "node-1"]),
    ]));
    let keys = [&SECRETS[..], &[ROOM, THREAD]].concat();
    let found = [found(&operators, &SECRETS), found(&others, &keys)].concat();
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_seen_anywhere_where_the_upstream_judges_clients() {
    let (bearer, cookie) = (format!("Bearer {CREDENTIAL}"), format!("token={COOKIE}"));
    let client = [
        ("authorization", &*bearer),
        ("chatgpt-account-id", ACCOUNT),
        ("api-key", OTHER_KEY),
        ("cookie", &cookie),
    ];
    look_everywhere("", &client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_seen_anywhere_where_ringspan_judges_clients() {
    let digest = digest::digest(&digest::SHA256, CREDENTIAL.as_bytes());
    let key = format!("name = \"team\"\nsha256 = \"{}\"\n", hex(digest.as_ref()));
    let auth = format!("[auth]\nmode = \"api_key\"\n[[auth.key]]\n{key}");
    let bearer = format!("Bearer {CREDENTIAL}");
    look_everywhere(&auth, &[("authorization", &bearer)]).await;
}
