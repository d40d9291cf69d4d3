//! Who calls and what they may do, over real connections.

use crate::support::gateway::{binary, run};
use crate::support::raw::{Client, request, send};
use crate::support::{Gateway, Origin, SOON, eventually, full, record, upstream};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `gatewright key ...` with something to read: what it printed, or its error.
fn key(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new(binary());
    command.arg("key").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if done.status.success() { Ok(text(done.stdout).trim_end().to_owned()) } else { Err(text(done.stderr)) }
}

/// The credential of a key, as the binary writes it.
pub fn credential(text: &str) -> String {
    key(&["hash"], text).unwrap()
}

fn route(name: &str, filters: &str) -> String {
    format!("\n[routes.{name}]\nmatch = {{ path = \"/{name}/{{*rest}}\" }}\nupstream = \"app\"\nfilters = [{filters}]\n")
}

fn consumers() -> String {
    let basic = key(&["password", "user"], "canary-password\n").unwrap();
    let line = |text: &str, more: &str| credential(text).replace(" } }", &format!("{more} }} }}"));
    format!(
        "[tiers.gold]\n[consumers.acme]\ntier = \"gold\"\nroles = [\"orders:read\", \"orders:write\"]\ncredentials = [{}, {}, {basic}]\n\
         [consumers.reader]\nroles = [\"orders:read\"]\ncredentials = [{}]\n\
         [consumers.off]\nenabled = false\ncredentials = [{}]\n[consumers.old]\ncredentials = [{}]\n",
        line("canary-acme-1", ", expires = 2099-01-01"),
        line("canary-acme-2", ", not_before = 2020-01-01T00:00:00Z"),
        line("canary-reader", ""),
        line("canary-off", ""),
        line("canary-old", ", expires = 2020-01-01"),
    )
}

fn everything(origin: &Origin) -> String {
    let any = "{ any_of = { methods = [{ api_key = {} }, { basic = {} }], anonymous = true } }";
    [
        consumers(),
        upstream("app", &[origin], ""),
        route("key", "{ api_key = {} }"),
        route("query", "{ api_key = { query = \"key\" } }"),
        route("basic", "{ basic = { realm = \"test\" } }"),
        route("any", any),
        route("known", &format!("{any}, {{ require = {{}} }}")),
        route(
            "orders",
            "{ api_key = {} }, { require = { methods = { \"orders:read\" = [\"GET\"], \"orders:write\" = [\"POST\"] } } }",
        ),
        route("here", "{ ip_allow = { networks = [\"127.0.0.0/8\"] } }"),
        route("elsewhere", "{ ip_allow = { networks = [\"10.0.0.0/8\"] } }"),
        route("nothere", "{ ip_deny = { networks = [\"127.0.0.1\"] } }"),
        route("open", ""),
    ]
    .concat()
}

/// `user:canary-password` in base64.
const BASIC: &str = "Basic dXNlcjpjYW5hcnktcGFzc3dvcmQ=";

#[test]
fn a_key_lets_its_consumer_in_and_no_other() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything(&origin));
    for key in ["canary-acme-1", "canary-acme-2"] {
        let response = send(gateway.http(), "GET", "/key/x", &[("X-API-Key", key)], b"");
        assert_eq!(response.status, 200, "{}", response.text());
        let seen = origin.last();
        assert_eq!(seen.header("x-api-key"), None, "the key went upstream");
        assert_eq!(seen.header("x-consumer-name").as_deref(), Some("acme"));
        assert_eq!(seen.header("x-consumer-roles").as_deref(), Some("orders:read,orders:write"));
        assert_eq!(seen.header("x-consumer-tier").as_deref(), Some("gold"));
        assert!(seen.header("x-credential-id").is_some_and(|id| id.starts_with("api_key:") && id.len() == 16));
    }
    let line = gateway.logged("acme", |line| line["consumer"] == "acme");
    assert!(line["credential"].as_str().is_some_and(|id| id.starts_with("api_key:")), "{line}");

    let before = origin.count();
    let mut answers = Vec::new();
    for key in ["unknown", "canary-off", "canary-old"] {
        let response = send(gateway.http(), "GET", "/key/x", &[("x-api-key", key)], b"");
        assert_eq!((response.status, response.code().as_str()), (401, "credential_invalid"), "{key}");
        assert_eq!(response.header("www-authenticate"), Some("ApiKey header=\"x-api-key\""));
        let mut body = response.json();
        body.as_object_mut().unwrap().remove("instance");
        answers.push(body);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "they can be told apart: {answers:?}");
    let missing = send(gateway.http(), "GET", "/key/x", &[], b"");
    assert_eq!((missing.status, missing.code().as_str()), (401, "credential_missing"));
    let twice = send(gateway.http(), "GET", "/key/x", &[("x-api-key", "canary-acme-1"), ("x-api-key", "canary-acme-1")], b"");
    assert_eq!((twice.status, twice.code().as_str()), (400, "credential_duplicate"));
    assert_eq!(origin.count(), before, "a refused request went upstream");
    for (outcome, count) in
        [("accepted", 2.0), ("unknown", 1.0), ("disabled", 1.0), ("expired", 1.0), ("missing", 1.0), ("duplicate", 1.0)]
    {
        let labels = [("route", "key"), ("filter", "api_key"), ("outcome", outcome)];
        assert_eq!(gateway.metric("gatewright_auth_total", &labels), count, "{outcome}");
    }
}

#[test]
fn a_key_in_the_query_is_not_seen_again() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything(&origin));
    let response = send(gateway.http(), "GET", "/query/x?a=1&key=canary-acme-1&b=2", &[], b"");
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(origin.last().request_line(), "GET /query/x?a=1&b=2 HTTP/1.1");
}

#[test]
fn a_name_and_password_let_their_consumer_in() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything(&origin));
    // The second time the pair is remembered.
    for _ in 0..2 {
        let response = send(gateway.http(), "GET", "/basic/x", &[("authorization", BASIC)], b"");
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(origin.last().header("authorization"), None, "the password went upstream");
        assert_eq!(origin.last().header("x-credential-id").as_deref(), Some("basic:user"));
    }
    // `user:wrong`, `nobody:canary-password`.
    for wrong in ["Basic dXNlcjp3cm9uZw==", "Basic bm9ib2R5OmNhbmFyeS1wYXNzd29yZA=="] {
        let response = send(gateway.http(), "GET", "/basic/x", &[("authorization", wrong)], b"");
        assert_eq!((response.status, response.code().as_str()), (401, "credential_invalid"));
        assert_eq!(response.header("www-authenticate"), Some("Basic realm=\"test\", charset=\"UTF-8\""));
    }
}

#[test]
fn anonymous_goes_on_until_an_identity_is_needed() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything(&origin));
    assert_eq!(send(gateway.http(), "GET", "/any/x", &[], b"").status, 200);
    assert_eq!(origin.last().header("x-consumer-name"), None);
    assert_eq!(send(gateway.http(), "GET", "/any/x", &[("authorization", BASIC)], b"").status, 200);
    assert_eq!(origin.last().header("x-consumer-name").as_deref(), Some("acme"));
    assert_eq!(send(gateway.http(), "GET", "/any/x", &[("x-api-key", "bad")], b"").status, 401);
    let response = send(gateway.http(), "GET", "/known/x", &[], b"");
    assert_eq!((response.status, response.code().as_str()), (401, "credential_missing"));
    let asked = response.header("www-authenticate").unwrap_or_default();
    assert!(asked.contains("ApiKey ") && asked.contains("Basic "), "{asked}");
}

#[test]
fn a_role_permits_its_methods_and_no_others() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything(&origin));
    for (key, method, status) in [
        ("canary-reader", "GET", 200),
        ("canary-reader", "HEAD", 200),
        ("canary-reader", "POST", 403),
        ("canary-reader", "OPTIONS", 403),
        ("canary-acme-1", "POST", 200),
        ("canary-acme-1", "DELETE", 403),
    ] {
        let mut client = Client::connect(gateway.http());
        client.send(request(method, "/orders/1", &[("x-api-key", key)], b""));
        let response = client.read_to(method == "HEAD").unwrap();
        assert_eq!(response.status, status, "{key} {method}");
    }
    let upgrade = [("x-api-key", "canary-off"), ("connection", "upgrade"), ("upgrade", "websocket")];
    assert_eq!(send(gateway.http(), "GET", "/orders/1", &upgrade, b"").status, 401, "an upgrade is authenticated too");
}

#[test]
fn addresses_are_those_of_the_connection() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything(&origin));
    let lies = [("x-forwarded-for", "10.0.0.1"), ("forwarded", "for=10.0.0.1"), ("x-real-ip", "10.0.0.1")];
    assert_eq!(send(gateway.http(), "GET", "/here/x", &lies, b"").status, 200);
    for refused in ["/elsewhere/x", "/nothere/x"] {
        let response = send(gateway.http(), "GET", refused, &lies, b"");
        assert_eq!((response.status, response.code().as_str()), (403, "address_forbidden"), "{refused}");
    }
}

#[test]
fn no_client_can_say_who_it_is() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&everything(&origin));
    let forged = [
        ("X-Consumer-Name", "admin"),
        ("X-Consumer-Roles", "admin"),
        ("X-User-Id", "1"),
        ("X-Credential-Id", "api_key:0"),
        ("Remote-User", "root"),
        ("connection", "x-other"),
        ("x-other", "1"),
        ("x-kept", "1"),
    ];
    assert_eq!(send(gateway.http(), "GET", "/open/x", &forged, b"").status, 200);
    let seen = origin.last();
    for (name, _) in &forged[..5] {
        assert_eq!(seen.header(&name.to_lowercase()), None, "{name}");
    }
    assert_eq!(seen.header("x-kept").as_deref(), Some("1"));
    let mut known = forged.to_vec();
    known.push(("x-api-key", "canary-reader"));
    assert_eq!(send(gateway.http(), "GET", "/key/x", &known, b"").status, 200);
    assert_eq!(origin.last().header_all("x-consumer-name"), ["reader"]);
    assert_eq!(origin.last().header_all("x-consumer-roles"), ["orders:read"]);
}

#[test]
fn a_reload_revokes_a_key_at_once() {
    let origin = Origin::start("a");
    let toml = everything(&origin);
    let gateway = Gateway::start(&toml);
    let mut client = Client::connect(gateway.http());
    let ask =
        |client: &mut Client| client.exchange(request("GET", "/key/x", &[("x-api-key", "canary-reader")], b"")).unwrap().status;
    assert_eq!(ask(&mut client), 200);
    gateway.reload_with(&toml.replace(&credential("canary-reader"), "")).unwrap();
    assert_eq!(ask(&mut client), 401, "on a connection that was open before");
}

#[test]
fn secrets_come_out_nowhere() {
    let origin = Origin::start("a");
    let toml = "[log]\nlevel = \"trace\"\n".to_owned() + &everything(&origin);
    let gateway = Gateway::start(&toml);
    let mut answers = String::new();
    let routes = ["key", "query", "basic", "any", "known", "orders", "here", "elsewhere", "open", "nowhere"];
    let mut asked = 0;
    for route in routes {
        for header in [
            ("x-api-key", "canary-acme-1"),
            ("x-api-key", "canary-off"),
            ("x-api-key", "canary-nobody"),
            ("authorization", BASIC),
            ("authorization", "Basic canary!"),
            ("authorization", "Bearer canary-token"),
        ] {
            for method in ["GET", "POST"] {
                let target = format!("/{route}/x?key=canary-query&a=1");
                for headers in [vec![header], vec![header, header]] {
                    let response = send(gateway.http(), method, &target, &headers, b"canary-body");
                    if response.status != 200 {
                        answers.push_str(&format!("{:?}\n{}\n", response.headers, response.text()));
                    }
                    asked += 1;
                }
            }
        }
    }
    // A request that is no HTTP, and one that nobody can answer.
    let mut client = Client::connect(gateway.http());
    client.send(b"GET /key/x HTTP/1.1\r\nhost: a\r\nx-api-key : canary-acme-1\r\n\r\n");
    answers.push_str(&String::from_utf8_lossy(&client.read_until_closed()));
    origin.stop();
    answers.push_str(&send(gateway.http(), "GET", "/key/x", &[("x-api-key", "canary-acme-1")], b"").text());
    eventually("the access log is complete", SOON, || gateway.access_log().len() == asked + 2);
    let log: String = gateway.access_log().iter().map(|line| format!("{line}\n")).collect();
    let metrics = gateway.admin.get("/metrics").text();
    let status = gateway.admin.get("/status").text();
    let base64 = BASIC.trim_start_matches("Basic ");
    for (name, text) in
        [("answers", &answers), ("access log", &log), ("stderr", &gateway.stderr()), ("metrics", &metrics), ("status", &status)]
    {
        assert!(!text.is_empty(), "{name} says nothing at all");
        assert!(!text.contains("canary") && !text.contains(base64), "a secret is in the {name}:\n{text}");
    }
}

#[test]
fn a_new_key_works_with_the_line_that_comes_with_it() {
    let made = run(&["key", "new", "acme"]);
    assert_eq!(made.code, Some(0));
    let text = made.stdout.trim_end();
    assert!(text.starts_with("gw_") && text.len() == 41, "{text}");
    let (_, toml) = made.stderr.split_once("[consumers.acme]").unwrap();
    assert!(!toml.contains(text));
    let origin = Origin::start("a");
    let toml = format!("[consumers.acme]{toml}{}{}", upstream("app", &[&origin], ""), route("key", "{ api_key = {} }"));
    let gateway = Gateway::start(&toml);
    assert_eq!(send(gateway.http(), "GET", "/key/x", &[("x-api-key", text)], b"").status, 200);
    assert!(toml.contains(&credential(text)), "`key hash` says the same");
    let typo = format!("{}x", &text[..40]);
    let typo = if typo == text { format!("{}y", &text[..40]) } else { typo };
    assert!(key(&["hash"], &typo).unwrap_err().contains("checksum"));
    assert_eq!(run(&["key", "new", "a b"]).code, Some(2));
}

/// Two seconds are for an optimised build on a machine that does nothing else, so they are asserted with `GATEWRIGHT_FULL=1` of the
/// build that `GATEWRIGHT_BINARY` names, as benches/limits/measure.sh does it.
#[test]
fn a_hundred_thousand_consumers_load_from_an_included_file() {
    use std::fmt::Write as _;
    let mut many = String::new();
    for number in 0..100_000 {
        let _ = writeln!(
            many,
            "[consumers.c{number}]\ntier = \"gold\"\nroles = [\"orders:read\"]\ncredentials = [{{ api_key = {{ sha256 = \"{number:064x}\" }} }}]"
        );
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("many.inc"), many).unwrap();
    let main = "[server]\ninclude = [\"many.inc\"]\n[tiers.gold]\n[listeners.http]\naddress = \"127.0.0.1:0\"\n";
    std::fs::write(directory.path().join("main.toml"), main).unwrap();
    let begun = Instant::now();
    let done = run(&["check", "-c", directory.path().join("main.toml").to_str().unwrap()]);
    let took = begun.elapsed();
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
    assert!(done.stdout.contains("100000 consumers"), "{}", done.stdout);
    record("100,000 consumers are loaded", serde_json::json!({ "millis": took.as_millis() as u64 }));
    let most = if full() && std::env::var_os("GATEWRIGHT_BINARY").is_some() { 2 } else { 30 };
    assert!(took < Duration::from_secs(most), "{took:?}");
}
