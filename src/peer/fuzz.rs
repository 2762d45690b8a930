//! What another node, or whoever has its credential, may send.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use prost::Message as _;

use super::{
    PROTOCOL, convert,
    heirs::conversation_in,
    incoming::{MAX_DESCRIBED, asked_for},
    mux::{Counted, Mux, Outgoing},
    outgoing::Identity,
    proto::{self, frame::Body},
    testify,
};
use crate::{
    config::{self, Route},
    ids::Incarnation,
    link::Link,
    ownership::outage::Bounds,
};

/// Largest message, in bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// Credit that the other side grants.
const CREDIT: u32 = 1 << 16;

/// A stream of frames, each with its length before it, at a node that asked for channel 1 and
/// answered 2.
pub fn stream(data: &[u8]) {
    let routes = config::fuzz::routes();
    let mux = Mux::new(MAX_MESSAGE);
    let mut outgoing = Outgoing(Arc::clone(&mux));
    let (near, _asking) = Link::pair(1 << 16);
    let asked = mux.ask(near, proto::Attach::default(), Counted::default());
    let (near, mut far) = Link::pair(1 << 16);
    mux.accept(2, near, proto::Attached::default(), CREDIT);
    let mut cx = Context::from_waker(Waker::noop());
    let mut input = data;
    while let Ok(frame) = proto::Frame::decode_length_delimited(&mut input) {
        let late = frame.channel % 2 == 0;
        if let Some(Body::Attach(attach)) = frame.body {
            attached(attach, routes);
            continue;
        }
        if mux.on_frame(frame, CREDIT).is_err() {
            mux.close();
        }
        // Now and then both ends are read.
        if late {
            while far.rx.poll_recv(&mut cx).is_ready_some() {}
            while std::pin::Pin::new(&mut outgoing).poll_next(&mut cx).is_ready_some() {}
        }
        if input.is_empty() {
            break;
        }
    }
    drop(asked);
}

/// Messages of the calls beside the stream, and those of the stream that say something of a
/// session: which, by the first byte.
pub fn calls(data: &[u8]) {
    let Some((&call, input)) = data.split_first() else { return };
    let routes = config::fuzz::routes();
    match call % 12 {
        0 => read(input, |request| prepare(request, routes)),
        1 => read(input, |attach| attached(attach, routes)),
        2 => read(input, |fault| drop(convert::fault_in(fault))),
        3 => read(input, |attached: proto::Attached| {
            convert::resume_in(attached.resume(), attached.floor_seq);
            printable(&convert::headers_in(attached.headers));
        }),
        4 => read(input, |owner| drop(convert::owner_in(owner))),
        5 => read(input, |close| {
            assert!(convert::close_in(close).is_none_or(|frame| frame.code != 0));
        }),
        6 => read(input, |request: proto::ForgetRequest| {
            request.sessions.iter().for_each(session);
        }),
        7 => read(input, |request: proto::ActivateRequest| session(&request.session)),
        8 => read(input, |request: proto::DescribeRequest| {
            assert!(asked_for(&request).count() <= request.sessions.len().min(MAX_DESCRIBED));
        }),
        9 => read(input, |answer: proto::DescribeResponse| {
            answer.sessions.iter().for_each(|report| session(&report.session));
        }),
        10 => read(input, |request| testify(&request)),
        _ => read(input, |hello| greet(&hello)),
    }
}

fn read<M: prost::Message + Default>(input: &[u8], judge: impl FnOnce(M)) {
    if let Ok(message) = M::decode(input) {
        judge(message);
    }
}

fn prepare(request: proto::PrepareRequest, routes: &[Arc<Route>]) {
    for conversation in request.conversations {
        let Some(prepared) = conversation_in(conversation, None, routes) else { continue };
        printable(&prepared.warm.upgrade.headers);
        assert!(prepared.warm.shunned.is_none_or(|name| name.len() <= config::MAX_NAME));
    }
}

/// Sixteen bytes are an id, whatever they are, and nothing else is.
fn session(id: &Bytes) {
    assert_eq!(convert::session_in(id).is_some(), id.len() == 16);
}

/// Who is served.
fn identity() -> Identity {
    Identity {
        cluster_id: "ring".into(),
        incarnation: Incarnation(1),
        node_id: "node".into(),
        build: "0".into(),
        max_message_bytes: MAX_MESSAGE,
        link_window_bytes: MAX_MESSAGE,
    }
}

/// Only who means this node, and counts in its times, is heard.
fn testify(request: &proto::TestifyRequest) {
    let bounds = Bounds::new(Duration::from_secs(15));
    if testify::check(&identity(), bounds, request).is_ok() {
        assert_eq!((request.target_incarnation, &*request.cluster_id), (1, "ring"));
        assert_eq!(request.lease_ttl_millis, 15_000);
    }
}

/// Only who means this node, and speaks as it does, is let in.
fn greet(hello: &proto::Hello) {
    if let Ok(protocol) = identity().check(hello) {
        assert_eq!((hello.target_incarnation, &*hello.cluster_id), (1, "ring"));
        assert!((hello.protocol_min..=hello.protocol_max).contains(&protocol));
        assert!(PROTOCOL.contains(&protocol));
    }
}

fn attached(attach: proto::Attach, routes: &[Arc<Route>]) {
    let Some(attach) = convert::attach_in(attach, routes) else { return };
    printable(&attach.upgrade.headers);
    // What was understood is said again in the same words, unknown fields left out.
    let again = convert::attach_in(convert::attach_out(&attach, 1), routes);
    assert!(again.is_some_and(|again| {
        again.session == attach.session
            && again.principal == attach.principal
            && again.upgrade.headers == attach.upgrade.headers
            && again.turn_key == attach.turn_key
            && again.reads == attach.reads
    }));
}

/// No peer can make us emit a line end.
fn printable(headers: &http::HeaderMap) {
    for value in headers.values() {
        assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
    }
}

trait IsReadySome {
    fn is_ready_some(&self) -> bool;
}

impl<T> IsReadySome for Poll<Option<T>> {
    fn is_ready_some(&self) -> bool {
        matches!(self, Poll::Ready(Some(_)))
    }
}
