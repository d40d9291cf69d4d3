//! Conditions on a request, in the Common Expression Language (<https://cel.dev>): `claims.org == 'acme' &&
//! request.address.inside('10.0.0.0/8')`.
//!
//! A condition is parsed and checked when the configuration is compiled: only names and functions that exist here, and only what
//! ends in bounded time. CEL has no loops but those over lists, which may not be nested here; the number of steps for each element
//! is bounded, and so is what one evaluation reads ([`facts::READ_MAX`]), elements included. All that it does is linear in what it
//! has read, but for texts that grow as they are joined: that may be done a few times for an element. So the work and the
//! memory of a condition have a bound whatever a client sends; `cargo test --test alloc condition` shows it. Facts are handed to it when
//! it asks for them, so that what it does not name is never converted. What cannot be evaluated, such as a claim that is not
//! there, is not permitted; `has(claims.org)` asks first.

mod facts;

pub use facts::Facts;

use self::facts::{Meter, Reading};
use crate::diagnostic::nearest;
use crate::value::Cidr;
use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, operators as op};
use cel::common::types::{CelBool, CelString, STRING_TYPE};
use cel::common::value::CowVal;
use cel::{Context, Env, ExecutionError, Value};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

/// The longest text, in bytes.
pub const TEXT_MAX: usize = 4 << 10;
/// The most parts of an expression, and how deep they may nest.
const NODES_MAX: usize = 512;
const DEPTH_MAX: usize = 64;
/// The most parts of an expression over a list: they count for each element, of which there are at most [`facts::LIST_MAX`].
const LOOP_NODES_MAX: usize = 64;
/// How often an expression over a list may join two values of which neither is written in the condition: each time copies both.
const JOINS_MAX: usize = 4;

/// What a condition may name, and the parts of it; none: its parts are up to the token or the request.
const NAMES: [(&str, &[&str]); 5] = [
    ("request", &["method", "path", "query", "host", "scheme", "address", "headers", "params"]),
    ("identity", &["name", "consumer", "method", "credential", "tier", "roles", "scopes"]),
    ("claims", &[]),
    ("certificate", &["subject", "sha256", "names"]),
    ("time", &["unix", "hour", "minute", "weekday"]),
];

const FUNCTIONS: [&str; 22] = [
    op::CONDITIONAL,
    op::LOGICAL_AND,
    op::LOGICAL_OR,
    op::LOGICAL_NOT,
    op::SUBSTRACT,
    op::ADD,
    op::MULTIPLY,
    op::DIVIDE,
    op::MODULO,
    op::EQUALS,
    op::NOT_EQUALS,
    op::GREATER_EQUALS,
    op::LESS_EQUALS,
    op::GREATER,
    op::LESS,
    op::NEGATE,
    op::INDEX,
    op::NOT_STRICTLY_FALSE,
    op::IN,
    "size",
    "contains",
    INSIDE,
];
const MORE_FUNCTIONS: [&str; 6] = ["startsWith", "endsWith", "string", "int", "double", "uint"];
const INSIDE: &str = "inside";

/// The language, with what this gateway adds.
static LANGUAGE: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    // It has no such function of its own.
    if env.add_member_overload(INSIDE, "string_inside_string", STRING_TYPE, vec![STRING_TYPE], inside).is_err() {
        log::error!("conditions have no function `{INSIDE}`");
    }
    Arc::new(env)
});

/// A condition, checked and ready.
pub struct Condition {
    expression: IdedExpr,
    /// Params of the path that it reads as `request.params.NAME`, and does not ask for by `has` or `in` first.
    path_params: Box<[String]>,
}

impl std::fmt::Debug for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Condition")
    }
}

impl Condition {
    /// The error is a sentence, and perhaps what to do about it.
    pub fn parse(text: &str) -> Result<Self, (String, Option<String>)> {
        let plain = |why: String| (why, None);
        if text.len() > TEXT_MAX {
            return Err(plain(format!("the condition has {} bytes, and the most is {TEXT_MAX}", text.len())));
        }
        // Control characters have no place in a condition, and are no help in a message.
        if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
            return Err(plain("the condition has control characters".to_owned()));
        }
        let expression = cel::parser::Parser::new().max_recursion_depth(48).parse(text).map_err(|errors| {
            let first = errors.errors.first().map(|error| error.msg.trim().to_owned()).unwrap_or_default();
            plain(format!("this is not a condition: {first}"))
        })?;
        let mut check = Check::default();
        check.part(&expression, 0)?;
        let Check { mut params, asked, .. } = check;
        params.retain(|param| !asked.contains(param));
        let condition = Condition { expression, path_params: params.into() };
        // Many parts are of a known type already.
        match condition.value(&Facts::none()) {
            Ok(_) | Err(Failed::Error(_) | Failed::TooMuch) => Ok(condition),
            Err(Failed::NoTruth(kind)) => Err((
                format!("the condition gives {kind}, and must give true or false"),
                Some("compare it, such as `request.method == 'GET'`".to_owned()),
            )),
        }
    }

    /// The params of the path that it reads without having asked whether they are there.
    pub fn path_params(&self) -> impl Iterator<Item = &str> {
        self.path_params.iter().map(String::as_str)
    }

    /// Whether it holds. What cannot be evaluated does not.
    pub fn holds(&self, facts: &Facts<'_>) -> bool {
        match self.value(facts) {
            Ok(truth) => truth,
            Err(why) => {
                // The error may quote a claim, so that it is not shown.
                let why = match why {
                    Failed::Error(ExecutionError::NoSuchKey(_)) => "something that it names is not there",
                    Failed::Error(ExecutionError::NoSuchOverload(_)) => "something that it names is of another type",
                    Failed::Error(_) => "it cannot be evaluated",
                    Failed::TooMuch => "it would have to read too much of the request",
                    Failed::NoTruth(_) => "it gives neither true nor false",
                };
                log::debug!("a condition does not hold: {why}");
                false
            }
        }
    }

    fn value(&self, facts: &Facts<'_>) -> Result<bool, Failed> {
        let meter = Meter::default();
        let reading = Reading { facts, meter: &meter };
        let mut context = Context::with_env(Arc::clone(&LANGUAGE));
        context.set_variable_resolver(&reading);
        let value = Value::resolve_val(&self.expression, &context);
        // Whatever came of it: `a || b` holds by `b` alone where `a` was an error.
        if meter.is_over() {
            return Err(Failed::TooMuch);
        }
        let value = value.map_err(Failed::Error)?;
        match value.downcast_ref::<CelBool>() {
            Some(truth) => Ok(*truth.inner()),
            None => Err(Failed::NoTruth(value.get_type().name().to_owned())),
        }
    }
}

enum Failed {
    Error(ExecutionError),
    /// It has read as much as it may.
    TooMuch,
    /// It gives a value of this type.
    NoTruth(String),
}

/// What is being looked at.
#[derive(Default)]
struct Check {
    nodes: usize,
    /// Names that an expression over a list has made, innermost last.
    bound: Vec<String>,
    within_list: bool,
    joins: usize,
    /// Params of the path that are read, and those whose presence is.
    params: Vec<String>,
    asked: Vec<String>,
}

type Wrong = (String, Option<String>);

impl Check {
    fn part(&mut self, part: &IdedExpr, depth: usize) -> Result<(), Wrong> {
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > NODES_MAX || depth > DEPTH_MAX {
            return Err((format!("the condition is too large: at most {NODES_MAX} parts, {DEPTH_MAX} deep"), None));
        }
        let next = depth.saturating_add(1);
        match &part.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) if self.bound.contains(name) || name == "claims" => Ok(()),
            Expr::Ident(name) => Err(unknown(name)),
            Expr::Select(select) => match &select.operand.expr {
                Expr::Ident(root) if !self.bound.contains(root) => known(root, &select.field),
                _ => {
                    if self.is_params(&select.operand) {
                        let list = if select.test { &mut self.asked } else { &mut self.params };
                        list.push(select.field.clone());
                    }
                    self.part(&select.operand, next)
                }
            },
            Expr::Call(call) => {
                let name = call.func_name.as_str();
                if let (op::IN, [key, table]) = (name, call.args.as_slice())
                    && let Expr::Literal(LiteralValue::String(param)) = &key.expr
                    && self.is_params(table)
                {
                    self.asked.push(param.inner().to_owned());
                }
                if !FUNCTIONS.contains(&name) && !MORE_FUNCTIONS.contains(&name) {
                    return Err(no_function(name));
                }
                if name == op::ADD && self.within_list && !call.args.iter().any(is_written) {
                    self.joins = self.joins.saturating_add(1);
                    if self.joins > JOINS_MAX {
                        let why = format!("an expression over a list joins values by `+` more than {JOINS_MAX} times");
                        return Err((why, Some("texts that are written in the condition do not count".to_owned())));
                    }
                }
                if name == INSIDE {
                    network(call.args.first().filter(|_| call.args.len() == 1))?;
                }
                call.target.iter().try_for_each(|target| self.part(target, next))?;
                call.args.iter().try_for_each(|argument| self.part(argument, next))
            }
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.part(element, next)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.part(&entry.key, next)?;
                    self.part(&entry.value, next)
                }
                EntryExpr::StructField(_) => Err(("a condition makes no messages".to_owned(), None)),
            }),
            Expr::Comprehension(list) => {
                if self.within_list {
                    return Err(("an expression over a list stands within another".to_owned(), None));
                }
                self.part(&list.iter_range, next)?;
                let before = self.nodes;
                self.within_list = true;
                self.joins = 0;
                self.bound.extend([list.iter_var.clone(), list.accu_var.clone()]);
                self.bound.extend(list.iter_var2.clone());
                for part in [&list.accu_init, &list.loop_cond, &list.loop_step, &list.result] {
                    self.part(part, next)?;
                }
                self.bound.clear();
                self.within_list = false;
                match self.nodes.saturating_sub(before) {
                    0..=LOOP_NODES_MAX => Ok(()),
                    parts => {
                        Err((format!("an expression over a list has {parts} parts, and the most is {LOOP_NODES_MAX}"), None))
                    }
                }
            }
            Expr::Struct(_) | Expr::Unspecified => Err(("a condition makes no messages".to_owned(), None)),
        }
    }

    /// Whether it is `request.params`.
    fn is_params(&self, part: &IdedExpr) -> bool {
        let Expr::Select(select) = &part.expr else { return false };
        let root = |root: &String| root == "request" && !self.bound.contains(root);
        select.field == "params" && matches!(&select.operand.expr, Expr::Ident(name) if root(name))
    }
}

/// Of a length that the condition says; `map` and `filter` add lists of one element.
fn is_written(part: &IdedExpr) -> bool {
    matches!(part.expr, Expr::Literal(_) | Expr::List(_))
}

fn known(root: &str, field: &str) -> Result<(), Wrong> {
    let Some((_, fields)) = NAMES.iter().find(|(name, _)| *name == root) else { return Err(unknown(root)) };
    if fields.is_empty() || fields.contains(&field) {
        return Ok(());
    }
    let help = match nearest(field, fields.iter().copied()) {
        Some(near) => format!("did you mean `{root}.{near}`?"),
        None => format!("known are {}", fields.iter().map(|field| format!("`{root}.{field}`")).collect::<Vec<_>>().join(", ")),
    };
    Err((format!("there is no `{root}.{field}`"), Some(help)))
}

fn unknown(name: &str) -> Wrong {
    if let Some((_, fields)) = NAMES.iter().find(|(known, _)| *known == name) {
        let example = fields.first().copied().unwrap_or_default();
        return (format!("`{name}` is no value"), Some(format!("write a part of it, such as `{name}.{example}`")));
    }
    let help = match nearest(name, NAMES.iter().map(|(name, _)| *name)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "known are `request`, `identity`, `claims`, `certificate` and `time`".to_owned(),
    };
    (format!("there is no `{name}`"), Some(help))
}

fn no_function(name: &str) -> Wrong {
    let help = match name {
        "matches" => "use `==`, `contains`, `startsWith` and `endsWith`: regular expressions would cost too much here",
        _ => {
            "known are `size`, `contains`, `startsWith`, `endsWith`, `inside`, `string`, `int`, `uint`, `double`, `has`, and for \
              lists `all`, `exists`, `exists_one`, `map` and `filter`"
        }
    };
    (format!("there is no function `{name}`"), Some(help.to_owned()))
}

/// The network of `inside` is written in the condition, so that a wrong one is told at once.
fn network(argument: Option<&IdedExpr>) -> Result<(), Wrong> {
    match argument.map(|argument| &argument.expr) {
        Some(Expr::Literal(LiteralValue::String(text))) => match text.inner().parse::<Cidr>() {
            Ok(_) => Ok(()),
            Err(why) => Err((why, None)),
        },
        _ => Err(("`inside` takes one network".to_owned(), Some("write request.address.inside('10.0.0.0/8')".to_owned()))),
    }
}

fn inside<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let text = |index: usize| arguments.get(index).and_then(|value| value.downcast_ref::<CelString<'v>>()).map(CelString::inner);
    let address = text(0).and_then(|text| text.parse::<IpAddr>().ok());
    let network = text(1).and_then(|text| text.parse::<Cidr>().ok());
    match (address, network) {
        (Some(address), Some(network)) => {
            Ok(CowVal::owned(CelBool::from(crate::value::Networks::new(&[network]).contains(address))))
        }
        _ => Err(ExecutionError::function_error(INSIDE, "not an address and a network")),
    }
}

#[cfg(test)]
mod tests;
