//! What a child is: program, arguments and the names of its variables. All that the code knows of a child program.
//!
//! Comes out of the policy, is trusted as root's word, and never holds a token.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::forge_url::ForgeUrl;
use toml::Value;
use wire::config_file::Section;

/// `[child]` and `[forgejo]` of the policy.
#[derive(Debug)]
pub(crate) struct Profile {
    /// Absolute path of the program.
    pub(crate) program: PathBuf,
    /// Its fixed arguments.
    pub(crate) arguments: Vec<String>,
    /// All variables but the token's: the URL's, the defaults, `[child.environment]`.
    pub(crate) environment: BTreeMap<String, String>,
    /// The variables that hold the token.
    pub(crate) token_variables: Vec<String>,
    /// The variable that holds the URL.
    pub(crate) url_variable: String,
    /// TCP ports that it connects to: Forgejo's, and that of a proxy in its environment.
    pub(crate) ports: BTreeSet<u16>,
    /// What an address space limit must leave, in bytes: a Go program reserves far more than it uses.
    pub(crate) least_address_space: u64,
    /// The address space limit of each process where no cgroup bounds memory, in bytes, and the policy says nothing.
    pub(crate) usual_address_space: u64,
    /// What the cgroup's memory limit must leave, in bytes: with less the program does not even start.
    pub(crate) least_memory: u64,
}

impl Profile {
    /// The files that its arguments and variables name, as far as they are there, and what every program reads to reach
    /// another machine.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        let named = self.arguments.iter().chain(self.environment.values()).map(String::as_str);
        let common = ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl/certs"];
        named.chain(common).map(Path::new).filter(|path| path.is_absolute() && path.exists())
    }

    /// `[….environment]` of one user: further variables, laid over those of the profile.
    ///
    /// No proxy: the ports that Landlock lets a child connect to are the same for all.
    pub(crate) fn read_extras(&self, user: &mut Section) -> BTreeMap<String, String> {
        let mut extras = user.section("environment");
        let mut environment = BTreeMap::new();
        for name in extras.keys() {
            let checked = variable(Value::String(name.clone()));
            let value = extras.value(&name, |value| match value {
                Value::String(text) if !text.contains('\0') => checked.map(|_| text),
                _ => Err("must be a text without NUL".to_owned()),
            });
            if self.token_variables.contains(&name) || self.url_variable == name {
                extras.complain(&name, "is set by the supervisor itself");
            }
            if name.to_ascii_uppercase().ends_with("_PROXY") {
                extras.complain(&name, "is the same for all users: write it in [child.environment]");
            }
            environment.extend(value.map(|value| (name, value)));
        }
        extras.close();
        environment
    }
}

struct Preset {
    name: &'static str,
    program: Option<&'static str>,
    url_variable: &'static str,
    token_variables: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    least_address_space: u64,
    usual_address_space: u64,
    least_memory: u64,
}

/// Each with its reason in `facts`: what the program reads, and what keeps it small.
const PRESETS: [Preset; 3] = [
    Preset {
        name: "forgejo-mcp",
        program: Some("/usr/bin/forgejo-mcp"),
        url_variable: "FORGEJO_URL",
        token_variables: &["FORGEJO_ACCESS_TOKEN"],
        // The Go runtime's soft limit, below the default memory_max, so that it collects before the kernel kills.
        environment: &[("GOMEMLIMIT", "384MiB"), ("GOMAXPROCS", "2")],
        least_address_space: 4 << 30,
        usual_address_space: 6 << 30,
        // 16 to 18 MiB when idle, 52 with a file of 5 MB.
        least_memory: 32 << 20,
    },
    Preset {
        name: "forgejo-mcp-rs",
        program: Some("/usr/bin/forgejo-mcp-rs"),
        url_variable: "FORGEJO_URL",
        // It writes only with a second token in FORGEJO_TOKEN_WRITE that differs from this one, and a child has one
        // token: with this preset it reads only.
        token_variables: &["FORGEJO_TOKEN_READ_ONLY"],
        // Two worker threads, as with Go: by default there is one a CPU, and a user's children share `pids_max`.
        environment: &[("FORGEJO_FLAVOR", "forgejo"), ("TOKIO_WORKER_THREADS", "2")],
        least_address_space: 64 << 20,
        usual_address_space: 2 << 30,
        least_memory: 8 << 20,
    },
    Preset {
        name: "custom",
        program: None,
        url_variable: "FORGEJO_URL",
        token_variables: &["FORGEJO_ACCESS_TOKEN"],
        environment: &[],
        least_address_space: 64 << 20,
        // It may run in Node, which reserves 10 GiB for each WebAssembly memory and has one in its HTTP client.
        usual_address_space: 32 << 30,
        least_memory: 8 << 20,
    },
];

/// What every child has unless `[child.environment]` says otherwise. It has no home and writes no file.
const COMMON: [(&str, &str); 4] =
    [("HOME", "/nonexistent"), ("PATH", "/usr/bin:/bin"), ("LANG", "C.UTF-8"), ("TMPDIR", "/nonexistent")];

/// Variables that name a proxy, in capitals or not.
const PROXIES: [&str; 3] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];

/// Reads `[forgejo]` and `[child]`; what is wrong is noted in the sections.
pub(crate) fn read(root: &mut Section) -> Profile {
    let mut forgejo = root.section("forgejo");
    let missing = !forgejo.has("url");
    let url = forgejo.parsed::<ForgeUrl>("url");
    if missing {
        forgejo.complain("url", "is missing: the base URL of the Forgejo instance");
    }
    forgejo.close();

    let mut child = root.section("child");
    let [default, ..] = &PRESETS;
    let preset = child.value("profile", |value| {
        let preset = value.as_str().and_then(|name| PRESETS.iter().find(|preset| preset.name == name));
        preset.ok_or_else(|| "must be \"forgejo-mcp\", \"forgejo-mcp-rs\" or \"custom\"".to_owned())
    });
    let preset = preset.unwrap_or(default);
    let program = match (child.optional_path("program"), preset.program) {
        (Some(program), _) => program,
        (None, Some(program)) => PathBuf::from(program),
        (None, None) => {
            child.complain("program", "is missing, and a custom profile has no default");
            PathBuf::new()
        }
    };
    let arguments = child.texts("arguments", &[]);
    if arguments.iter().any(|argument| argument.contains('\0')) {
        child.complain("arguments", "must not hold a NUL");
    }
    let url_variable = child.value("url_variable", variable).unwrap_or_else(|| preset.url_variable.to_owned());
    let token_variables = child.texts("token_variables", preset.token_variables);
    for name in &token_variables {
        if let Err(what) = variable(Value::String(name.clone())) {
            child.complain("token_variables", what);
        }
    }
    if token_variables.is_empty() {
        child.complain("token_variables", "must name at least one variable");
    }

    let mut environment: BTreeMap<String, String> =
        COMMON.iter().chain(preset.environment).map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut ports = BTreeSet::new();
    let mut extras = child.section("environment");
    for name in extras.keys() {
        let checked = variable(Value::String(name.clone()));
        let value = extras.value(&name, |value| match value {
            Value::String(text) if !text.contains('\0') => checked.map(|_| text),
            _ => Err("must be a text without NUL".to_owned()),
        });
        if token_variables.contains(&name) || name == url_variable {
            extras.complain(&name, "is set by the supervisor itself");
        }
        let Some(value) = value else { continue };
        if PROXIES.iter().any(|proxy| name.eq_ignore_ascii_case(proxy)) && !value.is_empty() {
            match proxy_port(&value) {
                Ok(port) => drop(ports.insert(port)),
                Err(what) => extras.complain(&name, what),
            }
        }
        environment.insert(name, value);
    }
    extras.close();
    child.close();
    if let Some(url) = url {
        ports.insert(url.port());
        environment.insert(url_variable.clone(), url.into());
    }
    let Preset { least_address_space, usual_address_space, least_memory, .. } = *preset;
    Profile {
        program,
        arguments,
        environment,
        token_variables,
        url_variable,
        ports,
        least_address_space,
        usual_address_space,
        least_memory,
    }
}

/// The port of a proxy, as the variables of curl(1) name one; the scheme's where it has none.
fn proxy_port(value: &str) -> Result<u16, String> {
    let (scheme, rest) = value.split_once("://").unwrap_or(("http", value));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // An IPv6 address has colons of its own, in brackets.
    let port = host.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.ends_with(']'));
    match (port, scheme) {
        (Some(port), _) => {
            port.parse().ok().filter(|&port| port > 0).ok_or("names a proxy with a port that is none".to_owned())
        }
        (None, "https") => Ok(443),
        (None, scheme) if scheme.starts_with("socks") => Ok(1080),
        (None, _) => Ok(80),
    }
}

/// A variable's name. `LD_*` is the dynamic linker's, and would turn any program into any other.
fn variable(value: Value) -> Result<String, String> {
    let Value::String(name) = value else { return Err("must be a text".to_owned()) };
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if name.is_empty() || !letters || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("`{name}` is no name of a variable"));
    }
    if name.starts_with("LD_") { Err(format!("`{name}` is the dynamic linker's")) } else { Ok(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_may_connect_to_its_forge_and_its_proxy() {
        let ports = |text: &str| {
            let mut root = Section::from_text("s", text);
            let profile = read(&mut root);
            (profile.ports.into_iter().collect::<Vec<_>>(), root.finish())
        };
        let forge = "[forgejo]\nurl = \"https://git.example\"\n[child.environment]\n";
        for (variable, expected) in [
            ("EXTRA = \"http://other.example:1\"", [443].as_slice()),
            ("HTTPS_PROXY = \"http://user:se%40cret@proxy.example:3128/\"", &[443, 3128]),
            ("http_proxy = \"proxy.example:8118\"", &[443, 8118]),
            ("all_proxy = \"socks5h://[2001:db8::1]\"", &[443, 1080]),
            ("all_proxy = \"\"", &[443]),
        ] {
            assert_eq!(ports(&format!("{forge}{variable}\n")), (expected.to_vec(), Ok(())), "{variable}");
        }
        let (_, problems) = ports(&format!("{forge}HTTPS_PROXY = \"http://proxy.example:0\"\n"));
        assert!(problems.is_err_and(|e| e.to_string().contains("child.environment.HTTPS_PROXY: names a proxy")));
    }
}
