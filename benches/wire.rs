//! What does a frame cost the codec? Runs of 32 frames of 100 bytes are received and queued
//! for sending again, by both roles, against a stream that costs nothing.

use std::{
    hint::black_box,
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringspan::wire::{Batch, BatchBuilder, Incoming, Kind, Role, Socket, SocketOptions};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const FRAMES: u32 = 32;
const PAYLOAD_BYTES: usize = 100;
const OPTIONS: SocketOptions = SocketOptions { max_message_bytes: 1 << 20, deflate: false };

/// Brings the same run by every second read, and takes all that is written.
struct Tape {
    run: Vec<u8>,
    due: bool,
    written: Vec<u8>,
}

impl Tape {
    fn new(run: Vec<u8>) -> Self {
        Self { run, due: true, written: Vec::with_capacity(8192) }
    }
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

/// One wake: all that is there is received, queued and written.
fn echo(socket: &mut Socket<Tape>, cx: &mut Context<'_>) -> u32 {
    let mut frames = 0;
    while let Poll::Ready(Some(Ok(Incoming::Messages(batch)))) = socket.poll_recv(cx) {
        frames += batch.len();
        socket.queue(&batch);
    }
    assert!(matches!(socket.poll_flush(cx), Poll::Ready(Ok(()))));
    frames
}

fn run() -> Batch {
    let mut builder = BatchBuilder::default();
    for _ in 0..FRAMES {
        builder.push(Kind::Text, &[b'x'; PAYLOAD_BYTES]);
    }
    builder.finish()
}

/// The run as a client sends it.
fn masked(cx: &mut Context<'_>) -> Vec<u8> {
    let mut client = Socket::new(Tape::new(Vec::new()), Role::Client, OPTIONS, Bytes::new());
    client.queue(&run());
    assert!(matches!(client.poll_flush(cx), Poll::Ready(Ok(()))));
    client.into_inner().written
}

fn wire(criterion: &mut Criterion) {
    let cx = &mut Context::from_waker(Waker::noop());
    let mut group = criterion.benchmark_group("echo 32 x 100 B");
    group.throughput(Throughput::Elements(u64::from(FRAMES)));
    let sides = [
        ("server", Role::Server, masked(cx)),
        ("client", Role::Client, run().into_bytes().to_vec()),
    ];
    for (name, role, run) in sides {
        let mut socket = Socket::new(Tape::new(run), role, OPTIONS, Bytes::new());
        assert_eq!(echo(&mut socket, cx), FRAMES);
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(echo(&mut socket, cx)));
        });
    }
    group.finish();
}

criterion_group!(benches, wire);
criterion_main!(benches);
