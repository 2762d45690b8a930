//! Who is let in, and who is shown out.

use std::{fmt::Write as _, fs, sync::Arc, time::Duration};

use aws_lc_rs::{
    digest,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::support::{
    ALICE, BOB, Received, Ring, RingOptions, Ws, eventually, http,
    process::Program,
    responses::{create, user},
    scripted::Upstream,
};

/// A turn of about nine seconds.
const LONG: &str = "tell me [deltas=60] [delay=150ms]";

/// The file of keys is looked at every five seconds.
const NOTICED: Duration = Duration::from_secs(20);

fn key_line(name: &str, key: &str) -> String {
    let mut line = format!("{name} ");
    for byte in digest::digest(&digest::SHA256, key.as_bytes()).as_ref() {
        write!(line, "{byte:02x}").unwrap();
    }
    line + "\n"
}

fn mode(mut options: RingOptions, mode: &str) -> RingOptions {
    write!(options.tables, "[auth]\nmode = \"{mode}\"\n").unwrap();
    options
}

#[tokio::test]
async fn a_revoked_key_ends_its_sockets_on_every_node_and_no_others() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    let bob_line = key_line("bob", "bobs-key");
    fs::write(keys.path(), key_line("alice", "alices-key") + &bob_line).unwrap();
    let options = RingOptions::nodes(2)
        .setting("auth_keys_file", format!("{:?}", keys.path().to_str().unwrap()));
    let ring = Ring::start(mode(options, "api_key")).await;
    let alice = ("authorization", "Bearer alices-key");
    let bob = ("authorization", "Bearer bobs-key");
    let [one, two] = [0, 1].map(|n| ring.node(n).url("/rooms/board"));

    let mut alices = [Ws::open(&one, &[alice]).await, Ws::open(&two, &[alice]).await];
    assert_eq!(alices[0].header("ringspan-session"), alices[1].header("ringspan-session"));
    let mut bobs = Ws::open(&two, &[bob]).await;
    assert_ne!(alices[0].header("ringspan-session"), bobs.header("ringspan-session"));
    for stranger in [&[("authorization", "Bearer guess")][..], &[]] {
        assert_eq!(Ws::connect(&one, stranger).await.unwrap_err().status, 401);
    }

    fs::write(keys.path(), bob_line).unwrap();
    for socket in &mut alices {
        is_shut_out(socket).await;
    }
    assert_eq!(Ws::connect(&one, &[alice]).await.unwrap_err().status, 401);
    bobs.text("still here").await;
    assert_eq!(bobs.expect_text().await, "still here");
}

/// A signing key of an identity provider.
struct Key {
    kid: &'static str,
    pair: Ed25519KeyPair,
}

impl Key {
    fn new(kid: &'static str) -> Self {
        Self { kid, pair: Ed25519KeyPair::generate().unwrap() }
    }

    fn public(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key().as_ref());
        json!({ "kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": self.kid, "x": x })
    }

    fn token(&self, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": self.kid });
        let signed = format!("{}.{}", part(&header), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.pair.sign(signed.as_bytes()));
        format!("Bearer {signed}.{signature}")
    }
}

/// An identity provider: its JWKS over HTTP.
struct Issuer {
    url: String,
    answer: Arc<Mutex<String>>,
}

impl Issuer {
    async fn start(keys: &[&Key]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let issuer = Self { url, answer: Arc::default() };
        issuer.publish(keys);
        let answer = Arc::clone(&issuer.answer);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let Ok(1..) = stream.read(&mut [0; 4096]).await else { continue };
                let answer = answer.lock().clone();
                stream.write_all(answer.as_bytes()).await.ok();
            }
        });
        issuer
    }

    fn publish(&self, keys: &[&Key]) {
        let keys: Vec<_> = keys.iter().map(|key| key.public()).collect();
        self.answer("200 OK", &json!({ "keys": keys }).to_string());
    }

    fn answer(&self, status: &str, body: &str) {
        *self.answer.lock() = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
    }

    /// A ring that takes its tokens.
    fn ring(&self) -> RingOptions {
        let options = RingOptions::nodes(2)
            .setting("jwt_jwks_url", format!("{:?}", self.url))
            .setting("jwt_audience", "\"ring\"")
            .setting("jwt_issuer", "\"https://id.example\"")
            .setting("jwt_leeway", "\"0s\"");
        mode(options, "jwt")
    }
}

fn claims(sub: &str, seconds: u64) -> Value {
    let exp = in_seconds(seconds);
    json!({ "iss": "https://id.example", "aud": "ring", "sub": sub, "exp": exp })
}

/// The credential that opened the socket is good no more, which is noticed in time.
async fn is_shut_out(socket: &mut Ws) {
    let end = socket.next_within(NOTICED).await;
    assert!(matches!(end, Received::Close(1008, _)), "{end:?}");
}

#[expect(clippy::disallowed_methods, reason = "an issuer dates its tokens by the wall clock")]
fn in_seconds(from_now: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_secs() + from_now
}

#[tokio::test]
async fn a_token_opens_a_socket_until_it_expires() {
    let key = Key::new("k1");
    let issuer = Issuer::start(&[&key]).await;
    let ring = Ring::start(issuer.ring()).await;
    let (long, short) = (key.token(&claims("ada", 600)), key.token(&claims("ada", 5)));
    let (long, short) = (("authorization", &*long), ("authorization", &*short));
    let (room, turns) = ("/rooms/den", "/v1/responses");

    let mut stays = Ws::open(&ring.node(0).url(room), &[long]).await;
    let mut ends = Ws::open(&ring.node(1).url(room), &[short]).await;
    assert_eq!(stays.header("ringspan-session"), ends.header("ringspan-session"));
    // A turn that runs when the token expires is not cut.
    let mut turn = Ws::open(&ring.node(1).url(turns), &[short]).await;
    turn.json(&create(&[user(LONG)], None)).await;

    let end = ends.end().await;
    assert!(matches!(end, Received::Close(1008, _)), "{end:?}");
    let mut last = String::new();
    let end = loop {
        match turn.next().await {
            Received::Text(text) => last = text,
            end => break end,
        }
    };
    assert!(last.contains("response.completed"), "{last}");
    assert!(matches!(end, Received::Close(1008, _)), "{end:?}");

    let refused = Ws::connect(&ring.node(1).url(room), &[short]).await.unwrap_err();
    assert_eq!(refused.status, 401);
    assert!(refused.body.contains("expired"), "{}", refused.body);
    let foreign = Key::new("k1").token(&claims("ada", 600));
    let foreign = Ws::connect(&ring.node(0).url(room), &[("authorization", &*foreign)]).await;
    assert_eq!(foreign.unwrap_err().status, 401);
    stays.text("hello").await;
    assert_eq!(stays.expect_text().await, "hello");
    let signature = long.1.rsplit('.').next().unwrap();
    assert!((0..2).all(|n| !ring.node(n).log().contains(signature)), "a token in a log");
}

#[tokio::test]
async fn a_signing_key_that_is_published_no_more_ends_its_sockets_on_every_node_and_no_others() {
    let (old, new) = (Key::new("old"), Key::new("new"));
    let issuer = Issuer::start(&[&old, &new]).await;
    let ring = Ring::start(issuer.ring()).await;
    let [ada, bob] = [old.token(&claims("ada", 600)), new.token(&claims("bob", 600))];
    let [ada, bob] = [("authorization", &*ada), ("authorization", &*bob)];
    let [one, two] = [0, 1].map(|n| ring.node(n).url("/rooms/den"));
    let mut adas = [Ws::open(&one, &[ada]).await, Ws::open(&two, &[ada]).await];
    let mut bobs = Ws::open(&two, &[bob]).await;

    // An issuer that does not answer has taken nothing back.
    issuer.answer("503 Service Unavailable", "");
    let unknown = Key::new("unknown").token(&claims("eve", 600));
    for node in &ring.nodes {
        eventually(&format!("{} asks for an unknown key", node.id), NOTICED, async || {
            let eve = Ws::connect(&node.url("/rooms/den"), &[("authorization", &unknown)]).await;
            assert_eq!(eve.unwrap_err().status, 401);
            node.log().contains("the token issuer's keys cannot be read").then_some(())
        })
        .await;
    }
    adas[0].text("still here").await;
    for socket in &mut adas {
        assert_eq!(socket.expect_text().await, "still here");
    }

    issuer.publish(&[&new]);
    for socket in &mut adas {
        is_shut_out(socket).await;
    }
    assert_eq!(Ws::connect(&one, &[ada]).await.unwrap_err().status, 401);
    bobs.text("still here").await;
    assert_eq!(bobs.expect_text().await, "still here");
}

#[tokio::test]
async fn what_the_upstream_revokes_is_good_in_sessions_that_are_connected_and_nowhere_else() {
    let upstream = Upstream::revoking().await;
    let ring = Ring::start(RingOptions::nodes(2).route("/judged", &upstream.url)).await;
    let [one, two] = [0, 1].map(|n| ring.node(n).url("/judged?session="));
    let mut first = Ws::open(&format!("{one}old"), &[ALICE]).await;
    let mut second = Ws::open(&format!("{two}old"), &[ALICE]).await;
    second.text("still here").await;
    for socket in [&mut first, &mut second] {
        assert_eq!(socket.expect_text().await, "still here");
    }
    let new = Ws::connect(&format!("{two}new"), &[ALICE]).await.unwrap_err();
    assert_eq!(new.status, 401, "{new:?}");
    // Nobody else is in that session, whatever the upstream says of him.
    let bob = Ws::connect(&format!("{one}old"), &[BOB]).await.unwrap_err();
    assert_eq!(bob.status, 401, "{bob:?}");
}

#[tokio::test]
async fn a_page_of_a_foreign_origin_gets_no_socket() {
    let options = RingOptions::nodes(1).setting("allowed_origins", "[\"https://app.example\"]");
    let ring = Ring::start(options).await;
    let url = ring.node(0).url("/rooms/origin");
    let from = async |origin| Ws::connect(&url, &[("origin", origin)]).await;
    assert_eq!(from("https://evil.example").await.unwrap_err().status, 403);
    let mut own = from("https://app.example").await.unwrap();
    own.text("x").await;
    assert_eq!(own.expect_text().await, "x");
}

#[tokio::test]
async fn draining_takes_the_admin_token_and_every_attempt_is_on_record() {
    let token = tempfile::NamedTempFile::new().unwrap();
    fs::write(token.path(), "the-token-of-the-operators\n").unwrap();
    let path = token.path().to_str().unwrap();
    let options = RingOptions::nodes(2).setting("admin_token_file", format!("{path:?}"));
    let ring = Ring::start(options).await;
    let node = ring.node(0);
    assert_eq!(http::get(&format!("{}/metrics", node.admin_url), &[]).await.status, 200);
    let drain = async |name: &str, value: &str| {
        let log = ring.dir().join(format!("drain-{}.log", name.to_lowercase()));
        let args = ["drain", "node-0", "--admin-url", &node.admin_url];
        Program::new(log, &args).env(name, value).run(NOTICED).await
    };
    let (code, said) = drain("RINGSPAN_ADMIN_TOKEN", "a-guess-of-somebody").await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("not_authorized"), "{said}");
    assert_eq!(node.health().await.unwrap()["draining"], false);
    let url = format!("{}/api/v1/drain", node.admin_url);
    let shown = [("authorization", "Bearer the-token-of-the-operators")];
    assert_eq!(http::post(&url, &shown, &json!({ "within": "soon" })).await.status, 400);
    let (code, said) = drain("RINGSPAN_ADMIN_TOKEN_FILE", path).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(node.wait_exit(Duration::from_secs(30)).await, 0);
    let log = node.log();
    let acts: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &Value| line["target"] == "audit")
        .collect();
    let told = |act: &Value, field: &str| act[field].as_str().unwrap_or_default().to_owned();
    let outcomes: Vec<_> = acts.iter().map(|act| told(act, "outcome")).collect();
    assert_eq!(outcomes, ["denied", "invalid", "accepted"]);
    for (act, actor) in acts.iter().zip(["nobody", "admin-token", "admin-token"]) {
        assert_eq!(told(act, "actor"), actor);
        assert_eq!(told(act, "action"), "drain");
        assert!(told(act, "peer").starts_with("127.0.0.1:"), "{act}");
    }
    assert!(!log.contains("the-token-of-the-operators") && !log.contains("a-guess-of-somebody"));
}
