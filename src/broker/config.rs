//! The broker's configuration, parsed once and completely: all problems are reported together, and what would make the
//! start fail is one of them, so that `--check` and the start say the same.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use url::{Host, Url};

use crate::auth::rates::{self, Rates};
use crate::forge::access::Access;
use crate::forge::application::Application;
use crate::forge::vault::KeyFile;
use crate::http::names::Names;
use crate::http::shares::ConnectionCaps;
use crate::mcp::audit::AuditedCalls;
use crate::mcp::endpoint::DEFAULT_MAX_BODY;
use crate::mcp::refusal::UnknownSession;
use crate::mcp::tools::Tables;
use crate::oauth::config::OAuthConfig;
use crate::oauth::site::Site;
use crate::session::config::SessionConfig;
use wire::config_file::{ConfigError, Credentials, NamedFile, Section, bytes, seconds};
use wire::telemetry::{LogFilter, LogFormat};

/// All of it.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Where clients reach the broker: scheme, host and port, nothing behind. From here alone, never from a request.
    pub(crate) public_url: String,
    /// Where it listens, unless the service manager hands it a socket.
    pub(crate) listen: SocketAddr,
    /// The Forgejo instance.
    pub(crate) forgejo_url: String,
    /// Where browsers find it.
    pub(crate) forgejo_public_url: String,
    /// The broker's registration at Forgejo: without it no upstream token is refreshed.
    pub(crate) application: Option<Application>,
    /// Who may log in.
    pub(crate) access: Access,
    /// Logging in.
    pub(crate) oauth: OAuthConfig,
    /// What the pages say of the service.
    pub(crate) page: Site,
    /// How often strangers may ask.
    pub(crate) rates: Rates,
    /// Whose `X-Forwarded-For` is believed.
    pub(crate) proxies: Vec<IpNet>,
    /// Which tools write.
    pub(crate) tools: Tables,
    /// Which calls of tools the journal tells.
    pub(crate) audit: AuditedCalls,
    /// Where Prometheus asks, if it may.
    pub(crate) metrics: Option<SocketAddr>,
    /// How long ahead of its end an upstream token is refreshed.
    pub(crate) refresh_lead: Duration,
    /// The supervisor's socket.
    pub(crate) supervisor: PathBuf,
    /// The database.
    pub(crate) database: PathBuf,
    /// The key that seals upstream tokens.
    pub(crate) key_file: KeyFile,
    /// The operator's socket.
    pub(crate) admin: PathBuf,
    /// Bytes in one message.
    pub(crate) max_body: usize,
    /// What bounds connections.
    pub(crate) connections: ConnectionCaps,
    /// What is logged, where `RUST_LOG` does not say.
    pub(crate) log: Option<LogFilter>,
    /// The form of lines on standard error.
    pub(crate) log_format: Option<LogFormat>,
    /// What the broker is called, and which pages may use the endpoint.
    pub(crate) names: Names,
    /// Sessions and children.
    pub(crate) sessions: SessionConfig,
    /// What an unknown session is answered with.
    pub(crate) unknown_session: UnknownSession,
    /// Keys that name credentials which cannot be looked at here.
    pub(crate) out_of_sight: Vec<String>,
}

impl Config {
    /// Reads it, with the credentials that `root` has.
    pub(crate) fn read(mut root: Section, credentials: &Credentials) -> Result<Self, ConfigError> {
        let public_url = address(&mut root, "public_url", true);
        let listen_at = root
            .value("listen", |value| listen(&value))
            .unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)));
        let log = root.parsed("log");
        let log_format = root.parsed("log_format");
        let mut forgejo = root.section("forgejo");
        let forgejo_url = address(&mut forgejo, "url", false);
        let forgejo_public_url =
            forgejo.has("public_url").then(|| address(&mut forgejo, "public_url", false)).flatten();
        let refresh_lead = forgejo.duration("refresh_lead", Duration::from_mins(5), seconds(1, 3600));
        let access = Access::read(root.section("access"));
        let application = Application::read(&mut forgejo, &access);
        forgejo.close();
        let rates = Rates::read(root.section("rates"));
        let tools = Tables::read(root.section("tools"));
        let audit = AuditedCalls::read(root.section("audit"));
        let mut metrics = root.section("metrics");
        let metrics_listen = metrics.value("listen", |value| listen(&value));
        metrics.close();
        let oauth = OAuthConfig::read(root.section("oauth"));
        let page = Site::read(root.section("page"));
        let mut supervisor = root.section("supervisor");
        let supervisor_socket = supervisor.path("socket", "/run/forgejo-mcp-supervisor/supervisor.sock");
        supervisor.close();
        let (database, key_file) = store(root.section("store"), credentials);
        let mut admin = root.section("admin");
        let admin_socket = admin.path("socket", "/run/forgejo-mcp-broker/admin.sock");
        admin.close();
        let mut http = root.section("http");
        let max_body = http.size("max_body", bytes(DEFAULT_MAX_BODY), 1024..=1 << 30);
        let total = http.integer("max_connections", 4096, 1..=1_000_000);
        let per_address = http.integer("connections_per_address", 256, 1..=1_000_000);
        let names = Names::read(&mut http);
        let proxies = rates::proxies(&mut http);
        let connections = ConnectionCaps { total, per_address, proxies: proxies.clone() };
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
        let session_config = SessionConfig::read(&mut sessions, request_timeout);
        sessions.close();
        let out_of_sight = root.out_of_sight();
        root.finish()?;
        // Without problems both are there; the fallbacks are never used.
        let public_url = public_url.unwrap_or_default();
        let forgejo_url = forgejo_url.unwrap_or_default();
        Ok(Self {
            names: names.at(&public_url),
            public_url,
            listen: listen_at,
            forgejo_public_url: forgejo_public_url.unwrap_or_else(|| forgejo_url.clone()),
            forgejo_url,
            application,
            access,
            oauth,
            page,
            rates,
            proxies,
            tools,
            audit,
            metrics: metrics_listen,
            refresh_lead,
            supervisor: supervisor_socket,
            database,
            key_file,
            admin: admin_socket,
            max_body: usize::try_from(max_body).unwrap_or(DEFAULT_MAX_BODY),
            connections,
            log,
            log_format,
            sessions: session_config,
            unknown_session: unknown_session.unwrap_or_default(),
            out_of_sight,
        })
    }
}

impl Config {
    /// What `new` has otherwise and only a restart puts in force: addresses, files and secrets that others hold on to, and
    /// limits that are sized once.
    pub(crate) fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let all = [
            ("public_url", self.public_url != new.public_url),
            ("listen", self.listen != new.listen),
            ("[forgejo] url", self.forgejo_url != new.forgejo_url),
            ("[forgejo] public_url", self.forgejo_public_url != new.forgejo_public_url),
            ("[forgejo] client_id, client_secret_file, scopes", self.application != new.application),
            ("[forgejo] refresh_lead", self.refresh_lead != new.refresh_lead),
            ("[oauth]", self.oauth != new.oauth),
            ("[page]", self.page != new.page),
            ("[supervisor] socket", self.supervisor != new.supervisor),
            ("[store] path", self.database != new.database),
            ("[store] key_file", self.key_file != new.key_file),
            ("[admin] socket", self.admin != new.admin),
            ("[http] max_body", self.max_body != new.max_body),
            ("[http] max_connections", self.connections.total != new.connections.total),
            ("[http] connections_per_address", self.connections.per_address != new.connections.per_address),
            ("[http] trusted_proxies", self.proxies != new.proxies),
        ];
        all.into_iter().filter_map(|(key, changed)| changed.then_some(key)).collect()
    }
}

fn store(mut section: Section, credentials: &Credentials) -> (PathBuf, KeyFile) {
    let database = section.path("path", "/var/lib/forgejo-mcp-broker/broker.db");
    let provided = match credentials {
        Credentials::Directory(dir) => Some(dir.join("upstream-key")).filter(|file| file.exists()),
        Credentials::None | Credentials::OutOfSight => None,
    };
    let key_file = match (section.file("key_file"), provided) {
        (Some(NamedFile::Path(path)), _) => KeyFile { path, managed: false },
        (Some(NamedFile::Credential(path)), _) | (None, Some(path)) => KeyFile { path, managed: true },
        (None | Some(NamedFile::OutOfSight), _) => {
            KeyFile { path: database.with_file_name("upstream.key"), managed: false }
        }
    };
    if let Some(dir) = database.parent().filter(|dir| !dir.is_dir()) {
        let what = format!("the directory {} is not there; systemd makes it with StateDirectory=", dir.display());
        section.complain("path", what);
    }
    section.close();
    (database, key_file)
}

/// An address to listen on. Names are not looked up: what they stand for can change, and where to listen should not.
fn listen(value: &toml::Value) -> Result<SocketAddr, String> {
    let address = value.as_str().and_then(|text| text.parse().ok());
    address.ok_or_else(|| {
        let examples = "\"127.0.0.1:8080\", \"[::1]:8080\", or \"[::]:8080\" for all";
        format!("must be an IP address and a port, such as {examples}; not a name, and not a port alone")
    })
}

/// An http or https address without a trailing slash. The broker's own must be a bare origin, and https unless it is
/// on this machine: tokens travel over it.
fn address(section: &mut Section, key: &str, own: bool) -> Option<String> {
    if !section.has(key) {
        let example = if own { "https://mcp.example.org" } else { "https://git.example.org" };
        section.complain(key, format!("is missing, and has no default; an example: \"{example}\""));
    }
    section.value(key, |value| {
        let text = value.as_str().ok_or("must be a text")?;
        let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
        if !scheme.eq_ignore_ascii_case("https") && !scheme.eq_ignore_ascii_case("http") {
            return Err("must begin with https:// or http://, such as \"https://git.example.org\"".to_owned());
        }
        let url: Url = text.parse().map_err(|e| format!("must be an address: {e}"))?;
        let loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        };
        if own && url.scheme() == "http" && !loopback {
            return Err("must be https, unless the host is on this machine".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
            return Err("must have neither user, query nor fragment".to_owned());
        }
        if own && url.path() != "/" {
            return Err("must have no path: clients expect the metadata at the root".to_owned());
        }
        let url = url.as_str().trim_end_matches('/');
        if url.ends_with("/api/v1") {
            return Err("must be the address of Forgejo itself, without /api/v1".to_owned());
        }
        Ok(url.to_owned())
    })
}
