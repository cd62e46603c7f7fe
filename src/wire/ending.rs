//! How a child ended, which limit ended it, and what it took: what `Exited` carries. Part of the contract
//! (`message.rs` beside this file): typed, of a fixed size, and put into words on the side that shows it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::message::Exit;

/// A child's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// What its parent saw (wait(2)).
    pub exit: Exit,
    /// The limit that it ran into, where the kernel says that it did.
    pub limit: Option<Limit>,
    /// What it took.
    pub usage: Usage,
}

/// A limit that was reached in the life of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    /// `memory.max`, in bytes: the kernel killed the child.
    Memory {
        /// Whose limit.
        whose: Whose,
        /// The limit.
        bytes: u64,
    },
    /// The kernel killed the child for memory, and none of the limits here was reached: the machine, or whatever the
    /// supervisor's own cgroup is in, had none left.
    MachineMemory,
    /// `pids.max`: the child was refused a process or a thread, and ended of itself.
    Processes {
        /// Whose limit.
        whose: Whose,
        /// The limit.
        most: u64,
    },
    /// `RLIMIT_CPU`, in seconds: the kernel killed the child.
    CpuTime {
        /// The limit.
        seconds: u64,
    },
}

/// Whom a limit holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Whose {
    /// All children of the child's user together.
    User,
    /// All children together.
    All,
}

/// What a child took, with all that it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Most bytes at once (`memory.peak`); `None` where the kernel does not say (before Linux 5.19, or no controller).
    pub memory_peak: Option<u64>,
    /// Microseconds of CPU (`cpu.stat`, else getrusage(2), which leaves out what nobody waited for).
    pub cpu_usec: u64,
    /// Microseconds for which `cpu.max` held up its user's children while it lived; `None` without the controller.
    pub throttled_usec: Option<u64>,
}

impl From<Exit> for Ending {
    /// An end of which no more is known.
    fn from(exit: Exit) -> Self {
        Self { exit, limit: None, usage: Usage::default() }
    }
}

/// The reason in words, for the client and the log.
impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.limit {
            None => self.exit.fmt(f),
            Some(limit @ Limit::Processes { .. }) => write!(f, "{}: {limit}", self.exit),
            Some(limit) => write!(f, "killed: {limit}"),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Memory { whose, bytes } => write!(f, "memory limit {} of {whose} reached", Bytes(bytes)),
            Self::MachineMemory => f.write_str("the machine has no memory left"),
            Self::Processes { whose, most } => write!(f, "process limit {most} of {whose} reached"),
            Self::CpuTime { seconds } => write!(f, "CPU limit {seconds} s of a process reached"),
        }
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "this user",
            Self::All => "all users together",
        })
    }
}

/// As an operator would write it: whole MiB where it is some, else bytes.
#[derive(Debug, Clone, Copy)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        if self.0 >= MIB && self.0.is_multiple_of(MIB) {
            write!(f, "{} MiB", self.0 / MIB)
        } else {
            write!(f, "{} bytes", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_names_the_limit_and_whose_it_is() {
        let memory = Limit::Memory { whose: Whose::User, bytes: 512 << 20 };
        let all = Limit::Memory { whose: Whose::All, bytes: 1000 };
        let processes = Limit::Processes { whose: Whose::User, most: 128 };
        for (exit, limit, words) in [
            (Exit::Code(3), None, "exit status 3"),
            (Exit::Signal(9), Some(memory), "killed: memory limit 512 MiB of this user reached"),
            (Exit::Signal(9), Some(all), "killed: memory limit 1000 bytes of all users together reached"),
            (Exit::Signal(9), Some(Limit::MachineMemory), "killed: the machine has no memory left"),
            (Exit::Code(2), Some(processes), "exit status 2: process limit 128 of this user reached"),
            (Exit::Signal(9), Some(Limit::CpuTime { seconds: 60 }), "killed: CPU limit 60 s of a process reached"),
        ] {
            assert_eq!(Ending { limit, ..Ending::from(exit) }.to_string(), words);
        }
    }
}
