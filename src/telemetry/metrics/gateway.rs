//! What is counted once for the process: reloads, and which config is in force.

use super::Counter;
use parking_lot::Mutex;
use std::time::SystemTime;

#[derive(Debug, Default)]
pub struct GatewayMetrics {
    reloads_ok: Counter,
    reloads_failed: Counter,
    upgrades_failed: Counter,
    /// Reloads are rare and never on the request path, so that a lock is good enough.
    config: Mutex<ConfigState>,
}

/// The config in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigState {
    /// Whether the last attempt to load a config succeeded, the one at the start included.
    pub last_successful: bool,
    pub last_success: Option<SystemTime>,
    /// The hash of the config in force, in whatever form the loader gives it.
    pub hash: String,
}

impl GatewayMetrics {
    /// A config has come into force at the start. Not counted as a reload.
    pub fn config_loaded(&self, hash: &str, at: SystemTime) {
        *self.config.lock() = ConfigState { last_successful: true, last_success: Some(at), hash: hash.to_owned() };
    }

    /// A reload has brought a config into force.
    pub fn reload_succeeded(&self, hash: &str, at: SystemTime) {
        self.reloads_ok.increment();
        self.config_loaded(hash, at);
    }

    /// A reload has failed; the config in force stays.
    pub fn reload_failed(&self) {
        self.reloads_failed.increment();
        self.config.lock().last_successful = false;
    }

    /// An upgrade has failed; this process serves on.
    pub fn upgrade_failed(&self) {
        self.upgrades_failed.increment();
    }

    pub fn upgrades_failed(&self) -> u64 {
        self.upgrades_failed.get()
    }

    /// Reloads: successful, failed.
    pub fn reloads(&self) -> (u64, u64) {
        (self.reloads_ok.get(), self.reloads_failed.get())
    }

    pub fn config(&self) -> ConfigState {
        self.config.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_reload_keeps_what_is_known_of_the_config_in_force() {
        let metrics = GatewayMetrics::default();
        metrics.config_loaded("aa", SystemTime::UNIX_EPOCH);
        metrics.reload_failed();
        let config = metrics.config();
        assert!(!config.last_successful);
        assert_eq!((config.hash.as_str(), config.last_success), ("aa", Some(SystemTime::UNIX_EPOCH)));
        metrics.reload_succeeded("bb", SystemTime::UNIX_EPOCH);
        assert!(metrics.config().last_successful);
        assert_eq!((metrics.config().hash.as_str(), metrics.reloads()), ("bb", (1, 1)));
    }
}
