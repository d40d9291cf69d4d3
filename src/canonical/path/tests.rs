//! The rule as a table, and its laws over generated paths. The oracle decodes everything and splits afterwards, the
//! opposite order of the code, which gives the same answer only because every path for which it would not is refused.

use super::PathProblem::*;
use super::*;
use percent_encoding::percent_decode_str;
use proptest::prelude::*;

const LENIENT: PathRules = PathRules { encoded_slash: true, parameters: true, asterisk: true };

fn canonical(raw: &str, rules: PathRules) -> Result<String, PathProblem> {
    let mut out = String::from("left over");
    canonical_path(raw.as_bytes(), rules, &mut out).map(|form| match form {
        PathForm::Canonical => raw.to_owned(),
        PathForm::Rewritten => out,
    })
}

fn strict(raw: &str) -> Result<String, PathProblem> {
    canonical(raw, PathRules::STRICT)
}

#[test]
fn canonical_paths_stay_and_need_no_buffer() {
    for path in [
        "/",
        "/a",
        "/a/",
        "/api/v1/users/42",
        "/a.b/c..d/e.",
        "/.well-known/acme",
        "/...",
        "/..a",
        "/~user/x_y-z",
        "/a:b@c!$&'()*+,=",
        "/caf%C3%A9",
        "/%F0%9F%92%96/",
        "/a%20b",
        "/%3A%3B%2B%40",
        "/100%25",
        "/100%25/zz",
        "/a%25zz",
        "/a%7Cb",
    ] {
        let mut out = String::new();
        assert_eq!(canonical_path(path.as_bytes(), PathRules::STRICT, &mut out), Ok(PathForm::Canonical), "{path}");
        assert!(is_canonical(path, PathRules::STRICT), "{path}");
    }
}

#[test]
fn one_form_for_each_path() {
    for (raw, path) in [
        ("/%61dmin", "/admin"),
        ("/%7e%7E", "/~~"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/a|b^[c]", "/a%7Cb%5E%5Bc%5D"),
        ("/a/./b", "/a/b"),
        ("/a/.", "/a/"),
        ("/.", "/"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/a/..", "/"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/a/%2e/b", "/a/b"),
        ("/a/b/c/./../../g", "/a/g"),
        ("//", "/"),
        ("//a", "/a"),
        ("/a//b///c//", "/a/b/c/"),
        ("/a//./b", "/a/b"),
    ] {
        assert_eq!(strict(raw).as_deref(), Ok(path), "{raw}");
        assert!(!is_canonical(raw, PathRules::STRICT) && is_canonical(path, PathRules::STRICT), "{raw}");
    }
}

#[test]
fn another_reading_is_a_refusal() {
    for (raw, problem) in [
        ("", NotAbsolute),
        ("a", NotAbsolute),
        ("*", NotAbsolute),
        ("%2fa", NotAbsolute),
        ("/a b", IllegalByte),
        ("/<", IllegalByte),
        ("/>", IllegalByte),
        ("/\"", IllegalByte),
        ("/`", IllegalByte),
        ("/{id}", IllegalByte),
        ("/a#b", IllegalByte),
        ("/a?b", IllegalByte),
        ("/a\0", ControlByte),
        ("/a\t", ControlByte),
        ("/a\r\nb", ControlByte),
        ("/a\x7f", ControlByte),
        ("/é", NonAscii),
        ("/a\\b", Backslash),
        ("/..\\admin", Backslash),
        ("/%", MalformedEscape),
        ("/%2", MalformedEscape),
        ("/%2/", MalformedEscape),
        ("/%zz", MalformedEscape),
        ("/%u002e", MalformedEscape),
        ("/%+1", MalformedEscape),
        ("/%%32%65", MalformedEscape),
        ("/a%2fb", EncodedSlash),
        ("/..%2Fadmin", EncodedSlash),
        ("/a%5cb", EncodedBackslash),
        ("/a%00", EncodedNul),
        ("/a%0d%0aSet-Cookie:x", EncodedControl),
        ("/a%09", EncodedControl),
        ("/a%7f", EncodedControl),
        ("/%c0%ae%c0%ae/", InvalidUtf8),
        ("/%c0%af", InvalidUtf8),
        ("/%c1%9c", InvalidUtf8),
        ("/%e0%80%af", InvalidUtf8),
        ("/%e0%80%ae", InvalidUtf8),
        ("/%f0%80%80%af", InvalidUtf8),
        ("/%ed%a0%80", InvalidUtf8),
        ("/%f4%90%80%80", InvalidUtf8),
        ("/%f8%80%80%80%af", InvalidUtf8),
        ("/%fe", InvalidUtf8),
        ("/%e9", InvalidUtf8),
        ("/%80", InvalidUtf8),
        ("/%c3", InvalidUtf8),
        ("/%c3/%a9", InvalidUtf8),
        ("/%c3a%a9", InvalidUtf8),
        ("/%c3%2e", InvalidUtf8),
        ("/%252e%252e/", DoubleEncoding),
        ("/%252f", DoubleEncoding),
        ("/%25%32%66", DoubleEncoding),
        ("/%25252f", DoubleEncoding),
        ("/%255c", DoubleEncoding),
        ("/%2500", DoubleEncoding),
        ("/a;v=1/b", Parameters),
        ("/..;/admin", Parameters),
        ("/a;", Parameters),
        ("/..%3b/admin", DisguisedDotSegment),
        ("/.%2e%3Bx/admin", DisguisedDotSegment),
        ("/.%3b", DisguisedDotSegment),
        ("/a//../b", AmbiguousDotSegment),
        ("//../b", AmbiguousDotSegment),
        ("/a/../b//c", AmbiguousDotSegment),
        ("/a//%2e%2e", AmbiguousDotSegment),
        ("/..", AboveRoot),
        ("/../a", AboveRoot),
        ("/a/../../b", AboveRoot),
        ("/./..", AboveRoot),
        ("/a/%2e%2e/%2e%2e/b", AboveRoot),
    ] {
        assert_eq!(strict(raw), Err(problem), "{raw}");
        assert!(!is_canonical(raw, PathRules::STRICT), "{raw}");
    }
}

#[test]
fn what_a_rule_allows_is_still_no_disguise() {
    for (raw, path) in
        [("*", "*"), ("/group%2fname", "/group%2Fname"), ("/a;v=1/b", "/a;v=1/b"), ("/a;v=.", "/a;v=."), ("/a%3bb", "/a%3Bb")]
    {
        assert_eq!(canonical(raw, LENIENT).as_deref(), Ok(path), "{raw}");
    }
    for raw in ["/..;/a", "/..;x", "/.;", "/..%2fa", "/a%2f..", "/a%2f%2e%2e%2fb", "/a;../b", "/x%3b..%2f"] {
        assert_eq!(canonical(raw, LENIENT), Err(DisguisedDotSegment), "{raw}");
    }
}

#[test]
fn a_query_keeps_its_bytes_and_cannot_split_a_line() {
    for fine in ["", "a=b&c=%20", "q={}|^[]`\\?/;:@'", "%zz", "a=..%2f"] {
        assert_eq!(check_query(fine.as_bytes()), Ok(()), "{fine}");
    }
    for (raw, problem) in
        [("a b", IllegalByte), ("a#b", IllegalByte), ("<", IllegalByte), ("a\r\nb", ControlByte), ("\u{7f}", ControlByte)]
    {
        assert_eq!(check_query(raw.as_bytes()), Err(problem), "{raw:?}");
    }
    assert_eq!(check_query("ü".as_bytes()), Err(NonAscii));
}

/// The segments of a path as a service reads it that decodes first and splits then.
fn oracle(raw: &str) -> Vec<String> {
    let decoded = percent_decode_str(raw).decode_utf8().expect("an accepted path is UTF-8").into_owned();
    let mut segments: Vec<String> = Vec::new();
    let all: Vec<&str> = decoded.split('/').skip(1).collect();
    for (at, segment) in all.iter().enumerate() {
        let last = at + 1 == all.len();
        match *segment {
            ".." => {
                segments.pop().expect("an accepted path does not leave the root");
            }
            "." => {}
            "" if !last => continue,
            _ => {
                segments.push((*segment).to_owned());
                continue;
            }
        }
        if last {
            segments.push(String::new());
        }
    }
    segments
}

/// The laws that hold for every accepted path.
fn check_laws(raw: &str, out: &mut String) -> bool {
    let path = match canonical_path(raw.as_bytes(), PathRules::STRICT, out) {
        Err(_) => return false,
        Ok(PathForm::Canonical) => raw,
        Ok(PathForm::Rewritten) => out.as_str(),
    };
    assert!(is_canonical(path, PathRules::STRICT), "not idempotent: {raw} became {path}");
    assert_eq!(oracle(raw), oracle(path), "{raw} became another path: {path}");
    let decoded = percent_decode_str(path).decode_utf8().expect("canonical paths decode to UTF-8");
    assert!(!decoded.contains("//") && !decoded.contains(['\\', '\0', '\r', '\n']), "{raw} became {path}");
    assert!(decoded.split('/').all(|segment| segment != "." && segment != ".."), "{raw} became {path}");
    assert_eq!(decoded.matches('/').count(), path.matches('/').count(), "a slash is hidden in {path}");
    assert!(!path.contains(';') && path.is_ascii(), "{raw} became {path}");
    assert!(percent_decode_str(&decoded).collect::<Vec<u8>>() == decoded.as_bytes(), "{path} decodes twice");
    true
}

#[test]
fn the_laws_hold_for_a_million_generated_paths() {
    const PIECES: [&str; 32] = [
        "/", "/", "/", "/", "a", "b", "admin", "..", ".", "%2e", "%2E", "..", "%61", "%7E", "%c3%a9", "%C3", "%A9", "%25", "32",
        "2f", "%2f", "%5C", "\\", "%00", ";", "%3b", "|", "%", "%41", "Z", "x.y", "~",
    ];
    // xorshift64*: the same million on every machine.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut raw, mut out, mut accepted) = (String::new(), String::new(), 0_u32);
    for _ in 0..1_000_000 {
        raw.clear();
        raw.push('/');
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let mut bits = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
        for _ in 0..=bits % 9 {
            bits = bits.rotate_right(5);
            raw.push_str(PIECES[(bits % 32) as usize]);
        }
        accepted += u32::from(check_laws(&raw, &mut out));
    }
    assert!((50_000..950_000).contains(&accepted), "{accepted} accepted: the generator no longer tests both sides");
}

proptest! {
    #[test]
    fn any_bytes_get_a_verdict(raw in proptest::collection::vec(any::<u8>(), 0..64), rooted in any::<bool>()) {
        let mut raw = raw;
        if rooted {
            raw.insert(0, b'/');
        }
        let mut out = String::new();
        let first = canonical_path(&raw, PathRules::STRICT, &mut out);
        let _ = canonical_path(&raw, LENIENT, &mut out);
        prop_assert_eq!(check_query(&raw).is_ok(), raw.iter().all(|&byte| may_stand_in_query(byte)));
        if let (Ok(_), Ok(text)) = (first, std::str::from_utf8(&raw)) {
            prop_assert!(check_laws(text, &mut out));
        }
    }

    #[test]
    fn every_encoding_of_a_path_is_the_same_path(
        path in "(/[a-zA-Z0-9_~.é %-]{1,6}){1,5}/?",
        choices in proptest::collection::vec(0_u8..4, 64),
    ) {
        let reference: String = path.chars().map(|c| match c {
            ' ' => "%20".to_owned(),
            'é' => "%C3%A9".to_owned(),
            '%' => "%25".to_owned(),
            other => other.to_string(),
        }).collect();
        let mut choices = choices.into_iter().cycle();
        let encoded: String = path.chars().map(|c| match (c, choices.next().unwrap_or(0)) {
            ('/', _) => "/".to_owned(),
            (c, 0) if c.is_ascii_alphanumeric() || "-._~".contains(c) => c.to_string(),
            (c, choice) => c.to_string().bytes().map(|b| {
                if choice == 1 { format!("%{b:02X}") } else { format!("%{b:02x}") }
            }).collect(),
        }).collect();
        prop_assert_eq!(strict(&encoded), strict(&reference), "{} and {}", encoded, reference);
    }

    #[test]
    fn lenient_paths_are_stable_too(raw in "/([a-c./;]|%2f|%3b|%2e|%25){0,12}") {
        if let Ok(path) = canonical(&raw, LENIENT) {
            prop_assert_eq!(canonical(&path, LENIENT), Ok(path.clone()));
        }
    }
}
