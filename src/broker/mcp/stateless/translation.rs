//! A stateless request in the words of the session era, for a child that speaks only that.
//!
//! What says something about the revision, and what only the broker can do anything with, is left out; all else stays byte for
//! byte. The way back is in `child/stamp.rs`, because it is a matter of each answer and not of its caller.

use crate::budget::{Budget, OverBudget, counted};
use crate::jsonrpc::members::{Member, each_member};
use crate::jsonrpc::{Edit, Message};

/// Members of `_meta` that this revision has and the session era has not.
const OF_REQUESTS: [&str; 4] = [
    "io.modelcontextprotocol/protocolVersion",
    "io.modelcontextprotocol/clientInfo",
    "io.modelcontextprotocol/clientCapabilities",
    "io.modelcontextprotocol/logLevel",
];
/// Members of `params` that belong to the broker's own questions to the client.
const OF_ANSWERS: [&str; 2] = ["inputResponses", "requestState"];

/// Whether a method means something else in the session era than in this revision, or nothing here.
pub(super) fn is_unknown(method: &str) -> bool {
    // Tasks of 2025-11-25 are begun, asked for and ended otherwise.
    method.starts_with("tasks/") || method.starts_with("notifications/")
}

/// The request as the child is to hear it. What is made anew is held against the caller's budget.
pub(super) fn request(message: &Message, budget: &Budget) -> Result<Message, OverBudget> {
    let Some(params) = message.params() else { return Ok(message.clone()) };
    let Some(all) = members(params) else { return Ok(message.clone()) };
    let mut cuts = cut(message, &all, &OF_ANSWERS);
    for meta in all.iter().filter(|member| member.name == "_meta") {
        let inner = members(meta.value.get()).unwrap_or_default();
        cuts.extend(cut(message, &inner, &OF_REQUESTS));
    }
    if cuts.is_empty() {
        return Ok(message.clone());
    }
    let text = message.edited(None, cuts);
    let held = budget.hold(text.len())?;
    // It was a request, and it still is.
    Ok(message.reworded(counted(text.to_bytes(), held)).unwrap_or_else(|_| message.clone()))
}

/// Cuts the members of these names out of their object, each with one comma beside it: the one in front, unless nothing is
/// left there.
fn cut(message: &Message, members: &[Member<'_>], names: &[&str]) -> Vec<Edit> {
    let at = |part: &str| message.place_of(part);
    let (mut cuts, mut kept_end) = (Vec::new(), None);
    for (n, member) in members.iter().enumerate() {
        let (start, end) = (at(member.key).start, at(member.value.get()).end);
        if !names.contains(&&*member.name) {
            kept_end = Some(end);
            continue;
        }
        cuts.push(match (kept_end, members.get(n.saturating_add(1))) {
            (Some(before), _) => Edit::cut(before..end),
            (None, Some(next)) => Edit::cut(start..at(next.key).start),
            (None, None) => Edit::cut(start..end),
        });
        kept_end = kept_end.map(|_| end);
    }
    cuts
}

/// An object's members; `None` for what is none.
fn members(object: &str) -> Option<Vec<Member<'_>>> {
    let mut members = Vec::new();
    each_member(object, |member| members.push(member)).ok()?;
    Some(members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{BudgetCaps, Budgets};
    use crate::mcp::stateless::request_of;
    use wire::message::TenantId;

    #[test]
    fn only_what_is_of_the_revision_is_left_out() {
        let budget = Budgets::new(BudgetCaps { total: 9999, per_user: 9999 }).of(TenantId::new(1).expect("an id"));
        let table = [
            (
                r#"{"_meta":{"progressToken":"p","io.modelcontextprotocol/protocolVersion":"2026-07-28","traceparent":"00"},"name":"t","arguments":{"n": 1.50}}"#,
                r#"{"_meta":{"progressToken":"p","traceparent":"00"},"name":"t","arguments":{"n": 1.50}}"#,
            ),
            (
                r#"{"name":"t","_meta":{"io.modelcontextprotocol/clientCapabilities":{"a":{}},"io.modelcontextprotocol/related-task":1}}"#,
                r#"{"name":"t","_meta":{"io.modelcontextprotocol/related-task":1}}"#,
            ),
            (r#"{"requestState":"s","inputResponses":{"a":1},"a\n":1e400}"#, r#"{"a\n":1e400}"#),
            (r#"{ "\u0061" : 1 , "requestState" :"s", "b\/":[ ] }"#, r#"{ "\u0061" : 1, "b\/":[ ] }"#),
            (r#"{"request\u0053tate":"s" }"#, "{ }"),
            ("[1]", "[1]"),
            ("{}", "{}"),
        ];
        for (given, expected) in table {
            let text = |params: &str| format!(r#"{{"jsonrpc":"2.0", "id":1,"method":"m","params":{params}}}"#);
            let translated = request(&request_of(&text(given)), &budget).expect("within the budget");
            assert_eq!(translated.text(), text(expected).as_bytes(), "{given}");
        }
    }

    #[test]
    fn a_trace_that_only_headers_name_goes_with_what_is_left_of_meta() {
        const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let budget = Budgets::new(BudgetCaps { total: 9999, per_user: 9999 }).of(TenantId::new(1).expect("an id"));
        let mut headers = axum::http::HeaderMap::new();
        headers.insert("traceparent", PARENT.parse().expect("a header"));
        let trace = crate::trace::Trace::begin(&headers, &mut rand::rng());
        let carried = trace.carried().expect("a trace");
        let named = format!(r#""traceparent":"{PARENT}""#);
        let table = [
            (r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":"v"},"a":1}"#, r#"{"_meta":{NAMED},"a":1}"#),
            (r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":"v","b":2}}"#, r#"{"_meta":{NAMED,"b":2}}"#),
            (
                r#"{"_meta":{"traceparent":"own","io.modelcontextprotocol/protocolVersion":"v"}}"#,
                r#"{"_meta":{"traceparent":"own"}}"#,
            ),
            (r#"{"requestState":"s"}"#, r#"{"_meta":{NAMED}}"#),
        ];
        for (given, expected) in table {
            let text = |params: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{params}}}"#);
            let translated = request(&request_of(&text(given)).carrying(carried), &budget).expect("within the budget");
            let written = translated.rewritten(Some("1".into()), None).to_bytes();
            assert_eq!(written, text(expected).replace("NAMED", &named), "{given}");
        }
    }
}
