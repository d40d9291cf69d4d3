//! Redis as operators have it: behind TLS, with a user of few rights, under sentinels, as a cluster whose slots move.

use crate::support::raw::{Client, request};
use crate::support::redis::{Redis, free_port};
use crate::support::redis_many::{Cluster, Sentinels};
use crate::support::tls::Authority;
use crate::support::{Gateway, SOON, eventually, exclusive};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn config(redis: &str, on_error: &str) -> String {
    format!(
        "{redis}\n[listeners.http]\naddress = \"127.0.0.1:0\"\nkeepalive_requests = 0\n[routes.a]\nmatch = {{ path = \"/a\" }}\nfilters = [{{ rate_limit = {{ by = 'header:x-key', limits = \
         [{{ rate = '50/1h' }}, {{ quota = '1000/1mo' }}], store = 'redis', on_error = '{on_error}' }} }}, {{ respond = {{ body = \"hello\" }} }}]\n"
    )
}

fn up(gateway: &Gateway) {
    eventually("redis is up", Duration::from_secs(30), || gateway.metric("gatewright_redis_up", &[]) == 1.0);
}

#[track_caller]
fn keyed(client: &mut Client, key: &str) -> u16 {
    client.exchange(request("GET", "/a", &[("x-key", key)], b"")).unwrap_or_else(|broken| panic!("{broken}")).status
}

fn admitted(client: &mut Client, key: &str, count: usize) -> usize {
    let statuses: Vec<u16> = (0..count).map(|_| keyed(client, key)).collect();
    assert!(statuses.iter().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
    statuses.iter().filter(|status| **status == 200).count()
}

/// A Redis with the user that the documentation makes for one use, and its URL.
pub fn documented_user(name: &str, more: &str) -> (Redis, String) {
    let documented = include_str!("../../docs/redis.md");
    let begin = format!("ACL SETUSER {name} on >PASSWORD ");
    let rights = documented.lines().find_map(|line| line.trim().strip_prefix(&begin)).expect("documented");
    let redis = Redis::start();
    let mut command = redis::cmd("ACL");
    let words: Vec<&str> = rights.split(' ').chain(more.split(' ').filter(|word| !word.is_empty())).collect();
    command.arg("SETUSER").arg(name).arg("on").arg(">hunter2").arg(words);
    command.exec(&mut redis.connection()).unwrap();
    let url = redis.url().replace("redis://", &format!("redis://{name}:hunter2@"));
    (redis, format!("[redis]\nurl = \"{url}\"\n"))
}

#[test]
fn a_user_with_no_more_rights_than_the_documentation_says_is_enough() {
    let (_redis, place) = documented_user("limits", "");
    let text = config(&format!("{place}timeout = \"1s\""), "closed").replace("on_error =", "lease = 4, on_error =");
    let gateway = Gateway::start(&text);
    up(&gateway);
    assert_eq!(admitted(&mut Client::connect(gateway.http()), "k", 60), 50);
    assert!(!gateway.stderr().contains("hunter2"));
}

#[test]
fn redis_is_verified_by_its_certificate_and_verifies_ours() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let server = authority.issue(&["127.0.0.1"]);
    let client = authority.client("gateway");
    for (name, text) in [
        ("ca.pem", authority.pem.clone()),
        ("server.pem", server.cert.clone()),
        ("server.key", server.key.clone()),
        ("client.pem", client.cert.clone()),
        ("client.key", client.key.clone()),
    ] {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let port = free_port().port();
    let _redis = Redis::start_with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &path("server.pem"),
        "--tls-key-file",
        &path("server.key"),
        "--tls-ca-cert-file",
        &path("ca.pem"),
        "--tls-auth-clients",
        "yes",
    ]);
    let redis = |more: &str| format!("[redis]\nurl = \"rediss://127.0.0.1:{port}\"\ntimeout = \"1s\"\n{more}");
    let ca = format!("ca = \"{}\"\n", path("ca.pem"));
    let own = format!("cert = \"{}\"\nkey = \"{}\"\n", path("client.pem"), path("client.key"));
    let gateway = Gateway::start(&config(&redis(&format!("{ca}{own}")), "closed"));
    up(&gateway);
    assert_eq!(admitted(&mut Client::connect(gateway.http()), "k", 60), 50);
    // Whom nobody has vouched for is not talked to, and whoever has no certificate is not let in.
    for partly in [own.as_str(), ca.as_str()] {
        let gateway = Gateway::start(&config(&redis(partly), "closed"));
        eventually("it is refused", SOON, || gateway.stderr().contains("Redis is away"));
        assert_eq!(gateway.metric("gatewright_redis_up", &[]), 0.0);
    }
}

#[test]
fn gateways_of_a_cluster_count_together() {
    let cluster = Cluster::start();
    let text = config(&format!("{}timeout = \"1s\"", cluster.config()), "closed");
    let gateways = [Gateway::start(&text), Gateway::start(&text)];
    gateways.iter().for_each(up);
    let mut clients: Vec<Client> = gateways.iter().map(|gateway| Client::connect(gateway.http())).collect();
    for key in 0..12 {
        let key = format!("k{key}");
        let total: usize = (0..6).map(|n| admitted(&mut clients[n % 2], &key, 10)).sum();
        assert_eq!(total, 50, "{key}");
    }
    let keys = |server: &Redis| redis::cmd("DBSIZE").query::<usize>(&mut server.connection()).unwrap();
    // Replicas follow when they get to it.
    eventually("keys on all masters, and on their replicas", SOON, || cluster.servers.iter().all(|server| keys(server) > 0));
    moved_slots_are_followed(&cluster, &mut clients);
}

/// A slot moves while its key is counted: first the key is asked for where it is going (ASK), then the slot is (MOVED).
fn moved_slots_are_followed(cluster: &Cluster, clients: &mut [Client]) {
    assert_eq!(admitted(&mut clients[0], "moving", 10), 10);
    let from =
        (0..6).find(|server| !keys(&cluster.servers[*server], "*moving*").is_empty() && is_master(&cluster.servers[*server]));
    let from = from.unwrap();
    let name = keys(&cluster.servers[from], "*moving*").remove(0);
    let slot = cluster.slot(&name);
    let to = (0..6).find(|server| *server != from && is_master(&cluster.servers[*server])).unwrap();
    cluster.begin_move(slot, from, to);
    assert_eq!(admitted(&mut clients[1], "moving", 10), 10, "a key that is still there");
    cluster.move_key(&name, from, to);
    assert_eq!(admitted(&mut clients[0], "moving", 10), 10, "a key that has gone ahead");
    cluster.end_move(slot, from, to);
    assert_eq!(admitted(&mut clients[0], "moving", 10), 10, "a slot that has moved");
    assert_eq!(admitted(&mut clients[1], "moving", 20), 10, "nothing was forgotten on the way");
}

fn keys(redis: &Redis, pattern: &str) -> Vec<String> {
    redis::cmd("KEYS").arg(pattern).query(&mut redis.connection()).unwrap()
}

fn is_master(redis: &Redis) -> bool {
    let info: String = redis::cmd("INFO").arg("replication").query(&mut redis.connection()).unwrap();
    info.contains("role:master")
}

/// How often each thing befalls Redis: once, or `GATEWRIGHT_ROUNDS` times.
pub fn rounds(usually: usize) -> usize {
    std::env::var("GATEWRIGHT_ROUNDS").map_or(usually, |rounds| rounds.parse().unwrap())
}

/// Runs `faults` while four clients ask for many keys, and returns how long those took that began and ended while
/// `faults` had said that Redis was known to be away, and how long the others took. Any status but 200 and 429 is a failure.
pub fn under_load(gateway: &Gateway, faults: impl FnOnce(&AtomicBool, &dyn Fn(&str))) -> [Vec<Duration>; 2] {
    let address = gateway.http();
    let (stop, away, total) = (AtomicBool::new(false), AtomicBool::new(false), AtomicUsize::new(0));
    let (slow, others) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (stop, away, total, slow, others) = (&stop, &away, &total, &slow, &others);
            scope.spawn(move || {
                let mut client = Client::connect(address);
                let mut n = 0_usize;
                while !stop.load(Ordering::SeqCst) {
                    n += 1;
                    let was_away = away.load(Ordering::SeqCst);
                    let begun = Instant::now();
                    let status = keyed(&mut client, &format!("{thread}-{}", n % 50));
                    let took = begun.elapsed();
                    if status != 200 && status != 429 {
                        stop.store(true, Ordering::SeqCst);
                        panic!("{status}");
                    }
                    if was_away && away.load(Ordering::SeqCst) {
                        slow.lock().unwrap().push(took);
                    } else {
                        others.lock().unwrap().push(took);
                    }
                    total.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        }
        let progress = |what: &str| {
            let before = total.load(Ordering::SeqCst);
            eventually(what, SOON, || stop.load(Ordering::SeqCst) || total.load(Ordering::SeqCst) > before + 100);
        };
        faults(&away, &progress);
        stop.store(true, Ordering::SeqCst);
    });
    [slow, others].map(|times| times.into_inner().unwrap())
}

/// The limit holds again. An answer that is later than the gateway waits for counts twice, as documented.
fn after(gateway: &Gateway, key: &str) {
    let admitted = admitted(&mut Client::connect(gateway.http()), key, 100);
    assert!((40..=50).contains(&admitted), "{admitted}");
}

/// One line for the results that are kept in benches/: `cargo test --test it failover -- --nocapture`.
pub fn told(what: &str, rounds: usize, times: [Vec<Duration>; 2]) {
    let [away, others] = times.map(|mut times| {
        times.sort();
        let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
        format!("{} requests, median {:?}, p99 {:?}", times.len(), at(50), at(99))
    });
    println!("{what}: {rounds} rounds, no 5xx; while it is known to be away: {away}; all others: {others}");
}

#[test]
fn a_failover_of_sentinels_costs_nobody_an_error() {
    let _alone = exclusive();
    let mut redis = Sentinels::start();
    let gateway = Gateway::start(&config(&redis.config(), "local"));
    up(&gateway);
    let rounds = rounds(1);
    let times = under_load(&gateway, |away, progress| {
        for _ in 0..rounds {
            redis.master().freeze();
            eventually("redis is down", SOON, || gateway.metric("gatewright_redis_up", &[]) == 0.0);
            away.store(true, Ordering::SeqCst);
            progress("requests without a master");
            away.store(false, Ordering::SeqCst);
            redis.fail_over();
            up(&gateway);
            progress("requests with another master");
        }
    });
    told("failover of sentinels", rounds, times);
    after(&gateway, "afterwards");
}

#[test]
fn a_failover_of_a_cluster_costs_nobody_an_error_and_other_keys_nothing() {
    let _alone = exclusive();
    let mut redis = Cluster::start();
    let gateway = Gateway::start(&config(&redis.config(), "local"));
    up(&gateway);
    let rounds = rounds(1);
    let times = under_load(&gateway, |away, progress| {
        for round in 0..rounds {
            let slot = u16::try_from(round * 6_000 % 16_384).unwrap();
            let master = redis.master_of(slot);
            redis.servers[master].kill();
            eventually("a node is down", SOON, || gateway.metric("gatewright_redis_up", &[]) == 0.0);
            away.store(true, Ordering::SeqCst);
            let before = gateway.metric("gatewright_redis_decisions_total", &[]);
            progress("requests without one master");
            assert!(gateway.metric("gatewright_redis_decisions_total", &[]) > before, "the other masters are asked no more");
            away.store(false, Ordering::SeqCst);
            eventually("another master", Duration::from_secs(30), || redis.master_of(slot) != master);
            redis.servers[master].restart();
            redis.settled();
            up(&gateway);
            progress("requests with another master");
        }
    });
    told("failover of a cluster", rounds, times);
    (0..4).for_each(|key| after(&gateway, &format!("afterwards{key}")));
}
