//! Transport errors become rejections here, in one table.

use super::Ctx;
use crate::rejection::{self, Code, Rejection};
use crate::respond;
use crate::upstream::exchange;
use pingora::protocols::http::ServerSession;
use pingora::proxy::{FailToProxy, Session};
use pingora::{Error, ErrorSource, ErrorType};
use std::io::Cursor;

/// Answers a request that failed, if it can still be answered, and says why in the record.
pub async fn conclude(session: &mut Session, error: &Error, ctx: &mut Ctx) -> FailToProxy {
    let rejection = match ctx.rejection.take() {
        Some(decided) => Some(decided),
        // What the transport found out says more than the error that it had to make of it.
        None => match ctx.connection.as_ref().and_then(|connection| connection.rejection()) {
            Some(found) if error.esource() == &ErrorSource::Downstream => Some(found),
            _ => reason(error, ctx).map(Rejection::new),
        },
    };
    if ctx.is_fetch() {
        super::cache::settle_failure(ctx, rejection);
        return FailToProxy { error_code: 0, can_reuse_downstream: false };
    }
    let Some(rejection) = rejection else {
        return FailToProxy { error_code: 0, can_reuse_downstream: false };
    };
    let status = rejection.code.status;
    let begun = session.response_written().is_some_and(|head| !head.status.is_informational() || head.status == 101);
    if begun {
        // Too late for another answer. The connection ends in the middle of this one, which the client can tell from a
        // complete one; the record keeps the reason.
        ctx.rejection = Some(rejection);
    } else {
        let keep = may_keep(session, error, ctx);
        let answer = if keep { rejection.clone() } else { rejection.clone().close() };
        let answered = respond::reject(session, ctx, answer).await;
        if let Err(e) = &answered {
            log::debug!("the client is gone: {e}");
        }
        ctx.keep_client = keep && answered.is_ok();
        if !ctx.keep_client {
            session.as_downstream_mut().shutdown().await;
        }
    }
    FailToProxy { error_code: status, can_reuse_downstream: false }
}

/// Whether the fault was not the client's, so that what comes next on its connection can be told from this request. What is left
/// of a body is for [`respond`] to judge. Streams of HTTP/2 end with their request.
fn may_keep(session: &Session, error: &Error, ctx: &Ctx) -> bool {
    let http1 = session.as_downstream().as_http1().is_some();
    http1 && !ctx.upgrade && ctx.connection.is_some() && error.esource() != &ErrorSource::Downstream
}

/// Keeps the connection of a client whose request has failed and was answered.
///
/// Pingora closes it: for a request that has been on its way to an upstream it goes by the last attempt, and an attempt that
/// failed says `false` (pingora-proxy 0.9.1, src/lib.rs: `proxy_to_upstream` in lines 412 and 482, `process_request` in line 1363; only
/// errors before that are asked for [`FailToProxy`], by `handle_error` in line 1392). So the session is taken out of Pingora's hands at
/// the last moment, in the hook after which it only drops it, and ended as Pingora ends one that is kept.
pub async fn keep(session: &mut Session, ctx: &Ctx) {
    let Some(connection) = &ctx.connection else { return };
    let nothing = ServerSession::new_http1(Box::new(Cursor::new(Vec::new())));
    let own = std::mem::replace(&mut session.downstream_session, Box::new(nothing));
    if let Ok(Some(kept)) = own.finish().await {
        connection.keep(kept.into_parts().0);
    }
}

/// What could not be written, with whose fault that is: what goes to upstreams says so, what is written to clients does not.
pub fn of_writing(error: Box<Error>) -> Box<Error> {
    match (error.esource(), error.etype()) {
        (ErrorSource::Unset, ErrorType::WriteError | ErrorType::WriteTimedout) => error.into_down(),
        _ => error,
    }
}

/// `None` when nobody is left to answer.
fn reason(error: &Error, ctx: &Ctx) -> Option<&'static Code> {
    use ErrorType::*;
    let late = !ctx.in_time();
    match error.esource() {
        ErrorSource::Downstream => match error.etype() {
            ReadTimedout | WriteTimedout if late => Some(&rejection::DEADLINE_EXCEEDED),
            ReadTimedout => Some(&rejection::REQUEST_TIMEOUT),
            ReadError | WriteError | WriteTimedout | ConnectionClosed | ConnectError => None,
            _ => Some(&rejection::REQUEST_MALFORMED),
        },
        _ if late => Some(&rejection::DEADLINE_EXCEEDED),
        ErrorSource::Upstream if exchange::malformed(error).is_some() => Some(&rejection::UPSTREAM_PROTOCOL_ERROR),
        ErrorSource::Upstream => Some(match error.etype() {
            ConnectTimedout | ReadTimedout | WriteTimedout | TLSHandshakeTimedout => &rejection::UPSTREAM_TIMEOUT,
            ConnectRefused | ConnectNoRoute | ConnectError | SocketError | BindError | TLSHandshakeFailure
            | TLSWantX509Lookup | HandshakeError | ConnectProxyFailure | InvalidCert => &rejection::UPSTREAM_CONNECT_FAILED,
            ReadError | WriteError | ConnectionClosed => &rejection::UPSTREAM_RESET,
            _ => &rejection::UPSTREAM_PROTOCOL_ERROR,
        }),
        _ => Some(&rejection::INTERNAL_ERROR),
    }
}
