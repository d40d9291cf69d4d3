//! Optional reload when the files change.
//!
//! The directories are watched, not the files: editors and deployment tools replace a file by renaming another onto it,
//! which a watch on the file itself would lose. Changes are gathered for a moment, because one deployment touches many
//! files and must not be seen half done.

use super::Reloader;
use notify::{RecursiveMode, Watcher};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long the files must be quiet before a reload.
const QUIET: Duration = Duration::from_millis(300);

/// Reloads on changes until the process ends. Returns an error if the watch cannot be set up.
pub async fn watch(reloader: Arc<Reloader>) -> notify::Result<()> {
    // One pending signal is enough: it says "something changed", not what.
    let (changed, mut changes) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = changed.try_send(());
        }
    })?;
    let mut watched = BTreeSet::new();
    loop {
        // Anew each time: a change can bring in a directory that was not part of the configuration before.
        let mut fresh = false;
        for directory in reloader.origin.load(&reloader.registry).directories {
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
            while let Ok(Some(())) = tokio::time::timeout(QUIET, changes.recv()).await {}
        }
        reloader.reload("a change of the files").await;
    }
}
