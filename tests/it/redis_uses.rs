//! What else is in Redis besides limits (consumers, the cache's second tier, endpoints), behind sentinels and in a cluster.

use crate::cache_redis::{self, connected, stored};
use crate::discovery::{becomes_origins, discovering};
use crate::issued::{self, ask, id, issue, key};
use crate::redis_topologies::documented_user;
use crate::signed;
use crate::support::gateway::run;
use crate::support::raw::get;
use crate::support::redis::{Redis, User};
use crate::support::redis_many::{Cluster, Sentinels, replicated};
use crate::support::{Gateway, Origin, SOON, eventually, exclusive};
use std::time::{Duration, Instant, SystemTime};

/// Long enough for a failover on a loaded machine.
const FAILOVER: Duration = Duration::from_secs(30);

// ---- consumers

fn source_is_up(gateway: &Gateway, up: f64) {
    eventually("the source comes or goes", FAILOVER, || gateway.metric("gatewright_consumer_source_up", &[]) == up);
}

#[test]
fn keys_behind_sentinels_outlive_a_failover() {
    let _alone = exclusive();
    let (mut redis, origin) = (Sentinels::start(), Origin::start("a"));
    // So long that only Redis can be what tells of a change.
    let gateway = issued::start(&issued::toml(&redis.config(), &origin, "fresh = \"1h\"\nstale = \"1h\""));
    let (known, unasked) = (issue(&gateway, &["acme"]), issue(&gateway, &["acme"]));
    assert_eq!(ask(&gateway, "/key/x", &known).0, 200);
    replicated(redis.master());
    redis.master().freeze();
    source_is_up(&gateway, 0.0);
    assert_eq!(ask(&gateway, "/key/x", &known).0, 200, "what is known goes on");
    assert_eq!(ask(&gateway, "/key/x", &unasked), (503, "credentials_unavailable".into()));
    redis.fail_over();
    source_is_up(&gateway, 1.0);
    for key in [&known, &unasked] {
        assert_eq!(ask(&gateway, "/key/x", key).0, 200, "the replica had them");
    }
    let revoked = key(&gateway, &["revoke", &id(&known)]);
    assert_eq!(revoked.code, Some(0), "{}", revoked.stderr);
    eventually("the new master tells of what changes", SOON, || ask(&gateway, "/key/x", &known).0 == 401);
    let fresh = issue(&gateway, &["acme"]);
    assert_eq!(ask(&gateway, "/key/x", &fresh).0, 200);
}

#[test]
fn users_with_no_more_rights_than_the_documentation_says_are_enough() {
    let origin = Origin::start("a");
    let (redis, place) = documented_user("consumers", "~gatewright:* +set +del +scan");
    let gateway = issued::start(&issued::toml(&place, &origin, "prefix = \"gatewright\"\nfresh = \"1h\""));
    let issued = issue(&gateway, &["partner", "--role", "partner"]);
    // What only `gatewright key` needs is taken away again; the gateway alone reads on.
    redis.ask("ACL SETUSER consumers resetkeys %R~gatewright:* -set -del -scan").unwrap();
    assert_eq!(ask(&gateway, "/key/x", &issued).0, 200);
    redis.ask("FLUSHALL").unwrap();
    eventually("it is told of changes", SOON, || ask(&gateway, "/key/x", &issued).0 == 401);
    assert!(!gateway.stderr().contains("is away"), "{}", gateway.stderr());

    let (_redis, place) = documented_user("signatures", "");
    signed::count_once(&signed::sharing(&origin, &place, "closed"), "rights");

    let cached = cache_redis::origin();
    let (_redis, place) = documented_user("cache", "");
    let text = cache_redis::config(&cached, &place);
    let (a, b) = (Gateway::start(&text), Gateway::start(&text));
    connected(&a);
    connected(&b);
    is_shared(&a, &b, &targets("rights", 3));

    let (redis, place) = documented_user("endpoints", "resetkeys %R~app:endpoints");
    add(&redis, &origin);
    let gateway = Gateway::start(&discovering(DISCOVER, &place));
    becomes_origins(&gateway, &[&origin]);
}

/// Where a key is in Redis.
fn place(key: &str) -> String {
    format!("t:key:{}", issued::hash(key))
}

/// Four keys for each master.
fn keys_of_each(cluster: &Cluster, gateway: &Gateway) -> Vec<(usize, Vec<String>)> {
    let mut groups: Vec<(usize, Vec<String>)> = Vec::new();
    while groups.len() < 3 || groups.iter().any(|(_, keys)| keys.len() < 4) {
        let key = issue(gateway, &["acme"]);
        let master = cluster.master_of_key(&place(&key));
        match groups.iter_mut().find(|(known, _)| *known == master) {
            Some((_, keys)) => keys.push(key),
            None => groups.push((master, vec![key])),
        }
    }
    groups
}

#[test]
fn keys_in_a_cluster_are_revoked_at_once_and_a_lost_master_takes_only_its_own() {
    let _alone = exclusive();
    // `gatewright key` logs in as the same user.
    let user = User::documented("consumers", "resetkeys ~t:* +set +del +scan");
    let (mut cluster, origin) = (Cluster::start_as(Some(user)), Origin::start("a"));
    let gateway = issued::start(&issued::toml(&cluster.config(), &origin, "fresh = \"1h\"\nstale = \"1h\""));
    let groups = keys_of_each(&cluster, &gateway);
    let listed = key(&gateway, &["list"]).stdout;
    for (_, keys) in &groups {
        // The fourth and later ones are not asked for yet.
        for key in keys {
            assert!(listed.contains(&id(key)[..8]), "{listed}");
        }
        keys[..3].iter().for_each(|key| assert_eq!(ask(&gateway, "/key/x", key).0, 200));
    }
    let asked = gateway.metric("gatewright_consumer_source_asked_total", &[]);
    for (_, keys) in &groups {
        keys[..3].iter().for_each(|key| assert_eq!(ask(&gateway, "/key/x", key).0, 200));
    }
    assert_eq!(gateway.metric("gatewright_consumer_source_asked_total", &[]), asked, "what is known is not asked for again");
    for (master, keys) in &groups {
        assert_eq!(key(&gateway, &["revoke", &id(&keys[0])]).code, Some(0));
        eventually(&format!("server {master} tells of what changes"), SOON, || ask(&gateway, "/key/x", &keys[0]).0 == 401);
    }
    a_moved_slot_is_followed(&cluster, &gateway, &groups);

    let (lost, keys) = &groups[0];
    let (_, others) = &groups[2];
    cluster.servers.iter().enumerate().filter(|(at, _)| groups.iter().any(|(master, _)| master == at)).for_each(|(_, master)| {
        replicated(master);
    });
    cluster.servers[*lost].kill();
    source_is_up(&gateway, 0.0);
    assert_eq!(ask(&gateway, "/key/x", &keys[2]).0, 200, "what is known goes on");
    assert_eq!(ask(&gateway, "/key/x", &keys[3]), (503, "credentials_unavailable".into()), "what is not known does not pass");
    assert_eq!((ask(&gateway, "/key/x", &others[2]).0, ask(&gateway, "/key/x", &others[3]).0), (200, 200), "others' keys");
    let slot = cluster.slot(&place(&keys[2]));
    eventually("another master", FAILOVER, || cluster.master_of(slot) != *lost);
    cluster.servers[*lost].restart();
    cluster.settled();
    source_is_up(&gateway, 1.0);
    assert_eq!((ask(&gateway, "/key/x", &keys[2]).0, ask(&gateway, "/key/x", &keys[3]).0), (200, 200), "its replica had them");
    let revoked = key(&gateway, &["revoke", &id(&keys[2])]);
    assert_eq!(revoked.code, Some(0), "{}", revoked.stderr);
    eventually("the new master tells of what changes", SOON, || ask(&gateway, "/key/x", &keys[2]).0 == 401);
}

/// Whoever has a slot after it has moved tells of what changes in it.
fn a_moved_slot_is_followed(cluster: &Cluster, gateway: &Gateway, groups: &[(usize, Vec<String>)]) {
    let [_, (from, keys), (to, _)] = groups else { panic!("{groups:?}") };
    let key = &keys[1];
    let name = place(key);
    let slot = cluster.slot(&name);
    cluster.begin_move(slot, *from, *to);
    cluster.move_key(&name, *from, *to);
    assert_eq!(ask(gateway, "/key/x", key).0, 200, "a key that has gone ahead");
    cluster.end_move(slot, *from, *to);
    assert_eq!(ask(gateway, "/key/x", key).0, 200, "a slot that has moved");
    // It may be asked for until the gateway knows that the slot has moved, and not afterwards.
    eventually("it is known again", SOON, || {
        let asked = gateway.metric("gatewright_consumer_source_asked_total", &[]);
        ask(gateway, "/key/x", key).0 == 200 && gateway.metric("gatewright_consumer_source_asked_total", &[]) == asked
    });
    assert_eq!(crate::issued::key(gateway, &["revoke", &id(key)]).code, Some(0));
    eventually("who has the slot now tells of what changes", SOON, || ask(gateway, "/key/x", key).0 == 401);
}

// ---- the second tier of the cache

fn purge(gateway: &Gateway, arguments: &[&str]) -> String {
    run(&[&["purge", "--admin", &gateway.admin.argument()], arguments].concat()).stdout
}

/// How often a gateway has found all of Redis.
fn shared(gateway: &Gateway) -> usize {
    gateway.stderr().matches("the cache is shared").count()
}

/// Waits until both gateways know the masters as they are now. A server that has come back may tell of its old slots for a moment,
/// and what is stored in that moment is lost: it is over once a whole round of answers has come to Redis, and a purge to both.
fn know_the_masters(a: &Gateway, b: &Gateway, of: &str) {
    let stored = |gateway: &Gateway| gateway.metric("gatewright_cache_redis_total", &[("result", "stored")]);
    let mut round = 0;
    eventually("both know the masters", FAILOVER, || {
        round += 1;
        let all_come = |gateway: &Gateway, name: &str| {
            let before = stored(gateway);
            let probes = targets(&format!("{of}-{name}-{round}"), 30);
            probes.iter().for_each(|target| drop(cache_redis::status(gateway, target)));
            let patience = Instant::now() + Duration::from_secs(2);
            while stored(gateway) < before + probes.len() as f64 {
                if Instant::now() > patience {
                    return false;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            true
        };
        all_come(a, "a") && all_come(b, "b") && purge(a, &["--tag", "all"]).contains("2 of 2 gateways")
    });
}

/// What `a` fetches `b` has from Redis, until both forget it.
fn is_shared(a: &Gateway, b: &Gateway, targets: &[String]) {
    let before = a.metric("gatewright_cache_redis_total", &[("result", "stored")]);
    for target in targets {
        assert!(cache_redis::status(a, target).contains("fwd=uri-miss"), "{target}");
    }
    stored(a, before + targets.len() as f64);
    for target in targets {
        let status = cache_redis::status(b, target);
        assert!(status.contains("detail=redis"), "{target}: {status}");
    }
    // One by one, and by something that concerns all of them.
    let url = format!("http://localhost{}", targets[0]);
    for (arguments, gone) in [(vec!["--url", &url], &targets[..1]), (vec!["--tag", "all"], &targets[1..])] {
        let said = purge(a, &arguments);
        assert!(said.contains("2 of 2 gateways"), "{arguments:?}: {said}");
        for target in gone {
            let status = cache_redis::status(b, target);
            assert!(status.contains("fwd=uri-miss"), "{arguments:?} {target}: {status}");
        }
    }
    assert!(purge(b, &["--all"]).contains("2 of 2 gateways"));
}

fn targets(of: &str, count: usize) -> Vec<String> {
    // Some in several pieces.
    (0..count).map(|n| format!("/c/{of}-{n}/{}", if n % 7 == 0 { 600_000 } else { 100 + n })).collect()
}

#[test]
fn a_cache_behind_sentinels_is_shared_and_purged_before_and_after_a_failover() {
    let _alone = exclusive();
    let (mut redis, origin) = (Sentinels::start(), cache_redis::origin());
    let text = cache_redis::config(&origin, &redis.config());
    let (a, b) = (Gateway::start(&text), Gateway::start(&text));
    connected(&a);
    connected(&b);
    is_shared(&a, &b, &targets("before", 5));
    redis.master().freeze();
    for target in targets("without", 10) {
        cache_redis::status(&a, &target);
        cache_redis::status(&b, &target);
    }
    redis.fail_over();
    eventually("both have found the new master", FAILOVER, || shared(&a) >= 2 && shared(&b) >= 2);
    know_the_masters(&a, &b, "found");
    is_shared(&a, &b, &targets("after", 5));
}

#[test]
fn a_cache_in_a_cluster_is_shared_and_purged_and_a_lost_master_is_only_a_miss() {
    let _alone = exclusive();
    let (mut cluster, origin) = (Cluster::start_as(Some(User::documented("cache", ""))), cache_redis::origin());
    let text = cache_redis::config(&origin, &cluster.config());
    let (a, b) = (Gateway::start(&text), Gateway::start(&text));
    connected(&a);
    connected(&b);
    is_shared(&a, &b, &targets("whole", 30));
    let counters = cluster.master_of_key("gatewright:cache:{gatewright}:sequence");
    let masters: Vec<usize> = [0, 6_000, 12_000].map(|slot| cluster.master_of(slot)).to_vec();
    let keys = |server: usize| redis::cmd("DBSIZE").query::<usize>(&mut cluster.servers[server].connection()).unwrap();
    assert!(masters.iter().all(|master| keys(*master) >= 5), "what is stored is spread");

    // Another master than that of the counters is away: only what it has is missed.
    let lost = masters.iter().copied().find(|master| *master != counters).unwrap();
    let slot = [0, 6_000, 12_000].into_iter().find(|slot| cluster.master_of(*slot) == lost).unwrap();
    cluster.servers[lost].freeze();
    let fetched = targets("partly", 30);
    fetched.iter().for_each(|target| drop(cache_redis::status(&a, target)));
    let mut from_redis = 0;
    eventually("the keys of the other masters are shared", SOON, || {
        from_redis += fetched.iter().filter(|target| cache_redis::status(&b, target).contains("detail=redis")).count();
        from_redis > 0
    });
    let said = purge(&a, &["--tag", "all"]);
    assert!(said.contains("2 of 2 gateways"), "{said}");
    assert!(cache_redis::status(&b, &fetched[1]).contains("fwd=uri-miss"));
    cluster.servers[lost].kill();
    eventually("another master", FAILOVER, || cluster.master_of(slot) != lost);
    cluster.servers[lost].restart();
    cluster.settled();
    eventually("it is whole again", FAILOVER, || shared(&a) >= 2 && shared(&b) >= 2);
    know_the_masters(&a, &b, "back");
    is_shared(&a, &b, &targets("again", 30));

    // The master of the counters: nothing is shared and nothing fails, and a purge is not said to be done unless it is.
    let counters = cluster.master_of_key("gatewright:cache:{gatewright}:sequence");
    let stored = targets("uncounted", 10);
    stored.iter().for_each(|target| drop((cache_redis::status(&a, target), cache_redis::status(&b, target))));
    let before = (shared(&a), shared(&b));
    cluster.servers[counters].freeze();
    targets("nowhere", 5).iter().for_each(|target| drop(cache_redis::status(&a, target)));
    let said = purge(&a, &["--tag", "all"]);
    cluster.servers[counters].kill();
    eventually("another master", FAILOVER, || cluster.master_of_key("gatewright:cache:{gatewright}:sequence") != counters);
    cluster.servers[counters].restart();
    cluster.settled();
    eventually("it is whole again", FAILOVER, || shared(&a) > before.0 && shared(&b) > before.1);
    // Without the counters this gateway alone has done it. If another master came in time, everybody has, or will have forgotten.
    for target in stored.iter().filter(|_| !said.contains("1 of 2 gateways")) {
        let status = cache_redis::status(&b, target);
        assert!(status.contains("fwd=uri-miss"), "{said}: {target}: {status}");
    }
    purge(&a, &["--all"]);
    know_the_masters(&a, &b, "counted");
    is_shared(&a, &b, &targets("at-last", 10));
}

// ---- endpoints

fn adding(origin: &Origin) -> redis::Cmd {
    let lapses = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 3_600;
    let mut command = redis::cmd("ZADD");
    command.arg("app:endpoints").arg(lapses).arg(origin.address().to_string());
    command
}

fn add(redis: &Redis, origin: &Origin) {
    adding(origin).exec(&mut redis.connection()).unwrap();
}

const DISCOVER: &str = "redis = { key = \"app:endpoints\", interval = \"100ms\" }, debounce = \"0s\"";

#[test]
fn a_set_of_endpoints_behind_sentinels_is_read_before_and_after_a_failover() {
    let _alone = exclusive();
    let origins = Origin::start_many(3);
    let mut redis = Sentinels::start();
    add(redis.master(), &origins[0]);
    let gateway = Gateway::start(&discovering(DISCOVER, &redis.config()));
    becomes_origins(&gateway, &[&origins[0]]);
    add(redis.master(), &origins[1]);
    becomes_origins(&gateway, &[&origins[0], &origins[1]]);
    replicated(redis.master());
    redis.master().freeze();
    assert!(get(gateway.http(), "/").status == 200, "what was found stays in use");
    redis.fail_over();
    add(redis.master(), &origins[2]);
    becomes_origins(&gateway, &[&origins[0], &origins[1], &origins[2]]);
}

#[test]
fn a_set_of_endpoints_in_a_cluster_is_found_wherever_its_slot_is() {
    let _alone = exclusive();
    let origins = Origin::start_many(4);
    let mut cluster = Cluster::start_as(Some(User::documented("endpoints", "resetkeys %R~app:endpoints")));
    let at = cluster.master_of_key("app:endpoints");
    add(&cluster.servers[at], &origins[0]);
    let gateway = Gateway::start(&discovering(DISCOVER, &cluster.config()));
    becomes_origins(&gateway, &[&origins[0]]);
    // Its slot moves.
    let slot = cluster.slot("app:endpoints");
    let to = [0, 6_000, 12_000].map(|slot| cluster.master_of(slot)).into_iter().find(|master| *master != at).unwrap();
    cluster.begin_move(slot, at, to);
    cluster.move_key("app:endpoints", at, to);
    let mut ahead = redis::pipe();
    ahead.cmd("ASKING").ignore().add_command(adding(&origins[1])).ignore();
    ahead.exec(&mut cluster.servers[to].connection()).unwrap();
    becomes_origins(&gateway, &[&origins[0], &origins[1]]);
    cluster.end_move(slot, at, to);
    add(&cluster.servers[to], &origins[2]);
    becomes_origins(&gateway, &[&origins[0], &origins[1], &origins[2]]);
    // Its master dies.
    replicated(&cluster.servers[to]);
    cluster.servers[to].kill();
    eventually("another master", FAILOVER, || cluster.master_of(slot) != to);
    let at = cluster.master_of(slot);
    add(&cluster.servers[at], &origins[3]);
    becomes_origins(&gateway, &[&origins[0], &origins[1], &origins[2], &origins[3]]);
}
