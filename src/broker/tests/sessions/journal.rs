//! What the journal says of sessions and their children can be searched for, and says what happened, to whom and why.

use serde_json::json;
use tokio::io::AsyncWriteExt;
use wire::message::Exit;
use wire::telemetry::message_id::{CALL_REFUSED, CHILD_GONE, CHILD_SERVES, SESSION_ENDED, SESSION_OPENED};

use crate::session::id::{self, SessionId};
use crate::session::quota::Caps;
use crate::tests::captured_log::CapturedLog;
use crate::tests::sessions::fixture::{Fixture, call, caller, config, initialize};

/// What the log calls the session with this id.
fn tag(id: &str) -> String {
    id::tag(&SessionId::parse(id).expect("an id").digest())
}

#[tokio::test(start_paused = true)]
async fn a_session_is_told_from_its_opening_to_its_end_and_joined_with_its_child() {
    let (log, _here) = CapturedLog::begin();
    let mut fixture = Fixture::new(config()).await;
    let alice = caller(1, "g1");
    let (id, mut child) = fixture.open(&alice).await;
    let tag = tag(&id);
    let opened = log.of(SESSION_OPENED);
    assert!(
        opened.len() == 1 && opened[0].contains(&format!("session opened: {tag}, by user1 with test")),
        "{opened:?}"
    );
    let joined = log.of(CHILD_SERVES);
    assert!(joined[0].contains(&format!("serves session {tag} of user 1")), "{joined:?}");
    assert!(
        joined[0].contains("child_pid=1 child_uid=1") && joined[0].contains(&format!("session={tag}")),
        "{joined:?}"
    );

    // What the child writes itself has its session's name.
    let stderr = child.stderr.as_mut().expect("open");
    stderr.write_all(b"panic: out of luck\n").await.expect("read");
    let calling = fixture.posting(&alice, Some(&id), call(1, "x"));
    child.hears().await.expect("the call");
    child.ends(Exit::Code(2));
    calling.await.expect("no panic");
    let gone = log.of(CHILD_GONE);
    assert!(gone.len() == 1 && gone[0].contains("WARN") && gone[0].contains("ended (exit status 2)"), "{gone:?}");
    let wrote = log.text().lines().find(|line| line.contains("panic: out of luck")).map(str::to_owned);
    let wrote = wrote.expect("a line");
    assert!(wrote.contains(&format!("session=\"{tag}\"")) && wrote.contains("login=user1"), "{wrote}");
    while log.of(SESSION_ENDED).is_empty() {
        tokio::task::yield_now().await;
    }
    let ended = log.of(SESSION_ENDED);
    assert!(ended[0].contains(&format!("session ended: {tag}, of user 1 with test (child-ended)")), "{ended:?}");
    assert!(!log.text().contains(&id), "the id itself is its client's alone");
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_for_want_of_room_is_told_of_a_few_times_and_not_more() {
    let (log, _here) = CapturedLog::begin();
    let mut fixture =
        Fixture::new(crate::session::config::SessionConfig { sessions: Caps { total: 1, per_user: 1 }, ..config() })
            .await;
    let _session = fixture.open(&caller(1, "g1")).await;
    for _ in 0..20 {
        assert_eq!(fixture.post(&caller(2, "g2"), None, initialize()).await.status(), 503);
    }
    let lines = log.of(CALL_REFUSED);
    assert_eq!(lines.len(), 6, "{lines:?}");
    assert!(lines[0].contains("refused initialize of user2 with test: ") && lines[0].contains("(sessions-total)"));
    // What a client does wrong is its own business.
    fixture.post(&caller(3, "g3"), None, json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})).await;
    assert_eq!(log.of(CALL_REFUSED).len(), 6);
}
