//! SIGHUP: the configuration is read again, and what can be put in force while the broker runs is.
//!
//! That is who may log in (`[access]`) and how often strangers may ask (`[rates]`). All the rest is in force from the
//! next start on. A configuration with problems is told completely and changes nothing.

use std::path::PathBuf;
use std::sync::Arc;

use tracing::{error, info};

use crate::auth::rates::RateLimits;
use crate::config::Config;
use crate::forge::rotation::Rotation;
use crate::store::StoreError;
use wire::config_file::{ConfigError, Section};
use wire::lifecycle;

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    /// The files, in order.
    pub(crate) files: Vec<PathBuf>,
    /// `$CREDENTIALS_DIRECTORY`.
    pub(crate) credentials: Option<PathBuf>,
}

impl Sources {
    /// Reads all of it.
    pub(crate) fn read(&self) -> Result<Config, ConfigError> {
        Config::read(Section::open(&self.files), self.credentials.as_deref())
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
    /// Holds the lists, and those who are connected to them.
    pub(crate) rotation: Rotation,
    /// How often strangers may ask.
    pub(crate) limits: Arc<RateLimits>,
}

impl Reloader {
    /// Reads the configuration and puts in force what can be; how many users the lists have ended.
    pub(crate) async fn once(&self) -> Result<usize, ReloadError> {
        let config = self.sources.read()?;
        self.limits.replace(config.rates);
        self.rotation.lists().replace(config.access);
        Ok(self.rotation.apply_lists().await?)
    }

    /// Does so on each SIGHUP; ends never. The service manager is told of the end also where it was in vain.
    pub(crate) async fn on_hangup(self, mut hangups: lifecycle::Reload) {
        loop {
            hangups.next().await;
            match self.once().await {
                Ok(ended) => info!(ended, "the configuration was read again: [access] and [rates] are in force"),
                Err(e) => error!(error = %e, "the configuration was read again"),
            }
            lifecycle::ready("serving");
        }
    }
}
