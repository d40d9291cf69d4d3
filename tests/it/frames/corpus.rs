//! The sequences, and what must become of each.

mod bodies;
mod fields;
mod framing;

use crate::support::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, block, frame};

/// Marks the request of a sequence.
pub const CASE: &str = "x-case";
/// What a smuggled request would look like.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// What must become of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// No byte of it reaches the origin.
    Refused,
    /// It arrives once, with this body.
    Passes(Vec<u8>),
    /// Either; if it arrives, then in a form that has one reading.
    Harmless,
}

pub struct Case {
    pub name: String,
    /// What is sent after preface and settings.
    pub bytes: Vec<u8>,
    pub expect: Expect,
}

/// Collects the sequences. Each gets a number, which its requests carry.
#[derive(Default)]
struct Corpus(Vec<Case>);

impl Corpus {
    fn add(&mut self, name: impl Into<String>, expect: Expect, bytes: impl FnOnce(&str) -> Vec<u8>) {
        let number = self.0.len().to_string();
        self.0.push(Case { name: name.into(), bytes: bytes(&number), expect });
    }

    /// A request whose header block is the usual one with these changes: fields of the same name replace, others follow.
    fn fields(&mut self, name: impl Into<String>, expect: Expect, fields: &[(&[u8], &[u8])]) {
        self.add(name, expect, |number| headers(END_STREAM | END_HEADERS, &merged(number, fields)));
    }

    /// A POST with these extra fields and pieces of body.
    fn body(&mut self, name: impl Into<String>, expect: Expect, fields: &[(&[u8], &[u8])], pieces: &[&[u8]]) {
        self.add(name, expect, |number| post(number, fields, pieces));
    }
}
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn usual(number: &str, method: &str) -> Fields {
    let fields = [
        (":method", method),
        (":scheme", "http"),
        (":path", &format!("/case/{number}")),
        (":authority", "localhost"),
        (CASE, number),
    ];
    fields.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

fn merged(number: &str, changes: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut fields = usual(number, "GET");
    for (name, value) in changes {
        match fields.iter_mut().find(|(known, _)| known == name) {
            Some(field) => field.1 = value.to_vec(),
            None => fields.push((name.to_vec(), value.to_vec())),
        }
    }
    block(&fields)
}

fn headers(flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags, 1, block)
}

fn get(number: &str) -> Vec<u8> {
    headers(END_STREAM | END_HEADERS, &block(&usual(number, "GET")))
}

fn post(number: &str, extra: &[(&[u8], &[u8])], pieces: &[&[u8]]) -> Vec<u8> {
    let mut fields = usual(number, "POST");
    fields.extend(extra.iter().map(|(name, value)| (name.to_vec(), value.to_vec())));
    let mut bytes = headers(END_HEADERS, &block(&fields));
    for (at, piece) in pieces.iter().enumerate() {
        bytes.extend(frame(DATA, if at + 1 == pieces.len() { END_STREAM } else { 0 }, 1, piece));
    }
    bytes
}

/// Without the fields of these names.
fn without(number: &str, names: &[&str]) -> Vec<u8> {
    let kept: Fields = usual(number, "GET").into_iter().filter(|(name, _)| !names.iter().any(|n| n.as_bytes() == name)).collect();
    headers(END_STREAM | END_HEADERS, &block(&kept))
}

pub fn corpus() -> Vec<Case> {
    let mut corpus = Corpus::default();
    fields::pseudo_headers(&mut corpus);
    fields::targets(&mut corpus);
    fields::names_and_values(&mut corpus);
    bodies::lengths_and_bodies(&mut corpus);
    bodies::trailers(&mut corpus);
    framing::framing(&mut corpus);
    framing::compression(&mut corpus);
    corpus.0
}
