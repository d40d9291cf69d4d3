//! What breakers, budgets, outlier detection and overload limits cost a request that they let pass, and that they allocate
//! nothing: `cargo bench --bench guards`.

#![allow(clippy::unwrap_used)] // A benchmark that cannot be set up may panic, as a test may.

use criterion::{Criterion, criterion_group, criterion_main};
use gatewright::clock::{SharedClock, SystemClock};
use gatewright::state::StatePool;
use gatewright::upstream::{Beside, Upstream};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn guards(criterion: &mut Criterion) {
    let text = "endpoints = ['127.0.0.1:1', '127.0.0.1:2']\noutlier = { error_rate = '50%', latency_factor = 3 }\n\
                breaker = { scope = 'both', slow = '1s' }\noverload = { min = 1000, max = 1000 }";
    let clock: SharedClock = Arc::new(SystemClock);
    let upstream = Upstream::build("bench", &toml::from_str(text).unwrap(), Beside::default(), &StatePool::new(), &clock);
    let guards = upstream.guards();
    let endpoints = upstream.endpoints();
    let endpoint = endpoints.first().unwrap().guards();
    let (breaker, overload) = (guards.breaker.as_ref().unwrap(), guards.overload.as_ref().unwrap());
    let took = Some(Duration::from_millis(3));
    let now = Instant::now();

    let all = || {
        guards.budget.request(now);
        let place = overload.enter(100).unwrap();
        let permits = [breaker.admit(now).unwrap(), endpoint.breaker.as_ref().unwrap().admit(now).unwrap()];
        permits.into_iter().for_each(|permit| permit.record(false, took, now));
        endpoint.record(false, took, now);
        overload.answered(Duration::from_millis(3), now);
        drop(place);
    };
    all();
    assert_eq!(allocation_counter::measure(all).count_total, 0, "a request that passes allocates nothing");

    let mut group = criterion.benchmark_group("guards");
    group.bench_function("budget", |bencher| bencher.iter(|| guards.budget.request(black_box(now))));
    group.bench_function("breaker", |bencher| {
        bencher.iter(|| breaker.admit(black_box(now)).unwrap().record(false, took, now));
    });
    group.bench_function("outlier", |bencher| bencher.iter(|| endpoint.record(black_box(false), took, now)));
    group.bench_function("overload", |bencher| bencher.iter(|| drop(black_box(overload.enter(100)))));
    group.bench_function("all of them", |bencher| bencher.iter(all));
    group.finish();
}

criterion_group!(benches, guards);
criterion_main!(benches);
