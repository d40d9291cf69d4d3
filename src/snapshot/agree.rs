//! What only shows where the filters of a route meet each other and its path.

use crate::diagnostic::{Diagnostics, FileId, Span, nearest};
use crate::filter::{Filter, FilterSpec};
use crate::limit::LIMITS_MAX;
use crate::route::MatchConfig;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What only shows in the order of a route's filters: that nobody asks for an identity before one can be there, nor for a
/// role that nobody can have. With a filter missing that could not be built, nothing is certain.
pub(super) fn order(filters: &[(FilterSpec, Arc<dyn Filter>)], complete: bool, d: &mut Diagnostics) {
    let mut identity = !complete;
    for (index, (spec, filter)) in filters.iter().enumerate() {
        if filter.needs_identity() && !identity {
            let message = format!("`{}` needs to know who calls, and no filter before it tells", spec.name);
            once(d, spec.span.clone(), message, Some("put a filter such as `api_key` before it".to_owned()));
        }
        if complete && identity && filter.precedes_identity() {
            let message = format!("`{}` stands after a filter that asks for credentials", spec.name);
            let help = "put it first: browsers send no credentials with the requests that it answers";
            once(d, spec.span.clone(), message, Some(help.to_owned()));
        }
        let granted = |role: &str| filters.iter().take(index).any(|(_, before)| before.grants_role(role));
        for role in filter.unknown_roles().iter().filter(|role| complete && !granted(role)) {
            let span = role.span.clone().unwrap_or_else(|| spec.span.clone());
            let help = "give it to one of the [consumers], or put a filter before that grants roles";
            once(
                d,
                span,
                format!("no consumer has the role `{}`, so nobody would be permitted", role.value),
                Some(help.to_owned()),
            );
        }
        identity |= filter.establishes_identity();
    }
}

/// Responses have room for so many limits; of what stands behind them they tell nothing.
pub(super) fn untold(filters: &[(FilterSpec, Arc<dyn Filter>)], d: &mut Diagnostics) {
    let mut told = 0_usize;
    for (spec, filter) in filters {
        let more = filter.limiter().map_or(0, |limiter| limiter.told());
        let fits = told <= LIMITS_MAX;
        told = told.saturating_add(more);
        let message = format!("responses tell of {LIMITS_MAX} limits at most, and here they are {told}");
        if fits && told > LIMITS_MAX && !d.is_told(&spec.span, &message) {
            let diagnostic = d.warning(spec.span.clone(), message);
            diagnostic.help("all of them hold; `headers = \"off\"` for those that clients need not know makes room");
        }
    }
}

/// A chain is built once for each route that uses it; its mistakes are told once.
pub(super) fn once(d: &mut Diagnostics, span: Span, message: String, help: Option<String>) {
    if !d.is_told(&span, &message) {
        let diagnostic = d.error(span, message);
        if let Some(help) = help {
            diagnostic.help(help);
        }
    }
}

/// Places for facts of the request, in the filters of all routes: one that no route fills is a mistake.
#[derive(Default)]
pub(super) struct Facts {
    /// By file, where the filter's name begins in it, and the fact. A filter of a chain is asked for once by each route.
    wanted: BTreeMap<(FileId, usize, Fact), Wanted>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Fact {
    /// By the name of the param, and whether a condition asks for it.
    PathParam(String, bool),
    Consumer,
}

struct Wanted {
    span: Span,
    found: bool,
    /// The params that there are instead.
    known: Vec<Box<str>>,
}

impl Facts {
    /// The filters of one route and its matcher, if all of that could be read; `complete` if all filters could be built.
    pub fn note(&mut self, filters: &[(FilterSpec, Arc<dyn Filter>)], matcher: Option<&MatchConfig>, complete: bool) {
        let identity = !complete || filters.iter().any(|(_, filter)| filter.establishes_identity());
        let mut compiled = None;
        for (spec, filter) in filters {
            let written = filter.path_params().into_iter().map(|param| (param, false));
            for (param, condition) in written.chain(filter.condition_params().into_iter().map(|param| (param, true))) {
                let matcher = compiled.get_or_insert_with(|| matcher?.compile(&mut Diagnostics::default()));
                let wanted = self.wanted(spec, Fact::PathParam(param.to_owned(), condition));
                match matcher {
                    Some(matcher) => {
                        let names = matcher.path_params();
                        wanted.found |= names.iter().any(|known| **known == *param);
                        if wanted.known.is_empty() {
                            wanted.known = names.to_vec();
                        }
                    }
                    None => wanted.found = true,
                }
            }
            if filter.names_consumer() {
                self.wanted(spec, Fact::Consumer).found |= identity;
            }
        }
    }

    fn wanted(&mut self, spec: &FilterSpec, fact: Fact) -> &mut Wanted {
        let key = (spec.span.file, spec.span.range.start, fact);
        self.wanted.entry(key).or_insert_with(|| Wanted { span: spec.span.clone(), found: false, known: Vec::new() })
    }

    pub fn report(self, d: &mut Diagnostics) {
        for ((.., fact), wanted) in self.wanted.into_iter().filter(|(_, wanted)| !wanted.found) {
            match fact {
                Fact::PathParam(param, condition) => report_param(&param, condition, wanted, d),
                Fact::Consumer => {
                    let message = "`${consumer}` is never there: no route with this filter asks who calls";
                    d.warning(wanted.span, message).help("put a filter such as `api_key` into the route, or take the field out");
                }
            }
        }
    }
}

fn report_param(param: &str, condition: bool, wanted: Wanted, d: &mut Diagnostics) {
    let spelled = |name: &str| if condition { format!("`request.params.{name}`") } else { format!("`${{path.{name}}}`") };
    let known = wanted.known.iter().map(|name| &**name);
    let help = match (nearest(param, known.clone()), known.len()) {
        (Some(near), _) => format!("did you mean {}?", spelled(near)),
        (None, 0) => format!("the path has none; write one as `{{{param}}}`"),
        (None, _) => format!("it has {}", known.map(spelled).collect::<Vec<_>>().join(", ")),
    };
    let message = format!("{} is never there: no route with this filter has such a param in its path", spelled(param));
    // A condition can hold by its other parts.
    let found = if condition { d.warning(wanted.span, message) } else { d.error(wanted.span, message) };
    found.help(help);
}
