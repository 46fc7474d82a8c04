//! What a ring costs: to build one, and to ask it.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use dkvs_core::ring::Ring;
use dkvs_core::servers::{self, ServerList};

fn hundred_servers() -> ServerList {
    let text: String = (1..=100).map(|host| format!("10.0.0.{host} 7000 256\n")).collect();
    servers::parse(&text, "servers.txt").expect("a valid list")
}

fn build(c: &mut Criterion) {
    c.bench_function("ring_build_100x256", |b| {
        b.iter_batched(hundred_servers, Ring::new, BatchSize::SmallInput);
    });
}

/// Keys differ from call to call, so that lookups miss caches as they do in a server.
fn lookup(c: &mut Criterion) {
    let ring = Ring::new(hundred_servers());
    let mut key = 0_u128;
    c.bench_function("owners_of_key", |b| {
        b.iter(|| {
            key += 1;
            black_box(ring.owners_of_key(&key.to_be_bytes(), 3)).len()
        });
    });
}

criterion_group! {
    name = ring;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4));
    targets = build, lookup
}
criterion_main!(ring);
