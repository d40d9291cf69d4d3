//! Optional reload when the files change.
//!
//! The directories are watched, not the files: editors and deployment tools replace a file by renaming another onto it,
//! which a watch on the file itself would lose. Changes are gathered for a moment, because one deployment touches many
//! files and must not be seen half done.

use super::Reloader;
use crate::config::Loaded;
use notify::{RecursiveMode, Watcher};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// How long the files must be quiet before a reload, and the longest that it is put off while they are not.
const QUIET: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(3);
/// How often in a row the watches are set up because directories come and go meanwhile.
const AGAIN_MAX: u32 = 16;
/// How far behind the clock a file's time of change may be: the kernel takes that of its last tick.
const TICK: Duration = Duration::from_millis(10);

/// Reloads on changes until the process ends. Returns an error if the watch cannot be set up.
pub async fn watch(reloader: Arc<Reloader>) -> notify::Result<()> {
    // One pending signal is enough: it says "something changed", not what.
    let (changed, mut changes) = mpsc::channel(1);
    // Logs and sockets may lie in the same directory; only what can be configuration counts.
    let names = Arc::new(Mutex::new(HashSet::<OsString>::new()));
    let known = Arc::clone(&names);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let is_config = |path: &std::path::PathBuf| {
            path.extension().is_some_and(|extension| extension == "toml")
                || path.file_name().is_some_and(|name| known.lock().contains(name))
        };
        if event.is_ok_and(|event| !event.kind.is_access() && event.paths.iter().any(is_config)) {
            let _ = changed.try_send(());
        }
    })?;
    // With what the path was when the watch was set up: one that is made again is another directory.
    let mut watched = BTreeMap::<PathBuf, Identity>::new();
    let mut again = 0_u32;
    loop {
        // Anew each time: a change can bring in files and directories that were not part of the configuration before.
        let loaded = load(&reloader).await?;
        // What runs, and what was refused: either may be mended by one of its files.
        let read = [reloader.gateway.snapshot().files.as_slice(), reloader.refused_files.lock().as_slice()].concat();
        let beside = read.iter().filter_map(|file| file.parent()).map(Path::to_owned);
        let files = loaded.files.iter().chain(&read);
        let mut known: HashSet<_> = files.clone().filter_map(|file| file.file_name()).map(ToOwned::to_owned).collect();
        let mut directories: BTreeSet<_> =
            loaded.directories.iter().cloned().chain(beside).map(|directory| nearest(&directory, &mut known)).collect();
        for path in files.map(PathBuf::as_path).chain(loaded.directories.iter().map(PathBuf::as_path)) {
            follow(path, &mut known, &mut directories);
        }
        *names.lock() = known;
        watched.retain(|directory, _| {
            let needed = directories.contains(directory);
            if !needed {
                // The watch of one that was removed has gone with it.
                let _ = watcher.unwatch(directory);
            }
            needed
        });
        let mut fresh = false;
        for directory in directories {
            // Again, even if nothing seems to have changed: the watch may have gone with a directory that looked the same.
            let set_up = watcher.watch(&directory, RecursiveMode::NonRecursive);
            match identity(&directory) {
                Some(now) => {
                    set_up?;
                    fresh |= watched.insert(directory, now) != Some(now);
                }
                // It went in the meantime, which is an event where it was.
                None => fresh = true,
            }
        }
        if fresh && again < AGAIN_MAX {
            // A directory may have come below one of these before its watch was set up. Once nothing is new, all watches stood
            // before the files were read.
            again = again.saturating_add(1);
            continue;
        }
        // What changed before that gave no event. The hash is of the configuration, not of what it names.
        let running = reloader.gateway.snapshot();
        let missed = again > 0 && (loaded.hash != running.hash || changed_since(&read, running.loaded_at));
        again = 0;
        drop(running);
        if !missed {
            let changed = tokio::select! {
                changed = changes.recv() => changed,
                // Somebody else has asked for a reload, which may have read other files.
                () = reloader.reloaded.notified() => continue,
            };
            if changed.is_none() {
                return Ok(());
            }
            let settle = async { while let Ok(Some(())) = tokio::time::timeout(QUIET, changes.recv()).await {} };
            // Either end of the wait is right: quiet, or waited long enough.
            let _ = tokio::time::timeout(PATIENCE, settle).await;
        }
        reloader.take_turn("a change of the files").await;
    }
}

/// Whether one of the files may have been written or put there since. What comes of it is a reload that finds nothing new.
fn changed_since(files: &[PathBuf], since: SystemTime) -> bool {
    let since = since.checked_sub(TICK).unwrap_or(since).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let changed = |file: &PathBuf| {
        let data = std::fs::metadata(file).ok()?;
        let (seconds, nanos) = (u64::try_from(data.ctime()).ok()?, u32::try_from(data.ctime_nsec()).ok()?);
        Some(Duration::new(seconds, nanos) > since)
    };
    files.iter().any(|file| changed(file).unwrap_or(false))
}

/// Reads the configuration beside the runtime, which has health checks and the watchdog to serve: a file may be large, or on a disk
/// that hangs.
async fn load(reloader: &Arc<Reloader>) -> notify::Result<Loaded> {
    let reloader = Arc::clone(reloader);
    let loading = tokio::task::spawn_blocking(move || reloader.origin.load(&reloader.registry));
    loading.await.map_err(|error| notify::Error::generic(&format!("the configuration could not be read: {error}")))
}

/// The directory itself, or the nearest one above it, where its appearance is an event of one of the `known` names.
fn nearest(directory: &Path, known: &mut HashSet<OsString>) -> PathBuf {
    let mut there = directory;
    while !there.as_os_str().is_empty()
        && !there.is_dir()
        && let (Some(parent), Some(name)) = (there.parent(), there.file_name())
    {
        known.insert(name.to_owned());
        there = parent;
    }
    or_here(there)
}

/// The empty path, which nobody can watch, is the current directory.
fn or_here(directory: &Path) -> PathBuf {
    if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory.to_owned() }
}

/// The most symbolic links on the way to a file, as for the kernel.
const LINKS_MAX: usize = 40;

/// Where a path leads by symbolic links, each of which is watched where it lies: a deployment often exchanges one of those and no file
/// (`current -> releases/42`, and `..data` of what Kubernetes mounts).
fn follow(path: &Path, known: &mut HashSet<OsString>, directories: &mut BTreeSet<PathBuf>) {
    let mut watch = |parent: &Path, name: &std::ffi::OsStr| {
        known.insert(name.to_owned());
        directories.insert(or_here(parent));
    };
    let mut path = path.to_owned();
    for links in 0..LINKS_MAX {
        let mut there = PathBuf::new();
        let mut components = path.components();
        let link = loop {
            let Some(component) = components.next() else { break None };
            let parent = there.clone();
            there.push(component);
            if let Ok(target) = std::fs::read_link(&there) {
                break Some((parent.join(target).join(components.as_path()), parent));
            }
        };
        match (link, there.file_name()) {
            (Some((next, parent)), Some(name)) => {
                watch(&parent, name);
                path = next;
            }
            // What it has led to is watched too, which was not the path that was written.
            (None, Some(name)) if links > 0 => return watch(there.parent().unwrap_or(Path::new("")), name),
            _ => return,
        }
    }
}

/// Numbers of inodes are used again, times of birth are not known everywhere.
type Identity = (u64, Option<SystemTime>);

fn identity(directory: &Path) -> Option<Identity> {
    let metadata = std::fs::metadata(directory).ok()?;
    Some((metadata.ino(), metadata.created().ok()))
}
