//! How old a stored response is and how long it is fresh (RFC 9111 §4.2).

use super::control::{ResponseControl, Seconds, seconds};
use http::{HeaderMap, header};
use std::time::{Duration, Instant, SystemTime};

/// When a response was asked for and when its header came, on the wall for dates and monotonic for ages.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    pub delay: Duration,
    pub at: Instant,
    pub wall: SystemTime,
}

/// `Date`, or when the response came (RFC 9110 §6.6.1).
pub fn date(headers: &HeaderMap, received: &Received) -> SystemTime {
    one_date(headers, &header::DATE).unwrap_or(received.wall)
}

fn one_date(headers: &HeaderMap, name: &http::HeaderName) -> Option<SystemTime> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { super::date::read(value) }
}

/// The age that a response had when it came (RFC 9111 §4.2.3): what its `Date` and its `Age` say, whichever is more.
pub fn initial_age(headers: &HeaderMap, received: &Received) -> Duration {
    let apparent = received.wall.duration_since(date(headers, received)).unwrap_or_default();
    // Dates have whole seconds, so that a response of this moment seems up to one second old.
    let apparent = Duration::from_secs(apparent.as_secs());
    let corrected = age_field(headers).saturating_add(received.delay);
    apparent.max(corrected)
}

/// The first member of `Age`; what is no number does not count (RFC 9111 §5.1).
pub fn age_field(headers: &HeaderMap) -> Duration {
    let first = headers.get(header::AGE).and_then(|value| value.as_bytes().split(|byte| *byte == b',').next());
    Duration::from_secs(first.and_then(|age| seconds(age.trim_ascii())).unwrap_or(0).into())
}

/// What the response says itself, in the order of RFC 9111 §4.2.1 for a shared cache. `None`: nothing.
/// `targeted`: `Expires` does not count beside a targeted field (RFC 9213 §2.2).
pub fn explicit(headers: &HeaderMap, control: &ResponseControl, targeted: bool, received: &Received) -> Option<Duration> {
    for given in [control.s_maxage, control.max_age] {
        match given {
            Seconds::Given(seconds) => return Some(Duration::from_secs(seconds.into())),
            Seconds::Invalid => return Some(Duration::ZERO),
            Seconds::Absent => {}
        }
    }
    if targeted || !headers.contains_key(header::EXPIRES) {
        return None;
    }
    // Invalid dates, `0` above all, are in the past (§5.3).
    let expires = one_date(headers, &header::EXPIRES);
    Some(expires.and_then(|expires| expires.duration_since(date(headers, received)).ok()).unwrap_or_default())
}

/// Ten percent of the time since the last change (RFC 9111 §4.2.2), at most `most`, for statuses that are cacheable by
/// definition and for responses that are marked `public`.
pub fn heuristic(headers: &HeaderMap, status: u16, public: bool, most: Duration, received: &Received) -> Option<Duration> {
    if !public && !heuristically_cacheable(status) {
        return None;
    }
    let modified = one_date(headers, &header::LAST_MODIFIED)?;
    let since = date(headers, received).duration_since(modified).ok()?;
    Some((since / 10).min(most))
}

/// RFC 9110 §15.1.
pub const fn heuristically_cacheable(status: u16) -> bool {
    matches!(status, 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap())).collect()
    }

    fn received() -> Received {
        let wall = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        Received { delay: Duration::from_secs(2), at: Instant::now(), wall }
    }

    #[test]
    fn the_age_is_what_date_and_age_say() {
        let age = |pairs: &[(&'static str, &str)]| initial_age(&map(pairs), &received()).as_secs();
        assert_eq!(age(&[]), 2, "the time that it took");
        assert_eq!(age(&[("date", "Sun, 06 Nov 1994 08:48:37 GMT")]), 60);
        assert_eq!(age(&[("age", "100")]), 102);
        assert_eq!(age(&[("age", "100, 5")]), 102, "the first counts");
        for ignored in ["x", "-1", "1.5", "7;a=b", ""] {
            assert_eq!(age(&[("age", ignored)]), 2, "{ignored}");
        }
    }

    #[test]
    fn lifetimes_come_from_the_strongest_source() {
        let of = |pairs: &[(&'static str, &str)]| {
            let headers = map(pairs);
            explicit(&headers, &ResponseControl::of(&headers), false, &received()).map(|life| life.as_secs())
        };
        assert_eq!(of(&[("cache-control", "max-age=5, s-maxage=9"), ("expires", "0")]), Some(9));
        assert_eq!(of(&[("cache-control", "max-age=5"), ("expires", "Sun, 06 Nov 2094 08:49:37 GMT")]), Some(5));
        assert_eq!(of(&[("expires", "Sun, 06 Nov 1994 08:50:37 GMT")]), Some(60));
        assert_eq!(of(&[("expires", "0")]), Some(0));
        assert_eq!(of(&[("expires", "Sun, 06 Nov 1994 08:50:37 GMT"), ("expires", "0")]), Some(0), "two are none");
        assert_eq!(of(&[("cache-control", "max-age=x")]), Some(0));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn heuristics_take_a_tenth() {
        let headers = map(&[("last-modified", "Sun, 06 Nov 1994 08:48:37 GMT")]);
        let of = |status, public| heuristic(&headers, status, public, Duration::from_secs(60), &received());
        assert_eq!(of(200, false), Some(Duration::from_secs(6)));
        assert_eq!(of(201, false), None);
        assert_eq!(of(201, true), Some(Duration::from_secs(6)));
    }
}
