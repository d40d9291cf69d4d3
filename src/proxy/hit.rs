//! Direct hits: answered from memory before there is a session.
//!
//! Most of what a hit costs on the usual way is Pingora's session, its future of several kilobytes, and the hooks in between, of
//! which a stored answer needs none. So where nothing could see the difference, the connection asks here first, with the bytes
//! of a head that it has checked: a request of HTTP/1.1 without a body, for a route whose filters have no say, with a fresh
//! and whole answer in memory. It is read, routed, looked up, answered, counted and logged by the same functions as on the
//! usual way, and whatever they say that is not a direct hit (`None`) is left to that, which begins anew: nothing has been counted
//! until then, and nothing is refused here.
//!
//! A connection whose last request was for another kind of route does not ask ([`Connection::expect_hit`]), so that these pay
//! nothing for it.

use super::cache::{self, Served};
use super::ctx::dated;
use super::{Ctx, Gateway, intake, record};
use crate::cache::entry::Entry;
use crate::listener::{Connection, ListenerSettings};
use crate::route::Found;
use bytes::{BufMut, Bytes};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::date::get_cached_date;
use std::sync::Arc;

const CLOSE: HeaderValue = HeaderValue::from_static("close");
const KEEP_ALIVE: HeaderValue = HeaderValue::from_static("keep-alive");

/// An answer that is ready to be written. Dropped without [`DirectHit::sent`], the request counts as one that was cut off.
pub struct DirectHit {
    ctx: Box<Ctx>,
    request: RequestHeader,
    head: ResponseHeader,
    pub body: Vec<Bytes>,
    /// In the store's bound until the last byte is sent.
    _entry: Arc<Entry>,
    /// The connection must not carry another request, which the answer says.
    pub closes: bool,
}

impl Gateway {
    /// The answer to this head, if it is a direct hit. `bytes` are a head of HTTP/1.1 that frames no body, asks for no other protocol
    /// and expects nothing.
    pub fn direct_hit(&self, connection: &Arc<Connection>, settings: &ListenerSettings, bytes: &Bytes) -> Option<DirectHit> {
        let mut ctx = Box::new(Ctx::new(self, Some(Arc::clone(connection))));
        let answer = answer(&mut ctx, settings, bytes);
        // What is not answered here has not been here.
        ctx.recorded = answer.is_none();
        let (request, served) = answer?;
        let mut head = served.head;
        let closes = ctx.must_close();
        ctx.finish_own_head(&mut head);
        set(&mut head, header::CONNECTION, if closes { CLOSE } else { KEEP_ALIVE });
        let date = match head.headers.get(header::DATE).and_then(dated) {
            Some(date) => HeaderValue::from_bytes(&date).unwrap_or_else(|_| get_cached_date()),
            None => get_cached_date(),
        };
        set(&mut head, header::DATE, date);
        Some(DirectHit { ctx, request, head, body: served.body, _entry: served.entry, closes })
    }
}

fn answer(ctx: &mut Ctx, settings: &ListenerSettings, bytes: &Bytes) -> Option<(RequestHeader, Served)> {
    if !ctx.snapshot.direct_hits || settings.shield.is_some() || settings.redirect_to_https.is_some() {
        return None;
    }
    let mut request = read(bytes)?;
    intake::take_away(&mut request);
    intake::identify(&request, ctx);
    ctx.snapshot.identity_headers.remove(&mut request);
    ctx.request.path_rules = settings.path;
    if let Some(target) = intake::canonicalise(&request, ctx).ok()? {
        request.set_uri(target);
    }
    intake::check_client_rules(Some(settings), ctx).ok()?;
    if request.headers.contains_key(header::VIA) {
        return None;
    }
    let Found::Route(index) = intake::find(&request, &ctx.snapshot.router, &mut ctx.request) else { return None };
    let route = ctx.snapshot.route(index).map(Arc::clone)?;
    if !route.direct_hits {
        return None;
    }
    let served = cache::direct_hit(&request, ctx, &route)?;
    intake::enter(&request, ctx, &route);
    Some((request, served))
}

/// A head that has been checked line by line, as what the rest of the gateway knows a request by. `None` where Pingora might make
/// something else of it.
fn read(bytes: &Bytes) -> Option<RequestHeader> {
    let part = |text: &[u8]| bytes.slice_ref(text);
    let mut rest: &[u8] = bytes;
    let mut line = || {
        let end = memchr::memchr(b'\n', rest)?;
        let (line, after) = rest.split_at_checked(end.checked_add(1)?)?;
        rest = after;
        line.strip_suffix(b"\r\n")
    };
    let first = line()?;
    let method_end = memchr::memchr(b' ', first)?;
    let method = match first.get(..method_end)? {
        b"GET" => Method::GET,
        b"HEAD" => Method::HEAD,
        _ => return None,
    };
    let target = first.get(method_end.checked_add(1)?..)?.strip_suffix(b" HTTP/1.1")?;
    if target.first() != Some(&b'/') {
        return None;
    }
    let target = PathAndQuery::from_maybe_shared(part(target)).ok()?;
    let mut headers = HeaderMap::with_capacity(16);
    while let Some(field) = line().filter(|field| !field.is_empty()) {
        let colon = memchr::memchr(b':', field)?;
        let name = HeaderName::from_bytes(field.get(..colon)?).ok()?;
        let value = crate::http1::line::trim(field.get(colon.checked_add(1)?..)?);
        headers.try_append(name, HeaderValue::from_maybe_shared(part(value)).ok()?).ok()?;
    }
    let (mut parts, ()) = http::Request::new(()).into_parts();
    (parts.method, parts.uri, parts.headers) = (method, Uri::from(target), headers);
    Some(RequestHeader::from(parts))
}

/// A head that is full stays as it is.
fn set(head: &mut ResponseHeader, name: HeaderName, value: HeaderValue) {
    let _ = head.insert_header(name, value);
}

impl DirectHit {
    /// Writes the head as bytes.
    pub fn write_head(&self, out: &mut Vec<u8>) {
        out.put_slice(b"HTTP/1.1 ");
        out.put_slice(self.head.status.as_str().as_bytes());
        out.put_u8(b' ');
        out.put_slice(self.head.get_reason_phrase().unwrap_or_default().as_bytes());
        out.put_slice(b"\r\n");
        self.head.header_to_h1_wire(out);
        out.put_slice(b"\r\n");
    }

    /// Counts and logs it. `bytes` of the body have been written, and not all if `cut`.
    pub fn sent(mut self, bytes: u64, cut: bool) {
        if let Some(policy) = self.ctx.route.as_ref().and_then(|route| route.cache.as_ref()).filter(|_| !cut) {
            policy.metrics.bytes.add(bytes);
        }
        record::hit(&mut self.ctx, &self.request, self.head.status.as_u16(), bytes, cut);
    }
}
