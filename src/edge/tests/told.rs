//! What is counted of what clients are told.

use super::*;

impl Front {
    /// How often clients were told of this code, whoever is to blame.
    fn told(&self, code: &str) -> u64 {
        let text = self.node.metrics.encode();
        let of = format!("ringspan_errors_total{{code=\"{code}\",");
        let lines = text.lines().filter(|line| line.starts_with(&of));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// The answer to a turn over HTTP, of the session `thread`.
    async fn turn(&self, thread: &str, body: &Value) -> Answer {
        let headers = format!("{CLOSE}thread-id: {thread}\r\n");
        self.answer(&post("/v1/responses", &headers, body.to_string())).await
    }
}

fn body(input: &str, stream: bool) -> Value {
    json!({ "model": "m", "store": false, "stream": stream, "input": input })
}

#[tokio::test]
async fn a_session_that_refuses_a_request_is_counted_over_websocket_and_http_alike() {
    let front = Front::start(Limits { turn_queue: 1, ..limits() }).await;
    let mut client = front.client_of("/v1/responses", "t").await;
    for event in
        ["{", r#"{"type":"response.unheard_of"}"#, r#"{"type":"response.create","stream_id":7}"#]
    {
        client.send(Message::text(event)).await;
        client.until("error").await;
    }
    assert_eq!((front.told("invalid_request"), front.told("invalid_stream_id")), (2, 1));
    client.create("[hang]").await;
    client.until("response.created").await;
    client.create("waits").await;
    client.create("is too much").await;
    assert_eq!(client.until("error").await["error"]["code"], "queue_full");
    assert_eq!(front.told("queue_full"), 1);
    for stream in [true, false] {
        assert_eq!(front.turn("t", &body("too much", stream)).await.status, 429);
    }
    assert_eq!(front.told("queue_full"), 3);
}

#[tokio::test]
async fn an_outcome_that_nobody_knows_is_counted_in_every_way_that_it_is_told() {
    let front = Front::start(limits()).await;
    // The upstream hangs up in the middle of the turn.
    let cut = "[deltas=20][delay=2ms][close=0][close_after=5] long";
    let mut client = front.client_of("/v1/responses", "t").await;
    client.create(cut).await;
    assert_eq!(client.until("error").await["error"]["code"], "outcome_unknown");
    assert_eq!(front.told("outcome_unknown"), 1);
    let streamed = front.turn("u", &body(cut, true)).await;
    assert!(streamed.body.contains("outcome_unknown"), "{}", streamed.body);
    assert_eq!(front.told("outcome_unknown"), 2);
    assert_eq!(front.turn("v", &body(cut, false)).await.status, 502);
    assert_eq!(front.told("outcome_unknown"), 3);
    // The edge itself stops.
    client.create("[hang]").await;
    client.until("response.created").await;
    front.last_call();
    front.edge.drain.cut.cancel();
    client.until("error").await;
    assert_eq!(front.told("outcome_unknown"), 4);
}

#[tokio::test]
async fn requests_that_go_no_further_than_the_edge_are_counted_once() {
    let front = Front::start(limits()).await;
    for (request, code) in [
        ("GET /rooms/a", "invalid_request"),
        ("DELETE /v1/responses", "invalid_request"),
        ("GET /v1/../x", "invalid_request"),
        ("GET /nowhere", "not_found"),
    ] {
        let before = front.told(code);
        let head = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = front.answer(head.as_bytes()).await;
        assert_eq!(answer.json()["error"]["code"], code);
        assert_eq!(front.told(code), before + 1, "{request}");
    }
    let front = Front::start(Limits { max_clients: 1, ..limits() }).await;
    let _first = front.client("/rooms/a").await;
    assert_eq!(front.answer(b"").await.status, 503);
    let ours = "ringspan_errors_total{code=\"session_unavailable\",blame=\"us\"}";
    assert_eq!(front.node.counted(ours), Some(1));
}

#[tokio::test]
async fn an_upstreams_own_words_are_no_error_of_ours_and_a_clients_credential_no_failure_of_its() {
    let gate = Gate::open(SampleAuth::Bearer(crate::config::Secret::new("another"))).await;
    let front = Front::before(gate, limits()).await;
    assert_eq!(front.turn("t", &body("x", true)).await.status, 401);
    let mut client = front.client("/v1/responses").await;
    client.create("x").await;
    assert_eq!(client.until("error").await["status"], 401);
    assert_eq!(front.told("upstream_unavailable") + front.told("not_authorized"), 0);
    let dials = |outcome| {
        let series = "ringspan_upstream_dials_total{upstream=\"responses\",outcome=";
        front.node.counted(&format!("{series}\"{outcome}\"}}")).unwrap_or(0)
    };
    assert_eq!((dials("refused"), dials("failed")), (2, 0));
}
