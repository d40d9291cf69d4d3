//! The compiled configuration that requests run on: immutable, swapped as one.
//!
//! [`compile`] is the only way to make one. It runs off the request path and does there whatever can be done once: filters
//! are built, names become references, metric handles are resolved, the router is laid out. What must outlive a reload
//! comes from the [`StatePool`].

mod agree;
mod cache;
mod compile;
mod consumers;
mod fixed;
mod limits;
mod redis;
mod split;
mod upstreams;

pub use compile::{CompileParts, compile, compile_or_files};
pub use fixed::Fixed;
pub use redis::redis_topology;
pub use split::Split;

use crate::cache::Cache;
use crate::cache::policy::Policy;
use crate::compress::Compression;
use crate::config::ClientDeadline;
use crate::consumer::Consumers;
use crate::filter::Chain;
use crate::forwarded::{ForwardedHeaders, TrustedProxies, Via};
use crate::identity::{IdentityHeaders, IdentitySigner};
use crate::jwt::Issuers;
use crate::limit::Stores;
use crate::limit::shield::Shield;
use crate::listener::ListenerPlan;
use crate::mirror::Mirror;
use crate::route::Router;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::{RouteMetrics, UpstreamMetrics};
use crate::upstream::breaker::Breaker;
use crate::upstream::retry::RetryPolicy;
use crate::upstream::{FixedAnswer, Guards, Upstream};
use http::HeaderName;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub struct Snapshot {
    /// Of the effective text; equal hashes are equal configurations.
    pub hash: String,
    pub loaded_at: SystemTime,
    pub router: Router,
    routes: Box<[Arc<Route>]>,
    /// Counts the requests that no route takes.
    pub unrouted: Arc<RouteMetrics>,
    pub upstreams: BTreeMap<Arc<str>, Arc<Upstream>>,
    pub consumers: Arc<Consumers>,
    /// Whose tokens count.
    pub issuers: Issuers,
    pub listeners: Vec<ListenerPlan>,
    /// Files beside the configuration that were read for it, such as certificates. A change of one can change the snapshot.
    pub files: Vec<PathBuf>,
    pub trusted_proxies: TrustedProxies,
    /// Which headers tell the upstream about the client.
    pub forwarded_headers: ForwardedHeaders,
    /// Names of headers are passed on as they were spelled.
    pub preserve_header_case: bool,
    /// What a client may not say about itself.
    pub identity_headers: IdentityHeaders,
    /// Says who calls in the gateway's own name, if it does.
    pub signer: Option<Arc<IdentitySigner>>,
    /// What we call ourselves.
    pub via: Via,
    /// What the gateway takes as a whole.
    pub shield: Option<Arc<Shield>>,
    /// Where its limits are counted.
    pub limits: Stores,
    /// `None`: no route has a cache.
    pub cache: Option<Arc<Cache>>,
    /// Whether any route has direct hits, and nothing is to be asked before a route is looked for.
    pub direct_hits: bool,
    /// `None`: off.
    pub access_log: Option<Arc<AccessLog>>,
}

/// One route, ready to run. With thousands of them it is in no near cache when a request comes, so that what all requests look at
/// comes first, in this order, and what is large and rare is behind a pointer.
#[repr(C)]
pub struct Route {
    pub name: Arc<str>,
    pub metrics: Arc<RouteMetrics>,
    pub chain: Chain,
    pub upstream: Option<Target>,
    /// How its answers are stored; `None`: they are not.
    pub cache: Option<Arc<Policy>>,
    /// How its answers are compressed; `None`: they are not.
    pub compress: Option<Arc<Compression>>,
    /// Where parts of the requests go instead.
    pub split: Option<Box<Split>>,
    /// Where requests go that the upstream cannot take.
    pub fallback: Option<Target>,
    /// Who gets copies.
    pub mirror: Option<Arc<Mirror>>,
    /// Of the request body, in bytes.
    pub max_body: u64,
    /// From the first byte of the request to the last of the response.
    pub timeout: Option<Duration>,
    /// What clients may say about that.
    pub deadline: DeadlineRules,
    pub breaker: Option<Breaker>,
    /// In place of the upstream's.
    pub retry: Option<Arc<RetryPolicy>>,
    /// What is answered while it is open.
    pub breaker_answer: Option<Arc<FixedAnswer>>,
    /// Whether a hit is nobody's business but that of the cache: no filter runs before or after it, all callers are asked the same,
    /// and it goes out in the coding in which it is kept.
    pub direct_hits: bool,
}

/// Whose word counts on how long a request may take, and where it stands.
#[derive(Debug, Clone)]
pub struct DeadlineRules {
    pub client: ClientDeadline,
    pub header: Option<HeaderName>,
}

/// The upstream of a route, with the metrics that belong to it.
#[derive(Clone)]
pub struct Target {
    pub upstream: Arc<Upstream>,
    pub metrics: Arc<UpstreamMetrics>,
}

/// Which of its route's upstreams a request goes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// The one that the route names.
    #[default]
    Primary,
    /// One of its split, by its place there.
    Part(u8),
    /// The one that takes what the others cannot.
    Fallback,
}

impl Route {
    pub fn target(&self, choice: Choice) -> Option<&Target> {
        match choice {
            Choice::Primary => self.upstream.as_ref(),
            Choice::Part(at) => self.split.as_ref()?.target(at),
            Choice::Fallback => self.fallback.as_ref(),
        }
    }

    /// Whether requests may go elsewhere than to `upstream`.
    pub fn steers(&self) -> bool {
        self.split.is_some() || self.fallback.is_some()
    }

    /// Where a request goes on to when this choice can take nothing: from a part of a split to the rest, from there to the
    /// fallback. `None`: nowhere.
    pub fn instead_of(&self, choice: Choice) -> Option<Choice> {
        match choice {
            Choice::Part(_) => Some(Choice::Primary),
            Choice::Primary => self.fallback.as_ref().map(|_| Choice::Fallback),
            Choice::Fallback => None,
        }
    }
}

impl Target {
    pub fn guards(&self) -> &Guards {
        self.upstream.guards()
    }
}

impl Snapshot {
    pub fn route(&self, index: u32) -> Option<&Arc<Route>> {
        self.routes.get(usize::try_from(index).ok()?)
    }

    pub fn routes(&self) -> impl ExactSizeIterator<Item = &Arc<Route>> {
        self.routes.iter()
    }
}
