//! The child's profile: all that the code knows of the program that it starts.
//!
//! `forgejo-mcp` and `forgejo-mcp-rs` are presets; anything that speaks MCP on stdio and takes its token from an
//! environment variable is written down the same way under `custom`.

use std::path::{Path, PathBuf};

use super::only_root_writes;
use crate::config_file::Section;

/// What is started, and how it is told where Forgejo is and who it works for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// The program.
    pub program: PathBuf,
    /// Its fixed arguments; never a secret.
    pub arguments: Vec<String>,
    /// The variable for Forgejo's address, and the address.
    pub url: (String, String),
    /// The variables that all get the token.
    pub token_variables: Vec<String>,
    /// Everything else in its environment.
    pub environment: Vec<(String, String)>,
}

struct Preset {
    program: Option<&'static str>,
    url_variable: &'static str,
    token_variables: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

/// What every child gets unless the configuration says otherwise. No home and no writable place: the programs that
/// are known need neither.
const ALWAYS: [(&str, &str); 4] =
    [("HOME", "/nonexistent"), ("PATH", "/usr/bin:/bin"), ("LANG", "C.UTF-8"), ("TMPDIR", "/nonexistent")];

/// goern's program in Go. Its soft memory limit stays below the cgroup's hard one.
const FORGEJO_MCP: Preset = Preset {
    program: Some("/usr/bin/forgejo-mcp"),
    url_variable: "FORGEJO_URL",
    token_variables: &["FORGEJO_ACCESS_TOKEN"],
    environment: &[("GOMEMLIMIT", "400MiB"), ("GOMAXPROCS", "2")],
};

/// The program in Rust. With one token it only reads: its write token must differ from its read token.
const FORGEJO_MCP_RS: Preset = Preset {
    program: Some("/usr/bin/forgejo-mcp-rs"),
    url_variable: "FORGEJO_URL",
    token_variables: &["FORGEJO_TOKEN_READ_ONLY"],
    environment: &[("FORGEJO_FLAVOR", "forgejo")],
};

const CUSTOM: Preset = Preset { program: None, url_variable: "FORGEJO_URL", token_variables: &[], environment: &[] };

/// Names that would let a configuration mistake undo the isolation, or hand a child the host's files.
const NEVER: [&str; 5] =
    ["LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "FORGEJO_MCP_ALLOW_FILE_PATH_UPLOAD", "FORGEJO_UPLOAD_ROOT"];

impl Profile {
    /// Reads `[child]`.
    pub(super) fn read(mut section: Section, url: Option<String>, privileged: bool) -> Option<Self> {
        let preset = section.value("profile", |value| match value.as_str() {
            Some("forgejo-mcp") => Ok(FORGEJO_MCP),
            Some("forgejo-mcp-rs") => Ok(FORGEJO_MCP_RS),
            Some("custom") => Ok(CUSTOM),
            _ => Err("must be \"forgejo-mcp\", \"forgejo-mcp-rs\" or \"custom\"".to_owned()),
        });
        let preset = preset.unwrap_or(FORGEJO_MCP);
        let program = section.optional_path("program").or_else(|| preset.program.map(PathBuf::from));
        match &program {
            None => section.complain("program", "is missing: profile \"custom\" needs the path of the program"),
            Some(program) => {
                if let Err(what) = startable(program, privileged) {
                    section.complain("program", format!("{} {what}", program.display()));
                }
            }
        }
        let arguments = section.texts("arguments", &[]);
        let url_variable = section.parsed::<Variable>("url_variable").map(|name| name.0);
        let token_variables = section.texts("token_variables", preset.token_variables);
        if token_variables.is_empty() {
            section.complain("token_variables", "is missing: name the variables that the program takes its token from");
        }
        if let Some(name) = token_variables.iter().find(|name| name.parse::<Variable>().is_err()) {
            section.complain("token_variables", format!("`{name}` is not a name for a variable"));
        }
        let environment = environment(section.section("environment"), &preset);
        section.close();
        Some(Self {
            program: program?,
            arguments,
            url: (url_variable.unwrap_or_else(|| preset.url_variable.to_owned()), url?),
            token_variables,
            environment,
        })
    }
}

fn environment(mut section: Section, preset: &Preset) -> Vec<(String, String)> {
    let mut environment: Vec<(String, String)> = Vec::new();
    for (name, value) in ALWAYS.iter().chain(preset.environment) {
        let value = section.parsed::<String>(name).unwrap_or_else(|| (*value).to_owned());
        environment.push(((*name).to_owned(), value));
    }
    for name in section.keys() {
        if name.parse::<Variable>().is_err() {
            section.complain(&name, "is not a name for a variable, or is never given to a child");
        }
        if let Some(value) = section.parsed::<String>(&name) {
            environment.push((name, value));
        }
    }
    section.close();
    environment
}

/// A variable's name: `[A-Z_][A-Z0-9_]*` in either case, and none of [`NEVER`].
struct Variable(String);

impl std::str::FromStr for Variable {
    type Err = &'static str;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if plain && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && !NEVER.contains(&name) {
            Ok(Self(name.to_owned()))
        } else {
            Err("is not a name for a variable, or is never given to a child")
        }
    }
}

/// Whether the program can be started, and by whom it could be replaced.
fn startable(program: &Path, privileged: bool) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let meta = std::fs::metadata(program).map_err(|e| format!("cannot be started: {e}"))?;
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Err("is not an executable file".to_owned());
    }
    if privileged { only_root_writes(program) } else { Ok(()) }
}
