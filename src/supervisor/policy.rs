//! What the next child is started with: the policy's files as they were read last, and what is made of them.
//!
//! A reload (SIGHUP) puts a new one in place of the old; children that run keep what they were started with. Who may
//! connect, the range of uids and the cgroup are fixed for the life of the supervisor: leases and directories hang on
//! them.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::config::{Config, Purpose};
use crate::program::{Identity, ProgramError};
use crate::sandbox::{Kernel, Sandbox, SandboxError};
use crate::spawn;
use crate::spawn::StartError;
use wire::config_file::ConfigError;
use wire::message::StartStep;
use wire::telemetry::message_id;

/// A policy in force.
#[derive(Debug)]
pub(crate) struct InForce {
    /// As it was read.
    pub(crate) config: Config,
    /// Made of it.
    pub(crate) sandbox: Sandbox,
    /// Whether a cgroup bounds the children's memory.
    memory_bounded: bool,
    /// The program as it was last seen.
    program: Cell<Option<Identity>>,
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
            Self::Program { source, .. } => {
                StartError { step: StartStep::Program, what: "looking at the program", errno: source.errno() }
            }
            Self::Sandbox(_) => StartError { step: StartStep::Sandbox, what: "making the sandbox", errno: 0 },
        }
    }
}

impl InForce {
    /// Makes what the policy asks for, and says what of the child program, and of what it needs, is wrong today.
    pub(crate) fn new(mut config: Config, memory_bounded: bool) -> Result<Self, SandboxError> {
        if !memory_bounded {
            config.limits.bound_address_space(config.profile.usual_address_space);
        }
        let kernel = Kernel { landlock_abi: spawn::landlock_abi(), seccomp: spawn::seccomp_works() };
        let sandbox = Sandbox::new(&config.sandbox, &config.profile, kernel)?;
        let policy = Self { config, sandbox, memory_bounded, program: Cell::new(None) };
        if let Err(error) = policy.look_at_program() {
            tracing::warn!(reason = "program-unusable", "no child can be started: {error}");
        }
        policy.say_what_landlock_lacks();
        let unreadable = policy.sandbox.unreadable(policy.config.needed_files());
        if !unreadable.is_empty() {
            let told: Vec<_> = unreadable.iter().map(|(path, why)| format!("{} {why}", path.display())).collect();
            tracing::warn!(reason = "unreadable", "children cannot read what they may need: {}", told.join(", "));
        }
        Ok(policy)
    }

    /// Once at start and at each reload; that there is none at all is said with the rest of the isolation.
    fn say_what_landlock_lacks(&self) {
        let abi = self.sandbox.landlock_abi();
        let lacks = match abi {
            1..=3 => "children connect to any TCP port and occupy free ones, and reach signals and abstract sockets",
            4..=5 => "children reach signals and abstract sockets",
            _ => return,
        };
        let not_isolated = message_id::NOT_ISOLATED;
        tracing::warn!(
            MESSAGE_ID = not_isolated,
            landlock_abi = abi,
            "not isolated: this kernel's Landlock is old: {lacks}"
        );
    }

    /// Looks at the program; says once in the log that it is another than it was.
    pub(crate) fn look_at_program(&self) -> Result<Identity, NotReady> {
        let found = self.config.look_at_program().map_err(|source| {
            let program = self.config.profile.program.clone();
            NotReady::Program { program, source }
        })?;
        if self.program.replace(Some(found)).is_some_and(|before| before != found) {
            let program = self.config.profile.program.display();
            tracing::info!(
                %program,
                "the child program was replaced; who runs the old one gets the new one when nobody has a call"
            );
        }
        Ok(found)
    }

    /// Whether the mode of the program, as it was last seen, makes children not dumpable. Only with uids of their own:
    /// another may be that of the program's owner, who can read it.
    pub(crate) fn makes_undumpable(&self) -> bool {
        self.config.uids.is_some() && self.program.get().is_some_and(|program| !program.is_readable())
    }

    /// Sees whether a child can be started now, and of which program, and makes Landlock's rules for it; `None`: not done.
    pub(crate) fn prepare(&self) -> Result<(Identity, Option<OwnedFd>), NotReady> {
        Ok((self.look_at_program()?, self.sandbox.ruleset()?))
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
        Ok(Self::new(config, self.memory_bounded)?)
    }
}
