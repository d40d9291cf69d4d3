//! `any_of`: several ways to say who calls, of which one is enough.

use super::place::{self, Place};
use super::{BuildContext, Filter, FilterConfig, FilterSpec, Flow, Phases, Problem, Step};
use crate::arena::with_arena;
use crate::fields::remove_alike_but;
use crate::rejection::{self, Rejection};
use crate::request::RequestCtx;
use crate::telemetry::metrics::{AuthMetrics, AuthOutcome};
use arrayvec::ArrayVec;
use bytes::BufMut;
use http::{HeaderName, HeaderValue, Uri, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, IgnoredAny};
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The most methods of one filter.
const METHODS_MAX: usize = 8;
const BITS: [u8; METHODS_MAX] = [1, 2, 4, 8, 16, 32, 64, 128];

/// Takes one of several credentials. The methods are tried in the order written: where the request has no credential for one,
/// the next is tried; the first for which it has one decides, so that a bad credential is refused and not passed over. With
/// no credential at all the answer is 401 `credential_missing`, unless `anonymous` is set. Whichever decides, the others are not
/// asked, so that what stands where they look for theirs is not verified: it does not go upstream, whatever their `forward` says. That
/// is the parameters, cookies and headers that they name, `Authorization` for `basic`, `Signature` and `Signature-Input` for
/// `hmac`, and all `headers` of `forward_auth`. Where the method that decided has its credential in the same place, this stays as
/// its own `forward` says. A request that is let pass without any credential goes on without what stands in any of these places.
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
    methods: Box<[Method]>,
    anonymous: bool,
    /// By which requests remember what it has decided.
    id: u64,
    metrics: Arc<AuthMetrics>,
}

struct Method {
    filter: Arc<dyn Filter>,
    /// Where it looks for credentials.
    places: Box<[Place]>,
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
            let places = filter.credential_places().into();
            Ok(Method { filter, places })
        });
        let methods = methods.collect::<Result<_, Problem>>()?;
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(AnyOf { methods, anonymous: self.anonymous, id, metrics: cx.auth_metrics(Self::NAME) })
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
        self.methods.iter().any(|method| method.filter.grants_role(role))
    }

    fn may_wait(&self) -> bool {
        self.methods.iter().any(|method| method.filter.may_wait())
    }

    fn on_request<'a>(&'a self, session: &'a mut Session, ctx: &'a mut RequestCtx) -> Step<'a> {
        let hidden = match self.hide(session) {
            Ok(None) => None,
            Ok(Some(hidden)) => return Step::Wait(Box::pin(self.rest(0, Challenges::default(), Some(hidden), session, ctx))),
            Err(rejection) => return Step::reject(rejection),
        };
        let mut challenges = Challenges::default();
        for (index, method) in self.methods.iter().enumerate() {
            if method.filter.may_wait() {
                return Step::Wait(Box::pin(self.rest(index, challenges, hidden, session, ctx)));
            }
            let done = match method.filter.on_request(session, ctx) {
                Step::Ready(done) => done,
                Step::Wait(_) => return Step::reject(Rejection::new(&rejection::INTERNAL_ERROR)),
            };
            if let Some(decided) = self.decided(index, done, &mut challenges, ctx) {
                return Step::Ready(decided);
            }
        }
        Step::Ready(self.nothing(&challenges, ctx))
    }

    fn take_from_query(&self, session: &mut Session) -> Result<bool, Rejection> {
        self.hide(session).map(|hidden| hidden.is_some())
    }

    fn on_upstream_request(&self, session: &Session, head: &mut RequestHeader, ctx: &mut RequestCtx) -> Result<(), Rejection> {
        let decided = ctx.method_of(self.id).and_then(|index| Some((index, self.methods.get(index)?)));
        let others = self.methods.iter().enumerate().filter(|(index, _)| decided.is_none_or(|(decided, _)| *index != decided));
        let mut edit = others.clone().filter(|(_, other)| other.filter.phases().has(Phases::UPSTREAM_REQUEST));
        edit.try_for_each(|(_, other)| other.filter.on_passed_over(session, head, ctx))?;
        let kept = Kept { method: decided.map(|(_, method)| method), request: session.req_header() };
        others.flat_map(|(_, other)| &other.places).for_each(|place| kept.take_out(place, head));
        match decided {
            Some((_, method)) if method.filter.phases().has(Phases::UPSTREAM_REQUEST) => {
                method.filter.on_upstream_request(session, head, ctx)
            }
            _ => Ok(()),
        }
    }

    fn credential_places(&self) -> Vec<Place> {
        self.methods.iter().flat_map(|method| method.places.iter().cloned()).collect()
    }

    fn is_credential(&self, place: &Place, head: &RequestHeader) -> bool {
        self.methods.iter().any(|method| method.has(place, head))
    }

    fn on_passed_over(&self, session: &Session, head: &mut RequestHeader, ctx: &mut RequestCtx) -> Result<(), Rejection> {
        let mut methods = self.methods.iter().filter(|method| method.filter.phases().has(Phases::UPSTREAM_REQUEST));
        methods.try_for_each(|method| method.filter.on_passed_over(session, head, ctx))
    }

    fn on_response(&self, session: &Session, head: &mut ResponseHeader, ctx: &mut RequestCtx) {
        for method in self.methods.iter().rev().filter(|method| method.filter.phases().has(Phases::RESPONSE)) {
            method.filter.on_response(session, head, ctx);
        }
    }
}

impl Method {
    /// Whether its credential, or one like it, stands in this place.
    fn has(&self, place: &Place, head: &RequestHeader) -> bool {
        self.places.iter().any(|own| own.covers(place) && self.filter.is_credential(own, head))
    }
}

/// What may stay of the places of methods that have not decided.
struct Kept<'a> {
    /// The one that has.
    method: Option<&'a Method>,
    /// As the client sent it.
    request: &'a RequestHeader,
}

impl Kept<'_> {
    fn has(&self, place: &Place) -> bool {
        self.method.is_some_and(|method| method.has(place, self.request))
    }

    fn take_out(&self, place: &Place, head: &mut RequestHeader) {
        if self.has(place) {
            return;
        }
        match place {
            Place::Header(name) if *name == header::COOKIE => {
                let is = |own: &Place, pair: &[u8]| matches!(own, Place::Cookie(name) if place::value_of(pair, name).is_some());
                let own = self.method.iter().flat_map(|method| &method.places);
                place::keep_cookies(head, |pair| own.clone().any(|own| is(own, pair)));
            }
            Place::Header(name) => remove_alike_but(head, name, |other| self.has(&Place::Header(other.clone()))),
            Place::Cookie(name) => place::remove_cookie(head, name),
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
            if method.filter.take_from_query(session)? {
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
        for (index, (method, bit)) in self.methods.iter().zip(BITS).enumerate().skip(index) {
            let shown = hidden.as_ref().filter(|hidden| hidden.methods & bit != 0);
            if let Some(hidden) = shown {
                session.req_header_mut().set_uri(hidden.target.clone());
            }
            let done = match method.filter.on_request(session, ctx) {
                Step::Ready(done) => done,
                Step::Wait(io) => io.await,
            };
            if shown.is_some() {
                self.hide(session)?;
            }
            if let Some(decided) = self.decided(index, done, &mut challenges, ctx) {
                return decided;
            }
        }
        self.nothing(&challenges, ctx)
    }

    /// What a method decided; `None` if the request has no credential for it.
    fn decided(
        &self,
        index: usize,
        done: Result<Flow, Rejection>,
        challenges: &mut Challenges,
        ctx: &mut RequestCtx,
    ) -> Option<Result<Flow, Rejection>> {
        match done {
            Err(rejection) if rejection.code == &rejection::CREDENTIAL_MISSING => {
                challenges.add(rejection.www_authenticate);
                None
            }
            Ok(flow) => {
                self.metrics.count(AuthOutcome::Accepted);
                ctx.note_method(self.id, index);
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
