//! The base URL of the Forgejo instance, as it goes into a child's environment.
//!
//! Checked here by hand and strictly, because a URL crate brings Unicode tables into root's process for one string of
//! the operator's: `http` or `https`, a host in ASCII, at most a port and a path (RFC 3986 sections 3.2 and 3.3).

use std::net::Ipv6Addr;
use std::str::FromStr;

/// The URL as it is written, without slashes at its end: some children take it apart by hand and stumble over one that
/// was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForgeUrl {
    text: String,
    port: u16,
}

impl ForgeUrl {
    /// The one that it names, else its scheme's (RFC 9110 section 4.2).
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

/// What is wrong with it, in words for the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ForgeUrlError {
    /// Neither `http://` nor `https://`.
    #[error("must begin with http:// or https://")]
    Scheme,
    /// With a user, a query or a fragment.
    #[error("must be an http or https URL without user, query and fragment")]
    NotPlain,
    /// Without a host, or with one that is none.
    #[error("must name a host: a name, an IPv4 address, or an IPv6 address in brackets")]
    Host,
    /// A port that is none.
    #[error("must have a port from 1 to 65535, or none")]
    Port,
    /// The API's address instead of Forgejo's.
    #[error("must be the address of Forgejo itself, without /api/v1: what needs the API adds that")]
    Api,
    /// A character that no URL has (RFC 3986 section 2).
    #[error("must hold the characters of a URL only: write others as %XX, and names in punycode")]
    Character,
}

impl FromStr for ForgeUrl {
    type Err = ForgeUrlError;

    fn from_str(text: &str) -> Result<Self, ForgeUrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(ForgeUrlError::Scheme)?;
        let default_port = match scheme.to_ascii_lowercase().as_str() {
            "http" => 80,
            "https" => 443,
            _ => return Err(ForgeUrlError::Scheme),
        };
        if rest.contains(['?', '#']) {
            return Err(ForgeUrlError::NotPlain);
        }
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if authority.contains('@') {
            return Err(ForgeUrlError::NotPlain);
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => {
                let (address, port) = bracketed.split_once(']').ok_or(ForgeUrlError::Host)?;
                address.parse::<Ipv6Addr>().map_err(|_| ForgeUrlError::Host)?;
                (address, port)
            }
            None => authority.find(':').map_or((authority, ""), |at| authority.split_at(at)),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if host.is_empty() || (!authority.starts_with('[') && !host.chars().all(is_name)) {
            return Err(ForgeUrlError::Host);
        }
        let port = if port.is_empty() {
            default_port
        } else {
            let digits = port.strip_prefix(':').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
            digits.and_then(|digits| digits.parse().ok()).filter(|&port| port > 0).ok_or(ForgeUrlError::Port)?
        };
        let is_path = |c: char| c.is_ascii_alphanumeric() || "-._~%!$&'()*+,;=:@/".contains(c);
        if !path.chars().all(is_path) {
            return Err(ForgeUrlError::Character);
        }
        let text = text.trim_end_matches('/');
        if text.ends_with("/api/v1") {
            return Err(ForgeUrlError::Api);
        }
        Ok(Self { text: text.to_owned(), port })
    }
}

impl From<ForgeUrl> for String {
    fn from(url: ForgeUrl) -> Self {
        url.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_url_is_kept_as_it_is_written_but_for_slashes_at_its_end() {
        for (text, kept, port) in [
            ("https://git.example", "https://git.example", 443),
            ("http://git.example/", "http://git.example", 80),
            ("http://127.0.0.1:3000/", "http://127.0.0.1:3000", 3000),
            ("HTTPS://Git.Example:8443/forge/", "HTTPS://Git.Example:8443/forge", 8443),
            ("http://[::1]:3000", "http://[::1]:3000", 3000),
            ("https://xn--bcher-kva.example/a%20b", "https://xn--bcher-kva.example/a%20b", 443),
        ] {
            assert_eq!(text.parse(), Ok(ForgeUrl { text: kept.to_owned(), port }), "{text}");
        }
    }

    #[test]
    fn what_is_no_plain_http_url_is_refused_with_its_reason() {
        use ForgeUrlError::{Api, Character, Host, NotPlain, Port, Scheme};
        for (text, why) in [
            ("", Scheme),
            ("git.example", Scheme),
            ("ftp://git.example", Scheme),
            ("https://", Host),
            ("https:///path", Host),
            ("https://:80", Host),
            ("https://[::1", Host),
            ("https://[git]", Host),
            ("https://git example", Host),
            ("https://b\u{fc}cher.example", Host),
            ("https://git.example\n", Host),
            ("https://user@git.example", NotPlain),
            ("https://user:secret@git.example/", NotPlain),
            ("https://git.example/?q", NotPlain),
            ("https://git.example/#f", NotPlain),
            ("https://git.example:0", Port),
            ("https://git.example:", Port),
            ("https://git.example:+80", Port),
            ("https://git.example:65536", Port),
            ("https://[::1]x", Port),
            ("https://git.example/a b", Character),
            ("https://git.example/forge/api/v1/", Api),
            ("https://git.example/\0", Character),
        ] {
            assert_eq!(text.parse::<ForgeUrl>(), Err(why), "{text:?}");
        }
    }
}
