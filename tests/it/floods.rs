//! Floods of HTTP/2 frames: each costs a bounded amount of memory and harms nobody else's connection.

use crate::support::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, frame,
};
use crate::support::h2::H2Client;
use crate::support::{Answer, Gateway, Origin, SOON, eventually, everything_to, exclusive, runtime};
use std::time::{Duration, Instant};

const CLEARTEXT: &str = "[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\nhttp2_max_streams = 20\n\
                         write_timeout = \"2s\"\nbody_timeout = \"30s\"\n";
/// What one flooding connection may cost at the most. A leak for each frame would cost more than ten times as much.
const MEMORY: u64 = 24 << 20;

struct Flooded {
    /// Bytes of the flood that the gateway took before it ended the connection, or the client gave up.
    sent: usize,
    /// The gateway ended the connection.
    ended: bool,
}

/// Sends `begin` and then `piece` again and again, without ever reading, until the gateway ends the connection or takes no
/// more, or `most` bytes are sent.
fn flood(frames: &mut Frames, begin: &[u8], piece: &[u8], most: usize) -> Flooded {
    frames.send(begin);
    let burst = piece.repeat((32 << 10) / piece.len() + 1);
    let mut sent = 0;
    while sent < most {
        if !frames.send(&burst) {
            return Flooded { sent, ended: true };
        }
        sent += burst.len();
    }
    Flooded { sent, ended: false }
}

fn head(stream: u32, flags: u8, method: &str) -> Vec<u8> {
    let fields = [(":method", method), (":scheme", "http"), (":path", "/flood"), (":authority", "localhost")];
    frame(HEADERS, flags, stream, &block(&fields))
}

/// Runs one flood against a fresh gateway whose origin answers nothing.
fn against(begin: &[u8], piece: &[u8], most: usize) -> Flooded {
    let _machine = exclusive();
    let origin = Origin::start("a");
    let gateway = Gateway::start(&(CLEARTEXT.to_owned() + &everything_to(&[&origin], "")));
    let before = {
        // What the first request allocates is not the flood's.
        let client = runtime().block_on(H2Client::plain(gateway.http()));
        assert_eq!(runtime().block_on(client.get("/")).unwrap().status, 200);
        gateway.rss()
    };
    origin.answer(Answer::BlackHole);
    let mut frames = Frames::connect(gateway.http());
    let flooded = flood(&mut frames, begin, piece, most);
    let grown = gateway.rss().saturating_sub(before);
    assert!(grown < MEMORY, "{} KiB for {} KiB of flood", grown >> 10, flooded.sent >> 10);
    origin.answer(Answer::Echo);
    let other = runtime().block_on(H2Client::plain(gateway.http()));
    assert_eq!(runtime().block_on(other.get("/other")).unwrap().status, 200, "another connection suffers");
    flooded
}

#[test]
fn a_flood_of_pings_costs_nothing() {
    against(&[], &frame(PING, 0, 0, b"12345678"), 16 << 20);
}

#[test]
fn a_flood_of_settings_costs_nothing() {
    against(&[], &frame(SETTINGS, 0, 0, b"\0\x03\0\0\0\x01"), 16 << 20);
}

#[test]
fn a_flood_of_priorities_and_window_updates_costs_nothing() {
    let piece =
        [frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"), frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\x01"), frame(0x42, 0, 1, b"x")].concat();
    against(&head(1, END_HEADERS, "POST"), &piece, 16 << 20);
}

#[test]
fn a_flood_of_empty_data_costs_nothing() {
    against(&head(1, END_HEADERS, "POST"), &frame(DATA, 0, 1, b""), 16 << 20);
}

#[test]
fn a_header_block_without_end_ends_the_connection() {
    for piece in [&[0_u8; 16_000][..], &[0_u8; 1], b""] {
        let begin = frame(HEADERS, END_STREAM, 1, &block(&[(":method", "GET")]));
        let flooded = against(&begin, &frame(CONTINUATION, 0, 1, piece), 64 << 20);
        assert!(flooded.ended, "{} bytes of continuation were taken", flooded.sent);
    }
}

#[test]
fn more_streams_than_the_bound_reach_no_origin() {
    let _machine = exclusive();
    let origin = Origin::start("a");
    origin.answer(Answer::BlackHole);
    let gateway = Gateway::start(&(CLEARTEXT.to_owned() + &everything_to(&[&origin], "")));
    let mut frames = Frames::connect(gateway.http());
    for stream in 0..2_000 {
        if !frames.send(&head(2 * stream + 1, END_HEADERS | END_STREAM, "GET")) {
            break;
        }
        if stream == 10 {
            eventually("the streams within the bound", SOON, || origin.count() > 0);
        }
    }
    let end = Instant::now() + SOON;
    let mut refused = 0;
    while refused < 1_000 {
        match frames.next(end) {
            Some((RST_STREAM, _, _, reason)) => {
                assert_eq!(reason, [0, 0, 0, 7], "REFUSED_STREAM, which a client may repeat");
                refused += 1;
            }
            Some((GOAWAY, ..)) | None => break,
            Some(_) => {}
        }
    }
    assert!(refused > 0);
    assert!(origin.count() <= 20, "{} streams at once", origin.count());
}

#[test]
fn a_flood_of_resets_that_we_are_made_to_send_ends_the_connection() {
    // CVE-2025-8671: the client breaks the rules on one stream after another, and every reset is ours.
    let _machine = exclusive();
    let origin = Origin::start("a");
    origin.answer(Answer::Delay(Duration::from_secs(60)));
    let gateway = Gateway::start(&(CLEARTEXT.to_owned() + &everything_to(&[&origin], "")));
    let mut frames = Frames::connect(gateway.http());
    let mut taken = 0;
    for stream in 0..100_000 {
        let id = 2 * stream + 1;
        let bytes = [head(id, END_HEADERS | END_STREAM, "GET"), frame(WINDOW_UPDATE, 0, id, &[0; 4])].concat();
        if !frames.send(&bytes) {
            break;
        }
        taken += 1;
    }
    assert!(taken < 100_000, "the flood went on");
    let counted = || gateway.status()["connections"].as_u64() == Some(0);
    eventually("the connection is gone", SOON, counted);
    assert!(origin.count() < 5_000, "{} requests reached the origin", origin.count());
}

#[test]
fn acknowledgements_of_nothing_are_harmless() {
    against(&[], &[frame(SETTINGS, ACK, 0, b""), frame(PING, ACK, 0, b"12345678")].concat(), 4 << 20);
}

#[test]
fn a_header_that_never_ends_is_one_idle_connection() {
    let listener = "[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\nkeepalive_timeout = \"1s\"\n";
    let gateway = Gateway::start(listener);
    let mut frames = Frames::connect(gateway.http());
    frames.send(&head(1, END_STREAM, "GET"));
    // Frames by the number are a flood; these are the bytes of one.
    let mut rest = frame(CONTINUATION, 0, 1, &[0; 10_000]).into_iter();
    eventually("it is ended, however the rest drips", SOON, || !frames.send(&[rest.next().unwrap()]));
    let labels = [("listener", "http"), ("reason", "idle")];
    eventually("it is counted", SOON, || gateway.metric("gatewright_listener_connections_closed_total", &labels) == 1.0);
}

#[test]
fn a_connection_that_breaks_the_protocol_is_counted_and_logged_and_one_that_leaves_is_not() {
    let gateway = Gateway::start(CLEARTEXT);
    let labels = [("listener", "http"), ("reason", "http2_protocol")];
    let counted = || gateway.metric("gatewright_listener_malformed_requests_total", &labels);
    drop(Frames::connect(gateway.http()));
    let mut leaves = Frames::connect(gateway.http());
    leaves.send(&frame(GOAWAY, 0, 0, &[0; 8]));
    drop(leaves);
    let active = || gateway.metric("gatewright_listener_connections_active", &[("listener", "http")]);
    eventually("both are gone", SOON, || active() == 0.0);
    assert_eq!(counted(), 0.0);
    let mut frames = Frames::connect(gateway.http());
    frames.send(&frame(DATA, 0, 0, b"of no stream"));
    eventually("it is counted", SOON, || counted() == 1.0);
    gateway.logged("its line", |line| line["error"] == "http2_protocol");
}
