//! Objects of System V IPC, where an operator allows them: they outlive their process, and go before their uid is leased
//! again; POSIX queues there are none. Needs root.

#![expect(clippy::expect_used, reason = "helpers of tests fail the test")]

#[cfg(test)]
use harness::look_again;
use harness::supervised::{Client, Kid, Supervised, Surroundings, own_range, root_or_skip};
use nix::sys::signal::Signal;

/// What belongs to a uid, or was made by it, in the kernel's tables.
fn objects(uid: u32) -> usize {
    let table = |name: &str| std::fs::read_to_string(format!("/proc/sysvipc/{name}")).expect("readable");
    let uid = uid.to_string();
    let of = |table: &str| table.lines().filter(|line| line.split_whitespace().any(|field| field == uid)).count();
    ["shm", "sem", "msg"].iter().map(|name| of(&table(name))).sum()
}

/// With one uid for children.
fn supervised(range: u32, sandbox: &str) -> Supervised {
    let policy = format!("{sandbox}[uids]\nfirst = {range}\ncount = 2\n");
    Supervised::start_as_root(&harness::program("leftovers"), Surroundings::default(), &policy)
}

async fn leave_some(kid: &mut Kid) {
    kid.tell("ipc").await;
    assert_eq!(kid.line().await, "3");
    assert_eq!(objects(kid.uid), 3);
}

async fn spawn_when_clean(client: &mut Client, tenant: u64) -> Kid {
    while client.status().await.uids_free == 0 {
        look_again().await;
    }
    client.spawn(tenant).await
}

async fn none_is_left(sandbox: &str) {
    let range = own_range();
    let mut first = supervised(range, sandbox);
    let mut client = Client::connect(&first).await;
    let mut kid = client.spawn(1).await;
    leave_some(&mut kid).await;
    client.stop(&mut kid).await;
    let mut next = spawn_when_clean(&mut client, 2).await;
    assert_eq!((next.uid, objects(next.uid)), (kid.uid, 0), "the next user of the uid finds them");

    leave_some(&mut next).await;
    first.kill(Signal::SIGKILL);
    let second = supervised(range, "");
    let mut client = Client::connect(&second).await;
    let mut third = spawn_when_clean(&mut client, 3).await;
    assert_eq!((third.uid, objects(third.uid)), (kid.uid, 0), "a killed supervisor leaves them");
    third.tell("ipc").await;
    assert_eq!(third.line().await, "0", "denied, unless allowed");
}

#[tokio::test]
async fn allowed_objects_of_ipc_are_gone_before_their_uid_is_leased_again() {
    if root_or_skip("allowed_objects_of_ipc_are_gone_before_their_uid_is_leased_again") {
        none_is_left("[sandbox]\nsysv_ipc = true\n").await;
    }
}

#[tokio::test]
async fn also_with_the_list_of_allowed_calls_and_without_seccomp() {
    if root_or_skip("also_with_the_list_of_allowed_calls_and_without_seccomp") {
        none_is_left("[sandbox]\nsysv_ipc = true\nseccomp = \"allow-list\"\n").await;
        none_is_left("[sandbox]\nseccomp = \"off\"\n").await;
    }
}

#[tokio::test]
async fn no_posix_queue_is_made_with_any_filter_or_without_one() {
    if !root_or_skip("no_posix_queue_is_made_with_any_filter_or_without_one") {
        return;
    }
    for (seccomp, answers) in
        [("deny-list", "EPERM, EPERM, EPERM"), ("allow-list", "EPERM, EPERM, EPERM"), ("off", "EMFILE, EMFILE, ENOENT")]
    {
        let supervised = supervised(own_range(), &format!("[sandbox]\nseccomp = \"{seccomp}\"\n"));
        let mut kid = Client::connect(&supervised).await.spawn(1).await;
        kid.tell("queue").await;
        assert_eq!(kid.line().await, answers, "{seccomp}: whether one is made, in a user namespace too, and is there");
    }
}
