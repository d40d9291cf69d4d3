//! Optional reload when the files change.
//!
//! The directories are watched, not the files: editors and deployment tools replace a file by renaming another onto it,
//! which a watch on the file itself would lose. Changes are gathered for a moment, because one deployment touches many
//! files and must not be seen half done.

use super::Reloader;
use notify::{RecursiveMode, Watcher};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long the files must be quiet before a reload, and the longest that it is put off while they are not.
const QUIET: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(3);

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
    let mut watched = BTreeSet::new();
    loop {
        // Anew each time: a change can bring in files and directories that were not part of the configuration before.
        let loaded = reloader.origin.load(&reloader.registry);
        let certificates = reloader.gateway.snapshot().files.clone();
        let files = loaded.files.iter().chain(&certificates);
        *names.lock() = files.filter_map(|file| file.file_name().map(ToOwned::to_owned)).collect();
        let mut fresh = false;
        let beside = certificates
            .iter()
            .filter_map(|file| file.parent())
            .map(|directory| if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory.to_owned() });
        for directory in loaded.directories.into_iter().chain(beside) {
            // An include pattern may name a directory that does not exist yet; it is looked for again after each change.
            if directory.is_dir() && watched.insert(directory.clone()) {
                watcher.watch(&directory, RecursiveMode::NonRecursive)?;
                fresh = true;
            }
        }
        // What changed before the watch was set up gave no event.
        let missed = fresh && reloader.origin.load(&reloader.registry).hash != reloader.gateway.snapshot().hash;
        if !missed {
            if changes.recv().await.is_none() {
                return Ok(());
            }
            let settle = async { while let Ok(Some(())) = tokio::time::timeout(QUIET, changes.recv()).await {} };
            // Either end of the wait is right: quiet, or waited long enough.
            let _ = tokio::time::timeout(PATIENCE, settle).await;
        }
        reloader.reload("a change of the files").await;
    }
}
