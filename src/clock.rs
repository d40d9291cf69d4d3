//! The one source of time. Durations and deadlines use the monotonic clock; wall time is only for what is written for
//! people or defined on the calendar (log lines, HTTP dates, tokens, certificates). Tests inject [`ManualClock`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Monotonic.
    fn now(&self) -> Instant;
    /// Wall time; may jump.
    fn wall(&self) -> SystemTime;
}

pub type SharedClock = Arc<dyn Clock>;

/// The machine's clocks.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that moves only when told to, for tests. Wall time starts at the Unix epoch plus what was advanced.
#[derive(Debug)]
pub struct ManualClock {
    start: Instant,
    elapsed_nanos: AtomicU64,
}

impl ManualClock {
    pub fn new() -> Arc<Self> {
        Arc::new(ManualClock { start: Instant::now(), elapsed_nanos: AtomicU64::new(0) })
    }

    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.elapsed_nanos.fetch_add(nanos, Ordering::SeqCst);
    }

    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.elapsed_nanos.load(Ordering::SeqCst))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.start.checked_add(self.elapsed()).unwrap_or(self.start)
    }
    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH.checked_add(self.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}
