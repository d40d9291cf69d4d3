//! What a process settles when it starts: threads, the admin address, how it stops. A reload cannot change these, and says
//! so instead of dropping the change silently.

use crate::config::Config;
use crate::diagnostic::{Diagnostics, Span};
use crate::value::Address;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    pub threads: usize,
    pub work_stealing: bool,
    pub upstream_keepalive: usize,
    pub grace_period: Duration,
    pub drain_delay: Duration,
    pub upgrade_probation: Duration,
    pub admin: Address,
    pub watch: bool,
}

impl Fixed {
    pub fn of(config: &Config) -> Self {
        let server = &config.server;
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = server.threads.as_ref().and_then(|threads| usize::try_from(threads.value).ok());
        Fixed {
            threads: threads.unwrap_or_else(cores),
            work_stealing: server.work_stealing,
            upstream_keepalive: usize::try_from(server.upstream_keepalive.value).unwrap_or(usize::MAX),
            grace_period: server.grace_period.get(),
            drain_delay: server.drain_delay.get(),
            upgrade_probation: server.upgrade_probation.get(),
            admin: config.admin.listen.value.clone(),
            watch: server.watch,
        }
    }

    /// Warns of everything that a new configuration has otherwise.
    pub fn compare(&self, config: &Config, diagnostics: &mut Diagnostics) {
        let next = Fixed::of(config);
        let server = &config.server;
        let mut warn = |differs: bool, key: &str, span: Option<Span>| {
            if differs {
                diagnostics
                    .warning(span, format!("`{key}` has changed, which takes effect when the process starts again"))
                    .help("restart the service; everything else of this configuration is applied now");
            }
        };
        let threads = server.threads.as_ref().and_then(|threads| threads.span.clone());
        warn(self.threads != next.threads, "server.threads", threads);
        warn(self.work_stealing != next.work_stealing, "server.work_stealing", None);
        let keepalive = server.upstream_keepalive.span.clone();
        warn(self.upstream_keepalive != next.upstream_keepalive, "server.upstream_keepalive", keepalive);
        warn(self.grace_period != next.grace_period, "server.grace_period", server.grace_period.span.clone());
        warn(self.drain_delay != next.drain_delay, "server.drain_delay", server.drain_delay.span.clone());
        let probation = server.upgrade_probation.span.clone();
        warn(self.upgrade_probation != next.upgrade_probation, "server.upgrade_probation", probation);
        warn(self.admin != next.admin, "admin.listen", config.admin.listen.span.clone());
        warn(self.watch != next.watch, "server.watch", None);
    }
}
