//! What an actor keeps, looked at from inside.

use std::{future::poll_fn, time::Duration};

use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::net::TcpListener;
use tokio_tungstenite::{accept_async, tungstenite};

use super::*;
use crate::{
    config::{Endpoint, PrincipalLimits},
    link::Frame,
    ownership::lease::LeaseHandle,
    sample::SampleAuth,
    session::{
        Attached,
        quota::Quotas,
        tests::node::{Gate, Node, limits, route, soon, wish},
    },
    store::memory::Memory,
    wire::{Batch, Message},
};

/// An actor that nobody runs.
fn actor(context: Context, attach: &Attach) -> Actor {
    let (inbox, commands) = mpsc::channel(1);
    let claimed = Ownership { epoch: Epoch(1), first: true };
    let itself = inbox.downgrade();
    Actor::new(Arc::new(context), attach, claimed, Vec::new(), Arc::default(), commands, itself)
}

/// Its client.
async fn client(actor: &mut Actor, attach: &Attach) -> Attached {
    let (reply, answer) = oneshot::channel();
    actor.admit(attach, reply);
    answer.await.unwrap().unwrap()
}

/// Its upstream.
async fn connect(actor: &mut Actor) {
    actor.dial();
    let dialled = poll_fn(|cx| {
        assert!(actor.poll_dial(cx, &mut false).is_none());
        let connected = matches!(actor.upstream, Upstream::Connected(..));
        if connected { Poll::Ready(()) } else { Poll::Pending }
    });
    soon("a connection", dialled).await;
}

fn create(n: u64) -> Frame {
    let create = format!(r#"{{"type":"response.create","store":false,"input":"{n}"}}"#);
    let batch = Batch::one(&Message::text(create));
    Frame::Messages { batch, first_seq: 0, ended: 0, create: 0 }
}

#[tokio::test]
async fn turns_that_their_client_left_waiting_leave_nothing_behind() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let attach = wish(&route, "thread");
    let mut actor = actor(node.context(), &attach);
    actor.upstream = Upstream::Dialing(Box::pin(std::future::pending()));
    let _client = client(&mut actor, &attach).await;
    for n in 1..=3 {
        assert!(actor.on_client(0, create(n)));
        assert!(actor.streams.get(n).is_some());
    }
    actor.remove(0);
    assert!(actor.is_idle());
    actor.streams.trim(0, Duration::ZERO, Instant::now(), |_| false);
    for n in 1..=3 {
        assert!(actor.streams.get(n).is_none(), "the log of turn {n} is kept for ever");
    }
}

#[tokio::test]
async fn a_client_is_told_which_of_its_requests_an_answer_is_of() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Responses, &gate));
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let attach = wish(&route, "thread");
    let mut actor = actor(node.context(), &attach);
    actor.upstream = Upstream::Dialing(Box::pin(std::future::pending()));
    let mut client = client(&mut actor, &attach).await.link;
    let mut asked = 0;
    let mut ask = |actor: &mut Actor| {
        asked += 1;
        let Frame::Messages { batch, .. } = create(asked.into()) else { panic!() };
        actor.on_client(0, Frame::Messages { batch, first_seq: 0, ended: 0, create: asked });
        asked
    };
    let mut answers = async |actor: &mut Actor, count: usize| {
        soon("a delivery", actor.settle(Duration::from_mins(1))).await;
        let mut answers = Vec::new();
        while answers.len() < count {
            match soon("an answer", client.rx.recv()).await {
                Some(Frame::Messages { create, ended, .. }) => answers.push((create, ended)),
                other => panic!("{other:?}"),
            }
        }
        answers
    };
    let waiting = u32::try_from(actor.ctx.limits.turn_queue).unwrap();
    for _ in 0..waiting {
        ask(&mut actor);
    }
    let refused = ask(&mut actor);
    assert_eq!(answers(&mut actor, 1).await, [(refused, 1)], "the last one had no room");
    let other = r#"{"type":"response.what"}"#;
    let batch = Batch::one(&Message::text(other));
    actor.on_client(0, Frame::Messages { batch, first_seq: 0, ended: 0, create: 0 });
    assert_eq!(answers(&mut actor, 1).await, [(0, 0)], "it was no create");
    let error = Error::new(Code::UpstreamUnavailable, "away");
    let turns = actor.turns.as_mut().unwrap();
    let ends = turns.on_unreachable(502, &error.body(), None);
    actor.perform(ends);
    let mut ended = answers(&mut actor, waiting as usize).await;
    ended.sort_unstable();
    assert_eq!(ended, (1..=waiting).map(|create| (create, 1)).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_turn_that_ends_while_it_is_being_admitted_takes_no_place_of_its_principal() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(Route { ledger: false, ..route(Profile::Responses, &gate) });
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let attach = wish(&route, "thread");
    let mut context = node.context();
    let one = PrincipalLimits { turns: Some(1), ..PrincipalLimits::default() };
    let store: Arc<dyn crate::store::Store> = Arc::clone(&node.store) as _;
    context.quotas = Quotas::start(node.me, one, store, node.metrics.clone(), &node.tracker);
    let quotas = context.quotas.clone().unwrap();
    let mut actor = actor(context, &attach);
    actor.upstream = Upstream::Dialing(Box::pin(std::future::pending()));
    let _client = client(&mut actor, &attach).await;
    let connected = actor.turns.as_mut().unwrap().on_connected();
    actor.perform(connected);
    assert!(actor.on_client(0, create(1)));
    assert_eq!(actor.journal.len(), 1, "it is being admitted");
    // Its connection is lost, so it waits again; then its client goes.
    let lost = actor.turns.as_mut().unwrap().on_disconnected();
    actor.perform(lost);
    actor.remove(0);
    let answered = poll_fn(|cx| {
        let mut progress = false;
        assert!(actor.poll_journal(cx, &mut progress).is_none());
        if progress { Poll::Ready(()) } else { Poll::Pending }
    });
    soon("the answer", answered).await;
    let next = soon("the next turn's answer", quotas.admit(attach.principal)).await;
    assert!(next.is_ok(), "the only place is taken for ever");
}

#[tokio::test]
async fn without_a_lease_nothing_is_delivered_any_more() {
    let gate = Gate::open(SampleAuth::Open).await;
    let route = Arc::new(route(Profile::Opaque, &gate));
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let attach = wish(&route, "room");
    for (lease, said) in [(node.lease.clone(), true), (LeaseHandle::default(), false)] {
        let mut actor = actor(Context { lease, ..node.context() }, &attach);
        let mut client = client(&mut actor, &attach).await.link;
        let batch = Batch::one(&Message::text("said before"));
        actor.streams.get_mut(OPAQUE).unwrap().log.push(batch, Instant::now());
        soon("the end of the wait", actor.settle(Duration::from_mins(1))).await;
        assert_eq!(client.rx.recv().now_or_never().is_some(), said);
    }
}

#[tokio::test]
async fn an_endpoint_that_is_left_is_told_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: http::Uri = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
    let heard = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        accept_async(stream).await.unwrap().next().await
    });
    let gate = Gate::open(SampleAuth::Open).await;
    let mut route = route(Profile::Responses, &gate);
    let endpoint = |name: &str| Endpoint { name: name.into(), ..Endpoint::sole(url.clone()) };
    let upstream = Arc::make_mut(&mut route.upstream);
    upstream.endpoints = vec![endpoint("one"), endpoint("two")];
    let route = Arc::new(route);
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let mut actor = actor(node.context(), &wish(&route, "thread"));
    connect(&mut actor).await;
    actor.strikes = 2;
    actor.leave_endpoint();
    let heard = soon("a word", heard).await.unwrap();
    assert!(
        matches!(&heard, Some(Ok(tungstenite::Message::Close(Some(close)))) if close.code == 1000.into()),
        "{heard:?}"
    );
}

/// Messages of the flood, a thousand bytes each.
const FLOOD: u64 = 3000;

/// An actor of an opaque session whose upstream says all of that at once.
async fn flooded() -> (Node, Attach, Actor) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: http::Uri = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = accept_async(stream).await.unwrap();
        for _ in 0..FLOOD {
            socket.feed(tungstenite::Message::text("x".repeat(1000))).await.unwrap();
        }
        socket.flush().await.unwrap();
        socket.next().await
    });
    let gate = Gate::open(SampleAuth::Open).await;
    let mut route = route(Profile::Opaque, &gate);
    Arc::make_mut(&mut route.upstream).endpoints = vec![Endpoint::sole(url)];
    let route = Arc::new(route);
    // Room for all of it: the client holds nothing up.
    let wide = Limits { link_window_bytes: 8 << 20, ..limits() };
    let node = Node::start(&Arc::new(Memory::default()), "a", wide, [&route]).await;
    let attach = wish(&route, "room");
    let mut actor = actor(node.context(), &attach);
    connect(&mut actor).await;
    (node, attach, actor)
}

/// Messages that the session has read of its upstream.
fn read(actor: &Actor) -> u64 {
    actor.streams.get(OPAQUE).unwrap().log.head()
}

#[tokio::test]
async fn an_upstream_that_always_has_more_to_say_leaves_the_other_sessions_their_turn() {
    let (_node, attach, mut actor) = flooded().await;
    let mut client = client(&mut actor, &attach).await.link;
    let all = poll_fn(|cx| {
        while let Poll::Ready(Some(_)) = client.rx.poll_recv(cx) {}
        let before = read(&actor);
        assert!(actor.poll(cx).is_pending());
        let bytes = (read(&actor) - before) * 1000;
        assert!(bytes <= 2 * pace::QUANTUM as u64, "{bytes} bytes without a break");
        if read(&actor) == FLOOD { Poll::Ready(()) } else { Poll::Pending }
    });
    soon("all of it", all).await;
}

#[tokio::test]
async fn an_upstream_that_nobody_listens_to_is_read_slowly() {
    let (_node, attach, mut actor) = flooded().await;
    let started = Instant::now();
    let some = poll_fn(|cx| {
        assert!(actor.poll(cx).is_pending());
        if read(&actor) >= FLOOD / 2 { Poll::Ready(()) } else { Poll::Pending }
    });
    soon("half of it", some).await;
    let quanta = u32::try_from(FLOOD / 2 * 1000 / (2 * pace::QUANTUM as u64)).unwrap();
    assert!(started.elapsed() >= pace::REST * (quanta - 1), "{:?}", started.elapsed());
    // Whoever comes back need not wait for that.
    let mut client = client(&mut actor, &attach).await.link;
    let rest = poll_fn(|cx| {
        while let Poll::Ready(Some(_)) = client.rx.poll_recv(cx) {}
        assert!(actor.poll(cx).is_pending());
        if read(&actor) == FLOOD { Poll::Ready(()) } else { Poll::Pending }
    });
    soon("the rest", rest).await;
}

#[tokio::test]
async fn an_upstream_that_never_ends_is_hung_up_on_before_the_limit_of_a_close() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: http::Uri = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = accept_async(stream).await.unwrap();
        let flood = tungstenite::Message::text("x".repeat(64 * 1024));
        while socket.feed(flood.clone()).await.is_ok() {}
    });
    let gate = Gate::open(SampleAuth::Open).await;
    let mut route = route(Profile::Opaque, &gate);
    Arc::make_mut(&mut route.upstream).endpoints = vec![Endpoint::sole(url)];
    let route = Arc::new(route);
    let node = Node::start(&Arc::new(Memory::default()), "a", limits(), [&route]).await;
    let upgrade = wish(&route, "room").upgrade;
    let dialled = node.dialer.dial(&route.upstream, b"key", None, &upgrade).await;
    let connection = dialled.unwrap_or_else(|error| panic!("{error}"));
    soon("the end", connection.close(1000, "", Duration::from_mins(1))).await;
}
