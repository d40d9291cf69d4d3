//! Wrong configurations and exactly what is said about them.
//!
//! Each `tests/golden/NAME.toml` is checked by the binary, and what it writes must be `NAME.stderr`. `UPDATE_GOLDEN=1 cargo
//! test golden` writes the files anew; read the difference before you commit it. A directory `NAME.d` is given as such.

use crate::support::gateway::binary;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const GOLDEN: &str = "tests/golden";

fn gatewright(args: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    // What the files refer to, and nothing else.
    command.env_clear().env("GOLDEN_PORT", "8080").env("GOLDEN_WORD", "many").env("GOLDEN_EMPTY", "");
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The cases: files and directories of `tests/golden`, without those that cases include.
fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN);
    let mut cases: Vec<_> = fs::read_dir(root).unwrap().map(|entry| Path::new(GOLDEN).join(entry.unwrap().file_name())).collect();
    cases.retain(|path| path.extension().is_some_and(|extension| extension == "toml" || extension == "d"));
    cases.sort();
    cases
}

#[test]
fn every_wrong_configuration_is_explained_exactly() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    let cases = cases();
    for case in &cases {
        let output = gatewright(&["check", "-c", case.to_str().unwrap()]);
        let said = text(&output.stderr);
        let expected = Path::new(env!("CARGO_MANIFEST_DIR")).join(case).with_extension("stderr");
        // Warnings alone leave a configuration valid.
        let code = if said.contains("error: ") { 78 } else { 0 };
        assert_eq!(output.status.code(), Some(code), "{}: {said}", case.display());
        if update {
            fs::write(&expected, &said).unwrap();
        } else if fs::read_to_string(&expected).ok().as_ref() != Some(&said) {
            wrong.push(format!("{} says:\n{said}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases.len() >= 30, "only {} cases", cases.len());
}

#[test]
fn every_golden_answer_has_its_question() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN);
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "stderr") {
            assert!(path.with_extension("toml").exists() || path.with_extension("d").exists(), "{}", path.display());
            assert!(!fs::read_to_string(&path).unwrap().is_empty(), "{} expects silence", path.display());
        }
    }
}

#[test]
fn json_says_the_same_as_the_text() {
    let output = gatewright(&["check", "-c", "tests/golden/dangling_upstream.toml", "--format", "json"]);
    assert_eq!(output.status.code(), Some(78));
    assert_eq!(text(&output.stderr), "");
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        list[0],
        serde_json::json!({
            "severity": "error", "message": "there is no upstream `order`", "file": "tests/golden/dangling_upstream.toml",
            "line": 6, "column": 12, "end_line": 6, "end_column": 19, "label": "did you mean `orders`?", "help": null, "related": [],
        })
    );
}

#[test]
fn a_valid_configuration_exits_0_with_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("good.toml");
    fs::write(&file, "[listeners.http]\naddress = \"127.0.0.1:${GOLDEN_PORT}\"\n").unwrap();
    for verb in ["check", "-t"] {
        let output = gatewright(&[verb, "-c", file.to_str().unwrap()]);
        assert_eq!(text(&output.stderr), "");
        assert_eq!(text(&output.stdout), "valid: 1 listener, 0 routes, 0 upstreams, 0 chains\n");
        assert_eq!(output.status.code(), Some(0));
    }
    let json = gatewright(&["check", "--format", "json", "-c", file.to_str().unwrap()]);
    assert_eq!((text(&json.stdout), json.status.code()), ("[]\n".to_owned(), Some(0)));
}

#[test]
fn unreadable_input_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("binary.toml"), [0x7f, b'E', b'L', b'F', 0, 1]).unwrap();
    fs::write(path("latin1.toml"), b"# ok\n# caf\xe9\n").unwrap();
    // 100 MB of nothing on disk.
    fs::File::create(path("huge.toml")).unwrap().set_len(100_000_000).unwrap();
    fs::create_dir(path("empty.d")).unwrap();
    std::os::unix::fs::symlink(path("loop.toml"), path("loop.toml")).unwrap();
    fs::write(path("half.toml"), "[listeners.http]\naddress = \"127.0.0.1:8080\"\n[upstreams.app]\nendpoints = [\"127.0")
        .unwrap();
    for (name, why) in [
        ("absent.toml", "No such file or directory"),
        ("binary.toml", "it is a binary file"),
        ("latin1.toml", "it is not UTF-8 text (line 2)"),
        ("huge.toml", "it is larger than 64 MiB"),
        ("empty.d", "has no *.toml file"),
        ("loop.toml", "Too many levels of symbolic links"),
        ("half.toml", "unclosed array"),
    ] {
        let output = gatewright(&["check", "-c", &path(name)]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{name}");
        assert!(said.contains(why) && said.contains(name) && said.ends_with("1 error\n"), "{name}: {said}");
    }
}

#[test]
fn a_file_that_may_not_be_read_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("closed.toml");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = match nix::unistd::geteuid().is_root() {
        false => Command::new(binary()),
        // What lets root read everything is taken from it.
        true => {
            let mut command = Command::new("setpriv");
            command.args(["--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search", binary()]);
            command
        }
    };
    let output = command.args(["check", "-c", file.to_str().unwrap()]).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("closed.toml") && said.contains("Permission denied") && said.ends_with("1 error\n"), "{said}");
}

#[test]
fn the_reference_page_is_what_the_structs_say() {
    let page = gatewright(&["schema", "--format", "markdown"]);
    assert_eq!(page.status.code(), Some(0));
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&committed, &page.stdout).unwrap();
    }
    let committed = fs::read_to_string(committed).unwrap();
    assert_eq!(text(&page.stdout), committed, "run `UPDATE_GOLDEN=1 cargo test the_reference_page`");
}

#[test]
fn a_wrong_command_line_exits_2() {
    for args in [&["chekc"][..], &[], &["check", "--format", "xml"], &["check", "-c"]] {
        assert_eq!(gatewright(args).status.code(), Some(2), "{args:?}");
    }
    let version = gatewright(&["--version"]);
    assert_eq!(text(&version.stdout), concat!("gatewright ", env!("CARGO_PKG_VERSION"), "\n"));
    assert_eq!(version.status.code(), Some(0));
}
