//! The broker's registration at Forgejo: what stands in `[forgejo]` besides the address.

use crate::auth::principal::Scopes;
use crate::forge::access::Access;
use crate::forge::scopes::Reach;
use wire::config_file::Section;
use wire::secret::UpstreamToken;
use zeroize::Zeroizing;

/// Forgejo's scopes that the tools of today need. Never none: Forgejo takes that for all.
const SCOPES: [&str; 6] =
    ["write:user", "write:repository", "write:issue", "write:organization", "write:notification", "write:package"];
/// Forgejo's groups of rights; `all` and `admin` are left out on purpose.
const GROUPS: [&str; 8] =
    ["activitypub", "misc", "notification", "organization", "package", "issue", "repository", "user"];

/// The broker's own registration at Forgejo.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Application {
    /// Public.
    pub(crate) client_id: String,
    /// Held like a token.
    pub(crate) client_secret: UpstreamToken,
    /// What is asked of Forgejo at a login; never empty, because Forgejo takes that for everything.
    pub(crate) scopes: Vec<String>,
}

impl Application {
    /// The most that clients can be given: where nothing can be changed at Forgejo there is no writing here either.
    pub(crate) fn offers(&self) -> Scopes {
        Scopes { write: !Reach::of(&self.scopes).changes.is_empty() }
    }

    /// `client_id` and `client_secret_file` go together. The secret is in a file of its own, so that the configuration
    /// can be read by anybody.
    pub(crate) fn read(forgejo: &mut Section, access: &Access) -> Option<Self> {
        let scopes = scopes(forgejo, access);
        // Asked before they are read: one that is there and wrong has a problem of its own already.
        let alone = forgejo.has("client_id") != forgejo.has("client_secret_file");
        let (id, file) = (forgejo.parsed::<String>("client_id"), forgejo.file("client_secret_file"));
        if alone {
            forgejo.complain("client_id", "and client_secret_file are needed together");
        }
        let (client_id, file) = (id?, file?.path()?);
        let secret = std::fs::read_to_string(&file).map(Zeroizing::new).map_err(|e| e.to_string());
        match secret.and_then(|text| UpstreamToken::parse(text.trim()).map_err(|e| e.to_string())) {
            Ok(client_secret) => Some(Self { client_id, client_secret, scopes }),
            Err(what) => {
                forgejo.complain("client_secret_file", format!("{}: {what}", file.display()));
                None
            }
        }
    }
}

/// `[forgejo] scopes`: what is asked of Forgejo.
fn scopes(forgejo: &mut Section, access: &Access) -> Vec<String> {
    let scopes = forgejo.texts("scopes", &SCOPES);
    let known = |scope: &String| {
        scope
            .split_once(':')
            .is_some_and(|(right, group)| ["read", "write"].contains(&right) && GROUPS.contains(&group))
    };
    let has = |group: &str| scopes.iter().any(|scope| scope.split_once(':').is_some_and(|(_, g)| g == group));
    if let Some(wrong) = scopes.iter().find(|scope| !known(scope)) {
        forgejo.complain("scopes", format!("`{wrong}` is no scope of Forgejo's such as read:user or write:issue"));
    }
    if !has("user") {
        forgejo.complain("scopes", "must hold read:user or write:user: without it nobody can be recognised");
    }
    if access.asks_for_memberships() && !has("organization") {
        forgejo.complain("scopes", "must hold read:organization, because [access] names organisations or teams");
    }
    scopes
}
