use super::super::writer::{Output, WriterOptions};
use super::*;
use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::{Map, Value};
use std::io;

const LONG: Duration = Duration::from_secs(20);

fn full<'a>(bytes: &'a [u8], text: &'a str) -> AccessRecord<'a> {
    AccessRecord {
        time: SystemTime::UNIX_EPOCH + Duration::from_micros(1_767_323_045_678_901),
        request_id: text,
        listener: Some(text),
        client: "2001:db8::1".parse().unwrap(),
        method: bytes,
        host: bytes,
        path: bytes,
        protocol: "HTTP/1.1",
        route: Some(text),
        upstream: Some(text),
        endpoint: Some("[fe80::1]:3001".parse().unwrap()),
        consumer: Some(text),
        subject: Some(text),
        credential: Some(text),
        status: Some(502),
        rejection: Some(text),
        error: Some(text),
        bytes_in: u64::MAX,
        bytes_out: 7,
        duration: Duration::from_micros(1_234_567),
        upstream_time: Some(Duration::from_nanos(999)),
        connect_time: Some(Duration::from_millis(3)),
        attempts: 2,
        reused: Some(false),
        cache: Some("miss"),
        user_agent: Some(bytes),
    }
}

fn line(record: &AccessRecord<'_>) -> String {
    let mut out = Vec::new();
    push_line(&mut out, record);
    String::from_utf8(out).unwrap()
}

fn parse(line: &str) -> Map<String, Value> {
    serde_json::from_str(line).unwrap()
}

#[test]
fn fields_are_those_of_the_table_in_its_order() {
    let written = line(&full(b"x", "x"));
    let mut rest = written.as_str();
    for (name, meaning) in FIELDS {
        let key = format!("\"{name}\":");
        let at = rest.find(&key).unwrap_or_else(|| panic!("{name} is missing or out of order in {written}"));
        rest = &rest[at + key.len()..];
        assert!(!meaning.is_empty() && !meaning.ends_with('.'), "{name}");
    }
    assert_eq!(parse(&written).len(), FIELDS.len(), "a field that the table lacks: {written}");
}

#[test]
fn a_line_reads_back_as_the_request() {
    let fields = parse(&line(&full(b"/a b", "r")));
    assert_eq!(fields["time"], "2026-01-02T03:04:05.678901Z");
    assert_eq!(fields["client"], "2001:db8::1");
    assert_eq!(fields["endpoint"], "[fe80::1]:3001");
    assert_eq!(fields["status"], 502);
    assert_eq!(fields["bytes_in"], u64::MAX);
    assert_eq!(fields["duration"], 1.234567);
    assert_eq!(fields["upstream_time"], 0.0);
    assert_eq!(fields["connect_time"], 0.003);
    assert_eq!(fields["reused"], false);
    assert_eq!(fields["cache"], "miss");
}

#[test]
fn what_a_request_does_not_have_is_left_out() {
    let record = AccessRecord::new(SystemTime::UNIX_EPOCH, "id", IpAddr::from([127, 0, 0, 1]));
    assert_eq!(
        line(&record),
        "{\"time\":\"1970-01-01T00:00:00.000000Z\",\"request_id\":\"id\",\"client\":\"127.0.0.1\",\
         \"bytes_in\":0,\"bytes_out\":0,\"duration\":0.000000,\"attempts\":0}\n"
    );
}

#[test]
fn the_query_is_never_logged() {
    let secret = AccessRecord { path: b"/a?key=canary", ..full(b"x", "x") };
    assert_eq!(parse(&line(&secret))["path"], "/a");
}

#[test]
fn a_line_is_bounded_whatever_its_fields() {
    // Six bytes for each byte is the most that an escape takes.
    let (bytes, text) = (vec![0x01; 1 << 20], "\u{1}".repeat(1 << 20));
    let written = line(&full(&bytes, &text));
    assert!(written.len() < 100_000, "{} bytes", written.len());
    let path = parse(&written)["path"].as_str().unwrap().to_owned();
    assert!(path.ends_with(&format!("…(+{} bytes)", (1 << 20) - TEXT_MAX)), "{path}");
}

#[test]
fn sampling_keeps_the_share_and_is_the_same_everywhere() {
    let ids: Vec<String> = (0..20_000).map(|n| format!("0198f0a0-7c3e-7000-8000-{n:012x}")).collect();
    let kept = |share| ids.iter().filter(|id| sampled(id, share)).count();
    assert_eq!((kept(0), kept(1_000_000)), (0, ids.len()));
    let (tenth, half) = (kept(100_000), kept(500_000));
    assert!((1_700..2_300).contains(&tenth) && (9_500..10_500).contains(&half), "{tenth} {half}");
    assert!(ids.iter().filter(|id| sampled(id, 100_000)).all(|id| sampled(id, 500_000)), "a larger share holds a smaller");
}

#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn sampling_never_hides_an_error() {
    let page = Page::default();
    let writer = Writer::new(WriterOptions::new("test", Output::Custom("a page", Box::new(page.clone())))).unwrap();
    let log = AccessLog::new(Arc::new(writer), AccessLogOptions { sample_per_million: 0 });
    let good = AccessRecord { status: Some(200), ..AccessRecord::new(SystemTime::UNIX_EPOCH, "good", [127, 0, 0, 1].into()) };
    log.write(&good);
    log.write(&AccessRecord { status: Some(404), request_id: "of the upstream", ..good.clone() });
    log.write(&AccessRecord { status: Some(500), request_id: "a", ..good.clone() });
    log.write(&AccessRecord { status: Some(404), rejection: Some("route_not_found"), request_id: "b", ..good.clone() });
    log.write(&AccessRecord { error: Some("ReadError"), request_id: "c", ..good.clone() });
    log.write(&AccessRecord { status: None, request_id: "d", ..good.clone() });
    assert!(log.writer().flush(LONG));
    let text = String::from_utf8(page.0.lock().clone()).unwrap();
    let ids: Vec<Value> = text.lines().map(|line| parse(line)["request_id"].clone()).collect();
    assert_eq!(ids, ["a", "b", "c", "d"]);
}

const NASTY: &[u8] = b"\r\n\"\\{}:,\0\x1b\x7f\xff\xc2\x85\xe2\x80\xa8\xa9u";

proptest! {
    #[test]
    fn no_field_breaks_out_of_its_line(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            // What an attacker would try, far more often than chance would.
            proptest::collection::vec(prop::sample::select(NASTY.to_vec()), 0..200),
            proptest::collection::vec(any::<u8>(), 2000..2100),
        ],
        text in any::<String>(),
    ) {
        let written = line(&full(&bytes, &text));
        prop_assert_eq!(memchr::memchr_iter(b'\n', written.as_bytes()).count(), 1);
        prop_assert!(written.ends_with("}\n"), "{}", written);
        let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
        prop_assert!(!written.trim_end().chars().any(breaks), "{}", written);
        let fields = parse(&written);
        for name in fields.keys() {
            prop_assert!(FIELDS.iter().any(|(known, _)| known == name), "{} is not a field", name);
        }
        prop_assert_eq!(&fields["status"], &Value::from(502));
        if bytes.len() <= SHORT_MAX {
            let sent = String::from_utf8_lossy(&bytes);
            prop_assert_eq!(fields["user_agent"].as_str().unwrap(), sent.as_ref());
        }
    }
}
