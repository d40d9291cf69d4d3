//! What a condition can ask about a request: borrowed, and converted only when it asks.

use crate::identity::Identity;
use crate::request::RequestCtx;
use cel::ExecutionError;
use cel::common::traits::{Container, Indexer, Sizer};
use cel::common::types::{CelBool, CelDouble, CelInt, CelList, CelNull, CelString, CelUInt, MAP_TYPE, Type};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use http::HeaderMap;
use pingora::http::RequestHeader;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::SystemTime;

/// The most elements of a list that a condition sees. A longer one cannot be evaluated, so that it is not permitted.
pub const LIST_MAX: usize = 1_000;
/// How deep a claim may nest.
const DEPTH_MAX: usize = 16;

/// One request, as a condition sees it.
pub struct Facts<'a> {
    pub head: Option<&'a RequestHeader>,
    pub ctx: Option<&'a RequestCtx>,
    pub identity: Option<&'a Identity>,
    /// Wall time.
    pub now: SystemTime,
}

impl<'a> Facts<'a> {
    /// No request at all: everything that is asked for is missing.
    pub fn none() -> Self {
        Facts { head: None, ctx: None, identity: None, now: SystemTime::UNIX_EPOCH }
    }

    fn find(&'a self, name: &str) -> Option<CowVal<'a, 'a>> {
        let text = |text: &'a str| CowVal::owned(CelString::from(text));
        let part = name.split_once('.').map(|(_, part)| part);
        Some(match (name.split('.').next()?, part) {
            ("request", Some(part)) => return self.request(part),
            ("identity", Some(part)) => {
                let identity = self.identity?;
                match part {
                    "name" => text(&identity.name),
                    "credential" => text(&identity.credential),
                    "method" => text(identity.method),
                    "consumer" => text(identity.consumer.as_ref().map_or("", |consumer| &consumer.name)),
                    "tier" => text(identity.tier.as_deref().unwrap_or_default()),
                    "roles" => texts(&identity.roles)?,
                    "scopes" => texts(&identity.scopes)?,
                    _ => return None,
                }
            }
            ("claims", None) => CowVal::owned(Table::Claims(self.identity?.claims.as_deref()?)),
            ("certificate", Some(part)) => {
                let certificate = self.ctx?.tls.as_ref()?.client.as_ref()?;
                match part {
                    "subject" => text(&certificate.subject),
                    "sha256" => text(&certificate.sha256),
                    "names" => {
                        let names = certificate.names.iter().map(|name| boxed(CelString::from(&**name)));
                        CowVal::owned(CelList::from(names.collect::<Vec<_>>()))
                    }
                    _ => return None,
                }
            }
            ("time", Some(part)) => {
                let unix = self.now.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
                // 1970-01-01 was a Thursday.
                let number = match part {
                    "unix" => unix,
                    "hour" => unix / 3600 % 24,
                    "minute" => unix / 60 % 60,
                    "weekday" => (unix / 86_400 + 3) % 7 + 1,
                    _ => return None,
                };
                CowVal::owned(CelInt::from(i64::try_from(number).ok()?))
            }
            _ => return None,
        })
    }

    fn request(&'a self, part: &str) -> Option<CowVal<'a, 'a>> {
        let (head, ctx) = (self.head?, self.ctx?);
        let text = |text: &'a str| CowVal::owned(CelString::from(text));
        Some(match part {
            "method" => text(head.method.as_str()),
            "path" => text(head.uri.path()),
            "query" => text(head.uri.query().unwrap_or_default()),
            "host" => text(&ctx.host),
            "scheme" => text(ctx.scheme.as_str()),
            "address" => CowVal::owned(CelString::from(ctx.client.to_string())),
            "headers" => CowVal::owned(Table::Headers(&head.headers)),
            "params" => CowVal::owned(Table::Params(ctx, head.uri.path())),
            _ => return None,
        })
    }
}

impl VariableResolver for Facts<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        self.find(name)
    }
}

fn boxed<'v, T: Val + 'v>(value: T) -> Box<dyn Val + 'v> {
    Box::new(value)
}

fn texts<'a>(list: &'a [Arc<str>]) -> Option<CowVal<'a, 'a>> {
    (list.len() <= LIST_MAX)
        .then(|| CowVal::owned(CelList::from(list.iter().map(|text| boxed(CelString::from(&**text))).collect::<Vec<_>>())))
}

/// Something whose parts have names.
#[derive(Clone, Copy)]
enum Table<'a> {
    Headers(&'a HeaderMap),
    Claims(&'a Map<String, Value>),
    Params(&'a RequestCtx, &'a str),
}

/// Says what it is and nothing of what is in it.
impl std::fmt::Debug for Table<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Table")
    }
}

impl<'a> Table<'a> {
    fn find(&self, name: &str) -> Result<Option<Box<dyn Val + 'a>>, ExecutionError> {
        match *self {
            Table::Headers(headers) => {
                let mut values = headers.get_all(name).iter();
                let Some(first) = values.next() else { return Ok(None) };
                let text = |value: &'a http::HeaderValue| std::str::from_utf8(value.as_bytes()).map_err(|_| too_much("header"));
                let first = text(first)?;
                match values.next() {
                    None => Ok(Some(boxed(CelString::from(first)))),
                    // RFC 9110 section 5.2: several lines are one list.
                    Some(second) => {
                        let mut all = format!("{first}, {}", text(second)?);
                        for value in values {
                            all.push_str(", ");
                            all.push_str(text(value)?);
                        }
                        Ok(Some(boxed(CelString::from(all))))
                    }
                }
            }
            Table::Claims(claims) => claims.get(name).map(|claim| convert(claim, 0)).transpose(),
            Table::Params(ctx, path) => Ok(ctx.params.get(path, name).map(|value| boxed(CelString::from(value)))),
        }
    }

    fn len(&self) -> usize {
        match self {
            Table::Headers(headers) => headers.keys_len(),
            Table::Claims(claims) => claims.len(),
            Table::Params(ctx, path) => ctx.params.iter(path).count(),
        }
    }
}

fn too_much(what: &str) -> ExecutionError {
    ExecutionError::function_error(what, "it cannot be evaluated")
}

/// A claim as a value of CEL. Objects are converted when their members are asked for.
fn convert<'a>(claim: &'a Value, depth: usize) -> Result<Box<dyn Val + 'a>, ExecutionError> {
    Ok(match claim {
        Value::Null => boxed(CelNull),
        Value::Bool(truth) => boxed(CelBool::from(*truth)),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), ..) => boxed(CelInt::from(number)),
            (None, Some(number), _) => boxed(CelUInt::from(number)),
            (None, None, Some(number)) => boxed(CelDouble::from(number)),
            (None, None, None) => return Err(too_much("number")),
        },
        Value::String(text) => boxed(CelString::from(text.as_str())),
        Value::Array(list) => {
            if list.len() > LIST_MAX || depth >= DEPTH_MAX {
                return Err(too_much("list"));
            }
            let elements = list.iter().map(|element| convert(element, depth.saturating_add(1)));
            boxed(CelList::from(elements.collect::<Result<Vec<_>, _>>()?))
        }
        Value::Object(members) => boxed(Table::Claims(members)),
    })
}

fn name(key: &dyn Val) -> Result<&str, ExecutionError> {
    key.downcast_ref::<CelString<'_>>().map(CelString::inner).ok_or_else(|| too_much("key"))
}

impl Val for Table<'_> {
    fn get_type(&self) -> &Type {
        &MAP_TYPE
    }

    fn cel_type() -> &'static Type {
        &MAP_TYPE
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn into_indexer<'v>(self: Box<Self>) -> Option<Box<dyn Indexer + 'v>>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(*self)
    }
}

impl Container for Table<'_> {
    fn contains(&self, key: &dyn Val) -> Result<bool, ExecutionError> {
        Ok(self.find(name(key)?)?.is_some())
    }
}

impl Sizer for Table<'_> {
    fn size(&self) -> CelInt {
        CelInt::from(i64::try_from(self.len()).unwrap_or(i64::MAX))
    }
}

impl Indexer for Table<'_> {
    fn get<'b, 'v>(&'b self, key: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let key = name(key)?;
        self.find(key)?.map(CowVal::Owned).ok_or_else(|| ExecutionError::no_such_key(key))
    }

    fn steal<'v>(self: Box<Self>, key: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let key = name(key)?;
        self.find(key)?.ok_or_else(|| ExecutionError::no_such_key(key))
    }
}
