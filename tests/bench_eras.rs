//! `cargo bench --bench eras`: what a call costs the broker in both eras of MCP, by the number of sessions that are open,
//! the size of the answer and its form, beside a bare bridge from HTTP to the same child that does nothing else.
//!
//! Everything is measured in one run, in turns, so that a busy machine slows all of it alike; read the ratios before the
//! times. A session, or a grant of the stateless era, has a connection and a child of its own, and at most sixteen calls
//! are on their way at once: beyond that a latency is the length of the queue in front of the processors. The processor
//! time is that of the broker's process, or the bridge's, without its children. Nothing here passes or fails.
//!
//! The run takes some six minutes, `-- --quick` some seconds: fewer sessions, and figures that tell nothing.

#![expect(clippy::print_stdout, reason = "a program that prints a table")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::deployment::{Deployment, DeploymentConfig, Program, Result, Running};
use harness::keep_alive::{INITIALIZE, KeepAlive};
use harness::release;
use harness::times::{Times, ratio};
use harness::usage::processor_time;

/// Calls that are on their way at once.
const IN_FLIGHT: usize = 16;
/// Bytes of an answer's text.
const SIZES: [(&str, usize); 2] = [("1 KiB", 1 << 10), ("1 MiB", 1 << 20)];
const FORMS: [&str; 2] = ["application/json", "text/event-stream"];

/// Room for five hundred sessions and as many grants, all of one user.
const ROOM_BELOW: &str = "[uids]\ncount = 2000\n[caps]\nchildren = 1024\nchildren_per_tenant = 1024\n\
    spawns_per_second = 1000\nspawn_burst = 1000\n[limits]\nprocesses = 8000\n";
/// The audit is off: the tool is in no table, so it counts as one that writes, and each call would be a line of the log.
const ROOM: &str = "[sessions]\nchildren_total = 1024\nchildren_per_user = 1024\nper_user = 1024\nchild_idle = \"1h\"\n\
    [audit]\ncalls = \"off\"\n[http]\nconnections_per_address = 2000\n";

/// How much is measured.
struct Extent {
    sessions: &'static [usize],
    turns: u32,
    /// Of one turn.
    span: Duration,
    /// Grants whose child is started.
    cold: u32,
}

const FULL: Extent = Extent { sessions: &[1, 10, 100, 500], turns: 5, span: Duration::from_millis(1000), cold: 50 };
const QUICK: Extent = Extent { sessions: &[1, 10], turns: 1, span: Duration::from_millis(200), cold: 5 };
/// What a client without a session says of itself in each request.
const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

fn main() -> Result<()> {
    let mut extent = FULL;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--quick" => extent = QUICK,
            // Cargo's own.
            "--bench" => {}
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    let binaries = release::programs()?;
    let child = binaries.join("stand-in-child");
    let bridge = Bridge::start(&binaries.join("bare-bridge"), &child)?;
    let translating = deploy(&binaries, "bench-eras", &["--fast"], 100_000)?;
    let relaying = deploy(&binaries, "bench-eras-relay", &["--fast", "--era", "2026-07-28"], 110_000)?;
    let mut ways = [
        Way { name: "bare bridge", url: bridge.url.clone(), pid: bridge.child.id(), kind: Kind::Bridge, open: vec![] },
        Way::through(&translating, "broker, session", Kind::Session(token(&translating)?)),
        Way::through(&translating, "broker, stateless, translated", Kind::Stateless(&translating)),
        Way::through(&relaying, "broker, stateless, relayed", Kind::Stateless(&relaying)),
    ];
    println!(
        "cores: {}; isolated: {}; x: against the bare bridge; p50, p99: of a call; CPU: of the process, a call",
        thread::available_parallelism()?,
        translating.config.privileged
    );
    cold(&child, &translating, &["--fast"], "translated", extent.cold)?;
    cold(&child, &relaying, &["--fast", "--era", "2026-07-28"], "relayed", extent.cold)?;
    for &sessions in extent.sessions {
        for way in &mut ways {
            way.open_up_to(sessions)?;
        }
        for (name, bytes) in SIZES {
            for form in FORMS {
                println!("{sessions} open, answers of {name}, {form}");
                measure(&mut ways, &extent, bytes, form)?;
            }
        }
    }
    Ok(())
}

fn deploy(binaries: &Path, name: &str, arguments: &[&str], first_uid: u32) -> Result<Deployment> {
    let dir = binaries.parent().unwrap_or(binaries).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    let program = Program::stand_in(&binaries.join("stand-in-child"), arguments);
    let mut config = DeploymentConfig::new(binaries, &dir, program);
    config.first_uid = first_uid;
    ROOM_BELOW.clone_into(&mut config.supervisor);
    ROOM.clone_into(&mut config.broker);
    Deployment::set(config)
}

/// A grant of its own.
fn token(deployment: &Deployment) -> Result<String> {
    deployment.broker_token("alice", &deployment.forge_token("alice")?, &[])
}

/// The bare bridge, killed when dropped.
struct Bridge {
    child: Child,
    url: String,
}

impl Bridge {
    fn start(program: &Path, child: &Path) -> Result<Self> {
        let mut child = Command::new(program).arg(child).arg("--fast").stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let url = line.trim().strip_prefix("LISTENING ").unwrap_or_default().to_owned();
        Ok(Self { child, url })
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is opened on a way.
enum Kind<'a> {
    Bridge,
    /// A session of this grant.
    Session(String),
    /// A grant.
    Stateless(&'a Deployment),
}

/// A way from a client to a child.
struct Way<'a> {
    name: &'static str,
    url: String,
    pid: u32,
    kind: Kind<'a>,
    open: Vec<KeepAlive>,
}

impl<'a> Way<'a> {
    fn through(deployment: &Deployment, name: &'static str, kind: Kind<'a>) -> Self {
        let pid = deployment.broker.as_ref().map_or(0, Running::pid);
        Self { name, url: deployment.url.clone(), pid, kind, open: Vec::new() }
    }

    fn open_up_to(&mut self, count: usize) -> Result<()> {
        while self.open.len() < count {
            let one = match &self.kind {
                Kind::Bridge => KeepAlive::open(&self.url, "")?,
                Kind::Session(token) => KeepAlive::open(&self.url, token)?,
                Kind::Stateless(deployment) => {
                    let mut one = KeepAlive::connect(&self.url, &token(deployment)?)?;
                    "mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: big\r\n"
                        .clone_into(&mut one.headers);
                    // Starts its child.
                    one.call(&self.body(1))?;
                    one
                }
            };
            self.open.push(one);
        }
        Ok(())
    }

    /// A call whose answer has so many bytes of text.
    fn body(&self, bytes: usize) -> String {
        let meta = match self.kind {
            Kind::Bridge | Kind::Session(_) => String::new(),
            Kind::Stateless(_) => format!(",{META}"),
        };
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"big","arguments":{{"bytes":{bytes}}}{meta}}}}}"#
        )
    }

    /// Calls on all that is open, in turn, for a while.
    fn turn(&mut self, span: Duration, bytes: usize, form: &'static str, taken: &mut Taken) -> Result<()> {
        let body = self.body(bytes);
        let stop = AtomicBool::new(false);
        let (began, spent) = (Instant::now(), processor_time(self.pid));
        let share = self.open.len().div_ceil(IN_FLIGHT);
        thread::scope(|scope| {
            let (body, stop) = (&body, &stop);
            let callers: Vec<_> = self
                .open
                .chunks_mut(share)
                .map(|all| scope.spawn(move || call(all, body, bytes, form, stop)))
                .collect();
            thread::sleep(span);
            stop.store(true, Ordering::Relaxed);
            for caller in callers {
                taken.times.0.extend(caller.join().map_err(|_| "a caller panicked")??.0);
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        })?;
        taken.processor += processor_time(self.pid).saturating_sub(spent);
        taken.elapsed += began.elapsed();
        Ok(())
    }
}

/// What the first call of a grant waits for whose child has to be started, beside the same child started and asked by
/// itself, with what the broker has to ask it before: who it is.
fn cold(child: &Path, deployment: &Deployment, arguments: &[&str], name: &str, grants: u32) -> Result<()> {
    let call = |arguments: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"echo"{arguments},{META}}}}}"#)
    };
    let (plain, with_arguments) = (call(""), call(r#","arguments":{"text":"x"}"#));
    let discover = format!(r#"{{"jsonrpc":"2.0","id":0,"method":"server/discover","params":{{{META}}}}}"#);
    let asked_before: &[&str] = if name == "relayed" { &[&discover] } else { &[INITIALIZE] };
    let (mut by_itself, mut first, mut first_with_arguments) = <(Times, Times, Times)>::default();
    for _ in 0..grants {
        let began = Instant::now();
        let mut child = Command::new(child).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (mut stdin, stdout) = (child.stdin.take().ok_or("no pipe")?, child.stdout.take().ok_or("no pipe")?);
        let mut answers = BufReader::new(stdout).lines();
        for line in asked_before.iter().chain([&plain.as_str()]) {
            writeln!(stdin, "{line}")?;
            answers.next().ok_or("no answer")??;
        }
        by_itself.0.push(began.elapsed());
        drop(stdin);
        child.wait()?;
        for (body, times) in [(&plain, &mut first), (&with_arguments, &mut first_with_arguments)] {
            let mut one = KeepAlive::connect(&deployment.url, &token(deployment)?)?;
            "mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: echo\r\n"
                .clone_into(&mut one.headers);
            times.take(|| one.call(body))?;
        }
    }
    println!("the first call of a grant without a child, {name}, beside such a child by itself");
    for (what, times) in
        [("child by itself", &by_itself), ("without arguments", &first), ("with arguments", &first_with_arguments)]
    {
        let more = times.median().saturating_sub(by_itself.median());
        println!(
            "  {what:<30} p50 {:>8.1?}  p99 {:>8.1?}  beyond the child {more:>8.1?}",
            times.median(),
            times.at(99)
        );
    }
    Ok(())
}

/// Calls on these, one after the other, until it is to stop.
fn call(all: &mut [KeepAlive], body: &str, bytes: usize, form: &'static str, stop: &AtomicBool) -> Result<Times> {
    let mut times = Times::default();
    loop {
        for one in &mut *all {
            if stop.load(Ordering::Relaxed) {
                return Ok(times);
            }
            one.accept = form;
            times.take(|| one.call(body))?;
            if one.content_type != form || one.body.len() < bytes {
                return Err(format!("not what is measured: {}, {} bytes", one.content_type, one.body.len()).into());
            }
        }
    }
}

/// What the turns of one way have come to.
#[derive(Default)]
struct Taken {
    times: Times,
    processor: Duration,
    elapsed: Duration,
}

impl Taken {
    fn processor_a_call(&self) -> Duration {
        self.processor.div_f64(f64::from(u32::try_from(self.times.0.len()).unwrap_or(u32::MAX)))
    }

    fn calls_a_second(&self) -> f64 {
        f64::from(u32::try_from(self.times.0.len()).unwrap_or(u32::MAX)) / self.elapsed.as_secs_f64()
    }
}

fn measure(ways: &mut [Way<'_>], extent: &Extent, bytes: usize, form: &'static str) -> Result<()> {
    let mut all: Vec<Taken> = ways.iter().map(|_| Taken::default()).collect();
    for way in &mut *ways {
        // Warms up.
        way.turn(extent.span / 5, bytes, form, &mut Taken::default())?;
    }
    for _ in 0..extent.turns {
        for (way, taken) in ways.iter_mut().zip(&mut all) {
            way.turn(extent.span, bytes, form, taken)?;
        }
    }
    let Some(unit) = all.first() else { return Ok(()) };
    for (way, taken) in ways.iter().zip(&all) {
        println!(
            "  {:<30} x: CPU {:>5.2}  p50 {:>5.2}  calls {:>5.2}   CPU {:>8.1?}  p50 {:>8.1?}  p99 {:>8.1?}  {:>6.0} calls/s",
            way.name,
            ratio(taken.processor_a_call(), unit.processor_a_call()),
            ratio(taken.times.median(), unit.times.median()),
            taken.calls_a_second() / unit.calls_a_second(),
            taken.processor_a_call(),
            taken.times.median(),
            taken.times.at(99),
            taken.calls_a_second(),
        );
    }
    Ok(())
}
