//! A connection that is kept open, with the session that is spoken of on it: a blocking client that costs little, and the
//! same for all that a benchmark compares.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use crate::deployment::Result;

/// `initialize` of revision 2025-11-25.
pub const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}"#;
/// What follows it.
pub const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

pub struct KeepAlive {
    stream: BufReader<TcpStream>,
    host: String,
    token: String,
    /// The forms of an answer that are taken.
    pub accept: &'static str,
    /// Further lines of each request's head, each with its end.
    pub headers: String,
    pub session: Option<String>,
    /// Of the last answer.
    pub content_type: String,
    /// Of the last answer, without what its transfer coding adds.
    pub body: Vec<u8>,
}

impl KeepAlive {
    /// To the host of an address like `http://127.0.0.1:4321`.
    pub fn connect(url: &str, token: &str) -> Result<Self> {
        let host = url.trim_start_matches("http://").to_owned();
        let stream = TcpStream::connect(&host)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::with_capacity(64 * 1024, stream),
            host,
            token: token.to_owned(),
            accept: "application/json, text/event-stream",
            headers: String::new(),
            session: None,
            content_type: String::new(),
            body: Vec::new(),
        })
    }

    /// Opens a session on a new connection.
    pub fn open(url: &str, token: &str) -> Result<Self> {
        let mut http = Self::connect(url, token)?;
        let status = http.send("POST", INITIALIZE)?;
        if status != 200 || http.session.is_none() {
            return Err(format!("initialize: {status}: {}", String::from_utf8_lossy(&http.body)).into());
        }
        http.send("POST", INITIALIZED)?;
        Ok(http)
    }

    /// One request to `/mcp`, and its whole answer; the status. The session id of an answer is kept.
    pub fn send(&mut self, method: &str, body: &str) -> Result<u16> {
        let session = self
            .session
            .iter()
            .fold(String::new(), |_, id| format!("mcp-session-id: {id}\r\nmcp-protocol-version: 2025-11-25\r\n"));
        let request = format!(
            "{method} /mcp HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             accept: {}\r\n{}{session}content-length: {}\r\n\r\n{body}",
            self.host,
            self.token,
            self.accept,
            self.headers,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut status, mut length, mut chunked) = (0, 0, false);
        loop {
            let line = self.line()?;
            if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                status = rest.get(..3).unwrap_or_default().parse()?;
            } else if line.is_empty() {
                break;
            } else if let Some((name, value)) = line.split_once(": ") {
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.parse()?,
                    "content-type" => value.clone_into(&mut self.content_type),
                    "mcp-session-id" => self.session = Some(value.to_owned()),
                    "transfer-encoding" => chunked = value == "chunked",
                    _ => {}
                }
            }
        }
        self.body.clear();
        if chunked {
            while self.chunk()? {}
        } else {
            self.read(length)?;
        }
        Ok(status)
    }

    /// The same for what is answered with 200 or is an error.
    pub fn call(&mut self, body: &str) -> Result<()> {
        match self.send("POST", body)? {
            200 => Ok(()),
            status => Err(format!("{body}: {status}: {}", String::from_utf8_lossy(&self.body)).into()),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err("the connection was closed".into());
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }

    /// One chunk (RFC 9112 section 7.1); whether it was not the last.
    fn chunk(&mut self) -> Result<bool> {
        let length = usize::from_str_radix(&self.line()?, 16)?;
        self.read(length)?;
        self.line()?;
        Ok(length > 0)
    }

    fn read(&mut self, length: usize) -> Result<()> {
        let from = self.body.len();
        self.body.resize(from + length, 0);
        Ok(self.stream.read_exact(&mut self.body[from..])?)
    }
}
