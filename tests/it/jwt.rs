//! Tokens through the real binary: what is accepted, what is refused and how, and keys that come over HTTP.

use crate::support::raw::send;
use crate::support::tokens::{Signer, jwks, part};
use crate::support::{Gateway, Origin, SOON, eventually, everything_to};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims() -> Value {
    json!({ "sub": "alice", "exp": now() + 600, "org": "acme", "realm_access": { "roles": ["orders:write"] } })
}

/// A gateway that sends everything with a token of `[jwt.main]` to the origin; `filter` is the filter's table.
fn config(origin: &Origin, jwt: &str, filter: &str) -> String {
    format!("[jwt.main]\n{jwt}\n{}filters = [{{ jwt = {filter} }}]\n", everything_to(&[origin], ""))
}

fn start(toml: &str, prepare: impl FnOnce(&Path)) -> Gateway {
    Gateway::try_start_with(toml, prepare).unwrap_or_else(|ended| panic!("did not start: {ended:?}"))
}

/// The status and the code of what a request with this token gets.
fn ask(gateway: &Gateway, token: &str) -> (u16, String) {
    let response = send(gateway.http(), "GET", "/a", &[("authorization", &format!("Bearer {token}"))], b"");
    let code = serde_json::from_str::<Value>(&response.text()).ok().and_then(|body| body["code"].as_str().map(str::to_owned));
    (response.status, code.unwrap_or_default())
}

const OK: (u16, String) = (200, String::new());

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[test]
fn a_token_opens_the_route_and_tells_the_origin_who_it_is() {
    let origin = Origin::start("a");
    let jwt = "algorithms = ['HS256']\nsecret = { file = 'secret' }\nclaims = { roles = 'realm_access.roles' }";
    let headers = "headers = { X-User = 'sub', tenant = 'org', x-roles = 'realm_access.roles' }";
    let toml = config(&origin, jwt, &format!("{{ issuer = 'main', {headers} }}"))
        .replace("} }]", "} }, { require = { roles = ['orders:write'] } }]");
    let gateway = start(&toml, |dir| std::fs::write(dir.join("secret"), format!("{SECRET}\n")).unwrap());
    let signer = Signer::hs256("k", SECRET.as_bytes());
    let token = signer.token(&claims());
    let bearer = format!("Bearer {token}");
    let spoofed = [
        ("authorization", bearer.as_str()),
        ("x-user", "admin"),
        ("x-roles", "admin"),
        ("tenant", "evil"),
        ("connection", "tenant"),
    ];
    assert_eq!(send(gateway.http(), "GET", "/a", &spoofed, b"").status, 200);
    let seen = origin.last();
    assert_eq!((seen.header_all("x-user"), seen.header_all("x-roles")), (vec!["alice".into()], vec!["orders:write".into()]));
    assert_eq!(seen.header_all("tenant"), ["acme"], "`Connection` takes nothing away that we write");
    assert_eq!(seen.header("authorization").as_deref(), Some(bearer.as_str()), "forwarded unless told otherwise");
    let line = gateway.logged("the request", |line| line["subject"] == "alice");
    assert!(line["consumer"].is_null(), "{line}");
    assert_eq!(line["credential"], "jwt:main:alice");

    let plain = json!({ "sub": "bob", "exp": now() + 600 });
    assert_eq!(ask(&gateway, &signer.token(&plain)), refused(403, "forbidden"));
    let missing = send(gateway.http(), "GET", "/a", &[], b"");
    assert_eq!((missing.status, missing.header("www-authenticate")), (401, Some("Bearer")));
    let old = json!({ "sub": "bob", "exp": now() - 600 });
    assert_eq!(ask(&gateway, &signer.token(&old)), refused(401, "token_expired"));
    let twice = send(gateway.http(), "GET", "/a", &[("authorization", &bearer), ("authorization", &bearer)], b"");
    assert_eq!(twice.status, 400);
    assert_eq!(origin.count(), 1);
    for (outcome, count) in [("accepted", 2.0), ("missing", 1.0), ("expired", 1.0)] {
        assert_eq!(gateway.metric("gatewright_auth_total", &[("filter", "jwt"), ("outcome", outcome)]), count, "{outcome}");
    }
}

#[test]
fn a_token_brings_no_role_that_its_issuer_may_not_give() {
    let origin = Origin::start("a");
    let claims = "claims = { roles = 'roles', allowed_roles = ['ops'] }";
    let jwt = format!("algorithms = ['HS256']\nsecret = {{ file = 'secret' }}\n{claims}");
    // Somebody may have the role, or requiring it would be an error.
    let mut toml = config(&origin, &jwt, "{ issuer = 'main' }") + "\n[consumers.root]\nroles = ['admin']\n";
    for role in ["ops", "admin"] {
        let filters = format!("filters = [{{ jwt = {{ issuer = 'main' }} }}, {{ require = {{ roles = ['{role}'] }} }}]");
        toml.push_str(&format!("[routes.{role}]\nmatch = {{ path = '/{role}' }}\nupstream = 'app'\n{filters}\n"));
    }
    let gateway = start(&toml, |dir| std::fs::write(dir.join("secret"), SECRET).unwrap());
    let token =
        Signer::hs256("k", SECRET.as_bytes()).token(&json!({ "sub": "alice", "exp": now() + 600, "roles": ["ops", "admin"] }));
    let bearer = format!("Bearer {token}");
    let ask = |path: &str| send(gateway.http(), "GET", path, &[("authorization", &bearer)], b"");
    assert_eq!(ask("/ops").status, 200);
    let refused = ask("/admin");
    assert_eq!(refused.status, 403, "{refused:?}");
    assert_eq!(refused.code(), "forbidden");
    assert_eq!(origin.count(), 1);
}

#[test]
fn every_token_of_another_library_passes() {
    let origin = Origin::start("a");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jwt/tokens.json");
    let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let keys: Vec<&Value> = fixture["keys"].as_array().unwrap().iter().map(|key| &key["jwk"]).collect();
    let jwt = "issuer = 'https://id.example.com/'\naudience = ['api']\njwks = { file = 'set.json' }\nalgorithms = \
               ['HS256', 'HS384', 'HS512', 'RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'EdDSA']";
    let gateway = start(&config(&origin, jwt, "{ issuer = 'main' }"), |dir| {
        std::fs::write(dir.join("set.json"), json!({ "keys": keys }).to_string()).unwrap();
    });
    let tokens = fixture["tokens"].as_array().unwrap();
    for token in tokens {
        assert_eq!(ask(&gateway, token["token"].as_str().unwrap()).0, 200, "{}", token["name"]);
    }
    assert!(tokens.len() >= 100 && origin.count() == tokens.len());
    for token in fixture["refused"].as_array().unwrap() {
        assert_eq!(ask(&gateway, token["token"].as_str().unwrap()).0, 401, "{}", token["reason"]);
    }
    assert_eq!(origin.count(), tokens.len());
}

#[test]
fn no_forged_token_gets_through_and_none_is_repeated_in_any_output() {
    let origin = Origin::start("a");
    let (rsa, ec, ed) = (Signer::rs256("rsa"), Signer::es256("ec"), Signer::eddsa("ed"));
    let jwt = "algorithms = ['RS256', 'ES256', 'EdDSA', 'HS256']\njwks = { file = 'set.json' }";
    let secret = Signer::hs256("k", SECRET.as_bytes());
    let places = "token = ['authorization', 'cookie:t', 'query:access_token']";
    let mut toml = config(&origin, jwt, &format!("{{ issuer = 'main', {places} }}"));
    toml.push_str("\n[log]\nlevel = 'debug'\naccess = { output = 'file:ACCESS' }\n");
    let directory = tempfile::tempdir().unwrap();
    let access = directory.path().join("access.log");
    let toml = toml.replace("ACCESS", access.to_str().unwrap());
    let gateway = start(&toml, |dir| std::fs::write(dir.join("set.json"), jwks(&[&rsa, &ec, &ed, &secret])).unwrap());
    // A mark that is in every token's payload, and the signature of none.
    let canary = format!("canary{}", now());
    let good = json!({ "sub": canary, "exp": now() + 600 });
    let stranger = Signer::rs256("rsa");
    let mut forged = vec![String::new(), ".".into(), "..".into(), "a.b.c".into(), "null".into()];
    for signer in [&rsa, &ec, &ed, &secret] {
        let token = signer.token(&good);
        let (message, signature) = token.rsplit_once('.').unwrap();
        let (_, payload) = message.split_once('.').unwrap();
        for alg in ["none", "None", "nOnE", "NONE", "HS256", "RS256", "ES256", "PS256", "HS512", "ES256K"] {
            let header = json!({ "alg": alg, "kid": signer.kid });
            if alg != signer.algorithm {
                forged.push(signer.with_header(&header, &good));
            }
            forged.push(format!("{}.{payload}.", part(header.to_string())));
            forged.push(format!("{}.{payload}", part(header.to_string())));
            forged.push(format!("{}.{payload}.{}", part(header.to_string()), part([0; 64])));
            let pem_as_secret = if signer.algorithm == "HS256" { String::new() } else { signer.pem() };
            forged.push(Signer::hs256(&signer.kid, pem_as_secret.as_bytes()).with_header(&header, &good));
        }
        for bait in ["jku", "x5u"] {
            let header = json!({ "alg": "RS256", "kid": "rsa", bait: "http://127.0.0.1:9/keys" });
            forged.push(stranger.with_header(&header, &good));
        }
        forged.push(stranger.with_header(&json!({ "alg": "RS256", "kid": "rsa", "jwk": stranger.jwk() }), &good));
        for kid in ["../../../../dev/null", "/dev/null", "' OR 1=1 --", "", "x"] {
            forged.push(signer.with_header(&json!({ "alg": signer.algorithm, "kid": kid }), &good));
        }
        forged.push(
            signer.with_header(&json!({ "alg": signer.algorithm, "kid": signer.kid, "crit": ["b64"], "b64": false }), &good),
        );
        let header = json!({ "alg": signer.algorithm, "kid": signer.kid }).to_string();
        forged.push(
            signer
                .raw(header.as_bytes(), format!("{{\"sub\":\"{canary}\",\"sub\":\"admin\",\"exp\":{}}}", now() + 600).as_bytes()),
        );
        forged.push(signer.raw(header.as_bytes(), format!("{{\"sub\":\"{canary}\",\"exp\":\"{}\"}}", now() + 600).as_bytes()));
        forged.push(signer.raw(header.as_bytes(), format!("{{\"sub\":\"{canary}\",\"x\":{}", "[".repeat(4000)).as_bytes()));
        forged.extend([
            format!("{message}."),
            message.to_owned(),
            format!("{token}."),
            format!("{token}="),
            format!("{token}=="),
            format!("{token} x"),
            format!("{message}.{}", part(vec![0; 64])),
            format!("{message}.{signature}{signature}"),
            format!("{token}{}", "A".repeat(9000)),
        ]);
        assert_eq!(ask(&gateway, &token).0, 200, "{}", signer.algorithm);
    }
    let passed = origin.count();
    for token in &forged {
        let (status, code) = ask(&gateway, token);
        assert_eq!((status, code.as_str()), (401, "token_invalid"), "{token}");
        let cookie = send(gateway.http(), "GET", "/a", &[("cookie", &format!("t={token}"))], b"").status;
        assert_eq!(cookie, 401, "{token}");
        if token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)) && token.len() < 7000 {
            assert_eq!(send(gateway.http(), "GET", &format!("/a?access_token={token}"), &[], b"").status, 401, "{token}");
        }
    }
    assert!(forged.len() > 200, "{}", forged.len());
    assert_eq!(origin.count(), passed, "a forged token reached the origin");
    // In the query it goes neither to the origin nor to a log, even if it is good.
    let token = secret.token(&good);
    assert_eq!(send(gateway.http(), "GET", &format!("/a?x=1&access_token={token}&y=2"), &[], b"").status, 200);
    assert_eq!(origin.last().request_line(), "GET /a?x=1&y=2 HTTP/1.1");
    eventually("all requests in the log", SOON, || {
        std::fs::read_to_string(&access).unwrap_or_default().lines().count() > 2 * forged.len()
    });
    for output in [std::fs::read_to_string(&access).unwrap(), gateway.stderr(), gateway.admin.get("/metrics").text()] {
        for secret in [part(good.to_string()).as_str(), token.rsplit_once('.').unwrap().1, "access_token", SECRET] {
            assert!(!output.contains(secret), "{secret} in\n{output}");
        }
    }
}

/// What a key server does with a request.
#[derive(Clone)]
enum Says {
    Keys(String),
    /// The same with this `Cache-Control`.
    Cached(String, &'static str),
    Bytes(&'static str),
    /// Closes without a word.
    Nothing,
    /// Accepts, and never answers.
    Silence,
}

/// A server of one key set, with an ETag.
struct KeyServer {
    address: SocketAddr,
    says: Arc<Mutex<Says>>,
    served: Arc<AtomicUsize>,
    unchanged: Arc<AtomicUsize>,
}

impl KeyServer {
    fn start(says: Says) -> KeyServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = KeyServer { address, says: Arc::new(Mutex::new(says)), served: Arc::default(), unchanged: Arc::default() };
        let (says, served, unchanged) = (server.says.clone(), server.served.clone(), server.unchanged.clone());
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for mut stream in listener.incoming().flatten() {
                served.fetch_add(1, Ordering::SeqCst);
                let says = says.lock().unwrap().clone();
                match says {
                    Says::Silence => held.push(stream),
                    says => answer(&mut stream, &says, &unchanged),
                }
            }
        });
        server
    }

    fn says(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }

    fn has(&self, signers: &[&Signer]) {
        self.says(Says::Keys(jwks(signers)));
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    /// `jwks = { url = ..., MORE }` and the algorithm of the tests.
    fn section(&self, more: &str) -> String {
        format!("algorithms = ['ES256']\njwks = {{ url = 'http://{}/keys', {more} }}", self.address)
    }
}

fn answer(stream: &mut TcpStream, says: &Says, unchanged: &AtomicUsize) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let answer = match says {
        Says::Keys(body) => {
            let etag = format!("\"{:x}\"", body.len() ^ body.bytes().fold(0, |sum, byte| sum * 31 % 65_537 + usize::from(byte)));
            if head.contains(&format!("if-none-match: {etag}")) {
                unchanged.fetch_add(1, Ordering::SeqCst);
                format!("HTTP/1.1 304 Not Modified\r\netag: {etag}\r\n\r\n")
            } else {
                format!("HTTP/1.1 200 OK\r\netag: {etag}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            }
        }
        Says::Cached(body, control) => {
            format!("HTTP/1.1 200 OK\r\ncache-control: {control}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        }
        Says::Bytes(bytes) => (*bytes).to_owned(),
        Says::Nothing | Says::Silence => String::new(),
    };
    let _ = stream.write_all(answer.as_bytes());
}

fn fetching(origin: &Origin, keys: &KeyServer, more: &str) -> Gateway {
    Gateway::start(&config(origin, &keys.section(more), "{ issuer = 'main' }"))
}

#[test]
fn keys_are_rotated_and_revoked_while_tokens_are_in_use() {
    let (origin, old, new) = (Origin::start("a"), Signer::es256("old"), Signer::es256("new"));
    let keys = KeyServer::start(Says::Keys(jwks(&[&old])));
    let gateway = fetching(&origin, &keys, "refresh = '1h', cooldown = '1s'");
    let (by_old, by_new) = (old.token(&claims()), new.token(&claims()));
    // The first request waits for the first fetch.
    assert_eq!(ask(&gateway, &by_old), OK);
    assert_eq!(ask(&gateway, &by_new), refused(401, "token_invalid"));
    keys.has(&[&old, &new]);
    eventually("the new key is fetched because a token names it", SOON, || ask(&gateway, &by_new) == OK);
    assert_eq!(ask(&gateway, &by_old), OK);
    // A revoked key counts no more, not even for a token that was verified before.
    keys.has(&[&new]);
    let other = Signer::es256("other").token(&claims());
    eventually("the old key is gone", SOON, || {
        assert_eq!(ask(&gateway, &other).0, 401);
        ask(&gateway, &by_old) == refused(401, "token_invalid")
    });
    assert_eq!(ask(&gateway, &by_new), OK);
}

/// One key without an id may be the one that a token means, but says nothing of the keys that are not there.
#[test]
fn keys_are_rotated_beside_one_without_an_id() {
    let (origin, old, new) = (Origin::start("a"), Signer::es256("old"), Signer::es256("new"));
    let nameless = Signer::es256("nameless");
    let set = |named: &Signer| {
        let mut set: Value = serde_json::from_str(&jwks(&[&nameless, named])).unwrap();
        set["keys"][0].as_object_mut().unwrap().remove("kid").unwrap();
        set.to_string()
    };
    let keys = KeyServer::start(Says::Keys(set(&old)));
    let gateway = fetching(&origin, &keys, "refresh = '1h', cooldown = '1s'");
    let by_new = new.token(&claims());
    for signer in [&old, &nameless] {
        assert_eq!(ask(&gateway, &signer.token(&claims())), OK, "{}", signer.kid);
    }
    assert_eq!(ask(&gateway, &by_new), refused(401, "token_invalid"));
    keys.says(Says::Keys(set(&new)));
    eventually("the new key is fetched because a token names it", SOON, || ask(&gateway, &by_new) == OK);
    let fetched = keys.served();
    // A signature that is wrong for the key that it names says nothing of other keys.
    let forged = Signer::es256("new").token(&claims());
    eventually("the cooldown is over, and a token of an unknown key has the keys fetched", SOON, || {
        assert_eq!(ask(&gateway, &forged), refused(401, "token_invalid"));
        ask(&gateway, &old.token(&claims())) != OK && keys.served() > fetched
    });
}

#[test]
fn a_key_that_keeps_its_name_is_replaced_by_the_next_fetch() {
    let (origin, old, new) = (Origin::start("a"), Signer::es256("k"), Signer::es256("k"));
    let keys = KeyServer::start(Says::Keys(jwks(&[&old])));
    let gateway = fetching(&origin, &keys, "refresh = '1s'");
    let (by_old, by_new) = (old.token(&claims()), new.token(&claims()));
    assert_eq!((ask(&gateway, &by_old), ask(&gateway, &by_new).0), (OK, 401));
    keys.has(&[&new]);
    eventually("the new key", SOON, || ask(&gateway, &by_new) == OK);
    assert_eq!(ask(&gateway, &by_old), refused(401, "token_invalid"));
}

#[test]
fn keys_are_fetched_earlier_where_cache_control_says_so() {
    let (origin, old, new) = (Origin::start("a"), Signer::es256("k"), Signer::es256("k"));
    let keys = KeyServer::start(Says::Cached(jwks(&[&old]), "public, max-age=1"));
    // The cooldown is for keys that tokens name, and these have one name.
    let gateway = fetching(&origin, &keys, "refresh = '1h', cooldown = '10m'");
    let (by_old, by_new) = (old.token(&claims()), new.token(&claims()));
    assert_eq!((ask(&gateway, &by_old), ask(&gateway, &by_new).0), (OK, 401));
    keys.says(Says::Cached(jwks(&[&new]), "max-age=86400"));
    eventually("the new key, an hour too early", SOON, || ask(&gateway, &by_new) == OK);
    // And not later than `refresh`: nor earlier, now that it may be kept.
    let served = keys.served();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(keys.served(), served);
}

/// A token may name places to get keys from; nobody ever comes there.
#[test]
fn no_key_is_fetched_from_where_a_token_says() {
    let (origin, signer, attacker) = (Origin::start("a"), Signer::es256("k"), Signer::es256("k"));
    let trap = KeyServer::start(Says::Keys(jwks(&[&attacker])));
    let keys = KeyServer::start(Says::Keys(jwks(&[&signer])));
    let gateway = fetching(&origin, &keys, "refresh = '1h', cooldown = '1s'");
    assert_eq!(ask(&gateway, &signer.token(&claims())), OK);
    let url = format!("http://{}/keys", trap.address);
    for header in ["jku", "x5u", "jwk", "x5c"] {
        for kid in ["k", "unknown", url.as_str()] {
            let value = match header {
                "jwk" => attacker.jwk(),
                "x5c" => json!([url]),
                _ => json!(url),
            };
            let head = json!({ "alg": "ES256", "typ": "JWT", "kid": kid, header: value });
            let mut named = claims();
            named["iss"] = json!(format!("http://{}/", trap.address));
            for claims in [claims(), named] {
                assert_eq!(ask(&gateway, &attacker.with_header(&head, &claims)).0, 401, "{head}");
            }
        }
    }
    // Tokens with names that are not known have caused a fetch, from where the configuration says.
    let unknown = attacker.with_header(&json!({ "alg": "ES256", "kid": "unknown", "jku": url }), &claims());
    eventually("it asks for unknown keys", SOON, || ask(&gateway, &unknown).0 == 401 && keys.served() >= 2);
    assert_eq!((trap.served(), origin.count()), (0, 1));
}

#[test]
fn an_unchanged_key_set_is_not_sent_again() {
    let (origin, signer) = (Origin::start("a"), Signer::es256("k"));
    let keys = KeyServer::start(Says::Keys(jwks(&[&signer])));
    let gateway = fetching(&origin, &keys, "refresh = '1s', max_stale = '3s'");
    let token = signer.token(&claims());
    assert_eq!(ask(&gateway, &token), OK);
    let since = Instant::now();
    eventually("answers of 304, for longer than max_stale", SOON, || {
        assert_eq!(ask(&gateway, &token), OK, "an answer of 304 keeps the keys fresh");
        keys.unchanged.load(Ordering::SeqCst) >= 3 && since.elapsed() > Duration::from_secs(4)
    });
    // It is counted as served first, and then as unchanged: read the other way round, one more body never looks like none.
    eventually("every answer but one was a 304: the body was sent once", SOON, || {
        let unchanged = keys.unchanged.load(Ordering::SeqCst);
        keys.served() == unchanged + 1
    });
}

#[test]
fn the_last_good_keys_stay_whatever_the_server_says_and_across_reloads() {
    let (origin, signer) = (Origin::start("a"), Signer::es256("k"));
    let keys = KeyServer::start(Says::Keys(jwks(&[&signer])));
    let gateway = fetching(&origin, &keys, "refresh = '1s', timeout = '200ms'");
    let token = signer.token(&claims());
    // The first fetch has no longer than the others, which is too short when the machine is busy.
    eventually("the first keys", SOON, || ask(&gateway, &token) == OK);
    for wrong in [
        Says::Nothing,
        Says::Silence,
        Says::Bytes("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"),
        Says::Bytes("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n"),
        Says::Bytes("HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{\"keys\":[]}"),
        Says::Bytes("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>"),
        Says::Bytes("HTTP/1.1 200 OK\r\ncontent-length: 600000\r\n\r\n{\"keys\":["),
        Says::Bytes("SSH-2.0-OpenSSH\r\n"),
    ] {
        keys.says(wrong);
        let before = keys.served();
        eventually("another attempt", SOON, || keys.served() > before + 1);
        assert_eq!(ask(&gateway, &token), OK);
    }
    // The keys belong to the process: a reload neither fetches them first nor loses them.
    keys.says(Says::Nothing);
    gateway
        .reload_with(&config(&origin, &keys.section("refresh = '2s', timeout = '300ms'"), "{ issuer = 'main', forward = false }"))
        .unwrap();
    assert_eq!(ask(&gateway, &token), OK);
    assert_eq!(origin.last().header("authorization"), None, "the reload took effect");
    assert_eq!(ask(&gateway, &Signer::es256("k").token(&claims())), refused(401, "token_invalid"));
}

#[test]
fn without_keys_nothing_is_decided() {
    let (origin, signer) = (Origin::start("a"), Signer::es256("k"));
    let keys = KeyServer::start(Says::Nothing);
    let gateway = fetching(&origin, &keys, "refresh = '1s', cooldown = '1s'");
    let token = signer.token(&claims());
    let bearer = format!("Bearer {token}");
    let response = send(gateway.http(), "GET", "/a", &[("authorization", &bearer)], b"");
    assert_eq!((response.status, response.header("retry-after")), (503, Some("2")));
    assert_eq!(ask(&gateway, &token), refused(503, "keys_unavailable"));
    assert_eq!(ask(&gateway, "a.b.c"), refused(401, "token_invalid"), "what no key could make good is refused at once");
    assert_eq!(origin.count(), 0);
    keys.has(&[&signer]);
    eventually("keys", SOON, || ask(&gateway, &token) == OK);
}

#[test]
fn keys_that_are_too_old_count_no_more() {
    let (origin, signer) = (Origin::start("a"), Signer::es256("k"));
    let keys = KeyServer::start(Says::Keys(jwks(&[&signer])));
    let gateway = fetching(&origin, &keys, "refresh = '1s', max_stale = '2s', cooldown = '1s'");
    let token = signer.token(&claims());
    assert_eq!(ask(&gateway, &token), OK);
    keys.says(Says::Nothing);
    eventually("refused, remembered or not", SOON, || ask(&gateway, &token) == refused(503, "keys_unavailable"));
    keys.has(&[&signer]);
    eventually("keys again", SOON, || ask(&gateway, &token) == OK);
}

#[test]
fn a_flood_of_unknown_keys_causes_one_fetch() {
    let (origin, signer) = (Origin::start("a"), Signer::es256("k"));
    let keys = KeyServer::start(Says::Keys(jwks(&[&signer])));
    // Before the first fetch, which does not wait for a request.
    let begun = Instant::now();
    let gateway = fetching(&origin, &keys, "refresh = '1h', cooldown = '4s'");
    let address = gateway.http();
    let flood = |round: usize| {
        std::thread::scope(|scope| {
            for worker in 0..8 {
                let stranger = Signer::es256(&format!("x{round}-{worker}"));
                scope.spawn(move || {
                    for n in 0..40 {
                        let header = json!({ "alg": "ES256", "kid": format!("{}-{n}", stranger.kid) });
                        let bearer = format!("Bearer {}", stranger.with_header(&header, &claims()));
                        let status = send(address, "GET", "/a", &[("authorization", &bearer)], b"").status;
                        assert_eq!(status, 401);
                    }
                });
            }
        });
    };
    assert_eq!(ask(&gateway, &signer.token(&claims())), OK);
    assert_eq!(keys.served(), 1);
    eventually("the cooldown is over and one more was fetched", SOON, || {
        flood(0);
        keys.served() > 1
    });
    flood(1);
    // One for each cooldown that has passed, however many asked.
    let most = 1 + usize::try_from(begun.elapsed().as_secs() / 4).unwrap();
    assert!((2..=most).contains(&keys.served()), "{} fetches in {:?}", keys.served(), begun.elapsed());
    assert_eq!((ask(&gateway, &signer.token(&claims())), origin.count()), (OK, 2));
}
