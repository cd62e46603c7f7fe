//! Whoever copies the data directory without the key has no token, and with it no broker token.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::forge::vault::vault_in;
use crate::store::Store;

use crate::tests::identity::fixture::{UPSTREAM, grant};

fn files_with(dir: &Path, secret: &[u8]) -> Vec<String> {
    let files = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("readable").path());
    let holds = |path: &std::path::PathBuf| {
        std::fs::read(path).expect("readable").windows(secret.len()).any(|window| window == secret)
    };
    files.filter(holds).map(|path| path.display().to_string()).collect()
}

#[tokio::test]
async fn neither_token_is_in_any_file_and_the_files_are_their_owners_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let vault = vault_in(dir.path());
    let store = Store::open(&dir.path().join("broker.db")).await.expect("a store");
    let (new, token) = grant(&vault, "grant-1", 1);
    store.insert_grant(&new).await.expect("stored");
    for secret in [UPSTREAM, token.expose(), &token.expose()[7..50]] {
        assert_eq!(files_with(dir.path(), secret.as_bytes()), Vec::<String>::new());
    }
    assert!(!files_with(dir.path(), b"user1").is_empty(), "what is not secret is found, so the search works");
    for entry in std::fs::read_dir(dir.path()).expect("a directory") {
        let entry = entry.expect("readable");
        let mode = entry.metadata().expect("readable").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", entry.path().display());
    }
    store.close().await;
    assert_eq!(files_with(dir.path(), UPSTREAM.as_bytes()), Vec::<String>::new(), "nor after the WAL was written back");
}

#[tokio::test]
async fn what_was_stored_is_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let vault = vault_in(dir.path());
    let file = dir.path().join("broker.db");
    let (new, token) = grant(&vault, "grant-1", 1);
    let store = Store::open(&file).await.expect("a store");
    store.insert_grant(&new).await.expect("stored");
    store.close().await;
    let store = Store::open(&file).await.expect("the same store");
    let (found, _) = store.find_token(&token.hash()).await.expect("readable").expect("there");
    assert_eq!((found.grant, found.tenant, found.revoked), (new.grant, new.tenant, false));
}
