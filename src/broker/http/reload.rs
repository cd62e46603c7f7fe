//! SIGHUP: the configuration is read again, and what can be put in force while the broker runs is.
//!
//! That is who may log in (`[access]`), how often strangers may ask (`[rates]`), sessions and children (`[sessions]` and
//! `[http] request_timeout`), under which names and from which pages the broker is called (`[http] hosts` and
//! `allowed_origins`), which tools write (`[tools]`), and what is logged (`log`, `log_format`). What else
//! has changed is told by its key and is in force from the next start on. A configuration with problems is told completely
//! and changes nothing.

use std::path::PathBuf;
use std::sync::Arc;

use tracing::{error, info, warn};

use crate::auth::rates::RateLimits;
use crate::config::Config;
use crate::forge::rotation::Rotation;
use crate::http::names::Names;
use crate::http::status::StatusLine;
use crate::live::Live;
use crate::mcp::refusal::UnknownSession;
use crate::mcp::tools::Tables;
use crate::session::registry::Registry;
use crate::store::StoreError;
use wire::config_file::{ConfigError, Credentials, Section};
use wire::{lifecycle, telemetry};

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    /// The files, in order.
    pub(crate) files: Vec<PathBuf>,
    /// What the service manager provides beside them.
    pub(crate) credentials: Credentials,
}

impl Sources {
    /// Reads all of it.
    pub(crate) fn read(&self) -> Result<Config, ConfigError> {
        Config::read(Section::open(&self.files).with_credentials(self.credentials.clone()), &self.credentials)
    }
}

/// Why nothing, or not all, was put in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    /// The configuration has problems; the one before it is in force.
    #[error("the configuration has problems, and the one before it stays in force:\n{0}")]
    Config(#[from] ConfigError),
    /// The lists are in force, but not applied to all who are connected.
    #[error("the lists could not be applied to those who are connected; reload again")]
    Store(#[from] StoreError),
}

/// What a reload acts on.
#[derive(Debug, Clone)]
pub(crate) struct Reloader {
    /// Read again.
    pub(crate) sources: Sources,
    /// What the broker was started with.
    pub(crate) started: Config,
    /// Holds the lists, and those who are connected to them.
    pub(crate) rotation: Rotation,
    /// How often strangers may ask.
    pub(crate) limits: Arc<RateLimits>,
    /// Sessions and children.
    pub(crate) registry: Registry,
    /// Which tools write.
    pub(crate) tables: Live<Tables>,
    /// What an unknown session is answered with.
    pub(crate) unknown: Live<UnknownSession>,
    /// Under which names and from which pages the broker is called.
    pub(crate) names: Live<Names>,
}

impl Reloader {
    /// Reads the configuration and puts in force what can be; how many users the lists have ended.
    pub(crate) async fn once(&self) -> Result<usize, ReloadError> {
        let config = self.sources.read()?;
        for key in self.started.needs_restart(&config) {
            warn!(key, "{key} has changed; that takes effect when the broker is restarted");
        }
        telemetry::filter_by(config.log.as_ref());
        telemetry::write_as(config.log_format);
        self.limits.replace(config.rates);
        self.registry.reconfigure(config.sessions);
        self.tables.replace(config.tools);
        self.unknown.replace(config.unknown_session);
        // The address is that of the start.
        self.names.replace(config.names.at(&self.started.public_url));
        self.rotation.lists().replace(config.access);
        Ok(self.rotation.apply_lists().await?)
    }

    /// Does so on each SIGHUP; ends never. The service manager is told of the end also where it was in vain.
    pub(crate) async fn on_hangup(self, mut hangups: lifecycle::Reload, status: StatusLine) {
        loop {
            hangups.next().await;
            match self.once().await {
                Ok(ended) => info!(
                    ended,
                    "the configuration was read again, and what can change in a running broker is in force"
                ),
                Err(e) => error!(error = %e, "the configuration was read again"),
            }
            lifecycle::ready(&status.text());
        }
    }
}
