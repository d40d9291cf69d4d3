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
        open_for(&gate, &gateway, 5);
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

/// What only this user may be told, wherever it stands in an answer.
fn canary(user: &str) -> String {
    format!("canary-{user}.")
}

/// Lifetimes in every way in which an origin may get them wrong for what is one user's alone, the last three for answers that are
/// stale soon or when they come.
const LIFETIMES: [&str; 9] = [
    "max-age=60",
    "public, max-age=60",
    "s-maxage=60",
    "no-cache",
    "private, max-age=60",
    "no-store",
    "max-age=1, stale-while-revalidate=60",
    "max-age=60\r\nage: 61",
    "public, max-age=60, stale-while-revalidate=60\r\nage: 61",
];

/// Says who asked: in the body, a header, sometimes a cookie, and a tag, which for some targets is the same for everybody, so that
/// one user's copy could be confirmed for another.
fn private(target: &str, request: &support::origin::Recorded) -> Vec<u8> {
    let own = canary(&request.header("x-consumer").unwrap_or_default());
    let name = target.rsplit('/').next().unwrap_or_default();
    let lifetime = name.get(..1).and_then(|at| at.parse().ok()).and_then(|at: usize| LIFETIMES.get(at)).unwrap();
    let tag = if name.contains('t') { "\"all\"".to_owned() } else { format!("\"{own}\"") };
    let mut fields = format!("cache-control: {lifetime}\r\netag: {tag}\r\nx-canary: {own}");
    if name.contains('v') {
        fields.push_str("\r\nvary: accept");
    }
    if name.contains('c') {
        fields.push_str(&format!("\r\nset-cookie: session={own}; path=/"));
    }
    let line = request.request_line();
    match line.split(' ').next().unwrap_or_default() {
        "POST" => ok(&format!("{fields}\r\ncontent-location: {target}"), own.as_bytes()),
        _ if request.header("if-none-match").is_some_and(|asked| asked.contains(&tag)) => {
            format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\n\r\n").into_bytes()
        }
        "HEAD" => format!("HTTP/1.1 200 OK\r\n{fields}\r\ncontent-length: {}\r\n\r\n", own.len()).into_bytes(),
        _ => ok(&fields, own.as_bytes()),
    }
}

/// Whether an answer is this user's, and the one that was asked for.
fn judge(user: u32, method: &str, conditional: bool, answer: &Response) -> Result<(), &'static str> {
    let own = canary(&format!("user{user}"));
    let body = answer.text();
    for text in answer.headers.iter().map(|(_, value)| value).chain([&body]) {
        if text.match_indices("canary-").any(|(at, _)| !text[at..].starts_with(&own)) {
            return Err("a leak");
        }
    }
    let whole = body == if method == "HEAD" { "" } else { own.as_str() };
    match answer.status {
        200 | 206 if whole && answer.header("x-canary") == Some(own.as_str()) => Ok(()),
        304 if conditional && body.is_empty() => Ok(()),
        _ => Err("not what was asked for"),
    }
}

/// `GATEWRIGHT_FULL=1`: a million requests of a thousand users.
#[test]
fn no_user_ever_gets_the_answer_of_another() {
    let _alone = support::exclusive();
    let (users, total) = if support::full() { (1_000, 1_000_000) } else { (50, 8_000) };
    let origin = Origin::start("private");
    origin.answer(script(|target, request| Some(private(target, request))));
    let mut config = support::upstream("app", &[&origin], "");
    for (name, cache) in [("cached", "cache = {}"), ("forced", "cache = { ttl = \"60s\", force = true }"), ("plain", "")] {
        config.push_str(&format!(
            "[routes.{name}]\nmatch = {{ path = \"/{name}/{{*rest}}\" }}\nupstream = \"app\"\n\
             filters = [{{ api_key = {{}} }}, {{ request_headers = {{ set = {{ x-consumer = \"${{consumer}}\" }} }} }}]\n{cache}\n"
        ));
    }
    for user in 0..users {
        let digest = ring::digest::digest(&ring::digest::SHA256, format!("key-{user}").as_bytes());
        let hash: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        config.push_str(&format!("[consumers.user{user}]\ncredentials = [{{ api_key = {{ sha256 = \"{hash}\" }} }}]\n"));
    }
    let gateway = Gateway::start(&config);
    let address = gateway.http();
    let seed = support::seed();
    let [next, broken, wrong, heads, posts, cookies] = [const { AtomicUsize::new(0) }; 6];
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (next, broken, wrong, heads, posts, cookies) = (&next, &broken, &wrong, &heads, &posts, &cookies);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed ^ thread);
                let mut client = raw::Client::connect(address);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= total {
                        break;
                    }
                    // Most are of fifty users at a time, or a thousand of them would never ask for anything twice while it is stored.
                    let group = u32::try_from(number * users as usize / total).unwrap() / 50 * 50;
                    let user = if random.u8(0..10) == 0 { random.u32(0..users) } else { group + random.u32(0..50) };
                    let route = ["cached", "forced", "plain"][random.usize(0..3)];
                    let kind = ["", "v", "t", "c", "tc"][random.usize(0..5)];
                    let target = format!("/{route}/{}{kind}", random.usize(0..LIFETIMES.len()));
                    let method = match random.u8(0..40) {
                        0 => "POST",
                        1..4 => "HEAD",
                        _ => "GET",
                    };
                    let key = format!("key-{user}");
                    let mut headers = vec![("x-api-key", key.as_str()), ("accept", ["a", "b"][random.usize(0..2)])];
                    let condition = if method == "POST" { u8::MAX } else { random.u8(0..10) };
                    match condition {
                        0 => headers.push(("if-none-match", "\"canary-user1.\"")),
                        1 => headers.push(("if-none-match", "\"all\"")),
                        2 => headers.push(("range", "bytes=0-100")),
                        3 => headers.push(("cache-control", "max-stale")),
                        4 => headers.push(("cache-control", "no-cache")),
                        _ => {}
                    }
                    let body: &[u8] = if method == "POST" { b"new" } else { b"" };
                    let answer = match client.exchange(raw::request(method, &target, &headers, body)) {
                        Ok(answer) => answer,
                        Err(why) => {
                            eprintln!("seed {seed}, user{user}: {method} {target} {headers:?}: {why}");
                            broken.fetch_add(1, Ordering::Relaxed);
                            client = raw::Client::connect(address);
                            continue;
                        }
                    };
                    if let Err(why) = judge(user, method, condition < 2, &answer) {
                        eprintln!("seed {seed}, user{user}: {method} {target} {headers:?}: {why}: {answer:?} {}", answer.text());
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                    heads.fetch_add(usize::from(method == "HEAD"), Ordering::Relaxed);
                    posts.fetch_add(usize::from(method == "POST"), Ordering::Relaxed);
                    cookies.fetch_add(answer.header_all("set-cookie").len(), Ordering::Relaxed);
                    if !answer.keep_alive {
                        client = raw::Client::connect(address);
                    }
                }
            });
        }
    });
    let [broken, wrong, heads, posts, cookies] = [broken, wrong, heads, posts, cookies].map(AtomicUsize::into_inner);
    let result = |result| gateway.metric("gatewright_cache_requests_total", &[("result", result)]);
    let [hits, stale, revalidated] = ["hit", "stale", "revalidated"].map(result);
    let told = serde_json::json!({
        "seed": seed, "users": users, "requests": total, "broken_exchanges": broken, "leaks": wrong, "heads": heads, "posts": posts,
        "cookies": cookies, "hits": hits, "stale": stale, "revalidated": revalidated,
    });
    println!("{told}");
    support::record("no_user_ever_gets_the_answer_of_another", told.clone());
    assert_eq!((wrong, broken), (0, 0), "leaks and broken exchanges: {told}");
    // The cache was in use, in each of its ways.
    let few = total / 200;
    assert!(heads > few && posts > few && cookies > few, "{told}");
    assert!([hits, stale, revalidated].iter().all(|number| *number > few as f64), "{told}");
}
