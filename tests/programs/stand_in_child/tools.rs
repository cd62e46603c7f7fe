//! The stand-in child's tools: the names of the real child's 141, and a set that exists to misbehave.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Server;

/// The real child's tools, a name and `read` or `write` a line.
const GOERN_TOOLS: &str = include_str!("goern_tools.tsv");

/// The tools of this program alone.
const TEST_TOOLS: [&str; 23] = [
    "echo",
    "whoami",
    "env",
    "pid",
    "block",
    "sleep",
    "close_input",
    "deaf",
    "descendant",
    "flood",
    "big",
    "crash",
    "progress",
    "log",
    "sample",
    "list_changed",
    "leak",
    "stderr",
    "garbage",
    "misanswer",
    "status",
    "task",
    "regional",
];

/// All tools. The annotations are as useless as the real child's: the library's defaults on every one.
pub(crate) fn list() -> Vec<Value> {
    goern()
        .chain(TEST_TOOLS)
        .map(|name| {
            json!({
                "name": name,
                "description": name.replace('_', " "),
                "inputSchema": {"type": "object", "properties": properties(name)},
                "annotations": {
                    "readOnlyHint": false, "destructiveHint": true, "idempotentHint": false, "openWorldHint": true,
                },
            })
        })
        .collect()
}

/// Two arguments of `regional` are repeated in headers by clients without a session.
fn properties(name: &str) -> Value {
    match name {
        "regional" => json!({
            "region": {"type": "string", "x-mcp-header": "Region"},
            "at": {"type": "object", "properties": {"most": {"type": "integer", "x-mcp-header": "Most"}}},
        }),
        _ => json!({}),
    }
}

fn goern() -> impl Iterator<Item = &'static str> {
    GOERN_TOOLS.lines().filter_map(|line| line.split('\t').next()).filter(|name| !name.is_empty())
}

/// Runs one tool to its end.
pub(crate) fn call(server: &Server, id: &Value, params: &Value) -> Result<Value, (i64, String)> {
    let name = params.get("name").and_then(Value::as_str).unwrap_or_default();
    let arguments = params.get("arguments").unwrap_or(&Value::Null);
    let number = |key: &str| arguments.get(key).and_then(Value::as_u64).unwrap_or(0);
    match name {
        "echo" => Ok(text(arguments.get("text").and_then(Value::as_str).unwrap_or_default())),
        "whoami" => whoami(server).map(|login| text(&login)),
        "get_my_user_info" => forge(server, "/api/v1/user").map(|body| text(&body)),
        "list_my_repos" => forge(server, "/api/v1/user/repos").map(|body| text(&body)),
        "env" => {
            let mut names: Vec<String> =
                std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
            names.sort();
            Ok(text(&names.join("\n")))
        }
        "pid" => Ok(text(&std::process::id().to_string())),
        "block" => loop {
            std::thread::park();
        },
        "sleep" => {
            std::thread::sleep(Duration::from_millis(number("ms")));
            Ok(text("slept"))
        }
        // With `--fast` in the thread that reads, so that nothing keeps the pipe open.
        "close_input" => {
            let _ = nix::unistd::close(0);
            loop {
                std::thread::park();
            }
        }
        // Reads no further, and never answers.
        "deaf" => {
            server.deaf.store(true, Ordering::SeqCst);
            loop {
                std::thread::park();
            }
        }
        // A process that heeds neither SIGTERM nor its parent's end and keeps the pipes open; its pid.
        "descendant" => std::env::current_exe()
            .and_then(|own| Command::new(own).arg("--linger").process_group(0).spawn())
            .map(|lingering| text(&lingering.id().to_string()))
            .map_err(|error| (-32603, error.to_string())),
        // Messages without end or answer, each with so many bytes.
        "flood" => {
            let data = "x".repeat(usize::try_from(number("bytes")).unwrap_or(0));
            let method = arguments.get("method").and_then(Value::as_str).unwrap_or("notifications/message");
            for n in 0_u64.. {
                let params = json!({"data": data});
                Server::send(&if method.starts_with("notifications/") {
                    json!({"jsonrpc": "2.0", "method": method, "params": params})
                } else {
                    json!({"jsonrpc": "2.0", "id": n, "method": method, "params": params})
                });
            }
            Ok(text("never"))
        }
        "big" => Ok(text(&"x".repeat(usize::try_from(number("bytes")).unwrap_or(0)))),
        "crash" => std::process::exit(i32::try_from(number("code")).unwrap_or(1)),
        "progress" => {
            let token = params.pointer("/_meta/progressToken").cloned().unwrap_or_else(|| id.clone());
            for done in 1..=number("count") {
                notify(
                    "notifications/progress",
                    &json!({"progressToken": token, "progress": done, "total": number("count")}),
                );
                std::thread::sleep(Duration::from_millis(number("ms")));
            }
            Ok(text("done"))
        }
        "log" => {
            log(number("count"), usize::try_from(number("bytes")).unwrap_or(0));
            Ok(text("logged"))
        }
        "sample" => sample(server, id, arguments),
        "list_changed" => {
            if !server.listens.tell() {
                notify("notifications/tools/list_changed", &json!({}));
            }
            Ok(text("changed"))
        }
        "leak" => {
            let token = server.forge.token();
            grumble(&format!("ERROR\taccess token does not exist [sha: {token}]"));
            Err((-32603, format!("token is expired\naccess token does not exist [sha: {token}]")))
        }
        "stderr" => {
            for n in 1..=number("lines") {
                grumble(&format!("\u{1b}[31mERROR\u{1b}[0m\tline {n}"));
            }
            Ok(text("grumbled"))
        }
        "garbage" => {
            Server::send_raw("this line is not JSON");
            Ok(text("swept"))
        }
        // An answer that nobody can read, and no other.
        "misanswer" => misanswer(id, arguments.get("how").and_then(Value::as_str).unwrap_or_default()),
        "regional" => Ok(text(&arguments.to_string())),
        "status" => Ok(text(&status(server).to_string())),
        // Goes on after its answer, until it is cancelled.
        "task" => Ok(server.tasks.begin()),
        other if goern().any(|name| name == other) => Ok(text(other)),
        other => Err((-32602, format!("tool '{other}' not found: tool not found"))),
    }
}

/// So many lines, each longer by a colon and so many bytes.
fn log(count: u64, bytes: usize) {
    let more = if bytes == 0 { String::new() } else { format!(":{}", "x".repeat(bytes)) };
    for n in 1..=count {
        let data = format!("line {n}{more}");
        notify("notifications/message", &json!({"level": "info", "logger": "stand-in", "data": data}));
    }
}

/// What else there is to do, how often it was heard that something is not wanted any more, and who listens.
fn status(server: &Server) -> Value {
    let others = server.in_flight.load(Ordering::SeqCst).saturating_sub(1);
    json!({"in_flight": others, "cancelled": server.cancelled.load(Ordering::SeqCst),
        "listening": server.listens.count()})
}

fn misanswer(id: &Value, how: &str) -> ! {
    let answer = json!({"jsonrpc": "2.0", "id": id, "result": text("unread")});
    let error = json!({"code": 1, "message": "x"});
    match how {
        "pretty" => Server::send_raw(&format!("{answer:#}")),
        "both" => Server::send(&json!({"jsonrpc": "2.0", "id": id, "result": {}, "error": error})),
        "null-id" => Server::send(&json!({"jsonrpc": "2.0", "id": null, "error": error})),
        "bom" => Server::send_raw(&format!("\u{feff}{answer}")),
        "not-utf-8" => {
            let mut out = std::io::stdout().lock();
            let bytes = answer.to_string().replace("unread", "\u{1}").into_bytes();
            let bytes: Vec<u8> = bytes.into_iter().map(|b| if b == 1 { 0xff } else { b }).collect();
            let _ = out.write_all(&bytes).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
        }
        _ => {}
    }
    loop {
        std::thread::park();
    }
}

fn text(text: &str) -> Value {
    json!({"content": [{"type": "text", "text": text}]})
}

fn notify(method: &str, params: &Value) {
    Server::send(&json!({"jsonrpc": "2.0", "method": method, "params": params}));
}

/// One line on stderr, whether or not anybody reads it.
fn grumble(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A GET whose refusal is a JSON-RPC error with the forge's own text, token and all, as the real child's is.
fn forge(server: &Server, path: &str) -> Result<String, (i64, String)> {
    match server.forge.get(path) {
        Ok(reply) if reply.status == 200 => Ok(reply.body),
        Ok(reply) => Err((-32603, reply.body)),
        Err(error) => Err((-32603, error.to_string())),
    }
}

fn whoami(server: &Server) -> Result<String, (i64, String)> {
    let body = forge(server, "/api/v1/user")?;
    let user: Value = serde_json::from_str(&body).map_err(|error| (-32603, error.to_string()))?;
    Ok(user.get("login").and_then(Value::as_str).unwrap_or_default().to_owned())
}

/// Asks the client to sample and gives back the text it answers; waits as long as it takes.
fn sample(server: &Server, id: &Value, arguments: &Value) -> Result<Value, (i64, String)> {
    // The call's own id makes ours unique among the calls in flight.
    let own = format!("sample-{id}");
    let (sender, reply) = mpsc::channel();
    server.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(own.clone(), sender);
    let prompt = arguments.get("text").and_then(Value::as_str).unwrap_or("say something");
    Server::send(&json!({
        "jsonrpc": "2.0",
        "id": own,
        "method": "sampling/createMessage",
        "params": {"messages": [{"role": "user", "content": {"type": "text", "text": prompt}}], "maxTokens": 16},
    }));
    let reply = reply.recv().map_err(|error| (-32603, error.to_string()))?;
    match reply.pointer("/result/content/text").and_then(Value::as_str) {
        Some(said) => Ok(text(said)),
        None => Err((-32603, format!("the client refused to sample: {}", reply.get("error").unwrap_or(&Value::Null)))),
    }
}
