//! The signature base: the text that was signed (RFC 9421 sections 2 and 2.5).

use super::Refusal;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, Method};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use sfv::{BareItem, Dictionary, FieldType, InnerList, Item, ListEntry, ListSerializer, Parser};

/// What `application/x-www-form-urlencoded` leaves as it is (WHATWG URL section 1.3); a space is `%20` here (RFC 9421 section
/// 2.2.8).
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'*').remove(b'-').remove(b'.').remove(b'_');

/// What a signature can cover of a request.
#[derive(Debug, Clone, Copy)]
pub struct RequestParts<'a> {
    pub method: &'a Method,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// In lower case, without the port of the scheme.
    pub authority: &'a str,
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
}

/// One line for each component, and the line of the parameters.
pub(super) fn base(parts: &RequestParts<'_>, input: &InnerList) -> Result<String, Refusal> {
    let mut out = String::new();
    let mut seen: Vec<String> = Vec::with_capacity(input.items.len());
    for item in &input.items {
        let identifier = item.serialize();
        // Section 2: each identifier occurs only once.
        if seen.contains(&identifier) {
            return Err(Refusal::Malformed);
        }
        let value = value(parts, item)?;
        out.push_str(&identifier);
        out.push_str(": ");
        out.push_str(&value);
        out.push('\n');
        seen.push(identifier);
    }
    out.push_str("\"@signature-params\": ");
    out.push_str(&parameters(input).ok_or(Refusal::Malformed)?);
    Ok(out)
}

/// The list as RFC 8941 writes it, whatever the spaces in the header.
fn parameters(input: &InnerList) -> Option<String> {
    let mut list = ListSerializer::new();
    {
        let mut inner = list.inner_list();
        inner.items(&input.items);
        let _ = inner.finish().parameters(&input.params);
    }
    list.finish()
}

fn value(parts: &RequestParts<'_>, item: &Item) -> Result<String, Refusal> {
    let name = item.bare_item.as_string().ok_or(Refusal::Malformed)?.as_str();
    if name.starts_with('@') {
        return derived(parts, name, item);
    }
    // Names of fields are in lower case (section 2.1).
    let known = HeaderName::from_bytes(name.as_bytes()).ok().filter(|known| known.as_str() == name);
    field(parts.headers, &known.ok_or(Refusal::Component)?, item)
}

/// Section 2.2.
fn derived(parts: &RequestParts<'_>, name: &str, item: &Item) -> Result<String, Refusal> {
    if name == "@query-param" {
        return query_parameter(parts.query.unwrap_or_default(), item);
    }
    // None of the others has a parameter in a request.
    if !item.params.is_empty() {
        return Err(Refusal::Component);
    }
    let path = if parts.path.is_empty() { "/" } else { parts.path };
    let query = |before: &str| parts.query.map_or_else(|| before.to_owned(), |query| format!("{before}?{query}"));
    Ok(match name {
        "@method" => parts.method.as_str().to_owned(),
        "@target-uri" => query(&format!("{}://{}{path}", parts.scheme, parts.authority)),
        "@authority" => parts.authority.to_owned(),
        "@scheme" => parts.scheme.to_owned(),
        "@request-target" => query(path),
        "@path" => path.to_owned(),
        // Section 2.2.7: without a query, the question mark alone.
        "@query" => format!("?{}", parts.query.unwrap_or_default()),
        _ => return Err(Refusal::Component),
    })
}

/// Section 2.2.8. A parameter that stands twice must not be covered by its name.
fn query_parameter(query: &str, item: &Item) -> Result<String, Refusal> {
    let wanted = match (item.params.len(), item.params.get("name")) {
        (1, Some(BareItem::String(name))) => decoded(name.as_str()).ok_or(Refusal::Component)?,
        _ => return Err(Refusal::Component),
    };
    let mut found = query.split('&').filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name).as_ref() == Some(&wanted)).then_some(value)
    });
    match (found.next(), found.next()) {
        (Some(value), None) => {
            let value = decoded(value).ok_or(Refusal::Component)?;
            Ok(utf8_percent_encode(&value, QUERY).to_string())
        }
        _ => Err(Refusal::Component),
    }
}

fn decoded(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    percent_decode(text.as_bytes()).decode_utf8().ok().map(|text| text.into_owned())
}

/// Section 2.1: all lines of the field, each without space around it, with a comma and a space between.
fn field(headers: &HeaderMap, name: &HeaderName, item: &Item) -> Result<String, Refusal> {
    let mut lines = Vec::new();
    for line in headers.get_all(name) {
        let text = std::str::from_utf8(line.as_bytes()).map_err(|_| Refusal::Component)?;
        lines.push(text.trim_matches([' ', '\t']));
    }
    if lines.is_empty() {
        return Err(Refusal::Component);
    }
    let mut params = item.params.iter();
    match (params.next(), params.next()) {
        (None, _) => Ok(lines.join(", ")),
        (Some((parameter, BareItem::Boolean(true))), None) if parameter.as_str() == "bs" => {
            // Section 2.1.3: each line as a byte sequence.
            Ok(lines.iter().map(|line| format!(":{}:", STANDARD.encode(line))).collect::<Vec<_>>().join(", "))
        }
        (Some((parameter, BareItem::String(key))), None) if parameter.as_str() == "key" => {
            // Section 2.1.2: one member of a dictionary.
            let whole = lines.join(", ");
            let dictionary = Dictionary::parse(Parser::new(&whole)).map_err(|_| Refusal::Component)?;
            match dictionary.get(key.as_str()) {
                Some(ListEntry::Item(item)) => Ok(item.serialize()),
                Some(ListEntry::InnerList(list)) => parameters(list).ok_or(Refusal::Component),
                None => Err(Refusal::Component),
            }
        }
        // `sf` needs to know the type of the field, `tr` and `req` have no meaning in a request's header.
        _ => Err(Refusal::Component),
    }
}
