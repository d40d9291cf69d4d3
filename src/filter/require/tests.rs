use super::*;
use crate::clock::{SharedClock, SystemClock};
use crate::consumer::Consumer;
use crate::filter::testing::{build_for, consumers, decide, session};

const CONSUMERS: &str = "[tiers.gold]\n[consumers.acme]\ntier = 'gold'\nroles = ['read', 'write', 'admin']\n[consumers.other]\n";

fn build(table: &str) -> Result<Require, Problem> {
    build_for::<RequireConfig>(table, &consumers(CONSUMERS), &(Arc::new(SystemClock) as SharedClock))
}

fn identity(roles: &[&str], scopes: &[&str]) -> Identity {
    let roles = roles.iter().map(|role| Arc::from(*role)).collect();
    let consumer = Arc::new(Consumer { name: "acme".into(), roles, enabled: true, ..Consumer::default() });
    let mut identity = Identity::of(&consumer, "jwt", "jwt:main:acme".into());
    identity.scopes = scopes.iter().map(|scope| Arc::from(*scope)).collect();
    identity
}

async fn ask(table: &str, method: &str, identity: Option<Identity>) -> Result<(), &'static str> {
    let filter = build(table).unwrap();
    let (mut session, mut ctx) = session(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"), "/").await;
    ctx.identity = identity.map(Arc::new);
    decide(&filter, &mut session, &mut ctx).await
}

#[tokio::test]
async fn what_is_not_permitted_is_refused() {
    let no = Err("forbidden");
    for (table, roles, scopes, expected) in [
        ("{}", &[][..], &[][..], Ok(())),
        ("{ roles = ['read', 'write'] }", &["write"], &[], Ok(())),
        ("{ roles = ['read', 'write'] }", &["admin", "writer"], &[], no),
        ("{ roles = ['read'] }", &[], &["read"], no),
        ("{ all_roles = ['read', 'write'] }", &["write"], &[], no),
        ("{ all_roles = ['read', 'write'] }", &["write", "x", "read"], &[], Ok(())),
        ("{ scopes = ['a', 'b'] }", &[], &["b"], Ok(())),
        ("{ scopes = ['a', 'b'] }", &["a"], &["c"], no),
        ("{ all_scopes = ['a', 'b'] }", &[], &["b"], no),
        ("{ all_scopes = ['a', 'b'] }", &[], &["b", "a"], Ok(())),
        ("{ roles = ['read'], scopes = ['a'] }", &["read"], &[], no),
        ("{ consumers = ['acme'] }", &[], &[], Ok(())),
        ("{ consumers = ['other'] }", &[], &[], no),
        ("{ tiers = ['gold'] }", &[], &[], no),
    ] {
        assert_eq!(ask(table, "GET", Some(identity(roles, scopes))).await, expected, "{table} {roles:?} {scopes:?}");
    }
    assert_eq!(ask("{}", "GET", None).await, Err("credential_missing"));
    let mut gold = identity(&[], &[]);
    gold.tier = Some("gold".into());
    assert_eq!(ask("{ tiers = ['gold'] }", "GET", Some(gold)).await, Ok(()));
}

#[tokio::test]
async fn a_subject_is_not_a_consumer() {
    let mut subject = identity(&[], &[]);
    subject.consumer = None;
    assert_eq!(ask("{ consumers = ['acme'] }", "GET", Some(subject)).await, Err("forbidden"));
}

#[tokio::test]
async fn a_method_needs_a_role_that_permits_it() {
    let table = "{ methods = { read = ['GET'], write = ['POST', 'PUT', 'DELETE'], admin = ['*'] } }";
    for (role, method, permitted) in [
        ("read", "GET", true),
        ("read", "HEAD", true),
        ("read", "POST", false),
        ("write", "DELETE", true),
        ("write", "GET", false),
        ("write", "PATCH", false),
        ("admin", "PATCH", true),
        ("admin", "OPTIONS", true),
        ("other", "GET", false),
    ] {
        let done = ask(table, method, Some(identity(&[role], &[]))).await;
        assert_eq!(done.is_ok(), permitted, "{role} {method}");
    }
    assert_eq!(ask(table, "PUT", Some(identity(&["read", "write"], &[]))).await, Ok(()));
}

#[test]
fn impossible_tables_are_refused_with_a_reason() {
    let problem = |table: &str| match build(table) {
        Ok(_) => panic!("{table} builds"),
        Err(problem) => (problem.message, problem.help.unwrap_or_default()),
    };
    for (table, message) in [
        ("{ roles = [] }", "an empty list permits nobody"),
        ("{ methods = {} }", "`methods` permits no method to anybody"),
        ("{ methods = { read = [] } }", "the role `read` permits no method"),
        ("{ methods = { read = ['get'] } }", "`get` is not a method"),
        ("{ consumers = ['acne'] }", "there is no consumer `acne`"),
        ("{ tiers = ['gold', 'golf'] }", "there is no tier `golf`"),
    ] {
        assert_eq!(problem(table).0, message);
    }
    assert_eq!(problem("{ consumers = ['acne'] }").1, "did you mean `acme`?");
}

#[test]
fn roles_that_no_consumer_has_are_named() {
    let filter = build("{ roles = ['read', 'raed'], all_roles = ['x'], methods = { y = ['GET'] } }").unwrap();
    let unknown: Vec<_> = filter.unknown_roles().iter().map(|role| role.value.as_str()).collect();
    assert_eq!(unknown, ["raed", "x", "y"]);
}

#[tokio::test]
async fn a_permission_is_for_its_methods_and_paths() {
    let table = "{ permissions = [{ roles = ['write'], methods = ['POST', 'PUT'], path = '/orders/{id}' }, \
                 { roles = ['read', 'admin'], methods = ['GET'], path = '/orders/{*rest}' }, { scopes = ['all'] }] }";
    let filter = build(table).unwrap();
    for (roles, scopes, method, path, expected) in [
        (&["write"][..], &[][..], "POST", "/orders/7", true),
        (&["write"], &[], "POST", "/orders/7/items", false),
        (&["write"], &[], "GET", "/orders/7", false),
        (&["read"], &[], "GET", "/orders/7/items", true),
        (&["admin"], &[], "HEAD", "/orders/7", true),
        (&["read"], &[], "POST", "/orders/7", false),
        (&["read", "write"], &[], "DELETE", "/orders/7", false),
        (&[], &["all"], "DELETE", "/anything", true),
        (&[], &[], "GET", "/orders/7", false),
    ] {
        let (mut session, mut ctx) = session(&format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n"), "/{*rest}").await;
        ctx.identity = Some(Arc::new(identity(roles, scopes)));
        let done = decide(&filter, &mut session, &mut ctx).await;
        assert_eq!(done.is_ok(), expected, "{roles:?} {scopes:?} {method} {path}");
    }
}

#[tokio::test]
async fn a_condition_must_hold_besides() {
    let table = "{ roles = ['read'], condition = \"request.method == 'GET' && identity.consumer == 'acme'\" }";
    assert_eq!(ask(table, "GET", Some(identity(&["read"], &[]))).await, Ok(()));
    assert_eq!(ask(table, "POST", Some(identity(&["read"], &[]))).await, Err("forbidden"));
    assert_eq!(ask(table, "GET", Some(identity(&["write"], &[]))).await, Err("forbidden"));
    assert_eq!(ask("{ condition = \"claims.org == 'a'\" }", "GET", Some(identity(&[], &[]))).await, Err("forbidden"));
}

#[test]
fn permissions_of_nobody_and_wrong_conditions_are_told() {
    let message = |table: &str| build(table).err().unwrap().message;
    assert_eq!(message("{ permissions = [] }"), "an empty list permits nobody");
    assert_eq!(message("{ permissions = [{ methods = ['GET'] }] }"), "this permission is everybody's");
    assert_eq!(message("{ permissions = [{ roles = [] }] }"), "an empty list permits nobody");
    assert_eq!(message("{ permissions = [{ roles = ['read'], methods = ['get'] }] }"), "`get` is not a method");
    assert_eq!(message("{ permissions = [{ roles = ['read'], path = 'a' }] }"), "a path starts with `/`");
    assert_eq!(message("{ condition = 'request.pth == 1' }"), "there is no `request.pth`");
    let unknown = build("{ permissions = [{ roles = ['raed'] }] }").unwrap();
    assert_eq!(unknown.unknown_roles().len(), 1);
}

#[tokio::test]
async fn a_token_that_lacks_only_scopes_is_told_which_as_rfc_6750_says() {
    let ask = async |table: &str, identity: Identity| {
        let filter = build(table).unwrap();
        let (mut session, mut ctx) = session("GET /a HTTP/1.1\r\nHost: a\r\n\r\n", "/{*rest}").await;
        ctx.identity = Some(Arc::new(identity));
        let Step::Ready(Err(rejection)) = filter.on_request(&mut session, &mut ctx) else { panic!("{table} passes") };
        assert_eq!(rejection.code.code, "forbidden");
        rejection.www_authenticate.map(|value| value.to_str().unwrap().to_owned())
    };
    let scope = |scopes: &str| Some(format!("Bearer error=\"insufficient_scope\", scope=\"{scopes}\""));
    let permissions = "{ permissions = [{ scopes = ['other'], path = '/b' }, { roles = ['read'], scopes = ['p', 'q'] }] }";
    for (table, roles, scopes, challenge) in [
        ("{ scopes = ['a', 'b'] }", &[][..], &["c"][..], scope("a b")),
        ("{ all_scopes = ['a', 'b'] }", &[], &["a"], scope("a b")),
        ("{ scopes = ['x y', 'a\"'] }", &[], &[], Some("Bearer error=\"insufficient_scope\"".to_owned())),
        // More scopes would not help.
        ("{ roles = ['read'], scopes = ['a'] }", &[], &[], None),
        ("{ roles = ['read'] }", &[], &["a"], None),
        ("{ condition = 'false' }", &[], &[], None),
        (permissions, &["read"], &["other"], scope("p q")),
        (permissions, &[], &["other"], None),
    ] {
        assert_eq!(ask(table, identity(roles, scopes)).await, challenge, "{table} {roles:?} {scopes:?}");
    }
    // Nobody gets scopes for a key.
    let mut key = identity(&[], &[]);
    key.method = "api_key";
    assert_eq!(ask("{ scopes = ['a'] }", key).await, None);
}
