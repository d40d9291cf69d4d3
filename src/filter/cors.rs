//! `cors`: which web pages may read the answers (<https://fetch.spec.whatwg.org/#http-cors-protocol>).

use super::{BuildContext, Filter, FilterConfig, Phases, Problem, Step};
use crate::rejection::LocalResponse;
use crate::request::RequestCtx;
use crate::value::{Duration, Located};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;

/// The most entries of each list.
const LIST_MAX: usize = 256;

/// Lets pages of other origins use the route from a browser. It answers preflight requests (`OPTIONS` with `Origin` and
/// `Access-Control-Request-Method`) itself with 204, without asking for credentials, which browsers never send with them: so it
/// must stand before filters that do, and is an error after them. Everything else goes on, and is authenticated like any request,
/// other `OPTIONS` included. The answer, whoever makes it, gets the headers that let the page read it; those that the upstream
/// wrote are removed. Where the route has `methods`, `OPTIONS` must be among them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CorsConfig {
    /// The origins whose pages may, such as `"https://app.example.com"`; `"https://*.example.com"` for every name below one;
    /// `"*"` for all. Up to 256.
    pub origins: Vec<Located<String>>,
    /// The methods that they may use, beside GET, HEAD and POST. Default: `["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]`.
    pub methods: Option<Vec<Located<String>>>,
    /// The headers that they may send. Default: those that they ask for.
    pub headers: Option<Vec<Located<String>>>,
    /// The headers of the answer that they may read, beside the harmless ones. Default: none.
    #[serde(default)]
    pub expose: Vec<Located<String>>,
    /// Whether browsers may send cookies and `Authorization` of their own. Not with the origin `"*"`.
    #[serde(default)]
    pub credentials: bool,
    /// How long browsers may remember a preflight, up to 1d.
    #[serde(default = "max_age")]
    pub max_age: Located<Duration>,
}

fn max_age() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(600))
}

enum Origin {
    Any,
    Exact(Box<str>),
    /// What it begins and ends with: `https://` and `.example.com`.
    Below(Box<str>, Box<str>),
}

pub struct Cors {
    origins: Box<[Origin]>,
    methods: HeaderValue,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: HeaderValue,
}

impl FilterConfig for CorsConfig {
    const NAME: &'static str = "cors";
    type Filter = Cors;

    fn build(self, _: &mut BuildContext<'_>) -> Result<Cors, Problem> {
        if self.origins.is_empty() {
            return Err(
                Problem::new("without origins no page may use this").help("write origins = [\"https://app.example.com\"]")
            );
        }
        let lists = [Some(&self.origins), self.methods.as_ref(), self.headers.as_ref(), Some(&self.expose)];
        if let Some(beyond) = lists.into_iter().flatten().find_map(|list| list.get(LIST_MAX)) {
            return Err(Problem::new(format!("the most entries of a list are {LIST_MAX}")).at(beyond));
        }
        if self.max_age.value > Duration::from_secs(86_400) {
            return Err(Problem::new(format!("`{}` is too long", self.max_age.value)).at(&self.max_age).help("use up to 1d"));
        }
        let origins: Box<[Origin]> = self.origins.iter().map(origin).collect::<Result<_, _>>()?;
        let any = self.origins.iter().find(|text| text.value == "*");
        if let Some(any) = any.filter(|_| self.credentials) {
            let problem = Problem::new("every page could act as whoever visits it").at(any);
            return Err(problem.help("name the origins, or take `credentials` out"));
        }
        let methods = match &self.methods {
            None => HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE"),
            Some(list) => {
                let known =
                    |text: &str| Method::from_bytes(text.as_bytes()).is_ok() && !text.bytes().any(|b| b.is_ascii_lowercase());
                if let Some(wrong) = list.iter().find(|text| !known(text)) {
                    return Err(Problem::new(format!("`{}` is not a method", wrong.value)).at(wrong));
                }
                joined(list)?
            }
        };
        for name in self.headers.iter().flatten().chain(&self.expose) {
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                return Err(Problem::new(format!("`{}` is not a header name", name.value)).at(name));
            }
        }
        Ok(Cors {
            origins,
            methods,
            headers: self.headers.as_deref().map(joined).transpose()?,
            expose: (!self.expose.is_empty()).then(|| joined(&self.expose)).transpose()?,
            credentials: self.credentials,
            max_age: HeaderValue::from(self.max_age.get().as_secs()),
        })
    }
}

fn joined(list: &[Located<String>]) -> Result<HeaderValue, Problem> {
    let text = list.iter().map(|text| text.as_str()).collect::<Vec<_>>().join(", ");
    HeaderValue::from_str(&text).map_err(|_| Problem::new("this list cannot stand in a header"))
}

/// An origin as browsers write it: scheme, host and port in lower case, and nothing else (RFC 6454 section 6.2).
fn origin(text: &Located<String>) -> Result<Origin, Problem> {
    if text.value == "*" {
        return Ok(Origin::Any);
    }
    let wrong = || {
        let problem = Problem::new(format!("`{}` is not an origin", text.value)).at(text);
        problem.help("write a scheme and a host in lower case and nothing after it, such as https://app.example.com")
    };
    let (scheme, host) = text.split_once("://").ok_or_else(wrong)?;
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.:[]".contains(&b);
    let (wildcard, name) = host.strip_prefix("*.").map_or((false, host), |name| (true, name));
    if scheme.is_empty() || !scheme.bytes().all(|b| b.is_ascii_lowercase()) || name.is_empty() || !name.bytes().all(plain) {
        return Err(wrong());
    }
    Ok(match wildcard {
        true => Origin::Below(format!("{scheme}://").into(), format!(".{name}").into()),
        false => Origin::Exact(text.as_str().into()),
    })
}

impl Origin {
    fn is(&self, origin: &str) -> bool {
        match self {
            Origin::Any => true,
            Origin::Exact(known) => **known == *origin,
            Origin::Below(scheme, name) => {
                // At least one label, and no other host before it.
                let label = origin.strip_prefix(&**scheme).and_then(|host| host.strip_suffix(&**name));
                label.is_some_and(|label| {
                    !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
                })
            }
        }
    }
}

impl Filter for Cors {
    fn phases(&self) -> Phases {
        Phases::REQUEST.and(Phases::RESPONSE)
    }

    fn precedes_identity(&self) -> bool {
        true
    }

    fn may_wait(&self) -> bool {
        false
    }

    fn on_request<'a>(&'a self, session: &'a mut Session, _: &'a mut RequestCtx) -> Step<'a> {
        let head = session.req_header();
        let preflight = head.method == Method::OPTIONS
            && head.headers.contains_key(header::ORIGIN)
            && head.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if !preflight {
            return Step::CONTINUE;
        }
        let mut headers = HeaderMap::new();
        if self.allowed(&head.headers).is_some() {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
            let asked = head.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
            if let Some(list) = self.headers.as_ref().or(asked) {
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, list.clone());
            }
        }
        let vary = "origin, access-control-request-method, access-control-request-headers";
        headers.insert(header::VARY, HeaderValue::from_static(vary));
        Step::respond(LocalResponse { status: StatusCode::NO_CONTENT, headers, body: Bytes::new() })
    }

    fn on_response(&self, session: &Session, head: &mut ResponseHeader, _: &mut RequestCtx) {
        for name in
            [header::ACCESS_CONTROL_ALLOW_ORIGIN, header::ACCESS_CONTROL_ALLOW_CREDENTIALS, header::ACCESS_CONTROL_EXPOSE_HEADERS]
        {
            head.remove_header(&name);
        }
        // None of these fails: the values were checked when they were made, and the map is not full.
        if !matches!(self.origins.first(), Some(Origin::Any)) {
            let varies =
                head.headers.get_all(header::VARY).iter().any(|line| {
                    line.as_bytes().split(|b| *b == b',').any(|name| name.trim_ascii().eq_ignore_ascii_case(b"origin"))
                });
            if !varies {
                let _ = head.append_header(header::VARY, HeaderValue::from_static("origin"));
            }
        }
        let Some(origin) = self.allowed(&session.req_header().headers) else { return };
        let _ = head.insert_header(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            let _ = head.insert_header(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = &self.expose {
            let _ = head.insert_header(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }
}

impl Cors {
    /// What `Access-Control-Allow-Origin` is to say, if the page may.
    fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut lines = headers.get_all(header::ORIGIN).iter();
        let origin = lines.next().filter(|_| lines.next().is_none())?;
        let text = origin.to_str().ok()?;
        let known = self.origins.iter().find(|known| known.is(text))?;
        Some(if matches!(known, Origin::Any) { HeaderValue::from_static("*") } else { origin.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Flow;
    use crate::filter::testing::{build, problem, session};

    async fn preflight(table: &str, origin: &str, more: &str) -> Option<LocalResponse> {
        let filter = build::<CorsConfig>(table).unwrap();
        let raw = format!("OPTIONS /a HTTP/1.1\r\nHost: a\r\nOrigin: {origin}\r\n{more}\r\n");
        let (mut session, mut ctx) = session(&raw, "/a").await;
        match filter.on_request(&mut session, &mut ctx) {
            Step::Ready(Ok(Flow::Respond(response))) => Some(*response),
            Step::Ready(Ok(Flow::Continue)) => None,
            _ => panic!("neither answered nor passed"),
        }
    }

    async fn response(table: &str, origin: Option<&str>, upstream: &[(&'static str, &str)]) -> ResponseHeader {
        let filter = build::<CorsConfig>(table).unwrap();
        let line = origin.map_or_else(String::new, |origin| format!("Origin: {origin}\r\n"));
        let (session, mut ctx) = session(&format!("GET /a HTTP/1.1\r\nHost: a\r\n{line}\r\n"), "/a").await;
        let mut head = ResponseHeader::build(200, None).unwrap();
        for (name, value) in upstream {
            head.append_header(*name, *value).unwrap();
        }
        filter.on_response(&session, &mut head, &mut ctx);
        head
    }

    const ASK: &str = "Access-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: x-a, x-b\r\n";

    #[tokio::test]
    async fn a_preflight_is_answered_and_nothing_else_is() {
        let table = "{ origins = ['https://app.example.com'], credentials = true }";
        let answer = preflight(table, "https://app.example.com", ASK).await.unwrap();
        assert_eq!(answer.status, 204);
        let get = |name: &str| answer.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(get("access-control-allow-methods").as_deref(), Some("GET, HEAD, POST, PUT, PATCH, DELETE"));
        assert_eq!(get("access-control-allow-headers").as_deref(), Some("x-a, x-b"));
        assert_eq!(get("access-control-max-age").as_deref(), Some("600"));
        let other = preflight(table, "https://evil.example", ASK).await.unwrap();
        assert!(!other.headers.keys().any(|name| name.as_str().starts_with("access-control-")), "{:?}", other.headers);
        assert!(preflight(table, "https://app.example.com", "").await.is_none(), "an OPTIONS of its own is no preflight");
    }

    #[tokio::test]
    async fn only_pages_of_the_listed_origins_may_read() {
        let table =
            "{ origins = ['https://app.example.com', 'https://*.example.org'], expose = ['x-total'], credentials = true }";
        let allowed = async |origin: &str| {
            let head = response(table, Some(origin), &[]).await;
            head.headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).map(|value| value.to_str().unwrap().to_owned())
        };
        for origin in ["https://app.example.com", "https://a.example.org", "https://a.b.example.org"] {
            assert_eq!(allowed(origin).await.as_deref(), Some(origin));
        }
        for origin in [
            "https://app.example.com.evil.example",
            "https://example.org",
            "https://.example.org",
            "http://a.example.org",
            "https://evil.example/.example.org",
            "https://evil.example#.example.org",
            "https://evil.example:1@a.example.org",
            "https://APP.example.com",
            "null",
        ] {
            assert_eq!(allowed(origin).await, None, "{origin}");
        }
        let head =
            response(table, Some("https://app.example.com"), &[("access-control-allow-origin", "*"), ("vary", "accept")]).await;
        assert_eq!(head.headers.get_all(header::ACCESS_CONTROL_ALLOW_ORIGIN).iter().count(), 1);
        assert_eq!(head.headers[header::ACCESS_CONTROL_EXPOSE_HEADERS], "x-total");
        assert_eq!(head.headers[header::ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
        assert_eq!(head.headers.get_all(header::VARY).iter().collect::<Vec<_>>(), ["accept", "origin"]);
        let head = response(table, None, &[("access-control-allow-origin", "*")]).await;
        assert!(!head.headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN), "what the upstream says does not count");
        let head = response("{ origins = ['*'] }", Some("https://any.example"), &[]).await;
        assert_eq!(head.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    }

    #[test]
    fn impossible_tables_are_refused_with_a_reason() {
        let message = |table: &str| problem::<CorsConfig>(table).message;
        assert_eq!(message("{ origins = [] }"), "without origins no page may use this");
        assert_eq!(message("{ origins = ['*'], credentials = true }"), "every page could act as whoever visits it");
        for wrong in
            ["app.example.com", "https://a/b", "https://", "https://A.example", "https://*", "*.example.com", "https://a b"]
        {
            assert_eq!(message(&format!("{{ origins = ['{wrong}'] }}")), format!("`{wrong}` is not an origin"));
        }
        assert_eq!(message("{ origins = ['*'], methods = ['get'] }"), "`get` is not a method");
        assert_eq!(message("{ origins = ['*'], headers = ['a b'] }"), "`a b` is not a header name");
        assert_eq!(message("{ origins = ['*'], max_age = '2d' }"), "`2d` is too long");
    }
}
