//! What it costs to choose an endpoint, and that it allocates nothing: `cargo bench --bench select`.
//!
//! The time must not depend on the number of endpoints, nor on their weights, whatever the way of choosing, because what can
//! be is worked out beforehand. The allocations are counted before anything is measured; a wrong count ends the run.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // A benchmark that cannot be set up may panic, as a test may.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use gatewright::clock::{SharedClock, SystemClock};
use gatewright::http1::trailers::Passing;
use gatewright::state::StatePool;
use gatewright::upstream::balance::{Balance, Sticky};
use gatewright::upstream::{Beside, Facts, Tried, Upstream, UpstreamConfig};
use gatewright::value::Secret;
use http::{HeaderMap, HeaderName};
use std::fmt::Write;
use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

fn allocations(work: impl FnOnce()) -> u64 {
    allocation_counter::measure(work).count_total
}

const WAYS: [(&str, &str); 6] = [
    ("round_robin", "'round_robin'"),
    ("least_requests", "'least_requests'"),
    ("peak_ewma", "'peak_ewma'"),
    ("random", "'random'"),
    ("hash", "{ hash = { by = ['header:x-user'] } }"),
    ("sticky", "{ sticky = { secret = { env = 'X' } } }"),
];

fn balanced(endpoints: usize, balance: &str) -> Arc<Upstream> {
    let config: UpstreamConfig = toml::from_str(&format!("balance = {balance}\n{}", text(endpoints, 1))).unwrap();
    let sticky = match &config.balance.value {
        Balance::Sticky(sticky) => Sticky::new(sticky, "bench", &Secret::new("0123456789abcdef")).map(Arc::new),
        _ => None,
    };
    let clock: SharedClock = Arc::new(SystemClock);
    Upstream::build("bench", &config, Beside { sticky, ..Beside::default() }, &StatePool::new(), &clock)
}

fn upstream(endpoints: usize, largest_weight: usize) -> Arc<Upstream> {
    let clock: SharedClock = Arc::new(SystemClock);
    let config = toml::from_str(&text(endpoints, largest_weight)).unwrap();
    Upstream::build("bench", &config, Beside::default(), &StatePool::new(), &clock)
}

fn text(endpoints: usize, largest_weight: usize) -> String {
    let mut text = "health = { tcp = true }\nendpoints = [".to_owned();
    for at in 0..endpoints {
        let (high, low, weight) = (at / 250, at % 250 + 1, at % largest_weight + 1);
        write!(text, "{{ address = \"10.0.{high}.{low}:80\", weight = {weight} }}, ").unwrap();
    }
    text.push(']');
    text
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
        assert_eq!(
            allocations(|| drop(black_box(attempt_now.http_peer(None, Instant::now(), Passing::default())))),
            2,
            "the peer, and what dials for it"
        );
        drop(attempt_now);
        let id = BenchmarkId::new(format!("weights up to {largest_weight}"), endpoints);
        group.bench_function(id, |bencher| bencher.iter(|| black_box(upstream.select(black_box(&Tried::new())))));
    }
    group.finish();

    // Each way of choosing at three sizes: the time must not grow with the number of endpoints.
    let mut group = criterion.benchmark_group("select by");
    for (name, balance) in WAYS {
        for endpoints in [10, 100, 1000] {
            let upstream = balanced(endpoints, balance);
            let cookie = upstream.endpoints()[endpoints / 2]
                .cookie()
                .map_or("u=1".to_owned(), |cookie| format!("gatewright_endpoint_bench={}", cookie.value));
            let headers = HeaderMap::from_iter([
                (http::header::COOKIE, cookie.parse().unwrap()),
                (HeaderName::from_static("x-user"), "ada".parse().unwrap()),
            ]);
            let client = IpAddr::from([192, 0, 2, 7]);
            let facts = Facts { headers: &headers, query: None, client, identity: None };
            let choose = || upstream.select_for(&Tried::new(), Some(&facts));
            drop(choose());
            assert_eq!(allocations(|| drop(black_box(choose()))), 0, "choosing by {name} allocates");
            group.bench_function(BenchmarkId::new(name, endpoints), |bencher| bencher.iter(|| black_box(choose())));
        }
    }
    group.finish();

    // Not on the path of a request, but whenever health or membership changes.
    let mut group = criterion.benchmark_group("rebuild");
    group.sample_size(10);
    for (name, balance) in [("round_robin", "'round_robin'"), ("hash", "{ hash = { by = ['header:x-user'] } }")] {
        let text = text(1000, 1);
        let config = toml::from_str(&format!("balance = {balance}\n{text}")).unwrap();
        let clock: SharedClock = Arc::new(SystemClock);
        let pool = StatePool::new();
        group.bench_function(BenchmarkId::new(name, 1000), |bencher| {
            bencher.iter(|| black_box(Upstream::build("bench", &config, Beside::default(), &pool, &clock)));
        });
    }
    group.finish();

    let upstream = upstream(10, 1);
    let endpoint = upstream.select(&Tried::new()).unwrap();
    criterion.bench_function("begin and end an attempt", |bencher| bencher.iter(|| drop(black_box(endpoint.clone().begin()))));
    criterion.bench_function("peer", |bencher| {
        bencher.iter(|| black_box(endpoint.http_peer(None, Instant::now(), Passing::default())))
    });
}

criterion_group!(benches, select);
criterion_main!(benches);
