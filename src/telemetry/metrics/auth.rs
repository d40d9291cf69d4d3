//! What is counted for each filter that decides who may pass.

use super::Counter;

/// How one decision ended. What clients must not be able to tell apart (an unknown key, an expired one) is told apart here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthOutcome {
    /// The request goes on, with an identity or because it is permitted.
    Accepted,
    /// The request goes on without an identity, because the route says that it may.
    Anonymous,
    /// There was no credential.
    Missing,
    /// More than one credential.
    Duplicate,
    /// It was not in the form that it must have.
    Malformed,
    /// Nobody's.
    Unknown,
    /// It does not count any more, or not yet.
    Expired,
    NotYet,
    /// Of a consumer that is not enabled.
    Disabled,
    /// Withdrawn before its time.
    Revoked,
    /// Good, but seen before.
    Replayed,
    /// A known identity that may not do this.
    Forbidden,
    /// It could not be decided, so it was refused.
    Unavailable,
}

const OUTCOMES: [(AuthOutcome, &str); 13] = [
    (AuthOutcome::Accepted, "accepted"),
    (AuthOutcome::Anonymous, "anonymous"),
    (AuthOutcome::Missing, "missing"),
    (AuthOutcome::Duplicate, "duplicate"),
    (AuthOutcome::Malformed, "malformed"),
    (AuthOutcome::Unknown, "unknown"),
    (AuthOutcome::Expired, "expired"),
    (AuthOutcome::NotYet, "not_yet"),
    (AuthOutcome::Disabled, "disabled"),
    (AuthOutcome::Revoked, "revoked"),
    (AuthOutcome::Replayed, "replayed"),
    (AuthOutcome::Forbidden, "forbidden"),
    (AuthOutcome::Unavailable, "unavailable"),
];

/// What a scrape shows of the consumers and keys in Redis.
#[derive(Debug, Clone, Copy, Default)]
pub struct SourceSample {
    pub up: bool,
    pub asked: u64,
    pub invalidated: u64,
    pub outages: u64,
    pub unavailable: u64,
    pub entries: usize,
}

/// The decisions of one kind of filter on one route.
#[derive(Debug, Default)]
pub struct AuthMetrics {
    counts: [Counter; OUTCOMES.len()],
}

impl AuthMetrics {
    pub fn count(&self, outcome: AuthOutcome) {
        if let Some(counter) = self.counts.get(outcome as usize) {
            counter.increment();
        }
    }

    /// All counts with the value of their label.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OUTCOMES.iter().zip(&self.counts).map(|((_, name), counter)| (*name, counter.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_counts_under_its_own_name() {
        for (index, (outcome, name)) in OUTCOMES.iter().enumerate() {
            assert_eq!(*outcome as usize, index, "{name} is out of order");
            let metrics = AuthMetrics::default();
            metrics.count(*outcome);
            let counted: Vec<_> = metrics.outcomes().filter(|(_, count)| *count > 0).collect();
            assert_eq!(counted, [(*name, 1)]);
        }
    }
}
