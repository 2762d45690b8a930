//! What does a look-up cost on the way of a new session, and what does a ring change cost?

mod parts;

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ringspan::{ids::SessionId, ring::placement::Placement};

use self::parts::members;

const SIZES: [i64; 4] = [3, 30, 300, 3000];

/// Enough ids that the branch predictor cannot learn their searches.
fn ids() -> impl Iterator<Item = SessionId> + Clone {
    let ids: Vec<_> = (0..1 << 16).map(|_| SessionId::random()).collect();
    ids.into_iter().cycle()
}

fn placement(c: &mut Criterion) {
    let mut group = c.benchmark_group("owner");
    for size in SIZES {
        let (placement, mut ids) = (Placement::build(&members(size)), ids());
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| placement.owner(black_box(ids.next()?)));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("heirs");
    for size in SIZES {
        let (placement, mut ids) = (Placement::build(&members(size)), ids());
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| ids.next().map(|id| placement.heirs(black_box(id), &[], |_| ())));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("build");
    for size in SIZES {
        let members = members(size);
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| Placement::build(black_box(&members)));
        });
    }
    group.finish();

    // One more.
    let mut group = c.benchmark_group("joined");
    for size in SIZES {
        let placement = Placement::build(&members(size));
        let more = members(size + 1);
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| placement.refreshed(black_box(&more)));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("refreshed");
    for size in SIZES {
        let members = members(size);
        let placement = Placement::build(&members);
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| placement.refreshed(black_box(&members)));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = placement
}
criterion_main!(benches);
