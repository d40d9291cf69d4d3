//! `gatewright demo`: three small origins and a gateway in front of them, in one process, to try things out on.

use super::{Exit, run};
use crate::demo;
use crate::filter::Registry;
use crate::reload::Origin;
use crate::server;
use crate::value::Address;
use clap::Args;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

/// Try it out: a gateway on 127.0.0.1:8080 in front of three small origins, with commands to paste
#[derive(Args)]
pub(super) struct DemoArgs {
    /// Take free ports in place of 8080, 9901 and 9101 to 9103
    #[arg(long)]
    free_ports: bool,
}

pub(super) fn run(args: &DemoArgs, registry: Registry) -> io::Result<Exit> {
    // The origins get a runtime of their own, as separate processes would.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().thread_name("origins").build()?;
    let (addresses, [gateway, admin]) = match args.free_ports {
        false => (demo::ADDRESSES, [demo::GATEWAY, demo::ADMIN]),
        true => (demo::ADDRESSES.map(|address| SocketAddr::new(address.ip(), 0)), [free()?, free()?]),
    };
    let origins = runtime.block_on(demo::start_origins(&addresses))?;
    let text = demo::quickstart(gateway, admin, &origins);
    let env = Arc::new(|name: &str| std::env::var(name).ok());
    let configuration = Origin::Embedded { name: "conf/quickstart.toml", text, env };
    let announce: server::Ready = Box::new(move |listeners, admin| {
        if let (Some((_, Address::Tcp(gateway))), Address::Tcp(admin)) = (listeners.addresses().first(), admin) {
            // Nobody to tell if the terminal is gone; the gateway runs on.
            let _ = write!(io::stdout(), "{}", demo::curl_lines(*gateway, *admin, &origins));
        }
    });
    run::finish(server::run(configuration, registry, Some(announce)))
}

/// An address that nobody has. Somebody may take it before the gateway does, which is an error then.
fn free() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
