//! Where a writer's bytes go, and what it takes to hand them all over.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
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
    /// It ends with half a line that nobody will end, such as that of a process before this one.
    broken_off: bool,
}

enum Target {
    Fixed(&'static str),
    /// Where it is, and which file that was when it was opened.
    File(PathBuf, Inode),
}

type Inode = (u64, u64);

impl Output {
    pub(super) fn open(self) -> io::Result<Sink> {
        let fixed = |name, out| Sink { target: Target::Fixed(name), out, broken_off: false };
        Ok(match self {
            Output::Stderr => fixed("stderr", Box::new(unbuffered(io::stderr().as_fd())?)),
            Output::Stdout => fixed("stdout", Box::new(unbuffered(io::stdout().as_fd())?)),
            Output::File(path) => {
                let (file, inode) = open_append(&path)?;
                Sink { broken_off: ends_in_half_a_line(&path), out: Box::new(file), target: Target::File(path, inode) }
            }
            Output::Custom(name, out) => fixed(name, out),
        })
    }
}

/// The standard library's handles buffer by line and share a lock with every `eprintln!`; a duplicate of the
/// descriptor does neither.
fn unbuffered(fd: BorrowedFd<'_>) -> io::Result<File> {
    Ok(File::from(fd.try_clone_to_owned()?))
}

/// Not blocking, so that a FIFO without a reader is an error and not a thread that hangs; regular files ignore it.
fn open_append(path: &Path) -> io::Result<(File, Inode)> {
    let file = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(libc::O_NONBLOCK).open(path)?;
    let about = file.metadata()?;
    Ok((file, (about.dev(), about.ino())))
}

/// Whether a regular file ends without a line break. One that may not be read is taken to be in order.
fn ends_in_half_a_line(path: &Path) -> bool {
    let last = || {
        let about = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        let mut last = [0];
        File::open(path).ok()?.read_exact_at(&mut last, about.len().checked_sub(1)?).ok()?;
        Some(last)
    };
    last().is_some_and(|last| last != *b"\n")
}

impl Sink {
    /// Opens a file again by its path, and says whether that is another one. On failure the old file stays in use.
    pub(super) fn reopen(&mut self) -> io::Result<bool> {
        let Target::File(path, known) = &mut self.target else { return Ok(false) };
        let (file, inode) = open_append(path)?;
        self.out = Box::new(file);
        let another = std::mem::replace(known, inode) != inode;
        if another {
            self.broken_off = ends_in_half_a_line(path);
        }
        Ok(another)
    }

    /// Like [`Write::write_all`], but says how many bytes were taken when it fails, and waits a while for a descriptor
    /// that somebody (stdout is shared with other processes) has made non-blocking.
    pub(super) fn write_all(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        if self.broken_off {
            if let (_, Err(error)) = self.put(b"\n") {
                return (0, Err(error));
            }
            self.broken_off = false;
        }
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
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
            Target::File(path, _) => write!(f, "{}", path.display()),
        }
    }
}
