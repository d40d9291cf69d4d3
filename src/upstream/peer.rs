//! What Pingora is told about an endpoint.
//!
//! A peer is made once for each endpoint, and cloned for each attempt. The clone copies into one `Box`, which
//! `ProxyHttp::upstream_peer` demands, and allocates nothing else: the server name and the map of extra headers are
//! empty, and everything else is plain data.
//!
//! For HTTP/1 the connections are our own ([`Dialer`]), TLS included, and Pingora is told of a plain one; for HTTP/2 it makes
//! them. With `protocol = "auto"` it makes them until one turns out to speak HTTP/1: that one is given up before a request is
//! sent on it, and the endpoint is spoken to by our own connections for a while.

use super::config::Protocol;
use super::dial::Dialer;
use super::endpoint::Endpoint;
use super::pool::Pool;
use crate::state::StatePool;
use crate::tls::ClientTls;
use pingora::upstreams::peer::HttpPeer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Keeps pipes apart in Pingora's pool from connections, which they are not.
const PIPE: u64 = 0x4845_4447_4544_0001;

/// Timeouts of one attempt. Pingora's own defaults are to wait for ever.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub connect: Duration,
    pub read: Duration,
    pub write: Duration,
    pub idle: Duration,
}

/// How endpoints are spoken to.
#[derive(Debug, Clone, Default)]
pub(super) struct Link {
    pub protocol: Protocol,
    pub max_streams: usize,
    pub tls: Option<Arc<ClientTls>>,
}

/// The peers for one endpoint.
#[derive(Debug)]
pub(super) struct Peers {
    /// For requests, as `protocol` has it.
    main: HttpPeer,
    /// For requests over HTTP/1 where `main` may be something else.
    http1: Option<HttpPeer>,
    /// For upgrades, which are HTTP/1.1 whatever else is spoken with the endpoint.
    tunnel: HttpPeer,
}

/// What an endpoint is reached by.
pub(super) struct Reach<'a> {
    pub upstream: &'a str,
    pub address: SocketAddr,
    pub group: u64,
    pub timeouts: &'a Timeouts,
    pub link: &'a Link,
}

impl Peers {
    pub(super) fn prepare(reach: &Reach<'_>, state: &StatePool) -> Self {
        let Reach { upstream, address, timeouts, link, .. } = reach;
        let plain = Link { protocol: Protocol::Http1, max_streams: link.max_streams, tls: link.tls.clone() };
        let metrics = super::metrics_of(state, upstream);
        let pool = Pool::of(state, &format!("{upstream:?} {address} {:x}", group_of(upstream, &plain)), &metrics);
        let dialer = |upgrade| Arc::new(Dialer { pool: Arc::clone(&pool), tls: link.tls.clone(), idle: timeouts.idle, upgrade });
        let http1 = |upgrade| {
            let mut peer = bounded(HttpPeer::new(*address, false, String::new()), reach);
            peer.options.set_http_version(1, 1);
            peer.options.custom_l4 = Some(dialer(upgrade));
            peer
        };
        let mut tunnel = http1(true);
        tunnel.options.read_timeout = None;
        let (main, http1) = match link.protocol {
            Protocol::Http1 => (http1(false), None),
            Protocol::H2 | Protocol::H2c => (http2(reach, 2), None),
            Protocol::Auto => (http2(reach, 1), Some(http1(false))),
        };
        Peers { main, http1, tunnel }
    }
}

/// Built from a socket address, because `HttpPeer::new` with a name resolves it while blocking.
fn http2(reach: &Reach<'_>, least: u8) -> HttpPeer {
    let link = reach.link;
    let sni = link.tls.as_ref().map_or_else(String::new, |tls| tls.sni.clone());
    let mut peer = bounded(HttpPeer::new(reach.address, link.tls.is_some(), sni), reach);
    if let Some(tls) = &link.tls {
        peer.options.ca = tls.ca.clone();
        peer.options.verify_cert = !tls.insecure;
        peer.options.verify_hostname = !tls.insecure;
        peer.client_cert_key = tls.cert.clone();
    }
    peer.options.set_http_version(2, least);
    peer.options.max_h2_streams = link.max_streams.max(1);
    peer
}

/// The group keeps the connections of upstreams apart in Pingora's pool, whose key knows an address but not what is
/// configured about it.
fn bounded(mut peer: HttpPeer, reach: &Reach<'_>) -> HttpPeer {
    let timeouts = reach.timeouts;
    peer.group_key = reach.group;
    peer.options.connection_timeout = Some(timeouts.connect);
    peer.options.total_connection_timeout = Some(timeouts.connect);
    peer.options.read_timeout = Some(timeouts.read);
    peer.options.write_timeout = Some(timeouts.write);
    peer.options.idle_timeout = Some(timeouts.idle);
    peer
}

/// The pool group of an upstream: FNV-1a of its name and of what its connections are made with beyond what Pingora's pool
/// looks at, so that a reload finds the connections that it left, and no others.
pub(super) fn group_of(upstream: &str, link: &Link) -> u64 {
    let mut text = upstream.to_owned();
    if link.protocol != Protocol::Http1 {
        text.push_str(&format!(" {:?}", link.protocol));
    }
    if let Some(tls) = &link.tls {
        text.push(' ');
        text.push_str(&tls.identity);
    }
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Endpoint {
    /// The peer for an upgrade. It reads for as long as the tunnel lives: the client's side knows how long that is.
    pub fn tunnel_peer(&self, remaining: Option<Duration>) -> Box<HttpPeer> {
        let mut peer = hurried(&self.peers.tunnel, remaining);
        peer.options.write_timeout = self.peers.tunnel.options.write_timeout;
        peer
    }

    /// The peer for a pipe to whoever makes the attempt with `like`. It speaks HTTP/1.1, and waits for as long as that may take.
    pub(super) fn pipe_peer(&self, like: &HttpPeer, left: Option<Duration>) -> HttpPeer {
        let mut peer = HttpPeer::new(self.address, false, String::new());
        peer.group_key = like.group_key ^ PIPE;
        peer.options.set_http_version(1, 1);
        let o = &like.options;
        let both = o.connection_timeout.zip(o.read_timeout).map(|(connect, read)| connect.saturating_add(read));
        peer.options.read_timeout = both.map(|both| left.map_or(both, |left| both.min(left)));
        peer.options.write_timeout = o.write_timeout;
        peer
    }

    /// The peer for one attempt. With `remaining`, the time that the request has left, no step waits longer than that.
    pub fn http_peer(&self, remaining: Option<Duration>, now: Instant) -> Box<HttpPeer> {
        let http1 = self.peers.http1.as_ref().filter(|_| self.state.speaks_http1(now));
        hurried(http1.unwrap_or(&self.peers.main), remaining)
    }
}

fn hurried(peer: &HttpPeer, remaining: Option<Duration>) -> Box<HttpPeer> {
    let mut peer = Box::new(peer.clone());
    if let Some(remaining) = remaining {
        let options = &mut peer.options;
        // The idle timeout is not the request's: the connection outlives it.
        for timeout in [
            &mut options.connection_timeout,
            &mut options.total_connection_timeout,
            &mut options.read_timeout,
            &mut options.write_timeout,
        ] {
            *timeout = timeout.map(|setting| setting.min(remaining));
        }
    }
    peer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::tests::upstream;
    use pingora::upstreams::peer::Peer;

    #[test]
    fn every_timeout_is_set_and_cut_to_what_the_request_has_left() {
        let upstream =
            upstream("endpoints = ['127.0.0.1:1']\ntimeouts = { connect = '1s', read = '2s', write = '3s', idle = '4s' }");
        let endpoints = upstream.endpoints();
        let secs = |timeout: Option<Duration>| timeout.map(|timeout| timeout.as_secs());
        let of = |remaining: Option<Duration>| {
            let peer = endpoints[0].http_peer(remaining, Instant::now());
            let o = &peer.options;
            [o.connection_timeout, o.total_connection_timeout, o.read_timeout, o.write_timeout, o.idle_timeout].map(secs)
        };
        assert_eq!(of(None), [1, 1, 2, 3, 4].map(Some));
        assert_eq!(of(Some(Duration::from_secs(2))), [1, 1, 2, 2, 4].map(Some));
        assert_eq!(of(Some(Duration::ZERO)), [0, 0, 0, 0, 4].map(Some));
    }

    #[test]
    fn what_a_request_has_left_does_not_divide_the_pool() {
        let upstream = upstream("endpoints = ['127.0.0.1:1']");
        let endpoint = &upstream.endpoints()[0];
        let key = |remaining| endpoint.http_peer(remaining, Instant::now()).reuse_hash();
        assert_eq!(key(None), key(Some(Duration::from_millis(3))));
    }

    #[test]
    fn upstreams_do_not_share_connections() {
        assert_ne!(group_of("a", &Link::default()), group_of("b", &Link::default()));
        assert_eq!(group_of("a", &Link::default()), 0xaf63_dc4c_8601_ec8c, "the published test vector of FNV-1a");
    }
}
