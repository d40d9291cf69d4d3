//! The names that may stand in `filters = [...]`, and what each name decodes to.

use super::{Filter, FilterConfig};
use crate::clock::SharedClock;
use crate::consumer::Consumers;
use crate::diagnostic::{Diagnostics, Span};
use crate::jwt::Issuers;
use crate::limit::Stores;
use crate::limit::config::Wrong;
use crate::redis_link::Access;
use crate::state::StatePool;
use crate::telemetry::metrics::AuthMetrics;
use crate::upstream::Upstream;
use crate::value::Located;
use http::HeaderName;
use schemars::{Schema, SchemaGenerator};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use toml::de::{Error, ValueDeserializer};

/// Why a filter cannot be built. Points at the filter's name unless it is given a better place.
#[derive(Debug)]
pub struct Problem {
    pub message: String,
    pub span: Option<Span>,
    pub help: Option<String>,
    /// It follows from something that has been reported.
    pub reported: bool,
}

impl Problem {
    pub fn new(message: impl Into<String>) -> Self {
        Problem { message: message.into(), span: None, help: None, reported: false }
    }

    /// The filter depends on something that could not be built either, which has been reported.
    pub fn reported() -> Self {
        Problem { reported: true, ..Problem::new("") }
    }

    /// Points at the text of `value`.
    pub fn at<T>(mut self, value: &Located<T>) -> Self {
        self.span = value.span.clone();
        self
    }

    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }
}

impl From<Wrong> for Problem {
    fn from(Wrong { message, span, help }: Wrong) -> Self {
        Problem { message, span, help, reported: false }
    }
}

/// What a filter may use while it is compiled.
pub struct BuildContext<'a> {
    /// The route that the filter is compiled for.
    pub route: &'a str,
    pub state: &'a Arc<StatePool>,
    pub clock: &'a SharedClock,
    /// The upstreams of the snapshot that is being compiled.
    pub upstreams: &'a BTreeMap<Arc<str>, Arc<Upstream>>,
    /// Who may call.
    pub consumers: &'a Arc<Consumers>,
    /// Whose tokens count.
    pub issuers: &'a Issuers,
    /// The Redis that gateways share, if there is one.
    pub redis: Option<&'a Access>,
    /// Where limits are counted.
    pub limits: &'a Stores,
    /// The headers in which filters of the route find credentials.
    pub credential_headers: &'a [HeaderName],
    pub diagnostics: &'a mut Diagnostics,
    /// Where the filter's name is written.
    pub span: Span,
}

impl BuildContext<'_> {
    /// Where the decisions of the filter are counted. Filters of one name on one route count together.
    pub fn auth_metrics(&self, filter: &'static str) -> Arc<AuthMetrics> {
        self.state.get_or_create(&format!("{}/{filter}", self.route), AuthMetrics::default)
    }

    /// The directory of the configuration file that the filter is written in: what relative paths in it start from.
    pub fn directory(&self) -> PathBuf {
        let source = self.diagnostics.source(self.span.file);
        source.and_then(|source| source.path.parent()).map(PathBuf::from).unwrap_or_default()
    }
}

/// One filter as written: its name, its place, and its decoded table, ready to be compiled for a route. A named chain is
/// compiled once for each route that uses it, so `build` can run many times.
#[derive(Clone)]
pub struct FilterSpec {
    pub name: &'static str,
    pub span: Span,
    pub prepared: Prepared,
}

/// The decoded table of a filter.
#[derive(Clone)]
pub struct Prepared {
    pub build: BuildFn,
    /// See [`FilterConfig::credential_headers`].
    pub credential_headers: Arc<[HeaderName]>,
}

pub type BuildFn = Arc<dyn Fn(&mut BuildContext<'_>) -> Result<Arc<dyn Filter>, Problem> + Send + Sync>;

/// One name of the registry. `decode` turns a table into its build step; `schema` is generated from the config struct.
#[derive(Clone, Copy)]
pub struct Registration {
    pub name: &'static str,
    pub decode: fn(ValueDeserializer<'_>) -> Result<Prepared, Error>,
    /// The key of the list of filters that stands within it, if one does; see [`FilterConfig::NESTED`].
    pub nested: Option<&'static str>,
    /// As `decode`, with the filters of that list.
    pub decode_nested: fn(ValueDeserializer<'_>, Vec<FilterSpec>) -> Result<Prepared, Error>,
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

impl Registration {
    pub fn of<C: FilterConfig + Clone>() -> Self {
        Registration {
            name: C::NAME,
            decode: |table| decode::<C>(table, Vec::new()),
            nested: C::NESTED,
            decode_nested: decode::<C>,
            schema: |generator| generator.subschema_for::<C>(),
        }
    }
}

fn decode<C: FilterConfig + Clone>(table: ValueDeserializer<'_>, nested: Vec<FilterSpec>) -> Result<Prepared, Error> {
    let mut config = C::deserialize(table)?;
    config.set_nested(nested);
    let credential_headers = config.credential_headers().into();
    let build = move |cx: &mut BuildContext<'_>| config.clone().build(cx).map(|filter| Arc::new(filter) as Arc<dyn Filter>);
    Ok(Prepared { build: Arc::new(build), credential_headers })
}

/// Every filter that this process knows, in the order of the reference.
#[derive(Clone, Default)]
pub struct Registry {
    list: Vec<Registration>,
}

impl Registry {
    /// The filters that ship with Gatewright. One line each.
    pub fn builtin() -> Self {
        Registry::default()
            .with::<super::api_key::ApiKeyConfig>()
            .with::<super::basic::BasicConfig>()
            .with::<super::hmac::HmacConfig>()
            .with::<super::mtls::MtlsConfig>()
            .with::<super::forward_auth::ForwardAuthConfig>()
            .with::<super::any_of::AnyOfConfig>()
            .with::<super::require::RequireConfig>()
            .with::<super::ip_allow::IpAllowConfig>()
            .with::<super::ip_allow::IpDenyConfig>()
            .with::<super::cors::CorsConfig>()
            .with::<super::rate_limit::RateLimitConfig>()
            .with::<super::concurrency::ConcurrencyConfig>()
            .with::<super::request_headers::RequestHeadersConfig>()
            .with::<super::response_headers::ResponseHeadersConfig>()
            .with::<super::rewrite::RewriteConfig>()
            .with::<super::respond::RespondConfig>()
            .with::<super::redirect::RedirectConfig>()
            .with::<super::health::HealthConfig>()
            .with::<super::jwt::JwtConfig>()
    }

    /// Adds a filter. A name that exists already is replaced, so that a custom filter can stand in for a built-in one.
    pub fn with<C: FilterConfig + Clone>(mut self) -> Self {
        self.list.retain(|known| known.name != C::NAME);
        self.list.push(Registration::of::<C>());
        self
    }

    pub fn get(&self, name: &str) -> Option<Registration> {
        self.list.iter().copied().find(|known| known.name == name)
    }

    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.list.iter().map(|known| known.name)
    }

    pub fn iter(&self) -> impl Iterator<Item = Registration> + '_ {
        self.list.iter().copied()
    }
}
