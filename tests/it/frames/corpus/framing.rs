//! Frames out of place, and header blocks that do not decompress.

use super::*;
use crate::support::frames::{
    ACK, CONTINUATION, GOAWAY, PADDED, PING, PREFACE, PRIORITISED, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    literal,
};

pub fn framing(corpus: &mut Corpus) {
    use Expect::{Harmless, Passes, Refused};
    let before = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let odd = frame(kind, flags, stream, payload);
        move |n: &str| [odd, get(n)].concat()
    };
    // A connection error comes before the request, so that nothing of it may pass.
    let fatal: [(&str, u8, u8, u32, &[u8]); 27] = [
        ("DATA on stream 0", DATA, 0, 0, b"x"),
        ("DATA on an idle stream", DATA, END_STREAM, 1, b"x"),
        ("HEADERS on stream 0", HEADERS, END_HEADERS, 0, b"\x82"),
        ("HEADERS on an even stream", HEADERS, END_HEADERS, 2, b"\x82"),
        ("PRIORITY on stream 0", PRIORITY, 0, 0, b"\0\0\0\x01\x10"),
        ("RST_STREAM on stream 0", RST_STREAM, 0, 0, b"\0\0\0\x08"),
        ("RST_STREAM on an idle stream", RST_STREAM, 0, 1, b"\0\0\0\x08"),
        ("RST_STREAM of 3 bytes", RST_STREAM, 0, 1, b"\0\0\x08"),
        ("SETTINGS of 5 bytes", SETTINGS, 0, 0, b"\0\x03\0\0\0"),
        ("SETTINGS on a stream", SETTINGS, 0, 1, b""),
        ("SETTINGS ACK with a payload", SETTINGS, ACK, 0, b"\0\x03\0\0\0\x64"),
        ("ENABLE_PUSH 2", SETTINGS, 0, 0, b"\0\x02\0\0\0\x02"),
        ("INITIAL_WINDOW_SIZE 2^31", SETTINGS, 0, 0, b"\0\x04\x80\0\0\0"),
        ("MAX_FRAME_SIZE 16383", SETTINGS, 0, 0, b"\0\x05\0\0\x3f\xff"),
        ("MAX_FRAME_SIZE 2^24", SETTINGS, 0, 0, b"\0\x05\x01\0\0\0"),
        ("PUSH_PROMISE", PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\x02\x82"),
        ("PING of 7 bytes", PING, 0, 0, b"1234567"),
        ("PING of 9 bytes", PING, 0, 0, b"123456789"),
        ("PING on a stream", PING, 0, 1, b"12345678"),
        ("GOAWAY of 7 bytes", GOAWAY, 0, 0, b"\0\0\0\0\0\0\0"),
        ("GOAWAY on a stream", GOAWAY, 0, 1, b"\0\0\0\0\0\0\0\0"),
        ("WINDOW_UPDATE of 0", WINDOW_UPDATE, 0, 0, b"\0\0\0\0"),
        ("WINDOW_UPDATE that overflows", WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
        ("WINDOW_UPDATE of 3 bytes", WINDOW_UPDATE, 0, 0, b"\0\0\x01"),
        ("WINDOW_UPDATE on an idle stream", WINDOW_UPDATE, 0, 1, b"\0\0\0\x01"),
        ("CONTINUATION without HEADERS", CONTINUATION, END_HEADERS, 1, b"\x82"),
        ("CONTINUATION on stream 0", CONTINUATION, END_HEADERS, 0, b"\x82"),
    ];
    for (name, kind, flags, stream, payload) in fatal {
        corpus.add(name, Refused, before(kind, flags, stream, payload));
    }
    let ignored: [(&str, u8, u8, u32, &[u8]); 12] = [
        ("an unknown frame", 0x42, 0, 0, b"whatever"),
        ("an unknown frame on a stream", 0x42, 0xff, 1, b"whatever"),
        ("an unknown setting", SETTINGS, 0, 0, b"\xab\xcd\0\0\0\x01"),
        ("a setting twice", SETTINGS, 0, 0, b"\0\x03\0\0\0\x01\0\x03\0\0\0\x02"),
        ("a header table of nothing", SETTINGS, 0, 0, b"\0\x01\0\0\0\0"),
        ("a window of nothing for answers", SETTINGS, 0, 0, b"\0\x06\0\0\0\x01"),
        ("unknown flags on a PING", PING, 0xfe, 0, b"12345678"),
        ("a PING that was answered", PING, ACK, 0, b"12345678"),
        ("a WINDOW_UPDATE", WINDOW_UPDATE, 0, 0, b"\0\0\x10\0"),
        ("a reserved bit in WINDOW_UPDATE", WINDOW_UPDATE, 0, 0, b"\x80\0\x10\0"),
        ("a PRIORITY of an idle stream", PRIORITY, 0, 3, b"\0\0\0\0\x10"),
        ("a GOAWAY without error", GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\0"),
    ];
    for (name, kind, flags, stream, payload) in ignored {
        corpus.add(name, Harmless, before(kind, flags, stream, payload));
    }
    for (name, tail) in [
        ("DATA after the end", frame(DATA, END_STREAM, 1, b"more")),
        ("HEADERS after the end", headers(END_STREAM | END_HEADERS, b"\x82\x86\x84")),
        ("a request on a lower stream", frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&usual("lower", "GET")))),
    ] {
        // The request before it was whole; what follows may not become another one.
        corpus.add(name, Harmless, |n| [get(n), tail.clone()].concat());
    }
    corpus.add("a stream that depends on itself", Harmless, |n| {
        let mut payload = b"\0\0\0\x01\x10".to_vec();
        payload.extend(block(&usual(n, "GET")));
        headers(END_STREAM | END_HEADERS | PRIORITISED, &payload)
    });
    corpus.add("a priority in HEADERS", Passes(vec![]), |n| {
        let mut payload = b"\x80\0\0\0\xff".to_vec();
        payload.extend(block(&usual(n, "GET")));
        headers(END_STREAM | END_HEADERS | PRIORITISED, &payload)
    });
    corpus.add("padded HEADERS", Passes(vec![]), |n| {
        let mut payload = vec![4];
        payload.extend(block(&usual(n, "GET")));
        payload.extend([0; 4]);
        headers(END_STREAM | END_HEADERS | PADDED, &payload)
    });
    corpus.add("padding longer than HEADERS", Refused, |n| {
        let mut payload = vec![255];
        payload.extend(&block(&usual(n, "GET"))[..40]);
        headers(END_STREAM | END_HEADERS | PADDED, &payload)
    });
    corpus.add("the reserved bit of the stream", Harmless, |n| {
        frame(HEADERS, END_STREAM | END_HEADERS, 0x8000_0001, &block(&usual(n, "GET")))
    });
    corpus.add("a frame above the size that was agreed", Refused, |n| [frame(DATA, 0, 1, &[0; 16_385]), get(n)].concat());
    let pieces = |n: &str, between: &[u8]| {
        let block = block(&usual(n, "GET"));
        let mut bytes = headers(END_STREAM, &block[..10]);
        bytes.extend(between);
        bytes.extend(frame(CONTINUATION, END_HEADERS, 1, &block[10..]));
        bytes
    };
    corpus.add("HEADERS and CONTINUATION", Passes(vec![]), |n| pieces(n, b""));
    for (name, between) in [
        ("a PING", frame(PING, 0, 0, b"12345678")),
        ("DATA", frame(DATA, 0, 1, b"x")),
        ("SETTINGS", frame(SETTINGS, 0, 0, b"")),
        ("a CONTINUATION of another stream", frame(CONTINUATION, 0, 3, b"\x82")),
        ("HEADERS", headers(END_STREAM | END_HEADERS, b"\x82")),
        ("an unknown frame", frame(0x42, 0, 1, b"x")),
        ("RST_STREAM", frame(RST_STREAM, 0, 1, b"\0\0\0\x08")),
    ] {
        corpus.add(format!("{name} within a header block"), Refused, |n| pieces(n, &between));
    }
    // Byte by byte it is a flood (CVE-2024-27316); in a few pieces it is a request.
    for (name, size, expect) in [("byte by byte", 1, Harmless), ("in pieces of 30", 30, Passes(vec![]))] {
        corpus.add(format!("a header block, {name}"), expect, |n| {
            let block = block(&usual(n, "GET"));
            let mut bytes = headers(END_STREAM, &[]);
            let pieces: Vec<&[u8]> = block.chunks(size).collect();
            for (at, piece) in pieces.iter().enumerate() {
                bytes.extend(frame(CONTINUATION, if at + 1 == pieces.len() { END_HEADERS } else { 0 }, 1, piece));
            }
            bytes
        });
    }
    corpus.add("empty continuations", Harmless, |n| {
        let mut bytes = headers(END_STREAM, &block(&usual(n, "GET")));
        bytes.extend((0..4).flat_map(|_| frame(CONTINUATION, 0, 1, b"")));
        bytes.extend(frame(CONTINUATION, END_HEADERS, 1, b""));
        bytes
    });
    corpus.add("HEADERS that never end", Refused, |n| headers(END_STREAM, &block(&usual(n, "GET"))));
    corpus.add("a second preface", Refused, |n| [PREFACE, &get(n)].concat());
    corpus.add("an HTTP/1.1 request", Refused, |_| SMUGGLED.as_bytes().to_vec());
    corpus.add("a reset before the body", Harmless, |n| {
        let mut bytes = headers(END_HEADERS, &block(&usual(n, "POST")));
        bytes.extend(frame(RST_STREAM, 0, 1, b"\0\0\0\x08"));
        bytes
    });
}

pub fn compression(corpus: &mut Corpus) {
    use Expect::{Harmless, Passes, Refused};
    let ends: [(&str, &[u8]); 14] = [
        ("index 0", b"\x80"),
        ("an index beyond the tables", b"\xbe"),
        ("an index far beyond the tables", b"\xff\xff\xff\xff\x0f"),
        ("an index that overflows", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        ("a name index beyond the tables", b"\x0f\xff\x01\x01a"),
        ("a name that is cut off", b"\x00\x0aabc"),
        ("a value that is cut off", b"\x00\x01a\x7f"),
        ("a length that never ends", b"\x00\x7f\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80"),
        ("a length of 2^32", b"\x00\x7f\x81\xff\xff\xff\x0f"),
        ("Huffman padding of more than 7 bits", b"\x00\x01a\x82\xff\xff"),
        ("Huffman padding of zeros", b"\x00\x01a\x81\x00"),
        ("the Huffman end symbol", b"\x00\x01a\x84\xff\xff\xff\xff"),
        ("a table size after a field", b"\x20"),
        ("a table size above the setting", b"\x3f\xff\xff\xff\x07"),
    ];
    for (name, end) in ends {
        corpus.add(format!("header block: {name}"), Refused, |n| {
            let mut block = block(&usual(n, "GET"));
            block.extend(end);
            headers(END_STREAM | END_HEADERS, &block)
        });
    }
    corpus.add("a table size before the fields", Passes(vec![]), |n| {
        let mut bytes = vec![0x20];
        bytes.extend(block(&usual(n, "GET")));
        headers(END_STREAM | END_HEADERS, &bytes)
    });
    corpus.add("fields from the static table", Passes(vec![]), |n| {
        // :method GET, :scheme http, then the rest as literals.
        let mut bytes = vec![0x82, 0x86];
        for (name, value) in usual(n, "GET").into_iter().skip(2) {
            literal(&mut bytes, &name, &value);
        }
        headers(END_STREAM | END_HEADERS, &bytes)
    });
    corpus.add("fields that are never indexed", Passes(vec![]), |n| {
        let mut bytes = block(&usual(n, "GET"));
        bytes.extend(b"\x10\x03x-a\x01b");
        headers(END_STREAM | END_HEADERS, &bytes)
    });
    corpus.add("a field from the dynamic table", Harmless, |n| {
        let mut bytes = block(&usual(n, "GET"));
        // Added, then used.
        bytes.extend(b"\x40\x03x-a\x01b\xbe");
        headers(END_STREAM | END_HEADERS, &bytes)
    });
    corpus.add("an empty header block", Refused, |_| headers(END_STREAM | END_HEADERS, b""));
}
