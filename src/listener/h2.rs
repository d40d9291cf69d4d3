//! One HTTP/2 connection: its streams, their bounds, and how it ends.
//!
//! Pingora drives streams, but its accept loop is not open to us: it knows one way to leave (the end of the process) and has
//! no connection for a request's task to look at. This is that loop on the parts that are open, with what a listener adds:
//! bounds from its settings, one [`Connection`] a stream, checks on what no raw head was there to check, and GOAWAY when the
//! listener goes.
//!
//! What floods cost is bounded by the `h2` crate and by settings here: streams under way (`http2_max_streams`), the decoded
//! header list and with it continuation frames (`max_header`), resets by the client before and after a stream was taken (20
//! pending, and 1024 that we had to send: rapid reset, CVE-2023-44487, and made-you-reset, CVE-2025-8671), and bytes that wait to
//! be sent for each stream. Answers to pings and settings are queued one at a time, so that a client that does not read them
//! blocks only itself, until the deadline for writes ends it.

use super::connection::Connection;
use super::deadline::Backstop;
use super::head::Malformed;
use super::io::EdgeIo;
use super::stage::{Active, Stage};
use super::transport::Transport;
use super::{Closed, Edge, Irregular, ListenerSettings};
use crate::http1::line::is_token;
use crate::rejection;
use http::{Method, header};
use pingora::apps::HttpServerApp;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Accept, H2Options, HttpSession, default_h2_options, handshake};
use pingora::protocols::{Digest, GetProxyDigest, GetSocketDigest, GetTimingDigest, Ssl};
use pingora::server::ShutdownWatch;
use std::sync::Arc;
use std::time::Duration;

/// Streams that broke the protocol before one connection is ended for it. Pingora's own number.
const MALFORMED_MAX: usize = 32;
/// How long a connection that was told to go is kept after its last stream. Well-behaved clients close it at once.
const LINGER: Duration = Duration::from_secs(5);
/// What may wait to be sent on one stream.
const SEND_BUFFER: usize = 256 << 10;

fn options(settings: &ListenerSettings) -> H2Options {
    let mut options = default_h2_options();
    options.max_concurrent_streams(settings.http2_max_streams);
    options.max_header_list_size(u32::try_from(settings.head.max_header).unwrap_or(u32::MAX));
    options.max_concurrent_reset_streams(64);
    options.max_pending_accept_reset_streams(20);
    options.max_local_error_reset_streams(Some(1024));
    options.max_send_buffer_size(SEND_BUFFER);
    options
}

/// Serves HTTP/2 until the client leaves, or the listener does.
pub async fn serve<T: Transport>(
    mut io: Box<EdgeIo<T>>,
    connection: Arc<Connection>,
    edge: &Arc<Edge>,
    shutdown: &ShutdownWatch,
) {
    let listener = &connection.listener;
    let settings = listener.settings();
    io.open_streams();
    let digest = Arc::new(Digest {
        ssl_digest: io.get_ssl_digest(),
        timing_digest: io.get_timing_digest(),
        proxy_digest: io.get_proxy_digest(),
        socket_digest: io.get_socket_digest(),
    });
    // The preface has a deadline like any header.
    let begun = pingora_timeout::timeout(settings.header_timeout, handshake(io, Some(options(&settings)))).await;
    let mut streams = match begun {
        Ok(Ok(streams)) => streams,
        Ok(Err(error)) => return broken(&error, &connection, edge),
        Err(_) => return listener.metrics.malformed.count(Irregular::HeaderTimeout.index()),
    };
    let active = Arc::new(Active::default());
    let (mut malformed, mut served, mut leaving) = (0_usize, 0_u32, false);
    loop {
        let accept = HttpSession::from_h2_conn(&mut streams, Arc::clone(&digest));
        let accepted = tokio::select! {
            biased;
            () = listener.stage.wait_for(Stage::Leaving), if !leaving => {
                streams.graceful_shutdown();
                listener.metrics.closed.count(Closed::Leaving as usize);
                leaving = true;
                continue;
            }
            accepted = accept => accepted,
            // Dropping the connection is enough: a client that has been silent for so long may be gone.
            () = idle(&active, if leaving { LINGER } else { listener.settings().keepalive_timeout }) => {
                if !leaving {
                    listener.metrics.closed.count(Closed::Idle as usize);
                }
                return;
            }
        };
        let session = match accepted {
            Ok(Some(H2Accept::Session(session))) => session,
            Ok(Some(H2Accept::Rejected)) => {
                listener.metrics.malformed.count(Irregular::Http2.index());
                malformed = malformed.saturating_add(1);
                if malformed >= MALFORMED_MAX {
                    return;
                }
                continue;
            }
            Ok(None) => return,
            Err(error) => return broken(&error, &connection, edge),
        };
        served = served.saturating_add(1);
        let settings = listener.settings();
        if settings.keepalive_requests.is_some_and(|most| served >= most) && !leaving {
            streams.graceful_shutdown();
            listener.metrics.closed.count(Closed::LastRequest as usize);
            leaving = true;
        }
        let why = check(session.req_header(), &settings);
        if let Some(why) = why {
            listener.metrics.malformed.count(why as usize);
        }
        start(session, connection.stream(why, settings.io.write), &active, edge, shutdown, &settings);
    }
}

/// A connection that was ended for what its client did is counted and logged like a malformed request. It is common for clients to
/// leave without a word, or with one of their own.
fn broken(error: &pingora::Error, connection: &Connection, edge: &Edge) {
    let cause = error.cause.as_ref().and_then(|cause| cause.downcast_ref::<h2::Error>());
    if cause.is_some_and(|cause| cause.is_io() || cause.is_remote()) {
        return;
    }
    connection.listener.metrics.malformed.count(Irregular::Http2.index());
    let id = crate::forwarded::request_id(None, false);
    let reason = Irregular::NAMES.get(Irregular::Http2 as usize).copied().unwrap_or_default();
    edge.gateway.log_malformed(connection, &id, &rejection::REQUEST_MALFORMED, reason, 0);
}

/// Returns when no stream has been under way for so long. Anything that arrives in the meantime starts it over.
async fn idle(active: &Active, timeout: Duration) {
    active.wait_empty().await;
    // A second at the least: with 0 a connection would end between its preface and its first stream.
    pingora_timeout::sleep(timeout.max(Duration::from_secs(1))).await;
}

/// Gives the place of a stream back, also when its task panics.
struct Place(Arc<Active>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.leave();
    }
}

fn start(
    session: HttpSession,
    stream: Arc<Connection>,
    active: &Arc<Active>,
    edge: &Arc<Edge>,
    shutdown: &ShutdownWatch,
    settings: &ListenerSettings,
) {
    active.try_enter(usize::MAX);
    let place = Place(Arc::clone(active));
    let (edge, shutdown) = (Arc::clone(edge), shutdown.clone());
    let mut session = ServerSession::new_http2(session);
    // The client's flow control can hold a response back without the socket being full. This is for each piece of it; what
    // [`super::Pace`] finds over all of them is stricter.
    session.set_write_timeout(Some(settings.io.write.pause).filter(|pause| !pause.is_zero()));
    tokio::spawn(async move {
        let _place = place;
        let request = Arc::clone(&stream).scope(edge.app.process_new_http(session, &shutdown));
        // `None`: it was dropped long after its deadline, which resets the stream.
        let _ = Backstop::default().run(&stream.deadline, request).await;
    });
}

/// What the `h2` crate and Pingora let pass. They refuse: upper-case and connection-specific headers, `te` other than
/// trailers, pseudo-headers that are unknown, doubled, missing or late, lengths that disagree with the body, a target with
/// control bytes, and `host` other than `:authority`.
fn check(head: &RequestHeader, settings: &ListenerSettings) -> Option<Malformed> {
    if head.method == Method::CONNECT {
        return Some(Malformed::Connect);
    }
    if !head.method.as_str().bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'))
    {
        return Some(Malformed::Method);
    }
    // Another scheme is a request for a proxy that we are not (RFC 9113 §8.3.1).
    if !matches!(head.uri.scheme_str(), Some("http" | "https")) {
        return Some(Malformed::Target);
    }
    let path = head.uri.path_and_query().map_or("", |target| target.as_str());
    if !(path.starts_with('/') || (path == "*" && head.method == Method::OPTIONS)) {
        return Some(Malformed::Target);
    }
    if path.len() > settings.head.max_uri {
        return Some(Malformed::UriTooLong);
    }
    if head.headers.len() > settings.head.max_headers {
        return Some(Malformed::TooManyHeaders);
    }
    if head.headers.get_all(header::HOST).iter().nth(1).is_some() {
        return Some(Malformed::DuplicateHost);
    }
    // HTTP/1.1 to the upstream has one line where this has two.
    if head.headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
        return Some(Malformed::DuplicateContentLength);
    }
    let expects = |value: &http::HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if head.headers.get_all(header::EXPECT).iter().any(expects) {
        return Some(Malformed::Expect);
    }
    // `http` takes a quotation mark for a part of a name, RFC 9110 §5.1 does not.
    if head.headers.keys().any(|name| !is_token(name.as_str().as_bytes())) {
        return Some(Malformed::HeaderName);
    }
    // An upstream of HTTP/1.1 would take it away, and have read another value than was decided by (RFC 9113 §8.2.1).
    let padded = |value: &header::HeaderValue| {
        let ends = [value.as_bytes().first(), value.as_bytes().last()];
        ends.into_iter().flatten().any(|byte| matches!(byte, b' ' | b'\t'))
    };
    if head.headers.values().any(padded) {
        return Some(Malformed::PaddedValue);
    }
    let underscore = |name: &header::HeaderName| name.as_str().contains('_');
    if !settings.head.allow_underscores && head.headers.keys().any(underscore) {
        return Some(Malformed::Underscore);
    }
    None
}
