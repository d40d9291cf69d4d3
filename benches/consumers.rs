//! What it costs to know who calls: `cargo bench --bench consumers`.
//!
//! Loading 100,000 consumers from text to a compiled index must take less than two seconds: a longer run ends the benchmark
//! with an error. So does one in which finding a consumer by its key depends on how many there are: among 100,000 it may take five
//! times as long as among ten, which leaves room for what no longer fits into the caches of the processor.

#![allow(clippy::unwrap_used, clippy::panic)] // A benchmark that cannot be set up may panic, as a test may.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use gatewright::config::load_text;
use gatewright::consumer::{Consumers, KeyDigest};
use gatewright::filter::Registry;
use std::fmt::Write;
use std::hint::black_box;
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(2);

/// A configuration with so many consumers; number N has the key `key-N`.
fn text(consumers: usize) -> String {
    let mut text = "[listeners.http]\naddress = \"127.0.0.1:0\"\n[tiers.gold]\n".to_owned();
    for number in 0..consumers {
        let sha256 = KeyDigest::of(format!("key-{number}").as_bytes());
        write!(text, "[consumers.c{number}]\ntier = \"gold\"\nroles = [\"orders:read\", \"orders:write\"]\n").unwrap();
        writeln!(text, "credentials = [{{ api_key = {{ sha256 = \"{sha256}\" }} }}]").unwrap();
    }
    text
}

fn load(text: &str) -> Consumers {
    let mut loaded = load_text("bench.toml", text, &Registry::builtin(), &|_| None);
    let consumers = loaded.config.consumers.values().map(|entry| (&entry.name, &entry.value));
    let tiers = loaded.config.tiers.iter().map(|(name, entry)| (name.as_str(), &entry.value));
    let built = Consumers::build(consumers, tiers, &mut loaded.diagnostics);
    assert!(!loaded.diagnostics.has_errors(), "{}", loaded.diagnostics.render(false));
    built
}

fn consumers(c: &mut Criterion) {
    let many = text(100_000);
    let begun = Instant::now();
    assert_eq!(load(&many).len(), 100_000);
    let took = begun.elapsed();
    println!("100,000 consumers load in {took:?}");
    // A test run executes this too, unoptimised and beside others: it only tells.
    assert!(cfg!(debug_assertions) || took < BOUND, "the bound is {BOUND:?}");

    let mut group = c.benchmark_group("find a consumer by key");
    let fastest = [10, 1_000, 100_000].map(|count| {
        let all = load(&text(count));
        let keys: Vec<String> = (0..count).step_by(count / 10).map(|number| format!("key-{number}")).collect();
        let mut next = keys.iter().cycle();
        group.bench_function(BenchmarkId::new("known", count), |b| {
            b.iter(|| assert!(all.by_api_key(&KeyDigest::of(black_box(next.next().unwrap()).as_bytes())).is_some()));
        });
        group.bench_function(BenchmarkId::new("unknown", count), |b| {
            b.iter(|| assert!(all.by_api_key(&KeyDigest::of(black_box(b"key-unknown"))).is_none()));
        });
        fastest_look_up(&all, count)
    });
    group.finish();
    let [few, _, many] = fastest;
    println!("finding one of 10 takes {few:?}, one of 100,000 {many:?}");
    assert!(cfg!(debug_assertions) || many <= few * 5, "it takes {few:?} among 10, and {many:?} among 100,000");
}

/// How long a look-up takes, at best: the machine can only make a round longer.
fn fastest_look_up(all: &Consumers, count: usize) -> Duration {
    const LOOK_UPS: usize = 10_000;
    let keys: Vec<String> = (0..count).step_by((count / 1_000).max(1)).map(|number| format!("key-{number}")).collect();
    let round = |_| {
        let begun = Instant::now();
        for key in keys.iter().cycle().take(LOOK_UPS) {
            assert!(all.by_api_key(&KeyDigest::of(black_box(key).as_bytes())).is_some());
        }
        begun.elapsed()
    };
    // In one round a look-up is too short to be told.
    (0..20).map(round).min().unwrap() / LOOK_UPS as u32
}

criterion_group!(benches, consumers);
criterion_main!(benches);
