//! Parts of the frame path, to be counted in instructions: `benches/guards.sh` runs each
//! under valgrind and compares with what is written down. A count does not depend on who
//! else uses the machine.
//!
//! `guards PART TIMES` does one part so many times; parts that cost nothing else than
//! their set-up are run zero times to find that.

use std::{
    hint::black_box,
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use ringspan::{
    ids::{Incarnation, SessionId},
    link::{Frame, pipe},
    ring::placement::Placement,
    session::event::ServerEvent,
    store::{Member, MemberState},
    wire::{Batch, BatchBuilder, Incoming, Kind, Message, Role, Socket, SocketOptions},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let part = arguments.next().context("which part?")?;
    let times: u32 = arguments.next().context("how many times?")?.parse()?;
    let cx = &mut Context::from_waker(Waker::noop());
    match &*part {
        "server-echo-1x200" => echo(cx, Role::Server, 1, 200, times),
        "server-echo-32x100" => echo(cx, Role::Server, 32, 100, times),
        "client-echo-1x200" => echo(cx, Role::Client, 1, 200, times),
        "client-echo-32x100" => echo(cx, Role::Client, 32, 100, times),
        "link-1x200" => link(cx, times),
        "placement-300" => placement(times),
        "event-delta" => event(times),
        _ => bail!("no part {part}"),
    }
}

/// Brings the same run by every second read, and takes all that is written.
struct Tape {
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

fn socket(role: Role, run: Vec<u8>) -> Socket<Tape> {
    let tape = Tape { run, due: true, written: Vec::with_capacity(8192) };
    let options = SocketOptions { max_message_bytes: 1 << 20, deflate: false };
    Socket::new(tape, role, options, Bytes::new())
}

fn run(frames: u32, bytes: usize) -> Batch {
    let mut builder = BatchBuilder::default();
    for _ in 0..frames {
        builder.push(Kind::Text, &vec![b'x'; bytes]);
    }
    builder.finish()
}

/// A run of frames is read, and queued and written again.
fn echo(
    cx: &mut Context<'_>,
    role: Role,
    frames: u32,
    bytes: usize,
    times: u32,
) -> anyhow::Result<()> {
    let sent = match role {
        Role::Client => run(frames, bytes).into_bytes().to_vec(),
        Role::Server => {
            let mut client = socket(Role::Client, Vec::new());
            client.queue(&run(frames, bytes));
            ensure!(client.poll_flush(cx).is_ready(), "the tape takes everything");
            client.into_inner().written
        }
    };
    let mut socket = socket(role, sent);
    for _ in 0..times {
        let mut received = 0;
        while let Poll::Ready(Some(Ok(Incoming::Messages(batch)))) = socket.poll_recv(cx) {
            received += batch.len();
            socket.queue(&batch);
        }
        ensure!(received == frames && socket.poll_flush(cx).is_ready(), "frames were lost");
    }
    Ok(())
}

/// A frame goes through a pipe.
fn link(cx: &mut Context<'_>, times: u32) -> anyhow::Result<()> {
    let (mut tx, mut rx) = pipe(256 * 1024);
    let batch = run(1, 200);
    for _ in 0..times {
        ensure!(tx.poll_ready(cx).is_ready(), "the window is closed");
        tx.send(Frame::Messages { batch: batch.clone(), first_seq: 1, ended: 0 });
        ensure!(rx.poll_recv(cx).is_ready(), "the frame is lost");
        ensure!(rx.poll_recv(cx).is_pending(), "a frame too many");
    }
    Ok(())
}

/// The owner of a session in a ring of 300 nodes.
fn placement(times: u32) -> anyhow::Result<()> {
    let member = |n| Member {
        incarnation: Incarnation(n),
        node_id: format!("ringspan-{n}"),
        peer_addr: "127.0.0.1:1".into(),
        build: "1.0.0".into(),
        zone: None,
        weight: 100,
        capacity: 10_000,
        process: String::new(),
        state: MemberState::Active,
        load: 0,
        lease_remaining: Duration::from_secs(15),
    };
    let placement = Placement::build(&(1..=300).map(member).collect::<Vec<_>>());
    for n in 0..times {
        let mut id = SessionId([0; 16]);
        // Spread over the circle, and the same in each run.
        id.0[..8].copy_from_slice(&u64::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_ne_bytes());
        ensure!(black_box(placement.owner(id)).is_some(), "an empty ring");
    }
    Ok(())
}

/// What a session reads of a text delta.
fn event(times: u32) -> anyhow::Result<()> {
    let text = r#"{"type":"response.output_text.delta","sequence_number":17,"item_id":"msg_1","output_index":0,"content_index":0,"delta":"forty bytes of text, more or less, here"}"#;
    let message = Message::text(text);
    for _ in 0..times {
        ensure!(black_box(ServerEvent::parse(black_box(&message))).is_some(), "no event");
    }
    Ok(())
}
