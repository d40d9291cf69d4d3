//! A file that lists endpoints, in TOML or JSON, read anew when it changes.
//!
//! Its directory is watched, because tools replace a file by renaming another onto it. Events can be missed (a network
//! file system has none), so that it is also read at intervals. A file that is half written does not parse, which is a
//! failure like any other: the last good list stays in use.

use super::config::FileConfig;
use super::{Answer, Discovery, Failure, Found, PRIORITY_MAX, Reason, WEIGHT_MAX};
use async_trait::async_trait;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// The largest file, in bytes.
const FILE_MAX: u64 = 4 << 20;
/// How long an editor may take to finish what it has begun to write.
const QUIET: Duration = Duration::from_millis(30);

pub struct FileSource {
    path: PathBuf,
    interval: Duration,
    changes: Option<Changes>,
    asked: bool,
}

struct Changes {
    changed: mpsc::Receiver<()>,
    _watcher: RecommendedWatcher,
}

impl FileSource {
    pub fn new(config: &FileConfig, path: PathBuf) -> Self {
        FileSource { path, interval: config.interval.get(), changes: None, asked: false }
    }

    /// Without a watch the intervals have to do.
    fn watch(&mut self) {
        let (tell, changed) = mpsc::channel(1);
        let name = self.path.file_name().map(ToOwned::to_owned);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let ours = |path: &PathBuf| path.file_name() == name.as_deref();
            if event.is_ok_and(|event| !event.kind.is_access() && event.paths.iter().any(ours)) {
                // One that is pending says enough.
                let _ = tell.try_send(());
            }
        });
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        self.changes = watcher.ok().and_then(|mut watcher| {
            watcher.watch(directory, RecursiveMode::NonRecursive).ok()?;
            Some(Changes { changed, _watcher: watcher })
        });
    }

    async fn wait(&mut self) {
        match &mut self.changes {
            None => sleep(self.interval).await,
            Some(changes) => {
                if timeout(self.interval, changes.changed.recv()).await == Ok(Some(())) {
                    sleep(QUIET).await;
                }
            }
        }
    }
}

#[async_trait]
impl Discovery for FileSource {
    async fn ask(&mut self) -> Result<Answer, Failure> {
        if self.changes.is_none() {
            self.watch();
        }
        if std::mem::replace(&mut self.asked, true) {
            self.wait().await;
        }
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let found = read.map_err(|error| Failure::new(Reason::Unreachable, error)).flatten();
        // After a failure the driver pauses; then the file is read at once.
        self.asked = found.is_ok();
        Ok(Answer { found: found?, again: Duration::ZERO })
    }

    fn patience(&self) -> Duration {
        self.interval.saturating_add(Duration::from_secs(10))
    }
}

fn read(path: &Path) -> Result<Vec<Found>, Failure> {
    let unreadable = |error: std::io::Error| Failure::new(Reason::Unreachable, format!("{}: {error}", path.display()));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let length = file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    let invalid = |why: String| Failure::new(Reason::Invalid, format!("{}: {why}", path.display()));
    if length as u64 > FILE_MAX {
        return Err(invalid(format!("it is larger than {} MiB", FILE_MAX >> 20)));
    }
    let json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let document: Result<Value, String> = if json {
        serde_json::from_str(&text).map_err(|error| error.to_string())
    } else {
        toml::from_str(&text).map_err(|error| error.to_string())
    };
    list(&document.map_err(invalid)?).map_err(invalid)
}

/// `{ endpoints = [...] }`, each an address or a table.
fn list(document: &Value) -> Result<Vec<Found>, String> {
    let Some(Value::Array(list)) = document.get("endpoints") else { return Err("it has no list `endpoints`".to_owned()) };
    if let Some(other) = document.as_object().and_then(|all| all.keys().find(|key| *key != "endpoints")) {
        return Err(format!("unknown key `{other}`"));
    }
    list.iter().map(endpoint).collect()
}

fn endpoint(value: &Value) -> Result<Found, String> {
    let address = |text: &str| text.parse().map(Found::at).map_err(|_| format!("`{text}` is not an address with a port"));
    let table = match value {
        Value::String(text) => return address(text),
        Value::Object(table) => table,
        _ => return Err(format!("`{value}` is not an endpoint")),
    };
    let mut found = address(table.get("address").and_then(Value::as_str).ok_or("an endpoint has no `address`")?)?;
    for (key, value) in table {
        let number = |most: u64| {
            let number = value.as_u64().filter(|number| *number <= most);
            number.ok_or_else(|| format!("`{key}` must be from 0 to {most}"))
        };
        match key.as_str() {
            "address" => {}
            "weight" => found.weight = u16::try_from(number(WEIGHT_MAX.into())?).unwrap_or(WEIGHT_MAX),
            "priority" => found.priority = u8::try_from(number(PRIORITY_MAX.into())?).unwrap_or(PRIORITY_MAX),
            "zone" => found.zone = Some(value.as_str().ok_or("`zone` must be a string")?.into()),
            _ => return Err(format!("unknown key `{key}` of an endpoint")),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, text: &str) -> Result<Vec<Found>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path).map_err(|failure| failure.why)
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = of("e.toml", "endpoints = ['10.0.0.1:80', { address = '[::1]:81', weight = 3, priority = 1, zone = 'a' }]");
        let json = r#"{ "endpoints": ["10.0.0.1:80", { "address": "[::1]:81", "weight": 3, "priority": 1, "zone": "a" }] }"#;
        let found = toml.unwrap();
        assert_eq!(found, of("e.json", json).unwrap());
        assert_eq!((found.len(), found[1].weight, found[1].priority, found[1].zone.as_deref()), (2, 3, 1, Some("a")));
    }

    #[test]
    fn whatever_is_wrong_makes_the_whole_file_wrong() {
        for (text, why) in [
            ("", "no list `endpoints`"),
            ("endpoints = 1", "no list `endpoints`"),
            ("endpoints = []\nmore = 1", "unknown key `more`"),
            ("endpoints = ['orders:80']", "not an address"),
            ("endpoints = [1]", "not an endpoint"),
            ("endpoints = [{ weight = 1 }]", "no `address`"),
            ("endpoints = [{ address = '10.0.0.1:80', weight = 1001 }]", "from 0 to 1000"),
            ("endpoints = [{ address = '10.0.0.1:80', wieght = 1 }]", "unknown key `wieght`"),
            ("endpoints = ['10.0.0.1:80", "invalid basic string"),
        ] {
            let said = of("e.toml", text).unwrap_err();
            assert!(said.contains(why) || text.ends_with("80"), "{text}: {said}");
        }
    }
}
