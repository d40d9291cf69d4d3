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
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::SystemTime;

/// The most elements of a list that a condition sees. A longer one cannot be evaluated, so that it is not permitted.
pub const LIST_MAX: usize = 1_000;
/// How deep a claim may nest.
const DEPTH_MAX: usize = 16;
/// The most that one evaluation reads, in bytes. What is named twice, or for each element of a list, is read as often. A condition that
/// would read more cannot be evaluated: however large a request is, its work is bounded, and so is what it can copy.
pub const READ_MAX: usize = 512 << 10;
/// What a value counts besides its bytes, for the work and the memory that it is.
const VALUE_COST: usize = 64;

/// What one evaluation has read. Values of CEL must be fit for several threads, hence the atomic.
#[derive(Default)]
pub(super) struct Meter(AtomicUsize);

impl Meter {
    /// Counts a value of so many bytes.
    fn read(&self, bytes: usize) -> Result<(), ExecutionError> {
        let read = self.0.load(Relaxed).saturating_add(bytes).saturating_add(VALUE_COST);
        self.0.store(read, Relaxed);
        if read > READ_MAX { Err(too_much("fact")) } else { Ok(()) }
    }

    /// Whether something was left out of the evaluation, so that its outcome says nothing.
    pub fn is_over(&self) -> bool {
        self.0.load(Relaxed) > READ_MAX
    }
}

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
}

/// The same while one evaluation reads it.
pub(super) struct Reading<'a> {
    pub facts: &'a Facts<'a>,
    pub meter: &'a Meter,
}

impl<'a> Reading<'a> {
    fn find(&self, name: &str) -> Option<CowVal<'a, 'a>> {
        let part = name.split_once('.').map(|(_, part)| part);
        match (name.split('.').next()?, part) {
            ("request", Some(part)) => self.request(part),
            ("identity", Some(part)) => {
                let identity = self.facts.identity?;
                match part {
                    "name" => self.text(&identity.name),
                    "credential" => self.text(&identity.credential),
                    "method" => self.text(identity.method),
                    "consumer" => self.text(identity.consumer.as_ref().map_or("", |consumer| &consumer.name)),
                    "tier" => self.text(identity.tier.as_deref().unwrap_or_default()),
                    "roles" => self.texts(identity.roles.iter().map(|role| &**role)),
                    "scopes" => self.texts(identity.scopes.iter().map(|scope| &**scope)),
                    _ => None,
                }
            }
            ("claims", None) => self.table(Of::Claims(self.facts.identity?.claims.as_deref()?)),
            ("certificate", Some(part)) => {
                let certificate = self.facts.ctx?.tls.as_ref()?.client.as_ref()?;
                match part {
                    "subject" => self.text(&certificate.subject),
                    "sha256" => self.text(&certificate.sha256),
                    "names" => self.texts(certificate.names.iter().map(|name| &**name)),
                    _ => None,
                }
            }
            ("time", Some(part)) => {
                let unix = self.facts.now.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
                // 1970-01-01 was a Thursday.
                let number = match part {
                    "unix" => unix,
                    "hour" => unix / 3600 % 24,
                    "minute" => unix / 60 % 60,
                    "weekday" => (unix / 86_400 + 3) % 7 + 1,
                    _ => return None,
                };
                self.meter.read(0).ok()?;
                Some(CowVal::owned(CelInt::from(i64::try_from(number).ok()?)))
            }
            _ => None,
        }
    }

    fn request(&self, part: &str) -> Option<CowVal<'a, 'a>> {
        let (head, ctx) = (self.facts.head?, self.facts.ctx?);
        match part {
            "method" => self.text(head.method.as_str()),
            "path" => self.text(head.uri.path()),
            "query" => self.text(head.uri.query().unwrap_or_default()),
            "host" => self.text(&ctx.host),
            "scheme" => self.text(ctx.scheme.as_str()),
            "address" => {
                self.meter.read(0).ok()?;
                Some(CowVal::owned(CelString::from(ctx.client.to_string())))
            }
            "headers" => self.table(Of::Headers(&head.headers)),
            "params" => self.table(Of::Params(ctx, head.uri.path())),
            _ => None,
        }
    }

    fn text(&self, text: &'a str) -> Option<CowVal<'a, 'a>> {
        self.meter.read(text.len()).ok()?;
        Some(CowVal::owned(CelString::from(text)))
    }

    fn texts(&self, list: impl ExactSizeIterator<Item = &'a str>) -> Option<CowVal<'a, 'a>> {
        if list.len() > LIST_MAX {
            return None;
        }
        let values = list.map(|text| self.meter.read(text.len()).ok().map(|()| boxed(CelString::from(text))));
        Some(CowVal::owned(CelList::from(values.collect::<Option<Vec<_>>>()?)))
    }

    fn table(&self, of: Of<'a>) -> Option<CowVal<'a, 'a>> {
        self.meter.read(0).ok()?;
        Some(CowVal::owned(Table { of, meter: self.meter }))
    }
}

impl VariableResolver for Reading<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        self.find(name)
    }
}

fn boxed<'v, T: Val + 'v>(value: T) -> Box<dyn Val + 'v> {
    Box::new(value)
}

/// Something whose parts have names.
#[derive(Clone, Copy)]
struct Table<'a> {
    of: Of<'a>,
    meter: &'a Meter,
}

#[derive(Clone, Copy)]
enum Of<'a> {
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
        match self.of {
            Of::Headers(headers) => {
                let mut values = headers.get_all(name).iter();
                let Some(first) = values.next() else { return self.nothing() };
                let text = |value: &'a http::HeaderValue| {
                    self.meter.read(value.len())?;
                    std::str::from_utf8(value.as_bytes()).map_err(|_| too_much("header"))
                };
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
            Of::Claims(claims) => match claims.get(name) {
                Some(claim) => convert(claim, self.meter, 0).map(Some),
                None => self.nothing(),
            },
            Of::Params(ctx, path) => match ctx.params.get(path, name) {
                Some(value) => {
                    self.meter.read(value.len())?;
                    Ok(Some(boxed(CelString::from(value))))
                }
                None => self.nothing(),
            },
        }
    }

    /// It was looked for.
    fn nothing(&self) -> Result<Option<Box<dyn Val + 'a>>, ExecutionError> {
        self.meter.read(0).map(|()| None)
    }

    fn len(&self) -> usize {
        match self.of {
            Of::Headers(headers) => headers.keys_len(),
            Of::Claims(claims) => claims.len(),
            Of::Params(ctx, path) => ctx.params.iter(path).count(),
        }
    }
}

fn too_much(what: &str) -> ExecutionError {
    ExecutionError::function_error(what, "it cannot be evaluated")
}

/// A claim as a value of CEL. Objects are converted when their members are asked for.
fn convert<'a>(claim: &'a Value, meter: &'a Meter, depth: usize) -> Result<Box<dyn Val + 'a>, ExecutionError> {
    meter.read(claim.as_str().map_or(0, str::len))?;
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
            let elements = list.iter().map(|element| convert(element, meter, depth.saturating_add(1)));
            boxed(CelList::from(elements.collect::<Result<Vec<_>, _>>()?))
        }
        Value::Object(members) => boxed(Table { of: Of::Claims(members), meter }),
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
