//! What a client may not do, and how it is let go.

use std::time::Duration;

use super::*;

#[tokio::test]
async fn a_message_that_is_too_large_closes_with_1009_and_harms_nobody_else() {
    let front = Front::start(Limits { max_message_bytes: 10_000, ..limits() }).await;
    for path in ["/rooms/a", "/v1/responses"] {
        let mut client = front.client(path).await;
        client.send(Message::binary(vec![0; 10_001])).await;
        client.closed_with(1009).await;
    }
    let mut other = front.client("/rooms/a").await;
    other.send(Message::text("x".repeat(10_000))).await;
    assert_eq!(other.message().await.unwrap().unwrap().len(), 10_000);
}

#[tokio::test]
async fn a_message_in_fragments_is_too_large_as_a_whole() {
    use tungstenite::protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    };
    let front = Front::start(Limits { max_message_bytes: 10_000, ..limits() }).await;
    let mut client = front.client("/rooms/a").await;
    for (at, opcode) in [Data::Text, Data::Continue, Data::Continue].into_iter().enumerate() {
        let part = Frame::message(vec![b'x'; 4000], OpCode::Data(opcode), at == 2);
        client.send(Message::Frame(part)).await;
    }
    client.closed_with(1009).await;
}

#[tokio::test]
async fn a_binary_message_on_a_responses_route_closes_with_1003() {
    let front = Front::start(limits()).await;
    let mut client = front.client_of("/v1/responses", "t").await;
    client.send(Message::binary(&b"x"[..])).await;
    let Some(Ok(Message::Close(Some(close)))) = client.message().await else {
        panic!("no close came")
    };
    assert_eq!(u16::from(close.code), 1003);
}

#[tokio::test]
async fn text_that_is_no_json_is_answered_with_an_error_event() {
    let front = Front::start(limits()).await;
    let mut client = front.client_of("/v1/responses", "t").await;
    client.send(Message::text("{")).await;
    let event = client.event().await;
    assert_eq!(event["error"]["code"], "invalid_request");
    assert_eq!(event["status"], 400);
}

#[tokio::test]
async fn a_drain_closes_idle_sockets_with_1012() {
    let front = Front::start(limits()).await;
    let mut room = front.client("/rooms/a").await;
    let mut idle = front.client("/v1/responses").await;
    let mut named = front.client_of("/v1/responses", "t").await;
    let mut used = front.client_of("/v1/responses", "u").await;
    used.create("one turn").await;
    used.until("response.completed").await;
    front.last_call();
    for client in [&mut room, &mut idle, &mut named, &mut used] {
        assert_eq!(client.closed_with(1012).await, "service restart");
    }
}

#[tokio::test]
async fn a_drain_closes_a_busy_socket_right_after_the_terminal_event() {
    let front = Front::start(limits()).await;
    let mut busy = front.client_of("/v1/responses", "t").await;
    let mut idle = front.client_of("/v1/responses", "u").await;
    // Longer than idle sockets are given.
    busy.create("[deltas=50][delay=50ms] slow").await;
    busy.until("response.created").await;
    front.last_call();
    idle.closed_with(1012).await;
    busy.until("response.completed").await;
    busy.closed_with(1012).await;
}

#[tokio::test]
async fn a_cut_tells_a_running_turn_that_its_outcome_is_unknown() {
    let front = Front::start(limits()).await;
    let mut client = front.client_of("/v1/responses", "t").await;
    client.create("[hang]").await;
    client.until("response.created").await;
    front.last_call();
    front.edge.drain.cut.cancel();
    let error = client.until("error").await;
    assert_eq!(error["error"]["code"], "outcome_unknown");
    assert_eq!(error["status"], 502);
    client.closed_with(1012).await;
}

#[tokio::test]
async fn a_client_that_vanishes_frees_its_place_in_the_session() {
    let front = Front::start(limits()).await;
    let client = front.client("/rooms/a").await;
    let handle = front.node.registry.list().pop().unwrap();
    eventually("the client is listed", async || handle.stats.clients.lock().len() == 1).await;
    drop(client);
    eventually("the client is gone", async || handle.stats.clients.lock().is_empty()).await;
}

#[tokio::test]
async fn a_node_serves_as_many_clients_as_it_may_and_takes_the_next_when_one_leaves() {
    let front = Front::start(Limits { max_clients: 1, ..limits() }).await;
    let first = front.client("/rooms/a").await;
    let url = format!("ws://{}/rooms/a", front.addr);
    assert!(soon("an answer", connect_async(&url)).await.is_err());
    drop(first);
    eventually("there is room again", async || connect_async(&url).await.is_ok()).await;
}

#[tokio::test]
async fn a_client_that_is_one_too_many_gets_a_whole_answer_that_says_when_to_come_back() {
    let front = Front::start(Limits { max_clients: 1, ..limits() }).await;
    let _first = front.client("/rooms/a").await;
    let answer = front.answer(b"").await;
    assert_eq!(answer.status, 503);
    assert_eq!((&*answer.headers["retry-after"], &*answer.headers["connection"]), ("1", "close"));
    let error = answer.json()["error"].clone();
    assert_eq!(error["code"], "session_unavailable");
    assert_eq!((&error["type"], &error["param"]), (&json!("server_error"), &Value::Null));
    assert!(error["message"].is_string());
}

#[tokio::test]
async fn a_method_that_a_path_does_not_have_is_refused_in_json_with_those_that_it_has() {
    let front = Front::start(limits()).await;
    let request = b"DELETE /v1/responses HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = front.answer(request).await;
    assert_eq!((answer.status, &*answer.headers["allow"]), (405, "GET,HEAD,POST"));
    let error = &answer.json()["error"];
    assert_eq!((&error["code"], &error["param"]), (&json!("invalid_request"), &Value::Null));
    assert!(error["message"].is_string());
}

#[tokio::test]
async fn requests_that_came_together_wait_together_for_a_session_that_cannot_be_reached() {
    let gate = Gate::open(SampleAuth::Bearer(crate::config::Secret::new("another"))).await;
    let front = Front::before(gate, limits()).await;
    let mut client = front.client("/v1/responses").await;
    for n in 0..20 {
        let create = json!({ "type": "response.create", "model": "m", "input": n.to_string() });
        client.socket.feed(Message::text(create.to_string())).await.unwrap();
    }
    client.socket.flush().await.unwrap();
    for _ in 0..20 {
        assert_eq!(client.until("error").await["status"], 401);
    }
    assert_eq!(front.gate.dials(), 1, "each of them would wait as long");
    client.create("later").await;
    client.until("error").await;
    assert_eq!(front.gate.dials(), 2, "what comes later is tried again");
}

#[tokio::test]
async fn a_refused_request_carries_a_reason_and_no_socket() {
    let front = Front::start(limits()).await;
    for path in ["/rooms/a?last_seq=x", "/rooms/a?last_seq=-1"] {
        match connect_async(format!("ws://{}{path}", front.addr)).await.unwrap_err() {
            tungstenite::Error::Http(response) => assert_eq!(response.status(), 400),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_event_that_nodes_send_each_other_is_unknown_from_a_client() {
    let front = Front::start(limits()).await;
    let mut client = front.client_of("/v1/responses", "t").await;
    client.create("[hang]").await;
    let id = client.until("response.created").await["response"]["id"].clone();
    let resume = json!({ "type": "ringspan.resume", "response_id": id });
    client.send(Message::text(resume.to_string())).await;
    let error = client.until("error").await;
    assert_eq!(
        (&error["error"]["code"], &error["status"]),
        (&json!("invalid_request"), &json!(400))
    );
    assert_eq!(error["error"]["param"], "type");
    // The turn that runs is still this client's.
    front.last_call();
    front.edge.drain.cut.cancel();
    assert_eq!(client.until("error").await["error"]["response_id"], id);
}

impl Front {
    /// A request of one body over HTTP, sent and not read.
    async fn post(&self, body: &Value) -> TcpStream {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(&post("/v1/responses", CLOSE, body.to_string())).await.unwrap();
        stream
    }
}

#[tokio::test]
async fn any_prompt_cache_key_names_a_session_and_only_a_short_label_of_it_is_kept() {
    let front = Front::start(limits()).await;
    let key = format!("a\0{}", "é".repeat(200_000));
    let create = json!({
        "type": "response.create", "model": "m", "store": false, "input": "x",
        "prompt_cache_key": key,
    });
    let mut client = front.client("/v1/responses").await;
    client.send(Message::text(create.to_string())).await;
    client.until("response.completed").await;
    let mut stream = front.post(&create).await;
    let mut answer = String::new();
    soon("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let sessions = front.node.registry.list();
    assert_eq!(sessions.len(), 1, "the same key");
    let label = &sessions[0].key_label;
    assert!(label.len() <= 512 && label.starts_with("a?é"), "{} bytes", label.len());
}

#[tokio::test]
async fn a_client_of_a_stream_that_does_not_read_is_gone_after_the_write_timeout() {
    let write_timeout = Duration::from_millis(500);
    let front = Front::start(Limits { write_timeout, ..limits() }).await;
    let body = json!({
        "model": "m", "store": false, "stream": true,
        "input": "[deltas=2000] [bytes=16384]",
    });
    let stream = front.post(&body).await;
    eventually("a session is open", async || !front.node.registry.list().is_empty()).await;
    let session = front.node.registry.list().pop().unwrap();
    eventually("it is attached", async || session.stats.clients.lock().len() == 1).await;
    eventually("it is let go of", async || session.stats.clients.lock().is_empty()).await;
    drop(stream);
}
