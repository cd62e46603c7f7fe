//! The privileged half: starts and stops children, each under a uid of its own.
//!
//! It assumes that the broker is fully compromised. What it trusts is its own root-owned policy
//! ([`config`]); what a frame can ask for is bounded by [`wire::message`], and every refusal is
//! in [`core`]. It parses no HTTP, no JSON and no SQL, and has one thread: `fork` copies only the calling one, and a
//! lock that another held would stay locked in the child. Hence no `tokio::fs` and no `spawn_blocking` here.

pub(crate) mod accounts;
pub(crate) mod cgroup;
pub(crate) mod children;
pub(crate) mod config;
pub(crate) mod connection;
pub(crate) mod core;
pub(crate) mod executor;
pub(crate) mod forge_url;
pub(crate) mod inspect;
pub(crate) mod ipc;
pub(crate) mod log_limit;
pub(crate) mod ownership;
pub(crate) mod policy;
pub(crate) mod privileges;
pub(crate) mod proc_view;
pub(crate) mod profile;
pub(crate) mod program;
pub(crate) mod reaper;
pub(crate) mod rlimit;
pub(crate) mod sandbox;
#[allow(unsafe_code, clippy::allow_attributes)]
pub(crate) mod spawn;
pub(crate) mod stuck;
pub(crate) mod sweep;
pub(crate) mod uid;

#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use nix::unistd::{Group, Uid};

use crate::config::{Config, Purpose};
use crate::core::{Core, Event, Policy};
use crate::executor::{Executor, Setup};
use crate::log_limit::Line;
use crate::policy::InForce;
use crate::uid::Pool;
use wire::inherited::Inherited;
use wire::lifecycle;
use wire::lifecycle::{EX_CONFIG, EX_NOPERM, EX_OK, EX_OSERR, EX_SOFTWARE, Reload, StopSignals};
use wire::message::MAX_SUPERVISOR_CONNECTIONS;
use wire::message::{Isolation, Status};
use wire::socket::Listener;
use wire::telemetry;
use wire::telemetry::message_id;

/// From SIGTERM to SIGKILL for every child. With `KILL_BOUND` below the 90 s after which systemd kills the supervisor
/// itself (`TimeoutStopSec=`), and its children with it.
const STOP_BOUND: Duration = Duration::from_secs(80);
/// What a killed child may take to be gone. One that does not go hangs in the kernel.
const KILL_BOUND: Duration = Duration::from_secs(5);
/// Before a connection is accepted again, when the system could not.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Pauses between two lines for `systemctl status`.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// Starts and stops the forgejo-mcp of each user for forgejo-mcp-broker, each under a uid of its own.
///
/// Takes its listening sockets from systemd (`ListenSequentialPacket=`) or makes one with --listen. SIGTERM announces the
/// end, lets calls go on for a grace, stops all children and ends it; a second one does so at once. SIGHUP reads the
/// policy again.
#[derive(Debug, Parser)]
#[command(name = "forgejo-mcp-supervisor", version)]
struct Args {
    /// Configuration file; repeated, later ones are laid over earlier ones
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: Vec<PathBuf>,
    /// Listen at this path instead of on a socket from systemd
    #[arg(long, value_name = "PATH")]
    listen: Option<PathBuf>,
    /// Group of the socket made by --listen, by name or number; it may then connect
    #[arg(long, value_name = "GROUP", requires = "listen")]
    listen_group: Option<String>,
    /// File mode of the socket made by --listen, octal; default 0600, with --listen-group 0660
    #[arg(long, value_name = "MODE", requires = "listen", value_parser = octal)]
    listen_mode: Option<u32>,
    /// Run without root: children keep this user's uid and are not isolated from each other
    #[arg(long)]
    unprivileged: bool,
    /// Check the configuration and exit: 0 if it is good, 78 if not
    #[arg(long)]
    check: bool,
}

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| "must be like 0660".to_owned())
}

/// The command line, for what describes it: completions of shells.
pub fn command() -> clap::Command {
    <Args as clap::CommandFactory>::command()
}

/// The whole program. The exit codes are those of sysexits.h.
pub fn main() -> ExitCode {
    let args = Args::parse();
    // Before anything else: it takes the variables out of the environment, which must not race with readers.
    let inherited = Inherited::from_env();
    // Whatever else the program was started with is nobody's business here. (A configuration to check may be one.)
    let closed = if args.check { Ok(()) } else { spawn::close_from(3_usize.saturating_add(inherited.count())) };
    lifecycle::begin();
    let purpose = if args.check { Purpose::Check } else { Purpose::Start };
    let config = match Config::load(&args.config, args.unprivileged, purpose) {
        Ok(config) => config,
        Err(error) => return fail(EX_CONFIG, &error),
    };
    if args.check {
        config.hints().iter().for_each(|hint| lifecycle::say("forgejo-mcp-supervisor", hint));
        return ExitCode::from(EX_OK);
    }
    match (Uid::effective().is_root(), args.unprivileged) {
        (false, false) => {
            let what = "not root: start it by its systemd unit or as root, or with --unprivileged if children need \
                        not be isolated from each other";
            return fail(EX_NOPERM, &what);
        }
        // The one combination that is worse than either: children would run as root.
        (true, true) => return fail(EX_NOPERM, &"--unprivileged is not for root: children would run as root"),
        _ => {}
    }
    telemetry::init();
    telemetry::filter_by(config.log.as_ref());
    telemetry::write_as(config.log_format);
    if let Err(error) = closed {
        return fail(EX_OSERR, &format!("closing the descriptors that were inherited: {error}"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let outcome = match runtime {
        Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, serve(args, config, inherited)),
        Err(error) => Err((EX_OSERR, format!("starting the runtime: {error}"))),
    };
    match outcome {
        Ok(()) => ExitCode::from(EX_OK),
        Err((code, what)) => fail(code, &what),
    }
}

fn fail(code: u8, what: &dyn Display) -> ExitCode {
    lifecycle::fail("forgejo-mcp-supervisor", code, what)
}

async fn serve(args: Args, config: Config, inherited: Inherited) -> Result<(), (u8, String)> {
    let os = |what: &str, e: &dyn Display| (EX_OSERR, format!("{what}: {e}"));
    spawn::protect_self().map_err(|e| os("protecting the supervisor's own memory", &e))?;
    let signals = StopSignals::new().map_err(|e| os("catching signals", &e))?;
    let reload = Reload::new().map_err(|e| os("catching signals", &e))?;
    let executor = assemble(config)?;
    let listeners = listen(&args, inherited)?;
    // Before anybody is heard, and after all that needs more.
    if !args.unprivileged {
        privileges::give_up().map_err(|e| (EX_NOPERM, format!("giving up what root need not have: {e}")))?;
    }

    executor.begin().map_err(|e| os("looking for what an earlier supervisor left", &e))?;
    let accepting: Vec<_> =
        listeners.into_iter().map(|listener| tokio::task::spawn_local(accept(listener, executor.clone()))).collect();
    tokio::task::spawn_local(lifecycle::watchdog());
    lifecycle::ready(&line(&executor.status()));
    tokio::task::spawn_local(tell_numbers(executor.clone()));
    let reloading = tokio::task::spawn_local(reload_when_asked(reload, args, executor.clone()));
    let ended_first = accepting.into_iter().chain([reloading]).collect();
    run_until_stopped(signals, &executor, ended_first).await
}

/// Waits for the first signal and stops in order: says so, waits for calls, stops children, says goodbye.
///
/// Runs as the main future, which has its turn before any spawned task: where systemd signals the children as well, the
/// stop is announced before their ends are told.
async fn run_until_stopped(
    mut signals: StopSignals,
    executor: &Executor,
    ended_first: Vec<tokio::task::JoinHandle<()>>,
) -> Result<(), (u8, String)> {
    let signal = signals.next().await;
    let drain = executor.policy().config.stop.drain;
    tracing::info!(reason = signal, ?drain, "stopping");
    lifecycle::stopping();
    ended_first.iter().for_each(tokio::task::JoinHandle::abort);
    executor.feed(Event::Drain);
    let orderly = async {
        if tokio::time::timeout(drain, executor.idle()).await.is_err() {
            executor.feed(Event::GraceOver);
            executor.idle().await;
        }
    };
    tokio::select! {
        () = orderly => return Ok(()),
        signal = signals.next() => tracing::info!(reason = signal, "stopping at once"),
        () = tokio::time::sleep(STOP_BOUND) => tracing::warn!("children take too long to end and are killed"),
    }
    executor.feed(Event::GraceOver);
    executor.kill_all();
    if tokio::time::timeout(KILL_BOUND, executor.idle()).await.is_err() {
        return Err((EX_SOFTWARE, "some children did not end".to_owned()));
    }
    Ok(())
}

/// Probes what the machine has, says what is missing, and puts the parts together.
fn assemble(config: Config) -> Result<Executor, (u8, String)> {
    let cgroups = cgroup::Cgroups::open(config.cgroup_root.as_deref(), config.limits.total());
    let cgroups = cgroups.map_err(|e| (EX_CONFIG, e.to_string()))?;
    let (uids, caps, broker, children_of) = (config.uids, config.caps, config.broker, config.limits.children());
    let bounds_memory = cgroups.as_ref().is_some_and(|all| all.enforced().memory);
    let policy = InForce::new(config, bounds_memory).map_err(|e| (EX_SOFTWARE, e.to_string()))?;
    let isolation = isolation_of(&policy, cgroups.as_ref());
    say_what_is_missing(isolation, cgroups.as_ref());
    let (own, connections) = (Uid::current(), MAX_SUPERVISOR_CONNECTIONS);
    let rules = Policy { broker, own, connections, caps, children_of, isolation };
    let core = Core::new(rules, uids.map(Pool::new), Instant::now());
    Ok(Executor::new(Setup { uids, cgroups }, policy, core))
}

/// What is really in force.
fn isolation_of(policy: &InForce, cgroups: Option<&cgroup::Cgroups>) -> Isolation {
    Isolation {
        own_uid: policy.config.uids.is_some(),
        cgroup: cgroups.map(cgroup::Cgroups::enforced).is_some_and(|on| on.memory && on.pids),
        landlock: policy.sandbox.has_landlock(),
        seccomp: !policy.sandbox.filters.is_empty(),
    }
}

/// Reads the policy again at each SIGHUP; one with problems changes nothing. Ends never.
async fn reload_when_asked(mut reload: Reload, args: Args, executor: Executor) {
    loop {
        reload.next().await;
        match executor.policy().reread(&args.config, args.unprivileged) {
            Ok(policy) => {
                telemetry::filter_by(policy.config.log.as_ref());
                telemetry::write_as(policy.config.log_format);
                let isolation = isolation_of(&policy, executor.cgroups());
                say_what_is_missing(isolation, executor.cgroups());
                if let Some(Err(error)) = executor.cgroups().map(|all| all.set_total(policy.config.limits.total())) {
                    tracing::error!(%error, "the limits of all children together stay as they were");
                }
                executor.change_policy(policy, isolation);
                tracing::info!("the policy was read again; it holds for children that are started from now on");
            }
            Err(problems) => {
                tracing::error!(
                    MESSAGE_ID = message_id::POLICY_BAD,
                    reason = "bad-policy",
                    "the policy stays as it was; its files have problems:\n{problems}"
                );
            }
        }
        lifecycle::ready(&line(&executor.status()));
    }
}

/// Tells systemd the numbers when they change, at most once in a [`STATUS_PAUSE`]. Ends never.
async fn tell_numbers(executor: Executor) {
    let mut told = String::new();
    loop {
        executor.changed().await;
        let line = line(&executor.status());
        if line != told {
            lifecycle::status(&line);
            told = line;
        }
        // What was left out meanwhile rings `changed` as well, so that its count is told one turn later at the latest.
        tokio::time::sleep(STATUS_PAUSE).await;
        executor.tell_left_out();
    }
}

/// For `systemctl status`.
fn line(status: &Status) -> String {
    let Status { children, max_children, tenants, uids_unclean, .. } = status;
    let unclean = if *uids_unclean == 0 { String::new() } else { format!(", {uids_unclean} uids not clean") };
    format!("{children} of at most {max_children} children, of {tenants} users{unclean}")
}

fn say_what_is_missing(isolation: Isolation, cgroups: Option<&cgroup::Cgroups>) {
    let warn = |what: &str| tracing::warn!(MESSAGE_ID = message_id::NOT_ISOLATED, "not isolated: {what}");
    if !isolation.own_uid {
        warn("all children run under the supervisor's own uid and can reach each other");
    }
    let enforced = cgroups.map(cgroup::Cgroups::enforced).unwrap_or_default();
    let kinds = [("processes", enforced.pids), ("CPU", enforced.cpu), ("disk", enforced.io)];
    let missing: Vec<_> = kinds.into_iter().filter(|(_, on)| !on).map(|(kind, _)| kind).collect();
    if !missing.is_empty() {
        let why = if cgroups.is_some() { "the cgroup has no such controller" } else { "there is no cgroup" };
        let what = missing.join(", ");
        warn(&format!("{what}: not limited for a user's processes together, because {why}; each has its rlimits"));
    }
    if !enforced.memory {
        warn("memory is not limited: each process has an address space limit, a user's processes together have none");
    }
    if lifecycle::cores_can_leave() {
        warn("a handler of cores behind a pipe gets those of children, with their tokens: set LimitCORE=1 and not 0");
    }
    if !isolation.landlock {
        warn("no Landlock: children can open whatever file modes allow");
    }
    if !isolation.seccomp {
        warn("no seccomp: children can make every system call");
    }
}

fn listen(args: &Args, mut inherited: Inherited) -> Result<Vec<Listener>, (u8, String)> {
    if let Some(path) = &args.listen {
        let group = match &args.listen_group {
            None => None,
            Some(name) => match (name.parse(), Group::from_name(name)) {
                (Ok(gid), _) => Some(gid),
                (_, Ok(Some(group))) => Some(group.gid.as_raw()),
                _ => return Err((EX_CONFIG, format!("--listen-group: there is no group `{name}`"))),
            },
        };
        let mode = args.listen_mode.unwrap_or(if group.is_some() { 0o660 } else { 0o600 });
        return Listener::bind(path, mode, group)
            .map(|listener| vec![listener])
            .map_err(|e| (EX_OSERR, format!("listening at {}: {e}", path.display())));
    }
    let sockets = inherited
        .take_seqpackets()
        .and_then(|sockets| sockets.into_iter().map(Listener::inherited).collect::<Result<Vec<_>, _>>())
        .map_err(|e| (EX_OSERR, format!("taking over the sockets from systemd: {e}")))?;
    if sockets.is_empty() {
        return Err((EX_CONFIG, "no socket from systemd: use the socket unit, or --listen PATH".to_owned()));
    }
    Ok(sockets)
}

async fn accept(mut listener: Listener, executor: Executor) {
    // When no descriptor is left its place is the one for the next connection: the broker can ask for the numbers, and end
    // children, when nothing else can be opened.
    let mut reserve = File::open("/dev/null").ok();
    loop {
        match listener.accept().await {
            Ok(socket) => {
                tokio::task::spawn_local(connection::serve(executor.clone(), socket));
                reserve = reserve.or_else(|| File::open("/dev/null").ok());
            }
            Err(error) => {
                if let Some(Line { left_out }) = executor.may_log("not-accepted") {
                    let reason = "not-accepted";
                    tracing::warn!(%error, reason, left_out, "accepting a connection failed");
                }
                if reserve.take().is_none() {
                    // Out of descriptors or memory: only time helps, and spinning would take it from everybody.
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}
