//! What the next child is started with: the policy's files as they were read last, and what is made of them.
//!
//! A reload (SIGHUP) puts a new one in place of the old; children that run keep what they were started with. Who may
//! connect, the range of uids and the cgroup are fixed for the life of the supervisor: leases and directories hang on
//! them.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::config::{Config, Purpose};
use crate::program::ProgramError;
use crate::sandbox::{Sandbox, SandboxError};
use crate::spawn;
use crate::spawn::StartError;
use wire::config_file::ConfigError;
use wire::message::StartStep;

/// A policy in force.
#[derive(Debug)]
pub(crate) struct InForce {
    /// As it was read.
    pub(crate) config: Config,
    /// Made of it.
    pub(crate) sandbox: Sandbox,
}

/// Why a policy does not come into force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    /// Its files have problems.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The sandbox that it wants cannot be made.
    #[error("{0}")]
    Sandbox(#[from] SandboxError),
}

/// Why no child can be started now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReady {
    /// The program cannot be run.
    #[error("{} {source}", .program.display())]
    Program {
        /// Which.
        program: PathBuf,
        /// Why not.
        source: ProgramError,
    },
    /// The sandbox cannot be made; nothing is started without.
    #[error("{0}")]
    Sandbox(#[from] SandboxError),
}

impl NotReady {
    /// For the wire.
    pub(crate) fn start_error(&self) -> StartError {
        match self {
            Self::Program { source, .. } => StartError { step: StartStep::Program, errno: source.errno() },
            Self::Sandbox(_) => StartError { step: StartStep::Sandbox, errno: 0 },
        }
    }
}

impl InForce {
    /// Makes what the policy asks for, and says what of the child program is wrong today.
    pub(crate) fn new(config: Config) -> Result<Self, SandboxError> {
        let sandbox = Sandbox::new(&config.sandbox, &config.profile.program, spawn::seccomp_works())?;
        let policy = Self { config, sandbox };
        if let Err(error) = policy.look_at_program() {
            tracing::warn!(reason = "program-unusable", "no child can be started: {error}");
        }
        Ok(policy)
    }

    fn look_at_program(&self) -> Result<(), NotReady> {
        self.config.look_at_program().map(drop).map_err(|source| {
            let program = self.config.profile.program.clone();
            NotReady::Program { program, source }
        })
    }

    /// Sees whether a child can be started now, and makes Landlock's rules for it; `None`: not done.
    pub(crate) fn prepare(&self) -> Result<Option<OwnedFd>, NotReady> {
        self.look_at_program()?;
        Ok(self.sandbox.ruleset()?)
    }

    /// Reads the files again. What cannot change in a running supervisor stays as it is, and is said.
    pub(crate) fn reread(&self, files: &[PathBuf], unprivileged: bool) -> Result<Self, PolicyError> {
        let mut config = Config::load(files, unprivileged, Purpose::Reload)?;
        for (key, changed) in [
            ("broker_user", config.broker != self.config.broker),
            ("[uids]", config.uids != self.config.uids),
            ("[cgroup] root", config.cgroup_root != self.config.cgroup_root),
        ] {
            if changed {
                tracing::warn!(key, "{key} has changed; that takes effect when the supervisor is restarted");
            }
        }
        config.broker = self.config.broker;
        config.uids = self.config.uids;
        config.cgroup_root.clone_from(&self.config.cgroup_root);
        Ok(Self::new(config)?)
    }
}
