//! What is counted for each listener: connections, and requests that never got as far as a route.

use super::{Counter, Gauge, GaugeGuard};

/// Counts by reason. The reasons are an enum of the caller, here only their names in its order.
#[derive(Debug)]
pub struct Reasons {
    names: &'static [&'static str],
    /// One for each name, and one more for an index that has none.
    counters: Box<[Counter]>,
}

impl Reasons {
    pub fn new(names: &'static [&'static str]) -> Self {
        Reasons { names, counters: (0..=names.len()).map(|_| Counter::default()).collect() }
    }

    /// Counts one for the reason at `index` of the names; for `other` if there is none.
    pub fn count(&self, index: usize) {
        if let Some(counter) = self.counters.get(index.min(self.names.len())) {
            counter.increment();
        }
    }

    /// All reasons with their counts, `other` last.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.names.iter().copied().chain(["other"]).zip(&self.counters).map(|(name, counter)| (name, counter.get()))
    }
}

#[derive(Debug)]
pub struct ListenerMetrics {
    accepted: Counter,
    active: Gauge,
    /// Connections closed before their first request: caps, failed handshakes and the like.
    pub refused: Reasons,
    /// Requests that were not understood, whichever rejection answered them.
    pub malformed: Reasons,
    /// Connections ended in the middle of something because of how the client behaved.
    pub cut: Reasons,
    /// Connections that the gateway closed while no request was under way on them.
    pub closed: Reasons,
}

/// The names of the reasons for each of the counts.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReasonNames {
    pub refused: &'static [&'static str],
    pub malformed: &'static [&'static str],
    pub cut: &'static [&'static str],
    pub closed: &'static [&'static str],
}

impl ListenerMetrics {
    pub fn new(names: ReasonNames) -> Self {
        ListenerMetrics {
            accepted: Counter::default(),
            active: Gauge::default(),
            refused: Reasons::new(names.refused),
            malformed: Reasons::new(names.malformed),
            cut: Reasons::new(names.cut),
            closed: Reasons::new(names.closed),
        }
    }

    /// Counts an accepted connection, and as open until the guard is dropped.
    pub fn accept(&self) -> GaugeGuard {
        self.accepted.increment();
        self.active.enter()
    }

    pub fn accepted(&self) -> u64 {
        self.accepted.get()
    }

    pub fn active(&self) -> u64 {
        self.active.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_count_under_their_names_and_unknown_ones_as_other() {
        let metrics = ListenerMetrics::new(ReasonNames { refused: &["cap", "tls"], ..ReasonNames::default() });
        metrics.refused.count(1);
        metrics.refused.count(2);
        metrics.refused.count(usize::MAX);
        metrics.malformed.count(0);
        assert_eq!(metrics.refused.counts().collect::<Vec<_>>(), [("cap", 0), ("tls", 1), ("other", 2)]);
        assert_eq!(metrics.malformed.counts().collect::<Vec<_>>(), [("other", 1)]);
    }

    #[test]
    fn a_connection_is_open_until_its_guard_falls() {
        let metrics = ListenerMetrics::new(ReasonNames::default());
        let guard = metrics.accept();
        assert_eq!((metrics.accepted(), metrics.active()), (1, 1));
        drop(guard);
        assert_eq!((metrics.accepted(), metrics.active()), (1, 0));
    }
}
