//! What a token of the operator's is restricted to: tools by their names, and networks that it may be shown from.
//!
//! Both are lists that the operator gave, kept as text beside the grant. What is not on a list is refused; without a list
//! nothing is. A text that cannot be read is an error for whoever reads it, never an empty list or none.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// Tools of a list at most: twice as many as the largest known child has.
const MAX_TOOLS: usize = 300;
/// Characters of a tool's name at most (MCP 2025-11-25, server/tools, section Tool Names).
const MAX_TOOL_NAME: usize = 128;
/// Networks of a list at most: each request is compared with all of them.
const MAX_NETWORKS: usize = 64;

/// A list that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RestrictionError {
    /// It lets nothing through, which a revocation does better.
    #[error("the list of {0} is empty")]
    Empty(&'static str),
    /// It is too long.
    #[error("a list may name at most {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        limit: usize,
    },
    /// No tool can be called that.
    #[error("`{0}` is no name of a tool: 1 to 128 letters, digits, and characters of `_-.:/`")]
    ToolName(String),
    /// Neither an address nor a network.
    #[error("`{0}` is neither an address nor a network, such as 192.0.2.0/24")]
    Network(String),
}

/// Tools that may be called; no others are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AllowedTools(BTreeSet<Box<str>>);

impl AllowedTools {
    /// From their names. Case matters, as it does to children.
    pub(crate) fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, RestrictionError> {
        let known = |b: u8| b.is_ascii_alphanumeric() || b"_-.:/".contains(&b);
        let checked = |name: &'a str| {
            let good = (1..=MAX_TOOL_NAME).contains(&name.len()) && name.bytes().all(known);
            if good { Ok(Box::from(name)) } else { Err(RestrictionError::ToolName(name.to_owned())) }
        };
        let tools: BTreeSet<Box<str>> = names.into_iter().map(checked).collect::<Result<_, _>>()?;
        bounded(tools.len(), "tools", MAX_TOOLS)?;
        Ok(Self(tools))
    }

    /// Whether a tool is one of them.
    pub(crate) fn contains(&self, tool: &str) -> bool {
        self.0.contains(tool)
    }

    /// Their names, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }
}

/// Networks that a token may be shown from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AllowedNetworks(Vec<IpNet>);

impl AllowedNetworks {
    /// From addresses and networks as people write them.
    pub(crate) fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, RestrictionError> {
        let parsed = |text: &'a str| {
            let address = text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
            let network = address.or_else(|_| text.parse::<IpNet>());
            // Without the bits of a host, so that what is shown later is what counts.
            network.map(|network| network.trunc()).map_err(|_| RestrictionError::Network(text.to_owned()))
        };
        let networks: BTreeSet<IpNet> = texts.into_iter().map(parsed).collect::<Result<_, _>>()?;
        bounded(networks.len(), "networks", MAX_NETWORKS)?;
        Ok(Self(networks.into_iter().collect()))
    }

    /// Whether an address is in one of them.
    pub(crate) fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// They themselves, in order.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }
}

fn bounded(length: usize, what: &'static str, limit: usize) -> Result<(), RestrictionError> {
    match length {
        0 => Err(RestrictionError::Empty(what)),
        length if length > limit => Err(RestrictionError::TooMany { what, limit }),
        _ => Ok(()),
    }
}

/// What a grant is held to besides its scopes. By default to nothing. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Restrictions {
    /// The tools, where not all.
    pub(crate) tools: Option<Arc<AllowedTools>>,
    /// The networks, where not all.
    pub(crate) networks: Option<Arc<AllowedNetworks>>,
}

impl Restrictions {
    /// From what [`Self::texts`] gave.
    pub(crate) fn parse(tools: Option<&str>, networks: Option<&str>) -> Result<Self, RestrictionError> {
        let tools = tools.map(|text| AllowedTools::new(text.split(' '))).transpose()?;
        let networks = networks.map(|text| AllowedNetworks::new(text.split(' '))).transpose()?;
        Ok(Self { tools: tools.map(Arc::new), networks: networks.map(Arc::new) })
    }

    /// Tools and networks as the store keeps them, with spaces in between.
    pub(crate) fn texts(&self) -> (Option<String>, Option<String>) {
        let tools = self.tools.as_ref().map(|tools| tools.names().join(" "));
        (tools, self.networks.as_ref().map(|networks| networks.texts().join(" ")))
    }

    /// Whether a tool may be called, and seen.
    pub(crate) fn allow_tool(&self, tool: &str) -> bool {
        self.tools.as_ref().is_none_or(|tools| tools.contains(tool))
    }

    /// Whether a request may come from there.
    pub(crate) fn allow_from(&self, address: IpAddr) -> bool {
        self.networks.as_ref().is_none_or(|networks| networks.contain(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_restrictions_reads_back_the_same() {
        let all = Restrictions {
            tools: Some(Arc::new(AllowedTools::new(["list_issues", "get_x", "get_x"]).expect("a list"))),
            networks: Some(Arc::new(AllowedNetworks::new(["10.1.2.3/8", "2001:db8::1", "192.0.2.7"]).expect("a list"))),
        };
        let (tools, networks) = all.texts();
        assert_eq!(tools.as_deref(), Some("get_x list_issues"));
        assert_eq!(networks.as_deref(), Some("10.0.0.0/8 192.0.2.7/32 2001:db8::1/128"));
        assert_eq!(Restrictions::parse(tools.as_deref(), networks.as_deref()), Ok(all));
        assert_eq!(Restrictions::parse(None, None), Ok(Restrictions::default()));
        for damaged in ["", "get_x  get_y", "get\u{e4}"] {
            assert!(Restrictions::parse(Some(damaged), None).is_err(), "{damaged:?}");
            assert!(Restrictions::parse(None, Some(damaged)).is_err(), "{damaged:?}");
        }
    }

    #[test]
    fn an_address_is_in_a_network_however_it_is_written() {
        let networks = AllowedNetworks::new(["192.0.2.0/24", "2001:db8::/32", "::ffff:198.51.100.7"]).expect("a list");
        for inside in ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8:1::9", "198.51.100.7"] {
            assert!(networks.contain(inside.parse().expect("an address")), "{inside}");
        }
        for outside in ["192.0.3.1", "2001:db9::1", "198.51.100.8", "::", "0.0.0.0"] {
            assert!(!networks.contain(outside.parse().expect("an address")), "{outside}");
        }
    }

    #[test]
    fn a_list_is_refused_with_what_is_wrong() {
        let name = "x".repeat(129);
        for bad in ["", "get x", "get,x", "*", name.as_str()] {
            assert_eq!(AllowedTools::new([bad]), Err(RestrictionError::ToolName(bad.to_owned())));
        }
        for bad in ["", "example.org", "192.0.2.0/33", "192.0.2"] {
            assert_eq!(AllowedNetworks::new([bad]), Err(RestrictionError::Network(bad.to_owned())));
        }
        assert_eq!(AllowedTools::new([]), Err(RestrictionError::Empty("tools")));
        assert_eq!(AllowedNetworks::new([]), Err(RestrictionError::Empty("networks")));
        let many: Vec<String> = (0..=300).map(|n| format!("t{n}")).collect();
        let too_many = RestrictionError::TooMany { what: "tools", limit: 300 };
        assert_eq!(AllowedTools::new(many.iter().map(String::as_str)), Err(too_many));
    }
}
