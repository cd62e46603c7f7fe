//! The rooms keep to themselves: who may import whom, where `unsafe` and bincode may stand, how long a file may be.
#![expect(clippy::expect_used, reason = "helpers of tests fail the test")]

use std::path::{Path, PathBuf};

fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("text");
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "no source below {dir}");
    found
}

/// The lines that are code.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim_start).filter(|line| !line.starts_with("//"))
}

fn assert_none(room: &str, what: &[&str]) {
    for (path, text) in sources(room) {
        for line in code(&text) {
            for word in what {
                assert!(!line.contains(word), "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn the_supervisor_never_imports_the_frontend_nor_what_speaks_http_json_or_sql() {
    assert_none("src/supervisor", &["frontend", "axum", "hyper", "sqlx", "serde_json", "reqwest", "crate::ctl"]);
    let root = include_str!("../src/supervisor.rs");
    assert!(code(root).all(|line| !line.contains("frontend")));
}

#[test]
fn the_frontend_never_imports_the_supervisor() {
    assert_none("src/frontend", &["crate::supervisor"]);
}

#[test]
fn the_operators_tool_imports_neither_half() {
    assert_none("src/ctl", &["crate::frontend", "crate::supervisor"]);
}

#[test]
fn the_wire_imports_neither_half() {
    assert_none("src/ipc", &["crate::frontend", "crate::supervisor", "crate::ctl"]);
}

#[test]
fn unsafe_stands_in_two_modules_only() {
    let opened = ["src/ipc/socket.rs", "src/supervisor/spawn.rs"];
    for (path, text) in sources("src") {
        let may = opened.iter().any(|end| path.ends_with(end));
        let does =
            code(&text).any(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe"));
        assert!(may || !does, "unsafe in {}", path.display());
    }
}

#[test]
fn bincode_is_named_in_one_file() {
    for (path, text) in sources("src") {
        let named = code(&text).any(|line| line.contains("bincode"));
        assert_eq!(named, path.ends_with("src/ipc/codec.rs"), "{}", path.display());
    }
}

#[test]
fn nothing_in_the_supervisor_starts_a_second_thread() {
    assert_none("src/supervisor", &["tokio::fs", "spawn_blocking", "std::thread", "thread::spawn"]);
}

#[test]
fn no_file_is_longer_than_five_hundred_lines() {
    for (path, text) in sources("src") {
        assert!(text.lines().count() <= 500, "{} is too long", path.display());
    }
}
