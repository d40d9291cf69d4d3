//! The upstreams that a state matters to.
//!
//! State outlives snapshots, so that at times several builds of an upstream go by the same one. Each is told of a change.

use super::Upstream;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

/// Builds that are still in use, each once.
#[derive(Debug, Default)]
pub(super) struct Dependents(Mutex<Vec<Weak<Upstream>>>);

impl Dependents {
    pub fn add(&self, upstream: &Arc<Upstream>) {
        let upstream = Arc::downgrade(upstream);
        let mut list = self.0.lock();
        list.retain(|known| known.strong_count() > 0 && !known.ptr_eq(&upstream));
        list.push(upstream);
    }

    /// Not under the lock: whoever is told may ask to be told again.
    pub fn tell(&self, tell: impl Fn(&Arc<Upstream>)) {
        let list = self.0.lock().clone();
        list.iter().filter_map(Weak::upgrade).for_each(|upstream| tell(&upstream));
    }
}
