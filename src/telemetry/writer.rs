//! A bounded queue of bytes in front of a thread that writes them: how a log line leaves the request path.
//!
//! A producer copies its record into a buffer under a mutex that is only ever held for such a copy or for a swap of two
//! buffers, and is done. When the buffer is full the record is dropped whole and counted: a slow disk or a stuck pipe
//! must not become a slow gateway. The writer thread swaps the full buffer for an empty one and writes it in one call.
//!
//! Waking a thread is a system call, so it happens once per lull and not once per record: after each write the thread
//! lingers for [`LINGER`], during which producers leave it alone unless the buffer is half full. Both buffers are
//! reserved when the writer is made and never grow, so that a record costs no allocation; memory that no burst has touched yet
//! is not resident.
//!
//! A record is either in the output whole or not at all. If a write fails in the middle of one (a full disk), its
//! remaining bytes are kept and go first in the next attempt; the records behind it are dropped and counted. If another file takes
//! the place of the one that has its beginning, the record is lost and counted. A file that ends with half a line, because a process
//! has ended then, gets a line break first.

mod output;

pub use output::Output;

use output::Sink;
use parking_lot::{Condvar, Mutex};
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the thread waits for more after it has written. The most that a record is delayed on a working output.
pub const LINGER: Duration = Duration::from_millis(5);
/// How long the thread waits after a failed write, so that a full disk does not cost a core.
const RETRY: Duration = Duration::from_millis(200);
/// How often the periodic work is called while it has something to do.
const TICK: Duration = Duration::from_secs(1);

/// Work that the writer's thread does now and then, while armed by [`Writer::arm`]. It appends whole records to the
/// buffer and says whether it wants to be called again.
pub type Periodic = Box<dyn FnMut(&mut Vec<u8>) -> bool + Send>;

/// How to make a [`Writer`].
pub struct WriterOptions {
    /// The thread's name, and the name of the output in reports: `access log`.
    pub name: &'static str,
    pub output: Output,
    /// Bytes of memory for the queue: half for what waits, half for what is being written. A record longer than half is
    /// dropped. Default 4 MiB.
    pub queue_bytes: usize,
    /// Report through `log` when the output fails and when it works again. Off for the output of the log itself.
    pub report: bool,
    pub periodic: Option<Periodic>,
}

impl WriterOptions {
    /// The defaults: a queue of 4 MiB, failures reported.
    pub fn new(name: &'static str, output: Output) -> Self {
        WriterOptions { name, output, queue_bytes: 4 << 20, report: true, periodic: None }
    }
}

/// What a writer has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriterStats {
    /// Records handed to the output in full.
    pub records: u64,
    /// Records lost: the queue was full, or the output failed.
    pub dropped: u64,
    /// Bytes handed to the output.
    pub bytes: u64,
    /// Attempts to write, or to open the file again, that failed.
    pub write_errors: u64,
}

/// The producers' end. Dropping it lets the thread write what is queued and end; use [`Writer::flush`] first to wait for
/// that with a deadline.
pub struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Wakes the thread.
    work: Condvar,
    /// Wakes those who wait in [`Writer::flush`].
    done: Condvar,
    written: Written,
}

#[derive(Default)]
struct Written {
    records: AtomicU64,
    lost: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

struct Queue {
    waiting: Vec<u8>,
    /// The most bytes that may wait: what both buffers were reserved with, so that staying below it also means never to
    /// allocate.
    limit: usize,
    records: u64,
    dropped: u64,
    thread: Thread,
    reopen: bool,
    armed: bool,
    stop: bool,
    /// Flushes asked for, and the newest of them that is done.
    flush_wanted: u64,
    flush_done: u64,
}

/// What the writer's thread is doing, as far as producers care.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Thread {
    /// Writing, or about to look at the queue: needs no waking.
    Busy,
    /// Waiting for company before it writes: needs waking when the buffer fills up.
    Lingering,
    /// Asleep until woken.
    Idle,
}

impl Writer {
    /// Opens the output and starts the thread.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread cannot be started.
    pub fn new(options: WriterOptions) -> io::Result<Self> {
        let half = options.queue_bytes / 2;
        let sink = options.output.open()?;
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                waiting: Vec::with_capacity(half),
                limit: half,
                records: 0,
                dropped: 0,
                thread: Thread::Busy,
                reopen: false,
                armed: false,
                stop: false,
                flush_wanted: 0,
                flush_done: 0,
            }),
            work: Condvar::new(),
            done: Condvar::new(),
            written: Written::default(),
        });
        let thread = WriterThread {
            shared: Arc::clone(&shared),
            name: options.name,
            sink,
            chunk: Vec::with_capacity(half),
            torn: Vec::new(),
            retry_at: None,
            tick_at: None,
            failing: false,
            report: options.report,
            periodic: options.periodic,
        };
        std::thread::Builder::new().name(options.name.replace(' ', "-")).spawn(move || thread.run())?;
        Ok(Writer { shared })
    }

    /// Queues one record, which ends in a newline and contains no other. Never blocks on the output. False if it was dropped.
    pub fn push(&self, record: &[u8]) -> bool {
        let mut queue = self.shared.queue.lock();
        if record.len() > queue.limit.saturating_sub(queue.waiting.len()) {
            queue.dropped += 1;
            return false;
        }
        queue.waiting.extend_from_slice(record);
        queue.records += 1;
        let wake = match queue.thread {
            Thread::Busy => false,
            Thread::Lingering => queue.waiting.len() >= queue.limit / 2,
            Thread::Idle => true,
        };
        if wake {
            queue.thread = Thread::Busy;
        }
        drop(queue);
        if wake {
            self.shared.work.notify_one();
        }
        true
    }

    /// Has the periodic work called soon, and until it says that it is done.
    pub fn arm(&self) {
        self.wake(|queue| queue.armed = true);
    }

    /// Has the file opened again by its path before the next write, after a rotation has moved it. No effect on other outputs.
    pub fn reopen(&self) {
        self.wake(|queue| queue.reopen = true);
    }

    /// Waits until everything that was queued before the call has been handed to the output, or `within` has passed.
    /// Blocks: not for the request path. False if the time was not enough.
    pub fn flush(&self, within: Duration) -> bool {
        let deadline = Instant::now().checked_add(within);
        let mut queue = self.shared.queue.lock();
        queue.flush_wanted += 1;
        let wanted = queue.flush_wanted;
        queue.thread = Thread::Busy;
        self.shared.work.notify_one();
        while queue.flush_done < wanted {
            match deadline {
                Some(deadline) if self.shared.done.wait_until(&mut queue, deadline).timed_out() => {
                    return queue.flush_done >= wanted;
                }
                Some(_) => {}
                None => self.shared.done.wait(&mut queue),
            }
        }
        true
    }

    pub fn stats(&self) -> WriterStats {
        let written = &self.shared.written;
        let dropped = self.shared.queue.lock().dropped;
        WriterStats {
            records: written.records.load(Ordering::Relaxed),
            dropped: dropped.saturating_add(written.lost.load(Ordering::Relaxed)),
            bytes: written.bytes.load(Ordering::Relaxed),
            write_errors: written.errors.load(Ordering::Relaxed),
        }
    }

    fn wake(&self, change: impl FnOnce(&mut Queue)) {
        let mut queue = self.shared.queue.lock();
        change(&mut queue);
        queue.thread = Thread::Busy;
        drop(queue);
        self.shared.work.notify_one();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.wake(|queue| queue.stop = true);
    }
}

struct WriterThread {
    shared: Arc<Shared>,
    name: &'static str,
    sink: Sink,
    /// The buffer that is being written.
    chunk: Vec<u8>,
    /// What is left of a record that the output took only a part of.
    torn: Vec<u8>,
    /// When that rest is tried again although nothing else is to be written.
    retry_at: Option<Instant>,
    /// When the periodic work is called next.
    tick_at: Option<Instant>,
    failing: bool,
    report: bool,
    periodic: Option<Periodic>,
}

/// What the thread found when it woke up.
struct Found {
    records: u64,
    reopen: bool,
    armed: bool,
    stop: bool,
    flush: u64,
}

impl WriterThread {
    fn run(mut self) {
        loop {
            let mut found = self.wait_for_work();
            if found.armed
                && let Some(periodic) = &mut self.periodic
            {
                let before = self.chunk.len();
                let again = periodic(&mut self.chunk);
                found.records += count_lines(self.chunk.get(before..).unwrap_or_default());
                self.shared.queue.lock().armed |= again;
            }
            if found.reopen {
                // Its beginning is in the file of before, which may have room again.
                self.write_torn();
                let reopened = self.sink.reopen();
                if matches!(reopened, Ok(true)) && !self.torn.is_empty() {
                    // In another file the rest of a torn record would be half a line.
                    self.torn.clear();
                    self.shared.written.lost.fetch_add(1, Ordering::Relaxed);
                }
                self.note(reopened.map(drop));
            }
            self.write_chunk(found.records);
            let mut queue = self.shared.queue.lock();
            queue.flush_done = queue.flush_done.max(found.flush);
            self.shared.done.notify_all();
            if found.stop {
                return;
            }
            // A command that came while writing must not wait for the linger to pass.
            if queue.thread == Thread::Busy && !queue.has_command() {
                queue.thread = Thread::Lingering;
                self.shared.work.wait_for(&mut queue, if self.failing { RETRY } else { LINGER });
                queue.thread = Thread::Busy;
            }
        }
    }

    fn wait_for_work(&mut self) -> Found {
        let mut queue = self.shared.queue.lock();
        let ticked = loop {
            let now = Instant::now();
            if queue.armed && self.tick_at.is_none() {
                self.tick_at = now.checked_add(TICK);
            }
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            if !queue.waiting.is_empty() || queue.has_command() || due(self.tick_at) || due(self.retry_at) {
                break due(self.tick_at);
            }
            queue.thread = Thread::Idle;
            match [self.tick_at, self.retry_at].into_iter().flatten().min() {
                Some(until) => drop(self.shared.work.wait_until(&mut queue, until)),
                None => self.shared.work.wait(&mut queue),
            }
        };
        queue.thread = Thread::Busy;
        mem::swap(&mut queue.waiting, &mut self.chunk);
        // At the end, and for whoever waits in a flush, the periodic work has its say at once.
        let armed = (ticked || queue.stop || queue.flush_wanted > queue.flush_done) && mem::take(&mut queue.armed);
        if ticked || armed {
            self.tick_at = None;
        }
        self.retry_at = None;
        Found {
            records: mem::take(&mut queue.records),
            reopen: mem::take(&mut queue.reopen),
            armed,
            stop: queue.stop,
            flush: queue.flush_wanted,
        }
    }

    /// Writes the rest of a torn record and then the chunk, and leaves the chunk empty.
    fn write_chunk(&mut self, records: u64) {
        if !self.write_torn() {
            self.retry_at = Instant::now().checked_add(RETRY);
            self.lose(records);
            return;
        }
        if self.chunk.is_empty() {
            return;
        }
        let (taken, result) = self.sink.write_all(&self.chunk);
        self.count_bytes(taken);
        if result.is_ok() {
            self.shared.written.records.fetch_add(records, Ordering::Relaxed);
            self.note(Ok(()));
            self.chunk.clear();
            return;
        }
        self.note(result);
        let (before, after) = self.chunk.split_at_checked(taken).unwrap_or((&self.chunk, &[]));
        let whole = count_lines(before);
        let mut lost = records.saturating_sub(whole);
        if before.last().is_some_and(|last| *last != b'\n') {
            let end = memchr::memchr(b'\n', after).map_or(after.len(), |at| at + 1);
            self.torn.extend(after.iter().take(end));
            lost = lost.saturating_sub(1);
            self.retry_at = Instant::now().checked_add(RETRY);
        }
        self.shared.written.records.fetch_add(whole, Ordering::Relaxed);
        self.lose(lost);
    }

    /// Writes the rest of a torn record; whether nothing of it is left.
    fn write_torn(&mut self) -> bool {
        if self.torn.is_empty() {
            return true;
        }
        let (taken, result) = self.sink.write_all(&self.torn);
        self.count_bytes(taken);
        self.note(result);
        self.torn.drain(..taken.min(self.torn.len()));
        let done = self.torn.is_empty();
        if done {
            self.shared.written.records.fetch_add(1, Ordering::Relaxed);
        }
        done
    }

    fn lose(&mut self, records: u64) {
        self.shared.written.lost.fetch_add(records, Ordering::Relaxed);
        self.chunk.clear();
    }

    fn count_bytes(&self, taken: usize) {
        self.shared.written.bytes.fetch_add(taken as u64, Ordering::Relaxed);
    }

    /// Counts a failure; reports the first of a row, and the end of the row.
    fn note(&mut self, result: io::Result<()>) {
        let failed = result.is_err();
        if failed {
            self.shared.written.errors.fetch_add(1, Ordering::Relaxed);
        }
        if self.report && failed != self.failing {
            match result {
                Err(error) => log::error!("{}: cannot write to {}: {error}; records are lost", self.name, self.sink),
                Ok(()) => log::warn!("{}: writing to {} works again", self.name, self.sink),
            }
        }
        self.failing = failed;
    }
}

impl Queue {
    fn has_command(&self) -> bool {
        self.reopen || self.stop || self.flush_wanted > self.flush_done
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

#[cfg(test)]
mod tests;
