//! What a decision of the local store costs: `cargo bench --bench limit`.
//!
//! For a key that is known, for keys that come and go, and for threads that meet at one key. The allocations are counted
//! before anything is measured; a wrong count ends the run.

#![allow(clippy::unwrap_used)] // A benchmark that cannot be set up may panic, as a test may.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use gatewright::clock::SystemClock;
use gatewright::limit::config::compile_all;
use gatewright::limit::local::LocalStore;
use gatewright::limit::redis::SharedSet;
use gatewright::limit::redis::lease::{Book, Spent};
use gatewright::limit::{Decision, Limit, LimitConfig, Standing};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

fn limits(list: &[&str]) -> Vec<Limit> {
    let configs: Vec<LimitConfig> = list.iter().map(|text| toml::from_str(text).unwrap()).collect();
    compile_all(&configs).unwrap()
}

fn decide(criterion: &mut Criterion) {
    let store = LocalStore::new(64 << 20, Arc::new(SystemClock));
    let rate = "rate = '1000000000/1s'";
    let sets = [
        ("one rate", limits(&[rate])),
        ("a sliding window", limits(&["rate = '1/365d'\nalgorithm = 'sliding_window'"])),
        ("a rate and a quota", limits(&[rate, "quota = '1000000000000/1mo'"])),
    ];
    let mut group = criterion.benchmark_group("local limit, a known key");
    for (name, limits) in sets {
        let set = store.set(name, &limits);
        store.take(&set, b"a:192.0.2.7", 1);
        let count = allocation_counter::measure(|| drop(black_box(store.take(&set, b"a:192.0.2.7", 1)))).count_total;
        assert_eq!(count, 0, "a decision allocates");
        group.bench_function(name, |bencher| bencher.iter(|| black_box(store.take(&set, black_box(b"a:192.0.2.7"), 1))));
    }
    group.finish();

    let set = store.set("many", &limits(&[rate]));
    let mut group = criterion.benchmark_group("local limit, keys in turn");
    for keys in [1_000_u64, 100_000, 10_000_000] {
        let mut key = 0;
        group.bench_function(BenchmarkId::from_parameter(keys), |bencher| {
            bencher.iter(|| {
                key = (key + 1) % keys;
                black_box(store.take(&set, &key.to_be_bytes(), 1))
            });
        });
    }
    group.finish();

    let book = Book::default();
    let shared = Arc::new(SharedSet::new("lease", &limits(&[rate]), 1_000_000_000));
    let admitted = Decision::Admitted(std::iter::once(Standing { remaining: 1, more_in: 1, idle_in: 0 }).collect());
    criterion.bench_function("a use from a lease", |bencher| {
        bencher.iter(|| match book.spend(&shared, black_box(b"a:192.0.2.7"), 1, 1) {
            Spent::Here { decision, errand, .. } => {
                if let Some(errand) = errand {
                    book.answered(&shared, b"a:192.0.2.7", &errand, &admitted, (500_000_000, u64::MAX), 1);
                }
                drop(black_box(decision));
            }
            Spent::Ask(errand) => book.answered(&shared, b"a:192.0.2.7", &errand, &admitted, (500_000_000, u64::MAX), 1),
        });
    });

    criterion.bench_function("local limit, two threads and one key", |bencher| {
        bencher.iter_custom(|times| {
            let begun = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| (0..times).for_each(|_| drop(black_box(store.take(&set, b"one", 1)))));
                }
            });
            begun.elapsed()
        });
    });
}

criterion_group!(benches, decide);
criterion_main!(benches);
