//! From bytes that parsed to a request that may go on: canonical host and path, who is calling from where, the route,
//! and the bounds of the body. Everything after this decides by what is written here.

use super::grpc_web::GrpcWeb;
use super::{Ctx, deadline, http10};
use crate::canonical::{self, HostProblem, PathForm, PathProblem, PathRules};
use crate::fields;
use crate::forwarded;
use crate::listener::{ListenerSettings, Unclear};
use crate::rejection::{self, LocalResponse, Rejection};
use crate::request::RequestCtx;
use crate::route::{Found, Query, Router};
use crate::snapshot::Route;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, StatusCode, Uri, Version, header};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

thread_local! {
    /// Where a path that is not canonical is rewritten. Most are, and then it is not touched.
    static CANONICAL: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A request that may go on, or that has its answer already.
pub enum Admitted {
    Route(Arc<Route>),
    Redirect(Box<LocalResponse>),
}

/// Finds the route of a request or the reason to refuse it. What it learns on the way stays in `ctx` even then, so that
/// refused requests are logged with all that is known.
pub fn admit(session: &mut Session, ctx: &mut Ctx) -> Result<Admitted, Rejection> {
    let settings = ctx.connection.as_ref().map(|connection| connection.listener.settings_now());
    let settings = settings.as_deref().map(|settings| &**settings);
    set_connection_bounds(session, settings);
    ignore_h2c(session);
    http10::begin(session);
    ctx.upgrade = session.is_upgrade_req();
    take_away(session.req_header_mut());
    join_cookies(session.req_header_mut());
    identify(session.req_header(), ctx);
    if !ctx.snapshot.preserve_header_case {
        fields::forget_request_spelling(session.req_header_mut());
    }
    ctx.snapshot.identity_headers.remove(session.req_header_mut());
    if let Some(malformed) = ctx.connection.as_ref().and_then(|connection| connection.malformed) {
        ctx.fault = Some(malformed.name());
        return Err(Rejection::new(malformed.rejection()));
    }
    ctx.request.path_rules = settings.map_or(PathRules::STRICT, |settings| settings.path);
    match canonicalise(session.req_header(), ctx) {
        Ok(None) => {}
        Ok(Some(target)) => session.req_header_mut().set_uri(target),
        Err(unclear) => {
            ctx.fault = Some(unclear.name());
            if let Some(connection) = &ctx.connection {
                connection.listener.unclear(unclear);
            }
            let code = match unclear {
                Unclear::Path(_) => &rejection::PATH_INVALID,
                Unclear::Host(_) => &rejection::HOST_INVALID,
            };
            return Err(Rejection::new(code).close());
        }
    }
    check_client_rules(settings, ctx)?;
    if let Some(redirect) = https_redirect(session, settings, ctx) {
        return Ok(Admitted::Redirect(Box::new(redirect)));
    }
    let head = session.req_header();
    if ctx.snapshot.via.hops(&head.headers) > forwarded::VIA_HOPS_MAX {
        return Err(Rejection::new(&rejection::LOOP_DETECTED));
    }
    let own = settings.and_then(|settings| settings.shield.as_ref());
    for shield in own.into_iter().chain(&ctx.snapshot.shield) {
        shield.admit().map_err(|wait| Rejection::new(&rejection::RATE_LIMITED).retry_after(wait))?;
    }
    let index = match find(head, &ctx.snapshot.router, &mut ctx.request) {
        Found::Route(index) => index,
        Found::NotFound => return Err(Rejection::new(&rejection::ROUTE_NOT_FOUND)),
        Found::MethodNotAllowed(allow) => return Err(Rejection::new(&rejection::METHOD_NOT_ALLOWED).allow(allow)),
    };
    let Some(route) = ctx.snapshot.route(index).map(Arc::clone) else {
        return Err(Rejection::new(&rejection::INTERNAL_ERROR));
    };
    enter(session.req_header(), ctx, &route);
    bound_body(session, ctx, route.max_body)?;
    GrpcWeb::begin(session, ctx);
    Ok(Admitted::Route(route))
}

pub(super) fn find(head: &RequestHeader, router: &Router, request: &mut RequestCtx) -> Found {
    let query = Query {
        host: &request.host,
        path: head.uri.path(),
        method: &head.method,
        headers: &head.headers,
        query: head.uri.query(),
    };
    router.find(&query, &mut request.params)
}

/// From here on the request is the route's: counted there, and bound by its time.
pub(super) fn enter(head: &RequestHeader, ctx: &mut Ctx, route: &Arc<Route>) {
    ctx.request.route = Some(Arc::clone(&route.name));
    ctx.in_flight = Some(route.metrics.begin());
    ctx.route = Some(Arc::clone(route));
    ctx.set_deadline(route.timeout.and_then(|timeout| ctx.request.started.checked_add(timeout)));
    deadline::of_client(&head.headers, route, ctx);
}

/// Refuses a request for a host that asks other certificates of clients than the connection was made by (`tls::hosts`), or that was
/// made before a reload which has changed them.
pub(super) fn check_client_rules(settings: Option<&ListenerSettings>, ctx: &Ctx) -> Result<(), Rejection> {
    let (Some(settings), Some(facts)) = (settings, &ctx.request.tls) else { return Ok(()) };
    let Some(tls) = settings.tls.as_ref() else { return Ok(()) };
    if tls.for_name(Some(ctx.request.host.as_str())).rules == facts.client_rules {
        return Ok(());
    }
    Err(Rejection::new(&rejection::MISDIRECTED_REQUEST).close())
}

/// Where a listener that only redirects sends this request: the same URL over https. 308 keeps the method and the body (RFC
/// 9110 §15.4.9), so that an API client that got the scheme wrong finds out without losing anything.
fn https_redirect(session: &Session, settings: Option<&ListenerSettings>, ctx: &Ctx) -> Option<LocalResponse> {
    let port = settings?.redirect_to_https?;
    let head = session.req_header();
    let already = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"https");
    if ctx.request.peer_trusted && head.headers.get("x-forwarded-proto").is_some_and(already) {
        return None;
    }
    let host = Some(ctx.request.host.as_str()).filter(|host| !host.is_empty())?;
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let target = if target == "*" { "/" } else { target };
    let location = match port {
        443 => format!("https://{host}{target}"),
        port => format!("https://{host}:{port}{target}"),
    };
    let mut headers = HeaderMap::with_capacity(1);
    headers.insert(header::LOCATION, location.parse().ok()?);
    Some(LocalResponse { status: StatusCode::PERMANENT_REDIRECT, headers, body: Bytes::new() })
}

/// Keep-alive, which Pingora leaves unbounded.
fn set_connection_bounds(session: &mut Session, settings: Option<&ListenerSettings>) {
    let Some(settings) = settings else { return };
    // Only bound it where the client wants it at all: HTTP/1.0 without `keep-alive`, and `close`, stay as they are.
    if session.get_keepalive().is_some() {
        let seconds = settings.keepalive_timeout.as_secs_f64().ceil() as u64;
        session.set_keepalive(Some(seconds).filter(|seconds| *seconds > 0));
    }
    // The transport knows how long a client may be waited for (`listener::patience`), and ends what takes longer.
    session.set_read_timeout(None);
}

/// An offer to go on in HTTP/2 is ignored, as RFC 9113 §3.1 allows, and not passed on: an upstream that took it up would get
/// requests that no filter has seen. Some clients send it with every first request.
fn ignore_h2c(session: &mut Session) {
    let offers = |value: &http::HeaderValue| {
        value.as_bytes().split(|byte| *byte == b',').any(|protocol| protocol.trim_ascii().eq_ignore_ascii_case(b"h2c"))
    };
    let head = session.req_header_mut();
    if head.headers.get(header::UPGRADE).is_some_and(offers) {
        head.remove_header(&header::UPGRADE);
        head.remove_header("http2-settings");
    }
}

/// Removes what `Connection` names (RFC 9110 §7.6.1). Pingora would do so on the way to the upstream; nothing may be decided before
/// by a field that the upstream is not to get.
pub(super) fn take_away(head: &mut RequestHeader) {
    let stays = |option: &[u8]| {
        [&b"close"[..], b"keep-alive", b"upgrade", b"te", b"connection"].iter().any(|known| option.eq_ignore_ascii_case(known))
    };
    let named = |value: &http::HeaderValue| {
        let options = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        let names = options.filter(|option| !option.is_empty() && !stays(option));
        names.filter_map(|option| http::HeaderName::from_bytes(option).ok()).collect::<Vec<_>>()
    };
    let named: Vec<_> = head.headers.get_all(header::CONNECTION).iter().flat_map(named).collect();
    for name in named {
        head.remove_header(&name);
    }
}

/// Clients of HTTP/2 may send each cookie by itself. Whoever is told over HTTP/1.1, and whatever decides by it here, is to see one
/// line (RFC 9113 §8.2.3).
fn join_cookies(head: &mut RequestHeader) {
    if head.version != Version::HTTP_2 || head.headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs = head.headers.get_all(header::COOKIE).iter().map(http::HeaderValue::as_bytes);
    if let Some(joined) = fields::one_cookie_line(crumbs) {
        let _ = head.insert_header(header::COOKIE, joined);
    }
}

/// Who is calling, from which address, under which id.
pub(super) fn identify(head: &RequestHeader, ctx: &mut Ctx) {
    ctx.head = Some((head.method.clone(), head.uri.path_and_query().cloned()));
    let peer = ctx.request.peer;
    let trusted = ctx.snapshot.trusted_proxies.contains(peer);
    ctx.request.peer_trusted = trusted;
    ctx.request.client = forwarded::client_address(peer, &head.headers, &ctx.snapshot.trusted_proxies);
    ctx.request.id = forwarded::request_id(head.headers.get(&forwarded::X_REQUEST_ID.name), trusted);
}

/// Reads host and path in the one way that routing, filters and the upstream will see them. Returns the target that takes the
/// place of the one that came, if that was another.
pub(super) fn canonicalise(head: &RequestHeader, ctx: &mut Ctx) -> Result<Option<Uri>, Unclear> {
    match canonical::host_as_sent(&head.uri, &head.headers) {
        Some(host) => {
            canonical::canonical_host(host, &mut ctx.request.host).map_err(Unclear::Host)?;
        }
        // Only HTTP/1.0 may leave it out; then only routes without a host match.
        None if head.version == Version::HTTP_10 => {}
        None => return Err(Unclear::Host(HostProblem::Empty)),
    }
    let rules = PathRules { asterisk: head.method == Method::OPTIONS, ..ctx.request.path_rules };
    CANONICAL.with_borrow_mut(|path| {
        // Cannot happen: what is canonical is a target.
        let invalid = || Unclear::Path(PathProblem::IllegalByte);
        let form = canonical::canonical_path(head.uri.path().as_bytes(), rules, path).map_err(Unclear::Path)?;
        if let Some(query) = head.uri.query() {
            canonical::check_query(query.as_bytes()).map_err(Unclear::Path)?;
            if form == PathForm::Rewritten {
                path.push('?');
                path.push_str(query);
            }
        }
        match form {
            // The target may also name the host (absolute form). It was compared with `Host`; upstreams get the path alone.
            PathForm::Canonical if head.uri.authority().is_some() && head.version != Version::HTTP_2 => {
                head.uri.path_and_query().map(|path| Some(Uri::from(path.clone()))).ok_or_else(invalid)
            }
            PathForm::Canonical => Ok(None),
            PathForm::Rewritten => {
                let target = path.parse::<PathAndQuery>().map_err(|_| invalid())?;
                let mut parts = http::uri::Parts::default();
                // HTTP/2 has its host nowhere else.
                if head.version == Version::HTTP_2 {
                    parts.scheme = head.uri.scheme().cloned();
                    parts.authority = head.uri.authority().cloned();
                }
                parts.path_and_query = Some(target);
                Uri::from_parts(parts).map(Some).map_err(|_| invalid())
            }
        }
    })
}

/// Refuses a body that says it is too long; one that does not say is counted as it arrives.
fn bound_body(session: &Session, ctx: &mut Ctx, limit: u64) -> Result<(), Rejection> {
    // What flows through an upgraded connection is no request body.
    ctx.body.limit = if ctx.upgrade { u64::MAX } else { limit };
    let head = session.req_header();
    if head.version == Version::HTTP_2 {
        // Over HTTP/1 the transport sees who waits for whom. A gRPC stream may be silent for as long as its service likes.
        let grpc = |value: &http::HeaderValue| value.as_bytes().starts_with(b"application/grpc");
        if !head.headers.get(header::CONTENT_TYPE).is_some_and(grpc) {
            ctx.body.tolerance = ctx.connection.as_ref().map(|connection| connection.listener.settings_now().io.body);
        }
    }
    let declared = head.headers.get(header::CONTENT_LENGTH);
    match declared.and_then(|value| value.to_str().ok()?.parse::<u64>().ok()) {
        Some(length) if length > ctx.body.limit => Err(Rejection::new(&rejection::BODY_TOO_LARGE)),
        _ => Ok(()),
    }
}

/// Counts one piece of the request body on its way upstream.
pub fn body_chunk(body: &mut Option<Bytes>, end: bool, ctx: &mut Ctx) -> pingora::Result<()> {
    // Pingora writes an empty last piece of an HTTP/2 body as a second end of a chunked one (cloudflare/pingora#935).
    if end && body.as_ref().is_some_and(Bytes::is_empty) {
        *body = None;
    }
    let Some(piece) = body else {
        // A body that ends before it is whole is not the one that was signed.
        if end && ctx.request.body_digest.as_ref().is_some_and(|digest| !digest.holds()) {
            return Err(ctx.fail(Rejection::new(&rejection::DIGEST_MISMATCH)));
        }
        copy_piece(None, end, ctx);
        return Ok(());
    };
    let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
    ctx.body.received = ctx.body.received.saturating_add(length);
    if ctx.body.received > ctx.body.limit {
        return Err(ctx.fail(Rejection::new(&rejection::BODY_TOO_LARGE)));
    }
    // Before the last byte goes on.
    if let Some(digest) = &mut ctx.request.body_digest
        && (!digest.update(piece) || (end && !digest.holds()))
    {
        return Err(ctx.fail(Rejection::new(&rejection::DIGEST_MISMATCH)));
    }
    if end && ctx.attempt.guarded.timed {
        ctx.attempt.guarded.sent = Some(ctx.gateway.clock().now());
    }
    check_pace(ctx)?;
    ctx.check_deadline()?;
    copy_piece(Some(piece), end, ctx);
    Ok(())
}

/// For the mirror, which gets what the upstream gets: nothing of a body that is refused makes a whole one there.
fn copy_piece(piece: Option<&Bytes>, end: bool, ctx: &mut Ctx) {
    if let Some(copy) = &mut ctx.mirror {
        copy.piece(piece, end);
    }
}

/// A body over HTTP/2 may take as long as its listener tolerates in pauses, and the time that its bytes take at the slowest
/// rate. What waits on the upstream is counted as well, which the slowest rate leaves room for. Between two pieces the
/// upstream's read timeout runs.
fn check_pace(ctx: &mut Ctx) -> pingora::Result<()> {
    let Some(tolerance) = ctx.body.tolerance.filter(|tolerance| !tolerance.pause.is_zero() && tolerance.rate > 0) else {
        return Ok(());
    };
    let earned = ctx.body.received.saturating_mul(1_000).checked_div(tolerance.rate).unwrap_or_default();
    let allowed = tolerance.pause.saturating_add(Duration::from_millis(earned));
    if ctx.gateway.clock().now().saturating_duration_since(ctx.request.started) > allowed {
        return Err(ctx.fail(Rejection::new(&rejection::REQUEST_TIMEOUT)));
    }
    Ok(())
}
