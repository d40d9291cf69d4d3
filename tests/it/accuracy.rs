//! How exact limits are: of four gateway processes in Redis whose clocks are half a second wrong in both directions, and of one
//! alone; bursts, silence and steady load, for each algorithm against an oracle of its own: a bucket of fractions of tokens, a list of what was admitted
//! when, a number for each minute. None of them knows more of the gateway than what docs/limits.md says.
//!
//! `GATEWRIGHT_FULL=1` makes it a million requests for each, `GATEWRIGHT_REQUESTS` any other number; what came of them is recorded
//! where `GATEWRIGHT_RESULTS` says.

use crate::support::raw::{Client, request};
use crate::support::redis::Redis;
use crate::support::{Gateway, SOON, eventually, eventually_some, exclusive, full, record, spread};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Uses in a second of a bucket, and in three of a sliding window.
fn rate() -> f64 {
    if full() { 1_000.0 } else { 150.0 }
}

fn burst() -> f64 {
    rate() / 2.0
}

/// Uses in each minute.
fn quota() -> f64 {
    if full() { 20_000.0 } else { 1_000.0 }
}

/// Of the sliding window, in seconds.
const WINDOW: f64 = 3.0;

const PATHS: [&str; 3] = ["/bucket", "/sliding", "/fixed"];
const THREADS: usize = 8;

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

/// How far a gateway's clock is ahead in seconds, by the start of a request in its access log. When that was is only known as
/// exactly as the request was quick: to a tenth of a second at least.
fn skew(gateway: &Gateway) -> f64 {
    #[derive(serde::Deserialize)]
    struct Line {
        time: gatewright::value::Timestamp,
    }
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let (address, mut asked) = (gateway.http(), 0);
    let (path, middle) = eventually_some("a request that is quick", SOON, || {
        asked += 1;
        let path = format!("/skew/{asked}");
        let before = seconds(SystemTime::now());
        assert_eq!(crate::support::raw::get(address, &path).status, 404);
        let after = seconds(SystemTime::now());
        (after - before < 0.2).then_some((path, (before + after) / 2.0))
    });
    let line = gateway.logged("the request", |line| line["path"] == path);
    let Line { time } = toml::from_str(&format!("time = {}", line["time"].as_str().unwrap())).unwrap();
    seconds(time.0) - middle
}

/// One request: when it was sent and answered, in Unix time, and whether it was admitted.
#[derive(Clone, Copy)]
struct Seen {
    sent: f64,
    answered: f64,
    admitted: bool,
}

impl Seen {
    /// About when it was decided.
    fn middle(&self) -> f64 {
        (self.sent + self.answered) / 2.0
    }
}

/// What each path has seen.
type All = [Vec<Seen>; PATHS.len()];

/// Seconds of Unix time, by a clock that nobody sets.
struct Clock(f64, Instant);

impl Clock {
    fn start() -> Clock {
        Clock(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64(), Instant::now())
    }
    fn now(&self) -> f64 {
        self.0 + self.1.elapsed().as_secs_f64()
    }
}

/// Asks as fast as it can for as long as `phase` says, or every few milliseconds.
fn drive(address: SocketAddr, clock: &Clock, until: f64, pause: Option<Duration>, left: &AtomicUsize) -> All {
    let (mut client, mut all) = (Client::connect(address), All::default());
    while clock.now() < until {
        let Ok(left) = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) else { break };
        let kind = left % PATHS.len();
        let sent = clock.now();
        let status = client.exchange(request("GET", PATHS[kind], &[], b"")).unwrap().status;
        assert!(matches!(status, 200 | 429), "{status}");
        all[kind].push(Seen { sent, answered: clock.now(), admitted: status == 200 });
        if let Some(pause) = pause {
            std::thread::sleep(pause);
        }
    }
    all
}

/// In order of the time at which each was decided, had it been in the middle of its round trip.
fn in_order(seen: &[Seen]) -> Vec<f64> {
    let mut times: Vec<f64> = seen.iter().map(Seen::middle).collect();
    times.sort_by(f64::total_cmp);
    times
}

/// What a bucket of fractions of tokens would have admitted.
fn bucket(seen: &[Seen]) -> usize {
    let (mut tokens, mut last, mut admitted) = (burst(), 0.0, 0);
    for time in in_order(seen) {
        tokens = (tokens + (time - last) * rate()).min(burst());
        last = time;
        if tokens >= 1.0 {
            tokens -= 1.0;
            admitted += 1;
        }
    }
    admitted
}

/// What is admitted when a use counts until the whole fifteenth of the window that it is in has left the window. One of them began
/// at `begin`.
fn sliding(times: &[f64], begin: f64) -> usize {
    let (mut counted, mut admitted) = (VecDeque::new(), 0);
    for time in times {
        let slot = ((time - begin) / (WINDOW / 15.0)).floor();
        while counted.front().is_some_and(|old| *old <= slot - 16.0) {
            counted.pop_front();
        }
        if (counted.len() as f64) < rate() * WINDOW {
            counted.push_back(slot);
            admitted += 1;
        }
    }
    admitted
}

/// In each minute as many as there are, up to the quota.
fn fixed(seen: &[Seen]) -> usize {
    let mut minutes: BTreeMap<u64, usize> = BTreeMap::new();
    seen.iter().for_each(|seen| *minutes.entry((seen.middle() / 60.0) as u64).or_default() += 1);
    minutes.values().map(|count| (*count).min(quota() as usize)).sum()
}

/// When what was admitted was sent (`false`) and answered (`true`), in order, in seconds since the first.
fn admissions(seen: &[Seen]) -> Vec<(f64, bool)> {
    let admitted = seen.iter().filter(|seen| seen.admitted);
    let mut events: Vec<(f64, bool)> = admitted.flat_map(|seen| [(seen.sent, false), (seen.answered, true)]).collect();
    events.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let begin = events.first().map_or(0.0, |event| event.0);
    events.iter_mut().for_each(|event| event.0 -= begin);
    events
}

/// In no stretch of time, whenever it begins and ends, more is admitted than a bucket gives in it. What was answered by its end, less
/// what was sent before its beginning, lies in it for certain.
fn never_above_a_bucket(seen: &[Seen], burst: f64, rate: f64) -> Result<(), String> {
    let (mut sent, mut answered) = (0.0, 0.0);
    // Of all beginnings until now, the one from which least may have been admitted: `rate * begin - sent before`.
    let mut strictest = f64::NEG_INFINITY;
    for (time, is_answer) in admissions(seen) {
        if is_answer {
            answered += 1.0;
            let above = answered - rate * time + strictest - burst - 1.0;
            if above > 1e-6 {
                return Err(format!("{above} too many in a stretch that ends {time} s after the first"));
            }
        } else {
            strictest = f64::max(strictest, rate * time - sent);
            sent += 1.0;
        }
    }
    Ok(())
}

/// The same for a window that slides: no stretch that is shorter has more than `number`.
fn never_above_a_window(seen: &[Seen], window: f64, number: f64) -> Result<(), String> {
    let events = admissions(seen);
    let mut answers = events.iter().filter(|event| event.1).map(|event| event.0).peekable();
    let (mut sent, mut answered) = (0.0, 0.0);
    for begin in events.iter().filter(|event| !event.1).map(|event| event.0) {
        while answers.next_if(|answer| *answer < begin + window).is_some() {
            answered += 1.0;
        }
        if answered - sent > number {
            return Err(format!("{} in the window that begins {begin} s after the first", answered - sent));
        }
        sent += 1.0;
    }
    Ok(())
}

/// An oracle that finds nothing proves nothing.
#[test]
fn a_use_too_many_is_found_in_whatever_window_it_is() {
    let at = |time: f64| Seen { sent: time, answered: time + 0.001, admitted: true };
    // A burst of 10, then 10 in each second for 100 seconds.
    let good: Vec<Seen> = (0..11).map(|_| at(0.0)).chain((1..1_000).map(|n| at(f64::from(n) / 10.0))).collect();
    assert_eq!(never_above_a_bucket(&good, 10.0, 10.0), Ok(()));
    for (time, more) in [(0.0, 2), (33.33, 2), (99.8, 2)] {
        let bad: Vec<Seen> = good.iter().copied().chain((0..more).map(|_| at(time))).collect();
        assert!(never_above_a_bucket(&bad, 10.0, 10.0).is_err(), "at {time}");
    }
    let steady: Vec<Seen> = (0..1_000).map(|n| at(f64::from(n) / 10.0)).collect();
    assert_eq!(never_above_a_window(&steady, 2.0, 20.0), Ok(()));
    for time in [0.05, 33.33, 99.8] {
        let bad: Vec<Seen> = steady.iter().copied().chain([at(time)]).collect();
        assert!(never_above_a_window(&bad, 2.0, 20.0).is_err(), "at {time}");
    }
}

/// No minute has more than the quota of those that lie in it for certain.
fn never_above_in_a_minute(seen: &[Seen]) {
    let mut minutes: BTreeMap<u64, f64> = BTreeMap::new();
    for seen in seen.iter().filter(|seen| seen.admitted) {
        let minute = (seen.sent / 60.0) as u64;
        if (seen.answered / 60.0) as u64 == minute {
            *minutes.entry(minute).or_default() += 1.0;
        }
    }
    assert!(minutes.values().all(|count| *count <= quota()), "{minutes:?}");
}

/// `store` of each limit.
fn config(head: &str, store: &str) -> String {
    let limits = [
        format!("rate = '{}/1s', burst = {}", rate(), burst()),
        format!("rate = '{}/{WINDOW}s', algorithm = 'sliding_window'", rate() * WINDOW),
        format!("quota = '{}/1m'", quota()),
    ];
    let routes = PATHS.iter().zip(limits).map(|(path, limit)| {
        format!(
            "[routes.{}]\nmatch = {{ path = \"{path}\" }}\nfilters = [{{ rate_limit = {{ by = 'route', limits = [{{ {limit} }}]{store} }} }}, \
             {{ respond = {{ body = \"hello\" }} }}]\n",
            &path[1..]
        )
    });
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nkeepalive_requests = 0\n";
    [head, listener, &routes.collect::<String>()].concat()
}

/// One gateway that counts by itself is held to the same.
#[test]
fn a_gateway_alone_admits_what_one_limit_would() {
    let _alone = exclusive();
    let gateway = Gateway::start(&config("", ""));
    // Its time begins when it has started, so that nobody outside knows when a fifteenth of a window does.
    let begins = (0..50).map(|n| f64::from(n) / 50.0 * WINDOW / 15.0);
    admits_what_one_limit_would("local limits against an oracle", &[gateway.http()], &[0.0], begins);
}

#[test]
fn four_gateways_with_wrong_clocks_admit_what_one_limit_would() {
    let _alone = exclusive();
    let directory = tempfile::tempdir().unwrap();
    let shim = shim(directory.path());
    let redis = Redis::start();
    let head = format!("[redis]\nurl = \"{}\"\ntimeout = \"1s\"\n", redis.url());
    let config = config(&head, ", store = 'redis', on_error = 'closed'");
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
    admits_what_one_limit_would("limits against an oracle", &gateways.each_ref().map(Gateway::http), &skews, [0.0].into_iter());
}

/// `begins`: when a fifteenth of the sliding window may have begun; for one of them the oracle is right about everything.
fn admits_what_one_limit_would(test: &str, addresses: &[SocketAddr], skews: &[f64], begins: impl Iterator<Item = f64>) {
    let each = std::env::var("GATEWRIGHT_REQUESTS").ok().map(|text| text.parse().expect("a number"));
    let total = PATHS.len() * each.unwrap_or(if full() { 1_000_000 } else { 5_000 });
    let left = AtomicUsize::new(total);
    let (clock, all, mut cycles) = (Clock::start(), Mutex::new(All::default()), 0.0);
    while left.load(Ordering::SeqCst) > 0 {
        cycles += 1.0;
        // A burst and a flood, silence, then less than the limits.
        let slowly = Duration::from_millis(if full() { 16 } else { 48 });
        for (length, pause, threads) in [(4.0, None, THREADS), (0.3, None, 0), (1.0, Some(slowly), THREADS)] {
            let until = clock.now() + length;
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let (left, all, clock, address) = (&left, &all, &clock, addresses[thread % addresses.len()]);
                    scope.spawn(move || {
                        let mine = drive(address, clock, until, pause, left);
                        all.lock().unwrap().iter_mut().zip(mine).for_each(|(all, mine)| all.extend(mine));
                    });
                }
            });
            let rest = until - clock.now();
            if rest > 0.0 && left.load(Ordering::SeqCst) > 0 {
                std::thread::sleep(Duration::from_secs_f64(rest));
            }
        }
    }
    let all = all.into_inner().unwrap();
    assert_eq!(all.iter().map(Vec::len).sum::<usize>(), total);
    assert_eq!(never_above_a_bucket(&all[0], burst(), rate()), Ok(()));
    assert_eq!(never_above_a_window(&all[1], WINDOW, rate() * WINDOW), Ok(()));
    never_above_in_a_minute(&all[2]);
    let mut trips: Vec<f64> = all.iter().flatten().map(|seen| seen.answered - seen.sent).collect();
    trips.sort_by(f64::total_cmp);
    let trip = trips[trips.len() / 2];
    // Besides a thousandth: when a burst ends, and on which side of a border a request is, is only known as exactly as a round trip is
    // long.
    let borders = |length: f64| {
        let crossing = all.iter().flatten();
        crossing.filter(|seen| (seen.sent / length).floor() != (seen.answered / length).floor()).count() as f64
    };
    let times = in_order(&all[1]);
    let oracles = [
        (vec![bucket(&all[0])], 2.0 + cycles * rate() * trip),
        (begins.map(|begin| sliding(&times, begin)).collect(), 2.0 + cycles),
        (vec![fixed(&all[2])], borders(60.0)),
    ];
    for ((path, seen), (oracle, unknown)) in PATHS.iter().zip(&all).zip(oracles) {
        let admitted = seen.iter().filter(|seen| seen.admitted).count();
        let expected = oracle.into_iter().min_by_key(|expected| admitted.abs_diff(*expected)).unwrap();
        let off = admitted as f64 - expected as f64;
        let percent = off * 100.0 / expected as f64;
        println!(
            "{path}: {} requests, {admitted} admitted, {expected} expected, {percent:.3} % off; {unknown:.0} cannot be known",
            seen.len()
        );
        let times: Vec<Duration> = seen.iter().map(|seen| Duration::from_secs_f64(seen.answered - seen.sent)).collect();
        let result = serde_json::json!({
            "limit": path, "gateways": addresses.len(), "clocks_ahead_s": skews, "requests": seen.len(), "admitted": admitted,
            "oracle": expected, "off_percent": percent, "unknown": unknown, "round_trip_micros": spread(&times),
        });
        record(test, result);
        assert!(admitted < seen.len(), "{path}: the limit was never reached");
        assert!(off.abs() <= expected as f64 * 0.001 + unknown, "{path}: {admitted} against {expected}");
    }
}
