//! The life of one connection: wait, read a head, serve the request, and again.
//!
//! Between requests the connection owns no session and no buffer. A request exists from the first byte of its head; from
//! there on a deadline runs. HTTP/2 connections leave this loop for the one in [`super::h2`].

use super::date::{Date, KeptDate};
use super::deadline::{Backstop, DeadlineCell};
use super::fault::{Fault, Faults};
use super::head::{Framing, Malformed};
use super::io::{EdgeIo, HeadError};
use super::patience::Tolerance;
use super::stage::Stage;
use super::transport::Transport;
use super::{Closed, Edge, Http2Mode, Irregular, ListenerState, h2};
use crate::http1::trailers::Trailers;
use crate::proxy::DirectHit;
use crate::rejection::{self, Rejection};
use crate::request::{Scheme, TlsFacts};
use crate::respond;
use arc_swap::Cache;
use parking_lot::Mutex;
use pingora::apps::HttpServerApp;
use pingora::protocols::http::ServerSession;
use pingora::protocols::{SocketDigest, Stream};
use pingora::server::ShutdownWatch;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::Poll;
use std::time::Instant;

tokio::task_local! {
    /// The connection that the request of this task came in on. Pingora's hooks have no argument for it.
    static CURRENT: Arc<Connection>;
}

/// What a request needs to know about its connection. A stream of HTTP/2 has one of its own.
#[derive(Debug)]
pub struct Connection {
    pub listener: Arc<ListenerState>,
    /// The address at the other end, or the one that a trusted proxy names by PROXY protocol; loopback for unix sockets, whose
    /// peers are on this machine.
    pub peer: IpAddr,
    pub scheme: Scheme,
    /// What the handshake has settled; `None` without TLS.
    pub tls: Option<Arc<TlsFacts>>,
    pub deadline: DeadlineCell,
    /// Until when an upgrade must be answered.
    upgrade: DeadlineCell,
    /// What is wrong with the request under way, if its head was not checked as bytes (HTTP/2): it is to be refused.
    pub malformed: Option<Malformed>,
    /// How fast its answer has to be taken, where the transport cannot see it: a stream of HTTP/2.
    pub pace: Option<Tolerance>,
    /// The request under way is the last one this connection may carry.
    last: AtomicBool,
    /// The end of the answer under way is the end of the connection, and not all of it was sent.
    unfinished: AtomicBool,
    fault: AtomicU8,
    /// The last request was for a route with direct hits.
    hit_likely: AtomicBool,
    /// What a request left behind that Pingora would have closed.
    kept: Mutex<Option<Stream>>,
    /// The `Date` that the response under way came with.
    date: KeptDate,
    /// Those of the answer under way, if the client of HTTP/1.1 takes them.
    trailers: Mutex<Option<Arc<Trailers>>>,
    /// Those of the request under way over HTTP/1.1, once its body has ended.
    asked_trailers: Trailers,
}

impl Connection {
    pub fn new(listener: Arc<ListenerState>, peer: Option<IpAddr>, tls: Option<Arc<TlsFacts>>) -> Arc<Self> {
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |ip| ip.to_canonical());
        let scheme = if tls.is_some() { Scheme::Https } else { Scheme::Http };
        Arc::new(Connection {
            listener,
            peer,
            scheme,
            tls,
            deadline: DeadlineCell::new(),
            upgrade: DeadlineCell::new(),
            malformed: None,
            pace: None,
            last: AtomicBool::new(false),
            unfinished: AtomicBool::new(false),
            hit_likely: AtomicBool::new(false),
            fault: AtomicU8::new(0),
            kept: Mutex::new(None),
            date: KeptDate::default(),
            trailers: Mutex::new(None),
            asked_trailers: Trailers::default(),
        })
    }

    /// The same for one stream of it: its deadline is its own, and how fast the client has to take the answer.
    pub(super) fn stream(&self, malformed: Option<Malformed>, write: Tolerance) -> Arc<Self> {
        Arc::new(Connection {
            listener: Arc::clone(&self.listener),
            peer: self.peer,
            scheme: self.scheme,
            tls: self.tls.clone(),
            deadline: DeadlineCell::new(),
            upgrade: DeadlineCell::new(),
            malformed,
            pace: Some(write),
            last: AtomicBool::new(false),
            unfinished: AtomicBool::new(false),
            hit_likely: AtomicBool::new(false),
            fault: AtomicU8::new(0),
            kept: Mutex::new(None),
            date: KeptDate::default(),
            trailers: Mutex::new(None),
            asked_trailers: Trailers::default(),
        })
    }

    /// Whether the answer to the request under way must carry `Connection: close`.
    pub fn must_close(&self) -> bool {
        self.last.load(Ordering::Relaxed) || self.listener.stage.reached(Stage::Leaving)
    }

    /// Why the request under way is refused although its upstream has done nothing wrong.
    pub fn rejection(&self) -> Option<Rejection> {
        let fault = self.fault.load(Ordering::Relaxed);
        if fault == Fault::SlowBody as u8 {
            Some(Rejection::new(&rejection::REQUEST_TIMEOUT))
        } else if fault == Fault::EarlyBytes as u8 || fault == Fault::BadChunk as u8 {
            Some(Rejection::new(&rejection::REQUEST_MALFORMED))
        } else if fault == Fault::UpgradeUnanswered as u8 {
            Some(Rejection::new(&rejection::UPSTREAM_TIMEOUT))
        } else {
            None
        }
    }

    /// Whether what is left of the answer under way could only be told from its end by a reset of the connection.
    pub fn ends_with_close(&self, unfinished: bool) {
        self.unfinished.store(unfinished, Ordering::Relaxed);
    }

    /// The next request may be worth a look into the cache before there is a session.
    pub fn expect_hit(&self) {
        self.hit_likely.store(true, Ordering::Relaxed);
    }

    /// The connection may carry another request, whatever Pingora says.
    pub fn keep(&self, stream: Stream) {
        *self.kept.lock() = Some(stream);
    }

    /// The response under way keeps this `Date`, or has that of its sending. For HTTP/1 only, see [`super::date`].
    pub fn keep_date(&self, date: Option<Date>) {
        self.date.keep(date);
    }

    /// Where the trailers of the answer under way come to, or that there will be none.
    pub fn expect_trailers(&self, trailers: Option<Arc<Trailers>>) {
        *self.trailers.lock() = trailers;
    }

    /// Takes the trailers of the request under way: what may be one, as lines. Empty before the end of its body.
    pub fn take_asked_trailers(&self) -> Vec<u8> {
        self.asked_trailers.take()
    }

    /// An upgrade is on its way to the upstream and must be answered until then.
    pub fn expect_upgrade(&self, until: Option<Instant>) {
        self.upgrade.set(until);
    }

    /// The connection that the current task serves. `None` outside of a request, such as in Pingora's own subrequests.
    pub fn current() -> Option<Arc<Connection>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Runs a request of this connection.
    pub(super) async fn scope<F: Future>(self: Arc<Self>, request: F) -> F::Output {
        CURRENT.scope(self, request).await
    }
}

impl Faults for Connection {
    fn report(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::Relaxed);
        self.listener.metrics.cut.count(usize::from(fault as u8).saturating_sub(1));
    }

    fn upgrade_deadline(&self) -> Option<Instant> {
        self.upgrade.instant_exact()
    }

    fn cut_off(&self) -> bool {
        self.unfinished.load(Ordering::Relaxed)
    }

    fn date(&self) -> Option<Date> {
        self.date.take()
    }

    fn trailers(&self) -> Vec<u8> {
        self.trailers.lock().take().map(|trailers| trailers.take()).unwrap_or_default()
    }

    fn asked_trailers(&self, section: &[u8]) {
        self.asked_trailers.keep_section(section);
    }
}

/// Who ended a connection while no request was under way.
enum End {
    Client,
    Gateway(Closed),
}

/// Serves HTTP on `transport` until it ends.
///
/// This future is what an idle connection costs, so that whatever happens once in the life of a connection, or seldom, is
/// boxed: a future is as large as the largest of its branches, and each that takes `io` has room for one of its own.
pub async fn serve<T: Transport>(
    transport: T,
    digest: SocketDigest,
    connection: Arc<Connection>,
    edge: &Arc<Edge>,
    shutdown: &ShutdownWatch,
) {
    let listener = &Arc::clone(&connection.listener);
    let bounds = listener.settings_now().io;
    let faults: Arc<dyn Faults> = connection.clone();
    let agreed = connection.tls.as_ref().is_some_and(|facts| facts.http2);
    // Pingora takes and gives back a box.
    let mut io = Box::new(EdgeIo::new(transport, digest, connection.tls.clone(), bounds, faults));
    if agreed {
        return Box::pin(h2::serve(io, connection, edge, shutdown)).await;
    }
    let mut settings = Cache::new(&listener.settings);
    let mut backstop = Backstop::default();
    let mut closing = listener.stage.watch(Stage::Closing);
    let mut served = 0_u32;
    connection.hit_likely.store(edge.gateway.snapshot().direct_hits, Ordering::Relaxed);
    loop {
        let settings = settings.load();
        // A new connection gets as long for its first byte as a header may take; a kept one may idle for longer.
        let patience = if served == 0 { settings.header_timeout } else { settings.keepalive_timeout };
        let end = {
            let mut wait = pin!(io.wait());
            let waited = poll_fn(|cx| match wait.as_mut().poll(cx) {
                Poll::Ready(Ok(true)) => Poll::Ready(None),
                Poll::Ready(_) => Poll::Ready(Some(End::Client)),
                Poll::Pending => closing.poll_reached(cx).map(|()| Some(End::Gateway(Closed::Leaving))),
            });
            let late = if served == 0 { Closed::Silent } else { Closed::Idle };
            match Instant::now().checked_add(patience) {
                Some(at) => backstop.until(at, waited).await.unwrap_or(Some(End::Gateway(late))),
                // Later than any time that can be told.
                None => waited.await,
            }
        };
        if let Some(end) = end {
            if let End::Gateway(why) = end {
                listener.metrics.closed.count(why as usize);
            }
            return Box::pin(io.close()).await;
        }
        // One time for both: what the preface is told by is the beginning of a head.
        let mut left = settings.header_timeout;
        let mut preface = Ok(false);
        if served == 0 && settings.http2 == Http2Mode::Cleartext {
            let since = Instant::now();
            preface = io.starts_with_preface(left).await;
            left = left.saturating_sub(since.elapsed());
        }
        io.set_bounds(settings.io);
        let read = match preface {
            Ok(true) => return Box::pin(h2::serve(io, connection, edge, shutdown)).await,
            Ok(false) => io.read_head(&settings.head, left).await,
            Err(error) => Err(error),
        };
        let (head, mut bytes) = match read {
            Ok(read) => read,
            Err(HeadError::Closed) => return,
            Err(HeadError::Timeout) => {
                listener.metrics.malformed.count(Irregular::HeaderTimeout.index());
                let rejection = Rejection::new(&rejection::REQUEST_TIMEOUT);
                return Box::pin(refuse(*io, &connection, rejection, "header_timeout", edge)).await;
            }
            Err(HeadError::Malformed(why)) => {
                listener.metrics.malformed.count(why as usize);
                return Box::pin(refuse(*io, &connection, Rejection::new(why.rejection()), why.name(), edge)).await;
            }
        };
        served = served.saturating_add(1);
        let full = settings.keepalive_requests.is_some_and(|most| served >= most);
        // Pingora looks for `close` in the first line of `Connection` alone.
        if full || !head.keep_alive {
            connection.last.store(true, Ordering::Relaxed);
        }
        if head.is_plain() && connection.hit_likely.swap(false, Ordering::Relaxed) {
            let shared = bytes.freeze();
            if let Some(hit) = edge.gateway.direct_hit(&connection, settings, &shared) {
                connection.expect_hit();
                let closes = hit.closes;
                let sent = backstop.run(&connection.deadline, answer(&mut io, hit)).await.unwrap_or(false);
                connection.deadline.set(None);
                if sent && !closes {
                    continue;
                }
                if full {
                    listener.metrics.closed.count(Closed::LastRequest as usize);
                }
                return Box::pin(io.close()).await;
            }
            // Nobody else holds them, so that they are not copied.
            bytes = shared.try_into_mut().unwrap_or_else(|shared| shared.as_ref().into());
        }
        let mut session = ServerSession::new_http1(io);
        session.set_pipelined_prefix(bytes);
        let request = Arc::clone(&connection).scope(edge.app.process_new_http(session, shutdown));
        let reusable = backstop.run(&connection.deadline, request).await.flatten();
        connection.deadline.set(None);
        connection.expect_trailers(None);
        if head.framing == Framing::Chunked {
            // Of a request that was answered without a look at them.
            connection.take_asked_trailers();
        }
        // A connection that must close has said so in its answer, and is then not reusable. One that has not said so is not
        // closed for a stage that came in the meantime: the client may have sent its next request already.
        let stream = reusable.map(|stream| stream.consume().0);
        let Some(stream) = stream.or_else(|| connection.kept.lock().take()) else {
            if full {
                listener.metrics.closed.count(Closed::LastRequest as usize);
            }
            return;
        };
        match stream.into_any().downcast::<EdgeIo<T>>() {
            Ok(same) => io = same,
            Err(_) => return,
        }
    }
}

/// `false` if the client did not take it.
async fn answer<T: Transport>(io: &mut EdgeIo<T>, hit: DirectHit) -> bool {
    let (bytes, whole) = io.send(|out| hit.write_head(out), &hit.body).await;
    hit.sent(bytes, !whole);
    whole
}

/// Answers a request that never became one. It is logged and counted like any other, with what is known of it.
async fn refuse<T: Transport>(io: EdgeIo<T>, connection: &Connection, rejection: Rejection, reason: &'static str, edge: &Edge) {
    let id = crate::forwarded::request_id(None, false);
    let answer = respond::raw(&rejection, &id);
    edge.gateway.log_malformed(connection, &id, rejection.code, reason, answer.len());
    io.answer_and_close(&answer).await;
}
