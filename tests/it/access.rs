//! What no request gets around: every kind of it is authenticated, wherever its answer comes from.

use crate::support::h2::{self, H2Client};
use crate::support::raw::{Client, request, send};
use crate::support::tokens::Signer;
use crate::support::{Answer, Gateway, Origin, SOON, eventually, runtime, upstream};
use http::Request;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

const SECRET: &str = "canary-secret-0123456789abcdef01";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn start(toml: &str) -> Gateway {
    let prepare = |directory: &Path| std::fs::write(directory.join("secret"), SECRET).unwrap();
    Gateway::try_start_with(toml, prepare).unwrap_or_else(|ended| panic!("did not start: {ended:?}"))
}

fn config(origin: &Origin) -> String {
    let key = |filters: &str| format!("filters = [{{ api_key = {{}} }}{filters}]\n");
    let hash = ring::digest::digest(&ring::digest::SHA256, b"canary-key");
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    [
        "[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\n".to_owned(),
        format!("[consumers.acme]\nroles = [\"read\"]\ncredentials = [{{ api_key = {{ sha256 = \"{hash}\" }} }}]\n"),
        upstream("app", &[origin], ""),
        format!("[routes.app]\nmatch = {{ path = \"/app\" }}\nupstream = \"app\"\n{}", key("")),
        format!("[routes.said]\nmatch = {{ path = \"/said\" }}\n{}", key(", { respond = { status = 200, body = \"said\" } }")),
        format!("[routes.gone]\nmatch = {{ path = \"/gone\" }}\n{}", key(", { redirect = { to = \"/app\" } }")),
        format!("[routes.fine]\nmatch = {{ path = \"/fine\" }}\n{}", key(", { health = {} }")),
        "[routes.web]\nmatch = { path = \"/web\" }\nupstream = \"app\"\n\
         filters = [{ cors = { origins = [\"https://app.example\"], credentials = true } }, { api_key = {} }]\n"
            .to_owned(),
    ]
    .concat()
}

const PATHS: [&str; 5] = ["/app", "/said", "/gone", "/fine", "/web"];

#[test]
fn every_kind_of_request_needs_the_credential() {
    let origin = Origin::start("a");
    let gateway = start(&config(&origin));
    let preflight = [("origin", "https://app.example"), ("access-control-request-method", "PUT")];
    let upgrade =
        [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "x"), ("sec-websocket-version", "13")];
    let cases: [(&str, &[(&str, &str)]); 9] = [
        ("GET", &[]),
        ("HEAD", &[]),
        ("POST", &[]),
        ("OPTIONS", &[]),
        ("TRACE", &[]),
        ("BREW", &[]),
        ("GET", &upgrade),
        ("GET", &[("expect", "100-continue")]),
        ("OPTIONS", &[("origin", "https://app.example")]),
    ];
    let ask = |method: &str, path: &str, headers: &[(&str, &str)]| {
        let mut client = Client::connect(gateway.http());
        client.send(request(method, path, headers, b""));
        client.read_to(method == "HEAD").unwrap()
    };
    for path in PATHS {
        for (method, headers) in cases {
            assert_eq!(ask(method, path, headers).status, 401, "{method} {path} {headers:?}");
        }
        // Browsers send no credentials with a preflight: `cors` answers it, and only there.
        let answer = ask("OPTIONS", path, &preflight);
        let allowed = answer.header("access-control-allow-origin").map(str::to_owned);
        let expected = if path == "/web" { (204, Some("https://app.example".to_owned())) } else { (401, None) };
        assert_eq!((answer.status, allowed), expected, "{path}");
    }
    // A page may read why it was refused.
    let refused = ask("GET", "/web", &preflight[..1]);
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("https://app.example")));
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        for path in PATHS {
            for method in ["GET", "HEAD", "POST", "OPTIONS"] {
                let request = Request::builder().method(method).uri(format!("http://localhost{path}")).body(()).unwrap();
                let answer = client.call(request, &[]).await.unwrap();
                assert_eq!(answer.status, 401, "{method} {path} over HTTP/2");
                assert!(answer.header("www-authenticate").is_some());
            }
            let request = Request::get(format!("http://localhost{path}")).header("x-api-key", "canary-key").body(()).unwrap();
            assert_ne!(client.call(request, &[]).await.unwrap().status, 401, "{path} over HTTP/2");
        }
    });
    assert_eq!(origin.count(), 2, "only the two good ones reached the origin");
    for path in PATHS {
        assert_ne!(ask("GET", path, &[("x-api-key", "canary-key")]).status, 401, "{path}");
    }
}

#[test]
fn another_service_decides_who_may_pass() {
    let (origin, judge) = (Origin::start("a"), Origin::start("judge"));
    let says = |status: &str, headers: &str| {
        judge.answer(Answer::Bytes(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n{headers}\r\n").into_bytes()));
    };
    let toml = format!(
        "[log]\nlevel = \"trace\"\n[consumers.acme]\nroles = [\"own\"]\n{}[routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n\
         filters = [{{ forward_auth = {{ url = \"http://{}/verify\", response_headers = [\"x-tenant\"], timeout = \"2s\", \
         identity = {{ name = \"x-name\", roles = \"x-groups\" }} }} }}, {{ require = {{ roles = [\"ops\"] }} }}]\n",
        upstream("app", &[&origin], ""),
        judge.address(),
    );
    let gateway = start(&toml);
    let sent = [("authorization", "Bearer canary-token"), ("cookie", "canary=cookie"), ("x-tenant", "forged"), ("x-other", "1")];
    let ask = || {
        let response = send(gateway.http(), "POST", "/orders?a=1", &sent, b"canary-body");
        let code = serde_json::from_str::<serde_json::Value>(&response.text()).ok();
        (response.status, code.and_then(|body| body["code"].as_str().map(str::to_owned)).unwrap_or_default())
    };
    says("200 OK", "x-name: acme\r\nx-groups: ops, x\r\nx-tenant: t1\r\n");
    assert_eq!(ask(), (200, String::new()));
    let seen = origin.last();
    assert_eq!(seen.header_all("x-tenant"), ["t1"]);
    assert_eq!(seen.header("x-consumer-name").as_deref(), Some("acme"));
    assert_eq!(seen.header("x-consumer-roles").as_deref(), Some("ops,x,own"));
    assert_eq!(seen.header("x-groups"), None);
    let question = judge.last();
    assert_eq!(question.request_line(), "GET /verify HTTP/1.1");
    assert_eq!(question.header("authorization").as_deref(), Some("Bearer canary-token"));
    assert_eq!(question.header("x-forwarded-uri").as_deref(), Some("/orders?a=1"));
    assert_eq!(question.header("x-forwarded-method").as_deref(), Some("POST"));
    assert_eq!((question.header("x-other"), question.body.len()), (None, 0));
    let line = gateway.logged("the request", |line| line["consumer"] == "acme");
    assert_eq!(line["credential"], "forward_auth:acme");

    let before = origin.count();
    says("200 OK", "x-name: bob\r\nx-groups: guests\r\n");
    assert_eq!(ask(), (403, "forbidden".into()), "known, but without the role");
    says("401 Unauthorized", "www-authenticate: Custom realm=\"x\"\r\n");
    assert_eq!(ask(), (401, "credential_invalid".into()));
    says("403 Forbidden", "");
    assert_eq!(ask(), (403, "forbidden".into()));
    says("418 Teapot", "");
    assert_eq!(ask(), (503, "authorization_unavailable".into()));
    judge.kill();
    assert_eq!(ask(), (503, "authorization_unavailable".into()), "nothing passes that was not permitted");
    assert_eq!(origin.count(), before);
    let text = gateway.stderr() + &gateway.access_log().iter().map(ToString::to_string).collect::<String>();
    assert!(!text.contains("canary"), "{text}");
}

#[test]
fn a_service_can_check_that_a_request_came_through() {
    let (origin, inner) = (Origin::start("a"), Origin::start("b"));
    let random = aws_lc_rs::rand::SystemRandom::new();
    let key = aws_lc_rs::signature::Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    use base64::Engine as _;
    let pem = base64::engine::general_purpose::STANDARD.encode(key.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{pem}\n-----END PRIVATE KEY-----\n");
    let edge =
        format!("[identity]\nkey = {{ file = \"key.pem\" }}\nissuer = \"edge\"\naudience = [\"inner\"]\n{}", config(&origin));
    let edge = Gateway::try_start_with(&edge, |directory| std::fs::write(directory.join("key.pem"), &pem).unwrap()).unwrap();
    let forged = [("x-api-key", "canary-key"), ("x-gateway-identity", "forged"), ("connection", "x-gateway-identity")];
    assert_eq!(send(edge.http(), "GET", "/app", &forged, b"").status, 200);
    let tokens = origin.last().header_all("x-gateway-identity");
    assert_eq!(tokens.len(), 1, "{tokens:?}");
    let jwks = edge.admin.get("/jwks");
    assert_eq!((jwks.status, jwks.header("content-type")), (200, Some("application/jwk-set+json")));
    assert!(!jwks.text().contains("\"d\""));
    // A service with a verifier of its own; here another gateway.
    let toml = format!(
        "[jwt.edge]\nissuer = \"edge\"\naudience = [\"inner\"]\nalgorithms = [\"EdDSA\"]\njwks = {{ file = \"edge.json\" }}\n\
         claims = {{ roles = \"roles\" }}\n{}[routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n\
         filters = [{{ jwt = {{ issuer = \"edge\", token = [\"header:x-gateway-identity\"] }} }}, \
         {{ require = {{ roles = [\"read\"], condition = \"claims.consumer == 'acme'\" }} }}]\n",
        upstream("app", &[&inner], "")
    );
    let service = Gateway::try_start_with(&toml, |dir| std::fs::write(dir.join("edge.json"), jwks.text()).unwrap()).unwrap();
    assert_eq!(send(service.http(), "GET", "/a", &[("x-gateway-identity", &tokens[0])], b"").status, 200);
    assert_eq!(send(service.http(), "GET", "/a", &[("x-gateway-identity", "forged")], b"").status, 401);
    let log = edge.stderr() + &edge.access_log().iter().map(ToString::to_string).collect::<String>();
    assert!(!log.contains(&tokens[0]));
}

/// Whether a token verifies by one of the keys of a set, as a service does it.
fn verifies(token: &str, set: &jsonwebtoken::jwk::JwkSet) -> bool {
    let header = jsonwebtoken::decode_header(token).unwrap();
    let Some(jwk) = set.find(header.kid.as_deref().unwrap()) else { return false };
    let mut rules = jsonwebtoken::Validation::new(header.alg);
    rules.set_audience(&["inner"]);
    let key = jsonwebtoken::DecodingKey::from_jwk(jwk).unwrap();
    jsonwebtoken::decode::<Value>(token, &key, &rules).is_ok()
}

#[test]
fn the_key_of_identities_is_rotated_without_a_token_that_nobody_can_verify() {
    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
    use base64::Engine as _;
    let pem = |kind: &str, der: &[u8]| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {kind} KEY-----\n{text}\n-----END {kind} KEY-----\n")
    };
    let random = aws_lc_rs::rand::SystemRandom::new();
    let old = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let new = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let next = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, new.as_ref()).unwrap();
    let next: PublicKeyX509Der = next.public_key().as_der().unwrap();
    let origin = Origin::start("a");
    let toml = |keys: &str| format!("[identity]\n{keys}\naudience = [\"inner\"]\n{}", config(&origin));
    let stages = [
        "key = { file = \"old.pem\" }",
        "key = { file = \"old.pem\" }\nalso_publish = [{ file = \"new.pub\" }]",
        "key = { file = \"new.pem\" }\nalso_publish = [{ file = \"old.pem\" }]",
        "key = { file = \"new.pem\" }",
    ];
    let prepare = |directory: &std::path::Path| {
        std::fs::write(directory.join("old.pem"), pem("PRIVATE", old.as_ref())).unwrap();
        std::fs::write(directory.join("new.pem"), pem("PRIVATE", new.as_ref())).unwrap();
        std::fs::write(directory.join("new.pub"), pem("PUBLIC", next.as_ref())).unwrap();
    };
    let edge = Gateway::try_start_with(&toml(stages[0]), prepare).unwrap();
    let published = || serde_json::from_str::<jsonwebtoken::jwk::JwkSet>(&edge.admin.get("/jwks").text()).unwrap();
    let mut sets = vec![published()];
    // The stage whose reload has begun, and the one whose reload is over: in between either may be in force.
    let (begun, stage, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    // The earliest stage when a request was sent, the latest when it was answered, and what the service got.
    let tokens: Vec<(usize, usize, String)> = std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let mut tokens = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                let before = stage.load(Ordering::SeqCst);
                assert_eq!(send(edge.http(), "GET", "/app", &[("x-api-key", "canary-key")], b"").status, 200);
                tokens.push((before, begun.load(Ordering::SeqCst), origin.last().header("x-gateway-identity").unwrap()));
            }
            tokens
        });
        let some_requests = || {
            let before = origin.count();
            eventually("requests of this stage", SOON, || origin.count() > before + 20);
        };
        some_requests();
        for (number, keys) in stages.iter().enumerate().skip(1) {
            begun.store(number, Ordering::SeqCst);
            edge.reload_with(&toml(keys)).unwrap();
            stage.store(number, Ordering::SeqCst);
            sets.push(published());
            some_requests();
        }
        stop.store(true, Ordering::SeqCst);
        asked.join().unwrap()
    });
    let sizes: Vec<_> = sets.iter().map(|set| set.keys.len()).collect();
    assert_eq!(sizes, [1, 2, 2, 1]);
    for (before, after, token) in &tokens {
        // Services have the set of this stage, or still that of the one before, or have just read that of the next.
        let held = sets.iter().enumerate().skip(after.saturating_sub(1)).take_while(|(at, _)| *at <= before + 1);
        for (at, set) in held {
            assert!(verifies(token, set), "a token of stage {before} to {after} by the keys of stage {at}");
        }
    }
    let last = &tokens.last().unwrap().2;
    assert!(!verifies(last, &sets[0]), "the new key was published from the start");
}

#[test]
fn permissions_hold_by_method_path_and_claim() {
    let origin = Origin::start("a");
    let toml = format!(
        "[jwt.main]\nalgorithms = ['HS256']\nsecret = {{ file = 'secret' }}\nclaims = {{ roles = 'roles' }}\n{}\
         [routes.orders]\nmatch = {{ path = \"/orders/{{*rest}}\" }}\nupstream = \"app\"\nfilters = [{{ jwt = {{ issuer = \"main\" }} }},\n\
         {{ require = {{ permissions = [\n{{ roles = [\"orders:write\"], methods = [\"POST\"], path = \"/orders/{{id}}\" }},\n\
         {{ roles = [\"orders:read\"], methods = [\"GET\"] }} ], condition = \"claims.org == request.headers['x-org']\" }} }}]\n\
         [routes.scoped]\nmatch = {{ path = \"/scoped\" }}\nupstream = \"app\"\n\
         filters = [{{ jwt = {{ issuer = \"main\" }} }}, {{ require = {{ scopes = [\"a\", \"b\"] }} }}]\n",
        upstream("app", &[&origin], "")
    );
    let gateway = start(&toml);
    let signer = Signer::hs256("k", SECRET.as_bytes());
    let ask = |roles: &[&str], org: &str, method: &str, path: &str| {
        let token = signer.token(&json!({ "sub": "a", "exp": now() + 60, "roles": roles, "org": org }));
        let headers = [("authorization", format!("Bearer {token}")), ("x-org", "acme".to_owned())];
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        send(gateway.http(), method, path, &headers, b"").status
    };
    assert_eq!(ask(&["orders:write"], "acme", "POST", "/orders/7"), 200);
    assert_eq!(ask(&["orders:write"], "acme", "POST", "/orders/7/items"), 403);
    assert_eq!(ask(&["orders:write"], "acme", "GET", "/orders/7"), 403);
    assert_eq!(ask(&["orders:read"], "acme", "GET", "/orders/7/items"), 200);
    assert_eq!(ask(&["orders:read"], "acme", "DELETE", "/orders/7"), 403);
    assert_eq!(ask(&["orders:read"], "other", "GET", "/orders/7"), 403);
    // What is authorised is what is routed: no spelling of the path is another path.
    assert_eq!(ask(&["orders:write"], "acme", "POST", "/orders/7/../8"), 200);
    assert_eq!(origin.last().request_line(), "POST /orders/8 HTTP/1.1");
    let labels = [("route", "orders"), ("filter", "require"), ("outcome", "forbidden")];
    assert_eq!(gateway.metric("gatewright_auth_total", &labels), 4.0);
    let token = format!("Bearer {}", signer.token(&json!({ "sub": "a", "exp": now() + 60, "scope": "c" })));
    let refused = send(gateway.http(), "GET", "/scoped", &[("authorization", &token)], b"");
    let challenge = "Bearer error=\"insufficient_scope\", scope=\"a b\"";
    assert_eq!((refused.status, refused.header("www-authenticate")), (403, Some(challenge)));
}

/// `any_of` asks the methods until one decides. What the others would have taken out of the query must not go upstream, nor to the
/// service that one of them asks.
#[test]
fn no_credential_of_the_query_reaches_an_origin_or_another_service() {
    let (origin, judge) = (Origin::start("a"), Origin::start("judge"));
    let jwt = "{ jwt = { issuer = \"main\", token = [\"authorization\", \"query:token\"], forward = false } }";
    let key = "{ api_key = { query = \"key\" } }";
    let asked = format!(
        "{{ forward_auth = {{ url = \"http://{}/\", headers = [\"x-sign\"], identity = {{ name = \"x-name\" }} }} }}",
        judge.address()
    );
    let route = |name: &str, methods: &[&str]| {
        format!(
            "[routes.{name}]\nmatch = {{ path = \"/{name}\" }}\nupstream = \"app\"\nfilters = [{{ any_of = {{ methods = [{}] }} }}]\n",
            methods.join(", ")
        )
    };
    let toml = [
        "[jwt.main]\nalgorithms = ['HS256']\nsecret = { file = 'secret' }\n".to_owned(),
        config(&origin),
        route("first", &[jwt, key]),
        route("last", &[key, jwt]),
        route("asked", &[&asked, key, jwt]),
    ]
    .concat();
    let gateway = start(&toml);
    let token = Signer::hs256("k", SECRET.as_bytes()).token(&json!({ "sub": "a", "exp": now() + 60 }));
    let bearer = format!("Bearer {token}");
    let no = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
    judge.answer(Answer::Bytes(no.as_bytes().to_vec()));
    for (target, header, status, arrives) in [
        ("/first?a=1&key=canary-key".to_owned(), Some(bearer.as_str()), 200, "/first?a=1"),
        (format!("/first?token={token}&a=1&key=canary"), None, 200, "/first?a=1"),
        (format!("/last?key=canary-key&a=1&token={token}"), None, 200, "/last?a=1"),
        (format!("/last?a=1&token={token}"), None, 200, "/last?a=1"),
        ("/last?a=1&key=canary".to_owned(), Some(bearer.as_str()), 401, ""),
        ("/asked?key=canary-key&a=1".to_owned(), None, 200, "/asked?a=1"),
        (format!("/asked?token={token}&a=1"), None, 200, "/asked?a=1"),
    ] {
        let before = origin.count();
        let headers: Vec<_> = header.iter().map(|value| ("authorization", *value)).collect();
        assert_eq!(send(gateway.http(), "GET", &target, &headers, b"").status, status, "{target}");
        assert_eq!(origin.count() - before, usize::from(status == 200), "{target}");
        if status == 200 {
            assert_eq!(origin.last().request_line(), format!("GET {arrives} HTTP/1.1"), "{target}");
        }
    }
    assert!(judge.count() > 1);
    for request in origin.requests().iter().chain(&judge.requests()) {
        let head = String::from_utf8_lossy(&request.head);
        assert!(!head.contains("canary") && !head.contains(&token), "{head}");
    }
}

/// A service that trusts the gateway reads a token without asking who signed it. What no method has verified is not sent to it.
#[test]
fn no_token_reaches_an_origin_beside_the_key_that_opened_the_route() {
    let origin = Origin::start("a");
    let any = "filters = [{ any_of = { methods = [{ api_key = {} }, { jwt = { issuer = \"main\" } }] } }]\n";
    let toml = [
        "[jwt.main]\nalgorithms = ['HS256']\nsecret = { file = 'secret' }\n".to_owned(),
        config(&origin),
        format!("[routes.any]\nmatch = {{ path = \"/any\" }}\nupstream = \"app\"\n{any}"),
    ]
    .concat();
    let gateway = start(&toml);
    let signed = |key: &[u8]| format!("Bearer {}", Signer::hs256("k", key).token(&json!({ "sub": "a", "exp": now() + 60 })));
    let (good, forged) = (signed(SECRET.as_bytes()), signed(b"another-secret-0123456789abcdef0"));
    let ask = |headers: &[(&str, &str)]| send(gateway.http(), "GET", "/any", headers, b"").status;
    assert_eq!(ask(&[("authorization", &forged)]), 401);
    assert_eq!(ask(&[("x-api-key", "canary-key"), ("authorization", &forged)]), 200);
    assert_eq!((origin.last().header("authorization"), origin.last().header("x-api-key")), (None, None));
    assert_eq!(ask(&[("authorization", &good)]), 200);
    assert_eq!(origin.last().header("authorization"), Some(good), "it was verified, and `forward` says that it goes on");
}

/// `acme:canary-password` in base64.
const PAIR: &str = "YWNtZTpjYW5hcnktcGFzc3dvcmQ=";

/// Each kind of credential over HTTP/2: as a request, and as a call of gRPC, which is refused in a way of its own.
async fn over_http2(gateway: &Gateway, tokens: &[&str]) -> Vec<h2::Answer> {
    let client = H2Client::plain(gateway.http()).await;
    let mut answers = Vec::new();
    let bearers = tokens.iter().flat_map(|token| [("authorization", format!("Bearer {token}")), ("x-token", token.to_string())]);
    let others = [
        ("x-api-key", "canary-key"),
        ("x-api-key", "canary"),
        ("authorization", &format!("Basic {PAIR}")),
        ("authorization", "Bearer canary.a.b"),
        ("cookie", "token=canary"),
        ("signature", "sig=:canary:"),
    ]
    .map(|(name, value)| (name, value.to_owned()));
    for (name, value) in bearers.chain(others) {
        for path in ["/jwt", "/any", "/app", "/by/authorization", "/nowhere"] {
            let secret = value.rsplit([' ', '=']).find(|part| !part.is_empty()).unwrap();
            for (method, kind) in [("GET", None), ("POST", Some("application/grpc"))] {
                let request =
                    Request::builder().method(method).uri(format!("http://localhost{path}?token={secret}&key={secret}"));
                let request =
                    kind.into_iter().fold(request, |request, kind| request.header("content-type", kind).header("te", "trailers"));
                let body: &[&[u8]] = if kind.is_some() { &[b"\0\0\0\0\0"] } else { &[] };
                answers.push(client.call(request.header(name, &value).body(()).unwrap(), body).await.unwrap());
            }
        }
    }
    answers
}

/// Keys, tokens, passwords and signatures through every filter, over HTTP/1.1 and HTTP/2 and as calls of gRPC, at every level of the
/// log, good and bad: none of them comes out.
#[test]
fn no_secret_comes_out_at_any_level() {
    let origin = Origin::start("a");
    let signer = Signer::hs256("k", SECRET.as_bytes());
    let token = signer.token(&json!({ "sub": "a", "exp": now() + 60, "jti": "canary-jti" }));
    let expired = signer.token(&json!({ "sub": "a", "exp": 1, "jti": "canary-jti" }));
    let limited = |header: &str| {
        format!(
            "[routes.by_{header}]\nmatch = {{ path = \"/by/{header}\" }}\nupstream = \"app\"\nfilters = [\
             {{ rate_limit = {{ by = \"header:{header}\", limits = [{{ rate = \"1/1h\", burst = 1 }}] }} }}, \
             {{ jwt = {{ issuer = \"main\", token = [\"header:x-token\", \"header:x-sign\"] }} }}]\n"
        )
    };
    let routes = format!(
        "[jwt.main]\nalgorithms = ['HS256']\nsecret = {{ file = 'secret' }}\n\
         [routes.jwt]\nmatch = {{ path = \"/jwt\" }}\nupstream = \"app\"\nfilters = [{{ jwt = {{ issuer = \"main\", \
         token = [\"authorization\", \"header:x-token\", \"cookie:token\", \"query:token\"] }} }}]\n\
         [routes.any]\nmatch = {{ path = \"/any\" }}\nupstream = \"app\"\nfilters = [{{ any_of = {{ methods = [{{ api_key = {{ query = \"key\" }} }}, \
         {{ jwt = {{ issuer = \"main\" }} }}, {{ hmac = {{}} }}, {{ basic = {{}} }}, {{ mtls = {{}} }}] }} }}, \
         {{ require = {{ condition = \"request.headers['x-token'] != 'x'\" }} }}]\n{}{}",
        // Counted by what the requests carry, before anybody looks at it.
        ["authorization", "x-token", "cookie", "x-sign"].map(limited).concat(),
        config(&origin)
    );
    for level in ["error", "warn", "info", "debug", "trace"] {
        let gateway = start(&format!("[log]\nlevel = \"{level}\"\n{routes}"));
        let mut said = String::new();
        let mut asked = 0;
        let by = ["/by/authorization", "/by/x-token", "/by/cookie", "/by/x-sign"];
        for path in ["/jwt", "/any", "/app", "/web", "/nowhere"].into_iter().chain(by).chain(by) {
            for value in [token.as_str(), &expired, "canary.a.b", "canary"] {
                for (name, value) in [
                    ("authorization", format!("Bearer {value}")),
                    ("authorization", format!("Basic {value}")),
                    ("x-token", value.to_owned()),
                    ("x-sign", value.to_owned()),
                    ("cookie", format!("token={value}")),
                    ("x-api-key", value.to_owned()),
                    ("signature", format!("sig=:{value}:")),
                ] {
                    let target = format!("{path}?token={value}&key={value}");
                    for (target, headers) in
                        [(path, vec![(name, value.as_str()); 2]), (target.as_str(), vec![(name, value.as_str())])]
                    {
                        let response = send(gateway.http(), "GET", target, &headers, b"");
                        asked += 1;
                        if response.status != 200 {
                            said.push_str(&format!("{:?}\n{}\n", response.headers, response.text()));
                        }
                    }
                }
            }
        }
        let answers = runtime().block_on(over_http2(&gateway, &[&token, &expired]));
        asked += answers.len();
        let of_calls = answers.iter().filter(|answer| answer.header("grpc-status").is_some()).count();
        assert!(of_calls >= 20, "only {of_calls} calls were refused by the gateway");
        for answer in answers.iter().filter(|answer| answer.status != 200 || answer.header("grpc-status").is_some()) {
            said.push_str(&format!("{answer:?}\n{}\n", String::from_utf8_lossy(&answer.body)));
        }
        eventually("the access log is complete", SOON, || gateway.access_log().len() >= asked);
        let log: String = gateway.access_log().iter().map(|line| format!("{line}\n")).collect();
        let (metrics, status) = (gateway.admin.get("/metrics").text(), gateway.admin.get("/status").text());
        let top = gateway.admin.get("/limits/top?count=1000").text();
        assert!(top.matches(": \"h#").count() > 12, "keys of credentials are counted: {top}");
        let reload = gateway.reload_with(&routes.replace("/said", "said")).unwrap_err();
        let parts = [("answers", &said), ("access log", &log), ("stderr", &gateway.stderr()), ("metrics", &metrics)];
        for (name, text) in parts.into_iter().chain([("status", &status), ("reload", &reload), ("limits", &top)]) {
            for secret in ["canary", token.as_str(), &expired, SECRET, token.rsplit('.').next().unwrap(), PAIR] {
                assert!(!text.contains(secret), "{level}: a secret is in the {name}:\n{text}");
            }
        }
    }
}
