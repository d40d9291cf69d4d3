//! Purges: what they name is gone or marked, and nothing else.

use crate::cache::{ok, route, script};
use crate::support::{self, Gateway, Origin, SOON, eventually, raw};

/// Answers that carry what they were asked for as a tag.
fn tagged(origin: &Origin) {
    origin.answer(script(|target, _| {
        let tag = target.rsplit('/').next().unwrap_or_default();
        // Half of the world says it this way, the other half that way.
        let tags = if target.starts_with("/a") { format!("surrogate-key: all {tag}") } else { format!("cache-tag: all, {tag}") };
        Some(ok(&format!("cache-control: max-age=1000, stale-while-revalidate=1000\r\n{tags}"), b"x"))
    }));
}

#[test]
fn purges_reach_what_they_name_and_nothing_else() {
    let origin = Origin::start("app");
    tagged(&origin);
    let keyed = route("k", "key = { ignore_query = [\"utm_*\"] }");
    let gateway = Gateway::start(&[support::upstream("app", &[&origin], ""), route("a", ""), route("b", ""), keyed].concat());
    let address = gateway.address("http");
    let admin = gateway.admin.argument();
    let targets = ["/a/1", "/a/2", "/a/sub/3", "/b/1", "/b/4?x=1"];
    let hit = |target: &str| raw::get(address, target).header("cache-status").is_some_and(|status| status.contains("; hit"));
    let fresh = |target: &str| {
        let answer = raw::get(address, target);
        answer.header("cache-status").is_some_and(|status| status.contains("; hit") && !status.contains("stale"))
    };
    let purge = |arguments: &[&str]| {
        let ended = support::gateway::run(&[&["purge", "--admin", admin.as_str()], arguments].concat());
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
        ended.stdout
    };
    let cases: [(&[&str], &[&str]); 6] = [
        (&["--url", "http://localhost/a/1"], &["/a/1"]),
        (&["--prefix", "http://localhost/a/"], &["/a/1", "/a/2", "/a/sub/3"]),
        (&["--tag", "1"], &["/a/1", "/b/1"]),
        (&["--route", "b"], &["/b/1", "/b/4?x=1"]),
        (&["--url", "http://localhost/b/4?x=1"], &["/b/4?x=1"]),
        (&["--all"], &targets),
    ];
    for (arguments, gone) in cases {
        targets.iter().for_each(|target| drop(raw::get(address, target)));
        let said = purge(arguments);
        assert!(said.starts_with(&format!("purged {} answers here; 1 of 1", gone.len())), "{arguments:?}: {said}");
        for target in targets {
            assert_eq!(!hit(target), gone.contains(&target), "{target} after {arguments:?}");
        }
    }
    // As the configuration counts what is asked for.
    assert_eq!(raw::get(address, "/k/x?utm_source=a&b=2&a=1").status, 200);
    assert!(hit("/k/x?a=1&b=2&utm_source=b"));
    let said = purge(&["--url", "http://localhost/k/%78?b=2&utm_source=c&a=1"]);
    assert!(said.starts_with("purged 1 answers here"), "{said}");
    assert!(!hit("/k/x?a=1&b=2"));
    let said = purge(&["--prefix", "http://localhost/k/x?b=2&a=1"]);
    assert!(said.starts_with("purged 1 answers here"), "{said}");
    for (arguments, marked) in cases.iter().copied().chain([(&["--tag", "all"][..], &targets[..])]) {
        targets.iter().for_each(|target| drop(raw::get(address, target)));
        targets.iter().for_each(|target| eventually("all is fresh", SOON, || fresh(target)));
        purge(&[arguments, &["--soft"]].concat());
        for target in targets {
            let answer = raw::get(address, target);
            let stale = answer.header("cache-status").unwrap().contains("stale_while_revalidate");
            assert_eq!(stale, marked.contains(&target), "{target} after {arguments:?}: {:?}", answer.headers);
        }
    }
    assert_eq!(support::gateway::run(&["purge", "--admin", &admin]).code, Some(2), "of what?");
}
