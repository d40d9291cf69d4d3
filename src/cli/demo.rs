//! `gatewright demo`: three small origins and a gateway in front of them, in one process, to try things out on.

use super::{Exit, run};
use crate::demo;
use crate::filter::Registry;
use crate::reload::Origin;
use crate::server;
use clap::Args;
use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

/// The configuration that ships as `conf/quickstart.toml`.
const QUICKSTART: &str = include_str!("../../conf/quickstart.toml");

/// Try it out: a gateway on 127.0.0.1:8080 in front of three small origins, with commands to paste
#[derive(Args)]
pub(super) struct DemoArgs {}

pub(super) fn run(_args: &DemoArgs, registry: Registry) -> io::Result<Exit> {
    // The origins get a runtime of their own, as separate processes would.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().thread_name("origins").build()?;
    let origins = runtime.block_on(demo::start_origins(3))?;
    let addresses: HashMap<String, String> =
        origins.iter().map(|origin| (format!("ORIGIN_{}", origin.name.to_uppercase()), origin.addr.to_string())).collect();
    let env = Arc::new(move |name: &str| addresses.get(name).cloned().or_else(|| std::env::var(name).ok()));
    let origin = Origin::Embedded { name: "conf/quickstart.toml", text: QUICKSTART, env };
    let finished = server::run(
        origin,
        registry,
        Some(Box::new(|_, listeners| {
            for (_, address) in listeners.addresses() {
                // Nobody to tell if the terminal is gone; the gateway runs on.
                let _ = write!(io::stdout(), "{}", demo::curl_lines(&address.to_string()));
            }
        })),
    );
    run::finish(finished)
}
