//! The path that filters decide by is, byte for byte, the one that is forwarded: over generated URLs, through the real
//! gateway, to an origin that says what it got.

use crate::support::raw::Client;
use crate::support::{self, Gateway, exclusive};
use gatewright::canonical::{PathForm, PathRules, canonical_path, check_query};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

/// URLs in a run of the suite; `GATEWRIGHT_FULL=1` makes it a million, `GATEWRIGHT_TEST_URLS` any other number.
fn urls() -> usize {
    let asked = std::env::var("GATEWRIGHT_TEST_URLS").ok().and_then(|urls| urls.parse().ok());
    asked.unwrap_or(if support::full() { 1_000_000 } else { 6_000 })
}

/// What paths are put together from: everything that some parser reads in its own way, and enough that none does.
const PIECES: &[&str] = &[
    "a",
    "b",
    "admin",
    "public",
    "~user",
    "x.y",
    "..",
    ".",
    "...",
    "",
    "%61",
    "%41",
    "%2e",
    "%2E%2e",
    "%2f",
    "%2F",
    "%5c",
    "%00",
    "%0d%0a",
    "%25",
    "%252e",
    "%c0%ae",
    "%c3%a9",
    "%e2%82%ac",
    "%zz",
    "%",
    "a;b=c",
    "..;",
    ";",
    ":",
    "@",
    "!$&'()*+,=",
    "a|b",
    "[c]",
    "^",
    "\\",
    "\"",
    "<",
    "{",
    "`",
    "a%20b",
    "%7e",
    "-_.~",
    "caf%C3%A9",
    "%ff",
];
const QUERIES: &[&str] =
    &["", "", "", "?", "?a=b", "?a=/../b", "?%2e%2e", "?a=b?c", "?q=%00", "?a|b", "?a=\"", "?x=%zz", "?path=/admin"];

/// An origin whose answers are the target of the request and what the gateway said of its path.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                let _ = stream.set_nodelay(true);
                let (mut buffer, mut chunk) = (Vec::new(), [0; 64 << 10]);
                while let Ok(read @ 1..) = stream.read(&mut chunk) {
                    buffer.extend_from_slice(&chunk[..read]);
                    while let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                        let head: Vec<u8> = buffer.drain(..end + 4).collect();
                        let head = String::from_utf8_lossy(&head).into_owned();
                        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
                        let seen = head.lines().find_map(|line| {
                            line.to_ascii_lowercase().starts_with("x-authorised: ").then(|| line[14..].to_owned())
                        });
                        let body = format!("{target}\n{}", seen.unwrap_or_default());
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

fn generate(random: &mut fastrand::Rng) -> String {
    let mut target = String::new();
    // Mostly harmless, or nearly everything would be refused.
    let wild = random.u8(..4) == 0;
    for _ in 0..random.usize(1..6) {
        target.push('/');
        for _ in 0..random.usize(1..3) {
            let pieces = if wild { PIECES } else { &PIECES[..14] };
            target.push_str(pieces[random.usize(..pieces.len())]);
        }
    }
    target + QUERIES[random.usize(..QUERIES.len())]
}

/// What the rule makes of a target: the one that must arrive, or `None` for one that must not.
fn expected(target: &str) -> Option<(String, String)> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let mut out = String::new();
    let path = match canonical_path(path.as_bytes(), PathRules::STRICT, &mut out).ok()? {
        PathForm::Canonical => path.to_owned(),
        PathForm::Rewritten => out,
    };
    if let Some(query) = query {
        check_query(query.as_bytes()).ok()?;
    }
    Some((query.map_or(path.clone(), |query| format!("{path}?{query}")), path))
}

#[test]
fn the_path_that_was_authorised_is_the_path_that_is_forwarded() {
    let _machine = exclusive();
    let urls = urls();
    let toml = format!(
        "[upstreams.app]\nendpoints = [\"{}\"]\n[routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\n\
         filters = [{{ request_headers = {{ set = {{ x-authorised = \"${{path}}\" }} }} }}]\n[log]\naccess = {{ output = \"off\" }}\n",
        origin()
    );
    let gateway = Gateway::start(&toml);
    let address = gateway.http();
    let seed = support::seed();
    let (mut passed, mut refused) = (0_usize, 0_usize);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4_u64)
            .map(|worker| {
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed ^ worker);
                    let (mut client, mut passed, mut refused) = (Client::connect(address), 0, 0);
                    for number in 0..urls / 4 {
                        let target = generate(&mut random);
                        let request = format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n");
                        let answer =
                            client.exchange(request).unwrap_or_else(|e| panic!("seed {seed}, {number}: {target:?}: {e}"));
                        let said = answer.text();
                        match expected(&target) {
                            Some((target, path)) => {
                                assert_eq!(
                                    (answer.status, said.as_str()),
                                    (200, format!("{target}\n{path}").as_str()),
                                    "seed {seed}"
                                );
                                passed += 1;
                            }
                            None => {
                                assert_eq!(answer.status, 400, "seed {seed}: {target:?} passed: {said}");
                                refused += 1;
                            }
                        }
                        if !answer.keep_alive {
                            client = Client::connect(address);
                        }
                    }
                    (passed, refused)
                })
            })
            .collect();
        for worker in workers {
            let (more_passed, more_refused) = worker.join().unwrap();
            passed += more_passed;
            refused += more_refused;
        }
    });
    println!("{passed} forwarded as they were authorised, {refused} refused");
    support::record("authorised_path", serde_json::json!({ "seed": seed, "urls": urls, "passed": passed, "refused": refused }));
    assert_eq!(passed + refused, urls / 4 * 4, "each was judged");
    assert!(passed > urls / 4 && refused > urls / 20, "{passed} passed, {refused} refused: too one-sided to mean anything");
}
