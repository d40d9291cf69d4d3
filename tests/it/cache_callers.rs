//! Whose answers the cache gives to whom: nobody gets what is another's, by whatever way the gateway came to know who calls.

use crate::cache::{before, ok, open_for, route, script, threaded};
use crate::support::http1::Response;
use crate::support::tls::Authority;
use crate::support::{self, Gate, Gateway, Origin, raw};
use std::sync::atomic::{AtomicUsize, Ordering};

/// An origin that answers with this field of the request.
fn echo(origin: &Origin, name: &'static str) {
    origin.answer(script(move |_, request| {
        let who = request.header(name).unwrap_or_default();
        Some(ok("cache-control: max-age=60", format!("answer for {who}").as_bytes()))
    }));
}

#[test]
fn callers_that_a_service_lets_pass_do_not_share() {
    let (origin, judge) = (Origin::start("app"), Origin::start("judge"));
    // Whose session it is, by cookie.
    judge.answer(script(|_, request| {
        let who = request.header("cookie").unwrap_or_default().replace("session=", "");
        Some(ok(&format!("x-user: {who}"), b""))
    }));
    let filter = |more: &str| {
        format!("filters = [{{ forward_auth = {{ url = \"http://{}/\", timeout = \"5s\"{more} }} }}]\n", judge.address())
    };
    let told = |name: &str, more: &str, cache: &str| {
        format!(
            "[routes.{name}]\nmatch = {{ path = \"/{name}\" }}\nupstream = \"app\"\n{}[routes.{name}.cache]\n{cache}\n",
            filter(more)
        )
    };
    let config = [
        support::upstream("app", &[&origin], ""),
        told("told", ", response_headers = [\"x-user\"], cache = \"1m\"", ""),
        told("bare", "", ""),
        told("public", ", response_headers = [\"x-user\"]", "share = \"public\""),
    ];
    let gateway = Gateway::start(&config.concat());
    let ask = |target: &str, who: &str| {
        let cookie = format!("session={who}");
        let answer = raw::send(gateway.http(), "GET", target, &[("cookie", cookie.as_str())], b"");
        let hit = answer.header("cache-status").is_some_and(|said| said.contains("; hit"));
        (answer.text(), hit)
    };
    echo(&origin, "x-user");
    for round in [false, true] {
        for who in ["a", "b"] {
            assert_eq!(ask("/told", who), (format!("answer for {who}"), round));
        }
    }
    // The upstream is told nothing, and can read what the service could read.
    echo(&origin, "cookie");
    for round in [false, true] {
        for who in ["a", "b"] {
            assert_eq!(ask("/bare", who), (format!("answer for session={who}"), round));
        }
    }
    echo(&origin, "x-user");
    assert_eq!(ask("/public", "a"), ("answer for a".to_owned(), false));
    assert_eq!(ask("/public", "b"), ("answer for a".to_owned(), true), "the operator says that it is the same for everyone");
}

#[test]
fn callers_whose_certificate_the_upstream_sees_do_not_share() {
    let (authority, partners) = (Authority::new(), Authority::new());
    let (one, two) = (partners.client("one.example"), partners.client("two.example"));
    let origin = Origin::start("app");
    echo(&origin, "x-names");
    let toml = [
        "[listeners.https]\naddress = \"127.0.0.1:0\"\n\
         tls = { certificates = [{ cert = \"a.pem\", key = \"a.key\" }], client_ca = \"ca.pem\", client_auth = \"optional\" }\n"
            .to_owned(),
        support::upstream("app", &[&origin], ""),
        route("c", "").replace(
            "[routes.c.cache]",
            "filters = [{ request_headers = { set = { x-names = \"${client_cert_names}\" } } }]\n[routes.c.cache]",
        ),
    ];
    let gateway = Gateway::try_start_with(&toml.concat(), |directory| {
        authority.issue(&["localhost"]).write(directory, "a");
        std::fs::write(directory.join("ca.pem"), &partners.pem).unwrap();
    })
    .unwrap();
    for round in [false, true] {
        for (certificate, who) in [(Some(&one), "DNS:one.example"), (Some(&two), "DNS:two.example"), (None, "")] {
            let tls = match certificate {
                Some(certificate) => authority.trusting().with_certificate(certificate),
                None => authority.trusting(),
            };
            let mut client = tls.connect(gateway.address("https"), "localhost").unwrap();
            let answer = client.exchange(raw::request("GET", "/c/x", &[], b"")).unwrap();
            let hit = answer.header("cache-status").is_some_and(|said| said.contains("; hit"));
            assert_eq!((answer.text(), hit), (format!("answer for {who}"), round));
        }
    }
}

#[test]
fn what_comes_with_a_304_is_for_the_one_who_asked() {
    let count = AtomicUsize::new(0);
    let gate = Gate::default();
    let held = gate.clone();
    let origin = threaded(move |head| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        if number == 0 {
            return ok("cache-control: max-age=100\r\nage: 150\r\netag: \"a\"", b"body");
        }
        held.pass();
        let fields = format!("cache-control: private\r\netag: \"a\"\r\nset-cookie: s={number}");
        match head.contains("if-none-match") {
            true => format!("HTTP/1.1 304 X\r\n{fields}\r\n\r\n").into_bytes(),
            false => ok(&fields, b"body"),
        }
    });
    let gateway = before(origin, "");
    assert_eq!(raw::get(gateway.http(), "/c/x").text(), "body");
    let address = gateway.http();
    let mut cookies = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..5).map(|_| scope.spawn(move || raw::get(address, "/c/x"))).collect();
        open_for(&gate, &gateway, 5.0);
        let own = |answer: Response| {
            assert_eq!(answer.text(), "body");
            answer.header("set-cookie").unwrap().to_owned()
        };
        callers.into_iter().map(|caller| own(caller.join().unwrap())).collect::<Vec<_>>()
    });
    cookies.sort_unstable();
    cookies.dedup();
    assert_eq!(cookies.len(), 5, "each has its own: {cookies:?}");
}
