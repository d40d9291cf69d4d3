//! What is counted for each route.

use super::Counter;
use super::label::{METHODS, Method, STATUS_CLASSES, StatusClass};
use crate::rejection::{self, Code};
use crate::telemetry::histogram::Histogram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The label of requests that no route matched, malformed ones included. No name in a config begins with an underscore.
pub const NO_ROUTE: &str = "_none";

/// With thousands of routes these are in no near cache when a request comes. So what each request counts stands together, in the
/// order in which it is written here, behind the reference count: three or four cache lines.
#[derive(Debug)]
#[repr(C)]
pub struct RouteMetrics {
    in_flight: AtomicU64,
    bytes_in: Counter,
    bytes_out: Counter,
    duration: Histogram,
    requests: [[Counter; STATUS_CLASSES.len()]; METHODS.len()],
    /// One for each of `rejection::ALL`, and one more for codes that are not of this crate.
    rejections: Box<[Counter]>,
}

/// A request of a route. A panic or a dropped future ends it like any other end. It is no [`super::GaugeGuard`], whose number is
/// an allocation of its own.
#[derive(Debug)]
pub struct UnderWay(Arc<RouteMetrics>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        // Each takes back the one that it added, so this cannot go below zero.
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for RouteMetrics {
    fn default() -> Self {
        RouteMetrics {
            in_flight: AtomicU64::new(0),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            duration: Histogram::default(),
            requests: Default::default(),
            rejections: (0..=rejection::ALL.len()).map(|_| Counter::default()).collect(),
        }
    }
}

impl RouteMetrics {
    /// Counts a request as under way, until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> UnderWay {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    /// Counts a request that is over. `status`: `None` if no response was sent. Bytes are those of the bodies.
    pub fn end(&self, method: Method, status: Option<u16>, duration: Duration, bytes_in: u64, bytes_out: u64) {
        let class = StatusClass::of_sent(status);
        if let Some(counter) = self.requests.get(method.index()).and_then(|classes| classes.get(class.index())) {
            counter.increment();
        }
        self.duration.observe(duration);
        self.bytes_in.add(bytes_in);
        self.bytes_out.add(bytes_out);
    }

    /// Counts an answer that the gateway made.
    pub fn rejected(&self, code: &'static Code) {
        // A code is the entry of the table itself, so its address tells it; comparing texts would cost more.
        let known = rejection::ALL.iter().position(|known| std::ptr::eq(*known, code));
        if let Some(counter) = self.rejections.get(known.unwrap_or(rejection::ALL.len())) {
            counter.increment();
        }
    }

    /// All counts with their method and class.
    pub fn requests(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        METHODS.iter().zip(&self.requests).flat_map(|(method, classes)| {
            STATUS_CLASSES.iter().zip(classes).map(|(class, counter)| (*method, *class, counter.get()))
        })
    }

    /// All counts with their code; codes of other crates together as `other`.
    pub fn rejections(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let codes = rejection::ALL.iter().map(|code| code.code).chain(["other"]);
        codes.zip(&self.rejections).map(|(code, counter)| (code, counter.get()))
    }

    pub fn duration(&self) -> &Histogram {
        &self.duration
    }

    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.get()
    }

    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.get()
    }

    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rejection_counts_under_its_own_code() {
        let metrics = RouteMetrics::default();
        for (times, code) in rejection::ALL.iter().enumerate() {
            (0..=times).for_each(|_| metrics.rejected(code));
        }
        static FOREIGN: Code = Code { status: 418, code: "request_malformed", title: "Not of this crate" };
        metrics.rejected(&FOREIGN);
        let counts: Vec<u64> = metrics.rejections().map(|(_, count)| count).collect();
        let expected: Vec<u64> = (1..=rejection::ALL.len() as u64).chain([1]).collect();
        assert_eq!(counts, expected);
        assert_eq!(metrics.rejections().last(), Some(("other", 1)));
    }

    #[test]
    fn a_request_counts_once_by_method_and_class() {
        let metrics = Arc::new(RouteMetrics::default());
        let guard = metrics.begin();
        assert_eq!(metrics.in_flight(), 1);
        metrics.end(Method::of(b"PATCH"), Some(404), Duration::from_millis(3), 10, 20);
        metrics.end(Method::of(b"BREW"), None, Duration::from_millis(4), 1, 2);
        drop(guard);
        let seen: Vec<_> = metrics.requests().filter(|(.., count)| *count > 0).collect();
        assert_eq!(seen, [("PATCH", "4xx", 1), ("_OTHER", "none", 1)]);
        assert_eq!((metrics.bytes_in(), metrics.bytes_out(), metrics.in_flight()), (11, 22, 0));
        assert_eq!(metrics.duration().sample().count(), 2);
    }
}
