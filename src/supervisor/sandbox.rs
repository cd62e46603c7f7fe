//! What a child may not do, whatever its uid may: Landlock for files and ports, seccomp for system calls.
//!
//! Both are made before the fork, because making them allocates; the child only switches them on (`spawn`). What the
//! kernel does not have is left out and reported as absent. Landlock's rules name inodes and not paths, so they are made
//! for each start: a program, or a directory of the resolver, that was replaced or installed meanwhile can be used.

pub(crate) mod calls;
pub(crate) mod filters;
pub(crate) mod policy;
pub(crate) mod ruleset;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use landlock::RulesetError;
use seccompiler::{BackendError, BpfProgram};

use crate::profile::Profile;
use policy::SandboxPolicy;
use ruleset::Rules;

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    /// A Landlock ruleset was refused for another reason than an old kernel.
    #[error("making the Landlock ruleset: {0}")]
    Landlock(#[from] RulesetError),
    /// The seccomp program does not compile.
    #[error("compiling the seccomp filter: {0}")]
    Seccomp(#[from] BackendError),
    /// It was there when the supervisor started.
    #[error("the kernel has no Landlock any more")]
    LandlockGone,
}

/// What of it the kernel has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// The version of Landlock's interface; 0 where it is not there or not enabled.
    pub(crate) landlock_abi: u32,
    /// Whether it takes seccomp filters.
    pub(crate) seccomp: bool,
}

/// What is switched on in each child.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// Wanted and there: the version of Landlock's interface that is used.
    landlock_abi: u32,
    rules: Rules,
    sysv_ipc: bool,
    /// For `seccomp(2)`, in this order; empty: not done.
    pub(crate) filters: Arc<[BpfProgram]>,
}

impl Sandbox {
    /// Makes what the policy wants and the kernel has.
    pub(crate) fn new(policy: &SandboxPolicy, profile: &Profile, kernel: Kernel) -> Result<Self, SandboxError> {
        let rules = Rules::new(policy, profile);
        let works = policy.landlock && kernel.landlock_abi > 0 && rules.ruleset()?.is_some();
        let landlock_abi = if works { kernel.landlock_abi.min(ruleset::NEWEST) } else { 0 };
        let filters = if kernel.seccomp { filters::filters(policy)? } else { Vec::new() };
        let sysv_ipc = policy.sysv_ipc || filters.is_empty();
        Ok(Self { landlock_abi, rules, sysv_ipc, filters: filters.into() })
    }

    /// Whether Landlock restricts what children can open.
    pub(crate) fn has_landlock(&self) -> bool {
        self.landlock_abi > 0
    }

    /// The version of Landlock's interface that is used: the kernel's, at most [`ruleset::NEWEST`]; 0 for none.
    pub(crate) fn landlock_abi(&self) -> u32 {
        self.landlock_abi
    }

    /// Whether a child can make objects of System V IPC.
    pub(crate) fn allows_sysv_ipc(&self) -> bool {
        self.sysv_ipc
    }

    /// For `landlock_restrict_self(2)` in the next child; `None`: not done.
    pub(crate) fn ruleset(&self) -> Result<Option<OwnedFd>, SandboxError> {
        if !self.has_landlock() {
            return Ok(None);
        }
        // Never without what was reported to be there.
        self.rules.ruleset()?.ok_or(SandboxError::LandlockGone).map(Some)
    }

    /// What of `wanted` no child will be able to read, each with the reason.
    pub(crate) fn unreadable<'a>(&self, wanted: impl IntoIterator<Item = &'a Path>) -> Vec<(PathBuf, &'static str)> {
        let why = |path: &Path| ruleset::why_unreadable(path, self.has_landlock().then_some(&self.rules));
        wanted.into_iter().filter_map(|path| Some((path.to_owned(), why(path)?))).collect()
    }
}
