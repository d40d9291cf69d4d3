//! Telemetry allocates nothing for a request once its buffers are warm. A test binary of its own, because counting needs
//! the process's global allocator.

use gatewright::rejection;
use gatewright::telemetry::access_log::{AccessLog, AccessLogOptions, AccessRecord};
use gatewright::telemetry::metrics::{Method, RouteMetrics, UpstreamMetrics};
use gatewright::telemetry::writer::{Output, Writer, WriterOptions};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Allocations that this thread makes in `work`, which runs once before to warm up.
fn allocations(mut work: impl FnMut()) -> u64 {
    work();
    allocation_counter::measure(|| (0..1000).for_each(|_| work())).count_total
}

#[test]
fn the_counter_of_this_test_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1_u8]))), 1000);
}

#[test]
fn an_access_log_line_allocates_nothing() {
    let output = Output::Custom("nowhere", Box::new(std::io::sink()));
    let writer = Writer::new(WriterOptions { queue_bytes: 16 << 20, ..WriterOptions::new("test", output) }).unwrap();
    let log = AccessLog::new(Arc::new(writer), AccessLogOptions::default());
    let record = AccessRecord {
        method: b"GET",
        host: b"api.example.com",
        path: b"/a\r\n\"\xff",
        endpoint: Some("[2001:db8::1]:65535".parse().unwrap()),
        status: Some(200),
        upstream_time: Some(Duration::from_millis(1)),
        user_agent: Some(&[0xff; 4000]),
        ..AccessRecord::new(SystemTime::now(), "0198f0a0-7c3e-7000-8000-000000000001", "2001:db8::2".parse().unwrap())
    };
    assert_eq!(allocations(|| log.write(&record)), 0);
    assert!(log.writer().flush(Duration::from_secs(20)));
    assert_eq!(log.writer().stats().records, 1001);
}

#[test]
fn metrics_allocate_nothing() {
    let (route, upstream) = (Arc::new(RouteMetrics::default()), UpstreamMetrics::new(&[]));
    let count = || {
        let _guard = route.begin();
        upstream.connected(Duration::from_micros(300));
        upstream.attempted(Some(200));
        route.rejected(&rejection::ROUTE_NOT_FOUND);
        route.end(Method::of(b"GET"), Some(404), Duration::from_millis(2), 1, 2);
    };
    assert_eq!(allocations(count), 0);
}
