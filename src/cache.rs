//! The response cache (RFC 9111) of routes with a `cache` table.
//!
//! **Reading.** A request that has passed its route's filters is looked up before anything of the proxy runs: an answer that may be
//! used goes out from [`crate::proxy`]'s request hook, and neither `pingora-cache` nor the upstream side is touched.
//!
//! **Writing.** Everything else is a *fetch*: a subrequest of its own that goes through Pingora's cache machinery, which validates,
//! tells answers apart and writes bodies into our [`storage`]. Any number of requests wait for one fetch ([`flight`]) and read
//! it as it comes in ([`fill`]). No client owns a fetch, so none can take it down with it.
//!
//! Why reading is not `pingora-cache`'s too: its lock releases waiters to a stored copy or back into the race, so that streaming to
//! them needs partial writes, and those cut off everyone whose answer turns out too large to be stored; its look-up knows one
//! stored answer a key, where RFC 9111 §4.3.3 wants several validated together and §4.1 the newest one that fits; it
//! updates five fields of a stored answer from a 304, where §3.2 wants all; and a hit through it costs several times what it costs here.
//!
//! The parts: [`control`] reads directives, [`freshness`] computes ages, [`policy`] says what may be stored, [`key`] and [`vary`] which
//! answer a request may have, [`conditional`] and [`range`] what of it; [`memory`] keeps [`entry`]s, [`redis`] shares them.

pub mod conditional;
pub mod config;
pub mod control;
pub mod date;
pub mod entry;
pub mod fill;
pub mod flight;
pub mod freshen;
pub mod freshness;
pub mod key;
pub mod memory;
pub mod policy;
pub mod purge;
pub mod range;
pub mod redis;
mod sketch;
pub mod storage;
pub mod url;
pub mod vary;

use flight::Flights;
use key::KeyRules;
use memory::MemoryStore;
use purge::{Purge, What};
use redis::RedisTier;
use std::sync::Arc;

/// The cache as one snapshot has it; its parts outlive the snapshot.
#[derive(Debug)]
pub struct Cache {
    pub memory: Arc<MemoryStore>,
    pub flights: Arc<Flights>,
    pub redis: Option<Arc<RedisTier>>,
    /// The rules of all routes that make another URL of what somebody writes.
    pub rules: Box<[KeyRules]>,
}

/// What a purge has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purged {
    /// Answers of this gateway.
    pub purged: u64,
    /// Gateways that have heard of it, and those of them that are done, this one included.
    pub gateways: u64,
    pub acknowledged: u64,
}

impl Cache {
    /// Here first, then everywhere.
    pub async fn purge(&self, purge: &Purge) -> Purged {
        let What::Url(url) = &purge.what else { return self.purge_one(purge).await };
        let mut sum = self.purge_one(purge).await;
        for other in self.others(url) {
            let done = self.purge_one(&purge.of(&other)).await;
            sum.purged = sum.purged.saturating_add(done.purged);
            (sum.gateways, sum.acknowledged) = (sum.gateways.max(done.gateways), sum.acknowledged.min(done.acknowledged));
        }
        sum
    }

    async fn purge_one(&self, purge: &Purge) -> Purged {
        let purged = self.memory.purge(purge);
        let (gateways, acknowledged) = match &self.redis {
            None => (1, 1),
            Some(tier) => match tier.purge(purge).await {
                Some((gateways, acknowledged)) => (gateways.max(1), acknowledged),
                // Nobody can tell how many there are, only that this one is not all of them.
                None => (2, 1),
            },
        };
        Purged { purged, gateways, acknowledged }
    }

    /// An unsafe request has changed what a URL stands for (RFC 9111 §4.4).
    pub fn invalidate(&self, url: &str) -> u64 {
        let mut count = 0_u64;
        for url in std::iter::once(url.to_owned()).chain(self.others(url)) {
            if let Some(tier) = &self.redis {
                tier.invalidate(&url);
            }
            count = count.saturating_add(self.memory.invalidate(&url));
        }
        count
    }

    /// What the URL is for routes on which not all of its query counts.
    fn others(&self, url: &str) -> Vec<String> {
        let mut others: Vec<String> = self.rules.iter().map(|rules| url::counted(url, rules)).collect();
        others.retain(|other| other != url);
        others.sort_unstable();
        others.dedup();
        others
    }
}
