//! `hmac`: who calls is told by a signature over the request (RFC 9421, HTTP Message Signatures).

use super::auth::{Judge, RETRY_AFTER};
use super::place::Place;
use super::{BuildContext, Filter, FilterConfig, Flow, Phases, Problem, Step};
use crate::consumer::{Consumers, Signer};
use crate::rejection::{self, Rejection};
use crate::request::{RequestCtx, Scheme};
use crate::signature::digest::BodyDigest;
use crate::signature::{self, Refusal, Replays, RequestParts, Rules, Seen, SharedReplays, Verified};
use crate::telemetry::metrics::AuthOutcome;
use crate::value::{Duration, Located};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;
use std::time::SystemTime;

/// The most components that can be asked for.
const COMPONENTS_MAX: usize = 32;
const CHALLENGE: HeaderValue = HeaderValue::from_static("Signature");
/// Derived components of a request (RFC 9421 section 2.2).
const DERIVED: [&str; 7] = ["@method", "@target-uri", "@authority", "@scheme", "@request-target", "@path", "@query"];

/// Asks for a signature (RFC 9421, HTTP Message Signatures) by a key of a `hmac` credential of one of the `[consumers]`. Without one
/// the answer is 401 `credential_missing`; with one that does not count, whatever is wrong with it, 401 `credential_invalid`. A
/// request with a body must have a `Content-Digest` (RFC 9530) that is signed, and a `Content-Length`, else 411 `length_required`;
/// where the body is another one, 400 `digest_mismatch`, and the upstream never gets its end. A request that was seen already is
/// refused: of two equal requests in one second the second needs a `nonce` of its own. The signature is over the request as it
/// is routed, so clients must write the path in its normal form. Of what a request can have, all of RFC 9421 is understood but
/// the parameter `sf`. What was seen is remembered by each gateway for itself, or with `store = "redis"` by all of them together.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HmacConfig {
    /// What a signature must cover at least, up to 32: `"@method"`, `"@target-uri"`, `"@authority"`, `"@scheme"`,
    /// `"@request-target"`, `"@path"`, `"@query"`, and names of headers. With a body, `content-digest` besides. Default:
    /// `["@method", "@authority", "@path", "@query"]`.
    pub components: Option<Vec<Located<String>>>,
    /// How old a signature may be by its `created`, from 1s to 1h.
    pub max_age: Located<Duration>,
    /// How far the clocks of clients may be off, up to 5m.
    pub skew: Located<Duration>,
    /// Whether a request counts once. A gateway remembers up to 1,000,000 until they are too old; when there are more, requests are
    /// answered with 503 `authentication_busy` until some are.
    pub once: bool,
    /// Where it is remembered which requests were seen. In Redis a request counts once at all gateways whose clocks differ by less
    /// than a minute; it costs one round trip, within the `timeout` of `[redis]`. A failover that loses writes forgets the last ones.
    pub store: ReplayStore,
    /// What happens when Redis is away or too slow.
    pub on_error: ReplayOnError,
    /// Whether signatures must have a `nonce`.
    pub nonce: bool,
    /// What the parameter `tag` of a signature must be. Default: whatever it is.
    pub tag: Option<Located<String>>,
}

/// Where it is remembered which requests were seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplayStore {
    /// In this gateway. Each gateway takes a request once.
    #[default]
    Local,
    /// In the Redis of `[redis]`. All gateways together take a request once.
    Redis,
}

/// What happens to signed requests when Redis is away or too slow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplayOnError {
    /// They are answered with 503 `credentials_unavailable`, and are to be signed again.
    #[default]
    Closed,
    /// They count once at this gateway, for which it remembers what it sees at any time. Other gateways do not hear of what it took
    /// meanwhile.
    Local,
}

impl Default for HmacConfig {
    fn default() -> Self {
        HmacConfig {
            components: None,
            max_age: Located::nowhere(Duration::from_secs(300)),
            skew: Located::nowhere(Duration::from_secs(30)),
            once: true,
            store: ReplayStore::Local,
            on_error: ReplayOnError::Closed,
            nonce: false,
            tag: None,
        }
    }
}

pub struct Hmac {
    rules: Rules,
    consumers: Arc<Consumers>,
    /// What this gateway has seen, where that counts.
    replays: Option<Arc<Replays>>,
    /// What all have.
    shared: Option<Arc<SharedReplays>>,
    judge: Judge,
}

impl FilterConfig for HmacConfig {
    const NAME: &'static str = "hmac";
    type Filter = Hmac;

    fn build(self, cx: &mut BuildContext<'_>) -> Result<Hmac, Problem> {
        let components: Box<[Box<str>]> = match &self.components {
            None => ["@method", "@authority", "@path", "@query"].map(Box::from).into(),
            Some(list) => {
                if let Some(beyond) = list.get(COMPONENTS_MAX) {
                    return Err(Problem::new(format!("the most components are {COMPONENTS_MAX}")).at(beyond));
                }
                list.iter().map(component).collect::<Result<_, _>>()?
            }
        };
        for (value, least, most) in [(&self.max_age, 1, 3600), (&self.skew, 0, 300)] {
            let bounds = Duration::from_secs(least)..=Duration::from_secs(most);
            if !bounds.contains(&value.value) {
                let problem = Problem::new(format!("`{}` is not possible here", value.value)).at(value);
                return Err(problem.help(format!("use {} to {}", bounds.start(), bounds.end())));
            }
        }
        let rules = Rules {
            components,
            max_age: self.max_age.get(),
            skew: self.skew.get(),
            nonce: self.nonce,
            tag: self.tag.map(|tag| tag.value.into()),
        };
        let shared = match (self.store, self.once, cx.redis) {
            (ReplayStore::Local, ..) => None,
            (ReplayStore::Redis, false, _) => {
                let problem = Problem::new("requests that count more than once are not remembered, in Redis or elsewhere");
                return Err(problem.help("take `store` or `once = false` out"));
            }
            (ReplayStore::Redis, true, None) => {
                let problem = Problem::new("there is no Redis to remember requests in");
                return Err(problem.help("add [redis] with url = \"redis://...\", or take `store` out"));
            }
            (ReplayStore::Redis, true, Some(redis)) => {
                Some(cx.state.get_or_create(&redis.identity(), || SharedReplays::new(redis.clone())))
            }
        };
        let alone = self.once && (shared.is_none() || self.on_error == ReplayOnError::Local);
        Ok(Hmac {
            rules,
            consumers: Arc::clone(cx.consumers),
            replays: alone.then(|| cx.state.get_or_create("signatures", Replays::default)),
            shared,
            judge: Judge::new(Self::NAME, CHALLENGE, cx),
        })
    }
}

fn component(text: &Located<String>) -> Result<Box<str>, Problem> {
    let field = HeaderName::from_bytes(text.as_bytes()).is_ok_and(|name| name.as_str() == text.as_str());
    if field || DERIVED.contains(&text.as_str()) {
        return Ok(text.as_str().into());
    }
    let problem = Problem::new(format!("`{}` cannot be covered by a signature", text.value)).at(text);
    Err(problem.help(format!("known are {} and names of headers in lower case", DERIVED.join(", "))))
}

impl Filter for Hmac {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn establishes_identity(&self) -> bool {
        true
    }

    fn may_wait(&self) -> bool {
        self.shared.is_some()
    }

    fn credential_places(&self) -> Vec<Place> {
        [signature::SIGNATURE, signature::SIGNATURE_INPUT].map(Place::Header).into()
    }

    fn on_request<'a>(&'a self, session: &'a mut Session, ctx: &'a mut RequestCtx) -> Step<'a> {
        if !signature::is_signed(&session.req_header().headers) {
            return Step::reject(self.judge.refuse(AuthOutcome::Missing));
        }
        let signed = match self.read(session, ctx) {
            Ok(signed) => signed,
            Err(rejection) => return Step::reject(rejection),
        };
        match &self.shared {
            None => Step::Ready(self.note(&signed).and_then(|()| self.accept(signed, ctx)).map(|()| Flow::Continue)),
            Some(shared) => Step::Wait(Box::pin(self.once_anywhere(shared, signed, ctx))),
        }
    }
}

/// A request whose signature is good.
struct Signed<'a> {
    signer: &'a Signer,
    verified: Verified,
    digest: Option<Box<BodyDigest>>,
    now: u64,
}

impl Hmac {
    /// Lets it pass if no gateway has seen it. What this gateway alone can tell comes first: it costs nothing.
    async fn once_anywhere<'a>(
        &'a self,
        shared: &'a SharedReplays,
        signed: Signed<'a>,
        ctx: &'a mut RequestCtx,
    ) -> Result<Flow, Rejection> {
        self.note(&signed)?;
        let Verified { fingerprint, until, .. } = signed.verified;
        match shared.note(fingerprint, until, signed.now).await {
            Some(true) => {}
            Some(false) => return Err(self.judge.refuse(AuthOutcome::Replayed)),
            // It is new to this gateway, and no other can be asked.
            None if self.replays.is_some() => {}
            None => return Err(self.judge.unavailable()),
        }
        self.accept(signed, ctx).map(|()| Flow::Continue)
    }

    /// Remembers it here, where that counts. Only what is good is remembered, so that nobody without a key can fill the table.
    fn note(&self, signed: &Signed<'_>) -> Result<(), Rejection> {
        let Some(replays) = &self.replays else { return Ok(()) };
        match replays.note(signed.verified.fingerprint, signed.verified.until, signed.now) {
            Seen::First => Ok(()),
            Seen::Again => Err(self.judge.refuse(AuthOutcome::Replayed)),
            Seen::Full => Err(self.judge.refuse(AuthOutcome::Unavailable).retry_after(RETRY_AFTER)),
        }
    }

    fn accept(&self, signed: Signed<'_>, ctx: &mut RequestCtx) -> Result<(), Rejection> {
        self.judge.accept(&signed.signer.credential, ctx)?;
        ctx.body_digest = signed.digest;
        Ok(())
    }

    fn read(&self, session: &mut Session, ctx: &RequestCtx) -> Result<Signed<'_>, Rejection> {
        let body = body_length(session);
        let head = session.req_header();
        let authority =
            authority(head.uri.authority(), &head.headers, ctx.scheme).ok_or_else(|| self.refuse(Refusal::Malformed))?;
        let parts = RequestParts {
            method: &head.method,
            scheme: ctx.scheme.as_str(),
            authority: &authority,
            path: head.uri.path(),
            query: head.uri.query(),
            headers: &head.headers,
        };
        let now = self.judge.clock().wall().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let find = |id: &str| self.consumers.by_signer(id).map(|signer| (&signer.key, signer));
        let (verified, signer): (_, &Signer) =
            signature::verify(&parts, &self.rules, now, find).map_err(|refusal| self.refuse(refusal))?;
        let digest = match (body, verified.digest) {
            (Body::None, false) => None,
            (Body::None, true) => Some(BodyDigest::read(&head.headers, 0)),
            (Body::Unknown, _) => return Err(Rejection::new(&rejection::LENGTH_REQUIRED)),
            (Body::Length(_), false) => return Err(self.refuse(Refusal::Uncovered)),
            (Body::Length(length), true) => Some(BodyDigest::read(&head.headers, length)),
        };
        let digest = match digest {
            None => None,
            Some(None) => return Err(self.refuse(Refusal::Component)),
            // There is nothing to come.
            Some(Some(digest)) if matches!(body, Body::None) => {
                if !digest.holds() {
                    return Err(Rejection::new(&rejection::DIGEST_MISMATCH));
                }
                None
            }
            Some(Some(digest)) => Some(Box::new(digest)),
        };
        Ok(Signed { signer, verified, digest, now })
    }

    fn refuse(&self, refusal: Refusal) -> Rejection {
        log::debug!("a signature is refused: {refusal:?}");
        self.judge.refuse(match refusal {
            Refusal::Malformed | Refusal::Component | Refusal::Uncovered | Refusal::Nonce => AuthOutcome::Malformed,
            Refusal::UnknownKey | Refusal::Algorithm | Refusal::Signature => AuthOutcome::Unknown,
            Refusal::Expired => AuthOutcome::Expired,
            Refusal::NotYet => AuthOutcome::NotYet,
        })
    }
}

/// How much body there is to come.
#[derive(Clone, Copy)]
enum Body {
    None,
    Length(u64),
    Unknown,
}

fn body_length(session: &mut Session) -> Body {
    let headers = &session.req_header().headers;
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let chunked = headers.contains_key(header::TRANSFER_ENCODING);
    match declared {
        Some(0) if !chunked => Body::None,
        Some(length) if !chunked => Body::Length(length),
        _ if session.is_upgrade_req() || session.as_downstream_mut().is_body_empty() => Body::None,
        _ => Body::Unknown,
    }
}

/// RFC 9421 section 2.2.3: the host in lower case, and the port where it is not that of the scheme.
fn authority(target: Option<&http::uri::Authority>, headers: &HeaderMap, scheme: Scheme) -> Option<String> {
    let text = match target {
        Some(authority) => authority.as_str(),
        None => headers.get(header::HOST)?.to_str().ok()?,
    };
    let text = text.to_ascii_lowercase();
    let port = match scheme {
        Scheme::Http => ":80",
        Scheme::Https => ":443",
    };
    Some(text.strip_suffix(port).map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, SharedClock};
    use crate::filter::testing::{build_for, consumers, decide, problem, session};
    use aws_lc_rs::hmac;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn filter(clock: &Arc<ManualClock>, table: &str) -> (Hmac, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, SECRET).unwrap();
        let all = consumers(&format!(
            "[consumers.acme]\ncredentials = [{{ hmac = {{ key_id = 'k', secret = {{ file = '{}' }} }} }}]",
            path.display()
        ));
        (build_for::<HmacConfig>(table, &all, &(Arc::clone(clock) as SharedClock)).unwrap(), directory)
    }

    /// A request whose signature covers `base`, each line a component.
    fn signed(line: &str, headers: &str, list: &str, base: &str, created: u64) -> String {
        let params = format!("({list});created={created};keyid=\"k\"");
        let tag = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()),
            format!("{base}\n\"@signature-params\": {params}").as_bytes(),
        );
        let signature = STANDARD.encode(tag);
        format!(
            "{line} HTTP/1.1\r\nHost: Example.com:80\r\n{headers}Signature-Input: s={params}\r\nSignature: s=:{signature}:\r\n\r\n"
        )
    }

    const LIST: &str = "\"@method\" \"@authority\" \"@path\" \"@query\"";

    async fn ask(filter: &Hmac, raw: &str) -> Result<(), &'static str> {
        let (mut session, mut ctx) = session(raw, "/{*rest}").await;
        let done = decide(filter, &mut session, &mut ctx).await;
        assert_eq!(done.is_ok(), ctx.identity.is_some());
        done
    }

    #[tokio::test]
    async fn a_signed_request_passes_once() {
        let clock = ManualClock::new();
        clock.advance(std::time::Duration::from_secs(1_000_000));
        let (filter, _directory) = filter(&clock, "{}");
        let base = "\"@method\": GET\n\"@authority\": example.com\n\"@path\": /a/b\n\"@query\": ?x=1";
        let good = signed("GET /a/b?x=1", "", LIST, base, 1_000_000);
        assert_eq!(ask(&filter, &good.replace("/a/b", "/a/c")).await, Err("credential_invalid"));
        assert_eq!(ask(&filter, &good.replace("GET", "PUT")).await, Err("credential_invalid"));
        assert_eq!(ask(&filter, &good).await, Ok(()));
        assert_eq!(ask(&filter, &good).await, Err("credential_invalid"), "again");
        let method_only = signed("GET /a/b?x=1", "", "\"@method\"", "\"@method\": GET", 1_000_000);
        assert_eq!(ask(&filter, &method_only).await, Err("credential_invalid"), "it covers too little");
        assert_eq!(ask(&filter, "GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await, Err("credential_missing"));
        assert_eq!(ask(&filter, "GET /a HTTP/1.1\r\nHost: a\r\nSignature: s=:AA==:\r\n\r\n").await, Err("credential_invalid"));
    }

    #[tokio::test]
    async fn a_body_must_be_covered_and_have_a_length() {
        let clock = ManualClock::new();
        clock.advance(std::time::Duration::from_secs(1_000_000));
        let (filter, _directory) = filter(&clock, "{ components = ['@method'] }");
        let digest = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:";
        let covered = ("\"@method\" \"content-digest\"", format!("\"@method\": POST\n\"content-digest\": {digest}"));
        let line = format!("Content-Digest: {digest}\r\n");
        let with = |more: &str| signed("POST /a", &format!("{line}{more}"), covered.0, &covered.1, 1_000_000);
        assert_eq!(ask(&filter, &with("Transfer-Encoding: chunked\r\n")).await, Err("length_required"));
        let (mut session, mut ctx) = session(&with("Content-Length: 18\r\n"), "/{*rest}").await;
        assert_eq!(decide(&filter, &mut session, &mut ctx).await, Ok(()));
        let mut digest = ctx.body_digest.take().unwrap();
        assert!(digest.update(b"{\"hello\": \"world\"}"));
        // The hash of something else, and no body at all.
        let empty = signed("POST /b", &line, covered.0, &covered.1, 999_999);
        assert_eq!(ask(&filter, &empty).await, Err("digest_mismatch"));
        let uncovered = signed("POST /a", "Content-Length: 18\r\n", "\"@method\"", "\"@method\": POST", 1_000_000);
        assert_eq!(ask(&filter, &uncovered).await, Err("credential_invalid"));
    }

    #[test]
    fn impossible_tables_are_refused_with_a_reason() {
        assert_eq!(problem::<HmacConfig>("{ components = ['Date'] }").message, "`Date` cannot be covered by a signature");
        assert_eq!(problem::<HmacConfig>("{ components = ['@status'] }").message, "`@status` cannot be covered by a signature");
        assert_eq!(problem::<HmacConfig>("{ max_age = '2h' }").message, "`2h` is not possible here");
    }
}
