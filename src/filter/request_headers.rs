//! `request_headers`: edits the fields of the request that goes upstream.

use super::header_edits::{Edits, EditsConfig};
use super::{BuildContext, Filter, FilterConfig, Phases, Problem};
use crate::rejection::Rejection;
use crate::request::RequestCtx;
use crate::value::{Located, TextOrSecret};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Edits the header fields of the request that goes upstream: removes, then sets, then adds. At most 64 fields. The fields
/// that frame the message or belong to one connection, `host`, and those that the gateway writes itself (`x-request-id`,
/// `forwarded`, `via`, `x-forwarded-*` but for `x-forwarded-prefix`) cannot be changed.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RequestHeadersConfig {
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

pub struct RequestHeaders {
    edits: Edits,
}

impl FilterConfig for RequestHeadersConfig {
    const NAME: &'static str = "request_headers";
    type Filter = RequestHeaders;

    fn build(self, cx: &mut BuildContext<'_>) -> Result<RequestHeaders, Problem> {
        let edits = EditsConfig { set: self.set, add: self.add, remove: self.remove }.build(&cx.directory())?;
        Ok(RequestHeaders { edits })
    }
}

impl Filter for RequestHeaders {
    fn phases(&self) -> Phases {
        Phases::UPSTREAM_REQUEST
    }

    fn tells_certificate(&self) -> bool {
        self.edits.name_certificate()
    }

    fn names_consumer(&self) -> bool {
        self.edits.names_consumer()
    }

    fn path_params(&self) -> Vec<&str> {
        self.edits.path_params()
    }

    fn on_upstream_request(&self, session: &Session, head: &mut RequestHeader, ctx: &mut RequestCtx) -> Result<(), Rejection> {
        self.edits.apply(head, session, ctx);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::testing::{build, problem, session};

    const TABLE: &str = r#"{
        set = { x-id = "${request_id}", X-Who = "${consumer}", x-from = "${client_ip}/${path.id}" },
        add = { via-tag = "a", x-maybe = "${consumer}" },
        remove = ["x-debug", "Cookie"],
    }"#;

    fn lines(head: &RequestHeader) -> Vec<String> {
        let mut wire = Vec::new();
        head.header_to_h1_wire(&mut wire);
        let mut lines: Vec<String> = String::from_utf8(wire).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    #[tokio::test]
    async fn removes_then_sets_then_adds() {
        let filter = build::<RequestHeadersConfig>(TABLE).unwrap();
        let (session, mut ctx) = session(
            "GET /u/7 HTTP/1.1\r\nHost: a\r\nX-Id: forged\r\nCOOKIE: c\r\nx-debug: 1\r\nx-debug: 2\r\nvia-tag: b\r\n\r\n",
            "/u/{id}",
        )
        .await;
        ctx.identity = Some(crate::identity::Identity::for_test("acme"));
        let mut head = session.req_header().clone();
        filter.on_upstream_request(&session, &mut head, &mut ctx).unwrap();
        let id = format!("x-id: {}", ctx.id);
        let want = ["Host: a", "X-Who: acme", "via-tag: a", "via-tag: b", "x-from: 192.0.2.7/7", &id, "x-maybe: acme"];
        assert_eq!(lines(&head), want);
    }

    #[tokio::test]
    async fn a_forged_value_never_passes_for_one_that_is_missing() {
        let filter = build::<RequestHeadersConfig>(TABLE).unwrap();
        let (session, mut ctx) = session("GET /u/7 HTTP/1.1\r\nHost: a\r\nX-Who: admin\r\n\r\n", "/u/{id}").await;
        let mut head = session.req_header().clone();
        filter.on_upstream_request(&session, &mut head, &mut ctx).unwrap();
        assert!(!head.headers.contains_key("x-who") && !head.headers.contains_key("x-maybe"));
    }

    #[test]
    fn impossible_tables_are_refused_with_a_reason() {
        for (table, message) in [
            ("{}", "this filter changes nothing"),
            ("{ set = { 'a b' = '1' } }", "`a b` is not a header name"),
            ("{ set = { x-a = '1', X-A = '2' } }", "`x-a` stands twice in `set`, in two spellings"),
            ("{ set = { x-a = '1' }, remove = ['X-A'] }", "`x-a` is both removed and set"),
            ("{ remove = ['x-a', 'X-A'] }", "`X-A` stands twice in `remove`"),
            ("{ set = { x-a = '${cosumer}' } }", "`${cosumer}` is not known"),
        ] {
            assert_eq!(problem::<RequestHeadersConfig>(table).message, message);
        }
        for name in [
            "Content-Length",
            "transfer-encoding",
            "connection",
            "keep-alive",
            "te",
            "trailer",
            "upgrade",
            "host",
            "via",
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-proto",
            "X-Request-Id",
            "proxy-connection",
            "proxy-authorization",
        ] {
            for table in ["{ set = { NAME = '1' } }", "{ add = { NAME = '1' } }", "{ remove = ['NAME'] }"] {
                let problem = problem::<RequestHeadersConfig>(&table.replace("NAME", name));
                assert!(problem.message.ends_with("cannot be changed by a filter") && problem.help.is_some(), "{name}");
                assert!(problem.span.is_some(), "{name}");
            }
        }
        assert!(build::<RequestHeadersConfig>("{ set = { x-forwarded-prefix = '/api' } }").is_ok());
    }
}
