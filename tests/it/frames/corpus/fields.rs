//! Pseudo-headers, targets, names and values.

use super::*;
use crate::support::frames::CONTINUATION;

pub fn pseudo_headers(corpus: &mut Corpus) {
    use Expect::{Harmless, Passes, Refused};
    corpus.add("the usual request", Passes(vec![]), get);
    for name in [":method", ":scheme", ":path"] {
        corpus.add(format!("no {name}"), Refused, |n| without(n, &[name]));
    }
    corpus.add("no :authority and no host", Refused, |n| without(n, &[":authority"]));
    for (name, value) in [(":method", "POST"), (":scheme", "https"), (":path", "/other"), (":authority", "other")] {
        for value in [value, ""] {
            corpus.add(format!("{name} twice, then {value:?}"), Refused, |n| {
                let mut fields = usual(n, "GET");
                fields.insert(4, (name.into(), value.into()));
                headers(END_STREAM | END_HEADERS, &block(&fields))
            });
        }
        corpus.add(format!("{name} after a regular field"), Refused, |n| {
            let mut fields = usual(n, "GET");
            let late = fields.iter().position(|(known, _)| known == name.as_bytes()).unwrap();
            let field = fields.remove(late);
            fields.push(field);
            headers(END_STREAM | END_HEADERS, &block(&fields))
        });
        corpus.fields(format!("empty {name}"), Refused, &[(name.as_bytes(), b"")]);
        let upper = name.to_uppercase();
        corpus.add(format!("{upper} instead of {name}"), Refused, |n| {
            let fields = usual(n, "GET").into_iter();
            let changed = fields.map(|(known, v)| (if known == name.as_bytes() { upper.clone().into() } else { known }, v));
            headers(END_STREAM | END_HEADERS, &block(&changed.collect::<Fields>()))
        });
    }
    for name in [":status", ":protocol", ":foo", ":", ":host", ": method", ":method:", ":path ", "::path", ":content-length"] {
        corpus.add(format!("unknown pseudo-header {name:?}"), Refused, |n| {
            let mut fields = usual(n, "GET");
            fields.insert(0, (name.into(), "200".into()));
            headers(END_STREAM | END_HEADERS, &block(&fields))
        });
    }
    for method in [
        "GET ",
        " GET",
        "G ET",
        "get",
        "GeT",
        "GET\t",
        "GET\0",
        "GET /x HTTP/1.1\r\nhost: a\r\n\r\nGET",
        "GET\r\n",
        "G\nT",
        "GET:",
        "(",
        "GET,POST",
    ] {
        corpus.fields(format!("method {method:?}"), Refused, &[(b":method", method.as_bytes())]);
    }
    corpus.fields("CONNECT with a path", Refused, &[(b":method", b"CONNECT")]);
    corpus.add("CONNECT to an authority", Refused, |n| {
        let fields = [(":method", "CONNECT"), (":authority", "localhost:443"), (CASE, n)];
        headers(END_HEADERS, &block(&fields))
    });
    corpus.add("extended CONNECT", Refused, |n| {
        let mut fields = usual(n, "CONNECT");
        fields.insert(1, (":protocol".into(), "websocket".into()));
        headers(END_HEADERS, &block(&fields))
    });
    for scheme in ["ftp", "HTTP://", "http://localhost/?", "ht tp", "http\r\n", "http\0", "1http", "ws", "file", "javascript"] {
        corpus.fields(format!("scheme {scheme:?}"), Refused, &[(b":scheme", scheme.as_bytes())]);
    }
    corpus.fields("scheme https on a plain port", Harmless, &[(b":scheme", b"https")]);
    for authority in [
        "a b",
        "a\r\nx: y",
        "a\n",
        "a\0",
        "a,b",
        "a/b",
        "a?b",
        "a#b",
        "a\\b",
        "user@a",
        "user:pw@a",
        "a:99999",
        "a:-1",
        "a:b",
        "a:80:80",
        "[::1",
        "::1",
        "[::g]",
        "[]",
        "a_b\u{7f}",
        "%00",
        "a%0d%0ab",
        "\u{e9}",
        " a",
        "a ",
        "\ta",
        "http://a",
        ":",
        ":80",
        "a..b",
        "[a]",
        "*",
        "a;b",
        "a'b",
        "a\"b",
        "<a>",
        "{a}",
        "a|b",
        "a^b",
        "a`b",
    ] {
        // What is a host name to some and none to others may pass; what could end a line or a URL part may not.
        let splits = authority.bytes().any(|b| b <= b' ' || b >= 0x7f || b"/?#\\@,".contains(&b));
        let expect = if splits { Refused } else { Harmless };
        corpus.fields(format!("authority {authority:?}"), expect, &[(b":authority", authority.as_bytes())]);
    }
    for host in ["other", "localhost:81", "", "localhost, other", "localhost\r\nx: y", "local host", "user@localhost"] {
        corpus.fields(format!("host {host:?} beside :authority"), Refused, &[(b"host", host.as_bytes())]);
    }
    corpus.fields("host equal to :authority", Passes(vec![]), &[(b"host", b"localhost")]);
    corpus.add("two hosts and no :authority", Refused, |n| {
        let mut fields = usual(n, "GET");
        fields.remove(3);
        fields.extend([(b"host".to_vec(), b"localhost".to_vec()), (b"host".to_vec(), b"other".to_vec())]);
        headers(END_STREAM | END_HEADERS, &block(&fields))
    });
    corpus.add("two equal hosts", Refused, |n| {
        let mut fields = usual(n, "GET");
        fields.extend([(b"host".to_vec(), b"localhost".to_vec()), (b"host".to_vec(), b"localhost".to_vec())]);
        headers(END_STREAM | END_HEADERS, &block(&fields))
    });
}

pub fn targets(corpus: &mut Corpus) {
    use Expect::{Harmless, Refused};
    for path in [
        "*",
        "relative",
        "?query",
        "/a b",
        "/a\tb",
        "/a\r\nx: y",
        "/a HTTP/1.1\r\nhost: b\r\n\r\n",
        "/a\n",
        "/a\r",
        "/a\0b",
        "/a\u{7f}",
        "/%00",
        "/%0d%0ax: y",
        "http://other/",
        "http://localhost/",
        "/..",
        "/../..",
        "/a/../../b",
        "/%2e%2e/%2e%2e/a",
        "/a/%2e%2e%2f..%2fb",
        "/a%5c..%5cb",
        "/a\\b",
        "/%c0%ae%c0%ae/",
        "/%252e%252e/",
        "/%",
        "/%2",
        "/%zz",
        "/%u002e",
        "\\a",
        " /a",
        "/a ",
    ] {
        corpus.fields(format!("path {path:?}"), Refused, &[(b":path", path.as_bytes())]);
    }
    // The fragment is dropped before anybody sees it, so that one reading is left.
    for path in [
        "/a#fragment",
        "#fragment",
        "//",
        "//other/a",
        "/a;b=c",
        "/a//b",
        "/./a",
        "/a/./b",
        "/a/../b",
        "/%41",
        "/a?b?c",
        "/a?\u{e9}",
        "/\u{e9}",
        "/a?b c",
        "/a?b\"<>",
    ] {
        corpus.fields(format!("path {path:?}"), Harmless, &[(b":path", path.as_bytes())]);
    }
}

pub fn names_and_values(corpus: &mut Corpus) {
    use Expect::{Harmless, Passes, Refused};
    for byte in (0..=0x20).chain(0x7f..=0x8f).chain([0xa0, 0xc3, 0xe9, 0xff]).chain(*b"\"(),/:;<=>?@[\\]{}") {
        corpus.fields(format!("byte {byte:#04x} in a name"), Refused, &[(&[b'x', byte, b'y'], b"1")]);
    }
    for name in [
        "X-Upper",
        "xA",
        "Content-Length",
        "Transfer-Encoding",
        "Host",
        "",
        " x",
        "x ",
        "x_y",
        "content_length",
        "transfer_encoding",
    ] {
        corpus.fields(format!("name {name:?}"), Refused, &[(name.as_bytes(), b"1")]);
    }
    for byte in (0..0x20).filter(|byte| *byte != b'\t').chain([0x7f]) {
        corpus.fields(format!("byte {byte:#04x} in a value"), Refused, &[(b"x-a", &[b'a', byte, b'b'])]);
    }
    for value in ["a\r\nx-b: c", "a\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: b\r\n\r\n", "\r\n", "a\n\tfolded", "\0"] {
        corpus.fields(format!("value {value:?}"), Refused, &[(b"x-a", value.as_bytes())]);
    }
    for value in [" a", "a ", "\ta", "", "a\tb", "\u{e9}", "a,b", "a;b=\"c\""] {
        corpus.fields(format!("value {value:?}"), Harmless, &[(b"x-a", value.as_bytes())]);
    }
    for (name, value) in [
        ("connection", "close"),
        ("connection", "keep-alive"),
        ("connection", "x-forwarded-for"),
        ("connection", "host"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("transfer-encoding", "gzip, chunked"),
        ("transfer-encoding", ""),
        ("transfer-encoding", " chunked"),
        ("upgrade", "websocket"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
        ("te", "chunked"),
        ("te", "gzip"),
        ("te", "trailers, deflate"),
        ("te", ""),
    ] {
        let expect = if name == "http2-settings" { Harmless } else { Refused };
        corpus.fields(format!("{name}: {value}"), expect, &[(name.as_bytes(), value.as_bytes())]);
        if name == "transfer-encoding" {
            corpus.body(
                format!("{name}: {value} with a body"),
                Refused,
                &[(name.as_bytes(), value.as_bytes())],
                &[b"0\r\n\r\n", SMUGGLED.as_bytes()],
            );
        }
    }
    corpus.fields("te: trailers", Passes(vec![]), &[(b"te", b"trailers")]);
    corpus.fields("expect: 200-ok", Refused, &[(b"expect", b"200-ok")]);
    corpus.add("cookies in crumbs", Passes(vec![]), |n| {
        let mut fields = usual(n, "GET");
        fields.extend((0..5).map(|crumb| (b"cookie".to_vec(), format!("c{crumb}=1").into_bytes())));
        headers(END_STREAM | END_HEADERS, &block(&fields))
    });
    for (name, value) in
        [("before", " v"), ("after", "v "), ("a tab before", "\tv"), ("a tab after", "v\t"), ("nothing else", " ")]
    {
        corpus.fields(format!("white space around a value: {name}"), Refused, &[(b"x-a", value.as_bytes())]);
    }
    corpus.add("101 fields", Refused, |n| {
        let mut fields = usual(n, "GET");
        fields.extend((0..101).map(|field| (format!("x-{field}").into_bytes(), b"1".to_vec())));
        headers(END_STREAM | END_HEADERS, &block(&fields))
    });
    corpus.fields("a frame that is all value", Harmless, &[(b"x-a", &[b'a'; 16_000])]);
    corpus.add("a header list above the bound, in continuations", Refused, |n| {
        let mut fields = usual(n, "GET");
        fields.extend((0..5).map(|field| (format!("x-{field}").into_bytes(), vec![b'a'; 10_000])));
        let block = block(&fields);
        let mut bytes = headers(END_STREAM, &block[..100]);
        let pieces: Vec<&[u8]> = block[100..].chunks(16_000).collect();
        for (at, piece) in pieces.iter().enumerate() {
            bytes.extend(frame(CONTINUATION, if at + 1 == pieces.len() { END_HEADERS } else { 0 }, 1, piece));
        }
        bytes
    });
}
