//! Tests of the `match` table: what it accepts, and that each report points at the text it is about.

use super::*;

const EMPTY: &str = "[m]\n";

#[derive(Deserialize)]
struct File {
    m: MatchConfig,
}

fn parse(text: &str) -> MatchConfig {
    toml::from_str::<File>(text).unwrap().m
}

/// The messages of a check, each with the text that it points at.
fn reports(text: &str) -> Vec<(String, String)> {
    let mut d = Diagnostics::default();
    let compiled = parse(text).compile(&mut d);
    assert_eq!(compiled.is_none(), d.has_errors(), "{text}");
    let place = |d: &crate::diagnostic::Diagnostic| d.primary.as_ref().map(|(span, _)| text[span.range.clone()].to_owned());
    d.list.iter().map(|d| (d.message.clone(), place(d).unwrap_or_default())).collect()
}

#[test]
fn a_host_is_a_string_or_a_list_and_keeps_its_place() {
    assert!(reports(EMPTY).is_empty());
    assert!(reports("[m]\nhost = 'a.com'\npath = '/a/{b}'\nmethods = ['GET', 'PROPFIND']").is_empty());
    assert!(reports("[m]\nhost = ['a.com', '*.b.com']\nheaders = { X-A = '1' }\nquery = { a = '*' }").is_empty());
    assert_eq!(reports("[m]\nhost = 'A.com'")[0].1, "'A.com'");
    assert_eq!(reports("[m]\nhost = ['a.com', 'b.com:80']")[0].1, "'b.com:80'");
    assert!(toml::from_str::<File>("[m]\nhost = 7").is_err());
    assert!(toml::from_str::<File>("[m]\nhosts = 'a'").is_err(), "unknown keys are errors");
}

#[test]
fn impossible_values_are_reported_all_at_once_where_they_stand() {
    let text = "[m]\nhost = ['a.com', 'a.com']\npath = 'a'\nmethods = ['get', 'GTE', 'CONNECT', 'GET', 'GET']\n\
                headers = { host = 'a', 'a b' = '1', x-a = \" 1\", x-b = '1', X-B = '2' }\nquery = { '' = '1' }";
    let places: Vec<String> = reports(text).into_iter().map(|(_, place)| place).collect();
    assert_eq!(
        places,
        ["'a.com'", "'a'", "'get'", "'GTE'", "'CONNECT'", "'GET'", "'1'", "'a'", "\" 1\"", "'1'"],
        "{:?}",
        reports(text)
    );
    let twice = reports("[m]\nheaders = { X-B = '2', x-b = '1' }");
    assert_eq!(twice, [("`x-b` stands twice in `headers`".to_owned(), "'1'".to_owned())]);
}

#[test]
fn a_typo_in_a_method_is_answered_with_the_method() {
    let mut d = Diagnostics::default();
    parse("[m]\nmethods = ['GTE', 'post']").check(&mut d);
    let helps: Vec<_> = d.list.iter().filter_map(|d| d.help.as_deref()).collect();
    assert_eq!(helps, ["did you mean \"GET\"?", "write \"POST\""]);
}

#[test]
fn empty_lists_and_long_ones_are_refused() {
    assert_eq!(reports("[m]\nhost = []").len(), 1);
    assert_eq!(reports("[m]\nmethods = []").len(), 1);
    let conditions: Vec<String> = (0..9).map(|n| format!("x-{n} = '{n}'")).collect();
    assert_eq!(reports(&format!("[m]\nheaders = {{ {} }}", conditions.join(", "))).len(), 1);
    let hosts: Vec<String> = (0..65).map(|n| format!("'{n}.com'")).collect();
    assert_eq!(reports(&format!("[m]\nhost = [{}]", hosts.join(", ")))[0].1, "'64.com'");
}
