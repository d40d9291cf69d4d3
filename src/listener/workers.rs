//! The workers of the edge's runtime: one runtime each or, with work stealing, one together.
//!
//! A worker with a runtime of its own keeps the connections that it begins with. So that none of them has much more to do than the
//! others, a new connection goes to the one that has the fewest: whoever was woken first by a burst takes no more than its
//! share, and a few connections of HTTP/2, each of which may be worth hundreds of others, are spread one by one.

use super::accept::ACCEPTORS;
use crate::upstream;
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::sync::Arc;
use tokio::runtime::{Handle, RuntimeFlavor};

#[derive(Debug, Clone)]
pub struct Workers {
    runtimes: Arc<Runtimes>,
    first: Handle,
    count: usize,
}

/// Of workers that have their own, or one for all.
#[derive(Debug)]
struct Runtimes {
    /// Never empty.
    handles: Vec<Handle>,
    /// How many connections each has. Locked once when a connection comes and once when it goes.
    connections: Mutex<Vec<usize>>,
}

/// Where a connection lives; dropping it gives the place back.
#[derive(Debug)]
pub struct Seat {
    runtimes: Arc<Runtimes>,
    at: usize,
}

impl Workers {
    /// Those of the runtime that this is called on.
    pub fn find(count: usize) -> Self {
        let count = count.max(1);
        let first = pingora_runtime::current_handle();
        let mut handles = vec![first];
        if handles.iter().any(|first| first.runtime_flavor() == RuntimeFlavor::CurrentThread) {
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
            for (at, worker) in handles.iter().enumerate() {
                worker.spawn(async move { upstream::at_home(at) });
            }
        }
        Workers::of(handles, count)
    }

    fn of(handles: Vec<Handle>, count: usize) -> Self {
        let first = handles.first().cloned().unwrap_or_else(Handle::current);
        let connections = Mutex::new(vec![0; handles.len()]);
        Workers { runtimes: Arc::new(Runtimes { handles, connections }), first, count }
    }

    /// One handle for each worker, with the number of its runtime.
    pub fn each(&self) -> impl Iterator<Item = (usize, &Handle)> {
        self.runtimes.handles.iter().enumerate().cycle().take(self.count)
    }

    pub fn first(&self) -> &Handle {
        &self.first
    }

    /// Those beside the first that have a runtime of their own, each with its number.
    pub fn others(&self) -> impl Iterator<Item = (usize, &Handle)> {
        self.runtimes.handles.iter().enumerate().skip(1)
    }

    /// For one connection more: a place with the worker that has the fewest, with `own` if it is one of these. Where only some of the
    /// workers accept, those who do not come first.
    pub fn seat(&self, own: usize) -> Seat {
        let mut connections = self.runtimes.connections.lock();
        let all_accept = connections.len() <= ACCEPTORS;
        let order = |(at, count): &(usize, &usize)| (**count, if all_accept { usize::from(*at != own) } else { 0 }, Reverse(*at));
        let at = connections.iter().enumerate().min_by_key(order).map_or(own, |(at, _)| at);
        if let Some(count) = connections.get_mut(at) {
            *count = count.saturating_add(1);
        }
        Seat { runtimes: Arc::clone(&self.runtimes), at }
    }

    /// Whether all of them run tasks.
    pub async fn ping(&self) -> bool {
        for worker in &self.runtimes.handles {
            if worker.spawn(async {}).await.is_err() {
                return false;
            }
        }
        true
    }
}

impl Seat {
    /// The number of its runtime.
    pub fn at(&self) -> usize {
        self.at
    }

    pub fn worker(&self) -> Option<&Handle> {
        self.runtimes.handles.get(self.at)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(count) = self.runtimes.connections.lock().get_mut(self.at) {
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_goes_where_there_are_fewest() {
        let workers = Workers::of(vec![Handle::current(); 3], 3);
        // A burst that the second was woken by: the first of it is its own.
        let mut seats: Vec<Seat> = (0..9).map(|_| workers.seat(1)).collect();
        assert_eq!(seats.iter().map(Seat::at).collect::<Vec<_>>(), [1, 2, 0, 1, 2, 0, 1, 2, 0]);
        // Those of the third end.
        seats.retain(|seat| seat.at() != 2);
        assert!((0..3).all(|_| {
            seats.push(workers.seat(0));
            seats.last().unwrap().at() == 2
        }));
        assert_eq!(workers.seat(0).at(), 0, "all have as many");
    }

    #[tokio::test]
    async fn workers_that_do_not_accept_come_first() {
        let workers = Workers::of(vec![Handle::current(); ACCEPTORS + 2], ACCEPTORS + 2);
        let seats: Vec<Seat> = (0..3).map(|_| workers.seat(0)).collect();
        assert_eq!(seats.iter().map(Seat::at).collect::<Vec<_>>(), [ACCEPTORS + 1, ACCEPTORS, ACCEPTORS - 1]);
    }
}
