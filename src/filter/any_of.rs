//! `any_of`: several ways to say who calls, of which one is enough.

use super::{BuildContext, Filter, FilterConfig, FilterSpec, Flow, Phases, Problem, Step};
use crate::arena::with_arena;
use crate::rejection::{self, Rejection};
use crate::request::RequestCtx;
use crate::telemetry::metrics::{AuthMetrics, AuthOutcome};
use arrayvec::ArrayVec;
use bytes::BufMut;
use http::{HeaderName, HeaderValue, Uri};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, IgnoredAny};
use std::borrow::Cow;
use std::sync::Arc;

/// The most methods of one filter.
const METHODS_MAX: usize = 8;
const BITS: [u8; METHODS_MAX] = [1, 2, 4, 8, 16, 32, 64, 128];

/// Takes one of several credentials. The methods are tried in the order written: where the request has no credential for one,
/// the next is tried; the first for which it has one decides, so that a bad credential is refused and not passed over. With
/// no credential at all the answer is 401 `credential_missing`, unless `anonymous` is set. Whichever decides, credentials that the
/// others would take out of the query or the headers do not go upstream either.
#[derive(Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AnyOfConfig {
    /// The filters to try, 1 to 8, each one that establishes an identity: `[{ api_key = {} }, { jwt = { ... } }]`.
    methods: Methods,
    /// Whether a request without any credential may go on, without an identity. Default: false.
    #[serde(default)]
    pub anonymous: bool,
}

/// Decoded by the loader, not by serde: see [`FilterConfig::NESTED`].
#[derive(Clone, Default)]
struct Methods(Vec<FilterSpec>);

impl<'de> Deserialize<'de> for Methods {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Methods::default())
    }
}

impl JsonSchema for Methods {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Methods".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "array", "items": { "$ref": "#/$defs/Filter" } })
    }
}

pub struct AnyOf {
    methods: Box<[Arc<dyn Filter>]>,
    anonymous: bool,
    metrics: Arc<AuthMetrics>,
}

impl FilterConfig for AnyOfConfig {
    const NAME: &'static str = "any_of";
    const NESTED: Option<&'static str> = Some("methods");
    type Filter = AnyOf;

    fn set_nested(&mut self, filters: Vec<FilterSpec>) {
        self.methods.0 = filters;
    }

    fn credential_headers(&self) -> Vec<HeaderName> {
        self.methods.0.iter().flat_map(|spec| spec.prepared.credential_headers.iter().cloned()).collect()
    }

    fn build(self, cx: &mut BuildContext<'_>) -> Result<AnyOf, Problem> {
        if self.methods.0.is_empty() || self.methods.0.len() > METHODS_MAX {
            let problem = Problem::new(format!("`methods` has {} filters", self.methods.0.len()));
            return Err(problem.help(format!("write 1 to {METHODS_MAX}, such as {{ api_key = {{}} }}")));
        }
        let methods = self.methods.0.iter().map(|spec| {
            let here = |mut problem: Problem| {
                problem.span.get_or_insert_with(|| spec.span.clone());
                problem
            };
            let filter = (spec.prepared.build)(cx).map_err(here)?;
            if !filter.establishes_identity() {
                let problem = Problem::new(format!("`{}` does not tell who calls", spec.name));
                return Err(here(problem.help("only filters such as `api_key` and `basic` can be methods")));
            }
            Ok(filter)
        });
        let methods = methods.collect::<Result<_, Problem>>()?;
        Ok(AnyOf { methods, anonymous: self.anonymous, metrics: cx.auth_metrics(Self::NAME) })
    }
}

impl Filter for AnyOf {
    fn phases(&self) -> Phases {
        // Each request calls only the hooks that a method has; the others cost a virtual call that does nothing.
        Phases::REQUEST.and(Phases::UPSTREAM_REQUEST).and(Phases::RESPONSE)
    }

    fn establishes_identity(&self) -> bool {
        true
    }

    fn grants_role(&self, role: &str) -> bool {
        self.methods.iter().any(|method| method.grants_role(role))
    }

    fn may_wait(&self) -> bool {
        self.methods.iter().any(|method| method.may_wait())
    }

    fn on_request<'a>(&'a self, session: &'a mut Session, ctx: &'a mut RequestCtx) -> Step<'a> {
        let hidden = match self.hide(session) {
            Ok(None) => None,
            Ok(Some(hidden)) => return Step::Wait(Box::pin(self.rest(0, Challenges::default(), Some(hidden), session, ctx))),
            Err(rejection) => return Step::reject(rejection),
        };
        let mut challenges = Challenges::default();
        for (index, method) in self.methods.iter().enumerate() {
            if method.may_wait() {
                return Step::Wait(Box::pin(self.rest(index, challenges, hidden, session, ctx)));
            }
            match method.on_request(session, ctx) {
                Step::Ready(done) => {
                    if let Some(decided) = self.decided(done, &mut challenges) {
                        return Step::Ready(decided);
                    }
                }
                Step::Wait(_) => return Step::reject(Rejection::new(&rejection::INTERNAL_ERROR)),
            }
        }
        Step::Ready(self.nothing(&challenges, ctx))
    }

    fn take_from_query(&self, session: &mut Session) -> Result<bool, Rejection> {
        self.hide(session).map(|hidden| hidden.is_some())
    }

    fn on_upstream_request(&self, session: &Session, head: &mut RequestHeader, ctx: &mut RequestCtx) -> Result<(), Rejection> {
        let mut methods = self.methods.iter().filter(|method| method.phases().has(Phases::UPSTREAM_REQUEST));
        methods.try_for_each(|method| method.on_upstream_request(session, head, ctx))
    }

    fn on_response(&self, session: &Session, head: &mut ResponseHeader, ctx: &mut RequestCtx) {
        for method in self.methods.iter().rev().filter(|method| method.phases().has(Phases::RESPONSE)) {
            method.on_response(session, head, ctx);
        }
    }
}

/// Credentials that were taken out of the query.
struct Hidden {
    /// The target with all of them.
    target: Uri,
    /// Whose they are: a bit for each method.
    methods: u8,
}

impl AnyOf {
    /// Takes the credentials of all methods out of the query. One method decides and the others are never asked, but what they
    /// would have taken must not go upstream, nor to a service that another method asks.
    fn hide(&self, session: &mut Session) -> Result<Option<Hidden>, Rejection> {
        let uri = &session.req_header().uri;
        if uri.query().is_none() {
            return Ok(None);
        }
        let mut hidden = Hidden { target: uri.clone(), methods: 0 };
        for (method, bit) in self.methods.iter().zip(BITS) {
            if method.take_from_query(session)? {
                hidden.methods |= bit;
            }
        }
        Ok((hidden.methods != 0).then_some(hidden))
    }

    /// The methods from `index` on, where one of them may wait or has a credential in the query.
    async fn rest(
        &self,
        index: usize,
        mut challenges: Challenges,
        hidden: Option<Hidden>,
        session: &mut Session,
        ctx: &mut RequestCtx,
    ) -> Result<Flow, Rejection> {
        for (method, bit) in self.methods.iter().zip(BITS).skip(index) {
            let shown = hidden.as_ref().filter(|hidden| hidden.methods & bit != 0);
            if let Some(hidden) = shown {
                session.req_header_mut().set_uri(hidden.target.clone());
            }
            let done = match method.on_request(session, ctx) {
                Step::Ready(done) => done,
                Step::Wait(io) => io.await,
            };
            if shown.is_some() {
                self.hide(session)?;
            }
            if let Some(decided) = self.decided(done, &mut challenges) {
                return decided;
            }
        }
        self.nothing(&challenges, ctx)
    }

    /// What a method decided; `None` if the request has no credential for it.
    fn decided(&self, done: Result<Flow, Rejection>, challenges: &mut Challenges) -> Option<Result<Flow, Rejection>> {
        match done {
            Err(rejection) if rejection.code == &rejection::CREDENTIAL_MISSING => {
                challenges.add(rejection.www_authenticate);
                None
            }
            Ok(flow) => {
                self.metrics.count(AuthOutcome::Accepted);
                Some(Ok(flow))
            }
            // Counted by the method, with the reason.
            refused => Some(refused),
        }
    }

    fn nothing(&self, challenges: &Challenges, ctx: &mut RequestCtx) -> Result<Flow, Rejection> {
        let challenge = challenges.joined();
        if self.anonymous {
            self.metrics.count(AuthOutcome::Anonymous);
            ctx.challenge = challenge;
            return Ok(Flow::Continue);
        }
        self.metrics.count(AuthOutcome::Missing);
        Err(Rejection { www_authenticate: challenge, ..Rejection::new(&rejection::CREDENTIAL_MISSING) })
    }
}

/// What each method asks for; several challenges may stand in one field (RFC 9110 section 11.6.1).
#[derive(Default)]
struct Challenges(ArrayVec<HeaderValue, METHODS_MAX>);

impl Challenges {
    fn add(&mut self, challenge: Option<HeaderValue>) {
        if let Some(challenge) = challenge.filter(|challenge| !self.0.contains(challenge)) {
            // One for each method, and there are no more of them than there is room for.
            let _ = self.0.try_push(challenge);
        }
    }

    fn joined(&self) -> Option<HeaderValue> {
        if let [only] = self.0.as_slice() {
            return Some(only.clone());
        }
        let text = with_arena(|out| {
            for (index, challenge) in self.0.iter().enumerate() {
                if index > 0 {
                    out.put_slice(b", ");
                }
                out.put_slice(challenge.as_bytes());
            }
        });
        HeaderValue::from_maybe_shared(text).ok().filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests;
