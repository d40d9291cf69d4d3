//! What it costs to compress an answer: `cargo bench --bench compress`.
//!
//! A stored answer could be kept plain and compressed for each client, or kept once for each coding. These figures decide: next
//! to them stands what a whole hit costs (`benches/wrk/cache.sh`), see `gatewright::compress`.

#![allow(clippy::unwrap_used)] // A benchmark that cannot be set up may panic, as a test may.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gatewright::compress::{Coding, whole};
use std::hint::black_box;

/// A list of orders as an API returns it, up to `size` bytes, in pieces as they come from an upstream.
fn orders(size: usize) -> Vec<Bytes> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut text = String::from("[");
    while text.len() < size {
        let (id, cents, customer) = (random.u32(..), random.u32(..100_000), random.u64(..));
        let state = random.choice(["open", "paid", "shipped", "returned"]).unwrap();
        text.push_str(&format!(
            "{{\"id\":{id},\"customer\":\"{customer:016x}\",\"total\":{{\"cents\":{cents},\"currency\":\"EUR\"}},\"state\":\"{state}\"}},"
        ));
    }
    text.truncate(size);
    text.as_bytes().chunks(16 << 10).map(Bytes::copy_from_slice).collect()
}

fn compress(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compress");
    group.sample_size(30);
    for kib in [1, 16, 64] {
        let pieces = orders(kib << 10);
        group.throughput(Throughput::Bytes(kib as u64 * 1024));
        for coding in [Coding::Gzip, Coding::Br, Coding::Zstd] {
            let coded = whole(coding, &pieces).unwrap().len();
            assert!(coded * 2 < kib << 10, "{}: {coded} bytes of {kib} KiB", coding.as_str());
            let id = BenchmarkId::new(coding.as_str(), format!("{kib} KiB to {coded} B"));
            group.bench_function(id, |bencher| bencher.iter(|| whole(coding, black_box(&pieces)).unwrap()));
        }
    }
    group.finish();
}

criterion_group!(benches, compress);
criterion_main!(benches);
