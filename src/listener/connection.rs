//! The life of one connection: wait, read a head, serve the request, and again.
//!
//! Between requests the connection owns no session and no buffer. A request exists from the first byte of its head; from
//! there on a deadline runs.

use super::deadline::{Backstop, DeadlineCell};
use super::io::{EdgeIo, HeadError, Transport};
use super::stage::Stage;
use super::{Edge, ListenerState, MALFORMED_TIMEOUT};
use crate::rejection::{self, Rejection};
use crate::request::Scheme;
use crate::respond;
use pingora::apps::HttpServerApp;
use pingora::protocols::SocketDigest;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

tokio::task_local! {
    /// The connection that the request of this task came in on. Pingora's hooks have no argument for it.
    static CURRENT: Arc<Connection>;
}

/// What a request needs to know about its connection.
#[derive(Debug)]
pub struct Connection {
    pub listener: Arc<ListenerState>,
    /// The address at the other end; loopback for unix sockets, whose peers are on this machine.
    pub peer: IpAddr,
    pub scheme: Scheme,
    pub deadline: DeadlineCell,
    /// The request under way is the last one this connection may carry.
    last: AtomicBool,
}

impl Connection {
    pub fn new(listener: Arc<ListenerState>, peer: Option<IpAddr>, scheme: Scheme) -> Arc<Self> {
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |ip| ip.to_canonical());
        Arc::new(Connection { listener, peer, scheme, deadline: DeadlineCell::new(), last: AtomicBool::new(false) })
    }

    /// Whether the answer to the request under way must carry `Connection: close`.
    pub fn must_close(&self) -> bool {
        self.last.load(Ordering::Relaxed) || self.listener.stage.reached(Stage::Leaving)
    }

    /// The connection that the current task serves. `None` outside of a request, such as in Pingora's own subrequests.
    pub fn current() -> Option<Arc<Connection>> {
        CURRENT.try_with(Arc::clone).ok()
    }
}

/// Serves HTTP/1 on `transport` until it ends.
pub async fn serve<T: Transport>(
    transport: T,
    digest: SocketDigest,
    connection: Arc<Connection>,
    edge: &Edge,
    shutdown: &ShutdownWatch,
) {
    let listener = &connection.listener;
    let mut io = EdgeIo::new(transport, digest);
    let mut backstop = Backstop::default();
    let mut served = 0_u32;
    loop {
        let settings = listener.settings();
        // A new connection gets as long for its first byte as a header may take; a kept one may idle for longer.
        let patience = if served == 0 { settings.header_timeout } else { settings.keepalive_timeout };
        let arrived = tokio::select! {
            biased;
            arrived = pingora_timeout::timeout(patience, io.wait()) => matches!(arrived, Ok(Ok(true))),
            () = listener.stage.wait_for(Stage::Closing) => false,
        };
        if !arrived {
            return;
        }
        let bytes = match io.read_head(&settings.head, settings.header_timeout).await {
            Ok((_, bytes)) => bytes,
            Err(HeadError::Closed) => return,
            Err(HeadError::Timeout) => {
                listener.metrics.malformed.count(MALFORMED_TIMEOUT);
                return refuse(io, &connection, Rejection::new(&rejection::REQUEST_TIMEOUT), "header_timeout", edge).await;
            }
            Err(HeadError::Malformed(why)) => {
                listener.metrics.malformed.count(why as usize);
                return refuse(io, &connection, Rejection::new(why.rejection()), why.name(), edge).await;
            }
        };
        served = served.saturating_add(1);
        if settings.keepalive_requests.is_some_and(|most| served >= most) {
            connection.last.store(true, Ordering::Relaxed);
        }
        let mut session = ServerSession::new_http1(Box::new(io));
        session.set_pipelined_prefix(bytes);
        let request = CURRENT.scope(Arc::clone(&connection), edge.app.process_new_http(session, shutdown));
        let reusable = backstop.run(&connection.deadline, request).await.flatten();
        connection.deadline.set(None);
        let Some((stream, _)) = reusable.map(|stream| stream.consume()).filter(|_| !connection.must_close()) else {
            return;
        };
        match stream.into_any().downcast::<EdgeIo<T>>() {
            Ok(same) => io = *same,
            Err(_) => return,
        }
    }
}

/// Answers a request that never became one. It is logged and counted like any other, with what is known of it.
async fn refuse<T: Transport>(io: EdgeIo<T>, connection: &Connection, rejection: Rejection, reason: &'static str, edge: &Edge) {
    let id = crate::forwarded::request_id(None, false);
    let answer = respond::raw(&rejection, &id);
    edge.gateway.log_malformed(connection, &id, rejection.code, reason, answer.len());
    io.answer_and_close(&answer).await;
}
