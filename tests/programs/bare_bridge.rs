//! `bare-bridge CHILD [ARGUMENT…]`: the least that brings MCP from HTTP to children on stdio, for benchmarks to hold the
//! broker against. Prints `LISTENING http://ADDRESS` once it accepts.
//!
//! A child a session, one request of a session at a time, and the lines as they are: nobody is asked who they are, no id
//! is rewritten, nothing is limited, counted or looked into.

#![expect(clippy::print_stdout, reason = "the address is this program's output")]

use std::convert::Infallible;
use std::process::Stdio;
use std::sync::{Arc, PoisonError, RwLock};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

/// The header that carries a session's id.
const SESSION: &str = "mcp-session-id";
/// As much as a pipe holds.
const PIPE: usize = 64 * 1024;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

struct Piped {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    _child: Child,
}

impl Piped {
    fn start(command: &[String]) -> Result<Self> {
        let (program, arguments) = command.split_first().ok_or("usage: bare-bridge CHILD [ARGUMENT…]")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let (stdin, stdout) = child.stdin.take().zip(child.stdout.take()).ok_or("a child without pipes")?;
        Ok(Self { stdin, stdout: BufReader::with_capacity(PIPE, stdout), _child: child })
    }

    /// One line in, and one out where it is a request.
    async fn exchange(&mut self, line: &Bytes) -> Result<Option<Bytes>> {
        self.stdin.write_all(line).await?;
        self.stdin.write_all(b"\n").await?;
        if !std::str::from_utf8(line)?.contains(r#""id":"#) {
            return Ok(None);
        }
        let mut answer = Vec::new();
        self.stdout.read_until(b'\n', &mut answer).await?;
        answer.pop().ok_or("the child ended")?;
        Ok(Some(answer.into()))
    }
}

struct Bridge {
    command: Vec<String>,
    /// Their ids are their places.
    sessions: RwLock<Vec<Arc<Mutex<Piped>>>>,
}

impl Bridge {
    fn open(&self) -> Result<(usize, Arc<Mutex<Piped>>)> {
        let child = Arc::new(Mutex::new(Piped::start(&self.command)?));
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        sessions.push(Arc::clone(&child));
        Ok((sessions.len() - 1, child))
    }

    fn session(&self, id: usize) -> Option<Arc<Mutex<Piped>>> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    async fn answer(&self, headers: &HeaderMap, line: &Bytes) -> Result<Response> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (id, child) = match text(SESSION) {
            "" => self.open()?,
            id => (id.parse()?, self.session(id.parse()?).ok_or("no such session")?),
        };
        let Some(answer) = child.lock().await.exchange(line).await? else {
            return Ok(StatusCode::ACCEPTED.into_response());
        };
        let (form, body) = if text(ACCEPT.as_str()) == "text/event-stream" {
            let parts = [Bytes::from_static(b"event: message\ndata: "), answer, Bytes::from_static(b"\n\n")];
            ("text/event-stream", Body::from_stream(stream::iter(parts.map(Ok::<_, Infallible>))))
        } else {
            ("application/json", Body::from(answer))
        };
        Ok(([(CONTENT_TYPE.as_str(), form), (SESSION, &id.to_string())], body).into_response())
    }
}

async fn post(State(bridge): State<Arc<Bridge>>, headers: HeaderMap, line: Bytes) -> Response {
    let answer = bridge.answer(&headers, &line).await;
    answer.unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, error.to_string()).into_response())
}

fn main() -> Result<()> {
    let bridge = Bridge { command: std::env::args().skip(1).collect(), sessions: RwLock::default() };
    let routes = axum::Router::new().route("/mcp", axum::routing::post(post)).with_state(Arc::new(bridge));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("LISTENING http://{}", listener.local_addr()?);
        Ok(axum::serve(listener, routes).await?)
    })
}
