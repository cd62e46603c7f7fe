//! The broker's configuration, parsed once and completely: all problems are reported together.

mod oauth;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use url::{Host, Url};

use super::access::Access;
use super::limiter::Rates;
use super::mcp::refusal::UnknownSession;
use super::oauth::policy::Policy as OAuthPolicy;
use super::session::places::Caps;
use super::session::registry::Policy;
use super::tools::Tables;
use super::upstream::tokens::Application;
use crate::config_file::{ConfigError, Section};
use crate::limits::{DEFAULT_MAX_BODY, DEFAULT_MAX_LINE};
use crate::secret::UpstreamToken;

/// All of it.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients reach the broker: scheme, host and port, nothing behind. From here alone, never from a request.
    pub public_url: String,
    /// Where it listens, unless the service manager hands it a socket.
    pub listen: SocketAddr,
    /// The Forgejo instance.
    pub forgejo_url: String,
    /// The broker's registration at Forgejo: without it no upstream token is refreshed.
    pub application: Option<Application>,
    /// Who may log in.
    pub access: Access,
    /// Logging in.
    pub oauth: OAuthPolicy,
    /// How often strangers may ask.
    pub rates: Rates,
    /// Whose `X-Forwarded-For` is believed.
    pub proxies: Vec<IpNet>,
    /// Which tools write.
    pub tools: Tables,
    /// How long ahead of its end an upstream token is refreshed.
    pub refresh_lead: Duration,
    /// The supervisor's socket.
    pub supervisor: PathBuf,
    /// The database.
    pub database: PathBuf,
    /// The key that seals upstream tokens.
    pub key_file: KeyFile,
    /// The operator's socket.
    pub admin: PathBuf,
    /// Bytes in one message.
    pub max_body: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// Pages of these origins may use the endpoint.
    pub origins: Vec<String>,
    /// Sessions and children.
    pub sessions: Policy,
    /// What an unknown session is answered with.
    pub unknown_session: UnknownSession,
    /// How long running requests may take at shutdown.
    pub drain: Duration,
}

/// Where the key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    /// The file.
    pub path: PathBuf,
    /// Whether systemd provides it: then it is neither made nor checked for its mode.
    pub managed: bool,
}

impl Config {
    /// Reads it. `credentials` is `$CREDENTIALS_DIRECTORY`, where systemd puts what `LoadCredential=` names.
    pub fn read(mut root: Section, credentials: Option<&Path>) -> Result<Self, ConfigError> {
        const RUN: &str = "/run/forgejo-mcp-broker";
        let public_url = address(&mut root, "public_url", true);
        let listen = root.parsed("listen").unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)));
        let mut forgejo = root.section("forgejo");
        let forgejo_url = address(&mut forgejo, "url", false);
        let refresh_lead = forgejo.duration("refresh_lead", Duration::from_mins(5), seconds(1, 3600));
        let access = oauth::access(root.section("access"));
        let scopes = oauth::scopes(&mut forgejo, &access);
        let application = application(&mut forgejo, scopes);
        forgejo.close();
        let rates = oauth::rates(root.section("rates"));
        let tools = oauth::tools(root.section("tools"));
        let policy_of_logins = oauth::policy(root.section("oauth"));
        let mut supervisor = root.section("supervisor");
        let supervisor_socket = supervisor.path("socket", Path::new(RUN).join("supervisor.sock"));
        supervisor.close();
        let (database, key_file) = store(root.section("store"), credentials);
        let mut admin = root.section("admin");
        let admin_socket = admin.path("socket", Path::new(RUN).join("admin.sock"));
        admin.close();
        let mut http = root.section("http");
        let max_body = http.size("max_body", bytes(DEFAULT_MAX_BODY), 1024..=1 << 30);
        let max_connections = http.integer("max_connections", 4096, 1..=1_000_000);
        let mut origins = http.texts("allowed_origins", &[]);
        let proxies = oauth::proxies(&mut http);
        let request_timeout = http.duration("request_timeout", Duration::from_mins(5), seconds(1, 86_400));
        http.close();
        let mut sessions = root.section("sessions");
        let unknown_session =
            sessions.value("unknown_session_status", |value| match (value.as_str(), value.as_integer()) {
                (Some("auto"), _) => Ok(UnknownSession::Auto),
                (_, Some(404)) => Ok(UnknownSession::NotFound),
                (_, Some(410)) => Ok(UnknownSession::Gone),
                _ => Err("must be \"auto\", 404 or 410".to_owned()),
            });
        let drain = sessions.duration("drain", Duration::from_secs(30), seconds(0, 3600));
        let policy = policy(sessions, request_timeout);
        root.finish()?;
        // Without problems both are there; the fallbacks are never used.
        let public_url = public_url.unwrap_or_default();
        origins.push(public_url.clone());
        Ok(Self {
            public_url,
            listen,
            forgejo_url: forgejo_url.unwrap_or_default(),
            application,
            access,
            oauth: policy_of_logins,
            rates,
            proxies,
            tools,
            refresh_lead,
            supervisor: supervisor_socket,
            database,
            key_file,
            admin: admin_socket,
            max_body: usize::try_from(max_body).unwrap_or(DEFAULT_MAX_BODY),
            max_connections,
            origins,
            sessions: policy,
            unknown_session: unknown_session.unwrap_or_default(),
            drain,
        })
    }
}

fn policy(mut section: Section, request_timeout: Duration) -> Policy {
    let max_line = section.size("max_line", bytes(DEFAULT_MAX_LINE), 64 << 10..=1 << 30);
    let caps = |section: &mut Section, total: (&str, usize), per_user: (&str, usize)| Caps {
        total: section.integer(total.0, total.1, 1..=1_000_000),
        per_user: section.integer(per_user.0, per_user.1, 1..=1_000_000),
    };
    let policy = Policy {
        sessions: caps(&mut section, ("total", 10_000), ("per_user", 100)),
        children: caps(&mut section, ("children_total", 200), ("children_per_user", 8)),
        child_idle: section.duration("child_idle", Duration::from_mins(5), seconds(1, 7 * 86_400)),
        session_idle: section.duration("session_idle", Duration::from_hours(24), seconds(1, 365 * 86_400)),
        evict_after: section.duration("evict_after", Duration::from_mins(1), seconds(0, 86_400)),
        start_timeout: section.duration("start_timeout", Duration::from_secs(20), seconds(1, 600)),
        request_timeout,
        max_line: usize::try_from(max_line).unwrap_or(DEFAULT_MAX_LINE),
        respawn: section
            .value("on_child_exit", |value| match value.as_str() {
                Some("end") => Ok(false),
                Some("respawn") => Ok(true),
                _ => Err("must be \"end\" or \"respawn\"".to_owned()),
            })
            .unwrap_or(false),
    };
    section.close();
    policy
}

fn store(mut section: Section, credentials: Option<&Path>) -> (PathBuf, KeyFile) {
    let database = section.path("path", "/var/lib/forgejo-mcp-broker/broker.db");
    let provided = credentials.map(|dir| dir.join("upstream-key")).filter(|file| file.exists());
    let key_file = match (section.optional_path("key_file"), provided) {
        (Some(path), _) => KeyFile { path, managed: false },
        (None, Some(path)) => KeyFile { path, managed: true },
        (None, None) => KeyFile { path: database.with_file_name("upstream.key"), managed: false },
    };
    section.close();
    (database, key_file)
}

/// An http or https address without a trailing slash. The broker's own must be a bare origin, and https unless it is
/// on this machine: tokens travel over it.
fn address(section: &mut Section, key: &str, own: bool) -> Option<String> {
    if !section.has(key) {
        let example = if own { "https://mcp.example.org" } else { "https://git.example.org" };
        section.complain(key, format!("is missing, and has no default; an example: \"{example}\""));
    }
    section.value(key, |value| {
        let url: Url = value.as_str().unwrap_or_default().parse().map_err(|e| format!("must be an address: {e}"))?;
        let loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        };
        match url.scheme() {
            "https" => {}
            "http" if loopback || !own => {}
            "http" => return Err("must be https, unless the host is on this machine".to_owned()),
            _ => return Err("must be an http or https address".to_owned()),
        }
        if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
            return Err("must have neither user, query nor fragment".to_owned());
        }
        if own && url.path() != "/" {
            return Err("must have no path: clients expect the metadata at the root".to_owned());
        }
        Ok(url.as_str().trim_end_matches('/').to_owned())
    })
}

/// `client_id` and `client_secret_file` go together. The secret is in a file of its own, so that the configuration
/// can be read by anybody.
fn application(forgejo: &mut Section, scopes: Vec<String>) -> Option<Application> {
    let (id, file) = (forgejo.parsed::<String>("client_id"), forgejo.optional_path("client_secret_file"));
    if id.is_some() != file.is_some() {
        forgejo.complain("client_id", "and client_secret_file are needed together");
    }
    let (client_id, file) = (id?, file?);
    let secret = std::fs::read_to_string(&file).map_err(|e| e.to_string());
    match secret.and_then(|text| UpstreamToken::parse(text.trim()).map_err(|e| e.to_string())) {
        Ok(client_secret) => Some(Application { client_id, client_secret, scopes }),
        Err(what) => {
            forgejo.complain("client_secret_file", format!("{}: {what}", file.display()));
            None
        }
    }
}

fn seconds(from: u64, to: u64) -> std::ops::RangeInclusive<Duration> {
    Duration::from_secs(from)..=Duration::from_secs(to)
}

fn bytes(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}
