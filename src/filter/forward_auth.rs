//! `forward_auth`: a service of your own says whether a request may go on.

mod cache;
mod client;

use super::header_edits::parse_name;
use super::place::Place;
use super::{BuildContext, Filter, FilterConfig, Flow, Phases, Problem, Step};
use crate::fetch::{Endpoint, tls};
use crate::fields::{one_cookie_line, remove_alike};
use crate::identity::Identity;
use crate::rejection::{self, LocalResponse, Rejection};
use crate::request::RequestCtx;
use crate::telemetry::metrics::{AuthMetrics, AuthOutcome};
use crate::value::{Duration, Located, read_file};
use bytes::Bytes;
use cache::Cache;
use client::{Answer, Client, NoAnswer};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// The most headers of each list.
const LIST_MAX: usize = 64;
/// The largest file of certificates, in bytes.
const CA_MAX: u64 = 1 << 20;
/// When to come back after the service could not be asked.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(2);
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer");
const FORWARDED: [HeaderName; 5] = [
    HeaderName::from_static("x-forwarded-method"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-uri"),
    HeaderName::from_static("x-forwarded-for"),
];

/// Asks an HTTP service before a request goes on, by a GET without a body that has the `headers` of the request, `X-Request-Id`,
/// and `X-Forwarded-Method`, `-Proto`, `-Host`, `-Uri` and `-For`. 2xx lets it pass. 401 is answered as 401 with the service's
/// `WWW-Authenticate` (`credential_missing` where the request has none of the `headers`, else `credential_invalid`), 403 as 403
/// `forbidden`, a redirect as it is if `redirects` is set. A request with several lines of `Authorization` or of one of the `headers`
/// is answered with 400 `credential_duplicate` without asking, because the service could go by one of them and the upstream by another;
/// lines of `Cookie` are one list and are joined. Anything else, no answer in time, and a service that cannot be
/// reached is answered with 503 `authorization_unavailable`: nothing passes that was not permitted. After five failures in a row the
/// service is left alone for a second, then asked by one request.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForwardAuthConfig {
    /// The `http` or `https` URL of the service.
    pub url: Located<String>,
    /// The headers of the request that the service sees, up to 64. Default: `["authorization", "cookie"]`.
    pub headers: Option<Vec<Located<String>>>,
    /// The headers of the service's answer that the upstream sees, up to 64; what the client sent under these names is removed.
    /// Default: none.
    #[serde(default)]
    pub response_headers: Vec<Located<String>>,
    /// The headers of the service's answer that say who calls. Default: nobody is known by it.
    pub identity: Option<IdentityConfig>,
    /// The longest that a request waits, connecting included, from 10ms to 30s.
    #[serde(default = "timeout")]
    pub timeout: Located<Duration>,
    /// How long an answer that lets pass counts for equal requests, up to 5m: those with the same method, host, path, query,
    /// client address and `headers`. An answer with `Cache-Control: no-store` counts once. At most 10,000 are kept, by a hash.
    #[serde(default = "no_cache")]
    pub cache: Located<Duration>,
    /// How many requests may wait for the service at once, from 1 to 10000; more are answered with 503.
    #[serde(default = "in_flight")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_in_flight: Located<u32>,
    /// Whether a redirect of the service (301, 302, 303, 307, 308) goes to the client, with its `Location` and `Set-Cookie`: to a
    /// page where people log in.
    #[serde(default)]
    pub redirects: bool,
    /// A file with the certificates in PEM that an `https` service is trusted by, relative to this file. Default: those of the system.
    pub ca: Option<Located<String>>,
}

/// Which headers of the service's answer say who calls.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdentityConfig {
    /// The header with the name of the caller; where a consumer has this name, it is that consumer, and one that is not enabled is
    /// refused with 401 `credential_invalid`. An answer that lets pass without a name is answered with 503.
    pub name: Located<String>,
    /// The header with the roles, separated by commas, in addition to those of the consumer. Default: none.
    pub roles: Option<Located<String>>,
}

fn timeout() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(1))
}
fn no_cache() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(0))
}
fn in_flight() -> Located<u32> {
    Located::nowhere(256)
}

pub struct ForwardAuth {
    client: Arc<Client>,
    cache: Option<(Arc<Cache>, std::time::Duration)>,
    headers: Box<[HeaderName]>,
    response_headers: Box<[HeaderName]>,
    identity: Option<(HeaderName, Option<HeaderName>)>,
    timeout: std::time::Duration,
    redirects: bool,
    consumers: Arc<crate::consumer::Consumers>,
    clock: crate::clock::SharedClock,
    metrics: Arc<AuthMetrics>,
}

/// What an answer that lets pass says.
#[derive(Debug)]
struct Permit {
    identity: Option<Arc<Identity>>,
    /// For the upstream.
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// The permits of one request, on their way to its upstream.
#[derive(Clone, Default)]
struct Permits(Vec<Arc<Permit>>);

impl FilterConfig for ForwardAuthConfig {
    const NAME: &'static str = "forward_auth";
    type Filter = ForwardAuth;

    /// Which of them the service takes for a credential is not known here.
    fn credential_headers(&self) -> Vec<HeaderName> {
        self.headers.iter().flatten().filter_map(|name| parse_name(name, name).ok()).collect()
    }

    fn build(self, cx: &mut BuildContext<'_>) -> Result<ForwardAuth, Problem> {
        let at = Endpoint::parse(&self.url).map_err(|why| Problem::new(why).at(&self.url))?;
        let seconds = |from: u64, to: u64| Duration::from_millis(from)..=Duration::from_millis(to);
        within(&self.timeout, seconds(10, 30_000))?;
        within(&self.cache, seconds(0, 300_000))?;
        within(&self.max_in_flight, 1..=10_000)?;
        let headers = match &self.headers {
            None => [header::AUTHORIZATION, header::COOKIE].into(),
            Some(list) => names(list)?,
        };
        let ca = match &self.ca {
            None => None,
            Some(_) if !at.https => {
                return Err(Problem::new("`ca` is for an `https` URL").at(self.ca.as_ref().unwrap_or(&self.url)));
            }
            Some(path) => {
                let read = read_file(&cx.directory().join(&path.value), CA_MAX);
                Some(read.map_err(|why| Problem::new(format!("cannot read {}: {why}", path.value)).at(path))?)
            }
        };
        let connector = match at.https {
            false => None,
            true => Some(tls(ca.as_deref()).map_err(|why| {
                Problem::new(format!("the certificates that the service is trusted by cannot be used: {why}")).at(&self.url)
            })?),
        };
        let identity = match &self.identity {
            None => None,
            Some(identity) => {
                let roles = identity.roles.as_ref().map(|name| parse_name(name, name)).transpose()?;
                Some((parse_name(&identity.name, &identity.name)?, roles))
            }
        };
        let room = usize::try_from(self.max_in_flight.value).unwrap_or(usize::MAX);
        // Connections and failures are the service's, whichever route asks.
        let key = format!("{at} {room} {:?}", ca.as_deref().map(fingerprint));
        let client = cx.state.get_or_create(&key, || Client::new(at, connector, room));
        let keep = self.cache.get();
        Ok(ForwardAuth {
            client,
            cache: (!keep.is_zero()).then(|| (Arc::new(Cache::default()), keep)),
            headers,
            response_headers: names(&self.response_headers)?,
            identity,
            timeout: self.timeout.get(),
            redirects: self.redirects,
            consumers: Arc::clone(cx.consumers),
            clock: Arc::clone(cx.clock),
            metrics: cx.auth_metrics(Self::NAME),
        })
    }
}

fn fingerprint(pem: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, pem).as_ref().to_vec()
}

fn within<T: PartialOrd + std::fmt::Display>(value: &Located<T>, bounds: RangeInclusive<T>) -> Result<(), Problem> {
    if bounds.contains(&value.value) {
        return Ok(());
    }
    let problem = Problem::new(format!("`{}` is not possible here", value.value)).at(value);
    Err(problem.help(format!("use {} to {}", bounds.start(), bounds.end())))
}

/// Names of headers; not those that belong to a connection or frame a message.
fn names(list: &[Located<String>]) -> Result<Box<[HeaderName]>, Problem> {
    if let Some(beyond) = list.get(LIST_MAX) {
        return Err(Problem::new(format!("the most headers are {LIST_MAX}")).at(beyond));
    }
    let each = list.iter().map(|text| {
        let name = parse_name(text, text)?;
        let framing = [
            header::CONNECTION,
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::HOST,
            header::UPGRADE,
            header::TE,
            header::TRAILER,
        ];
        if framing.contains(&name) || FORWARDED.contains(&name) {
            return Err(Problem::new(format!("`{name}` cannot be handed on")).at(text));
        }
        Ok(name)
    });
    each.collect()
}

impl Filter for ForwardAuth {
    fn phases(&self) -> Phases {
        match self.response_headers.is_empty() {
            true => Phases::REQUEST,
            false => Phases::REQUEST.and(Phases::UPSTREAM_REQUEST),
        }
    }

    fn establishes_identity(&self) -> bool {
        self.identity.is_some()
    }

    fn tells_callers_apart(&self) -> bool {
        true
    }

    fn grants_role(&self, _: &str) -> bool {
        self.identity.as_ref().is_some_and(|(_, roles)| roles.is_some())
    }

    fn on_request<'a>(&'a self, session: &'a mut Session, ctx: &'a mut RequestCtx) -> Step<'a> {
        let fields = &session.req_header().headers;
        let mut single = self.headers.iter().chain([&header::AUTHORIZATION]).filter(|name| **name != header::COOKIE);
        if single.any(|name| fields.get_all(name).iter().nth(1).is_some()) {
            self.metrics.count(AuthOutcome::Duplicate);
            return Step::reject(Rejection::new(&rejection::CREDENTIAL_DUPLICATE));
        }
        let Some(question) = self.question(session.req_header(), ctx) else {
            return Step::reject(self.unavailable());
        };
        if self.identity.is_none() {
            // Nobody knows who it is, only that the service decides by these.
            for name in &self.headers {
                for value in session.req_header().headers.get_all(name) {
                    ctx.tell_apart(name.as_str(), value.as_bytes());
                }
            }
        }
        let mark = self.cache.as_ref().map(|(cache, keep)| (cache, *keep, Cache::mark(&question)));
        if let Some((cache, keep, mark)) = &mark
            && let Some(permit) = cache.get(mark, self.clock.now(), *keep)
        {
            return Step::Ready(Ok(self.accept(permit, ctx)));
        }
        let carried = self.headers.iter().any(|name| session.req_header().headers.contains_key(name));
        Step::Wait(Box::pin(async move {
            let asked = tokio::time::timeout(self.timeout, self.client.ask(question, self.clock.now())).await;
            let answer = match asked.unwrap_or_else(|_| Err(NoAnswer::Failed("no answer in time".to_owned()))) {
                Ok(answer) => answer,
                Err(why) => {
                    if let NoAnswer::Failed(_) = why {
                        self.client.failed(self.clock.now());
                    }
                    log::debug!("{} says nothing: {why}", self.client.at());
                    return Err(self.unavailable());
                }
            };
            if answer.status.is_server_error() {
                self.client.failed(self.clock.now());
            } else {
                self.client.worked();
            }
            let flow = self.decide(answer, carried, ctx)?;
            if let (Flow::Continue, Some((cache, _, mark)), Some(permit)) = (&flow.0, mark, flow.1) {
                cache.insert(mark, permit, self.clock.now());
            }
            Ok(flow.0)
        }))
    }

    fn credential_places(&self) -> Vec<Place> {
        self.headers.iter().cloned().map(Place::Header).collect()
    }

    fn on_passed_over(&self, _: &Session, head: &mut RequestHeader, _: &mut RequestCtx) -> Result<(), Rejection> {
        self.take_out(head);
        Ok(())
    }

    fn on_upstream_request(&self, _: &Session, head: &mut RequestHeader, ctx: &mut RequestCtx) -> Result<(), Rejection> {
        self.take_out(head);
        let permits = ctx.extensions.get::<Permits>().into_iter().flat_map(|permits| &permits.0);
        // Those of other filters of the route are appended by these.
        let ours = permits.flat_map(|permit| &permit.headers).filter(|(name, _)| self.response_headers.contains(name));
        for (name, value) in ours {
            // Fails only when the map is full (32,768 fields).
            let _ = head.append_header(name, value.clone());
        }
        Ok(())
    }
}

impl ForwardAuth {
    /// What a client wrote must not pass for the word of the service.
    fn take_out(&self, head: &mut RequestHeader) {
        for name in &self.response_headers {
            remove_alike(head, name);
        }
    }

    /// What the service is asked; `None` if it cannot be asked at all.
    fn question(&self, head: &RequestHeader, ctx: &RequestCtx) -> Option<HeaderMap> {
        let mut headers = HeaderMap::with_capacity(self.headers.len().saturating_add(8));
        for name in &self.headers {
            let mut lines = head.headers.get_all(name).iter();
            let Some(first) = lines.next() else { continue };
            // Only of `Cookie` there is more than one line.
            let value = match lines.next() {
                None => first.clone(),
                Some(_) => one_cookie_line(head.headers.get_all(name).iter().map(HeaderValue::as_bytes))?,
            };
            headers.insert(name, value);
        }
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        let [method, proto, host, uri, client] = FORWARDED;
        headers.insert(method, HeaderValue::from_str(head.method.as_str()).ok()?);
        headers.insert(proto, HeaderValue::from_static(ctx.scheme.as_str()));
        headers.insert(host, HeaderValue::from_str(&ctx.host).ok()?);
        headers.insert(uri, HeaderValue::from_str(target).ok()?);
        headers.insert(client, HeaderValue::from_str(&ctx.client.to_string()).ok()?);
        let id = crate::forwarded::id_value(&ctx.id);
        headers.extend(id.map(|id| (crate::forwarded::X_REQUEST_ID.name.clone(), id)));
        Some(headers)
    }

    fn decide(&self, answer: Answer, carried: bool, ctx: &mut RequestCtx) -> Result<(Flow, Option<Arc<Permit>>), Rejection> {
        match answer.status {
            status if status.is_success() => {
                let permit = Arc::new(self.permit(&answer.headers)?);
                let no_store = answer.headers.get_all(header::CACHE_CONTROL).iter().any(|line| {
                    line.as_bytes().split(|b| *b == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(b"no-store"))
                });
                Ok((self.accept(Arc::clone(&permit), ctx), (!no_store).then_some(permit)))
            }
            StatusCode::UNAUTHORIZED => {
                let (outcome, code) = match carried {
                    true => (AuthOutcome::Unknown, &rejection::CREDENTIAL_INVALID),
                    false => (AuthOutcome::Missing, &rejection::CREDENTIAL_MISSING),
                };
                self.metrics.count(outcome);
                let challenge = answer.headers.get(header::WWW_AUTHENTICATE).cloned().unwrap_or(CHALLENGE);
                Err(Rejection::new(code).www_authenticate(challenge))
            }
            StatusCode::FORBIDDEN => {
                self.metrics.count(AuthOutcome::Forbidden);
                Err(Rejection::new(&rejection::FORBIDDEN))
            }
            status if self.redirects && matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) => {
                let location = answer.headers.get(header::LOCATION).cloned().ok_or_else(|| self.unavailable())?;
                self.metrics.count(AuthOutcome::Missing);
                let mut headers = HeaderMap::new();
                headers.insert(header::LOCATION, location);
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
                for cookie in answer.headers.get_all(header::SET_COOKIE) {
                    headers.append(header::SET_COOKIE, cookie.clone());
                }
                Ok((Flow::Respond(Box::new(LocalResponse { status, headers, body: Bytes::new() })), None))
            }
            status => {
                log::debug!("{} answers {}", self.client.at(), status.as_u16());
                Err(self.unavailable())
            }
        }
    }

    /// What an answer lets pass that says who calls, where it must, and that it is somebody who may.
    fn permit(&self, headers: &HeaderMap) -> Result<Permit, Rejection> {
        let handed: Vec<_> = self
            .response_headers
            .iter()
            .flat_map(|name| headers.get_all(name).iter().map(|value| (name.clone(), value.clone())))
            .collect();
        let Some((name, roles)) = &self.identity else { return Ok(Permit { identity: None, headers: handed }) };
        let name = headers.get(name).and_then(|value| value.to_str().ok()).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| self.unavailable())?;
        let lines = roles.iter().flat_map(|roles| headers.get_all(roles)).filter_map(|line| line.to_str().ok());
        let mut roles: Vec<Arc<str>> =
            lines.flat_map(|line| line.split(',')).map(str::trim).filter(|role| !role.is_empty()).map(Arc::from).collect();
        let consumer = self.consumers.get(name);
        if consumer.is_some_and(|consumer| !consumer.enabled) {
            self.metrics.count(AuthOutcome::Disabled);
            return Err(Rejection::new(&rejection::CREDENTIAL_INVALID).www_authenticate(CHALLENGE));
        }
        for role in consumer.iter().flat_map(|consumer| consumer.roles.iter()) {
            if !roles.contains(role) {
                roles.push(Arc::clone(role));
            }
        }
        let identity = Identity {
            consumer: consumer.cloned(),
            name: name.into(),
            credential: format!("forward_auth:{name}").into(),
            method: "forward_auth",
            roles: roles.into(),
            tier: consumer.and_then(|consumer| consumer.tier.as_ref()).map(|tier| Arc::clone(&tier.name)),
            ..Identity::nobody()
        };
        Ok(Permit { identity: Some(Arc::new(identity)), headers: handed })
    }

    fn accept(&self, permit: Arc<Permit>, ctx: &mut RequestCtx) -> Flow {
        self.metrics.count(AuthOutcome::Accepted);
        if let Some(identity) = &permit.identity {
            ctx.identity = Some(Arc::clone(identity));
        }
        for (name, value) in &permit.headers {
            ctx.tell_apart(name.as_str(), value.as_bytes());
        }
        if !permit.headers.is_empty() {
            let mut permits = ctx.extensions.remove::<Permits>().unwrap_or_default();
            permits.0.push(permit);
            ctx.extensions.insert(permits);
        }
        Flow::Continue
    }

    fn unavailable(&self) -> Rejection {
        self.metrics.count(AuthOutcome::Unavailable);
        Rejection::new(&rejection::AUTHORIZATION_UNAVAILABLE).retry_after(RETRY_AFTER)
    }
}

#[cfg(test)]
mod tests;
