//! An origin that speaks what real services speak: HTTP/1.1 or HTTP/2, with or without TLS, on hyper. It answers with its name,
//! when the test says, and gRPC's health checks.

use super::runtime;
use super::tls::Pair;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// One origin. Ends when it is dropped.
pub struct Service {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    name: String,
    delay: Mutex<Duration>,
    /// `ServingStatus`: 1 serving, 2 not.
    serving: AtomicU8,
    connections: AtomicUsize,
    requests: Mutex<Vec<http::Request<Bytes>>>,
}

impl Service {
    /// What is agreed on in TLS is what is spoken; without TLS, `http2` decides.
    pub fn start(name: &str, http2: bool, tls: Option<&Pair>) -> Service {
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            delay: Mutex::default(),
            serving: AtomicU8::new(1),
            connections: AtomicUsize::new(0),
            requests: Mutex::default(),
        });
        let acceptor = tls.map(|pair| acceptor(pair, http2));
        let serving = shared.clone();
        let task = runtime().spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (shared, acceptor) = (serving.clone(), acceptor.clone());
                shared.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(socket, http2, shared).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(socket).await {
                                let agreed = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                                serve(stream, agreed, shared).await;
                            }
                        }
                    }
                });
            }
        });
        Service { address, shared, task }
    }

    /// How long it takes to answer from now on.
    pub fn delay(&self, delay: Duration) {
        *self.shared.delay.lock() = delay;
    }

    /// What it says of itself when it is asked by gRPC's health checking protocol.
    pub fn serving(&self, serving: bool) {
        self.shared.serving.store(if serving { 1 } else { 2 }, Ordering::SeqCst);
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Requests as they arrived.
    pub fn requests(&self) -> Vec<http::Request<Bytes>> {
        self.shared.requests.lock().clone()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn acceptor(pair: &Pair, http2: bool) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(vec![pair.der()], key).unwrap();
    config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    TlsAcceptor::from(Arc::new(config))
}

async fn serve<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: T, http2: bool, shared: Arc<Shared>) {
    let service = service_fn(move |request| answer(shared.clone(), request));
    // The other end may go at any time.
    let _ = match http2 {
        true => http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await,
        false => http1::Builder::new().serve_connection(TokioIo::new(stream), service).await,
    };
}

async fn answer(
    shared: Arc<Shared>,
    request: http::Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Ok(Response::new(Full::default().boxed())) };
    if head.uri.path() == "/grpc.health.v1.Health/Check" {
        // A message of one field, an enum, behind its prefix.
        let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, shared.serving.load(Ordering::SeqCst)]);
        let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        let body = Full::new(message).with_trailers(std::future::ready(Some(Ok(trailers))));
        return Ok(Response::builder().header("content-type", "application/grpc").body(body.boxed()).unwrap());
    }
    shared.requests.lock().push(http::Request::from_parts(head, body.to_bytes()));
    let delay = *shared.delay.lock();
    tokio::time::sleep(delay).await;
    let response = Response::builder().header("x-served-by", &shared.name);
    Ok(response.body(Full::from(shared.name.clone()).boxed()).unwrap())
}
