//! What RFC 9111, 9110, 5861, 8246, 9211 and 9213 ask of a shared cache, as a table of cases (`tests/corpus/cache/*.txt`) that
//! run through the real binary against an origin that answers each request as its case says.
//!
//! A case is a heading, `[section] what must hold`, and its requests, one a line: `request | origin | what must come of it`.
//! `{A=x|y}` at the end of a heading makes one case of each value, with `$A` replaced. In detail:
//!
//! - request: the method, then `; name: value` for fields, `; path: /x` for a path below the one of the case;
//! - origin: `-` if it must not be asked, `close` to hang up, else a status and `; name: value`; `; body: text` instead of the
//!   default `answer N`, where N counts the requests of the case; `; interim: 103` sends that first;
//! - outcome: `own`: the answer is the one of this line; `hit N`: that of line N, from the cache; `504`: this status;
//!   `name: value` and `!name`: fields that must and must not be in the answer; `name> value` and `name>!`: the same of the
//!   request that the origin saw; `method> GET`; `text: ...`: the body; `empty`; `has name`; `soon`: the request is made again until
//!   the rest holds, for what follows from a fetch in the background.
//!
//! `@-60` in a value is the date a minute ago; `$A` is the path of the case, `$P` its last segment.

use crate::support::{self, Answer, Gateway, Origin, Script, raw};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

const TABLES: [&str; 6] = [
    include_str!("../corpus/cache/storing.txt"),
    include_str!("../corpus/cache/freshness.txt"),
    include_str!("../corpus/cache/requests.txt"),
    include_str!("../corpus/cache/validation.txt"),
    include_str!("../corpus/cache/vary.txt"),
    include_str!("../corpus/cache/extensions.txt"),
];

struct Case {
    name: String,
    steps: Vec<String>,
}

/// What the origin is to say to a path now, to a GET and to a HEAD, and what it was asked.
#[derive(Default)]
struct Slot {
    answer: Option<[Option<Vec<u8>>; 2]>,
    seen: Vec<String>,
}

type Slots = Arc<Mutex<HashMap<String, Slot>>>;

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for table in TABLES {
        let mut current: Vec<(Case, Option<(String, String)>)> = Vec::new();
        for line in table.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            if line.starts_with('[') {
                cases.extend(current.drain(..).map(|(case, _)| case));
                match line.split_once(" {") {
                    None => current.push((Case { name: line.to_owned(), steps: Vec::new() }, None)),
                    Some((name, list)) => {
                        let (variable, values) = list.trim_end_matches('}').split_once('=').expect(line);
                        for value in values.split('|') {
                            let name = format!("{name} ({value})");
                            let replace = Some((format!("${variable}"), value.to_owned()));
                            current.push((Case { name, steps: Vec::new() }, replace));
                        }
                    }
                }
                continue;
            }
            assert!(!current.is_empty(), "a request before its heading: {line}");
            for (case, replace) in &mut current {
                let step = match replace {
                    Some((variable, value)) => line.replace(variable.as_str(), value),
                    None => line.to_owned(),
                };
                case.steps.push(dated(&step));
            }
        }
        cases.extend(current.drain(..).map(|(case, _)| case));
    }
    cases
}

/// Replaces `@SECONDS` by dates.
fn dated(step: &str) -> String {
    let mut out = String::new();
    let mut rest = step;
    while let Some(at) = rest.find('@') {
        let (before, after) = rest.split_at(at);
        let end = after[1..].find(|c: char| !c.is_ascii_digit() && c != '-').map_or(after.len(), |end| end + 1);
        let offset: i64 = after[1..end].parse().unwrap_or_else(|_| panic!("no offset in {step}"));
        let now = SystemTime::now();
        let gap = Duration::from_secs(offset.unsigned_abs());
        out.push_str(before);
        out.push_str(&httpdate::fmt_http_date(if offset < 0 { now - gap } else { now + gap }));
        rest = &after[end..];
    }
    out + rest
}

fn fields(text: &str) -> (&str, Vec<(&str, &str)>) {
    let mut parts = text.split("; ").map(str::trim);
    let first = parts.next().unwrap_or_default();
    let fields = parts.map(|part| part.split_once(':').map_or((part, ""), |(name, value)| (name, value.trim()))).collect();
    (first, fields)
}

/// The bytes of the origin's answer to request `number`.
fn answer(text: &str, number: usize, to_head: bool) -> Option<Vec<u8>> {
    let (status, fields) = fields(text);
    if status == "close" {
        return None;
    }
    let mut body = format!("answer {number}");
    let mut head = String::new();
    let mut interim = String::new();
    let mut length = true;
    for (name, value) in fields {
        match name {
            "body" => body = value.to_owned(),
            "interim" => interim = format!("HTTP/1.1 {value} Interim\r\nx-interim: 1\r\n\r\n"),
            "chunked" => length = false,
            _ => {
                length &= !name.eq_ignore_ascii_case("content-length");
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
    }
    let bodyless = to_head || matches!(status, "204" | "304");
    if length && !matches!(status, "204" | "304") {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    let mut bytes = format!("{interim}HTTP/1.1 {status} X\r\n{head}").into_bytes();
    let chunked = text.contains("; chunked");
    if chunked {
        bytes.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    if !bodyless {
        if chunked {
            bytes.extend_from_slice(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes());
        } else {
            bytes.extend_from_slice(body.as_bytes());
        }
    }
    Some(bytes)
}

/// Runs one case; `Err` says what was not as it must be.
fn run(case: &Case, path: &str, address: std::net::SocketAddr, slots: &Slots) -> Result<(), String> {
    for (index, step) in case.steps.iter().enumerate() {
        let patience = std::time::Instant::now() + Duration::from_secs(5);
        loop {
            match run_step(case, index, path, address, slots) {
                Err(_) if step.ends_with("; soon") && std::time::Instant::now() < patience => {}
                Err(why) => return Err(why),
                Ok(()) => break,
            }
        }
    }
    Ok(())
}

fn run_step(case: &Case, index: usize, path: &str, address: std::net::SocketAddr, slots: &Slots) -> Result<(), String> {
    let step = &case.steps[index].replace("$A", path).replace("$P", path.rsplit('/').next().unwrap_or_default());
    let number = index + 1;
    let at = |what: String| format!("{}\n    line {number}: {step}\n    {what}", case.name);
    let parts: Vec<&str> = step.split(" | ").map(str::trim).collect();
    let [request, origin, wanted] = parts[..] else { return Err(at("three parts are needed".to_owned())) };
    let (method, mut sent) = fields(request);
    let mut target = path.to_owned();
    sent.retain(|(name, value)| {
        if *name == "path" {
            target = format!("{path}{value}");
        }
        *name != "path"
    });
    let key = target.clone();
    {
        let mut slots = slots.lock();
        let slot = slots.entry(key.clone()).or_default();
        slot.answer = (origin != "-").then(|| [false, true].map(|to_head| answer(origin, number, to_head)));
        slot.seen.clear();
    }
    let body: &[u8] = if matches!(method, "POST" | "PUT" | "PATCH") { b"change" } else { b"" };
    let response = raw::Client::connect(address)
        .timeout(Duration::from_secs(15))
        .exchange(raw::request(method, &target, &sent, body))
        .map_err(|broken| at(format!("no answer: {broken}")))?;
    let look = || slots.lock().get(&key).map(|slot| slot.seen.clone()).unwrap_or_default();
    // Fetches in the background come a moment after the answer. What is asked again soon is not waited for so long: it may have
    // met the fetch of the step before, which brings nothing more to the origin.
    let moment = if step.ends_with("; soon") { Duration::from_millis(50) } else { Duration::from_secs(5) };
    let patience = std::time::Instant::now() + moment;
    while origin != "-" && look().is_empty() && std::time::Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(2));
    }
    let seen = look();
    if (origin == "-") != seen.is_empty() {
        return Err(at(format!("the origin was asked {} times; {} {:?}", seen.len(), response.status, response.headers)));
    }
    let seen = seen.first().cloned().unwrap_or_default();
    let saw = |name: &str| {
        let mut lines = seen.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
    };
    for want in wanted.split("; ").map(str::trim).filter(|want| !want.is_empty()) {
        let text = response.text();
        let good = match want {
            _ if want.starts_with("has ") => response.header(&want[4..]).is_some(),
            "soon" => true,
            "empty" => text.is_empty(),
            "own" => text == format!("answer {number}"),
            _ if want.starts_with("hit ") => {
                text == format!("answer {}", &want[4..])
                    && response.header("cache-status").is_some_and(|s| s.contains("gatewright; hit"))
            }
            _ if want.len() == 3 && want.bytes().all(|b| b.is_ascii_digit()) => response.status.to_string() == want,
            _ if want.starts_with("text: ") => text == want[6..],
            _ if want.starts_with("interim ") => response.interim.contains(&want[8..].parse().unwrap()),
            _ if want.starts_with("method> ") => seen.starts_with(&want[8..]),
            _ if want.ends_with(">!") => saw(&want[..want.len() - 2]).is_none(),
            _ if want.contains("> ") => {
                let (name, value) = want.split_once("> ").unwrap();
                saw(name).as_deref() == Some(value)
            }
            _ if want.starts_with('!') => response.header(&want[1..]).is_none(),
            _ if want.contains("~ ") => {
                let (name, value) = want.split_once("~ ").unwrap();
                response.header_all(name).iter().any(|known| known.contains(value))
            }
            _ if want.contains(": ") => {
                let (name, value) = want.split_once(": ").unwrap();
                response.header_all(name).contains(&value)
            }
            _ => return Err(at(format!("`{want}` says nothing"))),
        };
        if !good {
            return Err(at(format!(
                "not so: {want}\n    got {} {:?} {text:?}\n    the origin saw {seen:?}",
                response.status, response.headers
            )));
        }
    }
    Ok(())
}

#[test]
fn every_case_of_the_table_holds() {
    let origin = Origin::start("rfc");
    let slots: Slots = Arc::default();
    let scripted = Arc::clone(&slots);
    origin.answer(Answer::Script(Script(Arc::new(move |request| {
        let line = request.request_line();
        let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut slots = scripted.lock();
        let slot = slots.get_mut(&target)?;
        slot.seen.push(String::from_utf8_lossy(&request.head).into_owned());
        let [whole, head] = slot.answer.clone()?;
        if line.starts_with("HEAD ") { head } else { whole }
    }))));
    let route = |name: &str, cache: &str| {
        format!(
            "[routes.{name}]\nmatch = {{ path = \"/{name}/{{*rest}}\" }}\nupstream = \"app\"\n[routes.{name}.cache]\n{cache}\n"
        )
    };
    let config = [
        support::upstream("app", &[&origin], ""),
        route("plain", ""),
        route("ttl", "ttl = \"100s\"\nstatuses = [200, 403]"),
        route("force", "ttl = \"100s\"\nforce = true"),
        route("windows", "stale_while_revalidate = \"100s\"\nstale_if_error = \"100s\""),
        route("surrogate", "targets = [\"surrogate-control\", \"cdn-cache-control\"]"),
        route("keyed", "[routes.keyed.cache.key]\nheaders = [\"x-key\"]\nignore_query = [\"utm_*\"]"),
        route("picked", "[routes.picked.cache.key]\nonly_query = [\"a\", \"b\"]\nsort_query = false"),
        route("strict", "set_cookie = false\nheuristic_max = \"0s\""),
    ]
    .concat();
    let gateway = Gateway::start(&config);
    let address = gateway.address("http");
    let cases = cases();
    let only = std::env::var("CACHE_CASE").ok();
    let failures = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some((number, case)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| Some((n, cases.get(n)?)))
                {
                    if only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
                        continue;
                    }
                    let route = case.name.split_whitespace().find_map(|word| word.strip_prefix("on:")).unwrap_or("plain");
                    if let Err(why) = run(case, &format!("/{route}/{number}"), address, &slots) {
                        failures.lock().push(why);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner();
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
    assert!(only.is_some() || cases.len() >= 250, "only {} cases", cases.len());
    for case in &cases {
        assert!(case.name.starts_with("[RFC "), "a case names its section: {}", case.name);
    }
}
