//! What another node, or whoever has its credential, may send.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures_util::Stream;
use prost::Message as _;

use super::{
    convert,
    heirs::conversation_in,
    mux::{Counted, Mux, Outgoing},
    proto::{self, frame::Body},
};
use crate::{
    config::{self, Route},
    link::Link,
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

/// Messages of the calls beside the stream.
pub fn calls(data: &[u8]) {
    let Some((&call, input)) = data.split_first() else { return };
    let routes = config::fuzz::routes();
    match call % 6 {
        0 => {
            let Ok(request) = proto::PrepareRequest::decode(input) else { return };
            for conversation in request.conversations {
                let Some(prepared) = conversation_in(conversation, None, routes) else {
                    continue;
                };
                printable(&prepared.warm.upgrade.headers);
            }
        }
        1 => {
            let Ok(attach) = proto::Attach::decode(input) else { return };
            attached(attach, routes);
        }
        2 => {
            let Ok(fault) = proto::Fault::decode(input) else { return };
            drop(convert::fault_in(fault));
        }
        3 => {
            let Ok(attached) = proto::Attached::decode(input) else { return };
            convert::resume_in(attached.resume(), attached.floor_seq);
            printable(&convert::headers_in(attached.headers));
        }
        4 => {
            let Ok(owner) = proto::NotOwner::decode(input) else { return };
            drop(convert::owner_in(owner));
        }
        _ => {
            let Ok(close) = proto::Close::decode(input) else { return };
            if let Some(frame) = convert::close_in(close) {
                assert_ne!(frame.code, 0);
            }
        }
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
