//! What Pingora is told about an endpoint.
//!
//! A peer is made once for each endpoint, and cloned for each attempt. The clone copies into one `Box`, which
//! `ProxyHttp::upstream_peer` demands: the server name and the map of extra headers are empty, and everything else is plain
//! data. For HTTP/1 it gets a [`Dial`] besides, which has the timeouts of the attempt; Pingora has none of them then.
//!
//! For HTTP/1 the connections are our own ([`Dial`]), TLS included, and Pingora is told of a plain one; for HTTP/2 it makes
//! them. With `protocol = "auto"` it makes them until one turns out to speak HTTP/1: that one is given up before a request is
//! sent on it, and the endpoint is spoken to by our own connections for a while.

use super::config::Protocol;
use super::dial::{Dial, Dialer};
use super::endpoint::Endpoint;
use super::exchange::Patience;
use super::pool::Pool;
use crate::http1::trailers::Passing;
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
    /// For requests over HTTP/2, as `protocol` has it.
    http2: Option<HttpPeer>,
    /// For requests over HTTP/1, where they may have to be.
    http1: Option<Own>,
    /// For upgrades, which are HTTP/1.1 whatever else is spoken with the endpoint.
    tunnel: Own,
    timeouts: Timeouts,
}

/// A peer whose connections are our own.
#[derive(Debug)]
struct Own {
    peer: HttpPeer,
    dialer: Arc<Dialer>,
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
        let own = |upgrade| {
            let mut peer = HttpPeer::new(*address, false, String::new());
            peer.group_key = reach.group;
            peer.options.set_http_version(1, 1);
            let dialer = Dialer { pool: Arc::clone(&pool), tls: link.tls.clone(), idle: timeouts.idle, upgrade };
            Own { peer, dialer: Arc::new(dialer) }
        };
        let (http2, http1) = match link.protocol {
            Protocol::Http1 => (None, Some(own(false))),
            Protocol::H2 | Protocol::H2c => (Some(http2(reach, 2)), None),
            Protocol::Auto => (Some(http2(reach, 1)), Some(own(false))),
        };
        Peers { http2, http1, tunnel: own(true), timeouts: **timeouts }
    }
}

impl Own {
    /// The peer of one attempt.
    fn attempt(&self, connect: Duration, patience: Patience, trailers: Passing) -> Box<HttpPeer> {
        let mut peer = Box::new(self.peer.clone());
        peer.options.custom_l4 = Some(Arc::new(Dial { dialer: Arc::clone(&self.dialer), connect, patience, trailers }));
        peer
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
        let Timeouts { connect, write, .. } = self.peers.timeouts;
        self.peers.tunnel.attempt(at_most(connect, remaining), Patience { read: None, write: Some(write) }, Passing::default())
    }

    /// The peer for a pipe to whoever makes the attempt. It speaks HTTP/1.1, and waits for as long as that may take.
    pub(super) fn pipe_peer(&self, left: Option<Duration>) -> HttpPeer {
        let Timeouts { connect, read, write, .. } = self.peers.timeouts;
        let mut peer = HttpPeer::new(self.address, false, String::new());
        peer.group_key = self.peers.tunnel.peer.group_key ^ PIPE;
        peer.options.set_http_version(1, 1);
        peer.options.read_timeout = Some(at_most(at_most(connect, left).saturating_add(at_most(read, left)), left));
        peer.options.write_timeout = Some(at_most(write, left));
        peer
    }

    /// The peer for one attempt. With `remaining`, the time that the request has left, no step waits longer than that.
    /// `trailers` pass over HTTP/1.
    pub fn http_peer(&self, remaining: Option<Duration>, now: Instant, trailers: Passing) -> Box<HttpPeer> {
        let Peers { http2, http1, tunnel, timeouts } = &self.peers;
        match (http2, http1) {
            (Some(peer), None) => hurried(peer, remaining),
            (Some(peer), Some(_)) if !self.state.speaks_http1(now) => hurried(peer, remaining),
            (_, own) => {
                let Timeouts { connect, read, write, .. } = *timeouts;
                let patience = Patience { read: Some(at_most(read, remaining)), write: Some(at_most(write, remaining)) };
                own.as_ref().unwrap_or(tunnel).attempt(at_most(connect, remaining), patience, trailers)
            }
        }
    }
}

fn at_most(timeout: Duration, remaining: Option<Duration>) -> Duration {
    remaining.map_or(timeout, |remaining| timeout.min(remaining))
}

fn hurried(peer: &HttpPeer, remaining: Option<Duration>) -> Box<HttpPeer> {
    let mut peer = Box::new(peer.clone());
    let options = &mut peer.options;
    // The idle timeout is not the request's: the connection outlives it.
    for timeout in [
        &mut options.connection_timeout,
        &mut options.total_connection_timeout,
        &mut options.read_timeout,
        &mut options.write_timeout,
    ] {
        *timeout = timeout.map(|setting| at_most(setting, remaining));
    }
    peer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::tests::upstream;
    use pingora::upstreams::peer::Peer;

    const TIMEOUTS: &str = "timeouts = { connect = '1s', read = '2s', write = '3s', idle = '4s' }";

    #[test]
    fn every_timeout_is_set_and_cut_to_what_the_request_has_left() {
        let upstream = upstream(&format!("endpoints = ['127.0.0.1:1']\nprotocol = 'h2c'\n{TIMEOUTS}"));
        let endpoints = upstream.endpoints();
        let secs = |timeout: Option<Duration>| timeout.map(|timeout| timeout.as_secs());
        let of = |remaining: Option<Duration>| {
            let peer = endpoints[0].http_peer(remaining, Instant::now(), Passing::default());
            let o = &peer.options;
            [o.connection_timeout, o.total_connection_timeout, o.read_timeout, o.write_timeout, o.idle_timeout].map(secs)
        };
        assert_eq!(of(None), [1, 1, 2, 3, 4].map(Some));
        assert_eq!(of(Some(Duration::from_secs(2))), [1, 1, 2, 2, 4].map(Some));
        assert_eq!(of(Some(Duration::ZERO)), [0, 0, 0, 0, 4].map(Some));
    }

    #[test]
    fn over_http1_the_timeouts_are_those_of_our_own_connections() {
        let upstream = upstream(&format!("endpoints = ['127.0.0.1:1']\n{TIMEOUTS}"));
        let endpoint = &upstream.endpoints()[0];
        let secs = |peer: &HttpPeer| {
            let o = &peer.options;
            let pingora = [o.connection_timeout, o.total_connection_timeout, o.read_timeout, o.write_timeout, o.idle_timeout];
            assert_eq!(pingora, [None; 5], "Pingora has none");
            format!("{:?}", o.custom_l4.as_ref().expect("our own"))
        };
        let said = |connect: u64, read: Option<u64>, write: u64| {
            let patience = Patience { read: read.map(Duration::from_secs), write: Some(Duration::from_secs(write)) };
            format!("connect: {:?}, patience: {patience:?}", Duration::from_secs(connect))
        };
        for (remaining, connect, read, write) in [(None, 1, 2, 3), (Some(2), 1, 2, 2), (Some(0), 0, 0, 0)] {
            let remaining = remaining.map(Duration::from_secs);
            let peer = secs(&endpoint.http_peer(remaining, Instant::now(), Passing::default()));
            assert!(peer.contains(&said(connect, Some(read), write)), "{peer}");
        }
        let tunnel = secs(&endpoint.tunnel_peer(Some(Duration::ZERO)));
        assert!(tunnel.contains(&said(0, None, 3)), "{tunnel}");
    }

    #[test]
    fn what_a_request_has_left_does_not_divide_the_pool() {
        let upstream = upstream("endpoints = ['127.0.0.1:1']");
        let endpoint = &upstream.endpoints()[0];
        let key = |remaining| endpoint.http_peer(remaining, Instant::now(), Passing::default()).reuse_hash();
        assert_eq!(key(None), key(Some(Duration::from_millis(3))));
    }

    #[test]
    fn upstreams_do_not_share_connections() {
        assert_ne!(group_of("a", &Link::default()), group_of("b", &Link::default()));
        assert_eq!(group_of("a", &Link::default()), 0xaf63_dc4c_8601_ec8c, "the published test vector of FNV-1a");
    }
}
