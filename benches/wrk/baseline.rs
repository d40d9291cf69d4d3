//! The least that a Pingora proxy can do: pick the next of the given endpoints and forward. What Gatewright costs is told
//! in multiples of this, because both run the same HTTP engine.
//!
//! `baseline LISTEN THREADS ENDPOINT...`

use async_trait::async_trait;
use pingora::prelude::{HttpPeer, Result, Server, Session};
use pingora::proxy::{ProxyHttp, http_proxy_service};
use pingora::server::configuration::ServerConf;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

// The same allocator as the gateway's, so that the comparison is about the proxies.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[cfg(all(feature = "mimalloc", not(feature = "jemalloc")))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Baseline {
    endpoints: Vec<SocketAddr>,
    next: AtomicUsize,
}

#[async_trait]
impl ProxyHttp for Baseline {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed).checked_rem(self.endpoints.len());
        let endpoint = turn.and_then(|turn| self.endpoints.get(turn));
        let endpoint = endpoint.ok_or_else(|| pingora::Error::explain(pingora::ErrorType::InternalError, "no endpoints"))?;
        Ok(Box::new(HttpPeer::new(*endpoint, false, String::new())))
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, threads, endpoints @ ..] = arguments.as_slice() else {
        eprintln!("usage: baseline LISTEN THREADS ENDPOINT...");
        return ExitCode::from(2);
    };
    let endpoints: Result<Vec<SocketAddr>, _> = endpoints.iter().map(|endpoint| endpoint.parse()).collect();
    let (Ok(threads), Ok(endpoints)) = (threads.parse(), endpoints) else {
        eprintln!("baseline: not a number of threads, or not an address");
        return ExitCode::from(2);
    };
    let conf = ServerConf {
        threads,
        upstream_keepalive_pool_size: 512,
        // It holds nothing worth waiting for, and the default waits five minutes.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Baseline { endpoints, next: AtomicUsize::new(0) });
    service.add_tcp(listen);
    // One thread count for all proxies, whatever the default of a service is.
    service.threads = Some(threads);
    server.add_service(service);
    server.run_forever();
}
