//! Signed requests and client certificates, over real connections.

use crate::support::raw::{Client, request, send};
use crate::support::redis::{Redis, User};
use crate::support::redis_many::Cluster;
use crate::support::tls::{Authority, TlsClient};
use crate::support::{Gateway, Origin, SOON, eventually, exclusive, upstream};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECRET: &str = "canary-secret-0123456789abcdef01";

/// A key of the client.
enum Key {
    Secret,
    Ed(Ed25519KeyPair),
}

impl Key {
    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Key::Secret => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), message).as_ref().to_vec(),
            Key::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    fn id(&self) -> &'static str {
        match self {
            Key::Secret => "shared",
            Key::Ed(_) => "pair",
        }
    }
}

fn content_digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(digest::digest(&digest::SHA256, body)))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The headers of a signed request: what the client's library would write.
fn headers(key: &Key, method: &str, path: &str, body: Option<&[u8]>, nonce: &str, created: u64) -> Vec<(String, String)> {
    let (path, query) = path.split_once('?').map_or((path, "?".to_owned()), |(path, query)| (path, format!("?{query}")));
    let mut list = "\"@method\" \"@authority\" \"@path\" \"@query\"".to_owned();
    let mut base = format!("\"@method\": {method}\n\"@authority\": api.example.com\n\"@path\": {path}\n\"@query\": {query}\n");
    let mut all = vec![("host".to_owned(), "API.example.com".to_owned())];
    if let Some(body) = body {
        let value = content_digest(body);
        list.push_str(" \"content-digest\"");
        base.push_str(&format!("\"content-digest\": {value}\n"));
        all.push(("content-digest".to_owned(), value));
    }
    let params = format!("({list});created={created};keyid=\"{}\";nonce=\"{nonce}\"", key.id());
    let signature = STANDARD.encode(key.sign(format!("{base}\"@signature-params\": {params}").as_bytes()));
    all.push(("signature-input".to_owned(), format!("sig1={params}")));
    all.push(("signature".to_owned(), format!("sig1=:{signature}:")));
    all
}

fn ask(gateway: &Gateway, method: &str, path: &str, headers: &[(String, String)], body: &[u8]) -> (u16, String) {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut client = Client::connect(gateway.http());
    client.send(request(method, path, &headers, body));
    let response = client.read_to(method == "HEAD").unwrap();
    let code = serde_json::from_str::<serde_json::Value>(&response.text()).ok();
    (response.status, code.and_then(|body| body["code"].as_str().map(str::to_owned)).unwrap_or_default())
}

fn start(origin: &Origin, pair: &Ed25519KeyPair) -> Gateway {
    start_with(origin, pair, "", "")
}

/// `more` is further sections, `table` what the filter says.
fn start_with(origin: &Origin, pair: &Ed25519KeyPair, more: &str, table: &str) -> Gateway {
    let toml = format!(
        "{more}[log]\nlevel = \"trace\"\n[consumers.acme]\nroles = [\"orders\"]\ncredentials = [\n\
         {{ hmac = {{ key_id = \"shared\", secret = {{ file = \"secret\" }} }} }},\n\
         {{ hmac = {{ key_id = \"pair\", algorithm = \"ed25519\", public_key = \"ed.pem\" }} }},\n]\n{}\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\nfilters = [{{ hmac = {{ {table} }} }}]\n",
        upstream("app", &[origin], "")
    );
    let mut spki = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    spki.extend_from_slice(pair.public_key().as_ref());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(spki));
    let prepare = |directory: &Path| {
        std::fs::write(directory.join("secret"), SECRET).unwrap();
        std::fs::write(directory.join("ed.pem"), &pem).unwrap();
    };
    Gateway::try_start_with(&toml, prepare).unwrap_or_else(|ended| panic!("did not start: {ended:?}"))
}

const OK: (u16, String) = (200, String::new());

/// What a mirror gets is as the upstream gets it.
#[test]
fn a_body_that_was_not_signed_reaches_no_mirror() {
    let (origin, copies) = (Origin::start("a"), Origin::start("b"));
    let pair = Ed25519KeyPair::generate().unwrap();
    let gateway =
        start_with(&origin, &pair, &upstream("other", &[&copies], ""), "} }]\nmirror = { upstream = \"other\" }\n# [{ {");
    let asked = |nonce: &str, sent: &[u8]| {
        let headers = headers(&Key::Secret, "POST", "/a", Some(b"the body"), nonce, now());
        ask(&gateway, "POST", "/a", &headers, sent)
    };
    assert_eq!(asked("1", b"THE BODY"), (400, "digest_mismatch".to_owned()));
    assert_eq!(asked("2", b"the body"), OK);
    let result = |result: &str| gateway.metric("gatewright_mirror_requests_total", &[("route", "all"), ("result", result)]);
    eventually("what was signed is copied", SOON, || result("answered") == 1.0);
    assert_eq!((copies.count(), copies.last().body.as_slice(), result("body")), (1, &b"the body"[..], 1.0));
}

#[test]
fn only_what_was_signed_reaches_the_upstream_and_only_once() {
    let origin = Origin::start("a");
    let pair = Ed25519KeyPair::generate().unwrap();
    let gateway = start(&origin, &pair);
    let body = b"{\"amount\": 1}".as_slice();
    for key in [Key::Secret, Key::Ed(pair)] {
        let before = origin.count();
        let get = headers(&key, "GET", "/orders/1?x=1", None, "1", now());
        assert_eq!(ask(&gateway, "GET", "/orders/1?x=1", &get, b""), OK);
        assert_eq!(origin.last().header("x-consumer-name").as_deref(), Some("acme"));
        assert_eq!(origin.last().header("x-credential-id").unwrap(), format!("hmac:{}", key.id()));
        let invalid = (401, "credential_invalid".to_owned());
        assert_eq!(ask(&gateway, "GET", "/orders/1?x=1", &get, b""), invalid, "again");
        let fresh = headers(&key, "GET", "/orders/1?x=1", None, "2", now());
        assert_eq!(ask(&gateway, "GET", "/orders/2?x=1", &fresh, b""), invalid, "another path");
        assert_eq!(ask(&gateway, "GET", "/orders/1?x=2", &fresh, b""), invalid, "another query");
        assert_eq!(ask(&gateway, "DELETE", "/orders/1?x=1", &fresh, b""), invalid, "another method");
        assert_eq!(
            ask(&gateway, "GET", "/orders/1?x=1", &headers(&key, "GET", "/orders/1?x=1", None, "3", now() - 400), b""),
            invalid
        );
        assert_eq!(ask(&gateway, "GET", "/orders/1?x=1", &fresh, b""), OK, "what was refused is not used up");

        let post = headers(&key, "POST", "/orders", Some(body), "4", now());
        assert_eq!(ask(&gateway, "POST", "/orders", &post, body), OK);
        assert_eq!(origin.last().body, body);
        let post = headers(&key, "POST", "/orders", Some(body), "5", now());
        assert_eq!(ask(&gateway, "POST", "/orders", &post, b"{\"amount\": 9}"), (400, "digest_mismatch".to_owned()));
        let bare = headers(&key, "POST", "/orders", None, "6", now());
        assert_eq!(ask(&gateway, "POST", "/orders", &bare, body), invalid, "the body is not covered");
        assert_eq!(origin.count(), before + 3, "something else reached the upstream");
    }
    let missing = send(gateway.http(), "GET", "/", &[], b"");
    assert_eq!((missing.status, missing.header("www-authenticate")), (401, Some("Signature")));
    for (outcome, least) in [("accepted", 8.0), ("replayed", 2.0), ("expired", 2.0), ("missing", 1.0)] {
        let labels = [("route", "all"), ("filter", "hmac"), ("outcome", outcome)];
        assert!(gateway.metric("gatewright_auth_total", &labels) >= least, "{outcome}");
    }
    let log = gateway.stderr() + &gateway.access_log().iter().map(ToString::to_string).collect::<String>();
    assert!(!log.contains("canary"), "{log}");
}

/// Gateways that share a Redis, and remember in it what they have seen. What Redis says too late is decided without it, so it has as
/// long as it may have.
pub fn sharing(origin: &Origin, redis: &str, on_error: &str) -> [Gateway; 2] {
    let pair = Ed25519KeyPair::generate().unwrap();
    let table = format!("store = \"redis\", on_error = \"{on_error}\"");
    let gateways = [(); 2].map(|()| start_with(origin, &pair, &format!("{redis}timeout = \"1s\"\n"), &table));
    for gateway in &gateways {
        // A request that cannot be decided is to be signed again.
        eventually("Redis is reachable", SOON, || {
            let probe = headers(&Key::Secret, "GET", "/", None, &fastrand::u64(..).to_string(), now());
            ask(gateway, "GET", "/", &probe, b"") == OK && gateway.stderr().contains("count once at all gateways")
        });
    }
    gateways
}

const AGAIN: (u16, &str) = (401, "credential_invalid");

/// Each of a number of signatures counts at one gateway, once.
pub fn count_once(gateways: &[Gateway; 2], of: &str) {
    for n in 0..20 {
        let signed = headers(&Key::Secret, "GET", "/orders", None, &format!("{of}-{n}"), now());
        let said: Vec<_> =
            [n % 2, 1 - n % 2, n % 2].map(|at| ask(&gateways[at], "GET", "/orders", &signed, b"")).into_iter().collect();
        let again = (AGAIN.0, AGAIN.1.to_owned());
        assert_eq!(said, [OK, again.clone(), again], "{of}-{n}");
    }
}

#[test]
fn a_signature_that_one_gateway_has_seen_no_other_takes() {
    let (origin, mut redis) = (Origin::start("a"), Redis::start());
    let gateways = sharing(&origin, &redis.config(), "closed");
    count_once(&gateways, "first");
    let labels = [("route", "all"), ("filter", "hmac"), ("outcome", "replayed")];
    assert!(gateways.iter().all(|gateway| gateway.metric("gatewright_auth_total", &labels) >= 20.0));
    // They are forgotten when they could not count any more: five minutes, half a minute of skew, a minute for clocks.
    let keys: Vec<String> = redis::cmd("KEYS").arg("gatewright:signature:*").query(&mut redis.connection()).unwrap();
    let left: u64 = redis::cmd("PTTL").arg(&keys[0]).query(&mut redis.connection()).unwrap();
    assert!((380_000..=390_000).contains(&left), "{left}");

    // Without Redis nobody can tell, so nothing passes.
    let before = origin.count();
    redis.freeze();
    let unavailable = (503, "credentials_unavailable".to_owned());
    let signed = headers(&Key::Secret, "GET", "/orders", None, "without", now());
    assert_eq!(ask(&gateways[0], "GET", "/orders", &signed, b""), unavailable);
    redis.kill();
    let signed = headers(&Key::Secret, "GET", "/orders", None, "without-2", now());
    assert_eq!(ask(&gateways[1], "GET", "/orders", &signed, b""), unavailable);
    assert_eq!(origin.count(), before);
    redis.restart();
    eventually("it is decided again", SOON, || {
        let signed = headers(&Key::Secret, "GET", "/orders", None, &fastrand::u64(..).to_string(), now());
        gateways.iter().any(|gateway| ask(gateway, "GET", "/orders", &signed, b"") == OK)
    });
}

#[test]
fn without_redis_a_gateway_that_may_decides_by_what_it_has_seen_itself() {
    let (origin, mut redis) = (Origin::start("a"), Redis::start());
    let gateways = sharing(&origin, &redis.config(), "local");
    count_once(&gateways, "first");
    let before = headers(&Key::Secret, "GET", "/orders", None, "before", now());
    assert_eq!(ask(&gateways[0], "GET", "/orders", &before, b""), OK);
    redis.kill();
    let after = headers(&Key::Secret, "GET", "/orders", None, "after", now());
    assert_eq!(ask(&gateways[0], "GET", "/orders", &after, b""), OK);
    for seen in [&before, &after] {
        assert_eq!(ask(&gateways[0], "GET", "/orders", seen, b"").0, 401, "it has seen it itself");
    }
    // This is what it costs.
    assert_eq!(ask(&gateways[1], "GET", "/orders", &after, b""), OK);
}

#[test]
fn signatures_count_once_at_all_gateways_of_a_cluster() {
    let _alone = exclusive();
    let user = User::documented("signatures", "");
    let (origin, mut cluster) = (Origin::start("a"), Cluster::start_as(Some(user)));
    let gateways = sharing(&origin, &cluster.config(), "closed");
    count_once(&gateways, "first");
    let lost = cluster.master_of(0);
    cluster.servers[lost].kill();
    eventually("another master", Duration::from_secs(30), || cluster.master_of(0) != lost);
    cluster.servers[lost].restart();
    cluster.settled();
    // What finds no connection yet cannot be decided, and is signed again.
    for gateway in &gateways {
        eventually("all slots are served", SOON, || {
            (0..20).all(|_| {
                let probe = headers(&Key::Secret, "GET", "/", None, &fastrand::u64(..).to_string(), now());
                ask(gateway, "GET", "/", &probe, b"") == OK
            })
        });
    }
    count_once(&gateways, "second");
}

#[test]
fn a_large_body_is_checked_on_its_way_and_never_ends_when_it_is_another() {
    let origin = Origin::start("a");
    let gateway = start(&origin, &Ed25519KeyPair::generate().unwrap());
    let body = vec![b'x'; 1_000_000];
    let good = headers(&Key::Secret, "POST", "/a", Some(&body), "1", now());
    assert_eq!(ask(&gateway, "POST", "/a", &good, &body), OK);
    assert_eq!(origin.last().body.len(), body.len());
    let mut other = body.clone();
    other[999_999] = b'y';
    let bad = headers(&Key::Secret, "POST", "/a", Some(&body), "2", now());
    assert_eq!(ask(&gateway, "POST", "/a", &bad, &other), (400, "digest_mismatch".to_owned()));
    assert_eq!(origin.count(), 1, "the upstream got a whole request with another body");
    let mut chunked = headers(&Key::Secret, "POST", "/a", Some(b"abc"), "3", now());
    chunked.push(("transfer-encoding".to_owned(), "chunked".to_owned()));
    let lines: String = chunked.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut client = Client::connect(gateway.http());
    client.send(format!("POST /a HTTP/1.1\r\n{lines}\r\n3\r\nabc\r\n0\r\n\r\n"));
    let response = client.read().unwrap();
    assert_eq!((response.status, response.code().as_str()), (411, "length_required"));
}

#[test]
fn a_client_certificate_is_its_consumers_and_no_header_is_one() {
    let origin = Origin::start("a");
    let (authority, partners) = (Authority::new(), Authority::new());
    let toml = format!(
        "[listeners.https]\naddress = \"127.0.0.1:0\"\n\
         tls = {{ certificates = [{{ cert = \"a.pem\", key = \"a.key\" }}], client_ca = \"ca.pem\", client_auth = \"optional\" }}\n\
         [consumers.orders]\ncredentials = [{{ mtls = {{ name = \"DNS:orders.partner.example\" }} }}]\n{}\
         [routes.known]\nmatch = {{ path = \"/known\" }}\nupstream = \"app\"\nfilters = [{{ mtls = {{}} }}]\n\
         [routes.any]\nmatch = {{ path = \"/any\" }}\nupstream = \"app\"\nfilters = [{{ mtls = {{ anyone_by = \"dns\" }} }}]\n",
        upstream("app", &[&origin], "")
    );
    let gateway = asking(&toml, &authority, &partners);
    let (known, other) = (partners.client("orders.partner.example"), partners.client("other.partner.example"));
    let status = |tls: crate::support::tls::Tls, path: &str| {
        let mut client = tls.connect(gateway.address("https"), "localhost").unwrap();
        let forged = [("x-client-cert", "orders"), ("x-ssl-client-s-dn", "CN=orders.partner.example")];
        let response = client.exchange(request("GET", path, &forged, b"")).unwrap();
        (response.status, response.header("www-authenticate").map(str::to_owned))
    };
    let challenge = Some("ClientCertificate".to_owned());
    assert_eq!(status(authority.trusting().with_certificate(&known), "/known"), (200, None));
    assert_eq!(origin.last().header("x-consumer-name").as_deref(), Some("orders"));
    assert_eq!(origin.last().header("x-credential-id").as_deref(), Some("mtls:DNS:orders.partner.example"));
    assert_eq!(status(authority.trusting(), "/known"), (401, challenge.clone()));
    assert_eq!(status(authority.trusting().with_certificate(&other), "/known"), (401, challenge));
    assert_eq!(status(authority.trusting().with_certificate(&other), "/any"), (200, None));
    assert_eq!(origin.last().header("x-consumer-name"), None, "a stranger is no consumer");
    let line = gateway.logged("the stranger", |line| line["subject"] == "other.partner.example");
    assert!(line["consumer"].is_null(), "{line}");
    assert!(line["credential"].as_str().is_some_and(|id| id.starts_with("mtls:")), "{line}");
}

/// A gateway whose certificate is of `authority` and which knows the clients of `partners`.
fn asking(toml: &str, authority: &Authority, partners: &Authority) -> Gateway {
    let prepare = |directory: &Path| {
        authority.issue(&["localhost"]).write(directory, "a");
        std::fs::write(directory.join("ca.pem"), &partners.pem).unwrap();
    };
    Gateway::try_start_with(toml, prepare).unwrap_or_else(|ended| panic!("did not start: {ended:?}"))
}

/// A connection may outlive the certificate that it was opened with, and so may a session that is resumed.
#[test]
fn a_certificate_that_expires_counts_no_more_on_a_connection_that_is_open() {
    let origin = Origin::start("a");
    let (authority, partners) = (Authority::new(), Authority::new());
    let toml = format!(
        "[listeners.https]\naddress = \"127.0.0.1:0\"\n\
         tls = {{ certificates = [{{ cert = \"a.pem\", key = \"a.key\" }}], client_ca = \"ca.pem\" }}\n{}\
         [routes.any]\nmatch = {{ path = \"/any\" }}\nupstream = \"app\"\nfilters = [{{ mtls = {{ anyone_by = \"dns\" }} }}]\n",
        upstream("app", &[&origin], "")
    );
    let gateway = asking(&toml, &authority, &partners);
    let ask = |client: &mut TlsClient| client.exchange(request("GET", "/any", &[], b"")).map(|response| response.status);
    // However slow the machine is: where the time was over before the first answer, there is twice as much for the next.
    let opened = [3, 6, 12, 24, 48].into_iter().find_map(|seconds| {
        let ends = SystemTime::now() + Duration::from_secs(seconds);
        let own = partners.sign(&["orders.partner.example"], |params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            params.not_after = ends.into();
        });
        let tls = authority.trusting().with_certificate(&own);
        let mut client = tls.connect(gateway.address("https"), "localhost").ok()?;
        (ask(&mut client).ok()? == 200).then_some((ends, tls, client))
    });
    let (ends, tls, mut client) = opened.expect("no request was answered while its certificate was valid");
    // Certificates end with a whole second, which counts.
    let (over, before) = (ends + Duration::from_secs(1), origin.count());
    eventually("the certificate has expired", Duration::from_secs(120), || SystemTime::now() > over);
    assert_eq!(ask(&mut client).unwrap(), 401);
    assert!(gateway.metric("gatewright_auth_total", &[("filter", "mtls"), ("outcome", "expired")]) >= 1.0);
    // A new connection is refused by the handshake, or resumes the session and is as good as the old one.
    if let Ok(mut again) = tls.connect(gateway.address("https"), "localhost") {
        assert_ne!(ask(&mut again).ok(), Some(200));
    }
    assert_eq!(origin.count(), before, "nothing of it reached the origin");
}
