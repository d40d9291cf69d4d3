//! Several hundred sequences of HTTP/2 frames that are malformed, ambiguous or merely odd, through to an HTTP/1.1 origin that
//! records every byte: none reaches it in a form that another parser could read differently.

mod corpus;

use crate::support::frames::{End, Frames};
use crate::support::origin::Recorded;
use crate::support::{Gateway, Origin, everything_to};
use corpus::{CASE, Expect};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const CLEARTEXT: &str = "[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\nheader_timeout = \"5s\"\n";

/// Why a request that reached the origin could be read in two ways.
pub(crate) fn ambiguity(request: &Recorded) -> Option<String> {
    let head = &request.head;
    let Ok(text) =
        std::str::from_utf8(&head.iter().map(|b| if *b >= 0x80 { b'?' } else { *b }).collect::<Vec<_>>()).map(ToOwned::to_owned)
    else {
        return Some("not text".to_owned());
    };
    let Some(lines) = text.strip_suffix("\r\n\r\n") else { return Some("no empty line at the end".to_owned()) };
    if lines.replace("\r\n", "").bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f) {
        return Some("a control byte".to_owned());
    }
    let mut lines = lines.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let parts: Vec<&str> = first.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else { return Some(format!("request line {first:?}")) };
    if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase() || b"-_0123456789".contains(&b)) {
        return Some(format!("method {method:?}"));
    }
    if !(target.starts_with('/') || target == "*") || target.contains('#') {
        return Some(format!("target {target:?}"));
    }
    let path = target.split('?').next().unwrap_or_default();
    if path.contains("/../") || path.ends_with("/..") || path.contains("//") || path.contains('\\') {
        return Some(format!("path {path:?}"));
    }
    let token =
        |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^`|~".contains(&b));
    let mut seen = BTreeMap::<String, Vec<String>>::new();
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return Some(format!("line {line:?}")) };
        if !token(name) {
            return Some(format!("name {name:?}"));
        }
        seen.entry(name.to_ascii_lowercase()).or_default().push(value.trim().to_owned());
    }
    let of = |name: &str| seen.get(name).map(Vec::as_slice).unwrap_or_default();
    let (length, coding) = (of("content-length"), of("transfer-encoding"));
    match (length, coding) {
        ([], []) if request.body.is_empty() => {}
        ([length], []) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
            if length.parse() != Ok(request.body.len()) {
                return Some(format!("length {length} of {} bytes", request.body.len()));
            }
        }
        ([], [coding]) if coding == "chunked" => {}
        _ => return Some(format!("framing {length:?} {coding:?}")),
    }
    let [host] = of("host") else { return Some(format!("hosts {:?}", of("host"))) };
    if host.is_empty() || host.bytes().any(|b| b <= b' ' || b >= 0x7f || b"/?#\\@,".contains(&b)) {
        return Some(format!("host {host:?}"));
    }
    let connection = of("connection");
    // `te` is for the gateway's own `TE: trailers`.
    let known = |value: &String| ["close", "te"].iter().any(|known| value.eq_ignore_ascii_case(known));
    if !connection.iter().all(known) || !of("upgrade").is_empty() {
        return Some(format!("connection {connection:?}, upgrade {:?}", of("upgrade")));
    }
    None
}

#[test]
fn no_sequence_reaches_the_origin_in_two_readings() {
    let corpus = corpus::corpus();
    assert!(corpus.len() >= 300, "only {} sequences", corpus.len());
    let names: BTreeSet<&str> = corpus.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), corpus.len(), "two sequences of one name");
    let origin = Origin::start("a");
    let gateway = Gateway::start(&format!("{CLEARTEXT}{}", everything_to(&[&origin], "")));
    let address = gateway.http();
    // Several at a time: most of the time of each is spent waiting.
    let next = std::sync::atomic::AtomicUsize::new(0);
    let outcomes = std::sync::Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some((number, case)) = {
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    corpus.get(number).map(|case| (number, case))
                } {
                    let mut frames = Frames::connect(address);
                    frames.send(&case.bytes);
                    let after = Duration::from_millis(if matches!(case.expect, Expect::Passes(_)) { 10_000 } else { 300 });
                    let outcome = frames.outcome(1, Duration::from_secs(20), after);
                    outcomes.lock().unwrap().insert(number, outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    assert_eq!(crate::support::raw::get(address, "/after").status, 200, "the gateway has survived all of them");
    let mut arrived = BTreeMap::<usize, Vec<Recorded>>::new();
    let mut wrong = Vec::new();
    for request in origin.requests() {
        if request.request_line().starts_with("GET /after ") {
            continue;
        }
        match request.header(CASE).and_then(|number| number.parse::<usize>().ok()).filter(|number| *number < corpus.len()) {
            Some(number) => arrived.entry(number).or_default().push(request),
            None => wrong.push(format!("a request of nobody: {request:?}")),
        }
    }
    for (number, case) in corpus.iter().enumerate() {
        let (requests, outcome) = (arrived.remove(&number).unwrap_or_default(), outcomes[&number]);
        let name = &case.name;
        for request in &requests {
            if let Some(why) = ambiguity(request) {
                wrong.push(format!("{name}: arrived with {why}: {:?}", String::from_utf8_lossy(&request.head)));
            }
        }
        match (&case.expect, requests.as_slice()) {
            (_, [_, _, ..]) => wrong.push(format!("{name}: arrived {} times", requests.len())),
            (Expect::Refused, [request]) => {
                wrong.push(format!(
                    "{name}: arrived ({outcome:?}): {:?} {:?}",
                    String::from_utf8_lossy(&request.head),
                    request.body
                ));
            }
            (Expect::Passes(_), []) => wrong.push(format!("{name}: did not arrive: {outcome:?}")),
            (Expect::Passes(body), [request]) if *body != request.body => {
                wrong.push(format!("{name}: arrived with the body {:?}", String::from_utf8_lossy(&request.body)));
            }
            (Expect::Passes(_), [_]) if outcome != End::Answered => wrong.push(format!("{name}: not answered: {outcome:?}")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {} sequences:\n{}", wrong.len(), corpus.len(), wrong.join("\n"));
}
