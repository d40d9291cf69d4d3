//! Where a writer's bytes go, and what it takes to hand them all over.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long one write may find the other end not ready before it counts as failed.
const STALL: Duration = Duration::from_secs(5);
const STALL_POLL: Duration = Duration::from_millis(5);

/// An output before it is opened.
pub enum Output {
    Stderr,
    Stdout,
    /// A file that is appended to, made with mode 0640 if it does not exist. Its directory must exist.
    File(PathBuf),
    /// Anything, with a name for reports.
    Custom(&'static str, Box<dyn Write + Send>),
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Output::Stderr => "stderr",
            Output::Stdout => "stdout",
            Output::File(path) => return path.fmt(f),
            Output::Custom(name, _) => name,
        })
    }
}

/// An output that is open.
pub(super) struct Sink {
    target: Target,
    out: Box<dyn Write + Send>,
}

enum Target {
    Fixed(&'static str),
    File(PathBuf),
}

impl Output {
    pub(super) fn open(self) -> io::Result<Sink> {
        Ok(match self {
            Output::Stderr => Sink { target: Target::Fixed("stderr"), out: Box::new(unbuffered(io::stderr().as_fd())?) },
            Output::Stdout => Sink { target: Target::Fixed("stdout"), out: Box::new(unbuffered(io::stdout().as_fd())?) },
            Output::File(path) => Sink { out: Box::new(open_append(&path)?), target: Target::File(path) },
            Output::Custom(name, out) => Sink { target: Target::Fixed(name), out },
        })
    }
}

/// The standard library's handles buffer by line and share a lock with every `eprintln!`; a duplicate of the
/// descriptor does neither.
fn unbuffered(fd: BorrowedFd<'_>) -> io::Result<File> {
    Ok(File::from(fd.try_clone_to_owned()?))
}

/// Not blocking, so that a FIFO without a reader is an error and not a thread that hangs; regular files ignore it.
fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(libc::O_NONBLOCK).open(path)
}

impl Sink {
    /// Opens a file again by its path. On failure the old file stays in use.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        if let Target::File(path) = &self.target {
            self.out = Box::new(open_append(path)?);
        }
        Ok(())
    }

    /// Like [`Write::write_all`], but says how many bytes were taken when it fails, and waits a while for a descriptor
    /// that somebody (stdout is shared with other processes) has made non-blocking.
    pub(super) fn write_all(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let mut taken = 0;
        let mut stalled_since: Option<Instant> = None;
        while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
            match self.out.write(rest) {
                Ok(0) => return (taken, Err(ErrorKind::WriteZero.into())),
                Ok(n) => {
                    taken += n;
                    stalled_since = None;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if stalled_since.get_or_insert_with(Instant::now).elapsed() >= STALL {
                        return (taken, Err(error));
                    }
                    std::thread::sleep(STALL_POLL);
                }
                Err(error) => return (taken, Err(error)),
            }
        }
        (taken, self.out.flush())
    }
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Fixed(name) => f.write_str(name),
            Target::File(path) => write!(f, "{}", path.display()),
        }
    }
}
