//! What the checks of one endpoint have found, and what they conclude.
//!
//! The result of a check changes at most one thing, the `healthy` flag, and only through [`HealthState::record`]: the loop
//! that checks, the ring of the balancer and `/status` all go by it.

use super::Upstream;
use super::config::{HealthConfig, Protocol, StatusRange};
use super::dependents::Dependents;
use super::peer::Link;
use crate::clock::SharedClock;
use crate::tls::ClientTls;
use parking_lot::Mutex;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What is checked. State belongs to this: another definition finds out anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Definition {
    /// The endpoint accepts a connection.
    Tcp,
    /// The endpoint answers `GET path` with an expected status, in the protocol that requests use.
    Http { path: Box<str>, host: Box<str>, expect: StatusRange, http2: bool, tls: Option<Arc<ClientTls>> },
    /// The endpoint answers `SERVING` for this service, by the gRPC health checking protocol.
    Grpc { service: Box<str>, host: Box<str>, tls: Option<Arc<ClientTls>> },
}

impl Definition {
    pub(super) fn new(config: &HealthConfig, written: &str, link: &Link) -> Self {
        let host = || config.host.as_ref().map_or(written, |host| host.value.as_str()).into();
        match (&config.path, &config.grpc) {
            (None, None) => Definition::Tcp,
            (None, Some(service)) => {
                Definition::Grpc { service: service.value.as_str().into(), host: host(), tls: link.tls.clone() }
            }
            (Some(path), _) => Definition::Http {
                path: path.value.as_str().into(),
                host: host(),
                expect: config.expect.as_ref().map_or(StatusRange::SUCCESS, |expect| expect.value),
                http2: matches!(link.protocol, Protocol::H2 | Protocol::H2c),
                tls: link.tls.clone(),
            },
        }
    }
}

/// How often is checked, and how many results decide. A reload may change this under a state that stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    pub interval: Duration,
    pub timeout: Duration,
    pub rise: u32,
    pub fall: u32,
}

impl From<&HealthConfig> for Tuning {
    fn from(config: &HealthConfig) -> Self {
        Tuning {
            interval: config.interval.value.get(),
            timeout: config.timeout().get(),
            rise: (*config.rise).into(),
            fall: (*config.fall).into(),
        }
    }
}

/// Why a check failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckError {
    /// Nothing listens there.
    Refused,
    /// The connection could not be opened for another reason, such as no route to the host.
    Connect,
    /// No answer within the check's timeout.
    Timeout,
    /// The connection ended before an answer, or the answer was not HTTP.
    Protocol,
    /// An answer with a status that is not expected.
    Status(u16),
    /// A gRPC call that failed, with its code.
    Grpc(u8),
    /// A gRPC service that does not serve, with its `ServingStatus`: 0 unknown, 2 not serving, 3 service unknown.
    NotServing(u8),
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckError::Refused => f.write_str("connection refused"),
            CheckError::Connect => f.write_str("connection failed"),
            CheckError::Timeout => f.write_str("timed out"),
            CheckError::Protocol => f.write_str("no valid response"),
            CheckError::Status(status) => write!(f, "status {status}"),
            CheckError::Grpc(code) => write!(f, "gRPC status {code}"),
            CheckError::NotServing(status) => write!(f, "gRPC serving status {status}"),
        }
    }
}

/// What is known from the checks so far.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub healthy: bool,
    /// Checks in a row with the result of the last one.
    pub streak: u32,
    /// Since when it is healthy again; `None` if it never was anything else.
    pub recovered: Option<Instant>,
    pub checks_ok: u64,
    pub checks_failed: u64,
    pub last_check: Option<Instant>,
    /// How long the last check that got an answer took: to the head of the response, or to the connection.
    pub last_response_time: Option<Duration>,
    /// Why the last check failed; `None` if it passed.
    pub last_error: Option<CheckError>,
    /// When the next check is due; `None` before the first.
    pub next_check: Option<Instant>,
}

/// The health of one address of one upstream under one definition.
#[derive(Debug)]
pub struct HealthState {
    definition: Definition,
    port: Option<u16>,
    clock: SharedClock,
    healthy: AtomicBool,
    /// Written by the endpoint's check loop, read by expositions; never touched by a request that finds an endpoint.
    report: Mutex<Report>,
    /// The upstreams whose ring depends on this: one for each build that is still in use.
    dependents: Dependents,
}

impl HealthState {
    pub(super) fn new(definition: Definition, port: Option<u16>, clock: SharedClock) -> Self {
        // Healthy until a check says otherwise: a gateway that starts, or gains an endpoint, serves at once.
        let report = Report { healthy: true, ..Report::default() };
        HealthState {
            definition,
            port,
            clock,
            healthy: AtomicBool::new(true),
            report: Mutex::new(report),
            dependents: Dependents::default(),
        }
    }

    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// Where an endpoint with this address is asked.
    pub fn target(&self, mut address: SocketAddr) -> SocketAddr {
        if let Some(port) = self.port {
            address.set_port(port);
        }
        address
    }

    pub fn report(&self) -> Report {
        self.report.lock().clone()
    }

    /// How long until the next check; zero if it is due.
    pub fn time_to_next_check(&self) -> Option<Duration> {
        let next = self.report.lock().next_check?;
        Some(next.saturating_duration_since(self.clock.now()))
    }

    pub(super) fn depend(&self, upstream: &Arc<Upstream>) {
        self.dependents.add(upstream);
    }

    pub(super) fn expect_next(&self, wait: Duration) {
        self.report.lock().next_check = self.clock.now().checked_add(wait);
    }

    /// Takes the result of one check: the response time, or why it failed. Returns the new health if this changed it; then
    /// the rings of all upstreams that depend on it have been rebuilt.
    ///
    /// While the endpoint has never passed a check, the last check alone decides: one that never worked should not get
    /// `fall` intervals of traffic, and one that comes up for the first time need not wait for `rise`.
    pub(super) fn record(&self, result: Result<Duration, CheckError>, tuning: &Tuning) -> Option<bool> {
        let changed = {
            let mut report = self.report.lock();
            let first_pass_pending = report.checks_ok == 0;
            let repeats = report.last_check.is_some() && report.last_error.is_none() == result.is_ok();
            report.streak = if repeats { report.streak.saturating_add(1) } else { 1 };
            report.last_check = Some(self.clock.now());
            report.last_error = result.err();
            match result {
                Ok(took) => {
                    report.checks_ok += 1;
                    report.last_response_time = Some(took);
                }
                Err(_) => report.checks_failed += 1,
            }
            let needed = match result {
                _ if first_pass_pending => 1,
                Ok(_) => tuning.rise,
                Err(_) => tuning.fall,
            };
            let changes = report.healthy != result.is_ok() && report.streak >= needed;
            if changes {
                report.healthy = result.is_ok();
                report.recovered = Some(self.clock.now());
                self.healthy.store(report.healthy, Ordering::Release);
            }
            changes.then_some(report.healthy)
        };
        if changed.is_some() {
            self.dependents.tell(|upstream| upstream.rebuild_ring());
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const TUNING: Tuning = Tuning { interval: Duration::from_secs(5), timeout: Duration::from_secs(1), rise: 2, fall: 3 };
    const PASS: Result<Duration, CheckError> = Ok(Duration::from_millis(7));
    const FAIL: Result<Duration, CheckError> = Err(CheckError::Status(500));

    fn changes(state: &HealthState, results: &[Result<Duration, CheckError>]) -> Vec<Option<bool>> {
        results.iter().map(|result| state.record(*result, &TUNING)).collect()
    }

    fn state() -> HealthState {
        HealthState::new(Definition::Tcp, None, ManualClock::new())
    }

    #[test]
    fn unknown_is_healthy_and_the_first_check_decides() {
        let state = state();
        assert!(state.is_healthy());
        assert_eq!(changes(&state, &[FAIL, FAIL, PASS]), [Some(false), None, Some(true)]);
    }

    #[test]
    fn after_a_first_pass_rise_and_fall_decide() {
        let state = state();
        assert_eq!(changes(&state, &[PASS, FAIL, FAIL, PASS, FAIL, FAIL]), [None; 6], "two failures in a row are not three");
        assert_eq!(changes(&state, &[FAIL]), [Some(false)]);
        assert_eq!(changes(&state, &[PASS, FAIL, PASS, PASS]), [None, None, None, Some(true)]);
        assert!(state.is_healthy());
    }

    #[test]
    fn the_report_says_what_was_found() {
        let clock = ManualClock::new();
        let state = HealthState::new(Definition::Tcp, None, clock.clone());
        changes(&state, &[PASS, FAIL, FAIL]);
        state.expect_next(Duration::from_secs(5));
        clock.advance(Duration::from_secs(2));
        let report = state.report();
        assert_eq!((report.healthy, report.streak, report.checks_ok, report.checks_failed), (true, 2, 1, 2));
        assert_eq!((report.last_response_time, report.last_error), (PASS.ok(), FAIL.err()));
        assert_eq!(state.time_to_next_check(), Some(Duration::from_secs(3)));
    }
}
