//! Lengths that disagree, bodies that look like something else, trailers.

use super::*;
use crate::support::frames::{PADDED, PREFACE};

pub fn lengths_and_bodies(corpus: &mut Corpus) {
    use Expect::{Harmless, Passes, Refused};
    let length = b"content-length".as_slice();
    for value in [
        "-1",
        "+5",
        "5,5",
        "5, 5",
        "0x5",
        "5.0",
        "5e0",
        "five",
        "",
        " ",
        "99999999999999999999",
        "18446744073709551616",
        "5;",
        "\u{665}",
        "5 6",
        "5\t",
    ] {
        corpus.body(format!("content-length {value:?}"), Refused, &[(length, value.as_bytes())], &[b"12345"]);
    }
    for value in [" 5", "5 ", "05", "005"] {
        corpus.body(format!("content-length {value:?}"), Harmless, &[(length, value.as_bytes())], &[b"12345"]);
    }
    for (declared, pieces) in [
        ("4", &[b"12345".as_slice()] as &[&[u8]]),
        ("6", &[b"12345"]),
        ("5", &[b""]),
        ("3", &[b"12", b"34"]),
        ("5", &[b"1234", b""]),
    ] {
        // Too little shows at the end only, when the head has gone already: the origin must not take it for complete.
        corpus.body(format!("content-length {declared} and {pieces:?}"), Refused, &[(length, declared.as_bytes())], pieces);
    }
    // The origin is told that nothing comes, and nothing does.
    corpus.body("content-length 0 and a body", Harmless, &[(length, b"0")], &[b"1"]);
    corpus.add("content-length 5 and no body", Refused, |n| {
        let mut fields = usual(n, "POST");
        fields.push((length.to_vec(), b"5".to_vec()));
        headers(END_STREAM | END_HEADERS, &block(&fields))
    });
    corpus.body("two lengths that differ", Refused, &[(length, b"5"), (length, b"6")], &[b"12345"]);
    corpus.body("two lengths that agree", Refused, &[(length, b"5"), (length, b"5")], &[b"12345"]);
    corpus.body("a length that fits", Passes(b"12345".to_vec()), &[(length, b"5")], &[b"12", b"345"]);
    corpus.body("a length of nothing", Passes(vec![]), &[(length, b"0")], &[b""]);
    let tricks: [(&str, &[&[u8]]); 9] = [
        ("a last chunk and a request", &[b"0\r\n\r\n", SMUGGLED.as_bytes()]),
        ("a request", &[SMUGGLED.as_bytes()]),
        ("a chunk", &[b"5\r\n12345\r\n"]),
        ("empty pieces", &[b"", b"a", b"", b"", b"b", b""]),
        ("only empty pieces", &[b"", b"", b""]),
        ("one byte each", &[b"0", b"\r", b"\n", b"\r", b"\n", b"G"]),
        ("CRLF alone", &[b"\r\n\r\n"]),
        ("nul bytes", &[b"\0\0\0"]),
        ("an HTTP/2 preface", &[PREFACE]),
    ];
    for (what, pieces) in tricks {
        corpus.body(format!("body: {what}"), Passes(pieces.concat()), &[], pieces);
        let whole = pieces.concat();
        corpus.body(
            format!("body with its length: {what}"),
            Passes(whole.clone()),
            &[(length, whole.len().to_string().as_bytes())],
            pieces,
        );
        corpus.add(format!("GET with a body: {what}"), Passes(whole.clone()), |n| {
            let mut bytes = headers(END_HEADERS, &block(&usual(n, "GET")));
            for piece in pieces {
                bytes.extend(frame(DATA, 0, 1, piece));
            }
            bytes.extend(frame(DATA, END_STREAM, 1, b""));
            bytes
        });
    }
    corpus.add("padded pieces", Passes(b"body".to_vec()), |n| {
        let mut bytes = headers(END_HEADERS, &block(&usual(n, "POST")));
        bytes.extend(frame(DATA, PADDED, 1, b"\x03bo\0\0\0"));
        bytes.extend(frame(DATA, PADDED | END_STREAM, 1, b"\x00dy"));
        bytes
    });
    corpus.add("padding longer than the piece", Refused, |n| {
        let mut bytes = headers(END_HEADERS, &block(&usual(n, "POST")));
        bytes.extend(frame(DATA, PADDED | END_STREAM, 1, b"\x09body"));
        bytes
    });
}

pub fn trailers(corpus: &mut Corpus) {
    use Expect::{Harmless, Refused};
    let with = |n: &str, flags: u8, fields: &[(&str, &str)]| {
        let mut bytes = headers(END_HEADERS, &block(&usual(n, "POST")));
        bytes.extend(frame(DATA, 0, 1, b"body"));
        bytes.extend(headers(flags, &block(fields)));
        bytes
    };
    corpus.add("trailers", Expect::Passes(b"body".to_vec()), |n| with(n, END_STREAM | END_HEADERS, &[("x-trailer", "1")]));
    corpus.add("trailers without an end", Refused, |n| with(n, END_HEADERS, &[("x-trailer", "1")]));
    for (name, value) in
        [("connection", "close"), ("transfer-encoding", "chunked"), ("X-Upper", "1"), ("x y", "1"), ("x-a", "a\r\nb: c")]
    {
        corpus.add(format!("trailer {name}: {value:?}"), Refused, |n| with(n, END_STREAM | END_HEADERS, &[(name, value)]));
    }
    for (name, value) in [
        // Trailers end here when the upstream speaks HTTP/1.1.
        (":path", "/other"),
        (":method", "GET"),
        (":status", "200"),
        ("content-length", "99"),
        ("host", "other"),
        ("te", "trailers"),
        ("authorization", "x"),
        ("x-forwarded-for", "1.2.3.4"),
    ] {
        corpus.add(format!("trailer {name}: {value:?}"), Harmless, |n| with(n, END_STREAM | END_HEADERS, &[(name, value)]));
    }
}
