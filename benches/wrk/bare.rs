//! The least that a Pingora proxy can do: pick the next of the given endpoints and forward. `baseline.rs` makes a program of
//! it, and `tests/request_allocations.rs` counts what it allocates.

use async_trait::async_trait;
use pingora::prelude::{HttpPeer, Result, Server, Session};
use pingora::proxy::{HttpProxy, ProxyHttp, http_proxy_service};
use pingora::server::configuration::ServerConf;
use pingora::services::listening::Service;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Forwards to one endpoint after the other.
pub struct Bare {
    endpoints: Vec<SocketAddr>,
    next: AtomicUsize,
}

/// Runs it on so many threads, on what `listen` adds. Never returns. Pingora's default is to steal work.
pub fn run(
    threads: usize,
    work_stealing: bool,
    endpoints: Vec<SocketAddr>,
    listen: impl FnOnce(&mut Service<HttpProxy<Bare>>),
) -> ! {
    let conf = ServerConf {
        threads,
        work_stealing,
        upstream_keepalive_pool_size: 512,
        // It holds nothing worth waiting for, and the default waits five minutes.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Bare { endpoints, next: AtomicUsize::new(0) });
    listen(&mut service);
    // One thread count for all proxies, whatever the default of a service is.
    service.threads = Some(threads);
    server.add_service(service);
    server.run_forever()
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed).checked_rem(self.endpoints.len());
        let endpoint = turn.and_then(|turn| self.endpoints.get(turn));
        let endpoint = endpoint.ok_or_else(|| pingora::Error::explain(pingora::ErrorType::InternalError, "no endpoints"))?;
        Ok(Box::new(HttpPeer::new(*endpoint, false, String::new())))
    }
}
