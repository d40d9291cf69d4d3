//! `basic`: who calls is told by a name and a password (RFC 7617).

mod checks;

use super::auth::Judge;
use super::place::Place;
use super::{BuildContext, Filter, FilterConfig, Flow, Phases, Problem, Step};
use crate::consumer::{Consumers, PASSWORD_MAX, PasswordHash};
use crate::rejection::Rejection;
use crate::request::RequestCtx;
use crate::telemetry::metrics::AuthOutcome;
use crate::value::{Duration, Located};
use arrayvec::ArrayVec;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use checks::{Checks, RETRY_AFTER};
use http::{HeaderValue, header};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// The longest name with its colon and password, in bytes.
const PAIR_MAX: usize = 256 + PASSWORD_MAX;
/// The longest time for which a pair may be taken as verified.
const CACHE_MAX: std::time::Duration = std::time::Duration::from_secs(3600);
/// What is checked for a name that does not exist, so that the answer takes as long as for one that does. Of no password.
const DECOY: &str = "$argon2id$v=19$m=19456,t=2,p=1$ZGVjb3lkZWNveWRlY295$QQuOOkBJOGhjPTWA0UBQbkbEJuFh0swZLfXWrRJvxUI";

/// Asks for the name and password of a `basic` credential of one of the `[consumers]`, in `Authorization`. Without one the
/// answer is 401 `credential_missing`, with a wrong one 401 `credential_invalid`, with two 400 `credential_duplicate`.
/// Checking a password is made to be slow: it is done on other threads, by half of the processors at most; where 64 requests
/// wait for it, the next is answered 503 `authentication_busy`. Put `rate_limit` by address before it, and use it with TLS only.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BasicConfig {
    /// What clients show when they ask for the password: up to 64 letters, digits, spaces and `-_.`. Default: `"restricted"`.
    pub realm: Option<Located<String>>,
    /// For how long a pair that was right is not checked again, from 0s, for never, to 1h. Only a keyed hash of it is kept, in
    /// memory, of at most 10,000 pairs. A password that is changed or taken out of the configuration counts at once.
    pub cache: Located<Duration>,
    /// Whether `Authorization` goes upstream with its password. Default: false.
    pub forward: bool,
}

impl Default for BasicConfig {
    fn default() -> Self {
        BasicConfig { realm: None, cache: Located::nowhere(Duration::from_secs(60)), forward: false }
    }
}

pub struct Basic {
    consumers: Arc<Consumers>,
    checks: Arc<Checks>,
    /// What is checked for names that do not exist, at least one: a hash for each cost.
    decoys: Box<[PasswordHash]>,
    cache: std::time::Duration,
    forward: bool,
    judge: Judge,
}

impl FilterConfig for BasicConfig {
    const NAME: &'static str = "basic";
    type Filter = Basic;

    fn build(self, cx: &mut BuildContext<'_>) -> Result<Basic, Problem> {
        let realm = match &self.realm {
            None => "restricted",
            Some(realm) => {
                let plain = |b: u8| b.is_ascii_alphanumeric() || b" -_.".contains(&b);
                if realm.is_empty() || realm.len() > 64 || !realm.bytes().all(plain) {
                    let problem = Problem::new(format!("`{}` cannot be a realm", realm.value)).at(realm);
                    return Err(problem.help("use up to 64 letters, digits, spaces and -_."));
                }
                realm
            }
        };
        if self.cache.get() > CACHE_MAX {
            return Err(Problem::new(format!("`{}` is too long", self.cache.value)).at(&self.cache).help("use up to 1h"));
        }
        let challenge = HeaderValue::from_str(&format!("Basic realm=\"{realm}\", charset=\"UTF-8\""));
        let challenge = challenge.map_err(|_| Problem::new("this makes no challenge"))?;
        // Real ones are best: each costs what a name that exists may cost.
        let mut decoys = cx.consumers.passwords_by_cost();
        if decoys.is_empty() {
            decoys.push(DECOY.parse().map_err(Problem::new)?);
        }
        Ok(Basic {
            consumers: Arc::clone(cx.consumers),
            checks: cx.state.try_get_or_create("basic", Checks::new).map_err(Problem::new)?,
            decoys: decoys.into(),
            cache: self.cache.get(),
            forward: self.forward,
            judge: Judge::new(Self::NAME, challenge, cx),
        })
    }
}

impl Filter for Basic {
    fn phases(&self) -> Phases {
        Phases::REQUEST.and(Phases::UPSTREAM_REQUEST)
    }

    fn establishes_identity(&self) -> bool {
        true
    }

    fn on_request<'a>(&'a self, session: &'a mut Session, ctx: &'a mut RequestCtx) -> Step<'a> {
        let pair = match read(session.req_header()) {
            Ok(pair) => pair,
            Err(why) => return Step::reject(self.judge.refuse(why)),
        };
        let Some((username, password)) = split(&pair) else {
            return Step::reject(self.judge.refuse(AuthOutcome::Malformed));
        };
        let user = self.consumers.by_username(username);
        let hash = user.map(|user| &user.password).or_else(|| self.checks.decoy(username, &self.decoys));
        let Some(hash) = hash else {
            return Step::reject(self.judge.refuse(AuthOutcome::Unknown));
        };
        let mark = self.checks.mark(username, password, hash);
        if let Some(user) = user
            && self.checks.is_recent(&mark, self.judge.clock().now(), self.cache)
        {
            return Step::Ready(self.judge.accept(&user.credential, ctx).map(|()| Flow::Continue));
        }
        let check = Arc::clone(&self.checks).verify(hash.clone(), password.to_vec());
        Step::Wait(Box::pin(async move {
            let right = check.await.map_err(|_| self.judge.refuse(AuthOutcome::Unavailable).retry_after(RETRY_AFTER))?;
            match user {
                Some(user) if right => {
                    self.checks.remember(mark, self.judge.clock().now());
                    self.judge.accept(&user.credential, ctx).map(|()| Flow::Continue)
                }
                _ => Err(self.judge.refuse(AuthOutcome::Unknown)),
            }
        }))
    }

    fn credential_places(&self) -> Vec<Place> {
        vec![Place::Header(header::AUTHORIZATION)]
    }

    fn is_credential(&self, _: &Place, head: &RequestHeader) -> bool {
        head.headers.get(header::AUTHORIZATION).is_some_and(|line| after_scheme(line.as_bytes()).is_some())
    }

    fn on_passed_over(&self, _: &Session, _: &mut RequestHeader, _: &mut RequestCtx) -> Result<(), Rejection> {
        Ok(())
    }

    fn on_upstream_request(&self, _: &Session, head: &mut RequestHeader, _: &mut RequestCtx) -> Result<(), Rejection> {
        if !self.forward {
            head.remove_header(&header::AUTHORIZATION);
        }
        Ok(())
    }
}

type Pair = ArrayVec<u8, PAIR_MAX>;

/// The decoded `user:password`.
fn read(head: &RequestHeader) -> Result<Pair, AuthOutcome> {
    let mut lines = head.headers.get_all(header::AUTHORIZATION).iter();
    let line = lines.next().ok_or(AuthOutcome::Missing)?.as_bytes();
    if lines.next().is_some() {
        return Err(AuthOutcome::Duplicate);
    }
    let rest = after_scheme(line).ok_or(AuthOutcome::Missing)?;
    let mut pair = Pair::from([0; PAIR_MAX]);
    let length = STANDARD.decode_slice(rest.trim_ascii_start(), &mut pair).map_err(|_| AuthOutcome::Malformed)?;
    pair.truncate(length);
    Ok(pair)
}

/// What follows `Basic`, in whatever case. Another scheme is another filter's business.
fn after_scheme(line: &[u8]) -> Option<&[u8]> {
    let scheme_ends = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
    let (scheme, rest) = line.split_at_checked(scheme_ends)?;
    scheme.eq_ignore_ascii_case(b"basic").then_some(rest)
}

fn split(pair: &[u8]) -> Option<(&str, &[u8])> {
    let colon = pair.iter().position(|b| *b == b':')?;
    let (username, password) = pair.split_at_checked(colon)?;
    Some((std::str::from_utf8(username).ok()?, password.split_first()?.1))
}

#[cfg(test)]
mod tests;
