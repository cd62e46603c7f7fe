//! The names under which the broker is called, and the pages that may call it: `public_url`, `[http] hosts` and
//! `[http] allowed_origins`.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use url::Url;

use crate::http::host::Host;
use crate::live::Live;
use crate::metrics::Metrics;
use wire::config_file::Section;

/// Foreign names that are told to the operator, each once: a stranger can think of any number.
const MAX_TOLD: usize = 32;

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Names {
    /// What `public_url` names.
    own: Option<Host>,
    /// `public_url`, which is an origin.
    own_origin: String,
    /// The operator's further names.
    hosts: HashSet<Host>,
    /// The operator's pages.
    origins: HashSet<String>,
}

impl Names {
    /// `hosts` and `allowed_origins` of `[http]`.
    pub(crate) fn read(http: &mut Section) -> Self {
        let (mut hosts, mut origins) = (HashSet::new(), HashSet::new());
        for text in http.texts("hosts", &[]) {
            match host(&text) {
                Ok(host) => drop(hosts.insert(host)),
                Err(what) => http.complain("hosts", format!("`{text}` {what}")),
            }
        }
        for text in http.texts("allowed_origins", &[]) {
            match origin(&text) {
                Ok(()) => drop(origins.insert(text)),
                Err(what) => http.complain("allowed_origins", format!("`{text}` {what}")),
            }
        }
        Self { own: None, own_origin: String::new(), hosts, origins }
    }

    /// With the broker's own address, a bare origin.
    #[must_use]
    pub(crate) fn at(mut self, public_url: &str) -> Self {
        self.own = public_url.split_once("://").and_then(|(_, authority)| Host::parse(authority)).map(|(host, _)| host);
        public_url.clone_into(&mut self.own_origin);
        self
    }

    /// Whether the broker is called that. `is_local` says that the request comes from this machine: behind a proxy it
    /// always does, but no name server makes the loopback names another's.
    pub(crate) fn has(&self, host: &Host, is_local: bool) -> bool {
        self.own.as_ref() == Some(host) || self.hosts.contains(host) || is_local && host.is_loopback()
    }

    /// Whether a page of this origin may call: one of the operator's, one under the broker's own names, or one of the
    /// machine that the broker is called by a loopback name on. `asked` is the name that it was called by, which
    /// [`Self::has`] has let in.
    pub(crate) fn lets_in(&self, origin: &str, asked: Option<&Host>) -> bool {
        if self.own_origin == origin || self.origins.contains(origin) {
            return true;
        }
        let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        let Some((host, _)) = authority.and_then(Host::parse) else { return false };
        self.hosts.contains(&host) || host.is_loopback() && asked.is_some_and(Host::is_loopback)
    }

    /// Whether the operator has named the origin, so that browsers are told that its pages may read answers.
    pub(crate) fn names_origin(&self, origin: &[u8]) -> bool {
        std::str::from_utf8(origin).is_ok_and(|origin| self.origins.contains(origin))
    }
}

/// What the checks of names need. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    /// A reload exchanges them.
    pub(crate) names: Live<Names>,
    /// Counts who is refused.
    pub(crate) metrics: Metrics,
    told: Arc<Mutex<HashSet<Host>>>,
}

impl Gate {
    /// By these names.
    pub(crate) fn new(names: Live<Names>, metrics: Metrics) -> Self {
        Self { names, metrics, told: Arc::default() }
    }

    /// Whether a foreign name is worth a line: the first time, and not without end.
    pub(crate) fn tells(&self, host: &Host) -> bool {
        let mut told = self.told.lock();
        told.len() < MAX_TOLD && told.insert(host.clone())
    }
}

/// A name or an address of the broker's own.
fn host(text: &str) -> Result<Host, String> {
    if text == "*" {
        return Err("would let in every name: name those by which clients reach the broker".to_owned());
    }
    match Host::parse(text) {
        Some((host, None)) if !text.ends_with(':') => Ok(host),
        Some((host, _)) => Err(format!("has a port; a name counts with every port: \"{host}\"")),
        None if text.parse::<std::net::Ipv6Addr>().is_ok() => Err(format!("must be in brackets: \"[{text}]\"")),
        None => {
            Err("is no name as it stands in Host, such as \"mcp.internal\", \"10.0.0.7\" or \"[fd00::7]\"".to_owned())
        }
    }
}

/// What browsers send in `Origin` (RFC 6454 section 6.2): anything else would never match.
fn origin(text: &str) -> Result<(), String> {
    if text == "*" {
        return Err("would let every web page in: name the origins of those that may".to_owned());
    }
    let url = Url::parse(text).ok().filter(Url::has_host);
    let expected = url.map(|url| match url.origin() {
        origin @ url::Origin::Tuple(..) => origin.ascii_serialization(),
        // The scheme of a program, such as app://host.
        url::Origin::Opaque(_) => format!("{}://{}", url.scheme(), url.authority()),
    });
    match expected {
        Some(expected) if expected == text => Ok(()),
        Some(expected) => Err(format!("is no origin as browsers send it; that would be \"{expected}\"")),
        None => Err("is no origin, such as \"https://inspector.example.org\" or \"http://localhost:6274\"".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Names {
        let mut root = Section::from_text("broker.toml", text);
        let names = Names::read(&mut root).at("https://mcp.example:8443");
        root.finish().expect("a configuration");
        names
    }

    fn parsed(text: &str) -> Host {
        Host::parse(text).expect("a host").0
    }

    #[test]
    fn the_own_name_the_configured_ones_and_from_this_machine_the_loopback_ones_are_the_brokers() {
        let names = names("hosts = [\"MCP.internal.\", \"10.0.0.7\", \"[fd00::7]\"]");
        for text in ["mcp.example", "mcp.example:1", "mcp.internal", "Mcp.Internal.:99", "10.0.0.7:8080", "[fd00:0::7]"]
        {
            assert!(names.has(&parsed(text), false), "{text}");
        }
        for text in ["localhost", "127.0.0.1:8080", "[::1]"] {
            assert!(names.has(&parsed(text), true) && !names.has(&parsed(text), false), "{text}");
        }
        for text in ["evil.example", "mcp.example.evil", "x.mcp.example", "10.0.0.8", "0.0.0.0"] {
            assert!(!names.has(&parsed(text), true), "{text}");
        }
    }

    #[test]
    fn pages_come_from_where_the_broker_is_called_or_from_where_the_operator_says() {
        let names = names("hosts = [\"mcp.internal\"]\nallowed_origins = [\"https://a.example\", \"app://x\"]");
        let (outside, local) = (parsed("mcp.example"), parsed("localhost:8080"));
        for origin in [
            "https://mcp.example:8443",
            "https://a.example",
            "app://x",
            "https://mcp.internal",
            "http://mcp.internal:8080",
        ] {
            assert!(names.lets_in(origin, Some(&outside)) && names.lets_in(origin, None), "{origin}");
        }
        for origin in ["http://localhost:8080", "http://127.0.0.1:6274", "http://[::1]:6274"] {
            assert!(names.lets_in(origin, Some(&local)), "{origin}");
            assert!(!names.lets_in(origin, Some(&outside)) && !names.lets_in(origin, None), "{origin}");
        }
        for origin in [
            "null",
            "",
            "https://mcp.example",
            "http://mcp.example:8443",
            "https://evil.example",
            "https://a.example:444",
            "https://A.example",
            "https://mcp.internal.evil",
            "ftp://mcp.internal",
            "mcp.internal",
            "https://x@mcp.internal",
            "https://mcp.internal/",
        ] {
            assert!(!names.lets_in(origin, Some(&local)), "{origin}");
        }
        assert!(names.names_origin(b"https://a.example") && !names.names_origin(b"https://mcp.internal"));
    }

    #[test]
    fn a_foreign_name_is_told_once_and_so_are_not_very_many() {
        let gate = Gate::new(Live::new(Names::default()), Metrics::new().expect("metrics"));
        let told = (0..1000).filter(|n| gate.tells(&parsed(&format!("h{}.example", n % 100)))).count();
        assert_eq!(told, MAX_TOLD);
    }
}
