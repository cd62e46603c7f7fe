//! What a child may not do, whatever its uid may: Landlock for files, seccomp for system calls.
//!
//! Both are made before the fork, because making them allocates; the child only switches them on (`spawn`). What the
//! kernel does not have is left out and reported as absent. Landlock's rules name inodes and not paths, so they are made
//! for each start: a program that was replaced or installed meanwhile can be run.
//!
//! The seccomp filters are a deny list, since a child is any program: they take away what an interpreter of hostile
//! content has no use for and what most kernel exploits of recent years started with. A listed call fails with
//! `EPERM`, as it would for a user without rights, so that programs take their fallback.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    Scope, path_beneath_rules,
};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use crate::config::SandboxPolicy;

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

/// What is switched on in each child.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// Whether Landlock is wanted and there.
    landlock: bool,
    program: PathBuf,
    read: Vec<PathBuf>,
    /// For `seccomp(2)`, in this order; empty: not done.
    pub(crate) filters: Arc<[BpfProgram]>,
}

impl Sandbox {
    /// Makes what the policy wants and the kernel has.
    pub(crate) fn new(policy: &SandboxPolicy, program: &Path, seccomp_works: bool) -> Result<Self, SandboxError> {
        let landlock = policy.landlock && ruleset(program, &policy.read)?.is_some();
        let filters = if policy.seccomp && seccomp_works { filters()? } else { Vec::new() };
        Ok(Self { landlock, program: program.to_owned(), read: policy.read.clone(), filters: filters.into() })
    }

    /// Whether Landlock restricts what children can open.
    pub(crate) fn has_landlock(&self) -> bool {
        self.landlock
    }

    /// For `landlock_restrict_self(2)` in the next child; `None`: not done.
    pub(crate) fn ruleset(&self) -> Result<Option<OwnedFd>, SandboxError> {
        if !self.landlock {
            return Ok(None);
        }
        // Never without what was reported to be there.
        ruleset(&self.program, &self.read)?.ok_or(SandboxError::LandlockGone).map(Some)
    }
}

/// Read and execute: programs, libraries and what the C library and TLS want to read. A missing one is skipped.
const EXECUTABLE: [&str; 5] = ["/usr", "/bin", "/sbin", "/lib", "/lib64"];
/// Read: configuration (file modes still protect what is secret there), the resolver's file behind
/// `/etc/resolv.conf`, CA bundles, and what runtimes look up about themselves and the machine.
const READABLE: [&str; 8] = [
    "/etc",
    "/proc",
    "/sys",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/var/lib/ca-certificates",
    "/dev/urandom",
];
const WRITABLE: [&str; 2] = ["/dev/null", "/dev/zero"];

/// The newest access rights that are asked for; older kernels get what they know (best effort).
const LANDLOCK: ABI = ABI::V6;

fn ruleset(program: &Path, extra: &[PathBuf]) -> Result<Option<OwnedFd>, RulesetError> {
    let execute = AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir;
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let created = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        // No signals to, and no abstract sockets of, anybody outside; siblings under the same uid are outside.
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .add_rules(path_beneath_rules(EXECUTABLE, execute))?
        .add_rules(path_beneath_rules([program], execute))?
        .add_rules(path_beneath_rules(READABLE, read))?
        .add_rules(path_beneath_rules(extra, read))?
        .add_rules(path_beneath_rules(WRITABLE, AccessFs::ReadFile | AccessFs::WriteFile))?;
    Ok(created.into())
}

/// Denied outright.
const DENIED: &[libc::c_long] = &[
    // other processes' memory and descriptors
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // the mount tree and namespaces
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // large attack surfaces of the kernel
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_fanotify_init,
    // the machine
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_vhangup,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
];

/// clone(2) with any of these makes a namespace.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// socket(2) with any other family is denied.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

fn filters() -> Result<Vec<BpfProgram>, BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|&call| (call, Vec::new())).collect();
    let first =
        |op, value: libc::c_int| SeccompCondition::new(0, SeccompCmpArgLen::Dword, op, u64::from(value.unsigned_abs()));
    let mut namespaces = Vec::new();
    for flag in NAMESPACES {
        let bit = u64::from(flag.unsigned_abs());
        namespaces.push(SeccompRule::new(vec![first(SeccompCmpOp::MaskedEq(bit), flag)?])?);
    }
    rules.insert(libc::SYS_clone, namespaces);
    let other: Result<Vec<_>, _> = FAMILIES.iter().map(|&family| first(SeccompCmpOp::Ne, family)).collect();
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(other?)?]);
    let denied = filter(rules, libc::EPERM, arch)?;

    // clone3's flags are behind a pointer, where a filter cannot look. ENOSYS makes C libraries fall back to clone.
    let clone3 = filter(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS, arch)?;
    let mut filters = vec![clone3, denied];
    if cfg!(target_arch = "x86_64") {
        filters.push(no_x32());
    }
    Ok(filters)
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    errno: libc::c_int,
    arch: TargetArch,
) -> Result<BpfProgram, BackendError> {
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, errno, arch)?.try_into()
}

/// The x32 calls of an x86-64 kernel have the same audit architecture and numbers from 2^30 up, so that a deny list of
/// numbers misses them; seccompiler cannot say "from here up". (seccomp(2), section on x32.)
fn no_x32() -> BpfProgram {
    const X32_SYSCALL_BIT: u32 = 0x4000_0000;
    // linux/bpf_common.h and linux/seccomp.h; `nr` is at offset 0 of seccomp_data.
    const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_GE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const RET_ERRNO: u32 = 0x0005_0000;
    const RET_ALLOW: u32 = 0x7fff_0000;
    let op = |code, jt, k| sock_filter { code, jt, jf: 0, k };
    vec![
        op(LOAD_WORD, 0, 0),
        op(JUMP_GE, 1, X32_SYSCALL_BIT),
        op(RETURN, 0, RET_ALLOW),
        op(RETURN, 0, RET_ERRNO | libc::ENOSYS.unsigned_abs()),
    ]
}
