//! Setting, adding and removing header fields: what `request_headers` and `response_headers` have in common.
//!
//! Pingora keeps the spelling of each name beside the map and copies a name that is not one of the standard ones on every
//! insert; nothing outside it can avoid that copy. Handing the spelling over as shared bytes avoids a second one.

use super::Problem;
use crate::request::RequestCtx;
use crate::template::{Template, TemplateError};
use crate::value::{Located, TextOrSecret};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use std::collections::BTreeMap;
use std::path::Path;

/// The most fields that one filter edits.
const MAX_EDITS: usize = 64;

/// The three tables as written. `remove` is done first, then `set`, then `add`.
pub(super) struct EditsConfig {
    pub set: BTreeMap<String, Located<TextOrSecret>>,
    pub add: BTreeMap<String, Located<TextOrSecret>>,
    pub remove: Vec<Located<String>>,
}

/// The compiled tables.
pub(super) struct Edits {
    remove: Box<[HeaderName]>,
    set: Box<[Field]>,
    add: Box<[Field]>,
}

struct Field {
    name: HeaderName,
    /// The name as the operator wrote it; HTTP/1 upstreams and clients see this spelling.
    spelling: Bytes,
    value: Template,
}

/// The head of a request or of a response.
pub(super) trait Head {
    fn insert(&mut self, spelling: Bytes, value: HeaderValue);
    fn append(&mut self, spelling: Bytes, value: HeaderValue);
    fn remove(&mut self, name: &HeaderName);
}

macro_rules! head {
    ($head:ty) => {
        impl Head for $head {
            // Fails for an invalid name, which `build` has excluded, or when the map is full (32,768 fields).
            fn insert(&mut self, spelling: Bytes, value: HeaderValue) {
                let _ = self.insert_header(spelling, value);
            }
            fn append(&mut self, spelling: Bytes, value: HeaderValue) {
                let _ = self.append_header(spelling, value);
            }
            fn remove(&mut self, name: &HeaderName) {
                self.remove_header(name);
            }
        }
    };
}

head!(RequestHeader);
head!(ResponseHeader);

impl EditsConfig {
    /// `directory` is where relative paths of secrets start.
    pub fn build(self, directory: &Path) -> Result<Edits, Problem> {
        let count = self.set.len().saturating_add(self.add.len()).saturating_add(self.remove.len());
        if count == 0 {
            return Err(Problem::new("this filter changes nothing").help("give it `set`, `add` or `remove`, or take it out"));
        }
        if count > MAX_EDITS {
            return Err(Problem::new(format!("this filter edits {count} fields, and the most is {MAX_EDITS}")));
        }
        let mut remove: Vec<HeaderName> = Vec::new();
        for text in &self.remove {
            let name = parse_name(text, text)?;
            if remove.contains(&name) {
                return Err(Problem::new(format!("`{}` stands twice in `remove`", **text)).at(text));
            }
            remove.push(name);
        }
        let set = fields(&self.set, "set", directory)?;
        if let Some((field, text)) = set.iter().zip(self.set.values()).find(|(field, _)| remove.contains(&field.name)) {
            let problem = Problem::new(format!("`{}` is both removed and set", field.name)).at(text);
            return Err(problem.help("`set` alone replaces what was there"));
        }
        Ok(Edits { remove: remove.into(), set: set.into(), add: fields(&self.add, "add", directory)?.into() })
    }
}

impl Edits {
    /// Whether a value that is written is from the client's certificate.
    pub fn name_certificate(&self) -> bool {
        self.set.iter().chain(&self.add).any(|field| field.value.names_certificate())
    }

    pub fn names_consumer(&self) -> bool {
        self.set.iter().chain(&self.add).any(|field| field.value.names_consumer())
    }

    /// The path params that are written.
    pub fn path_params(&self) -> Vec<&str> {
        self.set.iter().chain(&self.add).flat_map(|field| field.value.path_params()).collect()
    }

    pub fn apply(&self, head: &mut impl Head, session: &Session, ctx: &RequestCtx) {
        let path = session.req_header().uri.path();
        for name in &self.remove {
            head.remove(name);
        }
        for field in &self.set {
            match field.value.render(ctx, path) {
                Some(value) => head.insert(field.spelling.clone(), value),
                // The gateway owns the name, so what somebody else wrote there must not pass for its word.
                None => head.remove(&field.name),
            }
        }
        for field in &self.add {
            if let Some(value) = field.value.render(ctx, path) {
                head.append(field.spelling.clone(), value);
            }
        }
    }
}

fn fields(table: &BTreeMap<String, Located<TextOrSecret>>, what: &str, directory: &Path) -> Result<Vec<Field>, Problem> {
    let mut fields: Vec<Field> = Vec::new();
    for (text, value) in table {
        let name = parse_name(text, value)?;
        if fields.iter().any(|known| known.name == name) {
            return Err(Problem::new(format!("`{name}` stands twice in `{what}`, in two spellings")).at(value));
        }
        let compiled = match &value.value {
            TextOrSecret::Text(text) => Template::compile(text).map_err(|error| Problem::from(error).at(value))?,
            TextOrSecret::Source(source) => {
                let secret = source.resolve(directory).map_err(|why| Problem::new(why).at(value))?;
                Template::secret(&secret).ok_or_else(|| {
                    Problem::new("the secret cannot stand in a header")
                        .at(value)
                        .help("it has a line break or a control byte in it")
                })?
            }
        };
        fields.push(Field { name, spelling: Bytes::copy_from_slice(text.as_bytes()), value: compiled });
    }
    Ok(fields)
}

impl From<TemplateError> for Problem {
    fn from(error: TemplateError) -> Self {
        Problem::new(error.message).help(error.help)
    }
}

/// The name, if filters may edit it. `place` is what a problem points at.
pub(super) fn parse_name<T>(text: &str, place: &Located<T>) -> Result<HeaderName, Problem> {
    let name =
        HeaderName::from_bytes(text.as_bytes()).map_err(|_| Problem::new(format!("`{text}` is not a header name")).at(place))?;
    match reserved(&name) {
        None => Ok(name),
        Some(why) => Err(Problem::new(format!("`{name}` cannot be changed by a filter")).at(place).help(why)),
    }
}

/// Why no filter may touch a field; none for all others.
fn reserved(name: &HeaderName) -> Option<&'static str> {
    Some(match *name {
        header::CONTENT_LENGTH | header::TRANSFER_ENCODING => {
            "it says where the message ends (RFC 9112 §6): a wrong one splits the connection into other messages"
        }
        header::CONNECTION | header::TE | header::TRAILER | header::UPGRADE => HOP_BY_HOP,
        header::PROXY_AUTHENTICATE | header::PROXY_AUTHORIZATION => HOP_BY_HOP,
        header::HOST => "routing has been decided by it; the upstream says which host its endpoints see",
        header::VIA | header::FORWARDED => WRITTEN,
        _ => match name.as_str() {
            "keep-alive" | "proxy-connection" => HOP_BY_HOP,
            "x-request-id" => WRITTEN,
            // The one of the family that a filter knows best: what it took off the path.
            "x-forwarded-prefix" => return None,
            other if other.starts_with("x-forwarded-") => WRITTEN,
            _ => return None,
        },
    })
}

const HOP_BY_HOP: &str = "it is about one connection and never forwarded (RFC 9110 §7.6.1)";
const WRITTEN: &str = "the gateway writes it itself, so that what it says can be trusted";
