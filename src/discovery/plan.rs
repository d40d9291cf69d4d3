//! What is discovered for one upstream, and within which bounds: a config that was compiled.

use super::{Discovery, Found};
use crate::value::Cidr;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The bounds of what a source may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Networks that endpoints may be in. Empty: any.
    pub allow: Vec<Cidr>,
    pub max_endpoints: usize,
    pub allow_empty: bool,
    /// The least time between two changes.
    pub debounce: Duration,
    /// How long an answer stays in use without another one; `None`: for as long as it takes.
    pub max_stale: Option<Duration>,
}

type Make = dyn Fn() -> Box<dyn Discovery> + Send + Sync;

/// How to ask, and what may come of it.
pub struct Plan {
    /// What is asked for: the key of the state.
    pub what: String,
    /// All settings, secrets as digests. A change of them begins the work anew, with the state that there is.
    pub identity: String,
    pub bounds: Bounds,
    make: Box<Make>,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("what", &self.what).field("bounds", &self.bounds).finish_non_exhaustive()
    }
}

impl Plan {
    /// `settings` is what distinguishes two sources that are asked for the same.
    pub fn new<S: Discovery + 'static>(
        what: String,
        settings: &str,
        bounds: Bounds,
        make: impl Fn() -> S + Send + Sync + 'static,
    ) -> Self {
        let identity = format!("{what} {settings} {bounds:?}");
        Plan { what, identity, bounds, make: Box::new(move || Box::new(make())) }
    }

    /// A source that has not been asked yet.
    pub fn source(&self) -> Box<dyn Discovery> {
        (self.make)()
    }
}

impl Bounds {
    /// What of an answer may be used, sorted and each address once, and how many may not. A weight of 0 is kept: such an endpoint is
    /// known and takes no traffic.
    pub(super) fn apply(&self, mut found: Vec<Found>) -> (Vec<Found>, usize) {
        // Of an address that comes twice, the entry that wins must not depend on the order of the answer.
        found.sort_unstable();
        found.dedup_by(|a, b| a.address == b.address);
        let all = found.len();
        found.retain(|endpoint| possible(endpoint.address) && self.allows(endpoint.address.ip()));
        found.truncate(self.max_endpoints);
        let unused = all.saturating_sub(found.len());
        (found, unused)
    }

    fn allows(&self, address: IpAddr) -> bool {
        // An IPv4 address in IPv6 clothes must not get past a list of IPv4 networks, nor fail to match it.
        let address = address.to_canonical();
        self.allow.is_empty() || self.allow.iter().any(|network| network.0.contains(&address))
    }
}

/// What can be connected to at all.
fn possible(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(std::net::Ipv4Addr::BROADCAST)
}
