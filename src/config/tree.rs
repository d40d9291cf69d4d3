//! The root of the tree.

use super::{AdminConfig, ChainConfig, LimitsConfig, ListenerConfig, LogConfig, RedisConfig, RouteConfig, ServerConfig};
use crate::cache::config::CacheConfig;
use crate::consumer::{ConsumerConfig, ConsumerSourceConfig, TierConfig};
use crate::identity::IdentityConfig;
use crate::jwt::IssuerConfig;
use crate::upstream::UpstreamConfig;
use crate::value::Located;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

/// Sections such as `[routes.NAME]`, by name. The order is that of the names, so that nothing depends on how the
/// configuration is spread over files.
pub type Named<T> = BTreeMap<String, Entry<T>>;

/// One named section, and where its name is written.
#[derive(Debug, Clone)]
pub struct Entry<T> {
    pub name: Located<String>,
    pub value: T,
}

impl<T> Deref for Entry<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// The whole configuration. Every key is optional but for what a section asks for; unknown keys are errors.
///
/// Durations are written as `"250ms"`, `"5s"`, `"10m"`, `"1h"`, `"7d"`; sizes as `"64KiB"`, `"10MiB"`; shares as `"50%"`.
///
/// A secret is read from where it says at each start and reload: `{ file = "..." }`, relative to the configuration file, of
/// at most 64KiB and without a line break at its end; `{ env = "NAME" }`; or `{ credential = "name" }`, a systemd credential.
///
/// In every string value `${NAME}` stands for a variable of the environment and `${NAME:-text}` has a default; names are
/// upper case, `$${NAME}` is the text itself. A value that is nothing but one such reference may also stand for a number or
/// a boolean. Names of sections are up to 63 letters, digits, `_`, `-` and `.`, and begin with a letter or digit.
#[derive(Default, JsonSchema)]
#[schemars(title = "Gatewright", deny_unknown_fields, default)]
pub struct Config {
    /// The process: threads, stopping, and what holds for all listeners and routes.
    pub server: ServerConfig,
    /// Where operators and monitoring ask: liveness, readiness, metrics, status, reload.
    pub admin: AdminConfig,
    /// What is written about the process and about each request.
    pub log: LogConfig,
    /// What all limits share.
    pub limits: LimitsConfig,
    /// The Redis that gateways share.
    pub redis: RedisConfig,
    /// What the caches of all routes share.
    pub cache: CacheConfig,
    /// Addresses that accept connections.
    pub listeners: Named<ListenerConfig>,
    /// Limits that consumers share.
    pub tiers: Named<TierConfig>,
    /// What the gateway says about callers in its own name.
    pub identity: IdentityConfig,
    /// A second source of consumers and keys, beside this file.
    pub consumer_source: ConsumerSourceConfig,
    /// Who calls: roles, tier and credentials.
    pub consumers: Named<ConsumerConfig>,
    /// Issuers of tokens.
    pub jwt: Named<IssuerConfig>,
    /// Groups of endpoints that requests are sent to.
    pub upstreams: Named<UpstreamConfig>,
    /// Lists of filters that many routes share.
    pub chains: Named<ChainConfig>,
    /// What is done with which request.
    pub routes: Named<RouteConfig>,
    /// What has been reported as unreadable, so that nothing else is said about it.
    #[schemars(skip)]
    pub unread: Unread,
}

/// What of a configuration could not be read.
#[derive(Debug, Clone, Default)]
pub struct Unread {
    /// Sections of `jwt`: a name that is missing may be one of them.
    pub jwt: bool,
    /// Whole routes.
    pub routes: bool,
    /// Something of the `match` of these routes.
    pub matches: BTreeSet<String>,
}

impl Config {
    /// `2 listeners, 3 routes, 1 upstream, 0 chains`.
    pub fn summary(&self) -> String {
        let count = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
        let mut parts = vec![
            count(self.listeners.len(), "listener"),
            count(self.routes.len(), "route"),
            count(self.upstreams.len(), "upstream"),
            count(self.chains.len(), "chain"),
        ];
        if !self.consumers.is_empty() {
            parts.push(count(self.consumers.len(), "consumer"));
        }
        parts.join(", ")
    }
}

/// The place of an entry's name does not show in the schema.
impl<T: JsonSchema> JsonSchema for Entry<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}
