//! Turns over HTTP, and the connections that they come by.

use std::time::Duration;

use tokio::{task::yield_now, time::sleep};

use super::*;
use crate::{
    edge::auth::GRACE,
    store::{Alias, AliasKind, Cursor, Sweep},
};

/// A turn as a request on a connection that is kept.
fn turn(headers: &str, input: &str) -> Vec<u8> {
    request(headers, &json!({ "model": "m", "store": false, "input": input }))
}

fn request(headers: &str, body: &Value) -> Vec<u8> {
    post("/v1/responses", headers, body.to_string())
}

/// Reads on until these words have come; all that came.
async fn heard(stream: &mut TcpStream, words: &str) -> String {
    let mut all = Vec::new();
    loop {
        let read = soon(words, stream.read_buf(&mut all)).await.unwrap();
        let all = String::from_utf8_lossy(&all);
        assert!(read > 0 || all.contains(words), "it ended without {words:?}: {all}");
        if all.contains(words) {
            return all.into_owned();
        }
    }
}

/// Time passes for all that waits by it.
async fn later(time: Duration) {
    // Who was woken has to begin its wait first.
    for _ in 0..10 {
        yield_now().await;
    }
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Status and error code of the next answer on a connection.
async fn answered(stream: &mut TcpStream) -> (u16, Option<String>) {
    let (status, body) = answer(stream).await;
    (status, body["error"]["code"].as_str().map(str::to_owned))
}

/// Status and body of the next answer on a connection.
async fn answer(stream: &mut TcpStream) -> (u16, Value) {
    let mut answer = Vec::new();
    let (head, length) = loop {
        answer.push(soon("the answer", stream.read_u8()).await.expect("an answer"));
        if answer.ends_with(b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&answer).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            break (head.clone(), length.unwrap().parse().unwrap());
        }
    };
    let mut body = vec![0; length];
    soon("the body", stream.read_exact(&mut body)).await.unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn a_connection_may_be_silent_between_requests_for_longer_than_a_head_may_take() {
    let head = Duration::from_millis(300);
    let front = Front::start(Limits { upgrade_timeout: head, ..limits() }).await;
    let mut stream = TcpStream::connect(front.addr).await.unwrap();
    for _ in 0..2 {
        stream.write_all(&turn("", "hello")).await.unwrap();
        assert_eq!(answered(&mut stream).await, (200, None));
        sleep(3 * head).await;
    }
    // As long as it has not asked anything, it is but a place taken.
    for said in ["", "GET /v1/responses HTTP/1.1\r\nx: "] {
        let mut stream = TcpStream::connect(front.addr).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        soon("the end", stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"", "{said:?}");
    }
}

#[tokio::test]
async fn a_request_that_offers_http_2_is_served_as_what_it_is() {
    let front = Front::start(limits()).await;
    // As java.net.http.HttpClient sends all of its own over plain TCP.
    let offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                 HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n";
    let mut stream = TcpStream::connect(front.addr).await.unwrap();
    for input in ["one", "two"] {
        stream.write_all(&turn(offer, input)).await.unwrap();
        assert_eq!(answered(&mut stream).await, (200, None), "{input}");
    }
}

#[tokio::test]
async fn at_the_cut_a_turn_is_unknown_and_a_request_that_waits_is_told_to_go_elsewhere() {
    let code = |code: &str| Some(code.to_owned());
    let front = Front::start(limits()).await;
    let mut running = TcpStream::connect(front.addr).await.unwrap();
    running.write_all(&turn("", "[hang]")).await.unwrap();
    eventually("it is sent", async || front.gate.dials() == 1).await;
    let session = || front.node.registry.list().pop();
    eventually("it is attached", async || {
        session().is_some_and(|session| session.stats.clients.lock().len() == 1)
    })
    .await;
    front.edge.drain.cut.cancel();
    assert_eq!(answered(&mut running).await, (502, code("outcome_unknown")));
    assert_eq!(front.gate.dials(), 1, "asked once");

    let shut = Gate::with_permits(SampleAuth::Open, 0).await;
    let front = Front::before(shut, limits()).await;
    let mut waiting = TcpStream::connect(front.addr).await.unwrap();
    waiting.write_all(&turn("", "hello")).await.unwrap();
    eventually("it waits for its upstream", async || front.gate.dials() == 1).await;
    front.edge.drain.cut.cancel();
    assert_eq!(answered(&mut waiting).await, (503, code("node_draining")));
}

#[tokio::test]
async fn no_turn_begins_with_a_key_that_was_revoked_while_its_body_was_sent() {
    let (file, front) = Front::with_key("secret", Gate::open(SampleAuth::Open).await).await;
    let mut stream = TcpStream::connect(front.addr).await.unwrap();
    let all = turn("authorization: Bearer secret\r\nexpect: 100-continue\r\n", "late");
    let end = all.windows(4).position(|at| at == b"\r\n\r\n").unwrap() + 4;
    stream.write_all(&all[..end]).await.unwrap();
    // Said once the client was let in.
    heard(&mut stream, "100 Continue\r\n\r\n").await;
    front.revoke(&file);
    stream.write_all(&all[end..]).await.unwrap();
    assert_eq!(answered(&mut stream).await, (401, Some("not_authorized".into())));
    assert_eq!(front.gate.dials(), 0);
}

#[tokio::test]
async fn no_turn_begins_with_a_key_that_was_revoked_while_it_waited_for_its_session() {
    let shut = Gate::with_permits(SampleAuth::Open, 0).await;
    let (file, front) = Front::with_key("secret", shut).await;
    let mut stream = TcpStream::connect(front.addr).await.unwrap();
    stream.write_all(&turn("authorization: Bearer secret\r\n", "late")).await.unwrap();
    eventually("it waits for its upstream", async || front.gate.dials() == 1).await;
    front.revoke(&file);
    front.gate.permits.add_permits(10);
    assert_eq!(answered(&mut stream).await, (401, Some("not_authorized".into())));
}

#[tokio::test]
async fn a_get_without_a_credential_leaves_its_session_the_one_of_its_socket() {
    let front = Front::before(Gate::open(SampleAuth::AnyBearer).await, limits()).await;
    let mut client = front.client_with("/v1/responses", "authorization", "Bearer good").await;
    client.create("first").await;
    let done = client.until("response.completed").await;
    let id = done["response"]["id"].as_str().unwrap();
    let get = format!(
        "GET /v1/responses/{id}?stream=true HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    );
    assert_eq!(front.answer(get.as_bytes()).await.status, 200);
    client.create("[close=1011] cut off").await;
    client.until("error").await;
    client.create("second").await;
    client.until("response.completed").await;
    assert_eq!(front.gate.dials(), 2);
}

#[tokio::test]
async fn a_repeat_finds_its_turn_after_the_names_of_closed_sessions_were_swept() {
    let front = Front::start(limits()).await;
    let store = &front.node.store;
    let mut stream = TcpStream::connect(front.addr).await.unwrap();
    stream.write_all(&turn("", "one")).await.unwrap();
    let first = answer(&mut stream).await.1["id"].as_str().unwrap().to_owned();
    let session = front.node.registry.list().pop().unwrap();
    let row = front.node.row(session.id).await;
    let (kind, digest) = (AliasKind::Response, Alias::digest("/v1/responses", &first));
    let alias = || store.alias(row.principal, kind, digest);
    eventually("its name is written", async || alias().await == Ok(Some(session.id))).await;

    let body =
        json!({ "model": "m", "store": false, "input": "two", "previous_response_id": first });
    let again = request("idempotency-key: k\r\n", &body);
    stream.write_all(&again).await.unwrap();
    let (status, second) = answer(&mut stream).await;
    assert_eq!(status, 200, "{second}");
    assert_eq!(store.release(session.id, front.node.me, row.epoch).await, Ok(true));
    store.sweep(Sweep::Aliases, Duration::ZERO, 100, Cursor::START).await.unwrap();
    stream.write_all(&again).await.unwrap();
    assert_eq!(answer(&mut stream).await, (200, second));
    assert_eq!(front.gate.dials(), 1, "no other session was asked");
}

/// Half of what it announces.
const HALF: &str = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf";

#[tokio::test]
async fn a_key_that_is_taken_away_ends_the_answers_that_its_client_reads_after_the_grace() {
    let (file, auth) = key("secret");
    let gate = Gate::open(SampleAuth::Open).await;
    let of_files = Route {
        path: "/files/responses".into(),
        upstream: Arc::new(answering("halves", HALF).await),
        ..route(Profile::Responses, &gate)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let routes = [route(Profile::Responses, &gate), of_files];
    let patient = Limits { turn_idle_timeout: 10 * GRACE, ..limits() };
    let front = Front::with(listener, gate, routes, patient, auth).await;
    let ask = async |request: &[u8]| {
        let mut stream = TcpStream::connect(front.addr).await.unwrap();
        stream.write_all(request).await.unwrap();
        stream
    };
    let bearer = "authorization: Bearer secret\r\n";
    let streamed = json!({ "model": "m", "store": false, "stream": true, "input": "[hang]" });
    let mut stream = ask(&request(bearer, &streamed)).await;
    let created = heard(&mut stream, "response.created").await;
    let id = created.split(r#""id":"#).nth(1).unwrap().split('"').nth(1).unwrap();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n{bearer}\r\n");
    let mut resumed = ask(get(&format!("/v1/responses/{id}?stream=true")).as_bytes()).await;
    heard(&mut resumed, "response.created").await;
    let mut passed = ask(get("/files/a").as_bytes()).await;
    heard(&mut passed, "half").await;
    let mut whole = ask(&turn(bearer, "[hang]")).await;
    eventually("all turns run", async || front.gate.dials() == 2).await;
    let clients = || {
        let sessions = front.node.registry.list();
        sessions.iter().map(|session| session.stats.clients.lock().len()).sum::<usize>()
    };
    eventually("their clients are there", async || clients() == 3).await;

    front.revoke(&file);
    later(GRACE * 9 / 10).await;
    assert_eq!(clients(), 3, "what runs may end");
    later(GRACE / 5).await;
    for stream in [&mut stream, &mut resumed] {
        let last = heard(stream, "outcome_unknown").await;
        assert!(last.contains("credential") && last.contains(id), "{last}");
    }
    assert_eq!(answered(&mut whole).await, (502, Some("outcome_unknown".into())));
    let mut rest = Vec::new();
    soon("the end", passed.read_to_end(&mut rest)).await.ok();
    assert_eq!(rest, b"", "it breaks off");
}
