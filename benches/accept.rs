//! One listening socket that all workers accept on, which is what the gateway does, against one socket for each worker
//! (`SO_REUSEPORT`).
//!
//! With `SO_REUSEPORT` the kernel deals connections out by a hash of their addresses, without a look at who is busy: a worker
//! with a long task keeps its connections waiting while the other is idle, and those that wait in a socket are lost when it
//! closes, which a reload or an upgrade would have to work around. With a shared socket whoever is free takes the next one,
//! and every accept meets the others at one queue. The bench makes connections of one byte each way, on two workers of their
//! own; the time is that of the whole exchange.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a benchmark may panic")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};

const WORKERS: usize = 2;
const CLIENTS: usize = 8;
const EACH: usize = 250;

async fn serve(listener: Arc<TcpListener>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut byte = [0];
            if stream.read_exact(&mut byte).await.is_ok() {
                let _ = stream.write_all(&byte).await;
            }
        });
    }
}

fn socket(address: SocketAddr, reuse: bool) -> TcpListener {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseport(reuse).expect("SO_REUSEPORT");
    socket.bind(address).expect("an address");
    socket.listen(4096).expect("a listener")
}

/// Every worker is a runtime of its own, as with `work_stealing = false`.
fn start(reuse: bool) -> SocketAddr {
    let (first, address) = {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _in_runtime = runtime.enter();
        let listener = socket("127.0.0.1:0".parse().expect("an address"), reuse);
        let address = listener.local_addr().expect("an address");
        (listener.into_std().expect("a socket"), address)
    };
    for worker in 0..WORKERS {
        let mine = if reuse && worker > 0 { None } else { Some(first.try_clone().expect("a descriptor")) };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = match mine {
                    Some(shared) => TcpListener::from_std(shared).expect("a socket"),
                    None => socket(address, true),
                };
                serve(Arc::new(listener)).await;
            });
        });
    }
    address
}

fn crowd(address: SocketAddr) {
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(move || {
                for _ in 0..EACH {
                    let mut stream = TcpStream::connect(address).expect("a connection");
                    stream.write_all(b"x").expect("a byte");
                    stream.read_exact(&mut [0]).expect("its echo");
                }
            });
        }
    });
}

fn accept(c: &mut Criterion) {
    let mut group = c.benchmark_group("accept");
    group.throughput(Throughput::Elements((CLIENTS * EACH) as u64));
    for (name, reuse) in [("shared", false), ("reuseport", true)] {
        let address = start(reuse);
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter_custom(|times| {
                let begun = Instant::now();
                (0..times).for_each(|_| crowd(address));
                begun.elapsed()
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(8));
    targets = accept
}
criterion_main!(benches);
