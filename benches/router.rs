//! What a route look-up costs with 10, 1,000 and 10,000 routes: the last may cost at most twice the first, or the benchmark ends
//! with an error. Also what it costs to build the router, which a reload pays.
//!
//! The routes are those of a gateway with many tenants: a tenth as many hosts as routes, and on each host literal paths, a
//! param, a remainder and a method. Each round looks up a fixed shuffle of 4,096 requests over all of them, so that the
//! larger tables pay for their cache misses.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a benchmark may panic")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gatewright::diagnostic::Diagnostics;
use gatewright::route::{Found, MatchConfig, Params, Query, RouteEntry, Router};
use http::{HeaderMap, Method};
use std::hint::black_box;
use std::time::{Duration, Instant};

const SHAPES: [(&str, &str); 10] = [
    ("/", "/"),
    ("/api/v1/orders", "/api/v1/orders"),
    ("/api/v1/orders/{id}", "/api/v1/orders/48151623"),
    ("/api/v1/orders/{id}/items/{item}", "/api/v1/orders/48151623/items/42"),
    ("/api/v1/customers", "/api/v1/customers"),
    ("/api/v1/customers/{id}", "/api/v1/customers/7"),
    ("/api/v2/{*rest}", "/api/v2/any/thing/below"),
    ("/static/{*path}", "/static/app/main.css"),
    ("/login", "/login"),
    ("/health", "/health"),
];

fn host(number: usize) -> String {
    format!("tenant-{number}.example.com")
}

fn entries(count: usize) -> Vec<RouteEntry> {
    let mut d = Diagnostics::default();
    let entries = (0..count).map(|n| {
        let (pattern, _) = SHAPES[n % SHAPES.len()];
        let text = format!("host = '{}'\npath = '{pattern}'\nmethods = ['GET', 'POST']", host(n / SHAPES.len()));
        let config: MatchConfig = toml::from_str(&text).expect("a valid match table");
        RouteEntry { index: n as u32, matcher: config.compile(&mut d).expect("a possible match") }
    });
    entries.collect()
}

/// A router and the requests of one round.
struct Table {
    router: Router,
    requests: Vec<(String, &'static str, u32)>,
    headers: HeaderMap,
    params: Params,
}

impl Table {
    fn new(count: usize) -> Self {
        // A linear congruential generator: the same requests in every run.
        let mut seed = 1_u64;
        let requests = (0..4096).map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let route = (seed >> 33) as usize % count;
            (host(route / SHAPES.len()), SHAPES[route % SHAPES.len()].1, route as u32)
        });
        Table {
            router: Router::build(entries(count)).expect("no ambiguity"),
            requests: requests.collect(),
            headers: HeaderMap::new(),
            params: Params::default(),
        }
    }

    fn round(&mut self) {
        for (host, path, route) in &self.requests {
            let query = Query { host, path, method: &Method::GET, headers: &self.headers, query: None };
            assert_eq!(black_box(self.router.find(black_box(&query), &mut self.params)), Found::Route(*route));
        }
    }
}

/// The best of many rounds, in turns, so that a neighbour who takes the processor for a while takes it from both.
fn ratio() {
    let (mut few, mut many) = (Table::new(10), Table::new(10_000));
    let mut best = [Duration::MAX; 2];
    for _ in 0..200 {
        for (table, best) in [&mut few, &mut many].into_iter().zip(&mut best) {
            let begun = Instant::now();
            table.round();
            *best = begun.elapsed().min(*best);
        }
    }
    let ratio = best[1].as_secs_f64() / best[0].as_secs_f64();
    println!("10,000 routes cost {ratio:.2} times what 10 cost ({:?} against {:?} for 4,096 look-ups)", best[1], best[0]);
    // A test run executes this too, unoptimised: it only tells.
    assert!(cfg!(debug_assertions) || ratio <= 2.0, "the bound is 2");
}

fn find(c: &mut Criterion) {
    ratio();
    let mut group = c.benchmark_group("find");
    for count in [10, 1_000, 10_000] {
        let mut table = Table::new(count);
        group.throughput(Throughput::Elements(table.requests.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(count), |b| b.iter(|| table.round()));
    }
    group.finish();
}

fn build(c: &mut Criterion) {
    let entries = entries(10_000);
    c.bench_function("build/10000", |b| b.iter(|| Router::build(entries.clone()).expect("no ambiguity")));
}

criterion_group!(benches, find, build);
criterion_main!(benches);
