//! A filter is one step of policy on a request and its response. A route's filters run in the order they are written;
//! on the way back, in reverse.
//!
//! To add one: write a file with a config struct and a runtime struct, give it its `mod` line here, and its line in
//! [`Registry::builtin`]. The doc comments of the config struct are its reference page and its JSON Schema. Filters from
//! other crates are registered the same way, see `examples/custom_filter.rs`.

mod any_of;
mod api_key;
mod auth;
mod basic;
mod chain;
mod concurrency;
mod cors;
mod forward_auth;
mod header_edits;
mod health;
mod hmac;
mod ip_allow;
mod jwt;
mod mtls;
mod place;
mod query;
mod rate_limit;
mod redirect;
mod registry;
mod request_headers;
mod require;
mod respond;
mod response_headers;
mod rewrite;
#[cfg(test)]
pub(crate) mod testing;

pub use chain::Chain;
pub use place::Place;
pub use registry::{BuildContext, FilterSpec, Prepared, Problem, Registration, Registry};

use crate::rejection::{LocalResponse, Rejection};
use crate::request::RequestCtx;
use crate::value::Located;
use http::HeaderName;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::pin::Pin;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a filter decides about the request it was shown.
pub enum Flow {
    Continue,
    /// The filter answers; nothing goes upstream. Response filters still run.
    Respond(Box<LocalResponse>),
}

/// A decision made now, or one that waits on I/O. Only `Wait` allocates.
pub enum Step<'a> {
    Ready(Result<Flow, Rejection>),
    Wait(BoxFuture<'a, Result<Flow, Rejection>>),
}

impl Step<'_> {
    pub const CONTINUE: Self = Step::Ready(Ok(Flow::Continue));

    pub fn reject(rejection: Rejection) -> Self {
        Step::Ready(Err(rejection))
    }

    pub fn respond(response: LocalResponse) -> Self {
        Step::Ready(Ok(Flow::Respond(Box::new(response))))
    }
}

/// The hooks that a filter uses. A chain calls a filter only in the phases that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phases(u8);

impl Phases {
    pub const REQUEST: Phases = Phases(1);
    pub const UPSTREAM_REQUEST: Phases = Phases(2);
    pub const RESPONSE: Phases = Phases(4);

    pub const fn and(self, other: Phases) -> Phases {
        Phases(self.0 | other.0)
    }

    pub const fn has(self, phase: Phases) -> bool {
        self.0 & phase.0 != 0
    }
}

/// A filter that counts, for operators who ask how a key stands.
pub trait Limiter: Send + Sync {
    /// Whether the client's address is part of its keys.
    fn counts_addresses(&self) -> bool;

    /// How the key of a request with these facts stands, as JSON; with `reset`, after it has been forgotten.
    fn inspect<'a>(&'a self, ctx: &'a RequestCtx, headers: &'a http::HeaderMap, reset: bool) -> BoxFuture<'a, serde_json::Value>;

    /// How many limits responses tell of for it.
    fn told(&self) -> usize {
        0
    }

    /// Another filter that counts comes after it in the chain, and may refuse what this one has admitted.
    fn followed(&self) {}

    /// A later one has refused the request: takes back what was counted for it here.
    fn give_back(&self, _ctx: &mut RequestCtx) {}
}

/// The runtime side of a filter, compiled once for each place it is written at. Nothing here may block, panic, or
/// allocate what `build` could have prepared.
pub trait Filter: Send + Sync + 'static {
    fn phases(&self) -> Phases;

    /// Whether it answers every request that reaches it, so that its route needs no upstream.
    fn answers(&self) -> bool {
        false
    }

    /// Whether a request that it lets through may have an [identity](crate::identity) that it had not before.
    fn establishes_identity(&self) -> bool {
        false
    }

    /// Whether answers may depend on who calls because of it, also where it establishes no identity: it decides by what callers
    /// send, and [tells them apart](RequestCtx::tell_apart).
    fn tells_callers_apart(&self) -> bool {
        self.establishes_identity()
    }

    /// Whether it tells the upstream of the client's certificate, without an identity that stands for it.
    fn tells_certificate(&self) -> bool {
        false
    }

    /// The field of a response that says what this one request has cost. A stored answer costs nothing more.
    fn charges_by(&self) -> Option<&HeaderName> {
        None
    }

    /// Whether it must stand before filters that ask for credentials, because it answers requests that have none.
    fn precedes_identity(&self) -> bool {
        false
    }

    /// Whether it decides by the identity, so that a filter that establishes one must stand before it.
    fn needs_identity(&self) -> bool {
        false
    }

    /// Whether it may give an identity this role although no configured consumer has it, such as one of a token's claims.
    fn grants_role(&self, _role: &str) -> bool {
        false
    }

    /// The roles that it asks for and that no configured consumer has: a mistake, unless a filter before it grants roles.
    fn unknown_roles(&self) -> &[Located<String>] {
        &[]
    }

    /// The params of the path that it writes somewhere: a mistake where the path of its route has none of that name.
    fn path_params(&self) -> Vec<&str> {
        Vec::new()
    }

    /// The params of the path that its condition reads: probably a mistake where there is none of that name.
    fn condition_params(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Whether it writes the name of the consumer somewhere: probably a mistake where no filter of its route tells who calls.
    fn names_consumer(&self) -> bool {
        false
    }

    /// What operators may ask it, if it counts anything.
    fn limiter(&self) -> Option<&dyn Limiter> {
        None
    }

    /// Whether [`Filter::on_request`] may return [`Step::Wait`].
    fn may_wait(&self) -> bool {
        true
    }

    /// Decides whether the request may go on. The request head is canonical by now; change nothing in it that is meant
    /// for the upstream: do that in [`Filter::on_upstream_request`], where a client's `Connection` header can no longer
    /// have it removed.
    fn on_request<'a>(&'a self, _session: &'a mut Session, _ctx: &'a mut RequestCtx) -> Step<'a> {
        Step::CONTINUE
    }

    /// Takes every parameter out of the target in which [`Filter::on_request`] would look for a credential; whether there was one.
    /// For `any_of`, which asks one of several filters and passes on what none of them may.
    fn take_from_query(&self, _session: &mut Session) -> Result<bool, Rejection> {
        Ok(false)
    }

    /// Where in the head [`Filter::on_request`] looks for a credential. `any_of` takes out what stands there if another of its
    /// methods has decided, for then nobody has verified it.
    fn credential_places(&self) -> Vec<Place> {
        Vec::new()
    }

    /// Whether what stands in this place of its own is its credential, given that it has let the request pass: it is not if the
    /// place holds credentials of several kinds, such as `Authorization`, and this is one of another.
    fn is_credential(&self, _place: &Place, _head: &RequestHeader) -> bool {
        true
    }

    /// As [`Filter::on_upstream_request`], where another method of `any_of` has decided: removes what a client must not say,
    /// but leaves its places alone, which the credential of that method may stand in.
    fn on_passed_over(&self, session: &Session, head: &mut RequestHeader, ctx: &mut RequestCtx) -> Result<(), Rejection> {
        self.on_upstream_request(session, head, ctx)
    }

    /// Edits the request that goes upstream. Runs once for each attempt, each time on a fresh copy; and once more for a request
    /// that has trailers, on a copy with these among its fields: what is not left as it was does not pass.
    fn on_upstream_request(&self, _session: &Session, _head: &mut RequestHeader, _ctx: &mut RequestCtx) -> Result<(), Rejection> {
        Ok(())
    }

    /// Edits the head of the response, whoever made it: the upstream, another filter, or a rejection.
    fn on_response(&self, _session: &Session, _head: &mut ResponseHeader, _ctx: &mut RequestCtx) {}
}

/// The TOML side of a filter: the table behind its name.
pub trait FilterConfig: DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The name in `filters = [{ NAME = { ... } }]`.
    const NAME: &'static str;
    type Filter: Filter;
    /// The key of a list of filters within the table. The loader decodes it by the registry, as it does `filters` of a
    /// route, and hands it over by [`FilterConfig::set_nested`]. Default: there is none.
    const NESTED: Option<&'static str> = None;

    /// Takes the filters of [`FilterConfig::NESTED`].
    fn set_nested(&mut self, _filters: Vec<FilterSpec>) {}

    /// The headers in which the filter finds credentials, so that other filters of the route show no value of theirs.
    fn credential_headers(&self) -> Vec<HeaderName> {
        Vec::new()
    }

    /// Checks what serde cannot and compiles the runtime side.
    fn build(self, cx: &mut BuildContext<'_>) -> Result<Self::Filter, Problem>;
}
