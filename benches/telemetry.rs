//! What a request pays for being counted and logged: a counter, a histogram, an access log line, a line of the log that
//! the rate limit drops. `cargo bench --bench telemetry`; the cases with `_contended` have a second thread do the same.
#![allow(clippy::unwrap_used, reason = "a bench that cannot start has nothing to measure")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gatewright::telemetry::access_log::{AccessLog, AccessLogOptions, AccessRecord};
use gatewright::telemetry::histogram::Histogram;
use gatewright::telemetry::logger::{LoggerHandle, LoggerOptions};
use gatewright::telemetry::metrics::{Method, RouteMetrics};
use gatewright::telemetry::writer::{Output, Writer, WriterOptions};
use log::{Level, Log, Record};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

fn record() -> AccessRecord<'static> {
    AccessRecord {
        listener: Some("https"),
        method: b"GET",
        host: b"api.example.com",
        path: b"/v1/orders/0198f0a0-7c3e-7000-8000-000000000001",
        protocol: "HTTP/1.1",
        route: Some("orders"),
        upstream: Some("orders"),
        endpoint: Some(([10, 0, 0, 4], 3001).into()),
        consumer: Some("acme"),
        status: Some(200),
        bytes_out: 5_120,
        duration: Duration::from_micros(12_345),
        upstream_time: Some(Duration::from_micros(12_001)),
        attempts: 1,
        reused: Some(true),
        cache: None,
        user_agent: Some(b"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
        ..AccessRecord::new(SystemTime::now(), "0198f0a0-7c3e-7000-8000-000000000001", [192, 0, 2, 7].into())
    }
}

fn access_log() -> AccessLog {
    let output = Output::Custom("nowhere", Box::new(std::io::sink()));
    let options = WriterOptions { queue_bytes: 64 << 20, ..WriterOptions::new("bench", output) };
    AccessLog::new(Arc::new(Writer::new(options).unwrap()), AccessLogOptions::default())
}

/// Runs `measure` while a second thread does `work` as fast as it can.
fn contended(work: impl Fn() + Send + Sync, measure: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                work();
            }
        });
        measure();
        stop.store(true, Ordering::Relaxed);
    });
}

fn benches(c: &mut Criterion) {
    let metrics = Arc::new(RouteMetrics::default());
    let end =
        || metrics.end(Method::of(black_box(b"GET")), black_box(Some(200)), black_box(Duration::from_micros(700)), 0, 5_120);
    c.bench_function("route_metrics_end", |b| b.iter(end));
    contended(end, || {
        c.bench_function("route_metrics_end_contended", |b| b.iter(end));
    });
    c.bench_function("in_flight_guard", |b| b.iter(|| metrics.begin()));

    let histogram = Histogram::default();
    c.bench_function("histogram_observe", |b| b.iter(|| histogram.observe(black_box(Duration::from_micros(700)))));

    let log = access_log();
    let record = record();
    let line = || log.write(black_box(&record));
    let mut group = c.benchmark_group("access_log");
    group.throughput(Throughput::Elements(1));
    group.bench_function("line", |b| b.iter(line));
    contended(line, || {
        group.bench_function("line_contended", |b| b.iter(line));
    });
    let hostile = AccessRecord { user_agent: Some(b"\"\\\r\n\xff\x01\"\\\r\n\xff\x01\"\\\r\n\xff\x01"), ..record.clone() };
    group.bench_function("line_with_escapes", |b| b.iter(|| log.write(black_box(&hostile))));
    let lost = log.writer().stats();
    group.finish();
    println!("access log: {} lines written, {} dropped", lost.records, lost.dropped);

    let output = Output::Custom("nowhere", Box::new(std::io::sink()));
    let logger = LoggerHandle::new(LoggerOptions { output, ..LoggerOptions::default() }).unwrap();
    let flood = || {
        logger.log(&Record::builder().level(Level::Error).target("pingora_proxy").args(format_args!("Fail to proxy")).build());
    };
    c.bench_function("log_line_in_a_flood", |b| b.iter(flood));
}

criterion_group!(telemetry, benches);
criterion_main!(telemetry);
