//! Transport errors become rejections here, in one table.

use super::Ctx;
use crate::rejection::{self, Code, Rejection};
use crate::respond;
use crate::upstream::exchange;
use pingora::proxy::{FailToProxy, Session};
use pingora::{Error, ErrorSource, ErrorType};

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
        // Pingora ends the connection of a request that failed on its way, whatever we say here.
        let close = rejection.clone().close();
        if let Err(e) = respond::reject(session, ctx, close).await {
            log::debug!("the client is gone: {e}");
        }
        session.as_downstream_mut().shutdown().await;
    }
    FailToProxy { error_code: status, can_reuse_downstream: false }
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
