//! One turn as an HTTP request sees it: its events, and how it can fail.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use axum::response::Response;
use http::{HeaderValue, header::RETRY_AFTER};
use serde_json::Value;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{UNAUTHORIZED, heard::Heard, reply, told};
use crate::{
    error::{Code, Error},
    link::{Frame, Link},
    session::event::{ServerEvent, Stage},
    upstream::told_status,
    wire::{Batch, Message},
};

/// The events of one turn, one after another.
pub(super) struct Events {
    link: Link,
    over: bool,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    shut_out: Pin<Box<dyn Future<Output = ()> + Send>>,
    heard: Heard,
}

/// One step of a turn.
pub(super) enum Step {
    Events(Batch),
    Failed(Error),
    /// The owner, or the way to it, is gone; the request may have been taken.
    Lost,
    /// This node stops, or the client's credential ended; the request may have been taken.
    Cut(Error),
    /// The session has a new owner, and the old one had not taken the request.
    Moved,
    /// The turn has ended.
    End,
}

impl Events {
    /// The events of a turn that is asked for on this link; `lane` if it has one. They end when
    /// this node is `stopped`, and when the client may hear no more (`shut_out`).
    pub(super) fn of(
        link: Link,
        lane: Option<String>,
        stopped: CancellationToken,
        shut_out: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let (stopped, shut_out) = (Box::pin(stopped.cancelled_owned()), Box::pin(shut_out));
        Self { link, over: false, stopped, shut_out, heard: Heard::nothing(lane) }
    }

    /// What is said of a turn that breaks off after events of it were passed on: how far its
    /// client has heard.
    pub(super) fn unknown(&self, error: &Error) -> Message {
        self.heard.unknown(error)
    }

    /// Whether nothing follows.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// The same as an HTTP response, where nothing was passed on yet.
    pub(super) fn broken_off(&self, error: &Error) -> Response {
        error_response(&self.unknown(error)).unwrap_or_else(|| reply::error(error))
    }

    /// As [`Events::next`], without what the upstream says of its connection before the response:
    /// that connection is past.
    pub(super) async fn next_of_response(&mut self) -> Step {
        loop {
            match self.next().await {
                Step::Events(batch) if opening(&batch).is_none() => {}
                step => return step,
            }
        }
    }

    /// Waits for the next step. Cancel-safe.
    pub(super) async fn next(&mut self) -> Step {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if self.over {
            return Poll::Ready(Step::End);
        }
        // Before the link, which always has something for a client that reads slowly.
        if self.shut_out.as_mut().poll(cx).is_ready() {
            self.over = true;
            return Poll::Ready(Step::Cut(unauthorized()));
        }
        loop {
            let step = match self.link.rx.poll_recv(cx) {
                Poll::Ready(Some(Frame::Messages { batch, ended, .. })) => {
                    self.over = ended > 0;
                    self.heard.note(&batch);
                    return Poll::Ready(Step::Events(batch));
                }
                Poll::Ready(Some(Frame::Ping(_) | Frame::Pong(_))) => continue,
                Poll::Ready(Some(Frame::Failed(error))) => Step::Failed(error),
                Poll::Ready(Some(Frame::Moved)) => Step::Moved,
                nothing => match self.stopped.as_mut().poll(cx) {
                    Poll::Ready(()) => Step::Cut(cut()),
                    Poll::Pending if nothing.is_pending() => return Poll::Pending,
                    Poll::Pending => Step::Lost,
                },
            };
            self.over = true;
            return Poll::Ready(step);
        }
    }
}

/// What a batch says first of a turn; None if it speaks of the connection only.
pub(super) fn opening(batch: &Batch) -> Option<Stage> {
    let mut stages = batch
        .messages()
        .map(|message| ServerEvent::parse(&message).map_or(Stage::Running, |event| event.stage));
    stages.find(|stage| *stage != Stage::Connection)
}

/// What is said of a turn whose owner is gone.
pub(crate) fn lost() -> Error {
    let text = "the node that ran this turn was lost; whether it finished is unknown";
    Error::new(Code::OutcomeUnknown, text)
}

/// What is said of a turn that runs longer than this node's drain.
fn cut() -> Error {
    let text = "this node stopped before the turn ended; whether it finished is unknown";
    Error::new(Code::OutcomeUnknown, text)
}

/// What is said of a turn that runs on for too long after its client's credential.
fn unauthorized() -> Error {
    let text = format!("{UNAUTHORIZED} before the turn ended; whether it finished is unknown");
    Error::new(Code::OutcomeUnknown, text)
}

/// What is said of a request that was given to no owner.
pub(super) fn leaving() -> Error {
    Error::new(Code::NodeDraining, "this node is leaving; retry elsewhere")
}

pub(super) fn moving() -> Error {
    Error::new(Code::OwnerMoving, "the session keeps moving; retry")
}

/// The response to a turn that failed before anything else was said.
pub(super) fn failure(first: &Step) -> Option<Response> {
    match first {
        Step::Failed(error) | Step::Cut(error) => Some(reply::error(error)),
        Step::Lost => Some(reply::error(&lost())),
        Step::Moved => Some(reply::error(&moving())),
        Step::End => {
            let text = "the turn ended without a word";
            Some(reply::error(&Error::new(Code::UpstreamUnavailable, text)))
        }
        Step::Events(batch) => batch.messages().next().and_then(|message| error_response(&message)),
    }
}

/// An `error` event as an HTTP response.
pub(super) fn error_response(message: &Message) -> Option<Response> {
    if ServerEvent::parse(message)?.stage != Stage::Error {
        return None;
    }
    let mut event: Value = serde_json::from_slice(&message.payload).ok()?;
    let status = event["status"].as_u64().and_then(|status| u16::try_from(status).ok());
    let error = event.get_mut("error").map(Value::take);
    let body = serde_json::json!({ "error": error }).to_string();
    let mut response = reply::json(told_status(status), body);
    if let Some(code) = told::code(message) {
        response.extensions_mut().insert(told::Told::from(code));
    }
    if let Some(after) = event["headers"]["retry-after"].as_str()
        && let Ok(after) = HeaderValue::from_str(after)
    {
        response.headers_mut().insert(RETRY_AFTER, after);
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use serde_json::{Value, json};
    use tokio::time::{Instant, advance, sleep};

    use super::*;
    use crate::edge::auth::GRACE;

    fn batch(event: &Value) -> Frame {
        let batch = Batch::one(&Message::text(event.to_string()));
        Frame::Messages { batch, first_seq: 0, ended: 0, create: 0 }
    }

    /// A turn of which these events are there.
    fn turn(said: &[Value]) -> (Events, Link) {
        let (here, mut there) = Link::pair(1 << 16);
        for event in said {
            there.tx.send(batch(event));
        }
        (Events::of(here, None, CancellationToken::new(), pending()), there)
    }

    /// The events of an `outcome_unknown` that says how far a turn was heard.
    fn heard(events: &Events) -> Value {
        serde_json::from_slice(&events.unknown(&lost()).payload).unwrap()
    }

    #[tokio::test]
    async fn a_turn_in_a_lane_is_unknown_with_the_last_number_of_its_lane() {
        for asked in [Some("a".to_owned()), None] {
            let (here, mut there) = Link::pair(1 << 16);
            let response = json!({ "id": "r1" });
            there.tx.send(batch(&json!({ "type": "response.created", "stream_id": "a",
                                         "sequence_number": 0, "response": response })));
            there.tx.send(batch(&json!({ "type": "response.output_text.delta", "stream_id": "a",
                                         "sequence_number": 7 })));
            let mut events = Events::of(here, asked, CancellationToken::new(), pending());
            for _ in 0..2 {
                assert!(matches!(events.next().await, Step::Events(_)));
            }
            let said = heard(&events);
            assert_eq!(
                (&said["stream_id"], &said["error"]["response_id"]),
                (&"a".into(), &"r1".into())
            );
            assert_eq!(said["error"]["last_sequence_number"], 7);
        }
    }

    #[tokio::test]
    async fn a_turn_that_was_steered_is_unknown_by_the_response_that_ran_last() {
        let successor = json!({ "type": "response.created", "sequence_number": 5,
                                "response": { "id": "r2" } });
        let (mut events, _there) = turn(&[created(), successor]);
        for _ in 0..2 {
            assert!(matches!(events.next().await, Step::Events(_)));
        }
        let error = &heard(&events)["error"];
        assert_eq!(
            (&error["response_id"], &error["last_sequence_number"]),
            (&"r2".into(), &5.into())
        );
    }

    #[tokio::test]
    async fn what_ends_at_this_nodes_own_cut_is_no_loss_of_an_owner() {
        for is_cut in [false, true] {
            let cut = CancellationToken::new();
            let (here, there) = Link::pair(1 << 16);
            let mut events = Events::of(here, None, cut.clone(), pending());
            if is_cut {
                cut.cancel();
            }
            drop(there);
            assert_eq!(matches!(events.next().await, Step::Cut(_)), is_cut);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_more_slowly_than_its_turn_speaks_is_shut_out_all_the_same() {
        let (here, mut there) = Link::pair(1 << 16);
        let revoked = CancellationToken::new();
        let ended = revoked.clone().cancelled_owned();
        let shut_out = async {
            ended.await;
            sleep(GRACE).await;
        };
        let mut events = Events::of(here, None, CancellationToken::new(), shut_out);
        revoked.cancel();
        let began = Instant::now();
        there.tx.send(batch(&created()));
        let cut = loop {
            there.tx.send(batch(&json!({ "type": "response.output_text.delta" })));
            match events.next().await {
                Step::Events(_) => assert!(began.elapsed() < GRACE, "it still hears"),
                Step::Cut(error) => break error,
                _ => panic!("the turn runs on"),
            }
            advance(Duration::from_secs(1)).await;
        };
        assert!(cut.message.contains(UNAUTHORIZED), "{cut:?}");
        assert!(began.elapsed() >= GRACE, "{:?}", began.elapsed());
        assert!(matches!(events.next().await, Step::End));
    }

    fn created() -> Value {
        json!({ "type": "response.created", "sequence_number": 0, "response": { "id": "r1" } })
    }

    #[tokio::test]
    async fn what_is_said_of_the_connection_before_a_response_is_no_hole_in_it() {
        let limits = json!({ "type": "codex.rate_limits" });
        let (mut events, _there) = turn(&[json!({ "type": "keepalive" }), limits, created()]);
        let Step::Events(batch) = events.next_of_response().await else { panic!() };
        assert_eq!(opening(&batch), Some(Stage::Created));
        let (mut events, there) = turn(&[json!({ "type": "keepalive" })]);
        drop(there);
        assert!(matches!(events.next_of_response().await, Step::Lost));
    }

    #[tokio::test]
    async fn a_turn_that_breaks_off_is_unknown_and_says_how_far_it_was_heard() {
        let keepalive = json!({ "type": "keepalive" });
        let (mut events, _there) = turn(&[keepalive.clone(), created(), keepalive]);
        for _ in 0..3 {
            assert!(matches!(events.next().await, Step::Events(_)));
        }
        let stopped = Error::new(Code::SessionUnavailable, "this node stopped; retry");
        for error in [lost(), moving(), stopped] {
            let said: Value = serde_json::from_slice(&events.unknown(&error).payload).unwrap();
            let (code, error) = (&said["error"]["code"], &said["error"]);
            assert_eq!(code, "outcome_unknown");
            assert_eq!(
                (&error["response_id"], &error["last_sequence_number"]),
                (&"r1".into(), &0.into())
            );
        }
    }
}
