//! `gatewright demo`: three small origins and a gateway in front of them, in one process, to try things out on.

use super::{Exit, run};
use crate::demo;
use crate::filter::Registry;
use crate::reload::Origin;
use crate::server;
use crate::value::Address;
use clap::Args;
use std::io::{self, Write};
use std::sync::Arc;

/// Try it out: a gateway on 127.0.0.1:8080 in front of three small origins, with commands to paste
#[derive(Args)]
pub(super) struct DemoArgs {}

pub(super) fn run(_args: &DemoArgs, registry: Registry) -> io::Result<Exit> {
    // The origins get a runtime of their own, as separate processes would.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().thread_name("origins").build()?;
    let origins = runtime.block_on(demo::start_origins(&demo::ADDRESSES))?;
    let env = Arc::new(|name: &str| std::env::var(name).ok());
    let configuration = Origin::Embedded { name: "conf/quickstart.toml", text: demo::QUICKSTART, env };
    let announce: server::Ready = Box::new(move |listeners, admin| {
        if let (Some((_, Address::Tcp(gateway))), Address::Tcp(admin)) = (listeners.addresses().first(), admin) {
            // Nobody to tell if the terminal is gone; the gateway runs on.
            let _ = write!(io::stdout(), "{}", demo::curl_lines(*gateway, *admin, &origins));
        }
    });
    run::finish(server::run(configuration, registry, Some(announce)))
}
