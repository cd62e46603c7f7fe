//! A client that closes its connection has cancelled its request (2026-07-28, streamable HTTP, section Cancellation).

use serde_json::json;

use super::{ERAS, blocked, caller, counts, goes_on, pid};
use crate::stand_in_deployment;
use harness::mcp_stateless::request;

#[tokio::test]
async fn hanging_up_before_the_answer_or_in_its_stream_tells_the_child_which_goes_on_serving() {
    for (era, arguments) in ERAS {
        let deployment = stand_in_deployment(&format!("stateless-cancel-{era}"), arguments, |_| {});
        let alice = caller(&deployment, "alice");
        let child = pid(&alice).await;
        // Nothing has been said yet.
        let calling = blocked(&alice).await;
        calling.abort();
        counts(&alice, "cancelled", 1).await;
        // A stream has begun.
        let arguments = json!({"name": "progress", "arguments": {"count": 1000, "ms": 20},
            "_meta": {"progressToken": "p"}});
        let mut stream = alice.post(&request("tools/call", arguments)).send().await.expect("a stream");
        let heard = stream.chunk().await.expect("it goes on").expect("something");
        assert!(!heard.is_empty(), "{era}");
        counts(&alice, "cancelled", 1).await;
        drop(stream);
        counts(&alice, "cancelled", 2).await;
        goes_on(&alice).await;
        assert_eq!(pid(&alice).await, child, "{era}");
        // Neither keeps a place: there are as many as before.
        let calls = (0..64).map(|_| alice.text("echo", json!({"text": "x"})));
        for said in futures_util::future::join_all(calls).await {
            assert_eq!(said.expect("an answer"), "x", "{era}");
        }
    }
}
