//! Pools over real sockets.

use super::*;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const LONG: Duration = Duration::from_secs(60);

fn pool(state: &StatePool, key: &str) -> Arc<Pool> {
    Pool::of(state, key, &crate::upstream::metrics_of(state, "app"))
}

/// Our end, and the endpoint's.
async fn pair(listener: &TcpListener) -> (Line<Link>, TcpStream) {
    let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (theirs, _) = listener.accept().await.unwrap();
    (Line::new(Link::Plain(ours)), theirs)
}

fn port(line: &Line<Link>) -> u16 {
    let Link::Plain(stream) = &line.transport else { panic!("no TLS here") };
    stream.local_addr().map(|address: SocketAddr| address.port()).unwrap()
}

/// Whether our end of it is closed.
async fn is_closed(theirs: &mut TcpStream) -> bool {
    matches!(tokio::time::timeout(LONG, theirs.read(&mut [0])).await, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn the_one_used_last_is_taken_first_and_each_once() {
    let (state, listener) = (StatePool::new(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let pool = pool(&state, "a");
    let (first, _one) = pair(&listener).await;
    let (second, _two) = pair(&listener).await;
    let ports = [port(&second), port(&first)];
    pool.put(first, LONG);
    pool.put(second, LONG);
    assert_eq!([port(&pool.take().unwrap()), port(&pool.take().unwrap())], ports);
    assert!(pool.take().is_none());
    assert_eq!(Keeper::of(&state).idle.load(Relaxed), 0);
}

#[tokio::test]
async fn a_worker_takes_what_it_has_opened_before_what_others_have() {
    let (state, listener) = (StatePool::new(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let pool = pool(&state, "a");
    let mut theirs = Vec::new();
    let mut ports = Vec::new();
    for place in [Place::Edge(1), Place::Edge(0), Place::Apart, Place::Edge(1)] {
        let (mut line, end) = pair(&listener).await;
        line.opened = place;
        ports.push(port(&line));
        theirs.push(end);
        pool.put(line, LONG);
    }
    // This thread is worker 0. What is apart is for nobody here.
    let taken: Vec<u16> = std::iter::from_fn(|| pool.take()).map(|line| port(&line)).collect();
    assert_eq!(taken, [ports[1], ports[3], ports[0]]);
    assert_eq!(pool.idle.lock().len(), 1);
}

#[tokio::test]
async fn what_the_endpoint_has_closed_or_written_on_is_not_taken() {
    let (state, listener) = (StatePool::new(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let pool = pool(&state, "a");
    let (good, _good) = pair(&listener).await;
    let wanted = port(&good);
    let (closed, theirs) = pair(&listener).await;
    let (loud, mut speaks) = pair(&listener).await;
    for link in [good, closed, loud] {
        pool.put(link, LONG);
    }
    drop(theirs);
    speaks.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
    let reactor_has_heard = async {
        while pool.idle.lock().len() > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            pool.sweep(Instant::now());
        }
    };
    tokio::time::timeout(LONG, reactor_has_heard).await.expect("both go");
    assert_eq!(port(&pool.take().unwrap()), wanted);
    assert!(pool.take().is_none());
    let counted: Vec<_> = pool.metrics.malformed.counts().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counted, [("excess_bytes", 1)]);
    assert!(is_closed(&mut speaks).await);
}

#[tokio::test]
async fn what_is_too_old_goes_by_itself() {
    let (state, listener) = (StatePool::new(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let pool = pool(&state, "a");
    let (old, mut theirs) = pair(&listener).await;
    let (young, _young) = pair(&listener).await;
    let wanted = port(&young);
    pool.put(old, Duration::ZERO);
    pool.put(young, LONG);
    pool.sweep(Instant::now());
    assert_eq!((pool.idle.lock().len(), Keeper::of(&state).idle.load(Relaxed)), (1, 1));
    assert!(is_closed(&mut theirs).await);
    assert_eq!(port(&pool.take().unwrap()), wanted);
}

#[tokio::test]
async fn beyond_the_bound_of_all_the_one_idle_longest_is_closed() {
    let (state, listener) = (StatePool::new(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let (a, b) = (pool(&state, "a"), pool(&state, "b"));
    let keeper = Keeper::of(&state);
    keeper.keep_at_most(2);
    let mut theirs = Vec::new();
    for pool in [&a, &b, &b, &a] {
        let (link, end) = pair(&listener).await;
        theirs.push(end);
        pool.put(link, LONG);
    }
    // The first of `a` made room, then the first of `b`.
    assert_eq!((a.idle.lock().len(), b.idle.lock().len(), keeper.idle.load(Relaxed)), (1, 1, 2));
    assert!(is_closed(&mut theirs[0]).await && is_closed(&mut theirs[1]).await);
    // With its endpoint a pool ends, and what was in it.
    drop(a);
    assert_eq!(keeper.idle.load(Relaxed), 1);
    assert!(is_closed(&mut theirs[3]).await);
    assert_eq!(keeper.live().len(), 1);
}

#[tokio::test]
async fn a_pool_is_one_for_its_key_and_known_once() {
    let state = StatePool::new();
    let (a, again, b) = (pool(&state, "a"), pool(&state, "a"), pool(&state, "b"));
    assert!(Arc::ptr_eq(&a, &again) && !Arc::ptr_eq(&a, &b));
    assert_eq!(Keeper::of(&state).live().len(), 2);
}
