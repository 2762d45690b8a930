//! What benches and examples share: a stream that costs nothing, runs of frames, members of
//! a ring that does not exist.
#![allow(dead_code, reason = "each of them uses a part")]

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::ensure;
use bytes::Bytes;
use ringspan::{
    ids::Incarnation,
    store::{Member, MemberState},
    wire::{Batch, BatchBuilder, Incoming, Kind, Role, Socket, SocketOptions},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
