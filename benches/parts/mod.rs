//! What benches and examples share: a stream that costs nothing, runs of frames, two nodes on one
//! peer stream, a turn and what is said in it, members of a ring that does not exist.
#![allow(dead_code, reason = "each of them uses a part")]

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use bytes::{Bytes, BytesMut};
use futures_util::Stream as _;
use prost::Message as _;
use ringspan::{
    ids::Incarnation,
    link::{Frame, Link},
    peer::{
        mux::{Counted, Mux, Outgoing},
        proto,
    },
    session::{
        log::Log,
        turns::{Action, Bounds, ClientId, Journaled, Turns},
    },
    store::{LeaseEnd, Member, MemberState},
    wire::{Batch, BatchBuilder, Incoming, Kind, Message, Role, Socket, SocketOptions},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// An ACTIVE member of ordinary weight.
pub fn member(n: i64, build: &str) -> Member {
    Member {
        incarnation: Incarnation(n),
        node_id: format!("ringspan-{n}"),
        peer_addr: "127.0.0.1:1".into(),
        build: build.into(),
        zone: None,
        weight: 100,
        capacity: 10_000,
        process: String::new(),
        state: MemberState::Active,
        load: 0,
        lease_remaining: Duration::from_secs(15),
        lease: LeaseEnd::default(),
    }
}

/// As many of one build.
pub fn members(count: i64) -> Vec<Member> {
    (1..=count).map(|n| member(n, "1.0.0")).collect()
}

/// Brings the same run by every second read, and takes all that is written.
pub struct Tape {
    run: Vec<u8>,
    due: bool,
    written: Vec<u8>,
}

impl AsyncRead for Tape {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.due = !self.due;
        if self.due {
            return Poll::Pending;
        }
        buffer.put_slice(&self.run);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tape {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written.clear();
        self.written.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// So many frames of text.
pub fn run(frames: u32, bytes: usize) -> Batch {
    let mut builder = BatchBuilder::default();
    for _ in 0..frames {
        builder.push(Kind::Text, &vec![b'x'; bytes]);
    }
    builder.finish()
}

/// One end of a connection whose other end sends such a run again and again.
///
/// # Errors
/// If a tape does not take everything.
pub fn socket(
    cx: &mut Context<'_>,
    role: Role,
    frames: u32,
    bytes: usize,
) -> anyhow::Result<Socket<Tape>> {
    let options = SocketOptions { max_message_bytes: 1 << 20, deflate: false };
    let over = |role, run| {
        let tape = Tape { run, due: true, written: Vec::with_capacity(8192) };
        Socket::new(tape, role, options, Bytes::new())
    };
    let sent = match role {
        Role::Client => run(frames, bytes).into_bytes().to_vec(),
        Role::Server => {
            let mut client = over(Role::Client, Vec::new());
            client.queue(&run(frames, bytes));
            ensure!(client.poll_flush(cx).is_ready(), "the tape takes everything");
            client.into_inner().written
        }
    };
    Ok(over(role, sent))
}

/// One wake: all that is there is received, queued and written. How many frames that was.
///
/// # Errors
/// If the tape does not take them.
pub fn echo(socket: &mut Socket<Tape>, cx: &mut Context<'_>) -> anyhow::Result<u32> {
    let mut frames = 0;
    while let Poll::Ready(Some(Ok(Incoming::Messages(batch)))) = socket.poll_recv(cx) {
        frames += batch.len();
        socket.queue(&batch);
    }
    ensure!(matches!(socket.poll_flush(cx), Poll::Ready(Ok(()))), "frames were lost");
    Ok(frames)
}

/// What a node keeps of one message at most, and grants for a channel; as by default.
const WINDOW: u32 = 256 * 1024;

/// One node's side of a peer stream.
struct Side {
    mux: Arc<Mux>,
    outgoing: Outgoing,
}

impl Side {
    fn new() -> Self {
        let mux = Mux::new(WINDOW as usize);
        Self { outgoing: Outgoing(Arc::clone(&mux)), mux }
    }

    /// All that this side has to say, in bytes and back, as HTTP/2 would carry it.
    fn say(&mut self, cx: &mut Context<'_>, to: &Self, bytes: &mut BytesMut) -> anyhow::Result<()> {
        while let Poll::Ready(Some(frame)) = Pin::new(&mut self.outgoing).poll_next(cx) {
            frame.encode(bytes)?;
            let frame = proto::Frame::decode(bytes.split().freeze())?;
            to.mux.on_frame(frame, WINDOW).map_err(|broken| anyhow::anyhow!(broken.0))?;
        }
        Ok(())
    }
}

/// A session of which the edge is one node and the owner another.
pub struct Forwarded {
    edge: Side,
    owner: Side,
    client: Link,
    session: Link,
    bytes: BytesMut,
}

impl Forwarded {
    /// # Errors
    /// If the owner does not hear of its client.
    pub fn new(cx: &mut Context<'_>) -> anyhow::Result<Self> {
        let (mut edge, mut owner, mut bytes) = (Side::new(), Side::new(), BytesMut::new());
        let (client, theirs) = Link::pair(WINDOW as usize);
        let asked = edge.mux.ask(theirs, proto::Attach::default(), Counted::default());
        let (channel, mut answer) = asked.context("the stream has ended")?;
        edge.say(cx, &owner, &mut bytes)?;
        let (theirs, session) = Link::pair(WINDOW as usize);
        owner.mux.accept(channel, theirs, proto::Attached::default(), WINDOW);
        owner.say(cx, &edge, &mut bytes)?;
        ensure!(matches!(answer.try_recv(), Ok(Ok(_))), "the edge is not answered");
        Ok(Self { edge, owner, client, session, bytes })
    }

    /// A run goes from the client's link to the session's, and back. How many messages came.
    ///
    /// # Errors
    /// If one was lost.
    pub fn echo(&mut self, cx: &mut Context<'_>, run: &Batch) -> anyhow::Result<u32> {
        send(&mut self.client, cx, run.clone())?;
        self.edge.say(cx, &self.owner, &mut self.bytes)?;
        let heard = receive(&mut self.session, cx)?;
        send(&mut self.session, cx, heard)?;
        self.owner.say(cx, &self.edge, &mut self.bytes)?;
        let heard = receive(&mut self.client, cx)?;
        // What was read is granted again.
        self.edge.say(cx, &self.owner, &mut self.bytes)?;
        Ok(heard.len())
    }
}

fn send(link: &mut Link, cx: &mut Context<'_>, batch: Batch) -> anyhow::Result<()> {
    ensure!(link.tx.poll_ready(cx).is_ready(), "the window is closed");
    link.tx.send(Frame::Messages { batch, first_seq: 1, ended: 0, create: 0 });
    Ok(())
}

fn receive(link: &mut Link, cx: &mut Context<'_>) -> anyhow::Result<Batch> {
    match link.rx.poll_recv(cx) {
        Poll::Ready(Some(Frame::Messages { batch, .. })) => Ok(batch),
        _ => anyhow::bail!("the run is lost"),
    }
}

/// The client of [`turn`].
const CLIENT: ClientId = 1;

/// A turn: its create, and what the upstream says, an event for each read.
pub struct Script {
    pub create: Message,
    pub events: Vec<Batch>,
}

impl Script {
    /// A turn of so many deltas of 40 bytes, with three events around them.
    pub fn new(deltas: usize) -> Self {
        const ITEM: &str = r#""output_index":0,"item":{"id":"msg_1","type":"message","role":"assistant","content":[]}"#;
        let delta = "x".repeat(40);
        let response = |status: &str, output: &str| {
            format!(
                r#""response":{{"id":"resp_1","object":"response","status":"{status}","output":[{output}]}}"#
            )
        };
        let text = delta.repeat(deltas);
        let output = format!(
            r#"{{"id":"msg_1","type":"message","role":"assistant","content":[{{"type":"output_text","text":"{text}"}}]}}"#
        );
        let mut events = vec![
            ("response.created", response("in_progress", "")),
            ("response.output_item.added", ITEM.to_owned()),
        ];
        let said =
            format!(r#""item_id":"msg_1","output_index":0,"content_index":0,"delta":"{delta}""#);
        events.extend((0..deltas).map(|_| ("response.output_text.delta", said.clone())));
        events.push(("response.completed", response("completed", &output)));
        let event = |(no, (kind, fields)): (usize, (&str, String))| {
            let text = format!(r#"{{"type":"{kind}","sequence_number":{no},{fields}}}"#);
            Batch::one(&Message::text(text))
        };
        let create = r#"{"type":"response.create","model":"m","store":false,"stream":true,"input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"What does a hop cost?"}]}]}"#;
        Self {
            create: Message::text(create),
            events: events.into_iter().enumerate().map(event).collect(),
        }
    }
}

/// The turns of a session that has an upstream and has said nothing.
pub fn turns() -> Turns {
    let bounds = Bounds {
        queue: 32,
        payload_bytes: 64 << 20,
        history_bytes: 4 << 20,
        asked: true,
        ledger: true,
    };
    let mut turns = Turns::new(bounds, Vec::new());
    turns.on_connected();
    turns
}

/// One turn from its create to its end, the ledger's answer between. How many messages its
/// client gets.
///
/// # Errors
/// If it does not take the way that the script is for.
pub fn turn(turns: &mut Turns, script: &Script) -> anyhow::Result<u32> {
    let accepted = turns.on_client(CLIENT, &script.create, None);
    let no = accepted.iter().find_map(|action| match action {
        Action::Journal { turn, .. } => Some(*turn),
        _ => None,
    });
    let no = no.context("the ledger is not asked")?;
    let sent = turns.on_journaled(no, &Journaled::Begun);
    ensure!(sent.iter().any(|action| matches!(action, Action::Dispatch { .. })), "nothing is sent");
    let (mut messages, mut ended) = (0, false);
    for event in &script.events {
        for action in turns.on_upstream(event) {
            if let Action::Append { batch, done, .. } = action {
                messages += batch.len();
                ended |= done;
            }
        }
    }
    ensure!(ended, "the turn does not end");
    Ok(messages)
}

/// A run comes into a replay log that holds so many bytes at most, and is read by a client
/// that has all before it. How many messages that was.
///
/// # Errors
/// If it is not there.
pub fn logged(log: &mut Log, run: &Batch, max_bytes: usize, now: Instant) -> anyhow::Result<u32> {
    let first = log.push(run.clone(), now);
    log.trim(max_bytes, Duration::from_mins(2), now);
    Ok(log.read(first).context("what was appended is not there")?.len())
}

/// All that a replay log has from message `next` on. How many messages that was.
pub fn replayed(log: &Log, mut next: u64) -> u64 {
    let mut messages = 0;
    while let Some(batch) = log.read(next) {
        messages += u64::from(batch.len());
        next += u64::from(batch.len());
    }
    messages
}
