//! Redis away, seen from outside: how many gateways share a limit then, and how long requests wait for it at most.

use crate::support::gateway::run;
use crate::support::raw::{Client, request};
use crate::support::redis::Redis;
use crate::support::{Gateway, SOON, eventually, eventually_some, exclusive};
use std::net::{SocketAddr, TcpListener};
use std::sync::Barrier;
use std::time::{Duration, Instant};

fn config(redis: &Redis, more: &str) -> String {
    format!(
        "[redis]\nurl = \"{}\"\n{more}\n[routes.a]\nmatch = {{ path = \"/a\" }}\nfilters = [{{ rate_limit = {{ by = 'header:x-key', \
         limits = [{{ rate = '60/1h' }}], store = 'redis', on_error = 'local' }} }}, {{ respond = {{ body = \"hello\" }} }}]\n\
         [routes.free]\nmatch = {{ path = \"/free\" }}\nfilters = [{{ respond = {{ body = \"hello\" }} }}]\n",
        redis.url()
    )
}

fn wait_redis(gateway: &Gateway, up: bool) {
    eventually(&format!("redis up = {up}"), SOON, || gateway.metric("gatewright_redis_up", &[]) == f64::from(u8::from(up)));
}

fn counts_gateways(gateway: &Gateway, count: f64) {
    let limit = Duration::from_secs(30);
    eventually(&format!("{count} gateways are known"), limit, || gateway.metric("gatewright_redis_gateways", &[]) == count);
}

fn admitted(gateway: &Gateway, key: &str, count: usize) -> usize {
    let mut client = Client::connect(gateway.http());
    let statuses: Vec<u16> =
        (0..count).map(|_| client.exchange(request("GET", "/a", &[("x-key", key)], b"")).unwrap().status).collect();
    assert!(statuses.iter().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
    statuses.iter().filter(|status| **status == 200).count()
}

/// Nobody has written how many gateways there are: they count each other, and forget those that are gone.
#[test]
fn the_share_of_a_gateway_follows_how_many_there_are() {
    let mut redis = Redis::start();
    let config = config(&redis, "timeout = \"500ms\"");
    let (first, second) = (Gateway::start(&config), Gateway::start(&config));
    for gateway in [&first, &second] {
        wait_redis(gateway, true);
        counts_gateways(gateway, 2.0);
    }
    redis.kill();
    wait_redis(&first, false);
    assert_eq!(admitted(&first, "two", 80), 30, "the half of 60");
    // The first of three learns of the third.
    redis.restart();
    let third = Gateway::start(&config);
    counts_gateways(&first, 3.0);
    redis.kill();
    wait_redis(&first, false);
    assert_eq!(admitted(&first, "three", 80), 20, "a third of 60");
    // Killed, so that they take no leave.
    redis.restart();
    wait_redis(&first, true);
    drop((second, third));
    counts_gateways(&first, 1.0);
    redis.kill();
    wait_redis(&first, false);
    assert_eq!(admitted(&first, "one", 80), 60, "all of it");
}

/// What is admitted without Redis is owed to it, until an operator forgets the key.
#[test]
fn a_key_that_is_reset_while_redis_is_away_owes_nothing() {
    let mut redis = Redis::start();
    let gateway = Gateway::start(&config(&redis, "timeout = \"500ms\""));
    wait_redis(&gateway, true);
    redis.kill();
    wait_redis(&gateway, false);
    assert_eq!((admitted(&gateway, "reset", 60), admitted(&gateway, "kept", 60)), (60, 60));
    let reset = run(&["limit", "--admin", &gateway.admin.argument(), "reset", "a", "header:x-key=reset"]);
    assert!(reset.code == Some(1) && reset.stderr.contains("Redis does not answer"), "{reset:?}");
    redis.restart();
    wait_redis(&gateway, true);
    let left = |key: &str| {
        let key = format!("header:x-key={key}");
        run(&["limit", "--admin", &gateway.admin.argument(), "show", "a", &key]).stdout
    };
    assert!(left("reset").contains("60 left (limit 60)"), "{}", left("reset"));
    assert!(!left("kept").contains("60 left (limit 60)"), "{}", left("kept"));
}

/// By a listener that is no Redis: who comes to it counts the attempts.
#[test]
fn attempts_to_come_back_have_growing_pauses_that_differ() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let text = format!(
        "[redis]\nurl = \"redis://{}\"\n[routes.a]\nmatch = {{ path = \"/a\" }}\nfilters = [{{ rate_limit = {{ by = 'route', limits = \
         [{{ rate = '60/1h' }}], store = 'redis' }} }}, {{ respond = {{ body = \"hello\" }} }}]\n",
        listener.local_addr().unwrap()
    );
    let begun = Instant::now();
    let _gateway = Gateway::start(&text);
    // 50, 100, 200, 400, 800 ms and from then on one second each, of which at least half is waited.
    let least: Vec<u64> = [25, 50, 100, 200, 400].into_iter().chain([500; 9]).collect();
    let at: Vec<Duration> = (0..=least.len())
        .map(|_| {
            drop(eventually_some("another attempt", SOON, || listener.accept().ok()));
            begun.elapsed()
        })
        .collect();
    // Counted from before the gateway was there, so that whatever is slow makes it later and never earlier.
    for (number, at) in at.iter().enumerate() {
        let earliest = Duration::from_millis(least[..number].iter().sum());
        assert!(*at >= earliest, "attempt {number} after {at:?}, {earliest:?} at the earliest");
    }
    // The last nine are all drawn from half a second to a second: all of them within 50 ms is one case in ten millions.
    let pauses: Vec<Duration> = at.windows(2).skip(5).map(|pair| pair[1] - pair[0]).collect();
    let (shortest, longest) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
    assert!(*longest - *shortest > Duration::from_millis(50), "{pauses:?}");
}

/// Requests that are all sent just after Redis has stopped: how long the slowest of them took, and the slowest of as many that ask
/// for nothing limited.
fn slowest(address: SocketAddr, stop: impl FnOnce()) -> (Duration, Duration) {
    const CLIENTS: usize = 24;
    let (ready, go) = (Barrier::new(CLIENTS + 1), Barrier::new(CLIENTS + 1));
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (ready, go) = (&ready, &go);
                scope.spawn(move || {
                    let mut client = Client::connect(address);
                    let path = if number % 2 == 0 { "/a" } else { "/free" };
                    let key = format!("k{number}");
                    let mut ask = || client.exchange(request("GET", path, &[("x-key", &key)], b"")).unwrap().status;
                    assert_eq!(ask(), 200);
                    ready.wait();
                    go.wait();
                    let begun = Instant::now();
                    assert_eq!(ask(), 200, "nobody gets an error");
                    (number % 2 == 0, begun.elapsed())
                })
            })
            .collect();
        ready.wait();
        stop();
        go.wait();
        let took: Vec<(bool, Duration)> = asking.into_iter().map(|asking| asking.join().unwrap()).collect();
        let of = |limited: bool| took.iter().filter(|(kind, _)| *kind == limited).map(|(_, took)| *took).max().unwrap();
        (of(true), of(false))
    })
}

/// Before anything is known of it: the first requests after Redis has stopped wait for it as long as they may, and no longer.
#[test]
fn the_first_requests_without_redis_wait_no_longer_than_they_may() {
    let _alone = exclusive();
    for timeout in [20, 150, 400].map(Duration::from_millis) {
        let redis = Redis::start();
        let gateway = Gateway::start(&config(&redis, &format!("timeout = \"{}ms\"", timeout.as_millis())));
        let (mut best, mut rounds) = (Duration::MAX, 0);
        // What else the machine does makes a round slower and never faster, so that the best of some rounds counts.
        while best > timeout + Duration::from_millis(30) {
            rounds += 1;
            assert!(rounds <= 10, "{best:?} with {timeout:?} in the best of 10 rounds");
            wait_redis(&gateway, true);
            let (limited, free) = slowest(gateway.http(), || redis.freeze());
            println!("timeout {timeout:?}: {limited:?} with a limit, {free:?} without");
            // A heartbeat may have found out first, so that nobody had to wait: that round says nothing.
            if limited >= timeout * 9 / 10 {
                // What the machine takes for as many requests is not the wait for Redis.
                best = best.min(limited.saturating_sub(free));
            }
            wait_redis(&gateway, false);
            redis.thaw();
        }
    }
}
