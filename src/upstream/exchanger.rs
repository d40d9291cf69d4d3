//! One request to an endpoint beside Pingora's proxy loop, and its answer: for hedges and for copies of requests.
//!
//! Everything below the message is Pingora's: the connector with its pool, TLS as the peer has it, the writers and the
//! parsers of both protocols. So whatever an endpoint speaks, it is spoken to here as it is by the proxy, and an answer
//! that the proxy would refuse is refused here.

use super::dial::take_opened;
use super::exchange::name_late;
use crate::fields::framing_is_clear;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Uri, Version, header};
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::{HttpPeer, Peer};
use pingora::{Error, ErrorType, OrErr, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a request is sent again because a pooled connection was closed in the meantime.
const MAX_STALE: u32 = 3;
/// Interim responses (1xx) that one answer may begin with. More are a flood.
const MAX_INTERIM: u32 = 16;

/// What belongs to an HTTP/1.1 connection, and what HTTP/2 has a field of its own for.
const NOT_IN_HTTP2: [HeaderName; 6] = [
    header::HOST,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Sends requests, and keeps connections for the next ones.
pub struct Exchanger(Connector);

/// What is sent. The head is that of an HTTP/1.1 request, without what frames a body or belongs to a connection.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub head: &'a RequestHeader,
    pub body: &'a [Bytes],
    /// An HTTP/1.1 connection may be kept afterwards.
    pub keep: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub struct Failed {
    pub error: Box<Error>,
    /// No connection could be made, so that nothing was sent.
    pub unsent: bool,
}

/// An answer whose head has come.
pub struct Answer {
    exchanger: Arc<Exchanger>,
    session: HttpSession,
    peer: Box<HttpPeer>,
}

/// What happens before the head of an answer.
#[derive(Debug)]
pub enum Event<'a> {
    /// A connection stands: after so long, or at once because it was kept (`None`).
    Connected(Option<Duration>),
    /// An interim response.
    Interim(&'a ResponseHeader),
}

impl Exchanger {
    /// Keeps up to `idle` connections in all.
    pub fn new(idle: usize) -> Self {
        Exchanger(Connector::new(Some(ConnectorOptions::new(idle))))
    }

    /// Sends a request and reads the head of its answer. The timeouts are those of the peer. A request whose method is
    /// idempotent is sent again when it met a connection that the endpoint had closed.
    pub async fn send(
        self: Arc<Self>,
        peer: Box<HttpPeer>,
        request: Request<'_>,
        mut on: impl FnMut(Event<'_>) + Send,
    ) -> Result<Answer, Failed> {
        let mut stale = 0_u32;
        loop {
            let begun = Instant::now();
            let connected = self.0.get_http_session(&*peer).await;
            let (mut session, reused) = connected.map_err(|error| Failed { error: error.into_up(), unsent: true })?;
            // Over HTTP/1 the connections are ours, and to Pingora each of them is a new one.
            let reused = reused || take_opened().is_some_and(|opened| opened.reused);
            on(Event::Connected((!reused).then(|| begun.elapsed())));
            session.set_read_timeout(peer.options.read_timeout);
            session.set_write_timeout(peer.options.write_timeout);
            let Err(mut error) = converse(&mut session, &request, peer.is_tls(), &mut on).await else {
                return Ok(Answer { exchanger: self, session, peer });
            };
            name_late(&mut error);
            if matches!(error.etype(), ErrorType::H2Downgrade | ErrorType::InvalidH2) {
                self.0.prefer_h1(&*peer);
            }
            let broke = matches!(error.etype(), ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed);
            if !reused || !broke || stale >= MAX_STALE || !request.head.method.is_idempotent() {
                return Err(Failed { error: error.into_up(), unsent: false });
            }
            stale = stale.saturating_add(1);
        }
    }
}

/// Writes the request and reads up to the head of its answer.
async fn converse(
    session: &mut HttpSession,
    request: &Request<'_>,
    tls: bool,
    on: &mut (impl FnMut(Event<'_>) + Send),
) -> Result<()> {
    match session {
        HttpSession::H1(session) => {
            let mut head = request.head.clone();
            head.set_version(Version::HTTP_11);
            if !request.keep {
                head.insert_header(header::CONNECTION, HeaderValue::from_static("close"))?;
            }
            session.write_request_header(Box::new(head)).await?;
            for piece in request.body {
                session.write_body(piece).await?;
            }
            session.finish_body().await?;
            let mut interim = 0_u32;
            loop {
                session.read_response().await?;
                match session.resp_header() {
                    Some(head) if head.status == 101 => return refuse("an upgrade that nobody asked for"),
                    Some(head) if head.status.is_informational() && interim < MAX_INTERIM => on(Event::Interim(head)),
                    Some(head) if head.status.is_informational() => return refuse("too many interim responses"),
                    Some(head) if framing_is_clear(&head.headers) => return Ok(()),
                    _ => return refuse("a framing that two readers could take in two ways"),
                }
                interim = interim.saturating_add(1);
            }
        }
        HttpSession::H2(session) => {
            let head = for_http2(request.head, tls)?;
            session.write_request_header(Box::new(head), request.body.is_empty())?;
            let mut pieces = request.body.iter().peekable();
            while let Some(piece) = pieces.next() {
                session.write_request_body(piece.clone(), pieces.peek().is_none()).await?;
            }
            session.read_response_header().await
        }
        HttpSession::Custom(()) => Error::e_explain(ErrorType::InternalError, "no protocol of ours"),
    }
}

fn refuse(why: &'static str) -> Result<()> {
    Error::e_explain(ErrorType::InvalidHTTPHeader, why)
}

/// The same head as HTTP/2 has it: the host in the target, and nothing of the connection.
fn for_http2(head: &RequestHeader, tls: bool) -> Result<RequestHeader> {
    let mut head = head.clone();
    let host = head.headers.get(header::HOST).cloned();
    NOT_IN_HTTP2.iter().for_each(|name| drop(head.remove_header(name)));
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let builder = Uri::builder().scheme(if tls { "https" } else { "http" }).path_and_query(target);
    let builder = match (&host, head.uri.authority()) {
        (Some(host), _) => builder.authority(host.as_bytes()),
        (None, Some(authority)) => builder.authority(authority.clone()),
        (None, None) => builder,
    };
    let uri = builder.build().or_err(ErrorType::InvalidHTTPHeader, "a host that HTTP/2 cannot name")?;
    head.set_uri(uri);
    head.set_version(Version::HTTP_2);
    Ok(head)
}

impl Answer {
    pub fn head(&self) -> Option<&ResponseHeader> {
        self.session.response_header()
    }

    /// The next piece of the body; `None` at its end.
    pub async fn piece(&mut self) -> Result<Option<Bytes>> {
        self.session.read_response_body().await
    }

    /// Keeps the connection for the next request. Only after the body has been read to its end.
    pub async fn release(self) {
        let Answer { exchanger, session, peer } = self;
        exchanger.0.release_http_session(session, &*peer, peer.idle_timeout()).await;
    }

    /// Reads what is left of the body, up to so many bytes, for the sake of the connection.
    pub async fn discard(mut self, most: usize) {
        let mut read = 0_usize;
        while read <= most {
            match self.piece().await {
                Ok(Some(piece)) => read = read.saturating_add(piece.len()),
                Ok(None) => return self.release().await,
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_for_http2_has_its_host_in_the_target_and_nothing_of_a_connection() {
        let mut head = RequestHeader::build("GET", b"/a?b=c", None).unwrap();
        for (name, value) in [("host", "orders.test:81"), ("connection", "close"), ("upgrade", "x"), ("x-kept", "1")] {
            head.insert_header(name, value).unwrap();
        }
        let http2 = for_http2(&head, true).unwrap();
        assert_eq!(http2.uri.to_string(), "https://orders.test:81/a?b=c");
        assert_eq!(http2.headers.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["x-kept"]);
        assert_eq!(for_http2(&head, false).unwrap().uri.scheme_str(), Some("http"));
        head.remove_header("host");
        assert!(for_http2(&head, true).is_err());
    }
}
