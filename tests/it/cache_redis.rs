//! The second tier of the cache: what one gateway has fetched the others need not, a purge reaches all of them, and whatever happens
//! to Redis is only a miss.

use crate::support::redis::Redis;
use crate::support::{self, Answer, Gateway, Origin, SOON, Script, eventually, raw};
use nix::sys::signal::Signal;
use std::sync::Arc;
use std::time::Duration;

/// `redis` is what [redis] says about where it is. A look-up that is late is a miss, so it may take as long as any may.
pub fn config(origin: &Origin, redis: &str) -> String {
    let upstream = support::upstream("app", &[origin], "");
    let route = "[routes.c]\nmatch = { path = \"/c/{*rest}\" }\nupstream = \"app\"\ncache = { store = \"memory+redis\" }\n";
    format!("{upstream}{route}{redis}timeout = \"1s\"\n")
}

/// An origin whose answers can be told from anything else.
pub fn origin() -> Origin {
    let origin = Origin::start("app");
    origin.answer(Answer::Script(Script(Arc::new(|request| {
        let line = request.request_line();
        let target = line.split(' ').nth(1)?.to_owned();
        let size: usize = target.rsplit('/').next().and_then(|size| size.parse().ok()).unwrap_or(10);
        let accept = request.header("accept").unwrap_or_default();
        let body = content(&target, &accept, size);
        let vary = if target.contains("/vary") { "vary: accept\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncache-control: max-age=1000\r\nsurrogate-key: all\r\n{vary}content-length: {}\r\n\r\n",
            body.len()
        );
        Some([head.as_bytes(), &body].concat())
    }))));
    origin
}

/// Not compressible, and of this request only.
fn content(target: &str, accept: &str, size: usize) -> Vec<u8> {
    let seed = target.bytes().chain(accept.bytes()).fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let mut random = fastrand::Rng::with_seed(seed);
    (0..size.max(1)).map(|_| random.u8(..)).collect()
}

pub fn connected(gateway: &Gateway) {
    eventually("the cache is shared", SOON, || gateway.stderr().contains("the cache is shared"));
}

pub fn status(gateway: &Gateway, target: &str) -> String {
    let answer = raw::get(gateway.address("http"), target);
    let size = target.rsplit('/').next().and_then(|size| size.parse().ok()).unwrap_or(10);
    assert_eq!((answer.status, answer.body == content(target, "", size)), (200, true), "{target}");
    answer.header("cache-status").unwrap_or_default().to_owned()
}

pub fn stored(gateway: &Gateway, count: f64) {
    eventually("what was fetched is in Redis", SOON, || {
        gateway.metric("gatewright_cache_redis_total", &[("result", "stored")]) >= count
    });
}

/// Two gateways that share what they store.
fn two(config: &str) -> (Gateway, Gateway) {
    let both = (Gateway::start(config), Gateway::start(config));
    connected(&both.0);
    connected(&both.1);
    both
}

#[test]
fn what_one_gateway_has_fetched_the_others_need_not() {
    let (origin, redis) = (origin(), Redis::start());
    let config = config(&origin, &redis.config());
    let (a, b) = two(&config);
    for (count, target) in [(1.0, "/c/x/10"), (2.0, "/c/large/900000")] {
        assert!(status(&a, target).contains("fwd=uri-miss"));
        stored(&a, count);
        let shared = status(&b, target);
        assert!(shared.contains("detail=redis"), "{target}: {shared}");
        assert!(status(&b, target).contains("hit; ttl"), "kept in memory from now on");
    }
    assert_eq!(origin.count(), 2);
    for accept in ["a", "b"] {
        for (at, gateway) in [&a, &b].into_iter().enumerate() {
            let answer = raw::send(gateway.address("http"), "GET", "/c/vary/50", &[("accept", accept)], b"");
            assert!(answer.body == content("/c/vary/50", accept, 50), "{accept} from gateway {at}");
            stored(&a, if accept == "a" { 3.0 } else { 4.0 });
        }
    }
    assert_eq!(origin.count(), 4, "one fetch of each variant");
    // What look-ups cost is told of either tier: of Redis each, of memory one of sixteen.
    let looked = |tier: &str| b.metric("gatewright_cache_tier_lookup_duration_seconds_count", &[("tier", tier)]);
    let of_redis = ["hit", "miss"].map(|result| b.metric("gatewright_cache_redis_total", &[("result", result)]));
    assert_eq!(looked("redis"), of_redis.iter().sum::<f64>());
    eventually("a look-up in memory is timed", SOON, || {
        status(&b, "/c/x/10");
        looked("memory") >= 1.0
    });
}

#[test]
fn queries_that_somebody_invents_do_not_fill_redis() {
    let (origin, redis) = (origin(), Redis::start());
    let gateway = Gateway::start(&config(&origin, &redis.config()));
    connected(&gateway);
    status(&gateway, "/c/x/10?n=1");
    stored(&gateway, 1.0);
    let over = |script: &str| redis.ask(&format!("EVAL \"local k = redis.call('keys', '*:cache:u:*')[1]; {script}\" 0")).unwrap();
    // As if that had gone on for as long as there is room.
    over("for n = 1, 4090 do redis.call('hset', k, n, '') end");
    status(&gateway, "/c/x/10?n=2");
    stored(&gateway, 2.0);
    assert_eq!(over("return redis.call('hlen', k)"), ":4094");
    for n in 3..=4 {
        status(&gateway, &format!("/c/x/10?n={n}"));
        stored(&gateway, f64::from(n));
    }
    eventually("all of it is gone", SOON, || over("return k or 'nothing'") == "$7");
    assert!(status(&gateway, "/c/x/10?n=1").contains("; hit"), "what is in memory stays");
}

#[test]
fn purges_and_unsafe_requests_reach_every_gateway() {
    let (origin, redis) = (origin(), Redis::start());
    let config = config(&origin, &redis.config());
    let (a, b) = two(&config);
    let mut count = 0.0;
    for arguments in
        [["--url", "http://localhost/c/x/10"], ["--tag", "all"], ["--prefix", "http://localhost/c/"], ["--route", "c"]]
    {
        status(&a, "/c/x/10");
        count += 1.0;
        stored(&a, count);
        status(&b, "/c/x/10");
        let ended = support::gateway::run(&[&["purge", "--admin", &a.admin.argument()], &arguments[..]].concat());
        assert!(ended.stdout.contains("2 of 2 gateways"), "{arguments:?}: {}{}", ended.stdout, ended.stderr);
        let after = status(&b, "/c/x/10");
        assert!(after.contains("fwd=uri-miss"), "{arguments:?}: {after}");
        stored(&b, count);
        support::gateway::run(&["purge", "--all", "--admin", &b.admin.argument()]);
    }
    status(&a, "/c/y/10");
    status(&b, "/c/y/10");
    raw::send(a.address("http"), "POST", "/c/y/10", &[], b"change");
    eventually("the other one has heard", SOON, || {
        let status = status(&b, "/c/y/10");
        !status.contains("; hit") && !status.contains("redis")
    });
}

#[test]
fn a_soft_purge_leaves_every_gateway_what_it_has() {
    let (origin, redis) = (origin(), Redis::start());
    let config = config(&origin, &redis.config());
    let (a, b) = two(&config);
    for (round, arguments) in [(1.0, ["--url", "http://localhost/c/x/10"]), (2.0, ["--tag", "all"])] {
        status(&a, "/c/x/10");
        stored(&a, round * 2.0 - 1.0);
        assert!(!status(&b, "/c/x/10").contains("fwd"), "it has what is shared");
        let ended = support::gateway::run(&[&["purge", "--soft", "--admin", &a.admin.argument()], &arguments[..]].concat());
        assert!(ended.stdout.contains("2 of 2 gateways"), "{arguments:?}: {}{}", ended.stdout, ended.stderr);
        for gateway in [&b, &a] {
            let after = status(gateway, "/c/x/10");
            assert!(after.contains("fwd=stale"), "{arguments:?}: {after}");
        }
        // What both have fetched anew is in Redis before the next round begins with nothing.
        stored(&a, round * 2.0);
        stored(&b, round);
        support::gateway::run(&["purge", "--all", "--admin", &b.admin.argument()]);
    }
}

#[test]
fn a_purge_without_redis_says_that_it_may_not_have_reached_all() {
    let (origin, mut redis) = (origin(), Redis::start());
    let a = Gateway::start(&config(&origin, &redis.config()));
    connected(&a);
    status(&a, "/c/x/10");
    redis.kill();
    let ended = support::gateway::run(&["purge", "--admin", &a.admin.argument(), "--url", "http://localhost/c/x/10"]);
    assert!(ended.stdout.starts_with("purged 1 answers here; 1 of 2 gateways"), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("have not said that they are done"), "{}", ended.stderr);
    assert!(status(&a, "/c/x/10").contains("fwd=uri-miss"), "here it is gone");
}

#[test]
fn a_purge_counts_the_gateways_that_have_heard_of_it_and_not_done_it() {
    let (origin, redis) = (origin(), Redis::start());
    let config = config(&origin, &redis.config());
    let (a, b) = two(&config);
    status(&a, "/c/x/10");
    stored(&a, 1.0);
    assert!(!status(&b, "/c/x/10").contains("fwd"), "it has what is shared");
    // Redis is up and the other one is still its subscriber, but does nothing for now.
    b.signal(Signal::SIGSTOP);
    let ended = support::gateway::run(&["purge", "--admin", &a.admin.argument(), "--url", "http://localhost/c/x/10"]);
    b.signal(Signal::SIGCONT);
    assert!(ended.stdout.contains("1 of 2 gateways"), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("have not said that they are done"), "{}", ended.stderr);
    eventually("it does it once it can", SOON, || status(&b, "/c/x/10").contains("fwd=uri-miss"));
}

#[test]
fn what_changes_while_redis_is_away_is_not_there_as_it_was_when_it_is_back() {
    let (origin, redis) = (origin(), Redis::start());
    let config = config(&origin, &redis.config());
    let (a, b) = two(&config);
    status(&a, "/c/x/10");
    stored(&a, 1.0);
    let generation = || redis.ask("GET gatewright:cache:{gatewright}:generation").unwrap();
    let before = generation();
    redis.freeze();
    assert_eq!(raw::send(a.http(), "POST", "/c/x/10", &[], b"").status, 200);
    eventually("it is known to be away", SOON, || a.stderr().contains("Redis is away"));
    redis.thaw();
    // Nobody knows what of it was done: nothing that was stored before counts.
    eventually("another generation", SOON, || generation() != before);
    let after = status(&b, "/c/x/10");
    assert!(after.contains("fwd=uri-miss"), "{after}");
}

#[test]
fn whatever_happens_to_redis_is_only_a_miss() {
    let (origin, mut redis) = (origin(), Redis::start());
    let config = config(&origin, &redis.config()).replace("\"1s\"", "\"500ms\"");
    let (a, b) = two(&config);
    let mut next = 0;
    let mut fill = |count: usize| {
        let targets: Vec<String> = (0..count).map(|n| format!("/c/{}/{}", next + n, 100 + n * 5_000)).collect();
        next += count;
        targets.iter().for_each(|target| drop(status(&a, target)));
        targets
    };
    // Bytes that are not what they were.
    let targets = fill(20);
    stored(&a, 20.0);
    let flip = "local n=0 for _,k in ipairs(redis.call('keys','*:u:*')) do for _,f in ipairs(redis.call('hkeys',k)) do \
                if string.sub(f,1,2)~='v:' then local v=redis.call('hget',k,f) local i=math.random(#v) \
                redis.call('hset',k,f,string.sub(v,1,i-1)..string.char(bit.bxor(string.byte(v,i),1))..string.sub(v,i+1)) n=n+1 end end end return n";
    let flipped = redis.ask(&format!("EVAL \"{flip}\" 0")).unwrap();
    assert_ne!(flipped, ":0");
    for target in &targets {
        let status = status(&b, target);
        assert!(!status.contains("redis"), "{target}: {status}");
    }
    assert!(b.metric("gatewright_cache_redis_total", &[("result", "corrupt")]) >= 15.0);
    // Everything is gone.
    let targets = fill(5);
    redis.ask("FLUSHALL").unwrap();
    targets.iter().for_each(|target| drop(status(&b, target)));
    // It does not answer.
    let targets = fill(5);
    redis.freeze();
    for target in &targets {
        let begun = std::time::Instant::now();
        status(&b, target);
        // Half a second for Redis, and what a busy machine takes.
        assert!(begun.elapsed() < Duration::from_secs(6), "{target}: {:?}", begun.elapsed());
    }
    redis.thaw();
    // It is not there, and comes back.
    let targets = fill(5);
    redis.kill();
    targets.iter().for_each(|target| drop(status(&b, target)));
    fill(3);
    let shared = |gateway: &Gateway| gateway.stderr().matches("the cache is shared").count();
    let away = |gateway: &Gateway| {
        let text = gateway.stderr();
        let last = |what: &str| text.rfind(what).unwrap_or(0);
        last("Redis is away") > last("the cache is shared")
    };
    // They were back from the frozen one too.
    eventually("both have noticed", SOON, || away(&a) && away(&b));
    let before = (shared(&a), shared(&b));
    redis.restart();
    eventually("both are back", SOON, || shared(&a) > before.0 && shared(&b) > before.1);
    let before = a.metric("gatewright_cache_redis_total", &[("result", "stored")]);
    let targets = fill(1);
    stored(&a, before + 1.0);
    eventually("it is shared again", SOON, || {
        targets.iter().all(|target| {
            let status = status(&b, target);
            status.contains("redis") || status.contains("; hit")
        })
    });
}

#[test]
fn who_wants_validation_does_not_get_what_is_shared_unvalidated() {
    let (origin, redis) = (origin(), Redis::start());
    let config = config(&origin, &redis.config());
    let (a, b) = two(&config);
    let under_way = |count: f64| {
        eventually("the request is under way", SOON, || {
            b.metric("gatewright_http_requests_in_flight", &[("route", "c")]) >= count
        });
    };
    // On a busy machine a round can take longer than requests wait for Redis; then it shows nothing.
    for round in 1..20 {
        let target = format!("/c/{round}/10");
        status(&a, &target);
        stored(&a, f64::from(round));
        let before = origin.count();
        let address = b.http();
        redis.freeze();
        let path = target.clone();
        let plain = std::thread::spawn(move || raw::get(address, &path));
        under_way(1.0);
        let asker = std::thread::spawn(move || raw::send(address, "GET", &target, &[("cache-control", "no-cache")], b""));
        under_way(2.0);
        redis.thaw();
        let said = |answer: support::http1::Response| answer.header("cache-status").unwrap().to_owned();
        let (plain, asked) = (said(plain.join().unwrap()), said(asker.join().unwrap()));
        assert!(!asked.contains("redis") && origin.count() > before, "{asked}");
        if plain.contains("redis") {
            return;
        }
    }
    panic!("Redis was never in time");
}
