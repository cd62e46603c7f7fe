//! Redirect addresses: which are acceptable at all, and which request matches which registration.
//!
//! https anywhere; http on this machine only (RFC 8252 section 7.3); other schemes by the operator's list (section
//! 7.1), because whoever registers one on a person's machine gets the code. Matching is string comparison, except for
//! the port of a loopback address, which programs choose when they start (RFC 8252 section 7.3, RFC 9700 section 2.1).

use std::net::IpAddr;

use url::{Host, Url};

/// Bytes in a redirect address.
const MAX_LENGTH: usize = 2000;
/// What an answer adds to the query (RFC 6749 section 4.1.2, RFC 9207 section 2).
const ANSWER: [&str; 6] = ["code", "state", "iss", "error", "error_description", "error_uri"];

/// Private-use schemes that are let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schemes(Vec<String>);

impl Schemes {
    /// These; case does not matter. Those that [never](Self::is_never) are let through are left out.
    pub(crate) fn new(schemes: Vec<String>) -> Self {
        let schemes = schemes.into_iter().map(|scheme| scheme.to_lowercase());
        Self(schemes.filter(|scheme| !Self::is_never(scheme)).collect())
    }

    /// Whether a browser gives the scheme a meaning of its own, so that no program can have it.
    pub(crate) fn is_never(scheme: &str) -> bool {
        const NEVER: [&str; 9] =
            ["http", "https", "javascript", "data", "file", "blob", "vbscript", "about", "view-source"];
        NEVER.iter().any(|never| never.eq_ignore_ascii_case(scheme))
    }
}

/// What kind of receiver a code is sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RedirectKind {
    /// A web site.
    Web,
    /// A port of the person's own machine.
    Loopback,
    /// A program on the person's machine, by its scheme.
    Program,
}

/// An acceptable address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RedirectUri {
    text: String,
    kind: RedirectKind,
    host: String,
}

/// Why an address is not acceptable. Said to the client's developer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RedirectError {
    /// Not an absolute address of printable ASCII, at most [`MAX_LENGTH`] bytes.
    #[error("must be an absolute address in ASCII without spaces, at most {MAX_LENGTH} bytes")]
    NotAnAddress,
    /// With a fragment (RFC 6749 section 3.1.2).
    #[error("must have no fragment")]
    Fragment,
    /// With a user or a password.
    #[error("must have neither user nor password")]
    UserInfo,
    /// http to another machine.
    #[error("must be https, unless it is on this machine (localhost, 127.0.0.1, [::1])")]
    NotHttps,
    /// Without `//` and a host behind it. A browser resolves `https:host/path` against the page that it is on.
    #[error("must name its host: https://HOST/…")]
    NoHost,
    /// No program listens there.
    #[error("must not have port 0")]
    Port,
    /// The answer's own parameters are in it already, so that the client might read the wrong ones.
    #[error("must not have code, state, iss, or an error in its query")]
    Query,
    /// A scheme that is not on the list.
    #[error("its scheme is not allowed here; the operator can add it to redirect_schemes")]
    Scheme,
}

impl RedirectUri {
    /// Checks an address.
    pub(crate) fn parse(text: &str, schemes: &Schemes) -> Result<Self, RedirectError> {
        if text.len() > MAX_LENGTH
            || !text.bytes().all(|b| b.is_ascii_graphic())
            || text.contains(['\\', '"', '<', '>'])
        {
            return Err(RedirectError::NotAnAddress);
        }
        let url = Url::parse(text).map_err(|_| RedirectError::NotAnAddress)?;
        if url.fragment().is_some() {
            return Err(RedirectError::Fragment);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(RedirectError::UserInfo);
        }
        let is_http = matches!(url.scheme(), "http" | "https");
        // The parser mends what has no host where it should; a browser may mend it otherwise.
        let authority = text.split_once(':').and_then(|(_, rest)| rest.strip_prefix("//"));
        if is_http && authority.is_none_or(|rest| rest.starts_with(['/', ':', '?'])) {
            return Err(RedirectError::NoHost);
        }
        if url.port() == Some(0) {
            return Err(RedirectError::Port);
        }
        if url.query_pairs().any(|(name, _)| ANSWER.contains(&&*name)) {
            return Err(RedirectError::Query);
        }
        let kind = match url.scheme() {
            "http" | "https" if is_loopback(&url) => RedirectKind::Loopback,
            "http" => return Err(RedirectError::NotHttps),
            "https" => RedirectKind::Web,
            other if schemes.0.iter().any(|scheme| scheme == other) => RedirectKind::Program,
            _ => return Err(RedirectError::Scheme),
        };
        let host = match kind {
            RedirectKind::Program => url.scheme().to_owned(),
            RedirectKind::Web | RedirectKind::Loopback => url.host_str().unwrap_or_default().to_owned(),
        };
        Ok(Self { text: text.to_owned(), kind, host })
    }

    /// Whether a request for `asked` may be answered there.
    pub(crate) fn accepts(&self, asked: &Self) -> bool {
        match (self.kind, asked.kind) {
            (RedirectKind::Loopback, RedirectKind::Loopback) => self.without_port() == asked.without_port(),
            _ => self.text == asked.text,
        }
    }

    /// The address as it was given.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// What kind of receiver.
    pub(crate) fn kind(&self) -> RedirectKind {
        self.kind
    }

    /// The host that gets the code, or the scheme of the program that does.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The text without `:PORT`. No user and no password are in front of it.
    fn without_port(&self) -> String {
        let Some((scheme, rest)) = self.text.split_once("://") else { return self.text.clone() };
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => authority,
        };
        format!("{scheme}://{host}{path}")
    }

    /// The address with an answer appended to its query.
    pub(crate) fn with(&self, answer: &[(&str, &str)]) -> String {
        let query: String = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(answer).finish();
        let glue = if self.text.contains('?') { '&' } else { '?' };
        format!("{}{glue}{query}", self.text)
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => IpAddr::V4(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::V6(ip).is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RedirectUri, RedirectError> {
        RedirectUri::parse(text, &Schemes::new(vec!["cursor".to_owned(), "javascript".to_owned()]))
    }

    fn accepts(registered: &str, asked: &str) -> bool {
        parse(registered).expect(registered).accepts(&parse(asked).expect(asked))
    }

    #[test]
    fn only_https_loopback_and_listed_schemes_are_acceptable() {
        for good in [
            "https://claude.ai/api/mcp/auth_callback",
            "http://localhost:3335/oauth/callback",
            "http://127.0.0.1/",
            "http://[::1]:1/x?y=z",
            "https://a.example/cb?codes=1&my_state=2",
            "HTTPS://a.example/cb",
            "cursor://anysphere.cursor-mcp/oauth/callback",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        let table = [
            ("http://evil.example/cb", RedirectError::NotHttps),
            ("http://localhost.evil.example/cb", RedirectError::NotHttps),
            ("http://127.0.0.1.evil.example/", RedirectError::NotHttps),
            ("https://a.example/#x", RedirectError::Fragment),
            ("https://user@a.example/", RedirectError::UserInfo),
            ("javascript:alert(1)", RedirectError::Scheme),
            ("data:text/html,x", RedirectError::Scheme),
            ("myapp://cb", RedirectError::Scheme),
            ("/cb", RedirectError::NotAnAddress),
            ("https://a.example/ b", RedirectError::NotAnAddress),
            ("https://a.example\\@b.example/", RedirectError::NotAnAddress),
            ("https://ä.example/", RedirectError::NotAnAddress),
            ("https:evil.example/cb", RedirectError::NoHost),
            ("https:/evil.example/cb", RedirectError::NoHost),
            ("HTTPS:evil.example/cb", RedirectError::NoHost),
            ("https:///x", RedirectError::NoHost),
            ("http:///127.0.0.1/cb", RedirectError::NoHost),
            ("http:127.0.0.1/cb", RedirectError::NoHost),
            ("https://?x", RedirectError::NotAnAddress),
            ("http://127.0.0.1:0/cb", RedirectError::Port),
            ("https://a.example:0/cb", RedirectError::Port),
            ("https://a.example/cb?code=1", RedirectError::Query),
            ("https://a.example/cb?x=1&st%61te=1", RedirectError::Query),
            ("http://localhost/cb?error=1", RedirectError::Query),
            ("cursor://a/cb?iss=https%3A%2F%2Fevil.example", RedirectError::Query),
        ];
        for (text, why) in table {
            assert_eq!(parse(text).expect_err(text), why, "{text}");
        }
    }

    #[test]
    fn a_match_is_exact_but_for_the_port_of_a_loopback_address() {
        assert!(accepts("http://127.0.0.1/callback", "http://127.0.0.1:51004/callback"));
        assert!(accepts("http://localhost:1/callback", "http://localhost:2/callback"));
        assert!(accepts("http://[::1]/callback", "http://[::1]:7/callback"));
        for (registered, asked) in [
            ("http://127.0.0.1/callback", "http://127.0.0.1:5/callback/"),
            ("http://127.0.0.1/callback", "http://127.0.0.1:5/callback?x=1"),
            ("http://127.0.0.1/callback", "http://localhost:5/callback"),
            ("http://127.0.0.1/callback", "https://127.0.0.1/callback"),
            ("https://a.example/cb", "https://a.example:444/cb"),
            ("https://a.example/cb", "https://a.example/cb/"),
            ("https://a.example/cb", "https://a.example/CB"),
            ("https://a.example/cb", "https://A.example/cb"),
            ("https://a.example/cb", "https://a.example/cb?x=1"),
            ("https://a.example/cb", "https://a.example/x/../cb"),
            ("cursor://a/cb", "cursor://b/cb"),
        ] {
            assert!(!accepts(registered, asked), "{registered} must not take {asked}");
        }
    }

    #[test]
    fn an_answer_is_appended_to_the_query_that_is_there() {
        let address = parse("https://a.example/cb?x=1").expect("good");
        assert_eq!(
            address.with(&[("code", "a b"), ("iss", "https://i")]),
            "https://a.example/cb?x=1&code=a+b&iss=https%3A%2F%2Fi"
        );
    }
}
