//! gRPC-Web (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md>) to services that speak gRPC.
//!
//! Browsers cannot read trailers, so that gRPC-Web puts them at the end of the body. The translation is Pingora's; as a module
//! of its own it would cost every request an allocation, so that its state lives here, in the request, and a request that
//! is no gRPC-Web pays one look at `Content-Type`. Only the binary form is translated, not `-text`.

use super::Ctx;
use http::{HeaderMap, HeaderValue, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::bridge::grpc_web::GrpcWebCtx;
use pingora::proxy::Session;

const PREFIX: &[u8] = b"application/grpc-web";

/// The state of one request. `None`: it is no gRPC-Web.
#[derive(Default)]
pub struct GrpcWeb(Option<GrpcWebCtx>);

/// `application/grpc-web`, with or without a suffix such as `+proto`.
fn is_grpc_web(content_type: &HeaderValue) -> bool {
    let value = content_type.as_bytes();
    let begins = value.get(..PREFIX.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(PREFIX));
    begins && matches!(value.get(PREFIX.len()), None | Some(b'+' | b';' | b' '))
}

impl GrpcWeb {
    /// Makes a gRPC call of the request, if its upstream speaks HTTP/2. One that speaks HTTP/1 gets it as it is.
    pub(super) fn begin(session: &mut Session, ctx: &mut Ctx) {
        if !session.req_header().headers.get(header::CONTENT_TYPE).is_some_and(is_grpc_web) {
            return;
        }
        let upstream = ctx.route.as_ref().and_then(|route| route.upstream.as_ref());
        if !upstream.is_some_and(|target| target.upstream.speaks_http2()) {
            return;
        }
        let mut bridge = GrpcWebCtx::default();
        bridge.init();
        bridge.request_header_filter(session.req_header_mut());
        ctx.grpc_web = GrpcWeb(Some(bridge));
    }

    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Pingora removes `te` from requests of HTTP/1; gRPC services want it.
    pub(super) fn request_head(&self, head: &mut RequestHeader) -> pingora::Result<()> {
        if self.is_some() {
            head.insert_header(header::TE, HeaderValue::from_static("trailers"))?;
        }
        Ok(())
    }

    pub(super) fn response_head(&mut self, head: &mut ResponseHeader) {
        if let Some(bridge) = &mut self.0 {
            bridge.response_header_filter(head);
        }
    }

    /// The trailers as the end of the body.
    pub(super) fn trailers(&mut self, trailers: &mut HeaderMap) -> pingora::Result<Option<bytes::Bytes>> {
        match &mut self.0 {
            Some(bridge) => bridge.response_trailer_filter(trailers),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_binary_form_is_translated() {
        for (text, web) in [
            ("application/grpc-web", true),
            ("application/grpc-web+proto", true),
            ("Application/gRPC-Web; charset=utf-8", true),
            ("application/grpc-web-text", false),
            ("application/grpc", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc_web(&HeaderValue::from_static(text)), web, "{text}");
        }
    }
}
