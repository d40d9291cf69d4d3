//! Redis as operators have it: behind TLS, with a user of few rights, under sentinels, as a cluster whose slots move.

use crate::support::raw::{Client, request, reserved_port};
use crate::support::redis::{Redis, User};
use crate::support::redis_many::{Cluster, Sentinels};
use crate::support::tls::Authority;
use crate::support::{Gateway, SOON, eventually, exclusive, full, record, spread};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A limit that Redis is asked about with every request, and one by leases.
pub const PATHS: [&str; 2] = ["/a", "/leased"];
/// The longest that a request waits for Redis, as nothing else is configured here.
const TIMEOUT: Duration = Duration::from_millis(20);
/// What one gateway may have of each key on leases.
const LEASE: usize = 4;

fn config(redis: &str, on_error: &str) -> String {
    let route = |path: &str, more: &str| {
        format!(
            "[routes.{}]\nmatch = {{ path = \"{path}\" }}\nfilters = [{{ rate_limit = {{ by = 'header:x-key', limits = \
             [{{ rate = '50/1h' }}, {{ quota = '1000/1mo' }}], store = 'redis', on_error = '{on_error}'{more} }} }}, {{ respond = {{ body = \"hello\" }} }}]\n",
            &path[1..]
        )
    };
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nkeepalive_requests = 0\n";
    let [asked, leased] = PATHS;
    format!("{redis}\n{listener}{}{}", route(asked, ""), route(leased, &format!(", lease = {LEASE}")))
}

fn up(gateway: &Gateway) {
    eventually("redis is up", Duration::from_secs(30), || gateway.metric("gatewright_redis_up", &[]) == 1.0);
}

#[track_caller]
fn keyed(client: &mut Client, path: &str, key: &str) -> u16 {
    client.exchange(request("GET", path, &[("x-key", key)], b"")).unwrap_or_else(|broken| panic!("{broken}")).status
}

#[track_caller]
fn admitted(client: &mut Client, path: &str, key: &str, count: usize) -> usize {
    let statuses: Vec<u16> = (0..count).map(|_| keyed(client, path, key)).collect();
    assert!(statuses.iter().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
    statuses.iter().filter(|status| **status == 200).count()
}

/// A Redis with the user that the documentation makes for one use, and its URL.
pub fn documented_user(name: &str, more: &str) -> (Redis, String) {
    let user = User::documented(name, more);
    let redis = Redis::start_with_user(&user);
    let place = format!("[redis]\nurl = \"{}\"\n", user.at(&redis));
    (redis, place)
}

#[test]
fn a_user_with_no_more_rights_than_the_documentation_says_is_enough() {
    let (_redis, place) = documented_user("limits", "");
    let gateway = Gateway::start(&config(&format!("{place}timeout = \"1s\""), "closed"));
    up(&gateway);
    for path in PATHS {
        assert_eq!(admitted(&mut Client::connect(gateway.http()), path, "k", 60), 50, "{path}");
    }
    assert!(!gateway.stderr().contains(User::PASSWORD));
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
    let (address, _reserved) = reserved_port();
    let port = address.port();
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
    assert_eq!(admitted(&mut Client::connect(gateway.http()), "/a", "k", 60), 50);
    // Whom nobody has vouched for is not talked to, and whoever has no certificate is not let in.
    for partly in [own.as_str(), ca.as_str()] {
        let gateway = Gateway::start(&config(&redis(partly), "closed"));
        eventually("it is refused", SOON, || gateway.stderr().contains("Redis is away"));
        assert_eq!(gateway.metric("gatewright_redis_up", &[]), 0.0);
    }
}

#[test]
fn gateways_of_a_cluster_count_together() {
    let cluster = Cluster::start_as(Some(User::documented("limits", "")));
    let text = config(&format!("{}timeout = \"1s\"", cluster.config()), "closed");
    let gateways = [Gateway::start(&text), Gateway::start(&text)];
    gateways.iter().for_each(up);
    let mut clients: Vec<Client> = gateways.iter().map(|gateway| Client::connect(gateway.http())).collect();
    for key in 0..12 {
        let key = format!("k{key}");
        let [asked, leased] = PATHS.map(|path| (0..6).map(|n| admitted(&mut clients[n % 2], path, &key, 10)).sum());
        assert_eq!(asked, 50, "{key}");
        // What one of them holds the other cannot spend.
        assert!((50 - 2 * LEASE..=50).contains(&leased), "{key}: {leased}");
    }
    let keys = |server: &Redis| redis::cmd("DBSIZE").query::<usize>(&mut server.connection()).unwrap();
    // Replicas follow when they get to it.
    eventually("keys on all masters, and on their replicas", SOON, || cluster.servers.iter().all(|server| keys(server) > 0));
    for path in PATHS {
        moved_slots_are_followed(&cluster, &mut clients, path);
    }
    a_refused_asking_is_told(&cluster, &gateways[0]);
}

/// A key of a limit on its way from one master to another.
struct Move<'a> {
    cluster: &'a Cluster,
    name: String,
    slot: u16,
    from: usize,
    to: usize,
}

impl<'a> Move<'a> {
    fn of(cluster: &'a Cluster, key: &str) -> Self {
        let masters = || (0..6).filter(|server| is_master(&cluster.servers[*server]));
        let found = |server: usize| {
            let pattern = format!("*{key}*");
            let names: Vec<String> = redis::cmd("KEYS").arg(pattern).query(&mut cluster.servers[server].connection()).unwrap();
            Some((server, names.into_iter().next()?))
        };
        let (from, name) = masters().find_map(found).unwrap();
        let to = masters().find(|server| *server != from).unwrap();
        let slot = cluster.slot(&name);
        Move { cluster, name, slot, from, to }
    }

    fn begin(&self) {
        self.cluster.begin_move(self.slot, self.from, self.to);
    }

    fn key(&self) {
        self.cluster.move_key(&self.name, self.from, self.to);
    }

    fn end(&self) {
        self.cluster.end_move(self.slot, self.from, self.to);
    }
}

/// A slot moves while its key is counted: first the key is asked for where it is going (ASK), then the slot is (MOVED).
fn moved_slots_are_followed(cluster: &Cluster, clients: &mut [Client], path: &str) {
    let key = format!("moving-{}", &path[1..]);
    let mut admitted = |client: usize, count| admitted(&mut clients[client], path, &key, count);
    assert_eq!(admitted(0, 10), 10);
    let moving = Move::of(cluster, &key);
    moving.begin();
    assert_eq!(admitted(1, 10), 10, "a key that is still there");
    moving.key();
    assert_eq!(admitted(0, 10), 10, "a key that has gone ahead");
    moving.end();
    assert_eq!(admitted(0, 10), 10, "a slot that has moved");
    let last = admitted(1, 20);
    let stranded = if path == "/a" { 0 } else { 2 * LEASE };
    assert!((10 - stranded..=10).contains(&last), "{path}: nothing was forgotten on the way, but {last} were admitted");
}

/// With a user who may not send it, keys on their way are without Redis, and the log says why.
fn a_refused_asking_is_told(cluster: &Cluster, gateway: &Gateway) {
    let client = &mut Client::connect(gateway.http());
    assert_eq!(admitted(client, "/a", "refused", 1), 1);
    let told = || gateway.stderr().matches("to ASKING").count();
    assert_eq!(told(), 0, "{}", gateway.stderr());
    for server in &cluster.servers {
        assert_eq!(server.ask("ACL SETUSER limits -asking").unwrap(), "+OK");
    }
    let moving = Move::of(cluster, "refused");
    moving.begin();
    moving.key();
    let errors = gateway.metric("gatewright_redis_errors_total", &[]);
    for _ in 0..3 {
        assert_eq!(keyed(client, "/a", "refused"), 503);
    }
    // A question that went in circles would be refused at every turn.
    let errors = gateway.metric("gatewright_redis_errors_total", &[]) - errors;
    assert!((3.0..6.0).contains(&errors), "{errors}");
    eventually("it is told once", SOON, || told() == 1);
    moving.end();
    eventually("the key is where its slot is", SOON, || keyed(client, "/a", "refused") == 200);
    assert_eq!(told(), 1, "{}", gateway.stderr());
}

fn is_master(redis: &Redis) -> bool {
    let info: String = redis::cmd("INFO").arg("replication").query(&mut redis.connection()).unwrap();
    info.contains("role:master")
}

/// How often each thing befalls Redis: once, or `GATEWRIGHT_ROUNDS` times.
pub fn rounds(usually: usize) -> usize {
    std::env::var("GATEWRIGHT_ROUNDS").map_or(usually, |rounds| rounds.parse().unwrap())
}

/// How long requests took.
pub struct Times {
    /// That ended before anything had befallen Redis.
    pub before: Vec<Duration>,
    /// That began and ended while it was known to be away.
    pub away: Vec<Duration>,
    /// While it went, or came back.
    others: Vec<Duration>,
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times.get(times.len() * percent / 100).copied().unwrap_or_default()
}

impl Times {
    /// How much longer the slowest hundredth took while Redis was away than before anything had happened.
    fn added(&self) -> Duration {
        percentile(&self.away, 99).saturating_sub(percentile(&self.before, 99))
    }

    /// Whether requests waited for what was known to be away: then at least a third of them, as many as have their keys on one of three
    /// masters, took the timeout longer. How busy the machine is, it is so before and after.
    fn waited(&self) -> Option<(Duration, Duration)> {
        let [before, away] = [&self.before, &self.away].map(|times| percentile(times, 75));
        (away >= before + TIMEOUT * 3 / 4).then_some((before, away))
    }
}

/// Runs `faults` while four clients ask for many keys, half of them at each of [`PATHS`], after a stretch without any faults, and returns
/// how long they took. `faults` says when
/// Redis is known to be away. Any status but 200 and 429 is a failure.
pub fn under_load(gateway: &Gateway, faults: impl FnOnce(&AtomicBool, &dyn Fn(&str))) -> Times {
    let address = gateway.http();
    let (stop, away, total) = (AtomicBool::new(false), AtomicBool::new(false), AtomicUsize::new(0));
    let (begun, before) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let (slow, others) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (stop, away, total, slow, others) = (&stop, &away, &total, &slow, &others);
            let (begun, before) = (&begun, &before);
            scope.spawn(move || {
                let mut client = Client::connect(address);
                let mut n = 0_usize;
                while !stop.load(Ordering::SeqCst) {
                    n += 1;
                    let was_away = away.load(Ordering::SeqCst);
                    let since = Instant::now();
                    let status = keyed(&mut client, PATHS[n % 2], &format!("{thread}-{}", n % 50));
                    let took = since.elapsed();
                    if status != 200 && status != 429 {
                        stop.store(true, Ordering::SeqCst);
                        panic!("{status}");
                    }
                    if !begun.load(Ordering::SeqCst) {
                        before.lock().unwrap().push(took);
                    } else if was_away && away.load(Ordering::SeqCst) {
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
        for stretch in 1..=10 {
            progress(&format!("requests before anything happens, {stretch} of 10"));
        }
        begun.store(true, Ordering::SeqCst);
        faults(&away, &progress);
        stop.store(true, Ordering::SeqCst);
    });
    let [before, away, others] = [before, slow, others].map(|times| times.into_inner().unwrap());
    Times { before, away, others }
}

/// The limit holds again. An answer that is later than the gateway waits for counts twice, as documented.
fn after(gateway: &Gateway, key: &str) {
    for path in PATHS {
        let admitted = admitted(&mut Client::connect(gateway.http()), path, key, 100);
        assert!((40..=50).contains(&admitted), "{path}: {admitted}");
    }
}

/// What the results that are kept in benches/ are made of: `GATEWRIGHT_RESULTS=FILE cargo test --test it failover`. With
/// `GATEWRIGHT_FULL=1`, for a machine that does nothing else, the p99 while Redis is away is at most 5 ms above that before it first was.
pub fn told(what: &str, rounds: usize, times: Times) {
    assert!(times.before.len() >= 1_000, "{} requests are no base", times.before.len());
    assert_eq!(
        times.waited(),
        None,
        "{what}: requests waited for what was known to be away, the upper quarter of them before and then"
    );
    let added = times.added();
    assert!(!full() || added < Duration::from_millis(5), "{what}: {added:?} are added");
    let Times { before, away, others } = times;
    let all = [before, away, others];
    let [before, away, others] = all.each_ref().map(|times| spread(times));
    let result = serde_json::json!({
        "rounds": rounds, "answers_5xx": 0, "micros_before": before, "micros_while_away": away, "micros_of_others": others,
    });
    record(what, result);
    let [before, away, others] = all.map(|mut times| {
        times.sort();
        let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
        format!("{} requests, median {:?}, p99 {:?}", times.len(), at(50), at(99))
    });
    println!("{what}: {rounds} rounds, no 5xx; before: {before}; while it is known to be away: {away}; all others: {others}");
}

#[test]
fn what_an_outage_adds_is_told_from_before_it_and_not_from_its_start_and_end() {
    let millis = |all: &[u64]| all.iter().map(|each| Duration::from_millis(*each)).collect::<Vec<_>>();
    let times = Times { before: millis(&[1; 100]), away: millis(&[9; 100]), others: millis(&[250; 100]) };
    assert_eq!(times.added(), Duration::from_millis(8));
    assert_eq!(times.waited(), None);
}

#[test]
fn a_third_of_requests_that_wait_for_what_is_away_is_noticed() {
    let quick = vec![Duration::from_millis(2); 100];
    let mut away = quick.clone();
    away[..30].fill(Duration::from_millis(2) + TIMEOUT);
    let times = Times { before: quick, away, others: Vec::new() };
    assert_eq!(times.waited(), Some((Duration::from_millis(2), Duration::from_millis(22))));
}

#[test]
fn a_failover_of_sentinels_costs_nobody_an_error() {
    let _alone = exclusive();
    let users = ["limits", "sentinels"].map(|name| User::documented(name, ""));
    let mut redis = Sentinels::start_as(Some(users));
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
