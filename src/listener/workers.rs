//! The workers of the edge's runtime, which are one runtime together or, without work stealing, one each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::{Handle, RuntimeFlavor};

#[derive(Debug, Clone)]
pub struct Workers {
    /// Never empty.
    handles: Arc<[Handle]>,
    first: Handle,
    count: usize,
    turn: Arc<AtomicUsize>,
}

impl Workers {
    /// Those of the runtime that this is called on.
    pub fn find(count: usize) -> Self {
        let count = count.max(1);
        let first = pingora_runtime::current_handle();
        let mut handles = vec![first.clone()];
        if first.runtime_flavor() == RuntimeFlavor::CurrentThread {
            // Without work stealing Pingora tells of one worker at a time, by chance. That one is missed in so many tries has a
            // chance of less than one in 10^20; then the others do its work.
            for _ in 0..count.saturating_mul(64) {
                if handles.len() >= count {
                    break;
                }
                let next = pingora_runtime::current_handle();
                if handles.iter().all(|known| known.id() != next.id()) {
                    handles.push(next);
                }
            }
        }
        Workers { handles: handles.into(), first, count, turn: Arc::default() }
    }

    /// One handle for each worker.
    pub fn each(&self) -> impl Iterator<Item = &Handle> {
        self.handles.iter().cycle().take(self.count)
    }

    pub fn first(&self) -> &Handle {
        &self.first
    }

    /// Those beside the first that have a runtime of their own.
    pub fn others(&self) -> impl Iterator<Item = &Handle> {
        self.handles.iter().skip(1)
    }

    /// Whose turn it is.
    pub fn next(&self) -> &Handle {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let at = turn.checked_rem(self.handles.len()).unwrap_or_default();
        self.handles.get(at).unwrap_or(&self.first)
    }

    /// Whether all of them run tasks.
    pub async fn ping(&self) -> bool {
        for worker in self.handles.iter() {
            if worker.spawn(async {}).await.is_err() {
                return false;
            }
        }
        true
    }
}
