//! What it costs to choose an endpoint, and that it allocates nothing: `cargo bench --bench select`.
//!
//! The time must not depend on the number of endpoints, nor on their weights, because the order of turns is worked out
//! beforehand. The allocations are counted before anything is measured; a wrong count ends the run.

#![allow(clippy::unwrap_used)] // A benchmark that cannot be set up may panic, as a test may.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use gatewright::clock::{SharedClock, SystemClock};
use gatewright::state::StatePool;
use gatewright::upstream::{Beside, Tried, Upstream};
use std::fmt::Write;
use std::hint::black_box;
use std::sync::Arc;

fn allocations(work: impl FnOnce()) -> u64 {
    allocation_counter::measure(work).count_total
}

fn upstream(endpoints: usize, largest_weight: usize) -> Arc<Upstream> {
    let mut text = "health = { tcp = true }\nendpoints = [".to_owned();
    for at in 0..endpoints {
        let (high, low, weight) = (at / 250, at % 250 + 1, at % largest_weight + 1);
        write!(text, "{{ address = \"10.0.{high}.{low}:80\", weight = {weight} }}, ").unwrap();
    }
    text.push(']');
    let clock: SharedClock = Arc::new(SystemClock);
    Upstream::build("bench", &toml::from_str(&text).unwrap(), Beside::default(), &StatePool::new(), &clock)
}

fn select(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("select");
    for (endpoints, largest_weight) in [(1, 1), (10, 1), (10, 5), (1000, 1), (1000, 1000)] {
        let upstream = upstream(endpoints, largest_weight);
        let attempt = || upstream.select(&Tried::new()).unwrap().begin();
        // The first use of a thread allocates what arc-swap keeps for it.
        drop(attempt());
        assert_eq!(allocations(|| drop(black_box(attempt()))), 0, "choosing an endpoint allocates");
        let attempt_now = attempt();
        assert_eq!(allocations(|| drop(black_box(attempt_now.http_peer(None)))), 1, "a peer is one box");
        drop(attempt_now);
        let id = BenchmarkId::new(format!("weights up to {largest_weight}"), endpoints);
        group.bench_function(id, |bencher| bencher.iter(|| black_box(upstream.select(black_box(&Tried::new())))));
    }
    group.finish();

    let upstream = upstream(10, 1);
    let endpoint = upstream.select(&Tried::new()).unwrap();
    criterion.bench_function("begin and end an attempt", |bencher| bencher.iter(|| drop(black_box(endpoint.clone().begin()))));
    criterion.bench_function("peer", |bencher| bencher.iter(|| black_box(endpoint.http_peer(None))));
}

criterion_group!(benches, select);
criterion_main!(benches);
