//! The background work of key sets behind URLs: one task for each.
//!
//! Tasks belong to the keys, not to a snapshot. After a reload [`KeySupervisor::reconcile`] begins those that are new, ends
//! those that nothing needs, restarts those whose settings changed and leaves the rest alone.

use super::remote::RemoteKeys;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

/// Keys to fetch, and how. Where several issuers share them, the shortest times hold.
pub struct Job {
    pub keys: Arc<RemoteKeys>,
    pub refresh: Duration,
    pub timeout: Duration,
}

/// Fetches keys. Dropping it ends that.
pub struct KeySupervisor {
    runtime: Handle,
    /// By the address of the keys; the task's `Weak` keeps that address from being used again.
    tasks: Mutex<HashMap<usize, Task>>,
}

struct Task {
    _keys: Weak<RemoteKeys>,
    refresh: Duration,
    timeout: Duration,
    handle: AbortHandle,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl KeySupervisor {
    /// Tasks run on `runtime`; the methods may be called from anywhere.
    pub fn new(runtime: Handle) -> Self {
        KeySupervisor { runtime, tasks: Mutex::default() }
    }

    /// Makes the running tasks those that `jobs` need.
    pub fn reconcile(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut wanted: HashMap<usize, Job> = HashMap::new();
        for job in jobs {
            let known = wanted.entry(Arc::as_ptr(&job.keys).addr());
            known
                .and_modify(|known| {
                    known.refresh = known.refresh.min(job.refresh);
                    known.timeout = known.timeout.min(job.timeout);
                })
                .or_insert(job);
        }
        let mut tasks = self.tasks.lock();
        tasks.retain(|at, task| wanted.get(at).is_some_and(|job| (job.refresh, job.timeout) == (task.refresh, task.timeout)));
        for (at, job) in wanted {
            tasks.entry(at).or_insert_with(|| {
                let _keys = Arc::downgrade(&job.keys);
                let handle = self.runtime.spawn(keep(Weak::clone(&_keys), job.refresh, job.timeout)).abort_handle();
                Task { _keys, refresh: job.refresh, timeout: job.timeout, handle }
            });
        }
    }
}

/// Fetches for as long as anything else holds the keys.
async fn keep(keys: Weak<RemoteKeys>, refresh: Duration, timeout: Duration) {
    let Some(wanted) = keys.upgrade().map(|keys| Arc::clone(&keys.wanted)) else { return };
    loop {
        // Nothing is kept alive while waiting.
        let Some(wait) = keys.upgrade().map(|keys| keys.due_in().min(refresh.saturating_mul(11) / 10)) else { return };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = wanted.notified() => {}
        }
        let Some(keys) = keys.upgrade() else { return };
        keys.attempt(refresh, timeout).await;
    }
}

/// `interval`, longer or shorter by up to 10 %, so that gateways do not all fetch at once.
pub(super) fn jittered(interval: Duration) -> Duration {
    let seconds = interval.as_secs_f64() * fastrand::f64().mul_add(0.2, 0.9);
    // What no clock reaches is as good without jitter.
    Duration::try_from_secs_f64(seconds).unwrap_or(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_that_start_together_do_not_fetch_together() {
        let draws: Vec<u128> = (0..1_000).map(|_| jittered(Duration::from_secs(300)).as_millis()).collect();
        let (shortest, longest) = (*draws.iter().min().unwrap(), *draws.iter().max().unwrap());
        assert!(shortest >= 270_000 && longest <= 330_000, "{shortest} to {longest} ms");
        // The chance that a thousand even draws leave a quarter at either end out is nothing.
        assert!(shortest < 285_000 && longest > 315_000, "{shortest} to {longest} ms");
        let different: std::collections::HashSet<u128> = draws.into_iter().collect();
        assert!(different.len() > 900, "{} of 1000", different.len());
    }
}
