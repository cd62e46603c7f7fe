//! What a client lets a child ask for (revision 2026-07-28: `io.modelcontextprotocol/clientCapabilities` of a request;
//! before: `capabilities` of `initialize`).
//!
//! Only what a child can ask for matters here, as a small set that can be compared: two clients that differ in nothing of
//! it can be served by one child.

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// A set of the requests that a client answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Abilities(u8);

const ROOTS: u8 = 1;
const SAMPLING: u8 = 2;
const SAMPLING_TOOLS: u8 = 4;
const SAMPLING_CONTEXT: u8 = 8;
const FORM: u8 = 16;
const URL: u8 = 32;

/// What a child asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// `roots/list`.
    Roots,
    /// `sampling/createMessage`.
    Sampling,
    /// `elicitation/create` with a form.
    Form,
    /// `elicitation/create` with an address.
    Url,
}

impl Asked {
    /// Of a request's method and parameters; `None` for what a client of the stateless era is never asked.
    pub(crate) fn of(method: &str, params: Option<&str>) -> Option<Self> {
        #[derive(Deserialize)]
        struct Params {
            #[serde(default)]
            mode: String,
        }
        match method {
            "roots/list" => Some(Self::Roots),
            "sampling/createMessage" => Some(Self::Sampling),
            "elicitation/create" => {
                let params = params.and_then(|text| serde_json::from_str::<Params>(text).ok());
                Some(if params.is_some_and(|params| params.mode == "url") { Self::Url } else { Self::Form })
            }
            _ => None,
        }
    }
}

impl Abilities {
    /// Of an object of capabilities; what is no object has none.
    pub(crate) fn of(capabilities: &Value) -> Self {
        let part = |of: &Value, name: &str| of.get(name).is_some_and(Value::is_object);
        let mut set = 0;
        let mut add = |has: bool, bit: u8| set |= if has { bit } else { 0 };
        add(part(capabilities, "roots"), ROOTS);
        if let Some(sampling) = capabilities.get("sampling").filter(|sampling| sampling.is_object()) {
            add(true, SAMPLING);
            add(part(sampling, "tools"), SAMPLING_TOOLS);
            add(part(sampling, "context"), SAMPLING_CONTEXT);
        }
        if let Some(elicitation) = capabilities.get("elicitation").filter(|elicitation| elicitation.is_object()) {
            // With neither mode named, forms are meant (client/elicitation, section Capabilities).
            add(part(elicitation, "form") || !part(elicitation, "url"), FORM);
            add(part(elicitation, "url"), URL);
        }
        Self(set)
    }

    /// Of the parameters of `initialize`.
    pub(crate) fn of_initialize(params: &str) -> Self {
        let params: Value = serde_json::from_str(params).unwrap_or_default();
        params.get("capabilities").map_or(Self::default(), Self::of)
    }

    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    /// Whether the client answers it.
    pub(crate) fn allow(self, asked: Asked) -> bool {
        self.has(match asked {
            Asked::Roots => ROOTS,
            Asked::Sampling => SAMPLING,
            Asked::Form => FORM,
            Asked::Url => URL,
        })
    }

    /// As `capabilities` of `initialize` in the session era.
    pub(crate) fn to_capabilities(self) -> Value {
        let mut all = Map::new();
        let mut part = |name: &str, members: &[(&str, u8)]| {
            let members = members.iter().filter(|(_, bit)| self.has(*bit));
            all.insert(
                name.to_owned(),
                Value::Object(members.map(|(name, _)| ((*name).to_owned(), json!({}))).collect()),
            );
        };
        if self.has(ROOTS) {
            part("roots", &[]);
        }
        if self.has(SAMPLING) {
            part("sampling", &[("tools", SAMPLING_TOOLS), ("context", SAMPLING_CONTEXT)]);
        }
        if self.has(FORM | URL) {
            part("elicitation", &[("form", FORM), ("url", URL)]);
        }
        Value::Object(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_become_a_set_and_back() {
        let table = [
            (json!({}), json!({})),
            (json!({"roots": {"listChanged": true}}), json!({"roots": {}})),
            (json!({"elicitation": {}}), json!({"elicitation": {"form": {}}})),
            (json!({"elicitation": {"url": {}}}), json!({"elicitation": {"url": {}}})),
            (json!({"sampling": {"tools": {}}, "extensions": {"a/b": {}}}), json!({"sampling": {"tools": {}}})),
            (json!({"sampling": true, "elicitation": null}), json!({})),
            (json!("elicitation"), json!({})),
        ];
        for (given, kept) in table {
            assert_eq!(Abilities::of(&given).to_capabilities(), kept, "{given}");
        }
    }

    #[test]
    fn a_client_is_asked_only_what_it_answers() {
        let form = Abilities::of(&json!({"elicitation": {}}));
        let asked = |method, params| Asked::of(method, params).map(|asked| form.allow(asked));
        assert_eq!(asked("elicitation/create", Some(r#"{"message":"?"}"#)), Some(true));
        assert_eq!(asked("elicitation/create", Some(r#"{"mode":"url"}"#)), Some(false));
        assert_eq!(asked("sampling/createMessage", None), Some(false));
        assert_eq!(asked("tasks/get", None), None);
    }
}
