//! System V shared memory, semaphores and queues: they outlive their process and belong to a uid (sysvipc(7)), so that
//! they go before somebody else gets it.
//!
//! Trusts the kernel's tables, which show all objects of the supervisor's IPC namespace to everybody, as long as they
//! can be read: where not, nothing is known to be gone. The tables can be long, so they are looked at only where children
//! may have made something.

use std::fs;
use std::io;

use nix::errno::Errno;

use crate::spawn;

/// What there is, as its table under `/proc/sysvipc` is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `shmget(2)`.
    Shm,
    /// `semget(2)`.
    Sem,
    /// `msgget(2)`.
    Msg,
}

impl Kind {
    const ALL: [(Self, &'static str); 3] = [(Self::Shm, "shm"), (Self::Sem, "sem"), (Self::Msg, "msg")];
}

/// An object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Object {
    kind: Kind,
    id: i32,
    /// Its owner, or its creator where that is one of those asked for: both may use it.
    pub(crate) uid: u32,
}

impl Object {
    /// Removes it; one that is not there is no error. For its owner or creator.
    pub(crate) fn remove(self) -> Result<(), Errno> {
        match spawn::remove_ipc(self.kind, self.id) {
            Err(Errno::EINVAL | Errno::EIDRM) => Ok(()),
            other => other,
        }
    }
}

/// All objects of these uids.
pub(crate) fn objects(of: impl Fn(u32) -> bool) -> io::Result<Vec<Object>> {
    let mut found = Vec::new();
    for (kind, name) in Kind::ALL {
        match fs::read_to_string(format!("/proc/sysvipc/{name}")) {
            Ok(table) => found.extend(listed(kind, &table, &of)),
            // A kernel without System V IPC; or one that has it and a /proc that does not show it.
            Err(e) if e.kind() == io::ErrorKind::NotFound && spawn::remove_ipc(kind, -1) == Err(Errno::ENOSYS) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Of one table (proc(5)): its first line names the columns.
fn listed(kind: Kind, table: &str, of: &impl Fn(u32) -> bool) -> Vec<Object> {
    let mut lines = table.lines();
    let names: Vec<_> = lines.next().unwrap_or_default().split_whitespace().collect();
    let place = |wanted: &str| names.iter().position(|name| *name == wanted);
    let (owner, creator) = (place("uid"), place("cuid"));
    let object = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let uid = |place: Option<usize>| fields.get(place?)?.parse().ok().filter(|uid| of(*uid));
        // The second column of all three is the id.
        Some(Object { kind, id: fields.get(1)?.parse().ok()?, uid: uid(owner).or_else(|| uid(creator))? })
    };
    lines.filter_map(object).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_by_their_owner_and_by_their_creator() {
        let table = "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid\n\
                     \x20        0          7   600           0          0     0     0  1001  1001  1001  1001\n\
                     \x20        1          8   600           0          0     0     0  1002  1002  1001  1001\n\
                     \x20        2          9   600           0          0     0     0  1003  1003  1003  1003\n";
        let found = |wanted: u32| {
            let of = |uid| uid == wanted;
            listed(Kind::Msg, table, &of).iter().map(|object| (object.id, object.uid)).collect::<Vec<_>>()
        };
        assert_eq!(found(1001), [(7, 1001), (8, 1001)]);
        assert_eq!(found(1002), [(8, 1002)]);
        assert_eq!(found(1004), []);
    }
}
