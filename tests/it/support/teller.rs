//! An origin that says exactly the bytes that it was given, at once or byte by byte, and keeps its connections open: whoever
//! uses one again is found out.

use super::corpus::rows;
use super::runtime;
use parking_lot::Mutex;
use rustls::{HandshakeKind, ServerConfig};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Between two bytes of an answer that comes byte by byte: long enough that each is read for itself.
const BEAT: Duration = Duration::from_millis(1);

/// One line of the corpus of malformed answers.
#[derive(Debug, Clone)]
pub struct Case {
    pub name: &'static str,
    /// get, head or upgrade.
    pub asked: &'static str,
    pub reason: &'static str,
    pub bytes: Vec<u8>,
}

pub fn malformed_answers() -> Vec<Case> {
    let text = include_str!("../../corpus/http1/answers.txt");
    rows::<3>(text).map(|([name, asked, reason], bytes)| Case { name, asked, reason, bytes }).collect()
}

/// One connection as it went: the targets that were asked for on it, whether it has ended, and whether its TLS session went on
/// from an earlier one.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub targets: Vec<String>,
    pub ended: bool,
    pub resumed: bool,
}

/// Answers `/whole/NAME` and `/drip/NAME` with the bytes of that name, and everything else with `good`.
pub struct Teller {
    pub address: SocketAddr,
    told: Arc<Mutex<Vec<Told>>>,
    task: JoinHandle<()>,
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Teller {
    pub fn start(answers: impl IntoIterator<Item = (String, Vec<u8>)>) -> Teller {
        Teller::over(answers, None)
    }

    pub fn over(answers: impl IntoIterator<Item = (String, Vec<u8>)>, tls: Option<Arc<ServerConfig>>) -> Teller {
        let answers: Arc<HashMap<String, Vec<u8>>> = Arc::new(answers.into_iter().collect());
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let (shared, acceptor) = (Arc::clone(&told), tls.map(TlsAcceptor::from));
        let task = runtime().spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                let (answers, told, acceptor) = (Arc::clone(&answers), Arc::clone(&shared), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => tell(socket, &answers, &told, false).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(socket).await {
                                let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
                                tell(stream, &answers, &told, resumed).await;
                            }
                        }
                    }
                });
            }
        });
        Teller { address, told, task }
    }

    /// Every connection on which something was asked, in their order.
    pub fn told(&self) -> Vec<Told> {
        self.told.lock().clone()
    }

    /// Fails if anything was asked on a connection after a target that `spoils` it.
    #[track_caller]
    pub fn assert_not_used_after(&self, spoils: impl Fn(&str) -> bool) {
        for Told { targets, .. } in self.told() {
            let (_, before) = targets.split_last().unwrap();
            assert!(!before.iter().any(|target| spoils(target)), "a connection was used again: {targets:?}");
        }
    }
}

async fn tell<T: AsyncRead + AsyncWrite + Unpin>(
    mut stream: T,
    answers: &HashMap<String, Vec<u8>>,
    told: &Mutex<Vec<Told>>,
    resumed: bool,
) {
    let mut at = None;
    let mut buffer = Vec::new();
    loop {
        let Some(end) = super::http1::find(&buffer, b"\r\n\r\n") else {
            if !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
                break;
            }
            continue;
        };
        let head: Vec<u8> = buffer.drain(..end + 4).collect();
        let target = String::from_utf8_lossy(&head).split(' ').nth(1).unwrap_or_default().to_owned();
        let index = *at.get_or_insert_with(|| {
            let mut told = told.lock();
            told.push(Told { resumed, ..Told::default() });
            told.len() - 1
        });
        told.lock()[index].targets.push(target.clone());
        let (how, name) = target.trim_start_matches('/').rsplit_once('/').unwrap_or_default();
        let good = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood".to_vec();
        let bytes = answers.get(name).unwrap_or(&good);
        let pieces = if how.ends_with("drip") { bytes.chunks(1) } else { bytes.chunks(bytes.len().max(1)) };
        let mut sent = true;
        for piece in pieces {
            sent = sent && stream.write_all(piece).await.is_ok() && stream.flush().await.is_ok();
            if how.ends_with("drip") {
                tokio::time::sleep(BEAT).await;
            }
        }
        if !sent {
            break;
        }
    }
    if let Some(index) = at {
        told.lock()[index].ended = true;
    }
}
