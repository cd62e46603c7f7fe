//! Which arguments of a tool its clients repeat in headers, so that proxies can decide by them: `x-mcp-header` in the tool's
//! `inputSchema` (2026-07-28, streamable HTTP, section Custom Headers from Tool Parameters).

use std::sync::Arc;

use axum::http::HeaderName;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::jsonrpc::members::{Member, each_member};
use crate::mcp::headers::PARAMETERS;

/// What a property of a schema says of its header.
const ANNOTATION: &str = "x-mcp-header";
/// The types that may be repeated, and `number`, which may not: the official TypeScript SDK's servers check that as well.
const TYPES: [&str; 4] = ["string", "integer", "boolean", "number"];
/// What one argument takes beside its names.
const EACH: usize = 64;

/// One argument that is repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MirroredArgument {
    header: HeaderName,
    path: Box<[Box<str>]>,
}

/// An argument is there twice, or with a name beside it that a lenient reader takes for the same (Go's in any case): what
/// the child will read is anybody's guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ambiguous;

impl MirroredArgument {
    /// Those of a tool, by its text in `tools/list`; none where it says nothing of the kind, as nearly all do. Where `room`
    /// is used up, the rest is not kept. What the revision forbids is not held against anybody: clients do not call such a
    /// tool.
    pub(crate) fn of(tool: &str, room: &mut usize) -> Option<Arc<[Self]>> {
        #[derive(Deserialize)]
        struct Tool {
            #[serde(rename = "inputSchema")]
            schema: Value,
        }
        // A look for the word is cheaper than a parse.
        memchr::memmem::find(tool.as_bytes(), ANNOTATION.as_bytes())?;
        let tool: Tool = serde_json::from_str(tool).ok()?;
        let mut found = Vec::new();
        collect(&tool.schema, &[], room, &mut found);
        (!found.is_empty()).then(|| found.into())
    }

    /// The header's name.
    pub(crate) fn header(&self) -> &str {
        self.header.as_str()
    }

    /// What a call's parameters say; `None` where they do not say it, or `null`.
    pub(crate) fn said<'a>(&self, params: &'a str) -> Result<Option<&'a RawValue>, Ambiguous> {
        let (mut object, mut said) = (params, None);
        for name in std::iter::once("arguments").chain(self.path.iter().map(|name| &**name)) {
            let (mut found, mut is_clear) = (None, true);
            let look = |member: Member<'a>| {
                if member.name.eq_ignore_ascii_case(name) {
                    is_clear &= found.is_none() && member.name == name;
                    found = Some(member.value);
                }
            };
            // What is no object has no members.
            if each_member(object, look).is_err() {
                return Ok(None);
            }
            if !is_clear {
                return Err(Ambiguous);
            }
            let Some(value) = found else { return Ok(None) };
            (object, said) = (value.get(), Some(value));
        }
        Ok(said.filter(|value| value.get() != "null"))
    }
}

/// Looks at the properties of an object's schema, and at theirs: nowhere else may the annotation stand.
fn collect(schema: &Value, path: &[&str], room: &mut usize, found: &mut Vec<MirroredArgument>) {
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = [path, &[name]].concat();
        if let Some(header) = header(property) {
            let takes = path.iter().map(|name| name.len()).sum::<usize>().saturating_add(header.as_str().len() + EACH);
            let Some(left) = room.checked_sub(takes) else { return };
            *room = left;
            found.push(MirroredArgument { header, path: path.iter().map(|&name| name.into()).collect() });
        }
        collect(property, &path, room, found);
    }
}

/// The header of a property, if it has one that can be.
fn header(property: &Value) -> Option<HeaderName> {
    let name = property.get(ANNOTATION)?.as_str().filter(|name| !name.is_empty())?;
    property.get("type").and_then(Value::as_str).filter(|kind| TYPES.contains(kind))?;
    HeaderName::try_from(format!("{PARAMETERS}{name}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(properties: &Value) -> Vec<(String, String)> {
        let tool = json!({"name": "t", "inputSchema": {"type": "object", "properties": properties}}).to_string();
        let found = MirroredArgument::of(&tool, &mut 65_536);
        let told = |one: &MirroredArgument| (one.header().to_owned(), one.path.join("/"));
        found.iter().flat_map(|all| all.iter()).map(told).collect()
    }

    fn pair(header: &str, path: &str) -> (String, String) {
        (header.to_owned(), path.to_owned())
    }

    #[test]
    fn annotated_properties_are_found_at_any_depth_of_properties_and_nowhere_else() {
        let region = json!({"type": "string", "x-mcp-header": "Region"});
        let nested = json!({"type": "object", "properties": {"n": {"type": "integer", "x-mcp-header": "N"}}});
        let found = of(&json!({"region": region, "at": nested, "plain": {"type": "string"}}));
        assert_eq!(found, [pair("mcp-param-n", "at/n"), pair("mcp-param-region", "region")]);
        for elsewhere in [
            json!({"a": {"type": "array", "items": region}}),
            json!({"a": {"anyOf": [region]}}),
            json!({"a": {"type": "object", "x-mcp-header": "A"}}),
            json!({"a": {"x-mcp-header": "A"}}),
            json!({"a": {"type": "string", "x-mcp-header": ""}}),
            json!({"a": {"type": "string", "x-mcp-header": "A B"}}),
            json!({"a": {"type": "string", "x-mcp-header": "A\r\nX: y"}}),
            json!({"a": {"type": "string", "x-mcp-header": 7}}),
        ] {
            assert_eq!(of(&elsewhere), [], "{elsewhere}");
        }
        assert_eq!(MirroredArgument::of(r#"{"name":"x-mcp-header"}"#, &mut 65_536), None);
    }

    #[test]
    fn no_more_is_kept_of_a_child_than_there_is_room_for() {
        let many: serde_json::Map<_, _> = (0..10_000)
            .map(|n| (format!("a{n}"), json!({"type": "string", "x-mcp-header": format!("A{n}")})))
            .collect();
        let kept = of(&Value::Object(many)).len();
        assert!((100..1000).contains(&kept), "{kept}");
    }

    #[test]
    fn an_argument_is_read_as_any_child_would_read_it_or_not_at_all() {
        let argument =
            MirroredArgument { header: HeaderName::from_static("mcp-param-x"), path: ["a".into(), "b".into()].into() };
        let table = [
            (r#"{"arguments":{"a":{"b": 1.50,"c":2}}}"#, Ok(Some("1.50"))),
            (r#"{"\u0061rguments":{"a":{"\u0062":"x"}}}"#, Ok(Some(r#""x""#))),
            (r#"{"arguments":{"a":{"b":null}}}"#, Ok(None)),
            (r#"{"arguments":{"a":{}}}"#, Ok(None)),
            (r#"{"arguments":{"a":[1]}}"#, Ok(None)),
            (r#"{"arguments":"a"}"#, Ok(None)),
            ("{}", Ok(None)),
            (r#"{"arguments":{"a":{"b":1,"b":2}}}"#, Err(Ambiguous)),
            (r#"{"arguments":{"a":{"b":1,"B":2}}}"#, Err(Ambiguous)),
            (r#"{"arguments":{"A":{"b":1}}}"#, Err(Ambiguous)),
            (r#"{"arguments":{},"Arguments":{"a":{"b":1}}}"#, Err(Ambiguous)),
        ];
        for (params, expected) in table {
            assert_eq!(argument.said(params).map(|said| said.map(RawValue::get)), expected, "{params}");
        }
    }
}
