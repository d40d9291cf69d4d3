//! "Did you mean": the nearest of the names that would have been right.

pub(super) use crate::diagnostic::nearest;
use crate::diagnostic::{Diagnostic, Diagnostics, ERRORS_MAX, Span};

/// The most names that are listed when none is near.
const LIST_MAX: usize = 24;

/// Gives a finding the nearest name as its label, or the list of names as its help.
pub(super) fn suggest<'a>(found: &mut Diagnostic, wrong: &str, what: &str, known: impl Iterator<Item = &'a str> + Clone) {
    if let Some(name) = nearest(wrong, known.clone()) {
        found.label(format!("did you mean `{name}`?"));
        return;
    }
    let mut names: Vec<_> = known.clone().take(LIST_MAX).map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        found.help(format!("there are no {what}"));
        return;
    }
    if known.count() > LIST_MAX {
        names.push("...".to_owned());
    }
    found.help(format!("known {what}: {}", names.join(", ")));
}

/// Reports a name that refers to nothing.
pub(super) fn dangling<'a>(
    d: &mut Diagnostics,
    span: Option<Span>,
    kind: &str,
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) {
    // Comparing every wrong name with every right one is quadratic: not for findings that are only counted.
    let kept = d.list.len() < ERRORS_MAX;
    let found = d.error(span, format!("there is no {kind} `{name}`"));
    if kept {
        suggest(found, name, &format!("{kind}s"), known);
    }
}

/// The names between backquotes in serde's "expected one of `a`, `b`".
pub(super) fn quoted(list: &str) -> impl Iterator<Item = &str> + Clone {
    list.split('`').skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_meant() {
        let known = ["upstream", "filters", "match", "timeouts", "max_body"];
        let nearest = |wrong| nearest(wrong, known.into_iter());
        assert_eq!(nearest("uptream"), Some("upstream"));
        assert_eq!(nearest("Upstream"), Some("upstream"));
        assert_eq!(nearest("macth"), Some("match"));
        assert_eq!(nearest("filter"), Some("filters"));
        assert_eq!(nearest("cache"), None);
        assert_eq!(nearest(""), None);
    }

    #[test]
    fn names_are_read_from_serde_messages() {
        let names: Vec<_> = quoted("one of `a`, `b_c`, `d`").collect();
        assert_eq!(names, ["a", "b_c", "d"]);
        assert_eq!(quoted("`a` or `b`").count(), 2);
        assert_eq!(quoted("there are no fields").count(), 0);
    }
}
