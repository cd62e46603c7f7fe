//! What the compiler cannot say: where `unsafe` and bincode may stand, how long a file may be, that no thread is started
//! beside the supervisor's one, and that what README and comments name is there.

#![expect(clippy::expect_used, reason = "helpers of tests fail the test")]

use std::path::{Path, PathBuf};

fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let top = harness::workspace();
    let mut found = Vec::new();
    let mut dirs = vec![top.join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("text");
                found.push((path.strip_prefix(&top).expect("below").to_owned(), text));
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

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

#[test]
fn unsafe_stands_in_modules_that_were_opened_for_it_only() {
    let opened =
        ["src/supervisor/spawn.rs", "tests/programs/hostile_child/system_call.rs", "tests/programs/leftovers.rs"]
            .map(Path::new);
    let own = Path::new("tests/source_rules.rs");
    for (path, text) in sources("src").into_iter().chain(sources("tests")) {
        let does = path != own && code(&text).any(|line| words(line).any(|w| w == "unsafe"));
        assert!(opened.contains(&path.as_path()) || !does, "unsafe in {}", path.display());
    }
}

#[test]
fn bincode_is_named_in_one_file() {
    for (path, text) in sources("src") {
        let named = code(&text).any(|line| line.contains("bincode"));
        assert_eq!(named, path == Path::new("src/wire/codec.rs"), "{}", path.display());
    }
}

#[test]
fn nothing_in_the_supervisor_starts_a_second_thread() {
    for (path, text) in sources("src/supervisor").into_iter().chain(sources("src/wire")) {
        for what in ["tokio::fs", "spawn_blocking", "std::thread", "thread::spawn"] {
            assert!(!code(&text).any(|line| line.contains(what)), "{what} in {}", path.display());
        }
    }
}

#[test]
fn no_file_is_longer_than_five_hundred_lines() {
    for (path, text) in sources("src") {
        if !path.components().any(|part| part.as_os_str() == "tests") {
            assert!(text.lines().count() <= 500, "{} is too long", path.display());
        }
    }
}

/// Words in backquotes that look like a file of this project.
fn named_files(text: &str) -> Vec<String> {
    let tops = ["src/", "tests/", "packaging/", "migrations/", "systemd/", ".cargo/", ".github/", ".ci/"];
    let quoted = text.split('`').skip(1).step_by(2).map(|word| word.split([':', ' ', '#']).next().unwrap_or(word));
    let is_file = |word: &&str| tops.iter().any(|top| word.starts_with(top)) && !word.contains(['*', '<', '{']);
    quoted.filter(is_file).map(str::to_owned).collect()
}

#[test]
fn every_file_that_a_page_for_people_names_is_there() {
    let top = harness::workspace();
    let mut named = 0;
    for page in ["README.md", ".github/CONTRIBUTING.md", ".github/SECURITY.md"] {
        let text = std::fs::read_to_string(top.join(page)).expect(page);
        for file in named_files(&text) {
            named += 1;
            assert!(top.join(&file).exists(), "{page} names {file}, which is not there");
        }
    }
    assert!(named > 40, "only {named} names were found: the pages are not read right");
}

#[test]
fn the_pages_of_the_guide_lead_to_each_other_and_name_examples_that_are_installed() {
    let top = harness::workspace();
    let guide = top.join("packaging/guide");
    let mut links = 0;
    for entry in std::fs::read_dir(&guide).expect("the guide") {
        let page = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&page).expect("text");
        assert!(text.lines().count() < 200, "{} is too long for a page", page.display());
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            links += 1;
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let there = std::fs::read_to_string(guide.join(file));
            let there = there.unwrap_or_else(|e| panic!("{} leads to {link}: {e}", page.display()));
            let anchor = |line: &str| line.trim_start_matches(['#', ' ']).to_lowercase().replace(' ', "-");
            let known = there.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == heading);
            assert!(heading.is_empty() || known, "{} leads to {link}", page.display());
        }
        for example in text.split("examples/").skip(1) {
            let file = example.split(|c: char| !c.is_ascii_alphanumeric() && !"/.-".contains(c)).next();
            let file = file.unwrap_or_default().trim_end_matches('.');
            let at = if file.starts_with("systemd/") { "systemd/examples" } else { "packaging" };
            assert!(top.join(at).join(file.trim_start_matches("systemd/")).exists(), "{}: {file}", page.display());
        }
    }
    assert!(links > 6, "only {links} links were found: the pages are not read right");
}

#[test]
fn every_file_that_a_comment_names_is_there() {
    let top = harness::workspace();
    let settings = [".cargo/deny.toml", "Cargo.toml", ".ci/run", "tests/run"]
        .map(|file| (PathBuf::from(file), std::fs::read_to_string(top.join(file)).expect("text")));
    let mut named = 0;
    for (path, text) in sources("src").into_iter().chain(sources("tests")).chain(settings) {
        for line in text.lines().map(str::trim_start).filter(|line| line.starts_with("//") || line.starts_with('#')) {
            for word in line.split(|c: char| c.is_whitespace() || "`()[],;\"'".contains(c)) {
                let file = word.trim_end_matches(['.', ':']);
                let ours = ["src/", "tests/", "packaging/", "migrations/"].iter().any(|top| file.starts_with(top));
                if ours && !file.contains(['*', '<', '{', '…']) {
                    named += 1;
                    assert!(top.join(file).exists(), "{}: {file} is not there", path.display());
                }
            }
        }
    }
    assert!(named > 5, "only {named} names were found: the comments are not read right");
}

#[test]
fn the_paths_of_a_call_and_of_a_login_are_as_readme_says() {
    let readme = std::fs::read_to_string(harness::workspace().join("README.md")).expect("README");
    for (path, least) in [("The path of a `tools/call`", 8), ("The path of a login", 6)] {
        let text = readme.split(path).nth(1).unwrap_or_else(|| panic!("README has no «{path}»"));
        let text = text.split("\n\n").next().unwrap_or_default();
        let files =
            named_files(text).into_iter().filter(|file| Path::new(file).extension().is_some_and(|e| e == "rs")).count();
        assert!(files >= least, "{path}: {files} files of src/ are named");
    }
}

/// The message ids of the programs, by their names.
fn message_ids() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(harness::workspace().join("src/wire/telemetry.rs")).expect("text");
    let constant = |line: &str| {
        let (name, value) = line.trim().strip_prefix("pub const ")?.split_once(": &str = \"")?;
        let id = value.strip_suffix("\";")?;
        (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| (name.to_owned(), id.to_owned()))
    };
    text.lines().filter_map(constant).collect()
}

#[test]
fn every_message_id_is_its_own_used_and_explained_in_the_catalog_and_on_a_page() {
    let top = harness::workspace();
    let ids = message_ids();
    let unique: std::collections::BTreeSet<_> = ids.iter().map(|(_, id)| id).collect();
    assert!(ids.len() > 20 && unique.len() == ids.len(), "{ids:?}");
    let catalog = std::fs::read_to_string(top.join("packaging/journal/forgejo-mcp-broker.catalog")).expect("a catalog");
    let entries: Vec<&str> = catalog.split("\n-- ").skip(1).collect();
    assert_eq!(entries.len(), ids.len(), "the catalog has an entry for each id and no other");
    let pages = ["forgejo-mcp-broker.8", "forgejo-mcp-supervisor.8"]
        .map(|page| std::fs::read_to_string(top.join("packaging/man").join(page)).expect(page))
        .concat();
    let code: String = sources("src").into_iter().map(|(_, text)| text).collect();
    for (name, id) in &ids {
        let entry = entries.iter().find(|entry| entry.starts_with(id.as_str()));
        let entry = entry.unwrap_or_else(|| panic!("{name} is not in the catalog"));
        for header in ["Subject: ", "Defined-By: forgejo-mcp-broker", "Documentation: man:"] {
            assert!(entry.lines().any(|line| line.starts_with(header)), "{name} has no {header}");
        }
        assert!(pages.contains(id.as_str()), "{name} ({id}) is on no man page");
        assert!(code.contains(&format!("message_id::{name}")), "{name} is on no line");
    }
}
