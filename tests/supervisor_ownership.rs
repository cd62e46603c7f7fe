//! What decides over root is root's alone, on the whole way to it: the policy's files and the child program. Needs root.

#![expect(clippy::expect_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::supervised::root_or_skip;

const NOBODY: u32 = 65_534;

/// Spoils something and says which component is to be named.
type Spoil = fn(&Case) -> PathBuf;

/// A directory of its own for each case, below one that is root's.
struct Case {
    dir: PathBuf,
}

impl Case {
    fn new(roots: &Path, name: &str) -> Self {
        let dir = roots.join(name);
        for part in [dir.clone(), dir.join("inner")] {
            fs::create_dir(&part).expect("made");
            set_mode(&part, 0o755);
        }
        let case = Self { dir };
        harness::copy_program("/bin/true".as_ref(), &case.program()).expect("copied");
        set_mode(&case.program(), 0o755);
        case.write_policy(&case.program());
        case
    }

    fn policy(&self) -> PathBuf {
        self.dir.join("inner/supervisor.toml")
    }

    fn program(&self) -> PathBuf {
        self.dir.join("inner/program")
    }

    fn write_policy(&self, program: &Path) {
        let text = format!(
            "broker_user = 1\n[forgejo]\nurl = \"http://127.0.0.1:1\"\n[child]\nprofile = \"custom\"\nprogram = \"{}\"\n\
             [uids]\nfirst = 2000000\ncount = 16\n",
            program.display()
        );
        fs::write(self.policy(), text).expect("written");
        set_mode(&self.policy(), 0o644);
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod");
}

fn check(policy: &Path) -> (Option<i32>, String) {
    let program = harness::program("forgejo-mcp-supervisor");
    let output = Command::new(program).arg("--check").arg("--config").arg(policy).output().expect("run");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_policy_or_program_that_others_could_replace_is_refused_and_the_component_named() {
    if !root_or_skip("a_policy_or_program_that_others_could_replace_is_refused_and_the_component_named") {
        return;
    }
    let roots = harness::roots_directory().expect("a directory");
    let cases: [(&str, Spoil, &str); 6] = [
        (
            "group",
            |case| {
                set_mode(&case.dir, 0o775);
                case.dir.clone()
            },
            "has mode 0775",
        ),
        (
            "sticky",
            |case| {
                set_mode(&case.dir, 0o1777);
                case.dir.clone()
            },
            "has mode 1777",
        ),
        (
            "inner",
            |case| {
                set_mode(&case.dir.join("inner"), 0o757);
                case.dir.join("inner")
            },
            "has mode 0757",
        ),
        (
            "owner",
            |case| {
                chown(&case.dir, Some(NOBODY), None).expect("chown");
                case.dir.clone()
            },
            "is owned by uid 65534",
        ),
        (
            "linked-directory",
            |case| {
                // What is named is root's all the way, and leads to where it is not.
                let real = case.dir.join("real");
                fs::rename(case.dir.join("inner"), &real).expect("renamed");
                symlink("real", case.dir.join("inner")).expect("linked");
                chown(&real, Some(NOBODY), None).expect("chown");
                real
            },
            "is owned by uid 65534",
        ),
        (
            "others-link",
            |case| {
                let real = case.dir.join("real");
                fs::rename(case.dir.join("inner"), &real).expect("renamed");
                symlink(&real, case.dir.join("inner")).expect("linked");
                std::os::unix::fs::lchown(case.dir.join("inner"), Some(NOBODY), None).expect("chown");
                case.dir.join("inner")
            },
            "is owned by uid 65534",
        ),
    ];
    for (name, spoil, why) in cases {
        let case = Case::new(roots.path(), name);
        assert_eq!(check(&case.policy()).0, Some(0), "{name}: good before");
        let elsewhere = Case::new(roots.path(), &format!("{name}-policy"));
        elsewhere.write_policy(&case.program());
        let named = spoil(&case);
        for (what, policy) in [("policy", case.policy()), ("program", elsewhere.policy())] {
            let (code, said) = check(&policy);
            assert_eq!(code, Some(78), "{name}, {what}: {said}");
            let named = named.display();
            assert!(said.contains(&format!("{named} must be")) && said.contains(why), "{name}, {what}: {said}");
        }
    }
}

#[test]
fn the_files_themselves_are_looked_at_through_links_and_links_of_roots_are_fine() {
    if !root_or_skip("the_files_themselves_are_looked_at_through_links_and_links_of_roots_are_fine") {
        return;
    }
    let roots = harness::roots_directory().expect("a directory");
    let case = Case::new(roots.path(), "links");
    let link = case.dir.join("policy-link");
    symlink("inner/../inner/supervisor.toml", &link).expect("linked");
    let program = case.dir.join("program-link");
    symlink(case.program(), &program).expect("linked");
    case.write_policy(&program);
    assert_eq!(check(&link).0, Some(0));

    set_mode(&case.program(), 0o775);
    let (code, said) = check(&link);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains(&format!("{} must be writable by root alone", case.program().display())), "{said}");
    set_mode(&case.program(), 0o755);
    set_mode(&case.policy(), 0o664);
    let (code, said) = check(&link);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains(&format!("{} must be writable by root alone", case.policy().display())), "{said}");
    set_mode(&case.policy(), 0o644);

    let circle = case.dir.join("circle");
    symlink(&circle, &circle).expect("linked");
    let (code, said) = check(&circle);
    assert!(code == Some(78) && said.contains("symbolic links"), "{said}");
}

#[test]
fn a_program_that_can_be_read_is_a_hint_and_no_problem() {
    if !root_or_skip("a_program_that_can_be_read_is_a_hint_and_no_problem") {
        return;
    }
    let roots = harness::roots_directory().expect("a directory");
    let case = Case::new(roots.path(), "readable");
    let (code, said) = check(&case.policy());
    assert!(code == Some(0) && said.contains("with mode 0711"), "{said}");
    set_mode(&case.program(), 0o711);
    assert_eq!(check(&case.policy()), (Some(0), String::new()));
    // An interpreter must read it.
    fs::write(case.program(), "#!/bin/sh\n").expect("written");
    set_mode(&case.program(), 0o755);
    assert_eq!(check(&case.policy()), (Some(0), String::new()));
}
