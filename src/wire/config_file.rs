//! Reads TOML configuration and reports every problem at once. A leaf: it knows no key of either program.
//!
//! A file is trusted as far as its owner is; its content is parsed into types here, at the edge. Files given later
//! are laid over earlier ones key by key. Each reader method takes one key, falls back to the default given, and
//! notes a [`Problem`] where the value does not fit; a key that nobody took is a problem too, so a typing error
//! never turns into a silent default.

use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use toml::{Table, Value};

/// One thing that is wrong in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named.
    pub file: PathBuf,
    /// The dotted key; empty where the file as a whole is meant.
    pub key: String,
    /// What is wrong and what is expected.
    pub what: String,
}

/// All that is wrong; never empty. `main` prints it and exits with 78 (`EX_CONFIG`, sysexits.h).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError(Vec<Problem>);

impl ConfigError {
    /// The problems, in the order in which the keys were read.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{}: ", problem.file.display())?;
            if !problem.key.is_empty() {
                write!(f, "{}: ", problem.key)?;
            }
            f.write_str(&problem.what)?;
        }
        Ok(())
    }
}

/// Where a name without a slash leads in a key that names a file: `$CREDENTIALS_DIRECTORY/NAME`, which systemd fills from
/// `LoadCredential=` (systemd.exec(5), Credentials).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// The directory is there.
    Directory(PathBuf),
    /// There is none, and so a name is a problem.
    #[default]
    None,
    /// There is none here and will be one in the unit: names are noted and not looked at, for `--check`.
    OutOfSight,
}

/// A file that a key names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedFile {
    /// An absolute path, as it was written.
    Path(PathBuf),
    /// One of the credentials, and where it is.
    Credential(PathBuf),
    /// A credential that only the unit sees.
    OutOfSight,
}

impl NamedFile {
    /// Where it is, if that can be looked at.
    pub fn path(self) -> Option<PathBuf> {
        match self {
            Self::Path(path) | Self::Credential(path) => Some(path),
            Self::OutOfSight => None,
        }
    }
}

#[derive(Debug, Default)]
struct Noted {
    problems: Vec<Problem>,
    /// Keys whose credentials only the unit sees.
    out_of_sight: Vec<String>,
    /// A file could not be read or parsed: what seems to be missing may stand in it.
    incomplete: bool,
}

type Problems = Rc<RefCell<Noted>>;

impl Noted {
    fn unreadable(&mut self, file: PathBuf, what: String) {
        self.problems.push(Problem { file, key: String::new(), what });
        self.incomplete = true;
    }
}

/// A table of the configuration, in all the layers that have it.
#[derive(Debug)]
pub struct Section {
    prefix: String,
    layers: Vec<(PathBuf, Table)>,
    credentials: Rc<Credentials>,
    problems: Problems,
}

impl Section {
    /// Reads the files in order; one that cannot be read or is no TOML is a problem like any other.
    pub fn open(files: &[PathBuf]) -> Self {
        Self::open_with(files, |file| std::fs::read_to_string(file).map_err(|e| format!("cannot be read: {e}")))
    }

    /// Like [`Section::open`], with the caller's way of reading a file; its error says what is wrong with that file.
    pub fn open_with(files: &[PathBuf], read: impl Fn(&Path) -> Result<String, String>) -> Self {
        let problems = Problems::default();
        let mut layers = Vec::new();
        // Also of a file that cannot be read: what is missing is missing in it.
        let named = files.first().cloned().unwrap_or_default();
        for file in files {
            let parsed = read(file).and_then(|text| {
                Table::from_str(&text).map_err(|e| format!("is not TOML: {}", e.to_string().trim_end()))
            });
            match parsed {
                Ok(table) => layers.push((file.clone(), table)),
                Err(what) => problems.borrow_mut().unreadable(file.clone(), what),
            }
        }
        if layers.is_empty() {
            layers.push((named, Table::new()));
        }
        Self { prefix: String::new(), layers, credentials: Rc::default(), problems }
    }

    /// Reads text as if it stood in `file`, for tests.
    pub fn from_text(file: &str, text: &str) -> Self {
        let problems = Problems::default();
        let file = PathBuf::from(file);
        let layers = match Table::from_str(text) {
            Ok(table) => vec![(file, table)],
            Err(e) => {
                problems.borrow_mut().unreadable(file, format!("is not TOML: {e}"));
                Vec::new()
            }
        };
        Self { prefix: String::new(), layers, credentials: Rc::default(), problems }
    }

    /// The same, where names in [`Section::file`] lead to these.
    #[must_use]
    pub fn with_credentials(self, credentials: Credentials) -> Self {
        Self { credentials: Rc::new(credentials), ..self }
    }

    fn dotted(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }

    fn first_file(&self) -> PathBuf {
        self.layers.first().map(|(file, _)| file.clone()).unwrap_or_default()
    }

    /// Takes the value of `key` out of every layer; the last layer's counts.
    fn take(&mut self, key: &str) -> Option<(PathBuf, Value)> {
        let mut last = None;
        for (file, table) in &mut self.layers {
            if let Some(value) = table.remove(key) {
                last = Some((file.clone(), value));
            }
        }
        last
    }

    /// Notes a problem with `key`, for checks that concern more than one value, or one that is missing. Where a file
    /// could not be read nobody knows what is missing, and nothing is noted.
    pub fn complain(&self, key: &str, what: impl Into<String>) {
        if !self.problems.borrow().incomplete {
            self.complain_in(self.first_file(), key, what.into());
        }
    }

    fn complain_in(&self, file: PathBuf, key: &str, what: String) {
        self.problems.borrow_mut().problems.push(Problem { file, key: self.dotted(key), what });
    }

    /// Reads `key` through `parse`, whose error says what is expected; `None` where the key is absent or wrong.
    pub fn value<T>(&mut self, key: &str, parse: impl FnOnce(Value) -> Result<T, String>) -> Option<T> {
        let (file, value) = self.take(key)?;
        match parse(value) {
            Ok(parsed) => Some(parsed),
            Err(what) => {
                self.complain_in(file, key, what);
                None
            }
        }
    }

    /// A text, parsed by its type; `None` where absent or wrong (wrong is noted).
    pub fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Option<T> {
        self.value(key, |value| text(value)?.parse().map_err(|e| format!("{e}")))
    }

    /// A text, parsed by its type, that must be there.
    pub fn required<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Option<T> {
        if !self.has(key) {
            self.complain(key, "is missing, and has no default");
        }
        self.parsed(key)
    }

    /// Whether any layer has `key`.
    pub fn has(&self, key: &str) -> bool {
        self.layers.iter().any(|(_, table)| table.contains_key(key))
    }

    /// A path; relative ones are an error, because a service has no useful working directory.
    pub fn path(&mut self, key: &str, default: impl AsRef<Path>) -> PathBuf {
        self.optional_path(key).unwrap_or_else(|| default.as_ref().to_owned())
    }

    /// An absolute path or nothing.
    pub fn optional_path(&mut self, key: &str) -> Option<PathBuf> {
        self.value(key, |value| {
            let path = PathBuf::from(text(value)?);
            if path.is_absolute() {
                Ok(path)
            } else {
                Err(format!("must be an absolute path, not `{}`", path.display()))
            }
        })
    }

    /// A file: an absolute path, or a name without a slash, which is a credential's.
    pub fn file(&mut self, key: &str) -> Option<NamedFile> {
        let credentials = Rc::clone(&self.credentials);
        let file = self.value(key, |value| {
            let named = text(value)?;
            let path = PathBuf::from(&named);
            if path.is_absolute() {
                return Ok(NamedFile::Path(path));
            }
            if named.is_empty() || named.starts_with('.') || named.contains('/') {
                return Err(format!("must be an absolute path, or the name of a credential, not `{named}`"));
            }
            match &*credentials {
                Credentials::Directory(dir) => Ok(NamedFile::Credential(dir.join(named))),
                Credentials::OutOfSight => Ok(NamedFile::OutOfSight),
                Credentials::None => Err(format!(
                    "`{named}` is a credential's name, and there is no $CREDENTIALS_DIRECTORY: start the program by its \
                     systemd unit with LoadCredential={named}:…, or write an absolute path"
                )),
            }
        });
        if file == Some(NamedFile::OutOfSight) {
            self.problems.borrow_mut().out_of_sight.push(self.dotted(key));
        }
        file
    }

    /// The keys so far that name credentials which cannot be looked at here.
    pub fn out_of_sight(&self) -> Vec<String> {
        self.problems.borrow().out_of_sight.clone()
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &str, default: bool) -> bool {
        let flag = self.value(key, |value| value.as_bool().ok_or_else(|| "must be true or false".to_owned()));
        flag.unwrap_or(default)
    }

    /// A whole number within `range`.
    pub fn integer<T>(&mut self, key: &str, default: T, range: RangeInclusive<T>) -> T
    where
        T: TryFrom<i64> + PartialOrd + fmt::Display + Copy,
    {
        let expected = format!("must be a whole number from {} to {}", range.start(), range.end());
        let number = self.value(key, |value| {
            let number = value.as_integer().and_then(|n| T::try_from(n).ok()).filter(|n| range.contains(n));
            number.ok_or(expected)
        });
        number.unwrap_or(default)
    }

    /// A span of time such as `"30s"`, `"5min"`, `"24h"`, within `range`.
    pub fn duration(&mut self, key: &str, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        let expected = format!(
            "must be a time such as \"30s\" or \"5min\", from {} to {}",
            humantime::format_duration(*range.start()),
            humantime::format_duration(*range.end())
        );
        let span = self.value(key, |value| {
            let span = value.as_str().and_then(|s| humantime::parse_duration(s).ok());
            span.filter(|span| range.contains(span)).ok_or(expected)
        });
        span.unwrap_or(default)
    }

    /// A size in bytes, as a number or such as `"512MiB"`, within `range`.
    pub fn size(&mut self, key: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let expected = format!(
            "must be a size in bytes or such as \"512MiB\", from {} to {}",
            bytesize::ByteSize(*range.start()),
            bytesize::ByteSize(*range.end())
        );
        let size = self.value(key, |value| {
            let size = match &value {
                Value::Integer(n) => u64::try_from(*n).ok(),
                Value::String(s) => s.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()),
                _ => None,
            };
            size.filter(|size| range.contains(size)).ok_or(expected)
        });
        size.unwrap_or(default)
    }

    /// A list of texts.
    pub fn texts(&mut self, key: &str, default: &[&str]) -> Vec<String> {
        let list = self.value(key, |value| match value {
            Value::Array(items) => items.into_iter().map(text).collect::<Result<Vec<_>, _>>(),
            _ => Err("must be a list of texts".to_owned()),
        });
        list.unwrap_or_else(|| default.iter().map(|&s| s.to_owned()).collect())
    }

    /// The table below `key`; an absent one reads as empty. Close it with [`Section::close`].
    #[must_use]
    pub fn section(&mut self, key: &str) -> Self {
        let mut layers = Vec::new();
        let mut wrong = Vec::new();
        for (file, table) in &mut self.layers {
            match table.remove(key) {
                Some(Value::Table(inner)) => layers.push((file.clone(), inner)),
                Some(_) => wrong.push(file.clone()),
                None => {}
            }
        }
        for file in wrong {
            self.complain_in(file, key, "must be a table".to_owned());
        }
        if layers.is_empty() {
            layers.push((self.first_file(), Table::new()));
        }
        let (credentials, problems) = (Rc::clone(&self.credentials), Rc::clone(&self.problems));
        Self { prefix: self.dotted(key), layers, credentials, problems }
    }

    /// The keys that are left in any layer, sorted: for tables whose keys are names, such as variables or users.
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.layers.iter().flat_map(|(_, table)| table.keys().cloned()).collect();
        keys.sort();
        keys.dedup();
        keys
    }

    /// Ends the reading of this table: what nobody took is unknown.
    pub fn close(self) {
        for (file, table) in &self.layers {
            for key in table.keys() {
                self.complain_in(file.clone(), key, "is not a known key".to_owned());
            }
        }
    }

    /// Ends the reading of the whole configuration.
    pub fn finish(self) -> Result<(), ConfigError> {
        let problems = Rc::clone(&self.problems);
        self.close();
        let problems = problems.take().problems;
        if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems)) }
    }
}

fn text(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err("must be a text".to_owned()),
    }
}

/// A range of whole seconds, for [`Section::duration`].
pub fn seconds(from: u64, to: u64) -> RangeInclusive<Duration> {
    Duration::from_secs(from)..=Duration::from_secs(to)
}

/// A size in memory as one in a file, for [`Section::size`].
pub fn bytes(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_reported_at_once_with_file_and_key() {
        let mut root = Section::from_text("a.toml", "n = 9\nx = 1\n[t]\nd = \"soon\"\nz = 2\n");
        assert_eq!(root.integer("n", 1_u32, 1..=5), 1);
        let mut t = root.section("t");
        assert_eq!(t.duration("d", Duration::from_secs(3), Duration::ZERO..=Duration::from_secs(9)).as_secs(), 3);
        t.close();
        let error = root.finish().expect_err("four problems");
        let keys: Vec<_> = error.problems().iter().map(|p| p.key.as_str()).collect();
        assert_eq!(keys, ["n", "t.d", "t.z", "x"]);
        assert!(error.to_string().starts_with("a.toml: n: must be a whole number from 1 to 5\n"));
    }

    #[test]
    fn nothing_is_said_to_be_missing_when_a_file_was_not_understood() {
        let mut root = Section::from_text("a.toml", "= =\n");
        assert_eq!(root.required::<String>("name"), None);
        let error = root.finish().expect_err("no TOML");
        let [only] = error.problems() else { panic!("{error}") };
        assert!(only.what.starts_with("is not TOML: "), "{error}");
    }

    #[test]
    fn a_later_file_is_laid_over_an_earlier_one_key_by_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "[t]\none = 1\ntwo = 2\n").expect("write");
        std::fs::write(&b, "[t]\ntwo = 22\n").expect("write");
        let mut root = Section::open(&[a, b]);
        let mut t = root.section("t");
        assert_eq!((t.integer("one", 0, 0..=99), t.integer("two", 0, 0..=99)), (1, 22));
        t.close();
        assert_eq!(root.finish(), Ok(()));
    }

    #[test]
    fn a_name_without_a_slash_is_a_credentials() {
        let text = "a = \"secret\"\nb = \"/x/secret\"\nc = \"x/secret\"\n";
        let read = |credentials| {
            let mut root = Section::from_text("a.toml", text).with_credentials(credentials);
            let files = ["a", "b", "c"].map(|key| root.file(key));
            (files, root.out_of_sight(), root.finish().expect_err("c is neither").to_string())
        };
        let absolute = Some(NamedFile::Path("/x/secret".into()));
        let (files, unseen, said) = read(Credentials::Directory("/run/c".into()));
        assert_eq!(files, [Some(NamedFile::Credential("/run/c/secret".into())), absolute.clone(), None]);
        assert!(unseen.is_empty() && said.contains("c: must be an absolute path, or the name"), "{said}");
        let (files, unseen, said) = read(Credentials::OutOfSight);
        assert_eq!(files, [Some(NamedFile::OutOfSight), absolute.clone(), None]);
        assert!(unseen == ["a"] && !said.contains("a.toml: a:"), "{said}");
        let (files, _, said) = read(Credentials::None);
        assert_eq!(files, [None, absolute, None]);
        assert!(
            said.contains("a.toml: a: `secret` is a credential's name, and there is no $CREDENTIALS_DIRECTORY"),
            "{said}"
        );
    }

    #[test]
    fn sizes_and_times_have_units() {
        let mut root = Section::from_text("a", "s = \"2MiB\"\nd = \"5min\"\n");
        assert_eq!(root.size("s", 0, 0..=u64::MAX), 2 * 1024 * 1024);
        assert_eq!(root.duration("d", Duration::ZERO, Duration::ZERO..=Duration::MAX).as_secs(), 300);
        assert_eq!(root.finish(), Ok(()));
    }
}
