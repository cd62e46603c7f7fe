//! The stand-in child's only way out: one GET to the forge over plain HTTP, with the token it was given.

use std::io::{Read, Write};
use std::net::TcpStream;

/// Where the forge is and who is asking, from the variables that real children read.
#[derive(Clone)]
pub(crate) struct ForgeClient {
    authority: String,
    prefix: String,
    token: Option<String>,
}

/// What the forge said.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl ForgeClient {
    /// From `FORGEJO_URL` (http only) and `FORGEJO_ACCESS_TOKEN` or `FORGEJO_TOKEN_READ_ONLY`.
    pub(crate) fn from_env() -> Self {
        let url = std::env::var("FORGEJO_URL").unwrap_or_default();
        let rest = url.strip_prefix("http://").unwrap_or(&url).trim_end_matches('/');
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = if path.is_empty() { String::new() } else { format!("/{path}") };
        let token = std::env::var("FORGEJO_ACCESS_TOKEN").or_else(|_| std::env::var("FORGEJO_TOKEN_READ_ONLY")).ok();
        Self { authority: authority.to_owned(), prefix, token }
    }

    /// The token, or an empty text: what `leak` gives away on purpose.
    pub(crate) fn token(&self) -> &str {
        self.token.as_deref().unwrap_or_default()
    }

    /// GET `path` (from the instance's root) with no timeout at all, as goern's child does.
    pub(crate) fn get(&self, path: &str) -> std::io::Result<Reply> {
        let address =
            if self.authority.contains(':') { self.authority.clone() } else { format!("{}:80", self.authority) };
        let mut stream = TcpStream::connect(address)?;
        let mut request =
            format!("GET {}{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.prefix, self.authority);
        if let Some(token) = &self.token {
            for part in ["Authorization: token ", token, "\r\n"] {
                request.push_str(part);
            }
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) =
            answer.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("the forge closed without an answer"))?;
        let status = head
            .split_ascii_whitespace()
            .nth(1)
            .and_then(|word| word.parse().ok())
            .ok_or_else(|| std::io::Error::other("the forge's status line has no status"))?;
        Ok(Reply { status, body: body.to_owned() })
    }
}
