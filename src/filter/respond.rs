//! `respond`: a fixed answer. Nothing goes upstream.

use super::header_edits::parse_name;
use super::{BuildContext, Filter, FilterConfig, Phases, Problem, Step};
use crate::rejection::LocalResponse;
use crate::request::RequestCtx;
use crate::template;
use crate::value::Located;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The longest body, in bytes: larger ones are files and belong to a server for files.
const MAX_BODY: usize = 64 * 1024;
/// The most headers.
const MAX_HEADERS: usize = 64;

/// Answers by itself. The filters after it do not run, but all response filters of the route do.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RespondConfig {
    /// The status, 200 to 599. Default: 200.
    pub status: Option<Located<u16>>,
    /// The body, at most 64 KiB of plain text, in which `${request_id}` and its like are no more than that. 204, 205 and 304 have
    /// none. Default: empty.
    pub body: Option<Located<String>>,
    /// The media type of the body. Default: `"text/plain; charset=utf-8"`; none without a body.
    pub content_type: Option<Located<String>>,
    /// Further headers, name to value, at most 64. Plain text: values with facts of the request are written by
    /// `response_headers`. Default: none.
    pub headers: BTreeMap<String, Located<String>>,
}

pub struct Respond {
    response: LocalResponse,
}

impl FilterConfig for RespondConfig {
    const NAME: &'static str = "respond";
    type Filter = Respond;

    fn build(self, cx: &mut BuildContext<'_>) -> Result<Respond, Problem> {
        let status = match &self.status {
            None => StatusCode::OK,
            Some(status) => {
                StatusCode::from_u16(**status).ok().filter(|s| (200..600).contains(&s.as_u16())).ok_or_else(|| {
                    Problem::new(format!("{} is not a final status", **status)).at(status).help("use one from 200 to 599")
                })?
            }
        };
        let body = match self.body {
            None => Bytes::new(),
            Some(body) if body.is_empty() => Bytes::new(),
            Some(body) => {
                if matches!(status.as_u16(), 204 | 205 | 304) {
                    let problem = Problem::new(format!("a response with status {} has no body", status.as_u16())).at(&body);
                    return Err(problem.help("take the body out, or use 200"));
                }
                if body.len() > MAX_BODY {
                    return Err(Problem::new(format!("the body is longer than {MAX_BODY} bytes")).at(&body));
                }
                if let (Some(place), Some(span)) = (template::first_place(&body), &body.span) {
                    let message = format!("`{place}` is sent as it stands here: a body is plain text");
                    // A chain is built once for each route that uses it.
                    if !cx.diagnostics.is_told(span, &message) {
                        let warning = cx.diagnostics.warning(span.clone(), message);
                        warning.help("let a `response_headers` filter write it into a header, or take it out");
                    }
                }
                Bytes::from(body.value)
            }
        };
        if self.headers.len() > MAX_HEADERS {
            return Err(Problem::new(format!("the most headers are {MAX_HEADERS}")));
        }
        let mut headers = HeaderMap::new();
        for (text, value) in &self.headers {
            let name = parse_name(text, value)?;
            if name == header::CONTENT_TYPE {
                let problem = Problem::new("`content-type` has a key of its own").at(value);
                return Err(problem.help("write `content_type = \"...\"` beside `body`"));
            }
            if value.contains("${") {
                let problem = Problem::new("values here are plain text").at(value);
                return Err(problem.help("let a `response_headers` filter write it"));
            }
            if headers.insert(name, header_value(value)?).is_some() {
                return Err(Problem::new(format!("the header `{text}` stands twice, in two spellings")).at(value));
            }
        }
        match &self.content_type {
            Some(kind) => {
                headers.insert(header::CONTENT_TYPE, header_value(kind)?);
            }
            None if !body.is_empty() => {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            }
            None => {}
        }
        Ok(Respond { response: LocalResponse { status, headers, body } })
    }
}

fn header_value(text: &Located<String>) -> Result<HeaderValue, Problem> {
    HeaderValue::from_str(text).map_err(|_| Problem::new("a header value holds no control characters").at(text))
}

impl Filter for Respond {
    fn phases(&self) -> Phases {
        Phases::REQUEST
    }

    fn answers(&self) -> bool {
        true
    }

    fn on_request<'a>(&'a self, _: &'a mut Session, _: &'a mut RequestCtx) -> Step<'a> {
        Step::respond(self.response.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Flow;
    use crate::filter::testing::{build, problem, session};

    async fn answer(table: &str) -> LocalResponse {
        let filter = build::<RespondConfig>(table).unwrap();
        let (mut session, mut ctx) = session("GET /hello HTTP/1.1\r\nHost: a\r\n\r\n", "/hello").await;
        match filter.on_request(&mut session, &mut ctx) {
            Step::Ready(Ok(Flow::Respond(response))) => *response,
            _ => panic!("{table} does not answer"),
        }
    }

    #[tokio::test]
    async fn answers_as_written() {
        let response = answer("{ body = 'hello', status = 201, headers = { x-a = '1' } }").await;
        assert_eq!((response.status.as_u16(), &*response.body), (201, &b"hello"[..]));
        assert_eq!(response.headers.get("content-type").unwrap(), "text/plain; charset=utf-8");
        assert_eq!(response.headers.get("x-a").unwrap(), "1");
        let response = answer("{ body = '{}', content_type = 'application/json' }").await;
        assert_eq!(response.headers.get("content-type").unwrap(), "application/json");
        let response = answer("{}").await;
        assert!(response.status == 200 && response.body.is_empty() && response.headers.is_empty());
    }

    #[test]
    fn impossible_tables_are_refused_with_a_reason() {
        for (table, message) in [
            ("{ status = 101 }", "101 is not a final status"),
            ("{ status = 600 }", "600 is not a final status"),
            ("{ status = 204, body = 'x' }", "a response with status 204 has no body"),
            ("{ headers = { content-length = '1' } }", "`content-length` cannot be changed by a filter"),
            ("{ headers = { content-type = 'a/b' } }", "`content-type` has a key of its own"),
            ("{ headers = { x = '${host}' } }", "values here are plain text"),
            ("{ headers = { x-a = '1', X-A = '2' } }", "the header `x-a` stands twice, in two spellings"),
            ("{ headers = { x-a = \"a\\nb\" } }", "a header value holds no control characters"),
        ] {
            let problem = problem::<RespondConfig>(table);
            assert!(problem.message == message && problem.span.is_some(), "{problem:?}");
        }
    }
}
