//! For whom a request is: `Host`, or the authority of an absolute target (RFC 9112 sections 3.2 and 3.2.2).
//!
//! A page that a browser was tricked into taking for one of this machine (DNS rebinding) sends the name that it was loaded
//! by. Whoever does not name the broker by one of its names gets nothing from it, token or not.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::extract::{Request, State};
use axum::http::header::HOST;
use axum::http::uri::Scheme;
use axum::http::{StatusCode, Version};
use axum::middleware::Next;
use axum::response::Response;
use tracing::warn;

use crate::auth::rates::Peer;
use crate::http::names::Gate;
use crate::http::said;
use crate::trace::Trace;

/// Bytes of a name (RFC 1035 section 2.3.4: 255 with the lengths of its labels).
const MAX_NAME: usize = 253;

/// A name or an address, without a port. Names are equal in any case, with or without the dot of the root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    /// In lower case.
    Name(Box<str>),
    /// An IPv4 address in an IPv6 one is the IPv4 address.
    Address(IpAddr),
}

impl Host {
    /// Reads `uri-host [ ":" port ]` (RFC 9110 section 7.2), and nothing beside it; the port, where there is one.
    pub(crate) fn parse(text: &str) -> Option<(Self, Option<u16>)> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, port) = rest.split_once(']')?;
            (Self::Address(address.parse::<Ipv6Addr>().ok()?.to_canonical()), port)
        } else {
            let (name, port) = text.split_at_checked(text.find(':').unwrap_or(text.len()))?;
            (Self::name(name)?, port)
        };
        let port = match port.strip_prefix(':') {
            // The grammar has it so: a port may be empty, and is the scheme's then.
            Some("") => None,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
            None if port.is_empty() => None,
            _ => return None,
        };
        Some((host, port))
    }

    fn name(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Some(Self::Address(address.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        // reg-name of RFC 3986 section 3.2.2.
        let of_a_name = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&b);
        let good = !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(of_a_name);
        good.then(|| Self::Name(name.to_ascii_lowercase().into()))
    }

    /// Whether it means the machine that says it, whatever DNS says: `localhost` (RFC 6761 section 6.3) and the loopback
    /// addresses.
    pub(crate) fn is_loopback(&self) -> bool {
        match self {
            Self::Name(name) => **name == *"localhost",
            Self::Address(address) => address.is_loopback(),
        }
    }

    /// Of a request: of its absolute target, where it has one, else what `Host` says. `None` for one in HTTP/1.0 that
    /// says nothing.
    fn of(request: &Request) -> Result<Option<Self>, HostError> {
        let mut values = request.headers().get_all(HOST).iter();
        let host = match (values.next(), values.next()) {
            (Some(value), None) => {
                let text = value.to_str().map_err(|_| HostError::Invalid)?;
                Some(Self::parse(text).ok_or(HostError::Invalid)?.0)
            }
            (Some(_), Some(_)) => return Err(HostError::Twice),
            (None, _) if request.version() < Version::HTTP_11 => None,
            (None, _) => return Err(HostError::Missing),
        };
        let uri = request.uri();
        match (uri.scheme(), uri.authority()) {
            (None, _) | (_, None) => Ok(host),
            (Some(scheme), Some(authority)) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => {
                Ok(Some(Self::parse(authority.as_str()).ok_or(HostError::Invalid)?.0))
            }
            (Some(_), Some(_)) => Err(HostError::Invalid),
        }
    }
}

/// As it stands in an address.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Why a request is for nobody here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum HostError {
    /// HTTP/1.1 wants one.
    #[error("Bad Request: there is no Host")]
    Missing,
    /// Two readers could take two of them.
    #[error("Bad Request: there are two Host lines")]
    Twice,
    /// No name and no address.
    #[error("Bad Request: Host, or the target, names no host")]
    Invalid,
    /// Another one. Not 403, which clients take for a right that their token lacks: the token has nothing to do with it
    /// (RFC 9110 sections 7.4 and 15.5.20).
    #[error("Misdirected Request: nobody is served under this name here; an operator can add it to `[http] hosts`")]
    Foreign(Host),
}

impl HostError {
    const fn status(&self) -> StatusCode {
        match self {
            Self::Missing | Self::Twice | Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Foreign(_) => StatusCode::MISDIRECTED_REQUEST,
        }
    }

    const fn code(&self) -> &'static str {
        match self {
            Self::Missing | Self::Twice | Self::Invalid => "host",
            Self::Foreign(_) => "foreign-host",
        }
    }
}

/// Lets through what is for the broker, with its [`Host`] in the extensions; for
/// [`axum::middleware::from_fn_with_state`].
pub(crate) async fn require_own_host(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    // Who connects from this machine came in by loopback, or by a Unix socket.
    let peer = request.extensions().get::<Peer>();
    let is_local = peer.is_some_and(|peer| peer.address.to_canonical().is_loopback());
    let own = Host::of(&request).and_then(|host| match host {
        Some(host) if gate.names.get().has(&host, is_local) => Ok(Some(host)),
        Some(host) => Err(HostError::Foreign(host)),
        // No browser speaks HTTP/1.0, and no later one leaves its name out.
        None => Ok(None),
    });
    match own {
        Ok(host) => {
            if let Some(host) = host {
                request.extensions_mut().insert(host);
            }
            next.run(request).await
        }
        Err(error) => {
            // Nobody reads its message.
            Trace::of(request.extensions(), request.headers()).settle(None);
            gate.metrics.refused(error.code());
            if let HostError::Foreign(host) = &error
                && gate.tells(host)
            {
                warn!(
                    reason = error.code(), host = %host,
                    "refused a request for {host}: if clients may call the broker that, add it to `[http] hosts`"
                );
            }
            said(error.status(), error.to_string())
        }
    }
}

/// Lets through what says in one way, or not at all, for whom it is, whoever that is: probes name what they like.
pub(crate) async fn require_any_host(request: Request, next: Next) -> Response {
    match Host::of(&request) {
        Ok(_) => next.run(request).await,
        Err(error) => said(error.status(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn host(text: &str) -> Option<String> {
        Host::parse(text)
            .map(|(host, port)| format!("{host} {}", port.map_or_else(String::new, |port| port.to_string())))
    }

    #[test]
    fn a_host_is_read_as_the_grammar_has_it_and_nothing_else_is_one() {
        for (text, expected) in [
            ("mcp.example.org", "mcp.example.org "),
            ("MCP.Example.ORG.:8443", "mcp.example.org 8443"),
            ("localhost:", "localhost "),
            ("127.0.0.1:8080", "127.0.0.1 8080"),
            ("[::1]:8080", "[::1] 8080"),
            ("[0:0:0:0:0:0:0:1]", "[::1] "),
            ("[::ffff:127.0.0.1]", "127.0.0.1 "),
            ("my_host", "my_host "),
        ] {
            assert_eq!(host(text).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "",
            ".",
            ":80",
            "a:b",
            "a:65536",
            "a:-1",
            "a:+1",
            "a:80:80",
            "::1",
            "[::1",
            "[::1]x",
            "[::1%25eth0]",
            "[v1.x]",
            "user@host",
            "a b",
            "a/b",
            "a?b",
            "a,b c",
            "höst",
            "http://a",
            "[127.0.0.1]",
        ] {
            assert_eq!(host(text), None, "{text}");
        }
        assert_eq!(host(&"a".repeat(254)), None);
    }

    #[test]
    fn only_what_no_name_server_decides_is_loopback() {
        let is_loopback = |text: &str| Host::parse(text).expect("a host").0.is_loopback();
        for text in ["localhost", "LOCALHOST.", "127.0.0.1", "127.8.8.8", "[::1]", "[::ffff:127.0.0.1]"] {
            assert!(is_loopback(text), "{text}");
        }
        for text in ["localhost.example", "a.localhost", "127.1", "0.0.0.0", "[::]", "localtest.me"] {
            assert!(!is_loopback(text), "{text}");
        }
    }

    fn of(version: Version, target: &str, hosts: &[&str]) -> Result<Option<String>, HostError> {
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let request = request.body(Body::empty()).expect("a request");
        Host::of(&request).map(|host| host.map(|host| host.to_string()))
    }

    #[test]
    fn the_absolute_target_goes_before_the_header_and_the_header_must_be_good_all_the_same() {
        let own = |text: &str| Ok(Some(text.to_owned()));
        let now = Version::HTTP_11;
        assert_eq!(of(now, "/mcp", &["A.example:1"]), own("a.example"));
        assert_eq!(of(now, "http://b.example:2/mcp", &["a.example"]), own("b.example"));
        assert_eq!(of(now, "/mcp", &[]), Err(HostError::Missing));
        assert_eq!(of(now, "http://b.example/mcp", &[]), Err(HostError::Missing));
        assert_eq!(of(now, "/mcp", &["a.example", "a.example"]), Err(HostError::Twice));
        assert_eq!(of(now, "/mcp", &[""]), Err(HostError::Invalid));
        assert_eq!(of(now, "/mcp", &["a.example, b.example"]), Err(HostError::Invalid));
        assert_eq!(of(now, "http://b.example/mcp", &["a b"]), Err(HostError::Invalid));
        assert_eq!(of(now, "http://me@b.example/mcp", &["b.example"]), Err(HostError::Invalid));
        assert_eq!(of(now, "ftp://b.example/mcp", &["b.example"]), Err(HostError::Invalid));
    }

    #[test]
    fn a_request_of_before_http_1_1_need_not_say_for_whom_it_is_but_not_twice() {
        assert_eq!(of(Version::HTTP_10, "/mcp", &[]), Ok(None));
        assert_eq!(of(Version::HTTP_10, "/mcp", &["a.example"]), Ok(Some("a.example".to_owned())));
        assert_eq!(of(Version::HTTP_10, "/mcp", &["a", "b"]), Err(HostError::Twice));
    }
}
