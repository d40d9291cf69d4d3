//! What may be stored, and on which terms (RFC 9111 §3): the compiled `cache` table of a route.

use super::control::{ResponseControl, Seconds};
use super::freshness::{self, Received};
use super::vary::Selecting;
use crate::telemetry::metrics::CacheMetrics;
use http::{HeaderMap, HeaderName, header};
use std::sync::Arc;
use std::time::Duration;

/// A response is never fresh for longer, so that times can be added without a thought: about 68 years.
const LIFETIME_MAX: Duration = Duration::from_secs(0x7fff_ffff);

#[derive(Debug)]
pub struct Policy {
    pub route: Arc<str>,
    /// Answers are shared between consumers.
    pub public: bool,
    pub ttl: Option<Duration>,
    /// Which statuses `ttl` is for; empty: those that are cacheable by definition.
    pub statuses: Box<[u16]>,
    pub force: bool,
    pub stale_while_revalidate: Duration,
    pub stale_if_error: Duration,
    pub heuristic_max: Duration,
    pub set_cookie: bool,
    pub targets: Box<[HeaderName]>,
    pub max_object: u64,
    pub max_variants: usize,
    pub wait: Duration,
    /// 0.0 to 1.0.
    pub jitter: f64,
    pub early_refresh: f64,
    pub key: super::key::KeyRules,
    pub redis: bool,
    /// Fields that are about one answer and not to be stored with it: what it has cost, above all.
    pub own: Box<[HeaderName]>,
    /// The upstream is asked for plain bytes, and clients get them in the coding that each accepts.
    pub codes: bool,
    pub metrics: Arc<CacheMetrics>,
}

/// On which terms a stored response is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    pub lifetime: Duration,
    /// The age that it had when it came.
    pub initial_age: Duration,
    pub stale_while_revalidate: Duration,
    pub stale_if_error: Duration,
    /// `no-cache`: validated before each use.
    pub no_cache: bool,
    /// Never used stale, whoever asks (`must-revalidate`, `proxy-revalidate`, `s-maxage`).
    pub must_revalidate: bool,
    pub immutable: bool,
    pub no_transform: bool,
}

/// What is known of the request that a response answers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked {
    pub authorization: bool,
    pub identity: bool,
}

/// Why a response is not stored; the `detail` of `Cache-Status` and a label of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Status,
    NoStore,
    Private,
    Authorization,
    SetCookie,
    Vary,
    NoFreshness,
    TooLarge,
    NoRoom,
    Purged,
}

impl Refusal {
    pub const ALL: [Refusal; 10] = [
        Refusal::Status,
        Refusal::NoStore,
        Refusal::Private,
        Refusal::Authorization,
        Refusal::SetCookie,
        Refusal::Vary,
        Refusal::NoFreshness,
        Refusal::TooLarge,
        Refusal::NoRoom,
        Refusal::Purged,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Refusal::Status => "status",
            Refusal::NoStore => "no_store",
            Refusal::Private => "private",
            Refusal::Authorization => "authorization",
            Refusal::SetCookie => "set_cookie",
            Refusal::Vary => "vary",
            Refusal::NoFreshness => "no_freshness",
            Refusal::TooLarge => "too_large",
            Refusal::NoRoom => "no_room",
            Refusal::Purged => "purged",
        }
    }
}

/// Statuses whose meaning this cache honours (`must-understand`, RFC 9111 §5.2.2.3).
const fn understood(status: u16) -> bool {
    matches!(status, 200 | 203 | 204 | 206 | 300..=304 | 307 | 308 | 400..=405 | 410 | 414 | 421 | 429 | 451 | 500..=504)
}

impl Policy {
    /// Whether the response to such a request may be stored, and how it may be used. `fields` is set to the fields that must
    /// not be stored with it.
    pub fn judge(
        &self,
        status: u16,
        headers: &HeaderMap,
        asked: Asked,
        received: &Received,
        fields: &mut Vec<HeaderName>,
    ) -> Result<Terms, Refusal> {
        // These answer the conditions or the range of one request, which are no part of the key.
        if status < 200 || matches!(status, 304 | 412 | 416) {
            return Err(Refusal::Status);
        }
        let targeted = ResponseControl::targeted(headers, &self.targets);
        let is_targeted = targeted.is_some();
        let control = targeted.unwrap_or_else(|| ResponseControl::of(headers));
        let shareable = self.public || !(asked.identity || asked.authorization);
        // What the operator insists on, within what is nobody's alone.
        let forced = self.ttl.filter(|_| self.force && self.names(status) && shareable && (self.public || !control.private));
        if forced.is_none() {
            if control.must_understand && !understood(status) {
                return Err(Refusal::Status);
            }
            if control.no_store && !control.must_understand {
                return Err(Refusal::NoStore);
            }
            let granted = control.public || control.must_revalidate || control.s_maxage.given().is_some();
            if asked.authorization && !granted {
                return Err(Refusal::Authorization);
            }
        }
        if control.private && forced.is_none() {
            return Err(Refusal::Private);
        }
        if headers.get_all(header::VARY).iter().any(|vary| super::control::list_has(vary, "*")) {
            return Err(Refusal::Vary);
        }
        let explicit = freshness::explicit(headers, &control, is_targeted, received);
        let cookie = headers.contains_key(header::SET_COOKIE) && !control.fields.contains(&header::SET_COOKIE);
        if cookie && (explicit.is_none() || forced.is_some() || !self.set_cookie) {
            return Err(Refusal::SetCookie);
        }
        let lifetime = match (forced, explicit) {
            (Some(ttl), _) => Some(ttl),
            (None, Some(explicit)) => Some(explicit),
            (None, None) => self
                .ttl
                .filter(|_| self.names(status))
                .or_else(|| freshness::heuristic(headers, status, control.public, self.heuristic_max, received)),
        };
        let by_definition = freshness::heuristically_cacheable(status) || control.public;
        let Some(lifetime) = lifetime.or_else(|| by_definition.then_some(Duration::ZERO)) else {
            return Err(Refusal::NoFreshness);
        };
        let seconds = |given: Seconds, default: Duration| match given {
            Seconds::Given(seconds) => Duration::from_secs(seconds.into()),
            Seconds::Absent => default,
            Seconds::Invalid => Duration::ZERO,
        };
        let stale_while_revalidate = seconds(control.stale_while_revalidate, self.stale_while_revalidate);
        let stale_if_error = seconds(control.stale_if_error, self.stale_if_error);
        let validator = headers.contains_key(header::ETAG) || headers.contains_key(header::LAST_MODIFIED);
        let no_cache = control.no_cache && forced.is_none();
        let fresh_for_a_while = !lifetime.is_zero() && !no_cache;
        if !fresh_for_a_while && !validator && stale_while_revalidate.is_zero() && stale_if_error.is_zero() {
            // It could never be used without being fetched anew.
            return Err(Refusal::NoFreshness);
        }
        *fields = control.fields;
        fields.extend(self.own.iter().cloned());
        Ok(Terms {
            lifetime: self.jittered(lifetime).min(LIFETIME_MAX),
            initial_age: if forced.is_some() { Duration::ZERO } else { freshness::initial_age(headers, received) },
            stale_while_revalidate,
            stale_if_error,
            no_cache,
            must_revalidate: control.must_revalidate || control.proxy_revalidate || control.s_maxage != Seconds::Absent,
            immutable: control.immutable,
            no_transform: control.no_transform,
        })
    }

    /// Whether a response says itself for how long it is fresh, and that it is.
    pub fn is_explicit(&self, headers: &HeaderMap, received: &Received) -> bool {
        let targeted = ResponseControl::targeted(headers, &self.targets);
        let is_targeted = targeted.is_some();
        let control = targeted.unwrap_or_else(|| ResponseControl::of(headers));
        freshness::explicit(headers, &control, is_targeted, received).is_some_and(|lifetime| !lifetime.is_zero())
    }

    /// Which other requests a response to one with these fields may answer.
    pub fn selecting(&self, response: &HeaderMap, request: &HeaderMap) -> Result<Selecting, Refusal> {
        let mut selecting = Selecting::of(response, request).map_err(|_| Refusal::Vary)?;
        if self.codes {
            // No upstream sees it.
            selecting.ignore(&header::ACCEPT_ENCODING);
        }
        Ok(selecting)
    }

    /// What the configuration grants, or takes, that the origin has no say in; `None`: nothing.
    pub fn promise(&self) -> Option<String> {
        let mut grants = Vec::new();
        if let Some(ttl) = self.ttl {
            let all = self.statuses.is_empty();
            let which = self.statuses.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
            let which = if all { "what is cacheable by its status".to_owned() } else { which };
            let when = if self.force { "whatever the origin says" } else { "where the origin does not say how long" };
            grants.push(format!("keeps {which} for {} {when}", crate::value::Duration(ttl)));
        }
        for (most, when) in
            [(self.stale_while_revalidate, "while it is fetched anew"), (self.stale_if_error, "while the upstream fails")]
        {
            if !most.is_zero() {
                grants.push(format!("gives a stale answer for {} {when}", crate::value::Duration(most)));
            }
        }
        (!grants.is_empty()).then(|| format!("route `{}` {}", self.route, grants.join(", and ")))
    }

    /// Whether `ttl` is for this status.
    fn names(&self, status: u16) -> bool {
        match self.statuses.is_empty() {
            true => status != 206 && freshness::heuristically_cacheable(status),
            false => self.statuses.contains(&status),
        }
    }

    /// Shortened at random, so that what came at the same time does not expire at the same time.
    fn jittered(&self, lifetime: Duration) -> Duration {
        if self.jitter > 0.0 { lifetime.mul_f64(1.0 - self.jitter * fastrand::f64()) } else { lifetime }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use http::HeaderValue;
    use std::time::{Instant, SystemTime};

    pub fn policy() -> Policy {
        Policy {
            route: "r".into(),
            public: false,
            ttl: None,
            statuses: Box::default(),
            force: false,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            heuristic_max: Duration::from_secs(86_400),
            set_cookie: true,
            targets: Box::default(),
            max_object: 1 << 20,
            max_variants: 16,
            wait: Duration::from_secs(5),
            jitter: 0.0,
            early_refresh: 0.0,
            key: super::super::key::KeyRules::default(),
            redis: false,
            own: Box::default(),
            codes: false,
            metrics: Arc::default(),
        }
    }

    fn judge(policy: &Policy, status: u16, asked: Asked, pairs: &[(&'static str, &str)]) -> Result<u64, Refusal> {
        let headers = pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap())).collect();
        let received = Received { delay: Duration::ZERO, at: Instant::now(), wall: SystemTime::now() };
        policy.judge(status, &headers, asked, &received, &mut Vec::new()).map(|terms| terms.lifetime.as_secs())
    }

    #[test]
    fn what_is_somebodys_own_is_not_stored() {
        let policy = policy();
        let plain = Asked::default();
        let known = Asked { authorization: true, identity: false };
        assert_eq!(judge(&policy, 200, plain, &[("cache-control", "max-age=9")]), Ok(9));
        assert_eq!(judge(&policy, 200, plain, &[("cache-control", "private, max-age=9")]), Err(Refusal::Private));
        assert_eq!(judge(&policy, 200, plain, &[("cache-control", "no-store, max-age=9")]), Err(Refusal::NoStore));
        assert_eq!(judge(&policy, 200, known, &[("cache-control", "max-age=9")]), Err(Refusal::Authorization));
        for granted in ["public, max-age=9", "s-maxage=9", "must-revalidate, max-age=9"] {
            assert_eq!(judge(&policy, 200, known, &[("cache-control", granted)]), Ok(9), "{granted}");
        }
        for other in ["proxy-revalidate, max-age=9", "s-maxage=x, max-age=9"] {
            assert_eq!(judge(&policy, 200, known, &[("cache-control", other)]), Err(Refusal::Authorization), "{other}");
        }
        let vary = [("vary", "a, *"), ("cache-control", "max-age=9")];
        assert_eq!(judge(&policy, 200, plain, &vary), Err(Refusal::Vary));
        let cookie = [("set-cookie", "a=b"), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")];
        assert_eq!(judge(&policy, 200, plain, &cookie), Err(Refusal::SetCookie), "nobody said that it may be kept");
    }

    #[test]
    fn force_overrides_the_origin_but_nobodys_privacy() {
        let forced = Policy { ttl: Some(Duration::from_secs(60)), force: true, ..policy() };
        let known = Asked { authorization: false, identity: true };
        let no_store = [("cache-control", "no-store")];
        assert_eq!(judge(&forced, 200, Asked::default(), &no_store), Ok(60));
        assert_eq!(judge(&forced, 500, Asked::default(), &no_store), Err(Refusal::NoStore), "not its status");
        assert_eq!(judge(&forced, 200, known, &no_store), Err(Refusal::NoStore));
        assert_eq!(judge(&forced, 200, Asked::default(), &[("cache-control", "private")]), Err(Refusal::Private));
        let public = Policy { public: true, ..forced };
        assert_eq!(judge(&public, 200, known, &[("cache-control", "private")]), Ok(60));
    }

    #[test]
    fn statuses_need_a_reason_to_be_stored() {
        let policy = policy();
        let judge =
            |status, control: &str| judge(&policy, status, Asked::default(), &[("cache-control", control), ("etag", "\"a\"")]);
        assert_eq!(judge(599, "max-age=9"), Ok(9));
        assert_eq!(judge(599, "x"), Err(Refusal::NoFreshness));
        assert_eq!(judge(599, "must-understand, max-age=9"), Err(Refusal::Status));
        assert_eq!(judge(200, "must-understand, no-store, max-age=9"), Ok(9));
        assert_eq!(judge(304, "max-age=9"), Err(Refusal::Status));
        assert_eq!(judge(200, "no-cache"), Ok(0), "to be validated");
    }
}
