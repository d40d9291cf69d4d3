//! Answers to HTTP/1.0, which knows no chunks (RFC 9112 §6.1): a body whose length nobody has said ends with the connection.
//!
//! Pingora writes such bodies in chunks, whatever the client speaks, and says so behind the hooks for answers of HTTP/2. So the
//! field is taken away at the last moment, in a module that only requests of HTTP/1.0 have, and what is left is delimited by the
//! close. One that is cut off could then not be told from a whole one: its connection is reset.

use super::Ctx;
use async_trait::async_trait;
use http::{Method, Version, header};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::modules::http::{HttpModule, HttpModuleBuilder, HttpModules, Module};
use pingora::proxy::Session;
use std::any::Any;
use std::sync::LazyLock;

static MODULES: LazyLock<HttpModules> = LazyLock::new(|| {
    let mut modules = HttpModules::new();
    modules.add_module(Box::new(Unchunked));
    modules
});

struct Unchunked;

impl HttpModuleBuilder for Unchunked {
    fn init(&self) -> Module {
        Box::new(Unchunked)
    }
}

#[async_trait]
impl HttpModule for Unchunked {
    async fn response_header_filter(&mut self, head: &mut ResponseHeader, _end: bool) -> Result<()> {
        head.remove_header(&header::TRANSFER_ENCODING);
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// Clients of HTTP/1.0 know no interim responses (RFC 9110 §15.2), what they expect is ignored (§10.1.1), and nothing is written
/// to them in chunks.
pub fn begin(session: &mut Session) {
    if session.req_header().version == Version::HTTP_10 {
        session.req_header_mut().remove_header(&header::EXPECT);
        session.as_downstream_mut().set_ignore_info_resp(true);
        session.downstream_modules_ctx = MODULES.build_ctx();
    }
}

/// Has a connection of HTTP/1.0 end with this answer if nothing else says where that ends. For the final head, once it is as it will
/// be sent.
pub fn frame(session: &mut Session, head: &ResponseHeader, ctx: &Ctx) {
    let asked = session.req_header();
    if asked.version != Version::HTTP_10 || head.headers.contains_key(header::CONTENT_LENGTH) {
        return;
    }
    if asked.method == Method::HEAD || head.status.is_informational() || matches!(head.status.as_u16(), 204 | 304) {
        return;
    }
    session.set_keepalive(None);
    if let Some(connection) = &ctx.connection {
        connection.ends_with_close(true);
    }
}

/// All of the answer was sent.
pub fn done(ctx: &Ctx) {
    if let Some(connection) = &ctx.connection {
        connection.ends_with_close(false);
    }
}
