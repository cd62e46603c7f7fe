//! A user whose child, or whose client, does its worst, one trick after the other. Whatever it is, each request that is
//! waited for ends in time; what it costs others is theirs to tell.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::caller::{Caller, Opened, call};
use super::ledger::{Answered, Outcome};
use harness::mcp_session::{http, post};

/// How long a trick goes on that has no end of its own.
const TRICK: Duration = Duration::from_secs(2);
/// Requests that a session may have in flight at once, and a few more.
const TOO_MANY: usize = 72;

#[derive(Debug, Clone, Copy)]
enum Trick {
    /// Messages without end, of a method and so many bytes, which nobody reads.
    Flood(&'static str, usize),
    /// More answers of the largest size than fit into a budget, which nobody reads.
    HugeAnswers,
    /// A child that closes its input and lives on.
    ClosedInput,
    /// A child that does not read, and more requests than its pipe holds.
    Deaf,
    /// A child that ends in the middle of a call.
    Crash,
    /// Lines that are no messages, and many on standard error.
    Noise,
    /// Calls without end, more than fit in flight, half of them cancelled.
    Endless,
    /// A process of its own that outlives the child.
    Descendant,
    /// Bodies that are never finished.
    HalfBodies,
    /// A client's `initialize` as large as a body may be.
    LargeInitialize,
}

const TRICKS: [Trick; 14] = [
    Trick::Flood("notifications/message", 8 << 20),
    Trick::Flood("notifications/message", 10),
    Trick::Flood("sampling/createMessage", 100),
    Trick::Flood("sampling/createMessage", 1 << 20),
    Trick::Flood("ping", 100),
    Trick::HugeAnswers,
    Trick::ClosedInput,
    Trick::Deaf,
    Trick::Crash,
    Trick::Noise,
    Trick::Endless,
    Trick::Descendant,
    Trick::HalfBodies,
    Trick::LargeInitialize,
];

/// Plays tricks until it is over; begins with another one than the neighbour.
pub(crate) async fn play(caller: Caller, token: String, first: usize, over: Arc<AtomicBool>) {
    for trick in TRICKS.iter().cycle().skip(first * 3) {
        if over.load(Ordering::SeqCst) {
            return;
        }
        let Opened::Session(session) = caller.open(&token).await else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        caller.ledger.count(&format!("trick: {trick:?}"));
        trick.play(&caller, &token, &session).await;
        match caller.end(&token, &session).await {
            Outcome::Answered(Answered { status: 204 | 404 | 410, .. }) => {}
            _ => caller.ledger.count("hostile: session left behind"),
        }
    }
}

impl Trick {
    async fn play(self, caller: &Caller, token: &str, session: &str) {
        let ask = |message: Value| async move { caller.ask(token, Some(session), &message).await };
        match self {
            Self::Flood(method, bytes) => {
                unread(caller, token, session, "flood", &json!({"method": method, "bytes": bytes}), 1).await;
            }
            Self::HugeAnswers => unread(caller, token, session, "big", &json!({"bytes": 30 << 20}), 6).await,
            Self::ClosedInput => {
                let next = async {
                    tokio::task::yield_now().await;
                    // The child may read one line more before it notices.
                    for n in 0..3 {
                        note(caller, &ask(call(n, "echo", &json!({"text": "x"}))).await);
                    }
                };
                let (closing, ()) = tokio::join!(ask(call(9, "close_input", &json!({}))), next);
                note(caller, &closing);
            }
            Self::Deaf => {
                let filling = "x".repeat(1 << 20);
                let deaf = ask(call("deaf", "deaf", &json!({})));
                let rest = join_all((0..12).map(|n| ask(call(n, "echo", &json!({"text": filling})))));
                let (deaf, rest) = tokio::join!(deaf, rest);
                rest.iter().chain([&deaf]).for_each(|outcome| note(caller, outcome));
            }
            Self::Crash => note(caller, &ask(call(1, "crash", &json!({"code": 7}))).await),
            Self::Noise => {
                note(caller, &ask(call(1, "garbage", &json!({}))).await);
                note(caller, &ask(call(2, "stderr", &json!({"lines": 100_000}))).await);
                note(caller, &ask(call(3, "leak", &json!({}))).await);
            }
            Self::Endless => {
                let calls = join_all((0..TOO_MANY).map(|n| ask(call(n, "block", &json!({})))));
                let cancel = async {
                    tokio::time::sleep(TRICK).await;
                    join_all((0..TOO_MANY).step_by(2).map(|n| ask(cancelled(n)))).await
                };
                let (calls, _) = tokio::join!(calls, cancel);
                for outcome in &calls {
                    note(caller, outcome);
                }
            }
            Self::Descendant => note(caller, &ask(call(1, "descendant", &json!({}))).await),
            Self::HalfBodies => half_bodies(caller, token).await,
            Self::LargeInitialize => {
                let large = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
                    "protocolVersion": "2025-06-18", "capabilities": {"x": "x".repeat(15 << 20)},
                    "clientInfo": {"name": "tests", "version": "1"}}});
                note(caller, &ask(large).await);
            }
        }
    }
}

/// The notification that a request is cancelled.
fn cancelled(id: usize) -> Value {
    json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}})
}

/// What the hostile one is told is theirs alone; that it comes is what counts.
fn note(caller: &Caller, outcome: &Outcome) {
    match outcome {
        Outcome::Answered(answer) => caller.ledger.count(&format!("hostile: answered with {}", answer.status)),
        Outcome::Lost => {}
    }
}

/// Makes calls whose answers it does not read, and hangs up after a while.
async fn unread(caller: &Caller, token: &str, session: &str, tool: &str, arguments: &Value, times: usize) {
    let client = http();
    let calling = (0..times).map(|n| {
        let (message, client, url) = (call(n, tool, arguments), client.clone(), Arc::clone(&caller.url));
        async move { post(&client, &url, token, Some(session), &message).await }
    });
    let held = async {
        let answers = join_all(calling).await;
        std::future::pending::<()>().await;
        drop(answers);
    };
    // That they are not read is the trick; how long is of no matter.
    let _ = timeout(TRICK, held).await;
}

/// Begins bodies of 15 MiB and sends a third of each.
async fn half_bodies(caller: &Caller, token: &str) {
    let address: SocketAddr = caller.url.trim_start_matches("http://").parse().expect("an address");
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         accept: application/json, text/event-stream\r\ncontent-length: {}\r\n\r\n",
        15 << 20
    );
    let begin = async || {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(head.as_bytes()).await.ok()?;
        // Refused where it would be too much; then the rest does not arrive.
        let _ = stream.write_all(&vec![b' '; 5 << 20]).await;
        Some(stream)
    };
    let unfinished = async {
        let bodies = join_all((0..20).map(|_| begin())).await;
        std::future::pending::<()>().await;
        drop(bodies);
    };
    let _ = timeout(TRICK, unfinished).await;
}
