//! Compression towards clients (RFC 9110 §8.4 and §12.5.3): the `compress` table of a route.
//!
//! The upstream is asked for plain bytes and each client gets what it reads best. Answers that are stored are compressed once for each
//! coding and kept beside the plain ones ([`crate::cache`]); all others are compressed as they pass, each piece as it comes, so that
//! nothing waits for a buffer to fill.
//!
//! Once for each coding, because to compress costs more than all the rest: 16 KiB of JSON take zstd 56 µs, gzip 99 and brotli 203
//! (`cargo bench --bench compress`), 64 KiB 154, 465 and 815, where a whole hit of 64 KiB takes 28 (`benches/wrk/cache.sh`).

use crate::cache::control::{RequestControl, ResponseControl};
use crate::diagnostic::Diagnostics;
use crate::value::{ByteSize, Located};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use pingora::http::ResponseHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use std::io::{self, Write};

/// How answers can be coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Coding {
    /// RFC 8878.
    Zstd,
    /// Brotli, RFC 7932.
    Br,
    /// RFC 1952.
    Gzip,
}

impl Coding {
    pub const fn as_str(self) -> &'static str {
        match self {
            Coding::Zstd => "zstd",
            Coding::Br => "br",
            Coding::Gzip => "gzip",
        }
    }
}

/// Compresses answers for clients that accept it. The upstream is then asked for plain bytes. Answers that are coded already, that
/// are parts, or that say `no-transform` pass as they are, and so do all for a client that says so. What is compressed has a weak `ETag` and `Vary: Accept-Encoding`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CompressConfig {
    /// What may be used, the best first: of those that a client likes equally, the first. At least one.
    pub encodings: Located<Vec<Coding>>,
    /// Answers that say they are shorter are not compressed.
    pub min_size: ByteSize,
    /// Media types that are compressed, up to 64; `text/*` stands for all of a kind.
    pub types: Located<Vec<String>>,
}

impl Default for CompressConfig {
    fn default() -> Self {
        let types = [
            "text/*",
            "application/json",
            "application/problem+json",
            "application/ld+json",
            "application/graphql-response+json",
            "application/javascript",
            "application/xml",
            "application/wasm",
            "image/svg+xml",
        ];
        CompressConfig {
            encodings: Located::nowhere(vec![Coding::Zstd, Coding::Br, Coding::Gzip]),
            min_size: ByteSize(1 << 10),
            types: Located::nowhere(types.map(str::to_owned).to_vec()),
        }
    }
}

impl CompressConfig {
    pub fn check(&self, d: &mut Diagnostics) {
        if self.encodings.is_empty() {
            d.error(self.encodings.span.clone(), "there is no encoding to compress with")
                .help("leave `encodings` out for all of them");
        }
        if self.types.len() > 64 {
            d.error(self.types.span.clone(), "a route can compress up to 64 media types");
        }
        for kind in self.types.iter().filter(|kind| !kind.contains('/')) {
            d.error(self.types.span.clone(), format!("`{kind}` is not a media type"))
                .help("write it as in \"text/html\" or \"text/*\"");
        }
    }

    pub fn build(&self) -> Compression {
        Compression {
            encodings: self.encodings.value.as_slice().into(),
            min_size: self.min_size.0,
            types: self.types.iter().map(|kind| kind.to_ascii_lowercase().into()).collect(),
        }
    }
}

/// Whether a request is for bytes that are not coded here: for none, for a part, or by its own wish (RFC 9111 §5.2.1.6).
fn as_it_is(method: &Method, request: &HeaderMap) -> bool {
    *method == Method::HEAD || request.contains_key(header::RANGE) || RequestControl::of(request).no_transform
}

/// How a route compresses.
#[derive(Debug)]
pub struct Compression {
    encodings: Box<[Coding]>,
    min_size: u64,
    types: Box<[Box<str>]>,
}

impl Compression {
    /// What to code an answer with, for a client with these fields. For an answer that could be coded the head says that it varies.
    pub fn choose(&self, method: &Method, request: &HeaderMap, head: &mut ResponseHeader) -> Option<Coding> {
        if !self.eligible(head) {
            return None;
        }
        vary(head);
        if as_it_is(method, request) {
            return None;
        }
        self.negotiate(request)
    }

    /// The same for an answer that is kept plain, and is to be kept coded too.
    pub fn would_choose(&self, method: &Method, request: &HeaderMap, head: &ResponseHeader) -> Option<Coding> {
        if as_it_is(method, request) || !self.eligible(head) { None } else { self.negotiate(request) }
    }

    /// Says that an answer varies, if it does.
    pub fn mark(&self, head: &mut ResponseHeader) {
        if self.eligible(head) {
            vary(head);
        }
    }

    fn eligible(&self, head: &ResponseHeader) -> bool {
        let status = head.status.as_u16();
        let headers = &head.headers;
        let whole = status >= 200 && !matches!(status, 204 | 205 | 206 | 304) && !headers.contains_key(header::CONTENT_RANGE);
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        whole
            && !headers.contains_key(header::CONTENT_ENCODING)
            && length.is_none_or(|length| length >= self.min_size)
            && headers.get(header::CONTENT_TYPE).is_some_and(|kind| self.names(kind))
            && !ResponseControl::of(headers).no_transform
    }

    fn names(&self, kind: &HeaderValue) -> bool {
        let text = kind.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        self.types.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes())),
            None => text.eq_ignore_ascii_case(pattern.as_bytes()),
        })
    }

    /// The coding with the highest weight, ours in order among equals; `None` where plain bytes weigh more.
    pub fn negotiate(&self, request: &HeaderMap) -> Option<Coding> {
        let mut weights = [None::<u16>; 3];
        let (mut any, mut identity) = (None, None);
        for line in request.get_all(header::ACCEPT_ENCODING) {
            for member in line.to_str().unwrap_or_default().split(',') {
                let (name, parameters) = member.split_once(';').unwrap_or((member, ""));
                let weight = parameters.split(';').find_map(quality).unwrap_or(1_000);
                match name.trim() {
                    "*" => any = Some(weight),
                    name if name.eq_ignore_ascii_case("identity") => identity = Some(weight),
                    name => {
                        let name = if name.eq_ignore_ascii_case("x-gzip") { "gzip" } else { name };
                        let known = self.encodings.iter().position(|coding| coding.as_str().eq_ignore_ascii_case(name));
                        if let Some(slot) = known.and_then(|at| weights.get_mut(at)) {
                            *slot = Some(weight);
                        }
                    }
                }
            }
        }
        let mut best: Option<(u16, Coding)> = None;
        for (coding, weight) in self.encodings.iter().zip(weights) {
            let weight = weight.or(any).unwrap_or(0);
            if weight > 0 && best.is_none_or(|(known, _)| weight > known) {
                best = Some((weight, *coding));
            }
        }
        best.filter(|(weight, _)| identity.is_none_or(|identity| *weight >= identity)).map(|(_, coding)| coding)
    }
}

/// `q=0.5` in thousandths.
fn quality(parameter: &str) -> Option<u16> {
    let (name, value) = parameter.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("q") {
        return None;
    }
    let weight: f32 = value.trim().parse().ok()?;
    // Between 0 and 1000 by the clamp.
    Some((weight.clamp(0.0, 1.0) * 1_000.0) as u16)
}

fn vary(head: &mut ResponseHeader) {
    let lines = || head.headers.get_all(header::VARY).iter();
    let named = ["accept-encoding", "*"].iter().any(|token| lines().any(|line| crate::cache::control::list_has(line, token)));
    if !named {
        // A constant value cannot be refused.
        let _ = head.append_header(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// Makes a head say that its body is coded so. `length`: of the coded body, where it is known.
pub fn describe(head: &mut ResponseHeader, coding: Coding, length: Option<u64>) {
    let _ = head.insert_header(header::CONTENT_ENCODING, HeaderValue::from_static(coding.as_str()));
    head.remove_header(&header::ACCEPT_RANGES);
    head.remove_header("content-md5");
    head.remove_header("digest");
    head.remove_header("content-digest");
    // RFC 9530 §3: of the representation in its coding.
    head.remove_header("repr-digest");
    match length {
        Some(length) => {
            head.remove_header(&header::TRANSFER_ENCODING);
            let _ = head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        None => {
            head.remove_header(&header::CONTENT_LENGTH);
            let _ = head.insert_header(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
    // Other bytes than the ones that a strong tag promises (RFC 9110 §8.8.1).
    let weak = head
        .headers
        .get(header::ETAG)
        .filter(|tag| tag.as_bytes().starts_with(b"\""))
        .map(|tag| [b"W/", tag.as_bytes()].concat());
    if let Some(Ok(weak)) = weak.map(|weak| HeaderValue::from_bytes(&weak)) {
        let _ = head.insert_header(header::ETAG, weak);
    }
}

/// Makes a head say that its body will be coded as it passes, and the encoder for it. `None`: it cannot be, and the head is as it was.
pub fn begin(head: &mut ResponseHeader, coding: Coding) -> Option<Box<Encoder>> {
    let encoder = Encoder::new(coding).ok()?;
    describe(head, coding, None);
    Some(Box::new(encoder))
}

/// Codes one piece of a body in place.
pub fn piece(encoder: &mut Encoder, body: &mut Option<Bytes>, end: bool) -> pingora::Result<()> {
    let failed = |e: io::Error| pingora::Error::because(pingora::ErrorType::InternalError, "the answer cannot be compressed", e);
    let plain = body.take().filter(|data| !data.is_empty());
    let coded = plain.map(|data| encoder.push(&data)).transpose().map_err(failed)?;
    if !end {
        *body = coded;
        return Ok(());
    }
    let rest = encoder.finish().map_err(failed)?;
    *body = Some(match coded {
        Some(coded) => [coded, rest].concat().into(),
        None => rest,
    });
    Ok(())
}

/// Codes one body.
pub struct Encoder(Kind);

enum Kind {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Br(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Done,
}

/// Levels at which a core still codes tens of megabytes a second.
const GZIP_LEVEL: u32 = 5;
const BROTLI_LEVEL: u32 = 4;
const BROTLI_WINDOW: u32 = 18;
const ZSTD_LEVEL: i32 = 3;

impl Encoder {
    pub fn new(coding: Coding) -> io::Result<Self> {
        Ok(Encoder(match coding {
            Coding::Gzip => Kind::Gzip(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL))),
            Coding::Br => Kind::Br(Box::new(brotli::CompressorWriter::new(Vec::new(), 4096, BROTLI_LEVEL, BROTLI_WINDOW))),
            Coding::Zstd => Kind::Zstd(zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?),
        }))
    }

    /// Codes a piece. What comes out can be decoded up to here.
    pub fn push(&mut self, data: &[u8]) -> io::Result<Bytes> {
        let out = match &mut self.0 {
            Kind::Gzip(encoder) => {
                encoder.write_all(data)?;
                encoder.flush()?;
                std::mem::take(encoder.get_mut())
            }
            Kind::Br(encoder) => {
                encoder.write_all(data)?;
                encoder.flush()?;
                std::mem::take(encoder.get_mut())
            }
            Kind::Zstd(encoder) => {
                encoder.write_all(data)?;
                encoder.flush()?;
                std::mem::take(encoder.get_mut())
            }
            Kind::Done => Vec::new(),
        };
        Ok(Bytes::from(out))
    }

    /// What ends the body.
    pub fn finish(&mut self) -> io::Result<Bytes> {
        let out = match std::mem::replace(&mut self.0, Kind::Done) {
            Kind::Gzip(encoder) => encoder.finish()?,
            Kind::Br(encoder) => encoder.into_inner(),
            Kind::Zstd(encoder) => encoder.finish()?,
            Kind::Done => Vec::new(),
        };
        Ok(Bytes::from(out))
    }
}

/// A whole body, without a flush for each piece.
pub fn whole(coding: Coding, pieces: &[Bytes]) -> io::Result<Bytes> {
    let mut encoder = Encoder::new(coding)?;
    for piece in pieces {
        match &mut encoder.0 {
            Kind::Gzip(encoder) => encoder.write_all(piece)?,
            Kind::Br(encoder) => encoder.write_all(piece)?,
            Kind::Zstd(encoder) => encoder.write_all(piece)?,
            Kind::Done => {}
        }
    }
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn accept(text: &str) -> HeaderMap {
        [(header::ACCEPT_ENCODING, text.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn the_client_decides_and_then_our_order() {
        let compression = CompressConfig::default().build();
        let of = |text: &str| compression.negotiate(&accept(text)).map(Coding::as_str);
        assert_eq!(of("gzip, br, zstd"), Some("zstd"));
        assert_eq!(of("GZIP;q=1.0, br;q=0.9"), Some("gzip"));
        assert_eq!(of("gzip;q=0, *"), Some("zstd"));
        assert_eq!(of("*;q=0"), None);
        assert_eq!(of("x-gzip"), Some("gzip"));
        assert_eq!(of("identity, gzip;q=0.5"), None);
        assert_eq!(of("deflate, "), None);
        assert_eq!(compression.negotiate(&HeaderMap::new()), None);
    }

    #[test]
    fn only_what_gains_by_it_is_coded() {
        let compression = CompressConfig::default().build();
        let choose = |pairs: &[(&'static str, &str)]| {
            let mut head = ResponseHeader::build(200, None).unwrap();
            pairs.iter().for_each(|(name, value)| drop(head.append_header(*name, *value)));
            let coding = compression.choose(&Method::GET, &accept("gzip"), &mut head);
            (coding.is_some(), head.headers.contains_key("vary"))
        };
        assert_eq!(choose(&[("content-type", "text/html; charset=utf-8")]), (true, true));
        assert_eq!(choose(&[("content-type", "TEXT/HTML"), ("content-length", "2000")]), (true, true));
        let not = (false, false);
        assert_eq!(choose(&[("content-type", "text/html"), ("content-length", "10")]), not);
        assert_eq!(choose(&[("content-type", "image/png")]), not);
        assert_eq!(choose(&[]), not);
        assert_eq!(choose(&[("content-type", "text/html"), ("content-encoding", "br")]), not);
        assert_eq!(choose(&[("content-type", "text/html"), ("cache-control", "public, no-transform")]), not);
    }

    #[test]
    fn a_coded_body_says_so_and_has_a_weak_tag() {
        let mut head = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [("etag", "\"a\""), ("content-length", "5"), ("accept-ranges", "bytes")] {
            head.insert_header(name, value).unwrap();
        }
        describe(&mut head, Coding::Br, None);
        let get = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        assert_eq!((get("etag"), get("content-encoding"), get("content-length")), (Some("W/\"a\""), Some("br"), None));
    }

    #[test]
    fn every_coding_gives_the_bytes_back_piece_by_piece() {
        let pieces = [b"hello ".repeat(1_000), b"world".to_vec(), vec![0; 100_000]];
        let plain = pieces.concat();
        for coding in [Coding::Gzip, Coding::Br, Coding::Zstd] {
            let mut encoder = Encoder::new(coding).unwrap();
            let mut coded: Vec<u8> = pieces.iter().flat_map(|piece| encoder.push(piece).unwrap()).collect();
            coded.extend_from_slice(&encoder.finish().unwrap());
            let at_once = whole(coding, &pieces.clone().map(Bytes::from)).unwrap();
            for coded in [coded.as_slice(), &at_once] {
                assert!(coded.len() < plain.len() / 10, "{coding:?}");
                let mut back = Vec::new();
                match coding {
                    Coding::Gzip => drop(flate2::read::GzDecoder::new(coded).read_to_end(&mut back).unwrap()),
                    Coding::Br => drop(brotli::Decompressor::new(coded, 4096).read_to_end(&mut back).unwrap()),
                    Coding::Zstd => drop(zstd::stream::read::Decoder::new(coded).unwrap().read_to_end(&mut back).unwrap()),
                }
                assert!(back == plain, "{coding:?}");
            }
        }
    }
}
