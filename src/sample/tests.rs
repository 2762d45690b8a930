use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest as _},
};

use super::{
    SampleAuth, SampleOptions,
    conversation::Conversation,
    directives::{Cut, Directives, Misbehaviour},
    reply::cut,
    serve, tools,
};
use crate::config::Secret;

/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(10);

async fn start(options: SampleOptions) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, options, std::future::pending()));
    address
}

struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    async fn open(address: SocketAddr, path: &str) -> Self {
        Self(connect_async(format!("ws://{address}{path}")).await.unwrap().0)
    }

    async fn send(&mut self, event: Value) {
        self.0.send(Message::text(event.to_string())).await.unwrap();
    }

    /// A `store:false` create, with more fields.
    async fn create(&mut self, text: &str, more: Value) {
        let mut event = json!({
            "type": "response.create", "model": "m", "store": false, "input": text,
        });
        let fields = event.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        self.send(event).await;
    }

    async fn message(&mut self) -> Option<tungstenite::Result<Message>> {
        tokio::time::timeout(PATIENCE, self.0.next()).await.expect("nothing came")
    }

    async fn event(&mut self) -> Value {
        let message = self.message().await.unwrap().unwrap();
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    }

    /// The next event of this type, passing over others.
    async fn until(&mut self, kind: &str) -> Value {
        loop {
            let event = self.event().await;
            if event["type"] == kind {
                return event;
            }
            assert_ne!(event["type"], "error", "{event}");
        }
    }

    /// Creates and waits for the completed response: its id and text.
    async fn turn(&mut self, text: &str, more: Value) -> (String, String) {
        self.create(text, more).await;
        let response = self.until("response.completed").await["response"].take();
        let id = response["id"].as_str().unwrap().to_owned();
        (id, response["output"][0]["content"][0]["text"].as_str().unwrap_or_default().to_owned())
    }

    /// The code that the server closes with.
    async fn closed(&mut self) -> Option<u16> {
        loop {
            match self.message().await {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }
}

/// One `POST`, or `GET` without a body: status and body.
async fn http(address: SocketAddr, path: &str, body: Option<Value>) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (method, body) = match body {
        Some(body) => ("POST", body.to_string()),
        None => ("GET", String::new()),
    };
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().ok();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn echo_greets_then_returns_every_message_and_the_close() {
    let address = start(SampleOptions::default()).await;
    let mut request = format!("ws://{address}/echo?greet=2").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "chat, other".parse().unwrap());
    let (socket, response) = connect_async(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    let mut client = Client(socket);
    for n in 0..2 {
        let greeting = client.message().await.unwrap().unwrap();
        assert_eq!(greeting, Message::text(format!("greeting {n}")));
    }
    let large = Message::binary(vec![7; 3 << 20]);
    for message in [Message::text("text"), large] {
        client.0.send(message.clone()).await.unwrap();
        assert_eq!(client.message().await.unwrap().unwrap(), message);
    }
    client.0.send(Message::Ping("p".into())).await.unwrap();
    assert_eq!(client.message().await.unwrap().unwrap(), Message::Pong("p".into()));
    let frame = tungstenite::protocol::CloseFrame { code: 4001.into(), reason: "bye".into() };
    client.0.close(Some(frame)).await.unwrap();
    assert_eq!(client.closed().await, Some(4001));
}

#[tokio::test]
async fn stream_numbers_its_frames_then_echoes() {
    let address = start(SampleOptions::default()).await;
    for path in ["/stream?frames=700&bytes=100", "/stream?frames=5&bytes=100&delay_ms=1"] {
        let mut client = Client::open(address, path).await;
        let frames = if path.contains("delay") { 5 } else { 700 };
        for n in 0..frames {
            let message = client.message().await.unwrap().unwrap();
            let text = message.to_text().unwrap();
            assert_eq!(text.len(), 100);
            assert_eq!(text.trim_end_matches('.'), n.to_string());
        }
        client.0.send(Message::text("after")).await.unwrap();
        assert_eq!(client.message().await.unwrap().unwrap(), Message::text("after"));
    }
}

#[tokio::test]
async fn an_unstored_response_is_known_on_its_own_connection_alone() {
    let address = start(SampleOptions::default()).await;
    let mut one = Client::open(address, "/v1/responses").await;
    let (first, text) = one.turn("a", json!({})).await;
    assert!(text.starts_with("turn 1 of conversation "), "{text}");
    let (_, text) = one.turn("b", json!({ "previous_response_id": first })).await;
    assert!(text.starts_with("turn 2 of conversation "), "{text}");

    let mut two = Client::open(address, "/backend-api/codex/responses").await;
    two.create("c", json!({ "previous_response_id": first })).await;
    let message = format!("Previous response with id '{first}' not found.");
    let error = json!({ "type": "error", "status": 400, "error": {
        "type": "invalid_request_error", "code": "previous_response_not_found",
        "message": message, "param": "previous_response_id",
    }});
    assert_eq!(two.event().await, error);
    let post = json!({ "input": "c", "previous_response_id": first });
    assert_eq!(http(address, "/v1/responses", Some(post)).await.0, 400);

    let (stored, _) = two.turn("d", json!({ "store": true })).await;
    let post = json!({ "input": "e", "previous_response_id": stored, "stream": true });
    let (status, body) = http(address, "/v1/responses", Some(post)).await;
    assert_eq!(status, 200);
    assert!(body.contains("turn 2 of conversation"), "{body}");
}

#[tokio::test]
async fn a_lane_forgets_all_but_its_latest_response_and_that_after_an_error() {
    let address = start(SampleOptions::default()).await;
    let mut client = Client::open(address, "/v1/responses").await;
    let (first, _) = client.turn("a", json!({ "generate": false })).await;
    let (second, text) = client.turn("b", json!({ "previous_response_id": first })).await;
    assert!(text.starts_with("turn 2 "), "{text}");
    client.create("c", json!({ "previous_response_id": first })).await;
    assert_eq!(client.event().await["error"]["code"], "previous_response_not_found");
    client.create("[fail=500]", json!({ "previous_response_id": second })).await;
    assert_eq!(client.event().await["status"], 500);
    client.create("d", json!({ "previous_response_id": second })).await;
    assert_eq!(client.event().await["error"]["code"], "previous_response_not_found");
}

#[tokio::test]
async fn lanes_run_at_the_same_time_and_each_in_order() {
    let address = start(SampleOptions::default()).await;
    let mut client = Client::open(address, "/v1/responses").await;
    client.create("[hang]", json!({ "stream_id": "slow" })).await;
    client.create("next", json!({ "stream_id": "slow" })).await;
    let hanging = client.until("response.created").await;
    assert_eq!(hanging["stream_id"], "slow");
    client.create("fast", json!({ "stream_id": "fast" })).await;
    let completed = client.until("response.completed").await;
    assert_eq!(completed["stream_id"], "fast");
    let interrupt = json!({
        "type": "response.interrupt", "response_id": hanging["response"]["id"],
        "mode": "discard_partial_items",
    });
    client.send(interrupt).await;
    let ended = client.until("response.incomplete").await;
    assert_eq!(ended["response"]["incomplete_details"]["reason"], "interrupted");
    assert_eq!(client.until("response.completed").await["stream_id"], "slow");
}

#[tokio::test]
async fn sixteen_responses_run_and_thirty_two_lanes_exist() {
    let address = start(SampleOptions::default()).await;
    let mut client = Client::open(address, "/v1/responses").await;
    let mut running = Vec::new();
    for n in 0..32 {
        client.create("[hang]", json!({ "stream_id": format!("lane-{n}") })).await;
        if n < 16 {
            running.push(client.until("response.created").await["response"]["id"].take());
        }
    }
    client.create("x", json!({ "stream_id": "one-too-many" })).await;
    client.create("x", json!({ "stream_id": "not valid" })).await;
    for code in ["websocket_stream_limit_reached", "invalid_stream_id"] {
        let error = loop {
            let event = client.event().await;
            assert_ne!(event["type"], "response.created", "a seventeenth response runs");
            if event["type"] == "error" {
                break event;
            }
        };
        assert_eq!(error["error"]["code"], code);
    }
    client.send(json!({ "type": "response.interrupt", "response_id": running[0] })).await;
    assert_eq!(client.until("response.created").await["stream_id"], "lane-16");
}

#[tokio::test]
async fn steering_text_is_answered_by_a_successor() {
    let address = start(SampleOptions::default()).await;
    let mut client = Client::open(address, "/v1/responses").await;
    client.create("[deltas=1000] [delay=5ms]", json!({})).await;
    let id = client.until("response.created").await["response"]["id"].take();
    client.until("response.output_text.delta").await;
    let steer = json!({
        "type": "response.steer", "previous_response_id": id, "input": "other way",
    });
    client.send(steer.clone()).await;
    let accepted = client.until("response.steer.accepted").await;
    assert_eq!(accepted["steer"]["previous_response_id"], id);
    let ended = client.until("response.incomplete").await;
    assert_eq!(ended["response"]["incomplete_details"]["reason"], "steered");
    let successor = client.until("response.completed").await;
    assert_eq!(successor["response"]["previous_response_id"], id);
    assert!(successor.to_string().contains(r#"you said \"other way\""#), "{successor}");
    client.send(steer).await;
    let failed = client.until("response.steer.failed").await;
    assert_eq!(failed["error"]["code"], "response_not_found");
}

#[tokio::test]
async fn directives_misbehave_as_they_say() {
    let address = start(SampleOptions::default()).await;
    let mut client = Client::open(address, "/v1/responses").await;
    client.create("[error=server_is_overloaded]", json!({})).await;
    let failed = client.until("response.failed").await;
    assert_eq!(failed["response"]["error"]["code"], "server_is_overloaded");

    client.create("[fail=429] [once]", json!({})).await;
    assert_eq!(client.event().await["status"], 429);
    client.turn("[fail=429] [once]", json!({})).await;

    client.create("[lie]", json!({})).await;
    let mut terminals = Vec::new();
    for _ in 0..3 {
        terminals.push(client.until("response.completed").await["response"]["id"].take());
    }
    assert_ne!(terminals[0], terminals[1], "a foreign one first");
    assert_eq!(terminals[1], terminals[2], "then its own, twice");

    client.create("[close=1011] [close_after=1] [bytes=5]", json!({})).await;
    client.until("response.output_text.delta").await;
    assert_eq!(client.closed().await, Some(1011));
    let post = json!({ "input": "[close=1011]", "stream": true });
    let (_, body) = http(address, "/v1/responses", Some(post)).await;
    assert!(!body.contains("response.completed"), "{body}");
}

#[tokio::test]
async fn what_is_not_an_event_is_refused_and_the_connection_lives() {
    let address = start(SampleOptions::default()).await;
    let mut client = Client::open(address, "/v1/responses").await;
    client.0.send(Message::text("{")).await.unwrap();
    client.send(json!({ "type": "response.append" })).await;
    client.0.send(Message::binary(vec![1])).await.unwrap();
    for code in ["invalid_json", "unknown_event_type", "invalid_request"] {
        let error = client.event().await;
        assert_eq!((&error["status"], &error["error"]["code"]), (&json!(400), &json!(code)));
    }
    client.turn("still here", json!({})).await;
}

#[tokio::test]
async fn a_connection_ends_at_its_age_once_it_is_idle() {
    let max_connection_age = Some(Duration::from_millis(20));
    let address = start(SampleOptions { max_connection_age, ..SampleOptions::default() }).await;
    let mut client = Client::open(address, "/v1/responses").await;
    client.turn("[deltas=5] [delay=20ms]", json!({})).await;
    let error = client.event().await;
    assert_eq!(error["error"]["code"], "websocket_connection_limit_reached");
    assert_eq!(client.closed().await, Some(1001));
}

#[tokio::test]
async fn a_connection_that_is_cut_at_its_age_takes_its_turns_along() {
    let (max_connection_age, cut_at_age) = (Some(Duration::from_millis(500)), true);
    let options = SampleOptions { max_connection_age, cut_at_age, ..SampleOptions::default() };
    let address = start(options).await;
    let mut client = Client::open(address, "/v1/responses").await;
    client.create("[hang]", json!({})).await;
    let error = client.until("error").await;
    assert_eq!(error["error"]["code"], "websocket_connection_limit_reached");
    assert_eq!(client.closed().await, Some(1001));
    let (_, body) = http(address, "/_sample/connections", None).await;
    let history: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(history["connections"][0]["creates"][0]["outcome"], "aged");
}

#[tokio::test]
async fn a_connection_can_be_cut_before_the_first_event_of_a_turn() {
    let address = start(SampleOptions::default()).await;
    for (how, code) in [("[close=1011]", Some(1011)), ("[close=0]", None), ("[reset]", None)] {
        let mut client = Client::open(address, "/v1/responses").await;
        client.create(&format!("{how} [close_first]"), json!({})).await;
        assert_eq!(client.closed().await, code, "{how}");
    }
}

#[tokio::test]
async fn a_fixed_bearer_is_asked_for_everywhere_but_in_the_history() {
    let auth = SampleAuth::Bearer(Secret::new("right"));
    let address = start(SampleOptions { auth, ..SampleOptions::default() }).await;
    assert_eq!(http(address, "/v1/models", None).await.0, 401);
    assert_eq!(http(address, "/_sample/health", None).await.0, 200);
    for (token, admitted) in [("wrong", false), ("right", true)] {
        let mut request = format!("ws://{address}/v1/responses").into_client_request().unwrap();
        let value = format!("Bearer {token}").parse().unwrap();
        request.headers_mut().insert("authorization", value);
        assert_eq!(connect_async(request).await.is_ok(), admitted, "{token}");
    }
}

#[tokio::test]
async fn the_history_tells_connections_and_creates() {
    let address = start(SampleOptions::default()).await;
    let mut request = format!("ws://{address}/v1/responses").into_client_request().unwrap();
    request.headers_mut().insert("thread-id", "t-1".parse().unwrap());
    let mut client = Client(connect_async(request).await.unwrap().0);
    let (id, _) = client.turn("a", json!({})).await;
    let (_, body) = http(address, "/_sample/connections?open=true", None).await;
    let history: Value = serde_json::from_str(&body).unwrap();
    let connection = &history["connections"][0];
    assert_eq!(connection["thread_id"], "t-1");
    let create = &connection["creates"][0];
    assert_eq!((&create["response_id"], &create["outcome"]), (&json!(id), &json!("completed")));
    assert_eq!(create["users"], 1);
}

#[test]
fn the_digest_of_a_chain_is_that_of_the_full_history() {
    let call = json!({ "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}" });
    let output = json!({ "type": "function_call_output", "call_id": "c", "output": "out\nmore" });
    let user = json!({ "role": "user", "content": [{ "type": "input_text", "text": "hi" }] });
    let mut chained = Conversation::default();
    chained.absorb(&json!("hi")).unwrap();
    chained.called("c".to_owned());
    assert!(chained.check_calls_answered().is_err());
    chained.absorb(&json!([output])).unwrap();
    chained.check_calls_answered().unwrap();
    let mut full = Conversation::default();
    full.absorb(&json!([user, call, output])).unwrap();
    assert_eq!(chained.digest(), full.digest());
    assert_eq!(full.tool_line.as_deref(), Some("out"));
    assert!(Conversation::default().absorb(&json!([output])).is_err(), "no call for it");
}

#[test]
fn directives_are_found_in_a_text_and_the_rest_is_text() {
    let text = "do [deltas=20] it [delay=5ms] [what] [close=1011][close_after=3] [fail=99]";
    let found = Directives::parse(text);
    assert_eq!(found.pace.deltas, Some(20));
    assert_eq!(found.pace.delay, Duration::from_millis(5));
    assert_eq!(
        found.misbehaviour,
        Some(Misbehaviour::Cut { how: Cut::Close(1011), after: Some(3) })
    );
    assert_eq!(Directives::parse("[deltas] [ ] ]["), Directives::default());
}

#[test]
fn a_text_is_cut_into_as_many_deltas_of_the_size_asked_for() {
    let pieces = cut("short", Some(20), Some(40));
    assert_eq!(pieces.len(), 20);
    assert!(pieces.iter().all(|piece| piece.len() == 40));
    assert_eq!(cut("twelve bytes", Some(5), None).len(), 5);
    assert_eq!(cut("ééé", None, Some(1)), ["é", "é", "é"]);
    assert_eq!(cut("a long text in few", Some(2), Some(1)).concat(), "a long text in few");
}

#[test]
fn a_command_tool_is_found_and_its_arguments_fit_the_schema() {
    let wanted = Directives::parse("[tool=shell:echo hi]").tool.unwrap();
    let exec = json!([
        { "type": "web_search" },
        { "type": "function", "name": "update_plan", "parameters": {} },
        { "type": "function", "name": "exec_command", "parameters": {
            "properties": { "cmd": { "type": "string" } }, "required": ["cmd"] } },
    ]);
    let call = tools::choose(&wanted, &exec, None).unwrap();
    assert_eq!(
        (call.name.as_str(), call.payload.as_str()),
        ("exec_command", r#"{"cmd":"echo hi"}"#)
    );
    let shell = json!([{ "type": "function", "name": "shell", "parameters": {
        "properties": { "command": { "type": "array" }, "n": { "type": "number" } },
        "required": ["command", "n"] } }]);
    let arguments = tools::choose(&wanted, &shell, None).unwrap().payload;
    let arguments: Value = serde_json::from_str(&arguments).unwrap();
    assert_eq!(arguments, json!({ "command": ["bash", "-lc", "echo hi"], "n": 1 }));
    assert_eq!(tools::choose(&wanted, &Value::Null, None), None);
}
