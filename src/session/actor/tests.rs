//! What an actor keeps, looked at from inside.

use std::time::Duration;

use super::*;
use crate::{
    link::Frame,
    sample::SampleAuth,
    session::tests::node::{Gate, Node, limits, route, wish},
    store::memory::Memory,
    wire::{Batch, Message},
};

#[tokio::test]
async fn turns_that_their_client_left_waiting_leave_nothing_behind() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let node = Node::start(&Arc::new(Memory::default()), "a", limits()).await;
    let attach = wish(&route, "thread");
    let (inbox, commands) = mpsc::channel(1);
    let context = Arc::new(node.context());
    let claimed = Ownership { epoch: Epoch(1), first: true };
    let itself = inbox.downgrade();
    let mut actor =
        Actor::new(context, &attach, claimed, Vec::new(), Arc::default(), commands, itself);
    actor.upstream = Upstream::Dialing(Box::pin(std::future::pending()));
    let (reply, _answer) = oneshot::channel();
    actor.admit(&attach, reply);
    for n in 1..=3 {
        let create = format!(r#"{{"type":"response.create","store":false,"input":"{n}"}}"#);
        let batch = Batch::one(&Message::text(create));
        assert!(actor.on_client(0, Frame::Messages { batch, first_seq: 0, ended: 0 }));
        assert!(actor.streams.get(n).is_some());
    }
    actor.remove(0);
    assert!(actor.is_idle());
    actor.streams.trim(0, Duration::ZERO, Instant::now(), |_| false);
    for n in 1..=3 {
        assert!(actor.streams.get(n).is_none(), "the log of turn {n} is kept for ever");
    }
}
