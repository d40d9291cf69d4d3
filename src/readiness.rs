//! Whether new requests are welcome: one pair of flags, written by the life cycle of the process, read by `/readyz` and by
//! the `health` filter. It is state of the process and no part of any snapshot; all share the one in the state pool.

use crate::state::StatePool;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Default)]
pub struct Readiness {
    ready: AtomicBool,
    stopping: AtomicBool,
}

impl Readiness {
    /// The one of this process.
    pub fn of(pool: &StatePool) -> Arc<Self> {
        pool.get_or_create("", Readiness::default)
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.is_stopping()
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }
}
