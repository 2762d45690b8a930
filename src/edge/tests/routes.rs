//! Two Responses routes to upstreams that have nothing to do with each other.

use super::*;
use crate::{
    config::Continuity,
    error::{Code, Error},
    session::{Attach, AttachError, tests::node::wish},
    store::{Alias, AliasKind},
};

const A: &str = "/v1/responses";
const B: &str = "/b/responses";

/// A node with the routes [`A`] and [`B`], whose conversations outlive their sessions, and the
/// gate of B's upstream.
async fn two_upstreams() -> (Front, Gate) {
    let [a, b] = [Gate::open(SampleAuth::Open).await, Gate::open(SampleAuth::Open).await];
    let kept =
        |gate: &Gate| Route { continuity: Continuity::Database, ..route(Profile::Responses, gate) };
    let of_b = kept(&b);
    let upstream = Upstream { name: "b".into(), ..Upstream::clone(&of_b.upstream) };
    let of_b = Route { path: B.into(), upstream: Arc::new(upstream), ..of_b };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let routes = [kept(&a), of_b];
    let front = Front::with(listener, a, routes, limits(), Auth::None).await;
    (front, b)
}

fn turn(input: &str, previous: Option<&str>) -> Value {
    json!({ "model": "m", "store": false, "input": input, "previous_response_id": previous })
}

#[tokio::test]
async fn an_upstreams_own_path_leads_past_no_route() {
    let gate = Gate::open(SampleAuth::Open).await;
    let renamed = Route { path: "/responses".into(), ..route(Profile::Responses, &gate) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let routes = [route(Profile::Opaque, &gate), renamed];
    let front = Front::with(listener, gate, routes, limits(), Auth::None).await;
    let (status, refusal) = front.turn_on("/v1/responses", "counted by nobody", None).await;
    assert_eq!((status, &refusal["error"]["code"]), (400, &"invalid_request".into()));
    for upwards in ["/%252e%252e/admin", "/..;/admin"] {
        let (status, refusal) = front.turn_on(upwards, "told to nobody", None).await;
        assert_eq!((status, &refusal["error"]["code"]), (400, &"invalid_request".into()));
    }
    assert_eq!(front.gate.dials(), 0);
    assert_eq!(front.turn_on("/responses", "counted", None).await.0, 200);
}

/// Which of the upstreams of routes with these paths, `first` or `second`, answers to a request.
async fn upstreams_of<'a>(paths: [&str; 2], asked: &[&'a str]) -> Vec<(&'a str, String)> {
    let gate = Gate::open(SampleAuth::Open).await;
    let saying = async |path: &str, name: &str| {
        let length = name.len();
        let head = format!("HTTP/1.1 200 OK\r\n{CLOSE}content-length: {length}\r\n\r\n");
        let upstream = Arc::new(answering(name, head + name).await);
        Route { path: path.into(), upstream, ..route(Profile::Responses, &gate) }
    };
    let routes = [saying(paths[0], "first").await, saying(paths[1], "second").await];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = Front::with(listener, gate, routes, limits(), Auth::None).await;
    let mut answers = Vec::new();
    for asked in asked {
        let request = format!("{asked} HTTP/1.1\r\nhost: x\r\n{CLOSE}content-length: 0\r\n\r\n");
        answers.push((*asked, front.answer(request.as_bytes()).await.body));
    }
    answers
}

#[tokio::test]
async fn what_is_asked_of_a_stored_response_goes_to_the_upstream_of_its_route() {
    let all = async |paths, told: &str, asked: &[&str]| {
        for (asked, answer) in upstreams_of(paths, asked).await {
            assert_eq!(answer, told, "{asked} with routes {paths:?}");
        }
    };
    let side_by_side = ["/v1/responses", "/v1/eu-responses"];
    let of_first = [
        "GET /v1/responses/r",
        "GET /v1/responses/r?stream=true",
        "DELETE /v1/responses/r",
        "POST /v1/responses/r/cancel",
        "GET /v1/responses/r/input_items",
    ];
    all(side_by_side, "first", &of_first).await;
    let of_second = ["DELETE /v1/eu-responses/r", "POST /v1/eu-responses/r/cancel"];
    all(side_by_side, "second", &of_second).await;
    let by_tenant = ["/eu/responses", "/{tenant}/responses"];
    all(by_tenant, "first", &["DELETE /eu/responses/r", "POST /eu/responses/r/cancel"]).await;
    all(by_tenant, "second", &["DELETE /acme/responses/r", "POST /acme/responses/r/cancel"]).await;
    all(["/v1/responses", "/b/responses"], "first", &["GET /v1/models"]).await;
}

impl Front {
    /// Status and document of a turn over HTTP.
    async fn turn_on(&self, path: &str, input: &str, previous: Option<&str>) -> (u16, Value) {
        let body = turn(input, previous).to_string();
        let answer = self.answer(&post(path, CLOSE, body)).await;
        (answer.status, answer.json())
    }

    /// A response of A, once it is found by its id.
    async fn response_of_a(&self) -> String {
        let (status, response) = self.turn_on(A, "a secret of A", None).await;
        assert_eq!(status, 200, "{response}");
        let id = response["id"].as_str().unwrap().to_owned();
        let principal = self.node.registry.list()[0].principal;
        eventually("the id is written", async || {
            let digest = Alias::digest(A, &id);
            let found = self.node.store.alias(principal, AliasKind::Response, digest).await;
            found.unwrap().is_some()
        })
        .await;
        id
    }

    /// Its response is unknown on route B, over HTTP and over a socket, and A hears nothing.
    async fn is_unknown_on_b(&self, id: &str) {
        let (status, answer) = self.turn_on(B, "told to B", Some(id)).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(UNKNOWN)), "{answer}");
        let mut client = self.client(B).await;
        let mut event = turn("told to B", Some(id));
        event["type"] = json!("response.create");
        client.send(Message::text(event.to_string())).await;
        let error = client.until("error").await;
        assert_eq!(error["error"]["code"], UNKNOWN, "{error}");
    }
}

/// What an upstream says of an id that it did not give.
const UNKNOWN: &str = "previous_response_not_found";

#[tokio::test]
async fn a_response_is_unknown_on_a_route_to_another_upstream() {
    let (front, b) = two_upstreams().await;
    let id = front.response_of_a().await;
    front.is_unknown_on_b(&id).await;
    assert_eq!((front.gate.dials(), b.dials()), (1, 2), "B itself was asked, and A was not");

    // The session ends, and its conversation is in the database: nobody else is told of it.
    let session = front.node.registry.list().into_iter().find(|session| session.route.path == A);
    session.unwrap().stop(Error::new(Code::SessionUnavailable, "for the test")).await;
    eventually("it has ended", async || {
        front.node.registry.list().iter().all(|session| session.route.path == B)
    })
    .await;
    front.is_unknown_on_b(&id).await;
    let (status, answer) = front.turn_on(A, "more", Some(&id)).await;
    assert_eq!(status, 200, "A goes on: {answer}");
    assert!(answer["output"].to_string().contains("turn 2"), "{answer}");
}

#[tokio::test]
async fn a_session_takes_no_client_of_another_route() {
    let (front, _b) = two_upstreams().await;
    front.response_of_a().await;
    let session = front.node.registry.list().pop().unwrap();
    let of_b = front.edge.routes.iter().find(|route| route.path == B).unwrap();
    let strayed = Attach { session: session.id, principal: session.principal, ..wish(of_b, "") };
    let refused = front.node.registry.attach(strayed).await;
    let Err(AttachError::Failed(error)) = refused else { panic!("it was let in") };
    assert_eq!(error.code, Code::Forbidden);
}
