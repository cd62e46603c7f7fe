//! A disk that fills up in the middle of a login: its person is told what it is, and nothing that Forgejo gave is lost.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

use crate::chaos::disk::{SmallDisk, in_mounts_of_its_own};
use crate::login::{Client, user_agent};
use crate::{config, skip, stand_in};
use harness::deployment::Deployment;
use harness::user_agent::Decision;

/// How long the broker may take to try again when there is room: its first pause is five seconds.
const KEPT_WITHIN: Duration = Duration::from_secs(30);
/// Uids that no other test uses.
const FIRST_UID: u32 = 81_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_on_a_full_disk_is_told_so_at_once_and_succeeds_when_there_is_room() {
    const NAME: &str = "full_disk::a_login_on_a_full_disk_is_told_so_at_once_and_succeeds_when_there_is_room";
    if !geteuid().is_root() {
        return skip("a login on a full disk", "only root can mount a small file system");
    }
    if !tokio::task::block_in_place(|| in_mounts_of_its_own(NAME)) {
        return;
    }
    let mut config = config("full-disk", stand_in(&["--check-token"]));
    config.oauth = true;
    // It runs again in a process of its own, where the others are not counted.
    config.first_uid = FIRST_UID;
    let below = config.dir.join("broker");
    let _disk = SmallDisk::mount(&below).expect("in mounts of its own");
    let deployment = Deployment::set(config).expect("a deployment");
    deployment.user("alice").expect("a user");
    let client = Client::register(&deployment).await;
    let mut alice = user_agent("alice");
    let to = alice.go_up_to("/oauth/callback", &client.authorize(), Decision::Allow).await;
    let ballast = below.join("ballast");
    let mut file = File::create(&ballast).expect("a file");
    while file.write_all(&[0; 4096]).is_ok() {}
    // Not a page that waits and looks again.
    let page = alice.glance(&to).await;
    let full = "This service cannot keep anything now";
    assert!(page.status == 503 && page.text.contains(full), "{} {}", page.status, page.text);
    // In the same words, and without Forgejo being asked again, for as long as it is so.
    let page = alice.glance(&to).await;
    assert!(page.status == 503 && page.text.contains(full), "{} {}", page.status, page.text);
    drop(file);
    std::fs::remove_file(&ballast).expect("room");
    let begun = Instant::now();
    let to_client = loop {
        let page = alice.open(&to).await;
        if let Some(to_client) = page.location() {
            break to_client;
        }
        assert!(begun.elapsed() < KEPT_WITHIN, "{} {}", page.status, page.text);
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    client.redeem(&to_client).await;
}
