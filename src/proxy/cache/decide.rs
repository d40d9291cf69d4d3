//! Whether a stored response may answer a request (RFC 9111 §4 and §5.2.1, RFC 5861).

use crate::cache::control::RequestControl;
use crate::cache::entry::{Entry, Expired};
use crate::cache::policy::Policy;
use std::time::{Duration, Instant};

/// What may be done with a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Fresh,
    /// Fresh, and to be fetched anew in the background before it is not.
    Early,
    /// Stale, and to be fetched anew in the background.
    WhileRevalidating,
    /// Stale, and the client says that it does not mind.
    Stale,
    /// Not without asking the upstream.
    Validate,
}

pub fn decide(entry: &Entry, control: &RequestControl, policy: &Policy, now: Instant) -> Use {
    let terms = &entry.terms;
    if control.no_cache || terms.no_cache || entry.expired() == Expired::Invalid {
        return Use::Validate;
    }
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let tolerated = control.max_stale.filter(|_| !terms.must_revalidate).map(seconds);
    let age = entry.age(now);
    if control.max_age.is_some_and(|most| age > seconds(most)) && tolerated.is_none() {
        return Use::Validate;
    }
    match entry.freshness(now) {
        Ok(left) => match control.min_fresh {
            Some(least) if left < seconds(least) => Use::Validate,
            // It does not change before its end (RFC 8246 §2.1).
            _ if !terms.immutable && early(left, window(terms.lifetime, policy)) => Use::Early,
            _ => Use::Fresh,
        },
        Err(_) if control.min_fresh.is_some() => Use::Validate,
        Err(by) if tolerated.is_some_and(|most| by <= most) => Use::Stale,
        // Who asks for a bound on age does not want to be told later.
        Err(by) if by < terms.stale_while_revalidate && !terms.must_revalidate && control.max_age.is_none() => {
            Use::WhileRevalidating
        }
        Err(_) => Use::Validate,
    }
}

/// Whether a stale response may stand in for an upstream that fails (RFC 5861 §4).
pub fn on_error(entry: &Entry, control: &RequestControl, now: Instant) -> bool {
    let terms = &entry.terms;
    // Of its own request a client may say something else than the origin did.
    let most = control.stale_if_error.map_or(terms.stale_if_error, |most| Duration::from_secs(most.into()));
    let within = match entry.freshness(now) {
        Ok(_) => true,
        Err(by) => by < most,
    };
    within && !terms.must_revalidate && !terms.no_cache && !most.is_zero() && entry.expired() != Expired::Invalid
}

/// Whether it may be time to fetch it anew in the background.
pub fn is_near_end(entry: &Entry, policy: &Policy, now: Instant) -> bool {
    !entry.terms.immutable && entry.freshness(now).is_ok_and(|left| left < window(entry.terms.lifetime, policy))
}

/// How long before its end a stored response may be fetched anew. Zero: not before.
fn window(lifetime: Duration, policy: &Policy) -> Duration {
    lifetime.mul_f64(policy.early_refresh)
}

/// Within that time, the likelier the nearer the end.
fn early(left: Duration, window: Duration) -> bool {
    left < window && fastrand::f64() > left.as_secs_f64() / window.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::entry::tests::{entry, terms};
    use crate::cache::policy::Terms;
    use crate::cache::policy::tests::policy;

    fn aged(age: u64, terms: Terms) -> Entry {
        let mut entry = entry(1, &[]);
        entry.terms = Terms { initial_age: Duration::from_secs(age), ..terms };
        entry
    }

    fn used(entry: &Entry, control: RequestControl) -> Use {
        decide(entry, &control, &policy(), entry.received.at)
    }

    #[test]
    fn clients_may_ask_for_more_or_for_less() {
        let plain = RequestControl::default();
        let fresh = aged(30, terms(60));
        assert_eq!(used(&fresh, plain), Use::Fresh);
        assert_eq!(used(&fresh, RequestControl { no_cache: true, ..plain }), Use::Validate);
        assert_eq!(used(&fresh, RequestControl { max_age: Some(29), ..plain }), Use::Validate);
        assert_eq!(used(&fresh, RequestControl { max_age: Some(30), ..plain }), Use::Fresh);
        assert_eq!(used(&fresh, RequestControl { min_fresh: Some(31), ..plain }), Use::Validate);
        let stale = aged(70, terms(60));
        assert_eq!(used(&stale, plain), Use::Validate);
        assert_eq!(used(&stale, RequestControl { max_stale: Some(10), ..plain }), Use::Stale);
        assert_eq!(used(&stale, RequestControl { max_stale: Some(9), ..plain }), Use::Validate);
        let strict = aged(70, Terms { must_revalidate: true, ..terms(60) });
        assert_eq!(used(&strict, RequestControl { max_stale: Some(u32::MAX), ..plain }), Use::Validate);
    }

    #[test]
    fn the_windows_of_staleness_end() {
        let plain = RequestControl::default();
        let window =
            Terms { stale_while_revalidate: Duration::from_secs(10), stale_if_error: Duration::from_secs(20), ..terms(60) };
        assert_eq!(used(&aged(69, window), plain), Use::WhileRevalidating);
        assert_eq!(used(&aged(70, window), plain), Use::Validate);
        let now = Instant::now();
        let on_error = |entry: &Entry, control: RequestControl| on_error(entry, &control, now);
        assert!(on_error(&aged(79, window), plain) && !on_error(&aged(81, window), plain));
        let strict = Terms { must_revalidate: true, ..window };
        assert!(!on_error(&aged(79, strict), plain));
        assert!(!on_error(&aged(79, terms(60)), plain), "nobody allowed it");
        let asked = |most| RequestControl { stale_if_error: Some(most), ..plain };
        assert!(on_error(&aged(79, terms(60)), asked(20)) && !on_error(&aged(81, terms(60)), asked(20)));
        assert!(!on_error(&aged(79, window), asked(10)) && !on_error(&aged(79, window), asked(0)));
        assert!(!on_error(&aged(79, strict), asked(100)), "the origin has forbidden it");
    }
}
