//! What does a frame cost the codec, and a peer stream? Runs of 32 frames of 100 bytes are received
//! and queued for sending again, by both roles, against a stream that costs nothing; and go from an
//! edge to an owner and back, encoded and decoded, without a socket.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to report")]

mod parts;

use std::{
    hint::black_box,
    task::{Context, Waker},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringspan::wire::Role;

use self::parts::{Forwarded, echo, run, socket};

const FRAMES: u32 = 32;
const PAYLOAD_BYTES: usize = 100;

fn wire(criterion: &mut Criterion) {
    let cx = &mut Context::from_waker(Waker::noop());
    let mut group = criterion.benchmark_group("echo 32 x 100 B");
    group.throughput(Throughput::Elements(u64::from(FRAMES)));
    for (name, role) in [("server", Role::Server), ("client", Role::Client)] {
        let mut socket = socket(cx, role, FRAMES, PAYLOAD_BYTES).unwrap();
        assert_eq!(echo(&mut socket, cx).unwrap(), FRAMES);
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(echo(&mut socket, cx)).unwrap());
        });
    }
    let (mut forwarded, run) = (Forwarded::new(cx).unwrap(), run(FRAMES, PAYLOAD_BYTES));
    group.bench_function("peer stream, there and back", |bencher| {
        bencher.iter(|| black_box(forwarded.echo(cx, black_box(&run))).unwrap());
    });
    group.finish();
}

criterion_group!(benches, wire);
criterion_main!(benches);
