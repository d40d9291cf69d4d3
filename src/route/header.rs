//! Conditions on request headers.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The value of a header that occurs exactly once. A header that is repeated has no single value, so that two routes for
/// two values can never both claim one request, and a second line cannot change which of them does.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    values.next().is_none().then(|| first.as_bytes())
}

/// Parses a name; the reason when it cannot be one.
pub(super) fn parse_name(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("`{text}` is not a header name"))?;
    if name == http::header::HOST {
        return Err("the host of a request is matched by `host`, not by its header".to_owned());
    }
    Ok(name)
}

pub(super) fn parse_value(text: &str) -> Result<Box<[u8]>, String> {
    if text.trim_matches([' ', '\t']) != text {
        return Err("a header value never begins or ends with white space".to_owned());
    }
    let value = HeaderValue::from_str(text).map_err(|_| "a header value holds no control characters".to_owned())?;
    Ok(value.as_bytes().into())
}
