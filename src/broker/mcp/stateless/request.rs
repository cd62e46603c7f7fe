//! What a request says of itself, checked where it comes in (2026-07-28, basic/index, section Per-request protocol fields).

use axum::http::{HeaderMap, HeaderName};
use serde::Deserialize;
use serde::de::Deserializer;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::child::abilities::Abilities;
use crate::child::era::STATELESS;
use crate::child::log_level::LogLevel;
use crate::jsonrpc::Message;
use crate::jsonrpc::members::{Member, each_member};
use crate::mcp::headers::{PARAMETERS, VERSION};
use crate::mcp::refusal::Refusal;
use crate::mcp::stateless::mirrored;
use crate::mcp::tools::mirrored::MirroredArgument;

/// Methods of the session era that this revision has not. No child hears of them: one that speaks both eras might take them
/// for the beginning of the other.
const OF_SESSIONS: [&str; 5] =
    ["initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"];

/// What matters of it.
#[derive(Debug)]
pub(super) struct StatelessRequest {
    /// What its client can be asked for.
    pub(super) abilities: Abilities,
    /// The log messages that it wants.
    pub(super) logs: Option<LogLevel>,
    /// The tool that it calls, if there is something that headers may repeat, or seem to: arguments, or such headers. Which
    /// arguments those are, the child is asked; whoever says nothing of the kind does not wait for that.
    pub(super) tool_with_arguments: Option<Box<str>>,
    /// The headers that may repeat arguments of that tool.
    arguments: HeaderMap,
}

/// The members of `params` that matter here.
#[derive(Default)]
struct Params<'a> {
    meta: Option<&'a RawValue>,
    name: Named,
    uri: Named,
    /// Whether there are any, by any reader's reading.
    has_arguments: bool,
}

/// What a request is about, as every reader would read it.
#[derive(Default)]
enum Named {
    #[default]
    No,
    As(String),
    /// It is no text, or there is a name beside it that a lenient reader takes for the same (Go's in any case, the last of
    /// two): what the header says could not be held against what the child does.
    Ambiguously,
}

impl Named {
    fn add(&mut self, spelled_so: bool, value: &RawValue) {
        let text = serde_json::from_str::<String>(value.get());
        *self = match (&self, spelled_so, text) {
            (Self::No, true, Ok(text)) => Self::As(text),
            _ => Self::Ambiguously,
        };
    }
}

impl<'a> Params<'a> {
    /// `None` for what is no object, and where `_meta` is there twice.
    fn of(params: &'a str) -> Option<Self> {
        let (mut of, mut has_one_meta) = (Self::default(), true);
        let look = |Member { name, value, .. }: Member<'a>| {
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            if is("_meta") {
                has_one_meta &= of.meta.is_none() && name == "_meta";
                of.meta = Some(value);
            } else if is("name") {
                of.name.add(name == "name", value);
            } else if is("uri") {
                of.uri.add(name == "uri", value);
            } else if is("arguments") {
                // What is no object has none.
                let _ = each_member(value.get(), |_| of.has_arguments = true);
            }
        };
        each_member(params, look).ok()?;
        has_one_meta.then_some(of)
    }
}

#[derive(Deserialize, Default)]
struct Meta<'a> {
    #[serde(borrow, default, rename = "io.modelcontextprotocol/protocolVersion", deserialize_with = "present")]
    version: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "io.modelcontextprotocol/clientCapabilities", deserialize_with = "present")]
    capabilities: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "io.modelcontextprotocol/logLevel", deserialize_with = "present")]
    log_level: Option<&'a RawValue>,
}

/// Keeps `null` apart from an absent member.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl StatelessRequest {
    /// Checks a request and its headers.
    pub(super) fn parse(headers: &HeaderMap, message: &Message) -> Result<Self, Refusal> {
        let method = message.method().unwrap_or_default();
        if OF_SESSIONS.contains(&method) {
            return Err(Refusal::unknown_method(method));
        }
        // A name that is there twice is read by each as they like.
        let params = message.params().map_or_else(|| Some(Params::default()), Params::of);
        let params = params.ok_or_else(|| Refusal::bad_params("params must be an object that has each name once"))?;
        let meta = params.meta.map_or(Ok(Meta::default()), |meta| serde_json::from_str::<Meta<'_>>(meta.get()));
        let meta = meta.map_err(|_| Refusal::missing_meta("an object's form, and each name once"))?;
        let version: Option<String> = meta.version.and_then(|raw| serde_json::from_str(raw.get()).ok());
        let version = version.ok_or_else(|| Refusal::missing_meta("io.modelcontextprotocol/protocolVersion"))?;
        mirrored::check(headers, VERSION, &version)?;
        if version != STATELESS {
            return Err(Refusal::unsupported_version(&version));
        }
        let capabilities = meta.capabilities.and_then(|raw| serde_json::from_str::<Value>(raw.get()).ok());
        let capabilities = capabilities
            .filter(Value::is_object)
            .ok_or_else(|| Refusal::missing_meta("io.modelcontextprotocol/clientCapabilities"))?;
        mirrored::check(headers, "mcp-method", method)?;
        let named = match method {
            "tools/call" | "prompts/get" => Some(params.name),
            "resources/read" => Some(params.uri),
            _ => None,
        };
        let mut tool = None;
        match named {
            Some(Named::As(name)) => {
                mirrored::check_decoded(headers, "mcp-name", &name)?;
                tool = (method == "tools/call").then(|| name.into());
            }
            Some(Named::Ambiguously) => {
                return Err(Refusal::bad_params("name and uri must be texts, each there once"));
            }
            Some(Named::No) if headers.contains_key("mcp-name") => {
                return Err(Refusal::header_mismatch("mcp-name names something, and the body does not"));
            }
            Some(Named::No) | None => {}
        }
        let logs = meta.log_level.map(|raw| {
            let level = serde_json::from_str::<String>(raw.get()).ok();
            level.and_then(|name| LogLevel::parse(&name))
        });
        let logs = match logs {
            Some(None) => return Err(Refusal::bad_params("io.modelcontextprotocol/logLevel is no log level")),
            logs => logs.flatten(),
        };
        let repeats = |name: &HeaderName| tool.is_some() && name.as_str().starts_with(PARAMETERS);
        let given = headers.iter().filter(|(name, _)| repeats(name));
        let arguments: HeaderMap = given.map(|(name, value)| (name.clone(), value.clone())).collect();
        let tool_with_arguments = tool.filter(|_| params.has_arguments || !arguments.is_empty());
        Ok(Self { abilities: Abilities::of(&capabilities), logs, tool_with_arguments, arguments })
    }

    /// Checks the headers that repeat arguments of the tool, once it is known which those are.
    pub(super) fn check_arguments(&self, message: &Message, mirrored: &[MirroredArgument]) -> Result<(), Refusal> {
        mirrored::check_arguments(&self.arguments, message.params().unwrap_or_default(), mirrored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::stateless::request_of;
    use axum::http::HeaderValue;
    use axum::response::IntoResponse;
    use http_body_util::BodyExt;

    const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

    /// Status and code, or 0 and 0 where the request is good.
    async fn outcome(method: &str, params: &str, headers: &[(&'static str, &'static str)]) -> (u16, i64) {
        let message = request_of(&format!(r#"{{"jsonrpc":"2.0","id":"x","method":"{method}","params":{params}}}"#));
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            all.append(*name, HeaderValue::from_static(value));
        }
        let Err(refusal) = StatelessRequest::parse(&all, &message) else { return (0, 0) };
        let response = refusal.of(message.id()).into_response();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        let body: Value = serde_json::from_slice(&body).expect("json");
        assert_eq!(body["id"], "x");
        (status, body["error"]["code"].as_i64().expect("a code"))
    }

    /// Method, parameters, headers, and the outcome.
    type Row<'a> = (&'a str, &'a str, Vec<(&'static str, &'static str)>, (u16, i64));

    const VERSION_OF_TODAY: (&str, &str) = ("mcp-protocol-version", "2026-07-28");

    #[tokio::test]
    async fn what_a_request_must_say_of_itself_is_checked_in_headers_and_body() {
        let list = ("mcp-method", "tools/list");
        let call = ("mcp-method", "tools/call");
        let plain = format!("{{{META}}}");
        let named = format!(r#"{{"name":"t",{META}}}"#);
        let no_version = r#"{"_meta":{"io.modelcontextprotocol/clientCapabilities":{}}}"#;
        let no_capabilities = r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}"#;
        let newer = plain.replace("2026-07-28", "v999");
        let older = plain.replace("2026-07-28", "2025-11-25");
        let twice = format!("{{{META},{META}}}");
        let logging = plain.replace("2026-07-28\",", "2026-07-28\",\"io.modelcontextprotocol/logLevel\":\"loud\",");
        let lenient = named.replace("{\"name\":\"t\"", "{\"name\":\"t\",\"N\\u0061me\":\"u\"");
        let number = named.replace("\"t\"", "7");
        let half = named.replace("\"t\"", "\"\\ud800\"");
        let table: [Row<'_>; 26] = [
            ("tools/list", &plain, vec![VERSION_OF_TODAY, list], (0, 0)),
            ("tools/call", &named, vec![VERSION_OF_TODAY, call, ("mcp-name", "t")], (0, 0)),
            ("resources/read", &plain, vec![VERSION_OF_TODAY, ("mcp-method", "resources/read")], (0, 0)),
            ("tools/list", "{}", vec![VERSION_OF_TODAY, list], (400, -32602)),
            ("tools/list", no_version, vec![VERSION_OF_TODAY, list], (400, -32602)),
            ("tools/list", no_capabilities, vec![VERSION_OF_TODAY, list], (400, -32602)),
            ("tools/list", "[]", vec![VERSION_OF_TODAY, list], (400, -32602)),
            ("tools/list", &twice, vec![VERSION_OF_TODAY, list], (400, -32602)),
            ("tools/list", &logging, vec![VERSION_OF_TODAY, list], (400, -32602)),
            ("tools/list", &plain, vec![list], (400, -32020)),
            ("tools/list", &plain, vec![VERSION_OF_TODAY, VERSION_OF_TODAY, list], (400, -32020)),
            ("tools/list", &plain, vec![("mcp-protocol-version", "2025-11-25"), list], (400, -32020)),
            ("tools/list", &newer, vec![VERSION_OF_TODAY, list], (400, -32020)),
            ("tools/list", &newer, vec![("mcp-protocol-version", "v999"), list], (400, -32022)),
            ("tools/list", &older, vec![("mcp-protocol-version", "2025-11-25"), list], (400, -32022)),
            ("tools/list", &plain, vec![VERSION_OF_TODAY], (400, -32020)),
            ("tools/list", &plain, vec![VERSION_OF_TODAY, ("mcp-method", "TOOLS/LIST")], (400, -32020)),
            ("tools/call", &named, vec![VERSION_OF_TODAY, call], (400, -32020)),
            ("tools/call", &named, vec![VERSION_OF_TODAY, call, ("mcp-name", "u")], (400, -32020)),
            ("tools/call", &plain, vec![VERSION_OF_TODAY, call, ("mcp-name", "t")], (400, -32020)),
            ("tools/call", &lenient, vec![VERSION_OF_TODAY, call, ("mcp-name", "t")], (400, -32602)),
            ("tools/call", &number, vec![VERSION_OF_TODAY, call, ("mcp-name", "7")], (400, -32602)),
            ("tools/call", &half, vec![VERSION_OF_TODAY, call, ("mcp-name", "t")], (400, -32602)),
            ("tools/list", &plain, vec![("mcp-protocol-version", "=?base64?MjAyNi0wNy0yOA==?="), list], (400, -32020)),
            ("initialize", &plain, vec![VERSION_OF_TODAY, ("mcp-method", "initialize")], (404, -32601)),
            ("ping", "{}", vec![VERSION_OF_TODAY], (404, -32601)),
        ];
        for (method, params, headers, expected) in table {
            assert_eq!(outcome(method, params, &headers).await, expected, "{method} {params} {headers:?}");
        }
    }
}
