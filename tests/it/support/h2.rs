//! HTTP/2 from both ends, on the `h2` crate: a client that says what came, trailers included, and a gRPC-like origin.

use super::runtime;
use super::tls::{Pair, Tls};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, server};
use http::{HeaderMap, Request, Response, StatusCode};
use parking_lot::Mutex;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// One response in full.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.as_ref()?.get(name).map(|value| value.to_str().unwrap())
    }
}

/// One connection.
pub struct H2Client {
    pub sender: SendRequest<Bytes>,
    pub connection: JoinHandle<Result<(), h2::Error>>,
}

impl H2Client {
    /// By prior knowledge, without TLS.
    pub async fn plain(address: SocketAddr) -> H2Client {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        H2Client::over(socket).await
    }

    /// Panics if the server does not agree to HTTP/2.
    pub async fn secure(address: SocketAddr, tls: &Tls) -> H2Client {
        let connector = TlsConnector::from(tls.clone().offering(&["h2", "http/1.1"]).config());
        let socket = TcpStream::connect(address).await.unwrap();
        let stream = connector.connect("localhost".try_into().unwrap(), socket).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        H2Client::over(stream).await
    }

    async fn over<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: T) -> H2Client {
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        H2Client { sender, connection: tokio::spawn(connection) }
    }

    /// Sends a request with its body in these pieces, each a DATA frame, and reads the response.
    pub async fn call(&self, request: Request<()>, pieces: &[&[u8]]) -> Result<Answer, h2::Error> {
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut body) = sender.send_request(request, pieces.is_empty())?;
        for (at, piece) in pieces.iter().enumerate() {
            // Who has answered already may have ended the stream, and the answer tells why.
            if body.send_data(Bytes::copy_from_slice(piece), at + 1 == pieces.len()).is_err() {
                break;
            }
        }
        answer(response.await?).await
    }

    pub async fn get(&self, target: &str) -> Result<Answer, h2::Error> {
        self.call(Request::get(format!("http://localhost{target}")).body(()).unwrap(), &[]).await
    }

    /// How the connection ended; panics when it does not.
    pub async fn ended(self) -> Result<(), h2::Error> {
        let H2Client { sender, connection } = self;
        drop(sender);
        tokio::time::timeout(Duration::from_secs(15), connection).await.expect("the connection stays open").unwrap()
    }
}

pub async fn answer(response: Response<RecvStream>) -> Result<Answer, h2::Error> {
    let (head, mut stream) = response.into_parts();
    let mut body = Vec::new();
    while let Some(piece) = stream.data().await {
        let piece = piece?;
        stream.flow_control().release_capacity(piece.len())?;
        body.extend_from_slice(&piece);
    }
    Ok(Answer { status: head.status, headers: head.headers, body, trailers: stream.trailers().await? })
}

/// A call as gRPC makes it.
pub fn grpc(method: &str) -> Request<()> {
    Request::post(format!("http://localhost/test.Echo/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

/// What an [`H2Origin`] has seen.
#[derive(Default)]
pub struct Seen {
    pub connections: AtomicUsize,
    pub requests: Mutex<Vec<http::request::Parts>>,
    /// Those of requests that had some.
    pub trailers: Mutex<Vec<HeaderMap>>,
}

/// An origin that speaks HTTP/2 only. `/test.Echo/Fail` answers with trailers only, everything else with the body as it
/// comes, piece by piece, and the trailers `grpc-status: 0` and `x-count: <pieces>`.
pub struct H2Origin {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    task: JoinHandle<()>,
}

impl Drop for H2Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl H2Origin {
    pub fn plain() -> H2Origin {
        H2Origin::start(None, None)
    }

    /// Says this `content-length` and sends this body, whatever is asked.
    pub fn answering(length: &'static str, body: &'static str) -> H2Origin {
        H2Origin::start(None, Some((length, body)))
    }

    /// With `clients`, it wants certificates of theirs.
    pub fn secure(pair: &Pair, clients: Option<RootCertStore>) -> H2Origin {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        let mut config = builder.with_single_cert(vec![pair.der()], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        H2Origin::start(Some(TlsAcceptor::from(Arc::new(config))), None)
    }

    fn start(tls: Option<TlsAcceptor>, fixed: Option<(&'static str, &'static str)>) -> H2Origin {
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let shared = seen.clone();
        let task = runtime().spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (seen, tls) = (shared.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(socket, seen, fixed).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(socket).await {
                                serve(stream, seen, fixed).await;
                            }
                        }
                    }
                });
            }
        });
        H2Origin { address, seen, task }
    }

    /// `[upstreams.app]` for it with `more` lines, and a route that sends everything there.
    pub fn everything(&self, more: &str) -> String {
        format!(
            "\n[upstreams.app]\nendpoints = [\"{}\"]\n{more}\n[routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n",
            self.address
        )
    }
}

async fn serve<T: AsyncRead + AsyncWrite + Unpin>(stream: T, seen: Arc<Seen>, fixed: Option<(&'static str, &'static str)>) {
    let Ok(mut connection) = server::handshake(stream).await else { return };
    seen.connections.fetch_add(1, Ordering::SeqCst);
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (head, body) = request.into_parts();
        let fails = head.uri.path().ends_with("/Fail");
        seen.requests.lock().push(head);
        if let Some((length, body)) = fixed {
            let head = Response::builder().header("content-length", length).body(()).unwrap();
            if let Ok(mut out) = respond.send_response(head, false) {
                let _ = out.send_data(Bytes::from_static(body.as_bytes()), true);
            }
            continue;
        }
        let seen = seen.clone();
        // The other end may go at any time; then there is nobody to tell.
        tokio::spawn(async move {
            let _ = echo(body, respond, fails, &seen).await;
        });
    }
}

async fn echo(mut body: RecvStream, mut respond: server::SendResponse<Bytes>, fails: bool, seen: &Seen) -> Result<(), h2::Error> {
    let head = Response::builder().header("content-type", "application/grpc");
    if fails {
        let head = head.header("grpc-status", "5").header("grpc-message", "nothing there").body(()).unwrap();
        respond.send_response(head, true)?;
        return Ok(());
    }
    let mut out = respond.send_response(head.body(()).unwrap(), false)?;
    let mut count = 0;
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        count += usize::from(!piece.is_empty());
        out.send_data(piece, false)?;
    }
    let sent = body.trailers().await?;
    seen.trailers.lock().extend(sent);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    trailers.insert("x-count", count.to_string().parse().unwrap());
    out.send_trailers(trailers)
}
