//! Two sides wired together in one process: whatever one says, the other is told, and what
//! is under way can be looked at.

mod credit;
mod edges;
mod order;

use std::{collections::VecDeque, task::Waker};

use bytes::Bytes;
use futures_util::FutureExt as _;

use super::*;
use crate::{
    error::{Code, Error},
    wire::{BatchBuilder, CloseFrame, Kind, Message},
};

const MAX_MESSAGE: usize = 32 << 20;

/// One side, its transport stopped until it is pumped.
pub(super) struct Side {
    pub(super) mux: Arc<Mux>,
    outgoing: Outgoing,
    /// Said and not yet told to the other side.
    pub(super) flying: VecDeque<proto::Frame>,
}

impl Side {
    fn new() -> Self {
        let mux = Mux::new(MAX_MESSAGE);
        Self { outgoing: Outgoing(Arc::clone(&mux)), mux, flying: VecDeque::new() }
    }

    /// Takes one frame from the outgoing half, if it has one.
    pub(super) fn poll(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut self.outgoing).poll_next(&mut cx) {
            Poll::Ready(Some(frame)) => {
                self.flying.push_back(frame);
                true
            }
            _ => false,
        }
    }

    pub(super) fn poll_all(&mut self) {
        while self.poll() {}
    }

    /// Bytes of messages that are said and not yet told.
    pub(super) fn in_flight(&self) -> usize {
        let size = |frame: &proto::Frame| match &frame.body {
            Some(Body::Messages(run)) => run.frames.len(),
            _ => 0,
        };
        self.flying.iter().map(size).sum()
    }
}

/// The edge's side and the owner's.
pub(super) struct Wire {
    pub(super) edge: Side,
    pub(super) owner: Side,
    pub(super) window: usize,
}

impl Wire {
    pub(super) fn new(window: usize) -> Self {
        Self { edge: Side::new(), owner: Side::new(), window }
    }

    fn credit(&self) -> u32 {
        u32::try_from(self.window).unwrap()
    }

    /// A channel from an edge's link to a session's.
    pub(super) fn attach(&mut self) -> (u32, Link, Link) {
        let (edge, theirs) = Link::pair(self.window);
        let (id, mut answer) =
            self.edge.mux.ask(theirs, proto::Attach::default(), Counted::default()).unwrap();
        self.edge.poll_all();
        assert!(matches!(self.edge.flying.pop_back().unwrap().body, Some(Body::Attach(_))));
        let (session, ours) = Link::pair(self.window);
        self.owner.mux.accept(id, ours, proto::Attached::default(), self.credit());
        self.pump();
        assert!(answer.try_recv().unwrap().is_ok());
        (id, edge, session)
    }

    /// Tells the owner one frame of the edge's.
    pub(super) fn tell_owner(&mut self) -> bool {
        let Some(frame) = self.edge.flying.pop_front() else { return false };
        self.owner.mux.on_frame(frame, self.credit()).unwrap();
        true
    }

    pub(super) fn tell_edge(&mut self) -> bool {
        let Some(frame) = self.owner.flying.pop_front() else { return false };
        self.edge.mux.on_frame(frame, self.credit()).unwrap();
        true
    }

    /// Everything that can move between the sides moves.
    pub(super) fn pump(&mut self) {
        loop {
            self.edge.poll_all();
            self.owner.poll_all();
            if !self.tell_owner() && !self.tell_edge() {
                return;
            }
            while self.tell_owner() || self.tell_edge() {}
        }
    }
}

pub(super) fn messages(texts: &[&str]) -> Frame {
    let mut builder = BatchBuilder::default();
    for text in texts {
        builder.push(Kind::Text, text.as_bytes());
    }
    Frame::Messages { batch: builder.finish(), first_seq: 7, ended: 1, create: 3 }
}

pub(super) fn of_size(size: usize) -> Frame {
    let batch = Batch::one(&Message::binary(vec![b'x'; size]));
    Frame::Messages { batch, first_seq: 0, ended: 0, create: 0 }
}

/// What is there now.
pub(super) fn take(link: &mut Link) -> Option<Frame> {
    link.rx.recv().now_or_never().flatten()
}

/// Whether the link has ended and everything in it was taken.
fn is_over(link: &mut Link) -> bool {
    link.rx.recv().now_or_never() == Some(None)
}

#[test]
fn every_kind_of_frame_arrives_as_it_was_sent() {
    let mut wire = Wire::new(1 << 20);
    let (_, mut edge, mut session) = wire.attach();
    let frames = [
        messages(&["a", "", "ccc"]),
        Frame::Ping(Bytes::from_static(b"ping")),
        Frame::Pong(Bytes::new()),
        messages(&["d"]),
    ];
    for frame in &frames {
        edge.tx.send(frame.clone());
        session.tx.send(frame.clone());
    }
    wire.pump();
    for frame in &frames {
        assert_eq!(take(&mut session).as_ref(), Some(frame));
        assert_eq!(take(&mut edge).as_ref(), Some(frame));
    }
}

#[test]
fn a_last_frame_arrives_behind_what_came_before_it_and_frees_the_channel() {
    let close = CloseFrame { code: 4001, reason: "bye".into() };
    let lasts = [
        Frame::Close(Some(close)),
        Frame::Close(None),
        Frame::Moved,
        Frame::Failed(Error::new(Code::UpstreamTimeout, "slow")),
    ];
    for last in lasts {
        let mut wire = Wire::new(1 << 20);
        let (_, mut edge, mut session) = wire.attach();
        session.tx.send(messages(&["before"]));
        session.tx.send(last.clone());
        wire.pump();
        assert_eq!(take(&mut edge), Some(messages(&["before"])));
        assert_eq!(take(&mut edge), Some(last.clone()));
        assert!(is_over(&mut edge), "{last:?}");
        assert!(is_over(&mut session));
        assert_eq!((wire.edge.mux.channels(), wire.owner.mux.channels()), (0, 0));
    }
}

#[test]
fn what_a_client_says_to_a_session_that_has_just_ended_does_not_swallow_the_last_frame() {
    let crossing =
        [Frame::Ping(Bytes::from_static(b"?")), Frame::Pong(Bytes::new()), messages(&["late"])];
    for late in crossing {
        let mut wire = Wire::new(1 << 20);
        let (_, mut edge, mut session) = wire.attach();
        edge.tx.send(late.clone());
        wire.edge.poll_all();
        session.tx.send(Frame::Close(None));
        drop(session);
        // What is under way arrives before the transport asks for what there is to send.
        while wire.tell_owner() {}
        wire.pump();
        assert_eq!(take(&mut edge), Some(Frame::Close(None)), "{late:?}");
        assert!(is_over(&mut edge));
        assert_eq!((wire.edge.mux.channels(), wire.owner.mux.channels()), (0, 0));
    }
}

#[test]
fn an_edge_that_leaves_detaches_the_session_behind_what_it_had_sent() {
    let mut wire = Wire::new(1 << 20);
    let (_, mut edge, mut session) = wire.attach();
    edge.tx.send(messages(&["last words"]));
    drop(edge);
    wire.pump();
    assert_eq!(take(&mut session), Some(messages(&["last words"])));
    assert!(is_over(&mut session));
    assert!(session.tx.is_closed());
    assert_eq!((wire.edge.mux.channels(), wire.owner.mux.channels()), (0, 0));
}

#[test]
fn a_session_that_ends_without_a_word_ends_its_client_only() {
    let mut wire = Wire::new(1 << 20);
    let (_, mut gone, session) = wire.attach();
    let (_, mut other, mut others_session) = wire.attach();
    drop(session);
    others_session.tx.send(messages(&["still here"]));
    wire.pump();
    assert!(is_over(&mut gone));
    assert_eq!(take(&mut other), Some(messages(&["still here"])));
}

#[test]
fn the_end_of_the_stream_ends_every_link_on_both_sides() {
    let mut wire = Wire::new(1 << 20);
    let (_, mut one, mut one_session) = wire.attach();
    let (_, mut two, mut two_session) = wire.attach();
    one_session.tx.send(messages(&["under way"]));
    wire.pump();
    let (_, theirs) = Link::pair(10);
    let (_, mut waiting) =
        wire.edge.mux.ask(theirs, proto::Attach::default(), Counted::default()).unwrap();
    wire.edge.mux.close();
    assert_eq!(take(&mut one), Some(messages(&["under way"])), "what has arrived is not lost");
    assert!(is_over(&mut one) && is_over(&mut two));
    assert!(waiting.try_recv().is_err());
    assert!(!wire.edge.poll() || wire.edge.mux.is_closed());
    let (_, theirs) = Link::pair(10);
    assert!(wire.edge.mux.ask(theirs, proto::Attach::default(), Counted::default()).is_none());
    // The transport drops the other side's outgoing half.
    drop(wire.owner.outgoing);
    assert!(is_over(&mut one_session) && is_over(&mut two_session));
}

#[test]
fn a_refused_attach_tells_why_and_leaves_no_channel() {
    let wire = Wire::new(1 << 20);
    let owner = proto::NotOwner { owner: 4, addr: "n4:1".into(), epoch: 9, ring_version: 2 };
    let fault = convert::fault_out(&Error::new(Code::TooManySessions, "full"));
    for body in [Body::NotOwner(owner), Body::Fault(fault)] {
        let (mut ours, theirs) = Link::pair(10);
        let (id, mut answer) =
            wire.edge.mux.ask(theirs, proto::Attach::default(), Counted::default()).unwrap();
        wire.edge.mux.on_frame(frame(id, body), 10).unwrap();
        match answer.try_recv().unwrap().unwrap_err() {
            AttachError::NotOwner(owner) => {
                assert_eq!((owner.addr.as_str(), owner.epoch.0), ("n4:1", 9));
            }
            AttachError::Failed(error) => assert_eq!(error.code, Code::TooManySessions),
            AttachError::Refused(_) => panic!("nobody refused an upgrade"),
        }
        assert!(is_over(&mut ours));
        assert_eq!(wire.edge.mux.channels(), 0);
    }
}

#[test]
fn an_attach_that_was_given_up_is_taken_back_and_its_late_answer_is_ignored() {
    let mut wire = Wire::new(1 << 20);
    let (_, theirs) = Link::pair(10);
    let (id, answer) =
        wire.edge.mux.ask(theirs, proto::Attach::default(), Counted::default()).unwrap();
    drop(answer);
    wire.edge.mux.abandon(id);
    wire.edge.mux.abandon(id);
    wire.edge.poll_all();
    let said: Vec<_> = wire.edge.flying.drain(..).map(|frame| frame.body.unwrap()).collect();
    assert!(matches!(said[..], [Body::Attach(_), Body::Detach(_)]), "{said:?}");
    let late = frame(id, Body::Attached(proto::Attached::default()));
    assert_eq!(wire.edge.mux.on_frame(late, 10), Ok(()));
    assert_eq!(wire.edge.mux.channels(), 0);
}

#[test]
fn frames_of_a_channel_that_is_over_are_late_and_not_wrong() {
    let mut wire = Wire::new(1 << 20);
    let (id, edge, mut session) = wire.attach();
    drop(edge);
    wire.edge.poll_all();
    for n in 0..3 {
        session.tx.send(messages(&[&n.to_string()]));
    }
    wire.pump();
    assert_eq!(wire.edge.mux.channels(), 0);
    let credit = frame(id, Body::Credit(proto::Credit { bytes: 1 }));
    assert_eq!(wire.edge.mux.on_frame(credit, 10), Ok(()));
}

#[test]
fn a_peer_that_breaks_the_protocol_is_told_apart_from_one_that_is_late() {
    let run = |frames: &[u8], more| {
        let frames = Bytes::copy_from_slice(frames);
        Body::Messages(proto::Messages { frames, more, ..proto::Messages::default() })
    };
    let wrong = [
        (Body::Attached(proto::Attached::default()), "a channel was answered twice"),
        (run(b"\x81\x05ab", false), "a run that is not whole frames"),
        (run(b"\x01", false), "a run that is not whole frames"),
        (Body::Hello(proto::Hello::default()), "a frame that has no place here"),
        (Body::Welcome(proto::Welcome::default()), "a frame that has no place here"),
        (Body::Attach(proto::Attach::default()), "a frame that has no place here"),
    ];
    for (body, what) in wrong {
        let mut wire = Wire::new(1 << 20);
        let (id, _edge, _session) = wire.attach();
        assert_eq!(wire.edge.mux.on_frame(frame(id, body), 10), Err(Violation(what)));
    }
}

#[test]
fn a_message_larger_than_the_limit_ends_its_channel_and_no_other() {
    let mut wire = Wire::new(1 << 20);
    let (id, mut edge, _session) = wire.attach();
    let (_, _other_edge, mut other) = wire.attach();
    let piece = Bytes::from(vec![0; CHUNK]);
    for _ in 0..MAX_MESSAGE / CHUNK + 4 {
        let run =
            proto::Messages { frames: piece.clone(), more: true, ..proto::Messages::default() };
        assert_eq!(wire.edge.mux.on_frame(frame(id, Body::Messages(run)), 10), Ok(()));
    }
    let Some(Frame::Failed(error)) = take(&mut edge) else { panic!("the edge was told nothing") };
    assert_eq!(error.code, Code::FrameTooLarge);
    assert!(!wire.edge.mux.is_closed());
    assert!(other.tx.send(of_size(1)));
}

#[test]
fn a_peer_that_does_not_read_ends_the_stream_and_not_our_memory() {
    let wire = Wire::new(1 << 20);
    for id in 1..=u32::try_from(MAX_CONTROL).unwrap() + 1 {
        wire.edge.mux.control(id, Body::Detach(proto::Detach {}));
    }
    assert!(wire.edge.mux.is_closed());
}
