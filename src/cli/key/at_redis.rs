//! Redis for a command: asks, waits, and is done.

use crate::redis_link::{Broken, OnDemand, Topology, text};
use redis::{Cmd, Value, cmd};
use std::io;
use std::time::Duration;

/// To connect, and for each answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// All servers of one Redis.
pub struct Redis {
    runtime: tokio::runtime::Runtime,
    servers: OnDemand,
}

impl Redis {
    pub fn new(topology: Topology) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Redis { runtime, servers: OnDemand::new(topology, PATIENCE) })
    }

    /// Asks whoever has the key.
    pub fn ask(&mut self, key: &str, command: &Cmd) -> Result<Value, Broken> {
        self.runtime.block_on(self.servers.ask(key.as_bytes(), command))
    }

    pub fn get(&mut self, key: &str) -> Result<Option<String>, Broken> {
        Ok(text(&self.ask(key, cmd("GET").arg(key))?))
    }

    /// Whether there was something to delete.
    pub fn delete(&mut self, key: &str) -> Result<bool, Broken> {
        Ok(self.ask(key, cmd("DEL").arg(key))? == Value::Int(1))
    }

    /// The names of all keys like that, at every server, up to one more than `most`.
    pub fn scan(&mut self, pattern: &str, most: usize) -> Result<Vec<String>, Broken> {
        let mut names = Vec::new();
        for server in self.runtime.block_on(self.servers.masters())? {
            let mut cursor = "0".to_owned();
            loop {
                let mut command = cmd("SCAN");
                command.arg(&cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1_000);
                let Value::Array(parts) = self.runtime.block_on(self.servers.ask_at(&server, &command))? else {
                    return Err(Broken::nonsense());
                };
                let [next, Value::Array(found)] = parts.as_slice() else { return Err(Broken::nonsense()) };
                names.extend(found.iter().filter_map(text));
                cursor = text(next).ok_or_else(Broken::nonsense)?;
                if cursor == "0" || names.len() > most {
                    break;
                }
            }
        }
        // A scan may show a key twice.
        names.sort();
        names.dedup();
        Ok(names)
    }
}
