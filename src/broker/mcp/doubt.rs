//! A child says that Forgejo refuses its token: is that so?
//!
//! Nothing but the child's answer tells that a user has taken the access back at Forgejo, until the next look within the
//! hour. What a child says is no proof, so Forgejo is asked, once a credential and minute; where the token is good, the
//! answer is the client's as it is.

use std::borrow::Cow;

use tokio::time::{Instant, timeout_at};

use crate::auth::bearer::Principals;
use crate::auth::principal::Principal;
use crate::child::calls::Ending;
use crate::jsonrpc::Spliced;
use crate::mcp::refusal::Refusal;

/// As much of an answer is read: refusals are short.
const READ: usize = 8 * 1024;

/// How refusals of Forgejo's API look in the answers of children: goern's forgejo-mcp hands on Forgejo's words
/// (`routers/api/v1`, the same since version 1.16), forgejo-mcp-rs and most others the status.
const SIGNS: [&str; 8] = [
    "401",
    "access token does not exist",
    "grant does not exist",
    "user does not exist [uid",
    "invalid username, password or token",
    "You must change your password",
    "prohibited from signing in",
    "account is not activated",
];

/// Asks about one caller.
#[derive(Debug)]
pub(crate) struct Doubt {
    /// Know whom to ask.
    pub(crate) principals: Principals,
    /// Whose child it is.
    pub(crate) caller: Principal,
    /// The request's deadline.
    pub(crate) deadline: Instant,
}

impl Doubt {
    /// What the client is told in the place of the child's answer, where Forgejo does not take the token any more.
    pub(crate) async fn settle(&self, answer: &Spliced, ending: Ending) -> Option<Refusal> {
        if ending == Ending::Result || !says_so(answer) {
            return None;
        }
        let asked = timeout_at(self.deadline, self.principals.refusal_of_doubted(&self.caller)).await;
        asked.ok().flatten().map(Refusal::unauthorized)
    }
}

/// Whether an answer that is an error reads like a refused token.
fn says_so(answer: &Spliced) -> bool {
    let text = answer.to_bytes();
    let text: Cow<'_, str> = String::from_utf8_lossy(text.get(..READ).unwrap_or(&text));
    SIGNS.iter().any(|sign| text.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_real_children_are_recognised_and_others_cost_no_question() {
        for (text, doubted) in [
            // goern's, redacted.
            (
                r#"{"error":{"code":-32603,"message":"token has invalid claims: token is expired\naccess token does not exist [sha: ***]"}}"#,
                true,
            ),
            (
                r#"{"error":{"code":-32603,"message":"grant does not exist\naccess token does not exist [sha: ***]"}}"#,
                true,
            ),
            // forgejo-mcp-rs.
            (
                r#"{"result":{"isError":true,"content":[{"type":"text","text":"GET /user: HTTP 401 Unauthorized: {}"}]}}"#,
                true,
            ),
            (
                r#"{"error":{"code":-32603,"message":"You must change your password. Change it at: /user/change_password"}}"#,
                true,
            ),
            (r#"{"error":{"code":-32603,"message":"The target couldn't be found."}}"#, false),
            (r#"{"error":{"code":-32602,"message":"tool 'x' not found: tool not found"}}"#, false),
        ] {
            assert_eq!(says_so(&Spliced::whole(bytes::Bytes::from_static(text.as_bytes()))), doubted, "{text}");
        }
    }
}
