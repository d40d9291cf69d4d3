//! An open-loop load generator: requests begin at a rate, whether or not those before them have been answered, as they do
//! when the clients are many and know nothing of each other. Each has a connection of its own.

use super::runtime;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How the requests of a run ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    pub sent: usize,
    /// 200.
    pub good: usize,
    /// 503.
    pub shed: usize,
    /// Anything else, and no answer within the patience.
    pub other: usize,
}

/// Sends GETs at a rate for so long, waits for the answers, each for as long as `patience`, and tells how they ended.
pub fn run(address: SocketAddr, per_second: u32, length: Duration, patience: Duration) -> Outcome {
    let counts = Arc::new([const { AtomicUsize::new(0) }; 3]);
    let sent = runtime().block_on(async {
        let mut tick = interval(Duration::from_secs(1) / per_second);
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let end = Instant::now() + length;
        let mut requests = tokio::task::JoinSet::new();
        while Instant::now() < end {
            tick.tick().await;
            let counts = counts.clone();
            requests.spawn(async move {
                let at = match timeout(patience, get(address)).await {
                    Ok(Ok(200)) => 0,
                    Ok(Ok(503)) => 1,
                    _ => 2,
                };
                counts[at].fetch_add(1, Ordering::SeqCst);
            });
        }
        let sent = requests.len();
        requests.join_all().await;
        sent
    });
    let [good, shed, other] = counts.each_ref().map(|count| count.load(Ordering::SeqCst));
    Outcome { sent, good, shed, other }
}

/// The status of the answer, once the whole of it has come.
async fn get(address: SocketAddr) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let status = answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    status.ok_or_else(|| std::io::Error::other("no status"))
}
