//! Query and form parameters as OAuth wants them (RFC 6749 section 3.1): at most once each, an empty one is an absent
//! one, unknown ones are ignored.

use std::collections::HashMap;

use zeroize::Zeroizing;

/// The parameters of a request.
pub(crate) struct Params(HashMap<String, Zeroizing<String>>, Vec<String>);

/// A parameter was there more than once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a parameter is there more than once")]
pub(crate) struct Repeated;

impl std::fmt::Debug for Params {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl Params {
    /// Reads `application/x-www-form-urlencoded` text.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, Repeated> {
        let (mut once, mut resources) = (HashMap::new(), Vec::new());
        for (name, value) in url::form_urlencoded::parse(text) {
            if value.is_empty() {
                continue;
            }
            // The one parameter that may be repeated (RFC 8707 section 2).
            if name == "resource" {
                resources.push(value.into_owned());
            } else if once.insert(name.into_owned(), Zeroizing::new(value.into_owned())).is_some() {
                return Err(Repeated);
            }
        }
        Ok(Self(once, resources))
    }

    /// The value of a parameter.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.as_str())
    }

    /// Whether every resource that is named is `ours`. Clients write it with and without a slash behind, in any case of
    /// scheme and host, with a query, and some name the origin only; all of that is this broker and nothing else.
    pub(crate) fn resource_is(&self, ours: &str) -> bool {
        let plain = |text: &str| {
            let mut url = url::Url::parse(text).ok()?;
            url.set_query(None);
            Some(url.as_str().trim_end_matches('/').to_owned())
        };
        let origin = ours.trim_end_matches("/mcp");
        let known = [plain(ours), plain(origin)];
        self.1.iter().all(|asked| plain(asked).is_some_and(|asked| known.contains(&Some(asked))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_parameter_is_refused_and_an_empty_one_is_absent() {
        assert_eq!(Params::parse(b"a=1&a=2").expect_err("twice"), Repeated);
        assert!(Params::parse(b"a=1&a=").is_ok());
        let params = Params::parse(b"a=&b=x+y").expect("good");
        assert_eq!((params.get("a"), params.get("b")), (None, Some("x y")));
    }

    #[test]
    fn a_resource_is_ours_however_it_is_spelled_and_no_other() {
        let ours = "https://mcp.example.org/mcp";
        let is = |query: &str| Params::parse(query.as_bytes()).expect("good").resource_is(ours);
        for good in [
            "",
            "resource=https://mcp.example.org/mcp",
            "resource=https://mcp.example.org/mcp/",
            "resource=HTTPS://MCP.example.org/mcp",
            "resource=https://mcp.example.org:443/mcp",
            "resource=https://mcp.example.org",
            "resource=https://mcp.example.org/",
            "resource=https://mcp.example.org/mcp&resource=https://mcp.example.org/",
            "resource=https://mcp.example.org/mcp?x=1%26y=2",
            "resource=https://mcp.example.org/mcp/?x",
        ] {
            assert!(is(good), "{good}");
        }
        for bad in [
            "resource=https://other.example.org/mcp",
            "resource=https://mcp.example.org/mcp2",
            "resource=https://mcp.example.org/MCP",
            "resource=https://mcp.example.org:444/mcp",
            "resource=http://mcp.example.org/mcp",
            "resource=https://mcp.example.org/mcp%23x",
            "resource=mcp",
            "resource=https://mcp.example.org/mcp?x%23y",
            "resource=https://mcp.example.org/other?x=/mcp",
            "resource=https://other.example.org/?https://mcp.example.org/mcp",
            "resource=https://mcp.example.org/mcp&resource=https://other.example.org/",
        ] {
            assert!(!is(bad), "{bad}");
        }
    }
}
