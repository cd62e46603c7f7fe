//! A spawner whose children are in-memory pipes held by the test: nothing is forked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::child::spawner::{Backend, Ended, SpawnError, SpawnRequest, Spawner, Stopper};
use crate::tests::memory_pipe::{self, MemoryPipe};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use wire::ending::Ending;
use wire::message::Exit;

/// Hands each backend to the test through a channel, or refuses.
#[derive(Debug)]
pub(crate) struct FakeSpawner {
    hand_over: mpsc::UnboundedSender<FakeChild>,
    refuse: Mutex<Option<SpawnError>>,
    pub(crate) hangs: AtomicBool,
    delay: Mutex<Duration>,
    /// Of the supervisor that starts the next child; cancelled when it says that it stops.
    leaving: Mutex<CancellationToken>,
    /// Of the program that the next child is of; cancelled when another is installed.
    outdated: Mutex<CancellationToken>,
    pub(crate) spawned: AtomicUsize,
}

/// The child's side of the pipes.
#[derive(Debug)]
pub(crate) struct FakeChild {
    stdin: Option<Lines<BufReader<memory_pipe::Reader>>>,
    stdout: Option<DuplexStream>,
    pub(crate) stderr: Option<DuplexStream>,
    ended: Option<oneshot::Sender<Ended>>,
    pub(crate) order: SpawnRequest,
    /// What it lists by itself when the broker wants to know its tools, and no client; without it the test hears that.
    pub(crate) tools: Option<Value>,
    stop_asked: Arc<AtomicBool>,
}

struct Stop(Arc<AtomicBool>);

impl Stopper for Stop {
    fn stop(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl FakeSpawner {
    pub(crate) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<FakeChild>) {
        let (hand_over, children) = mpsc::unbounded_channel();
        (
            Arc::new(Self {
                hand_over,
                refuse: Mutex::new(None),
                hangs: AtomicBool::new(false),
                delay: Mutex::default(),
                leaving: Mutex::default(),
                outdated: Mutex::default(),
                spawned: AtomicUsize::new(0),
            }),
            children,
        )
    }

    /// The supervisor says that it stops; what is started from now on is another's.
    pub(crate) fn leave(&self) {
        std::mem::take(&mut *self.leaving.lock()).cancel();
    }

    /// Another program is installed; what is started from now on is of that.
    pub(crate) fn replace_program(&self) {
        std::mem::take(&mut *self.outdated.lock()).cancel();
    }

    /// Every spawn from now on takes so long.
    pub(crate) fn delay(&self, delay: Duration) {
        *self.delay.lock() = delay;
    }

    /// Every spawn from now on fails like this, until set to `None`.
    pub(crate) fn refuse(&self, error: Option<SpawnError>) {
        *self.refuse.lock() = error;
    }
}

impl Spawner for FakeSpawner {
    fn spawn(&self, order: SpawnRequest) -> BoxFuture<'_, Result<Backend, SpawnError>> {
        Box::pin(async move {
            if let Some(error) = *self.refuse.lock() {
                return Err(error);
            }
            if self.hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let delay = *self.delay.lock();
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            self.spawned.fetch_add(1, Ordering::SeqCst);
            let (stdin, child_stdin) = MemoryPipe::ends(64 * 1024);
            let (child_stdout, stdout) = tokio::io::duplex(64 * 1024);
            let (child_stderr, stderr) = tokio::io::duplex(64 * 1024);
            let (tell, ended) = oneshot::channel();
            let stop_asked = Arc::new(AtomicBool::new(false));
            let child = FakeChild {
                stdin: Some(BufReader::new(child_stdin).lines()),
                stdout: Some(child_stdout),
                stderr: Some(child_stderr),
                ended: Some(tell),
                order,
                tools: None,
                stop_asked: Arc::clone(&stop_asked),
            };
            let _ = self.hand_over.send(child);
            Ok(Backend {
                stdin,
                stdout: Box::pin(stdout),
                stderr: Box::pin(stderr),
                ended,
                leaving: self.leaving.lock().clone(),
                outdated: self.outdated.lock().clone(),
                stopper: Box::new(Stop(stop_asked)),
                pid: 1,
                uid: 1,
            })
        })
    }
}

impl FakeChild {
    /// The next line on its standard input; `None` when the broker has closed it.
    pub(crate) async fn hears(&mut self) -> Option<Value> {
        Some(serde_json::from_str(&self.hears_raw().await?).expect("the broker writes JSON"))
    }

    pub(crate) async fn hears_raw(&mut self) -> Option<String> {
        loop {
            let line = self.stdin.as_mut().expect("open").next_line().await.expect("a readable pipe")?;
            let Some(tools) = self.tools.clone() else { return Some(line) };
            let heard: Value = serde_json::from_str(&line).expect("the broker writes JSON");
            if !is_brokers_own_list(&heard) {
                return Some(line);
            }
            let result = json!({"resultType": "complete", "tools": tools, "ttlMs": 0, "cacheScope": "private"});
            self.says(json!({"jsonrpc": "2.0", "id": heard["id"], "result": result})).await;
        }
    }

    pub(crate) async fn says(&mut self, message: Value) {
        self.says_raw(&message.to_string()).await;
    }

    pub(crate) async fn says_raw(&mut self, line: &str) {
        self.says_part(&format!("{line}\n")).await;
    }

    /// A part of a line.
    pub(crate) async fn says_part(&mut self, text: &str) {
        let stdout = self.stdout.as_mut().expect("open");
        stdout.write_all(text.as_bytes()).await.expect("the broker reads");
    }

    /// The whole handshake, up to the note that the broker is ready.
    pub(crate) async fn comes_up(&mut self) {
        self.welcomes().await;
        self.hears().await.expect("initialized");
    }

    /// Closes its standard input and lives on.
    pub(crate) fn closes_its_input(&mut self) {
        self.stdin = None;
    }

    /// Closes its standard output and error; what becomes of the process is told later.
    pub(crate) fn closes_its_output(&mut self) {
        self.stdout = None;
        self.stderr = None;
    }

    /// Whether the broker has asked for its stop.
    pub(crate) fn is_asked_to_stop(&self) -> bool {
        self.stop_asked.load(Ordering::SeqCst)
    }

    /// Hears `initialize` and accepts it; the request it heard.
    pub(crate) async fn welcomes(&mut self) -> Value {
        let initialize = self.hears().await.expect("initialize");
        assert_eq!(initialize["method"], "initialize");
        let result = json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "fake", "version": "1"}});
        self.says(json!({"jsonrpc": "2.0", "id": initialize["id"], "result": result})).await;
        initialize
    }

    /// Hears a request and answers it with `result`; the request it heard.
    pub(crate) async fn answers(&mut self, result: Value) -> Value {
        let request = self.hears().await.expect("a request");
        self.says(json!({"jsonrpc": "2.0", "id": request["id"], "result": result})).await;
        request
    }

    /// Ends like a process: pipes closed, then reaped.
    pub(crate) fn ends(&mut self, ending: impl Into<Ending>) {
        self.stdout = None;
        self.stderr = None;
        if let Some(ended) = self.ended.take() {
            let _ = ended.send(Ended::Exit(ending.into()));
        }
    }

    /// What the broker sees of its children when the supervisor dies.
    pub(crate) fn loses_the_supervisor(&mut self) {
        self.stdout = None;
        self.stderr = None;
        self.ended = None;
    }

    /// Waits until the broker closes its standard input, then ends.
    pub(crate) async fn is_stopped(&mut self) {
        while self.hears().await.is_some() {}
        self.ends(Exit::Code(0));
    }
}

/// Whether the broker asks for itself: of clients it passes on more than this.
fn is_brokers_own_list(heard: &Value) -> bool {
    let by = heard.pointer("/params/_meta/io.modelcontextprotocol~1clientInfo/name");
    heard["method"] == "tools/list"
        && (heard["params"] == json!({}) || by.is_some_and(|by| by == env!("CARGO_PKG_NAME")))
}
