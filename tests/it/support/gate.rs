//! Holds an origin's answers back until the test has seen what it waits for, instead of for a time that may be too short.

use super::SOON;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Shut at first. Clones are the same gate.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Returns once the gate is open. Panics, which ends the connection, when nobody has opened it for twice [`SOON`].
    pub fn pass(&self) {
        let (open, opened) = &*self.0;
        let guard = open.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, waited) = opened.wait_timeout_while(guard, SOON * 2, |open| !*open).unwrap_or_else(PoisonError::into_inner);
        drop(guard);
        assert!(!waited.timed_out(), "nobody opened the gate");
    }

    pub fn open(&self) {
        self.set(true);
    }

    pub fn shut(&self) {
        self.set(false);
    }

    fn set(&self, to: bool) {
        let (open, opened) = &*self.0;
        *open.lock().unwrap_or_else(PoisonError::into_inner) = to;
        opened.notify_all();
    }
}
