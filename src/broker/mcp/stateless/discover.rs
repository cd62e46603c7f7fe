//! `server/discover` of a child that speaks only the session era: what it said to `initialize`, in the words of the stateless
//! revision (2026-07-28, server/discover).

use serde_json::Value;

use crate::child::era::{STATELESS, Server};
use crate::child::stamp::Caching;
use crate::jsonrpc::{RawId, Spliced};
use crate::mcp::headers::SESSION_ERA;

/// The answer.
pub(super) fn answer(id: &RawId, server: &Server) -> Spliced {
    let mut capabilities: Value = serde_json::from_str(server.capabilities.get()).unwrap_or_default();
    if let Some(members) = capabilities.as_object_mut() {
        // Tasks of the session era are none of this one.
        members.remove("tasks");
    }
    let mut versions = vec![STATELESS];
    versions.extend(SESSION_ERA.iter().rev());
    let versions = serde_json::json!(versions);
    let (id, caching) = (String::from_utf8_lossy(id.json()), Caching::of("server/discover").members());
    let instructions =
        server.instructions.as_ref().map(|text| format!(r#""instructions":{text},"#)).unwrap_or_default();
    let meta = match server.info.get() {
        "null" => "{}".to_owned(),
        info => format!(r#"{{"io.modelcontextprotocol/serverInfo":{info}}}"#),
    };
    let text = format!(
        r#"{{"jsonrpc":"2.0","id":{id},"result":{{"resultType":"complete",{caching}{instructions}"supportedVersions":{versions},"capabilities":{capabilities},"_meta":{meta}}}}}"#
    );
    Spliced::whole(text.into())
}
