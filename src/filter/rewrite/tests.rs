//! Tests of `rewrite`: what it makes of paths, and that nothing gets out of the canonical form.

use super::*;
use crate::filter::testing::{build, problem, session};
use proptest::prelude::*;

/// The target that the upstream sees, or the code of the rejection.
async fn rewritten(table: &str, target: &str) -> Result<String, &'static str> {
    let filter = build::<RewriteConfig>(table).unwrap();
    let (session, mut ctx) = session(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), "/{*rest}").await;
    let mut head = session.req_header().clone();
    filter.on_upstream_request(&session, &mut head, &mut ctx).map_err(|rejection| rejection.code.code)?;
    Ok(String::from_utf8(head.raw_path().to_vec()).unwrap())
}

#[tokio::test]
async fn a_prefix_goes_only_at_the_end_of_a_segment() {
    for (target, want) in [
        ("/api/orders/7?a=1&b=%2F", "/7?a=1&b=%2F"),
        ("/api/orders", "/"),
        ("/api/orders/", "/"),
        ("/api/orders?x", "/?x"),
        ("/api/orders2/7", "/api/orders2/7"),
        ("/other", "/other"),
        ("/", "/"),
    ] {
        assert_eq!(rewritten("{ strip_prefix = '/api/orders' }", target).await.as_deref(), Ok(want), "{target}");
    }
}

#[tokio::test]
async fn strips_then_replaces_then_adds() {
    let table =
        "{ strip_prefix = '/api', replace = { pattern = '^/(\\w+)/(?P<id>[0-9]+)$', with = '/${id}/$1$$' }, add_prefix = '/v2' }";
    assert_eq!(rewritten(table, "/api/users/42?q").await.as_deref(), Ok("/v2/42/users$?q"));
    assert_eq!(rewritten(table, "/api/users/x").await.as_deref(), Ok("/v2/users/x"));
    assert_eq!(rewritten("{ add_prefix = '/v2' }", "/").await.as_deref(), Ok("/v2/"));
    assert_eq!(rewritten("{ replace = { pattern = '-', with = '_' } }", "/a-b-c").await.as_deref(), Ok("/a_b_c"));
    assert_eq!(rewritten("{ replace = { pattern = '(b)?c', with = '[$1]'} }", "/c").await, Err("path_invalid"));
    assert_eq!(rewritten("{ replace = { pattern = '(b)?c', with = 'x$1'} }", "/c").await.as_deref(), Ok("/x"));
}

#[tokio::test]
async fn a_result_out_of_canonical_form_is_rejected() {
    for (table, target) in [
        ("{ replace = { pattern = 'x', with = '..' } }", "/a/x/b"),
        ("{ replace = { pattern = '^/u/(.*)', with = '/u/$1/../admin' } }", "/u/me"),
        ("{ replace = { pattern = '_', with = '%2F' } }", "/a_b"),
        ("{ replace = { pattern = '_', with = '%2e%2e' } }", "/_"),
        ("{ replace = { pattern = '_', with = '?' } }", "/a_b"),
        ("{ replace = { pattern = '_', with = '#' } }", "/a_b"),
        ("{ replace = { pattern = '_', with = ' ' } }", "/a_b"),
        ("{ replace = { pattern = '_', with = '\\' } }", "/a_b"),
        ("{ replace = { pattern = 'a', with = '' } }", "/x/a/y"),
        ("{ replace = { pattern = '^/', with = '' } }", "/a"),
        ("{ replace = { pattern = '.*', with = '' } }", "/a"),
        (
            "{ replace = { pattern = '', with = 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' } }",
            "/LONG",
        ),
    ] {
        let target = target.replace("LONG", &"b".repeat(200));
        assert_eq!(rewritten(table, &target).await, Err("path_invalid"), "{table} {target}");
    }
}

#[test]
fn impossible_tables_are_refused_with_a_reason() {
    for (table, message) in [
        ("{}", "this filter changes nothing"),
        ("{ strip_prefix = 'api' }", "`api` is not a prefix of canonical paths"),
        ("{ strip_prefix = '/a/' }", "the prefix `/a/` ends with a slash"),
        ("{ strip_prefix = '/' }", "the prefix `/` ends with a slash"),
        ("{ add_prefix = '/a/../b' }", "`/a/../b` is not a prefix of canonical paths"),
        ("{ add_prefix = '/a?b' }", "`/a?b` is not a prefix of canonical paths"),
        ("{ replace = { pattern = '(', with = '' } }", "the pattern is not a regular expression: unclosed group"),
        ("{ replace = { pattern = '\\w{1000}{9}', with = '' } }", "the pattern needs more than 1 MiB when it is compiled"),
        ("{ replace = { pattern = 'a', with = '$1' } }", "the pattern has no group `1`"),
        ("{ replace = { pattern = '(?P<b>a)', with = '${c}' } }", "the pattern has no group `c`"),
        ("{ replace = { pattern = 'a', with = 'x$' } }", "`$` names no group"),
    ] {
        let problem = problem::<RewriteConfig>(table);
        assert_eq!(problem.message, message);
        assert_eq!(problem.span.is_some(), table != "{}", "{table}");
    }
}

proptest! {
    #[test]
    fn whatever_comes_out_is_canonical_and_keeps_the_query(
        segments in prop::collection::vec("[a-c.%2F]{0,3}", 0..4),
        with in "[a-c./%2EF]{0,6}",
        strip in any::<bool>(),
    ) {
        let old = format!("/{}", segments.join("/"));
        prop_assume!(is_canonical(&old, PathRules::STRICT));
        let with = Located::nowhere(with);
        let pattern = Located::nowhere("b+".to_owned());
        let filter = Rewrite {
            strip: strip.then(|| "/a".into()),
            replace: Some(Replacer::new(&ReplaceConfig { pattern, with }).unwrap()),
            add: "/c".into(),
        };
        let mut head = RequestHeader::build("GET", format!("{old}?q=/../").as_bytes(), None).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (session, mut ctx) = runtime.block_on(session("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "/"));
        if filter.on_upstream_request(&session, &mut head, &mut ctx).is_ok() {
            prop_assert!(is_canonical(head.uri.path(), PathRules::STRICT), "{}", head.uri);
            prop_assert_eq!(head.uri.query(), Some("q=/../"));
        }
    }
}
