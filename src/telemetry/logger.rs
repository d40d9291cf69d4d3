//! The gateway's own log: a backend for the `log` crate that never makes the caller wait.
//!
//! One record is one line. On a terminal or in a file it begins with the time:
//! `2026-01-02T03:04:05.678Z INFO gatewright::reload: loaded`. When the output is the journal (systemd sets
//! `JOURNAL_STREAM` to the device and inode of the stream, see systemd.exec(5)) it begins with a syslog priority instead,
//! as sd-daemon(3) has it, and leaves the time to journald: `<6>INFO gatewright::reload: loaded`.
//!
//! Text that came from elsewhere can be in a message, so control characters, line separators and the characters that
//! change the direction of text are written as escapes, and a message is cut after [`MESSAGE_MAX`] bytes.
//!
//! Each call site may write [`RATE_PER_SECOND`] lines a second, see [`super::rate_limit`]. Libraries are kept quieter
//! than the gateway itself: [`QUIET`] and [`DEMOTED`].

use super::json::push_u64;
use super::rate_limit::{RateLimit, Site, Suppressed, Verdict};
use super::timestamp::{Precision, push_rfc3339};
use super::writer::{Output, Writer, WriterOptions, WriterStats};
use crate::clock::{SharedClock, SystemClock};
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The longest message, in bytes of the line; the rest is cut off and the line says so.
pub const MESSAGE_MAX: usize = 8 << 10;
/// How many lines of one call site are written in a second, unless told otherwise.
pub const RATE_PER_SECOND: u32 = 10;
/// Crates (by the start of the target) that say at `info` what an operator has no use for. With the log at `info` they are
/// heard from `warn` on; at `debug` from `info` on; at `trace` in full, but for [`RAW`].
pub const QUIET: &[&str] = &["h2", "hickory", "hyper", "notify", "pingora", "rustls", "tokio"];
/// Crates that write requests and responses below `info` as they came, keys and passwords included. At no level are they
/// heard below it.
pub const RAW: &[&str] = &["h2", "hyper", "pingora", "rustls"];
/// Where an `error!` is about one request or connection, hence about a client or an upstream and not about the gateway:
/// written as a warning. The access log and the metrics tell the same, with the route.
pub const DEMOTED: &[&str] = &["pingora_proxy", "pingora_cache", "pingora_core::apps", "pingora_core::protocols"];

/// How lines begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// With the time.
    Time,
    /// With a syslog priority, for journald.
    Priority,
}

pub struct LoggerOptions {
    pub level: LevelFilter,
    pub output: Output,
    /// `None`: [`Prefix::Priority`] if the output is stderr or stdout and that is the journal, else [`Prefix::Time`].
    pub prefix: Option<Prefix>,
    /// See [`WriterOptions::queue_bytes`].
    pub queue_bytes: usize,
    /// Lines a second and call site; 0 for any number.
    pub rate_per_second: u32,
    pub clock: SharedClock,
}

impl Default for LoggerOptions {
    /// `info` to stderr, a queue of 1 MiB, [`RATE_PER_SECOND`].
    fn default() -> Self {
        LoggerOptions {
            level: LevelFilter::Info,
            output: Output::Stderr,
            prefix: None,
            queue_bytes: 1 << 20,
            rate_per_second: RATE_PER_SECOND,
            clock: Arc::new(SystemClock),
        }
    }
}

/// Why there is no logger.
#[derive(Debug)]
pub enum InitError {
    /// The output cannot be opened or its thread not be started.
    Output(io::Error),
    /// The process has a logger already.
    AlreadySet,
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InitError::Output(error) => write!(f, "cannot open the log: {error}"),
            InitError::AlreadySet => f.write_str("the process has a logger already"),
        }
    }
}

impl std::error::Error for InitError {}

/// `log` wants its backend to live as long as the process.
static PROCESS: OnceLock<LoggerHandle> = OnceLock::new();

/// Makes the process log through us. Once in a process.
///
/// # Errors
/// See [`InitError`].
pub fn init(options: LoggerOptions) -> Result<LoggerHandle, InitError> {
    let level = options.level;
    let handle = LoggerHandle::new(options).map_err(InitError::Output)?;
    PROCESS.set(handle.clone()).map_err(|_| InitError::AlreadySet)?;
    let logger = PROCESS.get().ok_or(InitError::AlreadySet)?;
    log::set_logger(logger).map_err(|_| InitError::AlreadySet)?;
    log::set_max_level(level);
    Ok(handle)
}

/// The logger and the means to change it while it runs. Clones are the same logger.
#[derive(Clone)]
pub struct LoggerHandle {
    core: Arc<Core>,
}

struct Core {
    writer: Writer,
    lines: Arc<Lines>,
    level: AtomicUsize,
}

/// What turns records into lines; shared with the writer's thread, which writes summaries.
struct Lines {
    prefix: Prefix,
    limit: RateLimit,
    clock: SharedClock,
    suppressed: AtomicU64,
}

impl LoggerHandle {
    /// A logger that is not (yet) the one of the process.
    ///
    /// # Errors
    /// As [`Writer::new`].
    pub fn new(options: LoggerOptions) -> io::Result<Self> {
        let prefix = options.prefix.unwrap_or_else(|| detect_prefix(&options.output));
        let lines = Arc::new(Lines {
            prefix,
            limit: RateLimit::new(options.rate_per_second, options.clock.now()),
            clock: options.clock,
            suppressed: AtomicU64::new(0),
        });
        let for_thread = Arc::clone(&lines);
        let writer = Writer::new(WriterOptions {
            queue_bytes: options.queue_bytes,
            // An error of the log's own output cannot be reported there.
            report: false,
            periodic: Some(Box::new(move |out| {
                for_thread.limit.drain(|summary| for_thread.push_summary(out, &summary));
                false
            })),
            ..WriterOptions::new("log", options.output)
        })?;
        Ok(LoggerHandle { core: Arc::new(Core { writer, lines, level: AtomicUsize::new(options.level as usize) }) })
    }

    /// Changes the level from the next record on.
    pub fn set_level(&self, level: LevelFilter) {
        self.core.level.store(level as usize, Ordering::Relaxed);
        // Where this is the process's logger, this lets disabled records end in one load; where it is not (a test), the
        // global level is somebody else's.
        log::set_max_level(level);
    }

    /// See [`Writer::flush`]. To be called before the process ends.
    pub fn flush(&self, within: Duration) -> bool {
        self.core.writer.flush(within)
    }

    /// See [`Writer::reopen`].
    pub fn reopen(&self) {
        self.core.writer.reopen();
    }

    pub fn stats(&self) -> WriterStats {
        self.core.writer.stats()
    }

    /// Records that the rate limit has left out.
    pub fn suppressed(&self) -> u64 {
        self.core.lines.suppressed.load(Ordering::Relaxed)
    }
}

impl Log for LoggerHandle {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let level = written_level(metadata.level(), metadata.target());
        level as usize <= threshold(self.core.level.load(Ordering::Relaxed), metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (core, target) = (&self.core, record.target());
        let level = written_level(record.level(), target);
        let site = Site { target, file: record.file(), line: record.line(), level };
        match core.lines.limit.check(site, core.lines.clock.now()) {
            Verdict::Suppress { first } => {
                core.lines.suppressed.fetch_add(1, Ordering::Relaxed);
                if first {
                    core.writer.arm();
                }
            }
            Verdict::Write(summary) => with_buffer(|line| {
                if let Some(summary) = summary {
                    core.lines.push_summary(line, &summary);
                    core.writer.push(line);
                    line.clear();
                }
                core.lines.push_line(line, level, target, record.args());
                core.writer.push(line);
            }),
        }
    }

    fn flush(&self) {
        LoggerHandle::flush(self, Duration::from_secs(1));
    }
}

/// Runs `work` with this thread's empty line buffer, or with a new one if a message that is being formatted logs itself.
fn with_buffer(work: impl FnOnce(&mut Vec<u8>)) {
    thread_local!(static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
    LINE.with(|line| match line.try_borrow_mut() {
        Ok(mut line) => {
            line.clear();
            work(&mut line);
        }
        Err(_) => work(&mut Vec::new()),
    });
}

fn is_of(target: &str, family: &[&str]) -> bool {
    family.iter().any(|start| target.starts_with(start))
}

/// The level at which a record is written and judged.
fn written_level(level: Level, target: &str) -> Level {
    if level == Level::Error && is_of(target, DEMOTED) { Level::Warn } else { level }
}

/// The least severe level (as a number) that is written of a target.
fn threshold(level: usize, target: &str) -> usize {
    if level == LevelFilter::Trace as usize && is_of(target, RAW) {
        LevelFilter::Info as usize
    } else if level == LevelFilter::Trace as usize || !is_of(target, QUIET) {
        level
    } else if level == LevelFilter::Debug as usize {
        LevelFilter::Info as usize
    } else {
        level.min(LevelFilter::Warn as usize)
    }
}

/// Whether the journal reads an output: systemd puts the device and inode of the stream into `JOURNAL_STREAM`, which a
/// process inherits even if somebody has redirected its output since, so the two are compared (systemd.exec(5)).
fn detect_prefix(output: &Output) -> Prefix {
    let stream = match output {
        Output::Stderr => io::stderr().as_fd().try_clone_to_owned(),
        Output::Stdout => io::stdout().as_fd().try_clone_to_owned(),
        Output::File(_) | Output::Custom(..) => return Prefix::Time,
    };
    let metadata = stream.map(std::fs::File::from).and_then(|file| file.metadata());
    match (std::env::var("JOURNAL_STREAM"), metadata) {
        (Ok(journal), Ok(metadata)) => prefix_for(&journal, metadata.dev(), metadata.ino()),
        _ => Prefix::Time,
    }
}

fn prefix_for(journal_stream: &str, device: u64, inode: u64) -> Prefix {
    let same = |(dev, ino): (&str, &str)| dev.parse() == Ok(device) && ino.parse() == Ok(inode);
    if journal_stream.split_once(':').is_some_and(same) { Prefix::Priority } else { Prefix::Time }
}

impl Lines {
    fn push_summary(&self, line: &mut Vec<u8>, summary: &Suppressed) {
        let (count, target) = (summary.count, summary.target.as_str());
        self.push_line(line, summary.level, target, &format_args!("{count} similar messages suppressed"));
    }

    fn push_line(&self, line: &mut Vec<u8>, level: Level, target: &str, message: &fmt::Arguments<'_>) {
        match self.prefix {
            Prefix::Time => {
                push_rfc3339(line, self.clock.wall(), Precision::Millis);
                line.push(b' ');
            }
            Prefix::Priority => {
                // RFC 5424 §6.2.1: 3 error, 4 warning, 6 informational, 7 debug.
                let priority = match level {
                    Level::Error => 3,
                    Level::Warn => 4,
                    Level::Info => 6,
                    Level::Debug | Level::Trace => 7,
                };
                line.push(b'<');
                push_u64(line, priority);
                line.push(b'>');
            }
        }
        line.extend_from_slice(level.as_str().as_bytes());
        line.push(b' ');
        let mut text = OneLine { line, room: MESSAGE_MAX, cut: false };
        // `OneLine` cannot fail; a `Display` that does has written what it could.
        let _ = write!(text, "{target}: {message}");
        if text.cut {
            line.extend_from_slice("…(cut)".as_bytes());
        }
        line.push(b'\n');
    }
}

/// Text that stays on one line and within its room.
struct OneLine<'a> {
    line: &'a mut Vec<u8>,
    room: usize,
    cut: bool,
}

impl OneLine<'_> {
    fn push(&mut self, text: &[u8]) {
        if self.cut || text.len() > self.room {
            self.cut = true;
            return;
        }
        self.room -= text.len();
        self.line.extend_from_slice(text);
    }
}

impl fmt::Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // Nearly all text is printable ASCII and goes in as a whole.
        if text.len() <= self.room && text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
            self.push(text.as_bytes());
            return Ok(());
        }
        let mut bytes = [0; 4];
        for character in text.chars() {
            if self.cut {
                break;
            }
            match character {
                '\n' => self.push(br"\n"),
                '\r' => self.push(br"\r"),
                '\t' => self.push(br"\t"),
                c if c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                    c.escape_unicode().for_each(|part| self.push(part.encode_utf8(&mut bytes).as_bytes()));
                }
                c => self.push(c.encode_utf8(&mut bytes).as_bytes()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
