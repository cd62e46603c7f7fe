//! Which organisations and teams a user is in.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::forge::api::{Forgejo, UpstreamError};
use wire::secret::UpstreamToken;

/// Entries a page; Forgejo's own maximum unless its operator changed it.
const PAGE_SIZE: usize = 50;
/// Pages that are read; who is in more cannot be judged by lists of organisations and teams.
const MAX_PAGES: usize = 40;

/// Organisations, and teams as (organisation, team), all in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Memberships {
    /// Organisations.
    pub(crate) organisations: Vec<String>,
    /// Teams with their organisation.
    pub(crate) teams: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Organisation {
    // Forgejo gives both; older versions `username` only.
    #[serde(default)]
    name: String,
    #[serde(default)]
    username: String,
}

impl Organisation {
    fn key(&self) -> String {
        if self.name.is_empty() { self.username.to_lowercase() } else { self.name.to_lowercase() }
    }
}

#[derive(Deserialize)]
struct Team {
    name: String,
    organization: Option<Organisation>,
}

impl Forgejo {
    /// The memberships of the user whose token this is. Needs the scopes `read:user` and `read:organization`.
    pub(crate) async fn memberships(&self, token: &UpstreamToken) -> Result<Memberships, UpstreamError> {
        let organisations: Vec<Organisation> = self.all("/api/v1/user/orgs", token).await?;
        let teams: Vec<Team> = self.all("/api/v1/user/teams", token).await?;
        let teams = teams.into_iter().filter_map(|team| Some((team.organization?.key(), team.name.to_lowercase())));
        Ok(Memberships { organisations: organisations.iter().map(Organisation::key).collect(), teams: teams.collect() })
    }

    async fn all<T: DeserializeOwned>(&self, path: &str, token: &UpstreamToken) -> Result<Vec<T>, UpstreamError> {
        let mut all = Vec::new();
        for page in 1..=MAX_PAGES {
            let text = self.api(&format!("{path}?page={page}&limit={PAGE_SIZE}"), token).await?;
            let entries: Vec<T> = serde_json::from_slice(&text).map_err(|_| UpstreamError::NotUnderstood)?;
            let none = entries.is_empty();
            all.extend(entries);
            // A page may be shorter than asked for (the operator's maximum); only an empty one is the end.
            if none {
                return Ok(all);
            }
        }
        // A list that is cut short could hide the entry that keeps somebody out.
        Err(UpstreamError::TooMany)
    }
}
