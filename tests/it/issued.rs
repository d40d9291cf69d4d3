//! Consumers, keys and withdrawn tokens in a real Redis: issued and revoked without a reload, and what happens without Redis.

use crate::support::gateway::{Ended, run};
use crate::support::raw::send;
use crate::support::redis::Redis;
use crate::support::tokens::Signer;
use crate::support::{Gateway, Origin, SOON, eventually, upstream};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// `redis` is what [redis] says about where it is. A look-up that is late is a 503, so it may take as long as any may unless `more`
/// says how long.
pub fn toml(redis: &str, origin: &Origin, more: &str) -> String {
    let timeout = if more.contains("timeout") { "" } else { "timeout = \"5s\"\n" };
    format!(
        "{redis}prefix = \"t\"\n[consumer_source]\nsource = \"redis\"\n{timeout}{more}\n\
         [tiers.gold]\n[consumers.acme]\nroles = [\"orders:read\"]\n\
         [jwt.main]\nalgorithms = ['HS256']\nsecret = {{ env = 'SECRET' }}\ndeny_list = true\n{}\
         [routes.key]\nmatch = {{ path = \"/key/{{*rest}}\" }}\nupstream = \"app\"\nfilters = [{{ api_key = {{}} }}]\n\
         [routes.role]\nmatch = {{ path = \"/role/{{*rest}}\" }}\nupstream = \"app\"\n\
         filters = [{{ api_key = {{}} }}, {{ require = {{ roles = [\"partner\"], tiers = [\"gold\"] }} }}]\n\
         [routes.token]\nmatch = {{ path = \"/token\" }}\nupstream = \"app\"\nfilters = [{{ jwt = {{ issuer = \"main\" }} }}]\n",
        upstream("app", &[origin], "")
    )
}

pub fn start(toml: &str) -> Gateway {
    let gateway = Gateway::start_with_environment(toml, &[("SECRET", SECRET)]);
    eventually("the source is reachable", SOON, || gateway.metric("gatewright_consumer_source_up", &[]) == 1.0);
    gateway
}

pub fn key(gateway: &Gateway, arguments: &[&str]) -> Ended {
    let config = gateway.config();
    run(&[&["key"], arguments, &["-c", config.to_str().unwrap()]].concat())
}

/// Issues a key and gives it back.
#[track_caller]
pub fn issue(gateway: &Gateway, arguments: &[&str]) -> String {
    let made = key(gateway, &[&["new", "--redis"], arguments].concat());
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    made.stdout.trim_end().to_owned()
}

pub fn ask(gateway: &Gateway, path: &str, key: &str) -> (u16, String) {
    let response = send(gateway.http(), "GET", path, &[("x-api-key", key)], b"");
    let code = serde_json::from_str::<Value>(&response.text()).ok().and_then(|body| body["code"].as_str().map(str::to_owned));
    (response.status, code.unwrap_or_default())
}

pub fn hash(key: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `gatewright key` needs of it to find the key.
pub fn id(key: &str) -> String {
    hash(key)[..16].to_owned()
}

#[test]
fn keys_are_issued_rotated_and_revoked_without_a_reload() {
    let (redis, origin) = (Redis::start(), Origin::start("a"));
    let gateway = start(&toml(&redis.config(), &origin, "fresh = \"1h\""));
    assert_eq!(ask(&gateway, "/key/x", "gw_unknown"), (401, "credential_invalid".into()));

    let first = issue(&gateway, &["acme"]);
    assert_eq!(ask(&gateway, "/key/x", &first).0, 200);
    let seen = origin.last();
    assert_eq!(seen.header("x-consumer-name").as_deref(), Some("acme"));
    assert_eq!(seen.header("x-consumer-roles").as_deref(), Some("orders:read"), "the configuration says who acme is");
    assert_eq!(seen.header("x-credential-id").unwrap(), format!("api_key:{}", &id(&first)[..8]));

    // A consumer that is in no configuration.
    let partner = issue(&gateway, &["partner-7", "--role", "partner", "--tier", "gold", "--expires-in", "1h"]);
    assert_eq!(ask(&gateway, "/role/x", &partner).0, 200);
    assert_eq!(origin.last().header("x-consumer-name").as_deref(), Some("partner-7"));
    assert_eq!(ask(&gateway, "/role/x", &first).0, 403);

    // What is known is not asked for again.
    let asked = gateway.metric("gatewright_consumer_source_asked_total", &[]);
    (0..20).for_each(|_| assert_eq!(ask(&gateway, "/key/x", &first).0, 200));
    assert_eq!(gateway.metric("gatewright_consumer_source_asked_total", &[]), asked);

    let listed = key(&gateway, &["list"]).stdout;
    assert!(listed.contains("partner-7") && listed.contains(&id(&first)[..8]) && listed.contains("redis"), "{listed}");
    assert!(!listed.contains(&first) && !listed.contains(&id(&first)), "a whole hash or key is listed:\n{listed}");

    // Both count during the overlap, the new one alone afterwards.
    let rotated = key(&gateway, &["rotate", &id(&first), "--overlap", "1h"]);
    let second = rotated.stdout.trim_end().to_owned();
    assert_eq!((ask(&gateway, "/key/x", &first).0, ask(&gateway, "/key/x", &second).0), (200, 200), "{}", rotated.stderr);
    let third = key(&gateway, &["rotate", &id(&second), "--overlap", "0s"]).stdout.trim_end().to_owned();
    eventually("the old key is refused", SOON, || ask(&gateway, "/key/x", &second).0 == 401);
    assert_eq!(ask(&gateway, "/key/x", &third).0, 200);

    let revoked = key(&gateway, &["revoke", &format!("api_key:{}", &id(&third)[..8])]);
    assert_eq!(revoked.code, Some(0), "{}", revoked.stderr);
    eventually("the revoked key is refused", SOON, || ask(&gateway, "/key/x", &third).0 == 401);
    assert_eq!(ask(&gateway, "/key/x", &third), (401, "credential_invalid".into()), "as one that never was");
    assert_eq!(key(&gateway, &["revoke", &id(&third)]).code, Some(1));

    // A key that was refused counts as soon as somebody issues it.
    let record = json!({ "consumer": "acme" }).to_string().replace('"', "\\\"");
    let digest = ring::digest::digest(&ring::digest::SHA256, b"gw_unknown");
    let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(redis.ask(&format!("SET t:key:{digest} \"{record}\"")).unwrap(), "+OK");
    eventually("the new key counts", SOON, || ask(&gateway, "/key/x", "gw_unknown").0 == 200);

    // A consumer's record is a fact as well.
    redis.ask("SET t:consumer:partner-7 \"{\\\"enabled\\\":false}\"").unwrap();
    eventually("the consumer is refused", SOON, || ask(&gateway, "/role/x", &partner).0 == 401);
    redis.ask("FLUSHALL").unwrap();
    eventually("all keys are gone", SOON, || ask(&gateway, "/key/x", &first).0 == 401);
}

/// What a command does not speak of stays as it is.
#[test]
fn no_key_is_given_more_than_was_asked_for() {
    let (redis, origin) = (Redis::start(), Origin::start("a"));
    let gateway = start(&toml(&redis.config(), &origin, "fresh = \"1h\""));
    let record = |name: &str| -> Value {
        let value: String = redis::cmd("GET").arg(format!("t:{name}")).query(&mut redis.connection()).unwrap();
        serde_json::from_str(&value).unwrap()
    };
    // A key that ends is followed by one that ends.
    let first = issue(&gateway, &["acme", "--expires-in", "90d"]);
    let rotated = key(&gateway, &["rotate", &id(&first), "--overlap", "1h"]);
    let second = rotated.stdout.trim_end();
    let next = record(&format!("key:{}", hash(second)));
    assert_eq!(next["expires"].as_u64().unwrap() - next["issued"].as_u64().unwrap(), 90 * 86_400);
    assert!(rotated.stderr.contains("It counts now until 2"), "{}", rotated.stderr);

    // Roles and tier are told one by one; metadata stays.
    issue(&gateway, &["partner", "--role", "partner", "--tier", "gold"]);
    let mut known = record("consumer:partner");
    known["metadata"] = json!({ "since": "2020" });
    let put = |value: &Value| {
        redis::cmd("SET").arg("t:consumer:partner").arg(value.to_string()).exec(&mut redis.connection()).unwrap();
    };
    put(&known);
    issue(&gateway, &["partner"]);
    assert_eq!(record("consumer:partner"), known);
    issue(&gateway, &["partner", "--role", "other"]);
    known["roles"] = json!(["other"]);
    assert_eq!(record("consumer:partner"), known);

    // Nobody is enabled by a key, and what cannot be read is not written over.
    known["enabled"] = json!(false);
    for value in [known, json!("no record")] {
        put(&value);
        let refused = key(&gateway, &["new", "--redis", "partner", "--role", "other"]);
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""), "{}", refused.stderr);
        assert!(refused.stderr.contains("t:consumer:partner in Redis"), "{}", refused.stderr);
        assert_eq!(record("consumer:partner"), value);
    }
}

/// What is in a file only its owner changes: the commands say where, and how.
#[test]
fn a_key_that_stands_in_the_configuration_is_shown_and_left_to_its_owner() {
    let (redis, origin) = (Redis::start(), Origin::start("a"));
    let with = |credentials: &str| {
        let more = format!("[consumers.acme]\ncredentials = [\n{credentials}]\n");
        toml(&redis.config(), &origin, "").replace("[consumers.acme]\n", &more)
    };
    let line = |key: &str, more: &str| format!("  {{ api_key = {{ sha256 = \"{}\"{more} }} }},\n", hash(key));
    let (old, ending) = ("gw_old", line("gw_ending", ", expires = 2099-01-02T03:04:05Z"));
    let gateway = start(&with(&(line(old, "") + &ending)));
    assert_eq!(ask(&gateway, "/key/x", old).0, 200);
    let config = gateway.config();
    let place = |key: &str| {
        let text = std::fs::read_to_string(&config).unwrap();
        let at = text.lines().position(|line| line.contains(&hash(key))).unwrap();
        format!("{}:{}", config.display(), at + 1)
    };
    let short = |key: &str| format!("api_key:{}", &id(key)[..8]);

    let listed = key(&gateway, &["list", "acme"]);
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    let mut lines: Vec<Vec<&str>> = listed.stdout.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    lines.sort_by_key(|line| line[2] == "never");
    let wanted = [("gw_ending", "2099-01-02T03:04:05Z"), (old, "never")];
    assert_eq!(lines, wanted.map(|(key, end)| ["acme".to_owned(), short(key), end.to_owned(), place(key)]), "{}", listed.stdout);
    assert_eq!(key(&gateway, &["list", "somebody"]).stdout.lines().count(), 1, "the head alone");

    for id in [short(old), id(old), hash(old).to_uppercase()] {
        let revoked = key(&gateway, &["revoke", &id]);
        let why = format!("error: this key of `acme` is in the configuration: take out {}, and reload\n", place(old));
        assert_eq!((revoked.code, revoked.stdout.as_str(), revoked.stderr.as_str()), (Some(1), "", why.as_str()));
    }
    assert_eq!(ask(&gateway, "/key/x", old).0, 200);

    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let before = now();
    let rotated = key(&gateway, &["rotate", &id(old), "--overlap", "2h"]);
    let after = now();
    let (new, said) = (rotated.stdout.trim_end(), &rotated.stderr);
    assert_eq!((rotated.code, ask(&gateway, "/key/x", new).0), (Some(0), 401), "it is not the file's yet: {said}");
    assert!(said.contains(&line(new, "")) && said.contains("credentials of `acme`"), "{said}");
    let (_, end) = said.trim_end().split_once(&format!("let the old one at {} end: expires = ", place(old))).expect(said);
    let shown = |time: u64| {
        let mut date = std::process::Command::new("date");
        let date = date.args(["-u", "-d", &format!("@{time}"), "+%FT%TZ"]).output().unwrap();
        String::from_utf8(date.stdout).unwrap().trim_end().to_owned()
    };
    let ends = shown(before + 7_200)..=shown(after + 7_200);
    assert!(ends.contains(&end.to_owned()), "{end} is not in {ends:?}");
    assert_eq!(redis.ask("DBSIZE").unwrap(), ":0", "none of this is written anywhere");

    // What it says is done, to the letter.
    gateway.reload_with(&with(&(line(old, &format!(", expires = {end}")) + &line(new, "")))).unwrap();
    assert_eq!((ask(&gateway, "/key/x", old).0, ask(&gateway, "/key/x", new).0), (200, 200));
    let listed = key(&gateway, &["list"]).stdout;
    assert!(listed.contains(end), "{listed}");
    let rotated = key(&gateway, &["rotate", &id(new), "--overlap", "0s"]);
    let (_, end) = rotated.stderr.trim_end().rsplit_once("expires = ").expect(&rotated.stderr);
    gateway.reload_with(&with(&(line(new, &format!(", expires = {end}")) + &line(rotated.stdout.trim_end(), "")))).unwrap();
    assert_eq!((ask(&gateway, "/key/x", new).0, ask(&gateway, "/key/x", rotated.stdout.trim_end()).0), (401, 200));

    // One in Redis that begins alike: the id must say which.
    let other = format!("{}{}", &hash(new)[..16], "0".repeat(48));
    redis.ask(&format!("SET t:key:{other} \"{{\\\"consumer\\\":\\\"acme\\\"}}\"")).unwrap();
    let revoked = key(&gateway, &["revoke", &id(new)]);
    assert!(revoked.code == Some(1) && revoked.stderr.contains("several keys begin like that"), "{revoked:?}");
    assert!(key(&gateway, &["revoke", &hash(new)]).stderr.contains(&place(new)));
    assert_eq!(key(&gateway, &["revoke", &other]).code, Some(0));
}

#[test]
fn a_reload_keeps_what_was_learnt_and_takes_the_roles_of_the_new_configuration() {
    let (redis, origin) = (Redis::start(), Origin::start("a"));
    let text = toml(&redis.config(), &origin, "");
    let gateway = start(&text);
    let issued = issue(&gateway, &["acme"]);
    assert_eq!(ask(&gateway, "/key/x", &issued).0, 200);
    let asked = gateway.metric("gatewright_consumer_source_asked_total", &[]);
    gateway.reload_with(&text.replace("[\"orders:read\"]", "[\"orders:write\"]")).unwrap();
    assert_eq!(ask(&gateway, "/key/x", &issued).0, 200);
    assert_eq!(origin.last().header("x-consumer-roles").as_deref(), Some("orders:write"));
    assert_eq!(gateway.metric("gatewright_consumer_source_asked_total", &[]), asked, "it was asked again");
}

#[test]
fn without_redis_known_keys_go_on_for_a_time_and_unknown_ones_never_pass() {
    let (mut redis, origin) = (Redis::start(), Origin::start("a"));
    let gateway = start(&toml(&redis.config(), &origin, "stale = \"4s\"\ntimeout = \"1s\""));
    let (known, unknown) = (issue(&gateway, &["acme"]), issue(&gateway, &["acme"]));
    assert_eq!(ask(&gateway, "/key/x", &known).0, 200);
    assert_eq!(ask(&gateway, "/key/x", "gw_refused").0, 401);
    redis.freeze();
    let before = std::time::Instant::now();
    assert_eq!(ask(&gateway, "/key/x", &unknown), (503, "credentials_unavailable".into()), "frozen");
    assert!(before.elapsed() < Duration::from_secs(5));
    assert_eq!(ask(&gateway, "/key/x", &known).0, 200);
    redis.kill();
    eventually("the source is away", SOON, || gateway.metric("gatewright_consumer_source_up", &[]) == 0.0);
    let response = send(gateway.http(), "GET", "/key/x", &[("x-api-key", &unknown)], b"");
    assert_eq!((response.status, response.header("retry-after")), (503, Some("2")));
    // Refused once, but it may have been issued since.
    assert_eq!(ask(&gateway, "/key/x", "gw_refused"), (503, "credentials_unavailable".into()));
    eventually("the known key ends", SOON, || ask(&gateway, "/key/x", &known).0 == 503);
    let count = origin.count();
    assert_eq!(ask(&gateway, "/key/x", &known).0, 503);
    assert_eq!(origin.count(), count);
    // Back, and empty: nobody is let in by what was known before.
    redis.restart();
    eventually("the source is back", SOON, || gateway.metric("gatewright_consumer_source_up", &[]) == 1.0);
    assert_eq!(ask(&gateway, "/key/x", &known), (401, "credential_invalid".into()));
    let fresh = issue(&gateway, &["acme"]);
    eventually("a new key counts", SOON, || ask(&gateway, "/key/x", &fresh).0 == 200);
}

#[test]
fn a_token_is_withdrawn_by_its_id_or_its_subject() {
    let (mut redis, origin) = (Redis::start(), Origin::start("a"));
    let gateway = start(&toml(&redis.config(), &origin, "stale = \"1h\""));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let signer = Signer::hs256("k", SECRET.as_bytes());
    let token = |subject: &str, id: &str, issued: u64| {
        format!("Bearer {}", signer.token(&json!({ "sub": subject, "jti": id, "iat": issued, "exp": now + 600 })))
    };
    let ask = |bearer: &str| {
        let response = send(gateway.http(), "GET", "/token", &[("authorization", bearer)], b"");
        (response.status, response.header("www-authenticate").map(str::to_owned))
    };
    let (one, two, later) = (token("alice", "1", now - 60), token("alice", "2", now - 60), token("alice", "3", now));
    for bearer in [&one, &two, &later] {
        assert_eq!(ask(bearer), (200, None));
    }
    redis.ask("SET t:denied:main:jti:1 1 EX 600").unwrap();
    eventually("the token is refused", SOON, || ask(&one).0 == 401);
    assert_eq!(ask(&one).1.as_deref(), Some("Bearer error=\"invalid_token\""));
    assert_eq!(ask(&two).0, 200);
    redis.ask(&format!("SET t:denied:main:sub:alice {} EX 600", now - 30)).unwrap();
    eventually("earlier tokens are refused", SOON, || ask(&two).0 == 401);
    assert_eq!(ask(&later).0, 200, "issued after the withdrawal");
    let labels = [("route", "token"), ("filter", "jwt"), ("outcome", "revoked")];
    assert!(gateway.metric("gatewright_auth_total", &labels) >= 2.0);
    redis.kill();
    eventually("the source is away", SOON, || gateway.metric("gatewright_consumer_source_up", &[]) == 0.0);
    assert_eq!((ask(&later).0, ask(&two).0), (200, 401), "what was known goes on");
    assert_eq!(ask(&token("bob", "4", now)).0, 503, "what was not known is not let through");
}
