//! Names of endpoints, looked up in the background.
//!
//! A name's answer is shared by all upstreams that use it and outlives reloads, so that a reload starts with the addresses
//! that are in use. A failed look-up changes nothing: an endpoint that works is worth more than a resolver that does not.

use super::Upstream;
use super::dependents::Dependents;
use crate::clock::SharedClock;
use async_trait::async_trait;
use parking_lot::Mutex;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most addresses that are used of one answer; the lowest ones if there are more.
pub const ANSWER_MAX: usize = 256;

/// Finds the addresses of a name. Their ports have no meaning.
#[async_trait]
pub trait Resolve: Send + Sync + 'static {
    async fn resolve(&self, host: &str) -> io::Result<Vec<SocketAddr>>;
}

/// The system's resolver, which knows `/etc/hosts` and `/etc/resolv.conf`. It runs on tokio's pool for blocking work.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, 0)).await?.collect())
    }
}

/// How often a name is looked up, and how long that may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refresh {
    pub interval: Duration,
    pub timeout: Duration,
}

/// What is known of one name.
#[derive(Debug)]
pub struct NameState {
    host: Arc<str>,
    clock: SharedClock,
    known: Mutex<Known>,
    dependents: Dependents,
}

#[derive(Debug, Default)]
struct Known {
    /// The last good answer: sorted, without duplicates, never empty.
    addresses: Option<Arc<[SocketAddr]>>,
    failing: bool,
    next: Option<Instant>,
}

impl NameState {
    pub(super) fn new(host: Arc<str>, clock: SharedClock) -> Self {
        NameState { host, clock, known: Mutex::default(), dependents: Dependents::default() }
    }

    pub fn host(&self) -> &Arc<str> {
        &self.host
    }

    /// The last good answer; `None` before the first.
    pub fn addresses(&self) -> Option<Arc<[SocketAddr]>> {
        self.known.lock().addresses.clone()
    }

    /// Whether the last look-up failed.
    pub fn is_failing(&self) -> bool {
        self.known.lock().failing
    }

    /// Whether it was looked up at least once, with whatever result.
    pub(super) fn was_tried(&self) -> bool {
        let known = self.known.lock();
        known.failing || known.addresses.is_some()
    }

    /// How long until the next look-up; zero if it is due.
    pub fn time_to_next_lookup(&self) -> Option<Duration> {
        let next = self.known.lock().next?;
        Some(next.saturating_duration_since(self.clock.now()))
    }

    pub(super) fn expect_next(&self, wait: Duration) {
        self.known.lock().next = self.clock.now().checked_add(wait);
    }

    pub(super) fn depend(&self, upstream: &Arc<Upstream>) {
        self.dependents.add(upstream);
    }

    /// Takes the result of a look-up. `true` if the addresses changed; then the endpoints of all upstreams that use the name have
    /// been renewed. Each change is logged once, a failure when it begins and when it ends.
    pub(super) fn record(&self, result: io::Result<Vec<SocketAddr>>) -> bool {
        let result = result.and_then(|addresses| match tidy(addresses) {
            none if none.is_empty() => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses")),
            some => Ok(some),
        });
        let changed = {
            let mut known = self.known.lock();
            let was_failing = std::mem::replace(&mut known.failing, result.is_err());
            match result {
                Err(error) => {
                    if !was_failing {
                        let kept = known.addresses.as_ref().map_or(0, |kept| kept.len());
                        log::warn!("cannot resolve {}: {error}; {kept} known addresses stay in use", self.host);
                    }
                    false
                }
                Ok(addresses) => {
                    if was_failing {
                        log::info!("{} resolves again", self.host);
                    }
                    let changed = known.addresses.as_deref() != Some(&*addresses);
                    if changed {
                        log::info!("{} resolves to {addresses:?}", self.host);
                        known.addresses = Some(addresses.into());
                    }
                    changed
                }
            }
        };
        if changed {
            self.dependents.tell(|upstream| upstream.renew_endpoints());
        }
        changed
    }
}

/// Resolvers shuffle their answers; sorted ones can be compared.
fn tidy(mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    addresses.iter_mut().for_each(|address| address.set_port(0));
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(ANSWER_MAX);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn answer(addresses: &[&str]) -> io::Result<Vec<SocketAddr>> {
        Ok(addresses.iter().map(|address| format!("{address}:0").parse().unwrap()).collect())
    }

    #[test]
    fn answers_are_sorted_and_free_of_duplicates() {
        let name = NameState::new("a".into(), ManualClock::new());
        assert!(name.record(answer(&["127.0.0.2", "127.0.0.1", "127.0.0.2"])));
        assert_eq!(name.addresses().unwrap().to_vec(), answer(&["127.0.0.1", "127.0.0.2"]).unwrap());
        assert!(!name.record(answer(&["127.0.0.2", "127.0.0.1"])), "another order is the same answer");
    }

    #[test]
    fn a_failure_keeps_the_last_good_answer() {
        let name = NameState::new("a".into(), ManualClock::new());
        assert!(name.record(answer(&["127.0.0.1"])));
        for failure in [Err(io::ErrorKind::TimedOut.into()), answer(&[])] {
            assert!(!name.record(failure));
            assert!(name.is_failing());
            assert_eq!(name.addresses().unwrap().to_vec(), answer(&["127.0.0.1"]).unwrap());
        }
        assert!(!name.record(answer(&["127.0.0.1"])), "back to the same answer is no change");
        assert!(!name.is_failing());
    }

    #[test]
    fn an_answer_is_bounded() {
        let many: Vec<SocketAddr> = (0..1000_u32).map(|n| SocketAddr::from((n.to_be_bytes(), 0))).collect();
        let name = NameState::new("a".into(), ManualClock::new());
        assert!(name.record(Ok(many)));
        assert_eq!(name.addresses().unwrap().len(), ANSWER_MAX);
    }

    #[tokio::test]
    async fn the_system_knows_localhost() {
        let addresses = SystemResolver.resolve("localhost").await.unwrap();
        assert!(addresses.iter().any(|address| address.ip().is_loopback()), "{addresses:?}");
    }
}
