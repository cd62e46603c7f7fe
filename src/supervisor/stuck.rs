//! Cgroups of children that are gone, which do not go: nobody gets the uid of one before it is.
//!
//! Decides nothing about a uid itself: who cleans it waits here last.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use crate::cgroup::dir::{CgroupError, Dir};
use crate::cgroup::leaf;
use crate::cgroup::leaf::Leaf;
use crate::uid::ChildUid;
use wire::telemetry::message_id;

/// Between tries: they grow from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A handle; clones share what is stuck.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stuck(Rc<RefCell<HashMap<ChildUid, Rc<Leaf>>>>);

impl Stuck {
    /// Removes the cgroup of a child that is gone, or keeps it where that cannot be.
    pub(crate) fn remove(&self, leaf: Rc<Leaf>, uid: Option<ChildUid>, emptied: Result<(), CgroupError>) {
        if let Err(error) = emptied.and_then(|()| leaf.remove()) {
            let number = uid.map(ChildUid::get);
            tracing::error!(reason = "cgroup-stays", child_uid = number, %error, "a child's cgroup does not go: {error}");
            if let Some(uid) = uid {
                self.0.borrow_mut().insert(uid, leaf);
            }
        }
    }

    /// Waits until nothing is stuck that belongs to the uid, and says so at each try that fails.
    pub(crate) async fn gone(&self, uid: ChildUid, late: impl Fn()) {
        let stuck = self.0.borrow_mut().remove(&uid);
        let Some(leaf) = stuck else { return };
        let mut pause = PAUSES.0;
        while let Err(error) = leaf.empty().await.and_then(|()| leaf.remove()) {
            let (number, quarantined) = (uid.get(), message_id::UID_QUARANTINED);
            tracing::error!(MESSAGE_ID = quarantined, child_uid = number, %error, "uid {number} is not used until its cgroup is gone: {error}");
            late();
            tokio::time::sleep(pause).await;
            pause = longer(pause);
        }
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(PAUSES.1)
}

/// Empties and removes what an earlier supervisor left; what does not go is tried again.
pub(crate) async fn remove_leftovers(mut dirs: Vec<Dir>) {
    let mut pause = PAUSES.0;
    loop {
        let mut stays = Vec::new();
        for dir in dirs {
            if let Err(error) = leaf::empty(&dir).await.and_then(|()| dir.remove()) {
                tracing::error!(reason = "cgroup-stays", %error, "a cgroup of an earlier supervisor does not go: {error}");
                stays.push(dir);
            } else {
                // Refused while its user has another child.
                let _ = dir.parent().map(|user| user.remove());
            }
        }
        if stays.is_empty() {
            return;
        }
        dirs = stays;
        tokio::time::sleep(pause).await;
        pause = longer(pause);
    }
}
