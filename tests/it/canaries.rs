//! Secrets through what asks others: a Redis with a password, issued keys, passwords, `forward_auth`, limits and caches in Redis. With Redis
//! there, refusing and away, at every level of the log; in answers, commands, what the admin listener tells, and what is stored.
//!
//! `access.rs` has the same for tokens and signatures, `auth.rs` for what no other party is asked about.

use crate::issued::{issue, key};
use crate::support::gateway::{Ended, run};
use crate::support::raw::send;
use crate::support::redis::Redis;
use crate::support::{Answer, Gateway, Origin, SOON, Script, eventually, upstream};
use base64::Engine as _;
use std::sync::Arc;

const PASSWORD: &str = "canary-redis-password";
/// Of "correct horse", as in conf/auth.toml.
const ARGON2: &str = "$argon2id$v=19$m=19456,t=2,p=1$4/vI+VTN36+dcmGnizy/7g$ebQ/JEImaKDb+Qso6t80BAcAiz48AkfVYWBIDhc+mso";

fn basic(pair: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

/// What must be nowhere, beside all that begins with `canary`.
struct Secrets(Vec<String>);

impl Secrets {
    #[track_caller]
    fn are_not_in(&self, what: &str, text: &str) {
        for secret in self.0.iter().map(String::as_str).chain(["canary"]) {
            assert!(!text.contains(secret), "{secret} is in {what}:\n{text}");
            let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
            assert!(!text.contains(&hex), "{secret} is in {what}, in hexadecimal:\n{text}");
        }
    }
}

/// Everything that is in Redis as text, what is compressed unpacked.
fn contents(url: &str) -> String {
    let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
    let mut text = String::new();
    for key in keys {
        let kind: String = redis::cmd("TYPE").arg(&key).query(&mut connection).unwrap();
        let values: Vec<Vec<u8>> = match kind.as_str() {
            "string" => vec![redis::cmd("GET").arg(&key).query(&mut connection).unwrap()],
            "hash" => redis::cmd("HGETALL").arg(&key).query(&mut connection).unwrap(),
            "set" => redis::cmd("SMEMBERS").arg(&key).query(&mut connection).unwrap(),
            "zset" => redis::cmd("ZRANGE").arg(&key).arg(0).arg(-1).query(&mut connection).unwrap(),
            other => panic!("what is a {other}?"),
        };
        text.push_str(&format!("{} =", String::from_utf8_lossy(&key)));
        for value in values {
            text.push_str(&format!(" {}", String::from_utf8_lossy(&value)));
            // The head of what is stored of an answer is within.
            if let Some(at) = value.windows(4).position(|magic| magic == [0x28, 0xb5, 0x2f, 0xfd]) {
                let plain = zstd::stream::decode_all(&value[at..]).unwrap();
                text.push_str(&format!(" unpacked {}", String::from_utf8_lossy(&plain)));
            }
        }
        text.push('\n');
    }
    text
}

fn toml(level: &str, origin: &Origin, judge: &Origin) -> String {
    let route = |name: &str, filters: &str, more: &str| {
        format!("[routes.{name}]\nmatch = {{ path = \"/{name}\" }}\nupstream = \"app\"\nfilters = [{filters}]\n{more}")
    };
    let cache = "cache = { store = \"memory+redis\", key = { headers = [\"x-session\"] } }\n";
    let asked = format!(
        "{{ forward_auth = {{ url = \"http://{}/\", cache = \"1m\", timeout = \"300ms\", headers = [\"authorization\", \"cookie\"] }} }}",
        judge.address()
    );
    let limit = |by: &str| {
        format!(
            "{{ rate_limit = {{ by = \"header:{by}\", limits = [{{ rate = \"3/1h\" }}], store = \"redis\", shadow = true }} }}"
        )
    };
    let refusing = "{ rate_limit = { by = \"header:x-api-key\", limits = [{ rate = \"1/1h\" }] } }, { api_key = {} }";
    [
        format!("[log]\nlevel = \"{level}\"\n[redis]\nurl = {{ file = \"redis-url\" }}\nprefix = \"t\"\ntimeout = \"200ms\"\n"),
        "[consumer_source]\nsource = \"redis\"\n".to_owned(),
        format!(
            "[consumers.acme]\ncredentials = [{{ basic = {{ username = \"acme\", password = {{ argon2 = \"{ARGON2}\" }} }} }}]\n"
        ),
        upstream("app", &[origin], ""),
        route("key", &format!("{}, {{ api_key = {{}} }}", limit("x-api-key")), ""),
        route("limited", refusing, ""),
        route("password", &format!("{}, {{ basic = {{}} }}", limit("authorization")), ""),
        route("query", "{ api_key = { query = \"key\" } }", cache),
        route("keyed", "{ api_key = {} }", cache),
        route("login", "{ basic = {} }", cache),
        route("asked", &asked, cache),
        route("open", "", cache),
    ]
    .concat()
}

struct Scene<'a> {
    level: &'a str,
    gateway: &'a Gateway,
    secrets: &'a Secrets,
}

impl Scene<'_> {
    fn look(&self, what: &str, text: &str) {
        self.secrets.are_not_in(&format!("{what} ({})", self.level), text);
    }

    fn printed(&self, arguments: &[&str]) -> Ended {
        let ended = run(arguments);
        self.look(&arguments.join(" "), &format!("{}{}", ended.stdout, ended.stderr));
        ended
    }

    /// Every kind of credential, good and bad, over every route; how many were answered by the origin or the cache.
    fn requests(&self, issued: &str) -> usize {
        let (right, wrong) = (basic("acme:correct horse"), basic("acme:canary-wrong"));
        let mut passed = 0;
        for key in [issued, "canary-key"] {
            for (path, headers) in [
                ("/key".to_owned(), vec![("x-api-key", key)]),
                ("/limited".to_owned(), vec![("x-api-key", key)]),
                (format!("/query?key={key}&a=1"), vec![]),
                ("/keyed".to_owned(), vec![("x-api-key", key), ("x-session", "canary-session")]),
                ("/password".to_owned(), vec![("authorization", &*right)]),
                ("/password".to_owned(), vec![("authorization", &*wrong)]),
                ("/login".to_owned(), vec![("authorization", &*right)]),
                ("/login".to_owned(), vec![("authorization", &*wrong)]),
                ("/asked".to_owned(), vec![("authorization", &*wrong), ("cookie", "canary=cookie")]),
                ("/asked".to_owned(), vec![("cookie", "canary=cookie")]),
                ("/open".to_owned(), vec![("cookie", "canary=cookie"), ("x-session", "canary-session"), ("x-api-key", key)]),
            ] {
                // Counted, and for the cache asked for twice.
                for _ in 0..2 {
                    let response = send(self.gateway.http(), "GET", &path, &headers, b"");
                    self.look(&format!("an answer to {path}"), &format!("{:?} {}", response.headers, response.text()));
                    passed += usize::from(response.status == 200);
                }
            }
        }
        passed
    }

    fn commands(&self, issued: &str) {
        for path in ["/metrics", "/status"] {
            self.look(path, &self.gateway.admin.get(path).text());
        }
        let top = self.gateway.admin.get("/limits/top?count=1000").text();
        assert!(top.contains("\"h#"), "keys that were refused stand there by their hash: {top}");
        self.look("/limits/top", &top);
        let admin = self.gateway.admin.argument();
        let shown = self.printed(&["limit", "--admin", &admin, "show", "key", &format!("header:x-api-key={issued}")]);
        assert!(shown.stdout.contains("h#"), "the key stands there by its hash: {shown:?}");
        self.printed(&["limit", "--admin", &admin, "--json", "show", "password", "header:authorization=canary"]);
        self.printed(&["limit", "--admin", &admin, "--json", "top"]);
        self.printed(&["limit", "--admin", &admin, "reset", "key", "header:x-api-key=canary"]);
        let config = self.gateway.config();
        let config = config.to_str().unwrap();
        for arguments in [
            &["key", "list", "-c", config][..],
            &["key", "revoke", "0000000000000000", "-c", config],
            // A key in the place of an id.
            &["key", "revoke", "canary-key", "-c", config],
            &["key", "rotate", issued, "-c", config],
            &["key", "new", "--redis", "--role", "x", "acme", "-c", config],
            &["check", "-c", config],
            &["check", "--format", "json", "-c", config],
        ] {
            self.printed(arguments);
        }
    }

    /// A configuration with secrets where they do not belong: whatever is wrong with it, its lines are not quoted with them.
    fn wrong_configurations(&self, toml: &str) {
        let url = format!("redis://:{PASSWORD}@127.0.0.1:6379");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wrong.toml");
        std::fs::write(directory.path().join("redis-url"), &url).unwrap();
        for (from, to) in [
            ("{ file = \"redis-url\" }", format!("\"{url}/nonsense\"")),
            ("{ file = \"redis-url\" }", format!("\"{url}\", nonsense = 1")),
            ("{ file = \"redis-url\" }", format!("[\"{url}\"]")),
            ("{ file = \"redis-url\" }", "{ file = \"url-of-nothing\" }".to_owned()),
            (ARGON2, "canary-password".to_owned()),
            (
                "password = { argon2",
                "password = \"canary-password\" } }, { basic = { username = \"b\", password = { argon2".to_owned(),
            ),
            ("{ api_key = {} }", "{ api_key = { key = \"canary-key\" } }".to_owned()),
            ("credentials = [", "credentials = [{ api_key = { sha256 = \"canary-key\" } }, ".to_owned()),
        ] {
            assert!(toml.contains(from), "{from}");
            std::fs::write(directory.path().join("url-of-nothing"), format!("nonsense://:{PASSWORD}@x")).unwrap();
            let whole = format!("{}[listeners.http]\naddress = \"127.0.0.1:0\"\n", toml.replacen(from, &to, 1));
            std::fs::write(&path, &whole).unwrap();
            let path = path.to_str().unwrap();
            for arguments in
                [&["check", "-c", path][..], &["check", "--format", "json", "-c", path], &["key", "list", "-c", path]]
            {
                let ended = self.printed(arguments);
                assert_eq!(ended.code, Some(78), "{to}: {ended:?}");
            }
            self.gateway.write_config(&whole);
            let ended = self.gateway.reload();
            self.look("a reload", &format!("{}{}", ended.stdout, ended.stderr));
            assert_eq!(ended.code, Some(1), "{to}: {ended:?}");
        }
    }
}

fn redis_is(gateway: &Gateway, up: bool) {
    let value = f64::from(u8::from(up));
    let is = |name: &str| gateway.metric(name, &[]) == value;
    eventually(&format!("Redis is up: {up}"), SOON, || is("gatewright_consumer_source_up") && is("gatewright_redis_up"));
}

#[test]
fn no_secret_comes_out_of_what_asks_others() {
    let (origin, judge) = (Origin::start("a"), Origin::start("judge"));
    // What is stored is stored by what the requests had.
    origin.answer(Answer::Script(Script(Arc::new(|_| {
        let head = "cache-control: public, max-age=1000\r\nvary: cookie, authorization, x-api-key, accept\r\nsurrogate-key: all";
        Some(format!("HTTP/1.1 200 OK\r\n{head}\r\ncontent-length: 2\r\n\r\nok").into_bytes())
    }))));
    for level in ["error", "warn", "info", "debug", "trace"] {
        let mut redis = Redis::start_with(&["--requirepass", PASSWORD]);
        let url = format!("redis://:{PASSWORD}@{}", redis.address());
        let toml = toml(level, &origin, &judge);
        let prepare = |directory: &std::path::Path| std::fs::write(directory.join("redis-url"), &url).unwrap();
        let gateway = Gateway::try_start_with(&toml, prepare).unwrap_or_else(|ended| panic!("{ended:?}"));
        redis_is(&gateway, true);
        let issued = issue(&gateway, &["acme"]);
        let pairs = ["acme:correct horse", "acme:canary-wrong"].map(|pair| basic(pair)["Basic ".len()..].to_owned());
        let secrets = Secrets([vec![issued.clone(), "correct horse".to_owned()], pairs.to_vec()].concat());
        let scene = Scene { level, gateway: &gateway, secrets: &secrets };

        let passed = scene.requests(&issued);
        assert!(passed >= 24, "only {passed} were let through: nothing is stored");
        eventually("what was fetched is in Redis", SOON, || {
            gateway.metric("gatewright_cache_redis_total", &[("result", "stored")]) >= 5.0
        });
        let stored = contents(&url);
        assert!(stored.contains("\"selecting\"") && stored.contains("cookie"), "{stored}");
        scene.look("Redis", &stored);
        scene.commands(&issued);
        for what in [&["--url", "http://127.0.0.1/open"][..], &["--tag", "all"], &["--all"]] {
            let purged = scene.printed(&[&["purge", "--admin", &gateway.admin.argument()], what].concat());
            assert_eq!(purged.code, Some(0), "{purged:?}");
        }

        // Away, and the other service too.
        redis.kill();
        judge.kill();
        redis_is(&gateway, false);
        scene.requests(&issued);
        scene.commands(&issued);
        judge.start_again();

        // There, but the password has changed: Redis refuses, and says so.
        redis.restart();
        redis_is(&gateway, true);
        let renamed = url.replace(PASSWORD, "canary-another-password");
        std::fs::write(gateway.config().with_file_name("redis-url"), renamed).unwrap();
        let ended = gateway.reload();
        scene.look("a reload", &format!("{}{}", ended.stdout, ended.stderr));
        redis_is(&gateway, false);
        scene.requests(&issued);
        scene.commands(&issued);
        let refused = key(&gateway, &["list"]);
        assert!(refused.code == Some(1) && refused.stderr.contains("Redis"), "{refused:?}");

        scene.wrong_configurations(&toml);
        scene.look("the log", &gateway.stderr());
        assert!(gateway.stderr().contains("is away") || level == "error", "the log says nothing of Redis");
        scene.look("the access log", &gateway.access_log().iter().map(|line| format!("{line}\n")).collect::<String>());
    }
    what_reached_others(&origin, &judge);
}

/// Credentials that a filter has used up do not go upstream; the other service sees those that it is asked about, and no more.
fn what_reached_others(origin: &Origin, judge: &Origin) {
    let requests = origin.requests();
    let mut seen = 0;
    for request in &requests {
        let line = request.request_line();
        let path = line.split([' ', '?']).nth(1).unwrap();
        // `forward_auth` takes nothing away, and on /open nobody looks for credentials.
        let mut forwarded = match path {
            "/asked" => vec!["authorization", "cookie"],
            "/open" => vec!["cookie", "x-session", "x-api-key"],
            "/keyed" => vec!["x-session"],
            _ => vec![],
        };
        forwarded.push("host");
        let head = String::from_utf8_lossy(&request.head).into_owned();
        let rest = head.lines().filter(|line| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            !forwarded.contains(&name.as_str())
        });
        let rest: String = rest.map(|line| format!("{line}\n")).collect();
        let lower = rest.to_ascii_lowercase();
        assert!(!lower.contains("canary") && !lower.contains("gw_") && !lower.contains("\nauthorization:"), "{path}: {head}");
        assert!(!lower.contains("\nx-api-key:"), "{path}: {head}");
        seen += 1;
    }
    assert!(seen > 30, "the origin saw {seen} requests");
    assert!(judge.count() > 5);
    for request in judge.requests() {
        let head = String::from_utf8_lossy(&request.head).to_ascii_lowercase();
        assert!(!head.contains("x-api-key") && !head.contains(PASSWORD) && head.contains("canary=cookie"), "{head}");
    }
}
