//! How exact a limit in Redis is: four gateway processes whose clocks are half a second wrong in both directions, bursts, silence and
//! steady load, against an oracle that is a bucket of fractions of tokens and nothing else.
//!
//! `GATEWRIGHT_FULL=1` makes it a million requests.

use crate::support::raw::{Client, request};
use crate::support::redis::Redis;
use crate::support::{Gateway, SOON, eventually, exclusive};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

const RATE: f64 = 1_000.0;
const BURST: f64 = 500.0;

/// Moves the wall clock of a process that is started with it.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *ts) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, ts);
    const char *skew = getenv("SKEW_NS");
    if (result == 0 && id == CLOCK_REALTIME && skew) {
        long long now = ts->tv_sec * 1000000000LL + ts->tv_nsec + atoll(skew);
        ts->tv_sec = now / 1000000000LL;
        ts->tv_nsec = now % 1000000000LL;
    }
    return result;
}
"#;

fn shim(directory: &Path) -> PathBuf {
    let (source, library) = (directory.join("skew.c"), directory.join("skew.so"));
    std::fs::write(&source, SHIM).unwrap();
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl");
    assert!(compile.status().expect("a C compiler, which the build needs as well").success());
    library
}

/// How far a gateway's clock is ahead in seconds, by the start of a request in its access log.
fn skew(gateway: &Gateway) -> f64 {
    #[derive(serde::Deserialize)]
    struct Line {
        time: gatewright::value::Timestamp,
    }
    let before = SystemTime::now();
    assert_eq!(crate::support::raw::get(gateway.http(), "/skew").status, 404);
    let after = SystemTime::now();
    let line = gateway.logged("the request", |line| line["path"] == "/skew");
    let Line { time } = toml::from_str(&format!("time = {}", line["time"].as_str().unwrap())).unwrap();
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    seconds(time.0) - (seconds(before) + seconds(after)) / 2.0
}

/// One request: when it was sent and answered, in seconds since the beginning, and whether it was admitted.
#[derive(Clone, Copy)]
struct Seen {
    sent: f64,
    answered: f64,
    admitted: bool,
}

/// Asks as fast as it can for as long as `phase` says, or every few milliseconds.
fn drive(address: SocketAddr, begun: Instant, until: f64, pause: Option<Duration>, left: &AtomicUsize, seen: &mut Vec<Seen>) {
    let mut client = Client::connect(address);
    while begun.elapsed().as_secs_f64() < until {
        if left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
            return;
        }
        let sent = begun.elapsed().as_secs_f64();
        let status = client.exchange(request("GET", "/a", &[], b"")).unwrap().status;
        assert!(matches!(status, 200 | 429), "{status}");
        seen.push(Seen { sent, answered: begun.elapsed().as_secs_f64(), admitted: status == 200 });
        if let Some(pause) = pause {
            std::thread::sleep(pause);
        }
    }
}

/// What a bucket of fractions of tokens would have admitted, had each request come in the middle of its round trip.
fn expected(seen: &[Seen]) -> usize {
    let mut times: Vec<f64> = seen.iter().map(|seen| (seen.sent + seen.answered) / 2.0).collect();
    times.sort_by(f64::total_cmp);
    let (mut tokens, mut last, mut admitted) = (BURST, 0.0, 0);
    for time in times {
        tokens = (tokens + (time - last) * RATE).min(BURST);
        last = time;
        if tokens >= 1.0 {
            tokens -= 1.0;
            admitted += 1;
        }
    }
    admitted
}

/// In no stretch of time are more admitted that lie in it for certain than the burst and the rate allow.
fn never_above(seen: &[Seen]) {
    let mut admitted: Vec<Seen> = seen.iter().copied().filter(|seen| seen.admitted).collect();
    admitted.sort_by(|a, b| a.answered.total_cmp(&b.answered));
    for first in (0..admitted.len()).step_by((admitted.len() / 300).max(1)) {
        let from = admitted[first].sent;
        let within = admitted.iter().filter(|seen| seen.sent >= from);
        for (count, seen) in (1_u32..).zip(within) {
            let most = BURST + RATE * (seen.answered - from) + 1.0;
            assert!(f64::from(count) <= most, "{count} in {} s", seen.answered - from);
        }
    }
}

#[test]
fn four_gateways_with_wrong_clocks_admit_what_one_bucket_would() {
    let _alone = exclusive();
    let directory = tempfile::tempdir().unwrap();
    let shim = shim(directory.path());
    let redis = Redis::start();
    let config = format!(
        "[redis]\nurl = \"{}\"\ntimeout = \"1s\"\n[listeners.http]\naddress = \"127.0.0.1:0\"\nkeepalive_requests = 0\n[routes.a]\nmatch = {{ path = \"/a\" }}\nfilters = [{{ rate_limit = {{ by = 'route', limits = \
         [{{ rate = '{RATE}/1s', burst = {BURST} }}], store = 'redis', on_error = 'closed' }} }}, {{ respond = {{ body = \"hello\" }} }}]\n",
        redis.url()
    );
    let skews = [-0.5, 0.5, -0.2, 0.4];
    let gateways = skews.map(|seconds| {
        let nanos = ((seconds * 1e9) as i64).to_string();
        Gateway::start_with_environment(&config, &[("LD_PRELOAD", shim.to_str().unwrap()), ("SKEW_NS", &nanos)])
    });
    for (gateway, wanted) in gateways.iter().zip(skews) {
        eventually("redis is up", SOON, || gateway.metric("gatewright_redis_up", &[]) == 1.0);
        let found = skew(gateway);
        assert!((found - wanted).abs() < 0.15, "the clock is {found} s ahead");
    }
    let addresses = gateways.each_ref().map(Gateway::http);
    let total = if std::env::var_os("GATEWRIGHT_FULL").is_some() { 1_000_000 } else { 15_000 };
    let left = AtomicUsize::new(total);
    let (begun, seen, mut cycles) = (Instant::now(), Mutex::new(Vec::new()), 0.0);
    while left.load(Ordering::SeqCst) > 0 {
        cycles += 1.0;
        // A burst and a flood, silence, then less than the limit.
        for (length, pause, threads) in [(4.0, None, 8), (0.3, None, 0), (1.0, Some(Duration::from_millis(16)), 8)] {
            let until = begun.elapsed().as_secs_f64() + length;
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let (left, seen, address) = (&left, &seen, addresses[thread % addresses.len()]);
                    scope.spawn(move || {
                        let mut mine = Vec::new();
                        drive(address, begun, until, pause, left, &mut mine);
                        seen.lock().unwrap().extend(mine);
                    });
                }
            });
            let rest = until - begun.elapsed().as_secs_f64();
            if rest > 0.0 && left.load(Ordering::SeqCst) > 0 {
                std::thread::sleep(Duration::from_secs_f64(rest));
            }
        }
    }
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.len(), total);
    never_above(&seen);
    let (admitted, expected) = (seen.iter().filter(|seen| seen.admitted).count(), expected(&seen));
    // Besides a thousandth: when a burst ends is only known as exactly as a round trip is long.
    let mut trips: Vec<f64> = seen.iter().map(|seen| seen.answered - seen.sent).collect();
    trips.sort_by(f64::total_cmp);
    let unknown = 2.0 + cycles * RATE * trips[trips.len() / 2];
    let off = admitted as f64 - expected as f64;
    println!(
        "{total} requests, {admitted} admitted, {expected} expected, {:.3} % off; {unknown:.0} cannot be known",
        off * 100.0 / expected as f64
    );
    assert!(off.abs() <= expected as f64 * 0.001 + unknown, "{admitted} against {expected}");
}
