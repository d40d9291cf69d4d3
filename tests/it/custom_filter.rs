//! A filter of another crate: `examples/custom_filter.rs`, built with the tests and driven like any gateway.

use crate::support::gateway::Gateway;
use crate::support::origin::Origin;
use crate::support::raw::get;
use std::path::PathBuf;

/// A plain `cargo test` builds the examples as programs (with `--all-targets` it does not), and cargo says where only for
/// binaries.
fn example() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let binary = tests.parent().unwrap().parent().unwrap().join("examples/custom_filter");
    assert!(binary.exists(), "{} is not built: run `cargo build --examples`", binary.display());
    binary
}

fn config(origin: &Origin, filter: &str) -> String {
    format!(
        "[upstreams.app]\nendpoints = [\"{}\"]\n[routes.all]\nmatch = {{}}\nupstream = \"app\"\nfilters = [{{ maintenance = {filter} }}]\n",
        origin.address()
    )
}

#[test]
fn filter_of_another_crate_decides_and_edits_like_a_built_in_one() {
    let origin = Origin::start("a");
    let directory = tempfile::tempdir().unwrap();
    let flag = directory.path().join("flag");
    let toml = config(&origin, &format!("{{ flag = {:?} }}", flag.to_str().unwrap()));
    let gateway = Gateway::try_start_binary(&example(), &toml).unwrap_or_else(|ended| panic!("{ended:?}"));

    let served = get(gateway.http(), "/");
    assert_eq!((served.status, served.header("x-maintained-by")), (200, Some("us")));

    std::fs::write(&flag, "").unwrap();
    let refused = get(gateway.http(), "/");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("30")));
    assert_eq!(refused.header("x-maintained-by"), Some("us"), "response filters see rejections too");
    let problem: serde_json::Value = serde_json::from_str(&refused.text()).unwrap();
    assert_eq!((problem["code"].as_str(), problem["status"].as_u64()), (Some("maintenance"), Some(503)));
    assert_eq!(origin.count(), 1);
}

#[test]
fn mistakes_in_its_table_are_explained_like_any_other() {
    let origin = Origin::start("a");
    for (filter, expected) in [("{ flagg = \"/x\" }", "did you mean `flag`?"), ("{ flag = \"x\" }", "not an absolute path")] {
        let ended = Gateway::try_start_binary(&example(), &config(&origin, filter)).err().expect("started");
        assert_eq!(ended.code, Some(78));
        assert!(ended.stderr.contains(expected), "{}", ended.stderr);
    }
}
