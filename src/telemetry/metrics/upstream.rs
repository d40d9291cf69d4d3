//! What is counted for each upstream, and what an endpoint shows at a scrape.

use super::label::{STATUS_CLASSES, StatusClass};
use super::{Counter, Reasons};
use crate::telemetry::histogram::Histogram;
use std::time::{Duration, SystemTime};

#[derive(Debug)]
pub struct UpstreamMetrics {
    responses: [Counter; STATUS_CLASSES.len()],
    /// From the start of an attempt to the header of its response.
    pub response_time: Histogram,
    /// Of connections that were opened, handshake included.
    pub connect_time: Histogram,
    connects_new: Counter,
    connects_reused: Counter,
    /// Attempts to connect that failed.
    pub connect_failures: Counter,
    /// Attempts after the first of a request.
    pub retries: Counter,
    /// Answers over HTTP/1 that were not understood, or could have been in two ways.
    pub malformed: Reasons,
}

impl UpstreamMetrics {
    /// With the reasons for which answers are refused.
    pub fn new(malformations: &'static [&'static str]) -> Self {
        UpstreamMetrics {
            responses: Default::default(),
            response_time: Histogram::default(),
            connect_time: Histogram::default(),
            connects_new: Counter::default(),
            connects_reused: Counter::default(),
            connect_failures: Counter::default(),
            retries: Counter::default(),
            malformed: Reasons::new(malformations),
        }
    }

    /// Counts an attempt that is over; `None` if no response came.
    pub fn attempted(&self, status: Option<u16>) {
        if let Some(counter) = self.responses.get(StatusClass::of_sent(status).index()) {
            counter.increment();
        }
    }

    /// Counts a connection that was opened for an attempt.
    pub fn connected(&self, took: Duration) {
        self.connects_new.increment();
        self.connect_time.observe(took);
    }

    /// Counts an attempt that used a connection from the pool.
    pub fn reused(&self) {
        self.connects_reused.increment();
    }

    /// All counts of attempts with the class of their response.
    pub fn attempts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        STATUS_CLASSES.iter().zip(&self.responses).map(|(class, counter)| (*class, counter.get()))
    }

    /// Connections used: newly opened, and from the pool.
    pub fn connects(&self) -> (u64, u64) {
        (self.connects_new.get(), self.connects_reused.get())
    }
}

/// Copies of the requests of a route, at the time of a scrape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorSample {
    pub route: String,
    pub results: [(&'static str, u64); 4],
}

/// What was discovered for an upstream, at the time of a scrape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoverySample {
    pub upstream: String,
    pub endpoints: usize,
    pub unused: usize,
    pub age: Option<Duration>,
    /// By reason.
    pub failures: Vec<(&'static str, u64)>,
}

/// One endpoint at the time of a scrape. Its state belongs to the upstream; this is what that state shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSample {
    pub upstream: String,
    /// The address, as in the config.
    pub endpoint: String,
    /// Whether it may be chosen.
    pub healthy: bool,
    /// An operator has taken it out.
    pub drained: bool,
    pub in_flight: u64,
    pub requests: u64,
    pub connect_failures: u64,
    pub checks_ok: u64,
    pub checks_failed: u64,
    /// When the last health check ended; `None` if there was none.
    pub last_check: Option<SystemTime>,
}
