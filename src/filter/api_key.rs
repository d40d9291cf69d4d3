//! `api_key`: who calls is told by a key, looked up by its hash.

use super::auth::Judge;
use super::header_edits::parse_name;
use super::place::Place;
use super::query::{self, Taken};
use super::{BuildContext, Filter, FilterConfig, Flow, Phases, Problem, Step};
use crate::consumer::issued::Found as Owner;
use crate::consumer::{Consumers, Issued, KeyDigest};
use crate::fields::remove_alike;
use crate::rejection::Rejection;
use crate::request::RequestCtx;
use crate::telemetry::metrics::AuthOutcome;
use crate::value::Located;
use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// The longest key that is looked at, in bytes. A longer one is nobody's.
const KEY_MAX: usize = 512;
const DEFAULT_HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// Asks for an API key of one of the `[consumers]`, in a header or in the query. Without a key the answer is 401
/// `credential_missing`; with one that is unknown, expired, not valid yet or of a consumer that is not enabled, 401
/// `credential_invalid`, alike in all these cases; with two keys, 400 `credential_duplicate`. The key does not go upstream.
/// With `[consumer_source]`, keys that are not in the configuration are looked up in Redis; one that cannot be is answered with 503
/// `credentials_unavailable`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApiKeyConfig {
    /// The header that has the key. Default: `"x-api-key"`, or none where `query` is given.
    pub header: Option<Located<String>>,
    /// The parameter of the query that has the key. Keys in URLs end up in histories and in logs of others, so prefer a header.
    /// The parameter is taken out of the target before the upstream, logs, the cache and filters behind this one see it. Default:
    /// none.
    pub query: Option<Located<String>>,
    /// Whether the header goes upstream with its key. Default: false. A key in the query never does.
    pub forward: bool,
}

pub struct ApiKey {
    header: Option<HeaderName>,
    query: Option<Box<str>>,
    forward: bool,
    consumers: Arc<Consumers>,
    judge: Judge,
}

impl FilterConfig for ApiKeyConfig {
    const NAME: &'static str = "api_key";
    type Filter = ApiKey;

    fn credential_headers(&self) -> Vec<HeaderName> {
        self.header.iter().filter_map(|name| parse_name(name, name).ok()).collect()
    }

    fn build(self, cx: &mut BuildContext<'_>) -> Result<ApiKey, Problem> {
        let header = match &self.header {
            Some(header) => Some(parse_name(header, header)?),
            None => self.query.is_none().then_some(DEFAULT_HEADER),
        };
        if let Some(query) = &self.query {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
            if query.is_empty() || query.len() > 64 || !query.bytes().all(plain) {
                let problem = Problem::new(format!("`{}` cannot be the parameter of a key", query.value)).at(query);
                return Err(problem.help("use up to 64 letters, digits and -_.~"));
            }
        }
        if self.forward && header.is_none() {
            return Err(Problem::new("a key in the query is never forwarded").help("take `forward` out, or use a header"));
        }
        let mut challenge = String::from("ApiKey ");
        let places = [("header", header.as_ref().map(HeaderName::as_str)), ("query", self.query.as_ref().map(|q| q.as_str()))];
        let places = places.iter().filter_map(|(kind, name)| Some(format!("{kind}=\"{}\"", (*name)?)));
        challenge.push_str(&places.collect::<Vec<_>>().join(", "));
        // Names of headers and of parameters hold nothing that a header value cannot.
        let challenge = HeaderValue::from_str(&challenge).map_err(|_| Problem::new("this makes no challenge"))?;
        Ok(ApiKey {
            header,
            query: self.query.map(|query| query.value.into()),
            forward: self.forward,
            consumers: Arc::clone(cx.consumers),
            judge: Judge::new(Self::NAME, challenge, cx),
        })
    }
}

impl Filter for ApiKey {
    fn phases(&self) -> Phases {
        Phases::REQUEST.and(Phases::UPSTREAM_REQUEST)
    }

    fn establishes_identity(&self) -> bool {
        true
    }

    /// Consumers that are not in the configuration may have any role.
    fn grants_role(&self, _: &str) -> bool {
        self.consumers.issued().is_some()
    }

    fn may_wait(&self) -> bool {
        self.consumers.issued().is_some()
    }

    fn on_request<'a>(&'a self, session: &'a mut Session, ctx: &'a mut RequestCtx) -> Step<'a> {
        let digest = match self.read(session) {
            Ok(digest) => digest,
            Err(rejection) => return Step::reject(rejection),
        };
        let done = match (self.consumers.by_api_key(&digest), self.consumers.issued()) {
            (Some(credential), _) => self.judge.accept(credential, ctx),
            (None, None) => Err(self.judge.refuse(AuthOutcome::Unknown)),
            (None, Some(issued)) => match issued.known(&self.consumers, &digest) {
                Some(owner) => self.decide(owner, ctx),
                None => return Step::Wait(Box::pin(self.look_up(issued, digest, ctx))),
            },
        };
        Step::Ready(done.map(|()| Flow::Continue))
    }

    fn take_from_query(&self, session: &mut Session) -> Result<bool, Rejection> {
        let Some(name) = &self.query else { return Ok(false) };
        let taken = query::take(session, |parameter| parameter == name.as_bytes(), |_| ())?;
        Ok(!matches!(taken, Taken::None))
    }

    fn credential_places(&self) -> Vec<Place> {
        self.header.iter().cloned().map(Place::Header).collect()
    }

    fn on_passed_over(&self, _: &Session, _: &mut RequestHeader, _: &mut RequestCtx) -> Result<(), Rejection> {
        Ok(())
    }

    fn on_upstream_request(&self, _: &Session, head: &mut RequestHeader, _: &mut RequestCtx) -> Result<(), Rejection> {
        if let Some(header) = &self.header
            && !self.forward
        {
            remove_alike(head, header);
        }
        Ok(())
    }
}

impl ApiKey {
    /// The hash of the one key that the request has.
    fn read(&self, session: &mut Session) -> Result<KeyDigest, Rejection> {
        // Taken out before anything is decided: a request that is refused is logged too.
        let in_query = match &self.query {
            Some(name) => query::take(session, |parameter| parameter == name.as_bytes(), |key| digest(&query::decoded(key)))?,
            None => Taken::None,
        };
        let mut in_header = self.header.iter().flat_map(|name| session.req_header().headers.get_all(name));
        let digest = match (in_header.next(), in_header.next(), in_query) {
            (None, None, Taken::None) => return Err(self.judge.refuse(AuthOutcome::Missing)),
            (Some(value), None, Taken::None) => digest(value.as_bytes()),
            (None, None, Taken::One(digest)) => digest,
            _ => return Err(self.judge.refuse(AuthOutcome::Duplicate)),
        };
        digest.ok_or_else(|| self.judge.refuse(AuthOutcome::Malformed))
    }

    async fn look_up(&self, issued: &Issued, digest: KeyDigest, ctx: &mut RequestCtx) -> Result<Flow, Rejection> {
        let owner = issued.find(&self.consumers, &digest).await;
        self.decide(owner, ctx).map(|()| Flow::Continue)
    }

    fn decide(&self, owner: Owner, ctx: &mut RequestCtx) -> Result<(), Rejection> {
        match owner {
            Owner::Credential(credential) => self.judge.accept(&credential, ctx),
            Owner::Nobody => Err(self.judge.refuse(AuthOutcome::Unknown)),
            Owner::Unavailable => Err(self.judge.unavailable()),
        }
    }
}

/// `None` for what cannot be a key.
fn digest(key: &[u8]) -> Option<KeyDigest> {
    (!key.is_empty() && key.len() <= KEY_MAX).then(|| KeyDigest::of(key))
}

#[cfg(test)]
mod tests;
