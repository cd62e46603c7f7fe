//! A stand-in for goern's forgejo-mcp: an MCP server on stdio with its habits, good and bad, plus tools that misbehave
//! on request. Plain std and threads, so that it starts in a millisecond and lives under the tightest limits.
//!
//! What the tests may trust: messages, quirks and exit codes follow forgejo-mcp v2.34.1 as seen running. What they may
//! not: it is no client of the forge beyond `whoami` and `list_my_repos`; every other of the 141 tools answers its name.
//!
//! ```text
//! stand-in-child [--check-token] [--no-init TEXT] [--hang-init] [--slow-init MS] [--ignore-term] [--fast] [--era VERSION]
//! stand-in-child --linger
//! ```

#![expect(clippy::exit, reason = "the exit code is what this program is tested for")]

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};

mod forge_client;
mod listens;
mod tasks;
mod tools;

use forge_client::ForgeClient;
use listens::Listens;
use tasks::Tasks;

/// The versions of the session era that the real child agrees to, oldest first.
const SESSION_ERA: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
/// The first version of the era without sessions.
const STATELESS: &str = "2026-07-28";

/// How this run is to behave.
#[derive(Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "a bool a flag is what a command line is")]
struct Habits {
    check_token: bool,
    no_init: Option<String>,
    hang_init: bool,
    slow_init: u64,
    ignore_term: bool,
    fast: bool,
    linger: bool,
    era: Option<String>,
}

impl Habits {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut habits = Self::default();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--check-token" => habits.check_token = true,
                "--no-init" => habits.no_init = Some(args.next().ok_or("--no-init needs a text")?),
                "--hang-init" => habits.hang_init = true,
                "--slow-init" => {
                    let ms = args.next().and_then(|ms| ms.parse().ok());
                    habits.slow_init = ms.ok_or("--slow-init needs milliseconds")?;
                }
                "--ignore-term" => habits.ignore_term = true,
                "--fast" => habits.fast = true,
                "--linger" => habits.linger = true,
                "--era" => habits.era = Some(args.next().ok_or("--era needs a version")?),
                other => return Err(format!("flag provided but not defined: {other}")),
            }
        }
        Ok(habits)
    }

    /// The newest version this run speaks.
    fn newest(&self) -> &str {
        self.era.as_deref().unwrap_or("2025-11-25")
    }

    /// The version `initialize` settles on: the asked one if it is known, else the newest of the session era.
    fn agree<'a>(&'a self, asked: &'a str) -> &'a str {
        let fallback = SESSION_ERA.into_iter().rfind(|version| *version <= self.newest()).unwrap_or("2024-11-05");
        if SESSION_ERA.contains(&asked) && asked <= self.newest() { asked } else { fallback }
    }

    fn stateless(&self) -> bool {
        self.newest() >= STATELESS
    }
}

/// What the threads of one run share.
struct Server {
    habits: Habits,
    forge: ForgeClient,
    in_flight: AtomicUsize,
    /// Calls of which the client has said that it does not want them any more.
    cancelled: AtomicUsize,
    tasks: Tasks,
    listens: Listens,
    /// Set when standard input is to be read no further.
    deaf: AtomicBool,
    /// Set once stdin ended or SIGTERM came while a call was in flight: the last call to end takes the program along.
    leaving: Mutex<bool>,
    /// Requests of ours that the client has yet to answer, by id.
    asked: Mutex<HashMap<String, Sender<Value>>>,
}

impl Server {
    /// Writes one message as one line, whole, whichever thread it comes from.
    fn send(message: &Value) {
        Self::send_raw(&message.to_string());
    }

    /// Writes one line as it is. A reader that is gone ends the program as SIGPIPE would.
    fn send_raw(line: &str) {
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
            std::process::exit(141);
        }
    }

    /// Leaves now if idle (or if it does not cling to its calls), else with the last call.
    fn leave(&self) {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        *leaving = true;
        if !self.habits.ignore_term || self.in_flight.load(Ordering::SeqCst) == 0 {
            std::process::exit(0);
        }
    }

    /// A call ended: the counterpart of [`Server::leave`]; the lock keeps the two from missing each other.
    fn call_ended(&self) {
        let leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        if self.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 && *leaving {
            std::process::exit(0);
        }
    }
}

/// A JSON-RPC answer, good or bad.
fn answer(id: &Value, outcome: Result<Value, (i64, String)>) -> Value {
    match outcome {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err((code, message)) => json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}),
    }
}

fn main() {
    let habits = match Habits::parse(std::env::args().skip(1)) {
        Ok(habits) => habits,
        Err(reason) => die(2, &reason),
    };
    if habits.linger {
        linger();
    }
    let forge = ForgeClient::from_env();
    if habits.check_token {
        check_token(&forge);
    }
    if let Some(text) = &habits.no_init {
        die(3, text);
    }
    let server = Arc::new(Server {
        habits,
        forge,
        in_flight: AtomicUsize::new(0),
        cancelled: AtomicUsize::new(0),
        tasks: Tasks::default(),
        listens: Listens::default(),
        deaf: AtomicBool::new(false),
        leaving: Mutex::new(false),
        asked: Mutex::new(HashMap::new()),
    });
    if !server.habits.fast {
        heed_signals(&server);
    }
    for line in std::io::stdin().lock().lines() {
        while server.deaf.load(Ordering::SeqCst) {
            std::thread::park();
        }
        match line {
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => heed(&server, &line),
            Err(_) => break,
        }
    }
    server.leave();
    // Only the clinging kind gets here: it now waits for its calls, or for SIGKILL.
    loop {
        std::thread::park();
    }
}

/// Stays, whatever is asked of it, until SIGKILL.
fn linger() -> ! {
    if let Err(error) = SigSet::all().thread_block() {
        die(1, &format!("cannot block signals: {error}"));
    }
    loop {
        std::thread::park();
    }
}

/// Says why on stderr and exits.
fn die(code: i32, reason: &str) -> ! {
    let _ = writeln!(std::io::stderr(), "{reason}");
    std::process::exit(code)
}

/// Asks the forge for its version as the real child does at start; with Forgejo 16 a refusal repeats the token.
fn check_token(forge: &ForgeClient) {
    match forge.get("/api/v1/version") {
        Ok(reply) if reply.status == 200 => {}
        Ok(reply) => die(1, &format!("FATAL\tcannot create client: {} {}", reply.status, reply.body)),
        Err(error) => die(1, &format!("FATAL\tcannot reach the forge: {error}")),
    }
}

/// Takes SIGTERM and SIGINT in a thread of their own; blocking them first makes every later thread inherit the mask.
fn heed_signals(server: &Arc<Server>) {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    if let Err(error) = signals.thread_block() {
        die(1, &format!("cannot block signals: {error}"));
    }
    let server = Arc::clone(server);
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            server.leave();
        }
    });
}

/// Handles one line of input.
fn heed(server: &Arc<Server>, line: &str) {
    // Batches fail too: the real child parses objects only.
    let Ok(message @ Value::Object(_)) = serde_json::from_str::<Value>(line) else {
        return Server::send(&answer(&Value::Null, Err((-32700, "Failed to parse message".to_owned()))));
    };
    let id = message.get("id").cloned().unwrap_or(Value::Null);
    let Some(method) = message.get("method").and_then(Value::as_str) else {
        return heed_reply(server, &id, message);
    };
    // Notifications are ignored, as is `"id":null`; `notifications/cancelled` stops nothing and is counted.
    if id.is_null() {
        if method == "notifications/cancelled" {
            server.cancelled.fetch_add(1, Ordering::SeqCst);
            server.listens.close(message.pointer("/params/requestId").unwrap_or(&Value::Null));
        }
        return;
    }
    if method == "tools/call" {
        return call(server, id, message.get("params").cloned().unwrap_or_default());
    }
    if method == "initialize" && server.habits.hang_init {
        return;
    }
    if method == "initialize" && server.habits.slow_init > 0 {
        std::thread::sleep(std::time::Duration::from_millis(server.habits.slow_init));
    }
    let params = message.get("params").cloned().unwrap_or_default();
    if method == "subscriptions/listen" && server.habits.stateless() {
        return server.listens.open(id, &params);
    }
    Server::send(&answer(&id, respond(server, method, &params)));
}

/// An answer to a request of ours goes to the tool that waits for it.
fn heed_reply(server: &Server, id: &Value, message: Value) {
    let waiting = id.as_str().and_then(|id| server.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(id));
    if let Some(waiting) = waiting {
        // A tool that stopped waiting is no concern of the reader.
        let _ = waiting.send(message);
    }
}

/// Starts a call in a thread of its own, or in place when `--fast` wants no threads.
fn call(server: &Arc<Server>, id: Value, params: Value) {
    server.in_flight.fetch_add(1, Ordering::SeqCst);
    if server.habits.fast {
        Server::send(&answer(&id, tools::call(server, &id, &params)));
        return server.call_ended();
    }
    let server = Arc::clone(server);
    std::thread::spawn(move || {
        Server::send(&answer(&id, tools::call(&server, &id, &params)));
        server.call_ended();
    });
}

/// Everything but `tools/call`.
fn respond(server: &Server, method: &str, params: &Value) -> Result<Value, (i64, String)> {
    let habits = &server.habits;
    match method {
        "initialize" => {
            let asked = params.get("protocolVersion").and_then(Value::as_str).unwrap_or_default();
            Ok(json!({
                "protocolVersion": habits.agree(asked),
                "capabilities": {"logging": {}, "resources": {}, "tools": {"listChanged": true}},
                "serverInfo": {"name": "Forgejo MCP Server", "version": "stand-in"},
            }))
        }
        "server/discover" if habits.stateless() => {
            let mut versions = vec![STATELESS];
            versions.extend(SESSION_ERA.into_iter().rev());
            Ok(stateless(json!({
                "supportedVersions": versions,
                "capabilities": {
                    "logging": {}, "resources": {}, "tools": {"listChanged": true},
                    "extensions": {"io.modelcontextprotocol/tasks": {}},
                },
                "serverInfo": {"name": "Forgejo MCP Server", "version": "stand-in"},
            })))
        }
        "ping" | "logging/setLevel" => Ok(json!({})),
        "tasks/get" if habits.stateless() => server.tasks.get(params),
        "tasks/cancel" if habits.stateless() => server.tasks.cancel(params),
        "tools/list" => {
            let list = json!({"tools": tools::list()});
            let modern = params.pointer("/_meta/io.modelcontextprotocol~1protocolVersion").is_some();
            Ok(if habits.stateless() && modern { stateless(list) } else { list })
        }
        "resources/list" => Ok(json!({"resources": []})),
        "resources/templates/list" => Ok(json!({"resourceTemplates": []})),
        "prompts/list" | "prompts/get" => Err((-32601, "prompts not supported".to_owned())),
        other => Err((-32601, format!("Method {other} not found"))),
    }
}

/// Adds what a result carries in the era without sessions.
fn stateless(mut result: Value) -> Value {
    if let Value::Object(fields) = &mut result {
        fields.insert("resultType".to_owned(), json!("complete"));
        fields.insert("ttlMs".to_owned(), json!(300_000));
        fields.insert("cacheScope".to_owned(), json!("private"));
    }
    result
}
