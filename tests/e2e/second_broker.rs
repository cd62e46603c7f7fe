//! Two brokers never share a store.

use std::os::unix::fs::MetadataExt;

use serde_json::json;

use crate::{stand_in_deployment, token};
use harness::mcp_session::Session;

#[tokio::test]
async fn a_second_broker_on_the_same_store_is_refused_and_touches_nothing_of_the_first_one() {
    let mut deployment = stand_in_deployment("second_broker", &[], |_| {});
    let mut session = Session::open(&deployment.url, &token(&deployment, "alice")).await.expect("a session");
    let socket = |path: std::path::PathBuf| path.metadata().expect("there").ino();
    let admin = socket(deployment.admin());
    // The first one has read it; a second one that got so far would make another.
    let key = deployment.config.dir.join("broker/upstream.key");
    std::fs::remove_file(&key).expect("a key");
    let refused = deployment.start_broker().expect_err("there is one").to_string();
    assert!(refused.contains("broker.db is in use by another broker"), "{refused}");
    assert!(!key.exists(), "no key was made");
    assert_eq!(socket(deployment.admin()), admin, "the operator's socket is the first one's");
    assert_eq!(session.text("echo", json!({"text": "on"})).await.expect("an answer"), "on");
    let status = deployment.ctl().arg("status").output().expect("it runs");
    assert!(status.status.success(), "{status:?}");
}
