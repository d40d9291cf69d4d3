//! `response_headers`: edits the fields of the response that goes to the client.

use super::header_edits::{Edits, EditsConfig};
use super::{BuildContext, Filter, FilterConfig, Phases, Problem};
use crate::request::RequestCtx;
use crate::value::{Located, TextOrSecret};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Edits the header fields of the response, whoever made it: the upstream, another filter, or the gateway's rejection.
/// Removes, then sets, then adds. At most 64 fields. The fields that frame the message or belong to one connection, and
/// those that the gateway writes itself (`x-request-id`, `via`), cannot be changed.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResponseHeadersConfig {
    /// Fields to set, name to value; replaces what was there. A value may hold `${request_id}`, `${client_ip}`, `${route}`,
    /// `${consumer}`, `${host}`, `${scheme}`, `${path}` (as the client asked, before any rewrite), `${path.NAME}` (a param of
    /// the route's path), `${client_cert_subject}`, `${client_cert_sha256}` and `${client_cert_names}` (of the certificate that the
    /// listener has verified); `$$` is a dollar sign. Instead of text, a value can be a secret: `{ file = "..." }`,
    /// `{ env = "NAME" }` or `{ credential = "name" }`, taken as it is. When a request has no such thing (no consumer is known), or the value would
    /// be longer than 2,048 bytes, the field is removed instead. Default: none.
    pub set: BTreeMap<String, Located<TextOrSecret>>,
    /// Fields to add beside those of the same name, name to value as in `set`. Left out where `set` would remove.
    /// Default: none.
    pub add: BTreeMap<String, Located<TextOrSecret>>,
    /// Names of fields to remove, every occurrence. Done before `set` and `add`. Default: none.
    pub remove: Vec<Located<String>>,
}

pub struct ResponseHeaders {
    edits: Edits,
}

impl FilterConfig for ResponseHeadersConfig {
    const NAME: &'static str = "response_headers";
    type Filter = ResponseHeaders;

    fn build(self, cx: &mut BuildContext<'_>) -> Result<ResponseHeaders, Problem> {
        let edits = EditsConfig { set: self.set, add: self.add, remove: self.remove }.build(&cx.directory())?;
        Ok(ResponseHeaders { edits })
    }
}

impl Filter for ResponseHeaders {
    fn phases(&self) -> Phases {
        Phases::RESPONSE
    }

    fn names_consumer(&self) -> bool {
        self.edits.names_consumer()
    }

    fn path_params(&self) -> Vec<&str> {
        self.edits.path_params()
    }

    fn on_response(&self, session: &Session, head: &mut ResponseHeader, ctx: &mut RequestCtx) {
        self.edits.apply(head, session, ctx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::testing::{build, problem, session};

    #[tokio::test]
    async fn removes_then_sets_then_adds() {
        let table =
            r#"{ set = { Server = "gate", x-route = "${route}" }, add = { set-cookie = "b" }, remove = ["x-powered-by"] }"#;
        let filter = build::<ResponseHeadersConfig>(table).unwrap();
        let (session, mut ctx) = session("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "/").await;
        ctx.route = Some("orders".into());
        let mut head = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [("server", "up"), ("set-cookie", "a"), ("x-powered-by", "secret"), ("x-route", "forged")] {
            head.append_header(name, value).unwrap();
        }
        filter.on_response(&session, &mut head, &mut ctx);
        let mut wire = Vec::new();
        head.header_to_h1_wire(&mut wire);
        let mut lines: Vec<&str> = std::str::from_utf8(&wire).unwrap().lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["Server: gate", "set-cookie: a", "set-cookie: b", "x-route: orders"]);
    }

    #[test]
    fn fields_that_frame_the_message_are_refused() {
        for name in ["content-length", "transfer-encoding", "connection", "upgrade", "via", "x-request-id"] {
            let problem = problem::<ResponseHeadersConfig>(&format!("{{ remove = ['{name}'] }}"));
            assert_eq!(problem.message, format!("`{name}` cannot be changed by a filter"));
        }
    }
}
