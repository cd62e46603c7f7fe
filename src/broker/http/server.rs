//! The broker put together: configuration in, connections served, everything stopped in order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use clap::Parser;
use rand::rngs::SysRng;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Duration, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceBuilder;
use tracing::{error, info, warn};

use crate::admin;
use crate::admin::doctor::Surroundings;
use crate::admin::{Admin, AdminError};
use crate::auth::bearer::{BearerLayer, Challenge, Principals, require_bearer};
use crate::auth::principal::Scopes;
use crate::auth::rates::RateLimits;
use crate::auth::revocation::Revocation;
use crate::chain::chain;
use crate::child::supervisor_client::SupervisorSpawner;
use crate::config::Config;
use crate::deadline::Deadline;
use crate::forge::api::{ClientError, Forgejo};
use crate::forge::application::Application;
use crate::forge::identity;
use crate::forge::identity::{Adoption, ForgeError};
use crate::forge::rotation::{Change, Rotation};
use crate::forge::vault::{Vault, VaultError};
use crate::http::listener::Listener;
use crate::http::names::Gate;
use crate::http::reload::{Reloader, Sources};
use crate::http::shares::ConnectionCaps;
use crate::http::status::StatusLine;
use crate::http::{accept, codings, health, host, metrics_page, once, origin, traced, unread};
use crate::live::Live;
use crate::mcp::endpoint::Endpoint;
use crate::mcp::observed::Observer;
use crate::mcp::scope::Scope;
use crate::mcp::writes::RecentWrites;
use crate::metrics::{Metrics, MetricsError};
use crate::oauth::document::DocumentCacheError;
use crate::oauth::{Dependencies, OAuth};
use crate::session::registry::Registry;
use crate::store::{Store, StoreError};
use wire::clock::Clock;
use wire::config_file::Credentials;
use wire::inherited::Inherited;
use wire::lifecycle::{EX_CONFIG, EX_SOFTWARE, EX_UNAVAILABLE, StopSignals};
use wire::telemetry::message_id;
use wire::{lifecycle, telemetry};

/// What it calls itself where it says why it does not start.
const PROGRAM: &str = "forgejo-mcp-broker";

/// `FileDescriptorName=` of the operator's socket.
const ADMIN_SOCKET: &str = "admin";

/// How often the reaper looks for idle children and sessions.
pub(crate) const REAP_EVERY: Duration = Duration::from_secs(30);

/// Connections to `/metrics` at once.
const METRICS_CONNECTIONS: usize = 16;
/// How often what is over is removed from the store.
const TIDY_EVERY: Duration = Duration::from_mins(10);
/// How long ended sessions stay in the store, for an operator who asks what became of one.
const KEEP_ENDED_SESSIONS: Duration = Duration::from_hours(7 * 24);
/// What came in at the very end of the drain may take so long.
const LAST_CALLS: Duration = Duration::from_millis(500);
/// How long the whole stop may take after the drain.
const STOP_WITHIN: Duration = Duration::from_secs(25);
/// How long exchanges at Forgejo that were begun may take; longer than Forgejo is waited for.
const EXCHANGES_TIMEOUT: Duration = Duration::from_secs(20);
/// How long answers that were begun may take to leave after every child is stopped.
const RESPONSES_TIMEOUT: Duration = Duration::from_secs(5);

/// Gives every user of a Forgejo instance their own isolated forgejo-mcp over HTTP.
#[derive(Debug, Parser)]
#[command(name = "forgejo-mcp-broker", version)]
pub(crate) struct Options {
    /// Configuration file; may be repeated, later files are laid over earlier ones.
    #[arg(long, value_name = "FILE", default_value = "/etc/forgejo-mcp-broker/broker.toml")]
    config: Vec<PathBuf>,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
    /// Say that the forge that `[forgejo] url` names is the `same` as before or an `other`, and exit. With `other` all
    /// grants are revoked. Needed once, when the broker does not start because the forge has changed.
    #[arg(long, value_name = "same|other", conflicts_with = "check")]
    adopt_forge: Option<Adoption>,
    /// Give up what is sealed under a key that is lost, and exit: the grants that stand on it are revoked.
    #[arg(long, conflicts_with_all = ["check", "adopt_forge"])]
    forget_sealed: bool,
}

/// Why the broker does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// The address cannot be listened on.
    #[error("cannot listen on {0}")]
    Listen(String, #[source] std::io::Error),
    /// The store does not open.
    #[error("the store does not open")]
    Store(#[from] StoreError),
    /// Somebody else would make files that the broker cannot open.
    #[error("run this as the user that the database {0} belongs to: `runuser -u \"$(stat -c %U {0})\" -- …`")]
    NotOwner(PathBuf),
    /// The database belongs to another forge.
    #[error(transparent)]
    Forge(#[from] ForgeError),
    /// The vault does not open.
    #[error("the vault does not open")]
    Vault(#[from] VaultError),
    /// The operator's socket cannot be made.
    #[error("the operator's door does not open")]
    Admin(#[from] AdminError),
    /// Two metrics have one name.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The HTTP client cannot be made.
    #[error("Forgejo cannot be asked")]
    Client(#[from] ClientError),
    /// The client for metadata documents cannot be made.
    #[error("metadata documents cannot be fetched")]
    DocumentCache(#[from] DocumentCacheError),
    /// The signal handlers cannot be installed.
    #[error("signals cannot be handled")]
    Signals(#[source] std::io::Error),
}

/// The command line, for what describes it: completions of shells.
pub fn command() -> clap::Command {
    <Options as clap::CommandFactory>::command()
}

/// `main` of the broker.
pub fn main() -> ExitCode {
    let options = Options::parse();
    telemetry::init();
    // Before any descriptor is opened: the sockets of the service manager are found by number.
    let inherited = Inherited::from_env();
    lifecycle::begin();
    let credentials = match std::env::var_os("CREDENTIALS_DIRECTORY") {
        Some(dir) => Credentials::Directory(dir.into()),
        // Neither needs them, and an operator runs both by hand.
        None if options.check || options.adopt_forge.is_some() => Credentials::OutOfSight,
        None => Credentials::None,
    };
    let sources = Sources { files: options.config, credentials };
    let config = match sources.read() {
        Ok(config) => config,
        Err(problems) => {
            return lifecycle::fail(PROGRAM, EX_CONFIG, &format_args!("the configuration has problems:\n{problems}"));
        }
    };
    if options.check {
        for key in &config.out_of_sight {
            info!("{key} names a credential of the systemd unit, which cannot be looked at here");
        }
        info!("the configuration is good");
        return ExitCode::SUCCESS;
    }
    telemetry::filter_by(config.log.as_ref());
    telemetry::write_as(config.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_io().enable_time().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            return lifecycle::fail(PROGRAM, EX_SOFTWARE, &format_args!("the runtime cannot be built: {e}"));
        }
    };
    let outcome = match options.adopt_forge {
        Some(adoption) => runtime.block_on(once::adopt_forge(&config, adoption)),
        None if options.forget_sealed => runtime.block_on(once::forget_sealed(&config)),
        None => runtime.block_on(run(config, sources, inherited)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            e.tell();
            lifecycle::fail(PROGRAM, e.exit_code(), &format_args!("cannot start: {}", chain(&e)))
        }
    }
}

impl ServerError {
    /// What people search the journal for; the words of all of it follow on standard error.
    fn tell(&self) {
        if let Self::Vault(VaultError::WrongKey { missing, .. }) = self {
            error!(
                MESSAGE_ID = message_id::KEY_MISMATCH,
                reason = "key-mismatch",
                key = missing.join(" "),
                "the key file is not the one that this database belongs to"
            );
        }
    }

    /// Of sysexits.h. What only the operator can settle is a matter of the configuration: trying again is no use.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Forge(ForgeError::Changed { .. }) | Self::Vault(VaultError::WrongKey { .. }) => EX_CONFIG,
            _ => EX_UNAVAILABLE,
        }
    }
}

/// Serves until asked to stop.
#[expect(clippy::too_many_lines, reason = "how the parts hang together is read best in one piece")]
pub(crate) async fn run(config: Config, sources: Sources, mut inherited: Inherited) -> Result<(), ServerError> {
    // First, because it refuses to be a second broker: nothing that another one holds is touched before.
    let store = Store::open(&config.database).await?;
    let operators = inherited.take_named(ADMIN_SOCKET).map_err(|e| ServerError::Listen(ADMIN_SOCKET.to_owned(), e))?;
    let listeners =
        Listener::all(&mut inherited, config.listen).map_err(|e| ServerError::Listen(config.listen.to_string(), e))?;
    let mut signals = StopSignals::new().map_err(ServerError::Signals)?;
    let hangups = lifecycle::Reload::new().map_err(ServerError::Signals)?;
    let clock = Clock::system();
    let vault = Arc::new(open_vault(&config, &store).await?);
    let metrics = Metrics::new()?;
    let forgejo =
        Forgejo::new(&config.forgejo_url)?.with_public_url(&config.forgejo_public_url).measured(metrics.clone());
    identity::settle(&store, &forgejo, clock.now()).await?;
    let supervisor = SupervisorSpawner::new(config.supervisor.clone(), nix::unistd::Uid::effective());
    let challenge = challenge(&config);
    let (rotation, changes) = Rotation::new(
        store.clone(),
        Arc::clone(&vault),
        forgejo.clone(),
        config.application.clone(),
        config.access.clone(),
        clock.clone(),
        config.refresh_lead,
    );
    let principals =
        Principals::new(store.clone(), Arc::clone(&vault), clock.clone(), challenge.clone(), Some(rotation.clone()));
    let spawner = Arc::new(supervisor.clone());
    let records = Arc::new(store.clone());
    let registry = Registry::load(config.sessions.clone(), spawner, records, clock.clone(), metrics.clone()).await?;
    let (tables, unknown) = (Live::new(config.tools.clone()), Live::new(config.unknown_session));
    let scope = Scope::new(tables.clone(), &challenge, offers(&config));
    let asked = Some(principals.clone());
    let writes = RecentWrites::default();
    let observer = Observer::new(metrics.clone(), config.audit, writes.clone(), clock.clone());
    let endpoint = Endpoint::new(registry.clone(), config.max_body, unknown.clone(), scope, observer, asked);
    let revocation = Revocation {
        store: store.clone(),
        principals: principals.clone(),
        registry: registry.clone(),
        clock: clock.clone(),
    };
    let limits = Arc::new(RateLimits::new(config.rates, config.proxies.clone()));
    let oauth = OAuth::new(Dependencies {
        public_url: config.public_url.clone(),
        policy: config.oauth.clone(),
        site: config.page.clone(),
        application: config.application.clone(),
        store: store.clone(),
        forgejo: forgejo.clone(),
        rotation: rotation.clone(),
        revocation: revocation.clone(),
        limits: Arc::clone(&limits),
        clock: clock.clone(),
        writes: writes.clone(),
    })?;
    let bearer = BearerLayer { principals: principals.clone(), limits: Arc::clone(&limits), metrics: metrics.clone() };
    let names = Live::new(config.names.clone());
    let gate = Gate::new(names.clone(), metrics.clone());
    let ahead_of_mcp = ServiceBuilder::new()
        .layer(from_fn_with_state(registry.clone(), begin_deadline))
        .layer(from_fn_with_state(gate.clone(), origin::require_known_origin))
        .layer(from_fn(origin::ask_for_known_headers))
        .layer(origin::cors(names.clone()))
        .layer(from_fn_with_state(bearer, require_bearer));
    let router = Router::new()
        .route("/mcp", endpoint.routes().layer(ahead_of_mcp))
        .merge(oauth.routes())
        // By name, because the layers would not go with the unnamed one.
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(from_fn(codings::require_plain_body))
        .layer(from_fn_with_state(gate, host::require_own_host))
        .layer(traced::lines())
        .layer(from_fn(traced::begin));
    let health = health::routes(store.clone(), supervisor.clone(), forgejo.clone());
    let router =
        router.merge(health.clone().layer(from_fn(host::require_any_host))).layer(from_fn(unread::settle_body));

    let status = StatusLine::new(&registry, &store, &supervisor);
    let stop = CancellationToken::new();
    if let Some(address) = config.metrics {
        let sources = metrics_page::Sources {
            metrics,
            registry: registry.clone(),
            supervisor: supervisor.clone(),
            store: store.clone(),
            vault: Arc::clone(&vault),
            limits: Arc::clone(&limits),
        };
        serve_metrics(address, metrics_page::routes(sources)?.merge(health), stop.clone())?;
    }

    let surroundings = Surroundings {
        public_url: config.public_url.clone(),
        lets_log_in: config.application.is_some(),
        connections: config.connections.total,
        limits: Arc::clone(&limits),
    };
    let admin = Admin {
        store: store.clone(),
        database: config.database.clone(),
        copying: Arc::default(),
        vault,
        forgejo,
        rotation: rotation.clone(),
        revocation: revocation.clone(),
        supervisor,
        clock: clock.clone(),
        surroundings,
    };
    admin::serve(operators, &config.admin, &admin::router(admin), &stop)?;
    tokio::spawn(lifecycle::watchdog());
    tokio::spawn(follow(changes, revocation));
    rotation.begin().await?;
    // Before anybody is served: who was put on the lists while the broker was down is out.
    rotation.apply_lists().await?;
    let reloader = Reloader {
        sources,
        started: config.clone(),
        rotation: rotation.clone(),
        limits,
        registry: registry.clone(),
        tables,
        unknown,
        names,
    };
    tokio::spawn(reloader.on_hangup(hangups, status.clone()));
    let asking = tokio::spawn(tick_upstream(rotation.clone()));
    let replacing = rotation.clone();
    tokio::spawn(async move { replacing.go_on_replacing_key().await });
    let ticking = [
        tokio::spawn(tick(registry.clone(), principals.clone(), writes.clone(), store.clone())),
        tokio::spawn(tidy(oauth, store.clone(), clock)),
    ];
    let addresses = listeners.iter().map(Listener::name).collect::<Vec<_>>().join(" ");
    let connections =
        accept::Connections::new(config.connections.clone().within_descriptors(config.sessions.children.total));
    let accepting = TaskTracker::new();
    for listener in listeners {
        accepting.spawn(connections.clone().accept(listener, router.clone(), stop.clone()));
    }
    accepting.close();
    info!(listen = %addresses, public_url = %config.public_url, "ready");
    lifecycle::ready(&status.text());
    tokio::spawn(status.tell());

    let signal = signals.next().await;
    let drain = registry.config().drain;
    info!(reason = signal, ?drain, "stopping");
    lifecycle::stopping();
    // What it has begun goes on in tasks of its own, which are waited for below.
    asking.abort();
    let orderly = async {
        // Everybody goes on being served while calls in flight may end, so that one endless call is nobody's outage.
        registry.drain(drain).await;
        // From here on new connections wait in the socket for the next broker, or are refused; those that are open go on.
        stop.cancel();
        accepting.wait().await;
        registry.shut_down(LAST_CALLS).await;
        connections.finish(RESPONSES_TIMEOUT).await;
        rotation.finish(EXCHANGES_TIMEOUT).await;
        ticking.iter().for_each(JoinHandle::abort);
        principals.flush_uses().await;
        writes.flush(&store).await;
        store.close().await;
    };
    tokio::select! {
        () = orderly => {}
        // Below TimeoutStopSec= (90 s by default), after which systemd would kill everything as it stands.
        () = sleep(drain + STOP_WITHIN) => warn!(reason = "stop-timeout", "stopping at once: the orderly stop takes too long"),
        signal = signals.next() => warn!(reason = signal, "stopping at once"),
    }
    info!("the broker ends");
    Ok(())
}

/// Counts a request's time from here on, before anything is awaited for it.
async fn begin_deadline(State(registry): State<Registry>, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Deadline::within(registry.config().request_timeout));
    next.run(request).await
}

/// Serves Prometheus and probes apart from the clients, until the broker stops.
fn serve_metrics(address: SocketAddr, router: Router, stop: CancellationToken) -> Result<(), ServerError> {
    let listener = Listener::bind(address).map_err(|e| ServerError::Listen(address.to_string(), e))?;
    info!(address = %listener.name(), "/metrics is served");
    let caps = ConnectionCaps { total: METRICS_CONNECTIONS, per_address: METRICS_CONNECTIONS, proxies: Vec::new() };
    tokio::spawn(accept::Connections::new(caps).accept(listener, router, stop));
    Ok(())
}

/// The most that a client can be given.
fn offers(config: &Config) -> Scopes {
    config.application.as_ref().map_or(Scopes { write: true }, Application::offers)
}

/// What who has no good token is told.
fn challenge(config: &Config) -> Challenge {
    let application = config.application.as_ref();
    let metadata = |_| format!("{}/.well-known/oauth-protected-resource/mcp", config.public_url);
    Challenge {
        // Where nobody can log in there is none.
        resource_metadata: application.map(metadata),
        scope: offers(config).as_str(),
        is_bare: config.oauth.bare_challenge,
    }
}

pub(super) async fn open_vault(config: &Config, store: &Store) -> Result<Vault, ServerError> {
    Ok(Vault::open(config.key_file.clone(), &store.sealing_key_ids().await?, &mut SysRng)?)
}

/// Acts on what becomes of upstream credentials.
async fn follow(mut changes: mpsc::Receiver<Change>, revocation: Revocation) {
    while let Some(change) = changes.recv().await {
        match change {
            Change::Rotated(grants) => {
                for grant in grants {
                    revocation.forget_tokens(&grant);
                    if let Some(principal) = revocation.principals.behind(&grant).await {
                        revocation.registry.rotate(&principal, revocation.registry.config().drain);
                    }
                }
            }
            Change::Barred(grants) => {
                for grant in grants {
                    revocation.suspend(&grant);
                }
            }
            Change::Lost(grants) => {
                for grant in grants {
                    revocation.end(&grant, "login-again");
                }
            }
        }
    }
}

/// What happens every [`REAP_EVERY`].
async fn tick(registry: Registry, principals: Principals, writes: RecentWrites, store: Store) {
    let mut ticks = interval(REAP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        registry.sweep().await;
        principals.flush_uses().await;
        writes.flush(&store).await;
    }
}

/// What happens every [`TIDY_EVERY`].
async fn tidy(oauth: OAuth, store: Store, clock: Clock) {
    let mut ticks = interval(TIDY_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        oauth.tidy().await;
        if let Err(error) = store.forget_sessions(clock.now().minus(KEEP_ENDED_SESSIONS)).await {
            error!(error = %error, "ended sessions could not be removed: {}", chain(&error));
        }
    }
}

/// What happens as often and waits for Forgejo, by itself, so that the reaper waits for nobody.
async fn tick_upstream(rotation: Rotation) {
    let mut ticks = interval(REAP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        rotation.recheck_forge().await;
        rotation.look_up_names_again().await;
        rotation.sweep().await;
        rotation.recheck().await;
    }
}
