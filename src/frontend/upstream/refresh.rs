//! Forgejo's token endpoint: a refresh token for a new pair.
//!
//! Forgejo counts refreshes: each answer makes every earlier refresh token of the user and this application worthless,
//! so an answer that is lost on the way may have burnt the token. All its errors are 400 with a JSON body; what they
//! mean was seen on a real one.

use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;

use super::{Forgejo, body};
use crate::secret::UpstreamToken;

/// The broker's own registration at Forgejo.
#[derive(Debug, Clone)]
pub struct Application {
    /// Public.
    pub client_id: String,
    /// Held like a token.
    pub client_secret: UpstreamToken,
}

/// A fresh pair.
#[derive(Debug)]
pub struct Pair {
    /// The access token.
    pub access: UpstreamToken,
    /// The refresh token that replaces the one that was used.
    pub refresh: UpstreamToken,
    /// How long the access token is good for.
    pub expires_in: Duration,
}

/// Why there is no fresh pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefreshError {
    /// The refresh token is worthless: used, expired, revoked, or the user is gone. Only a new login helps.
    #[error("Forgejo refuses the refresh token for good")]
    Refused,
    /// Forgejo does not know the broker's application or its secret. Every user would be refused, so nobody is.
    #[error("Forgejo does not accept the broker's own client id or secret: check [forgejo] in the configuration")]
    Misconfigured,
    /// Not reachable, no answer in time, or a server error: worth another try, though the answer may be lost.
    #[error("Forgejo does not answer now")]
    NotNow,
}

impl Forgejo {
    /// Asks for a fresh pair.
    pub async fn refresh(&self, application: &Application, refresh: &UpstreamToken) -> Result<Pair, RefreshError> {
        #[derive(Deserialize)]
        struct Answer {
            access_token: UpstreamToken,
            refresh_token: UpstreamToken,
            expires_in: u64,
        }
        #[derive(Deserialize)]
        struct Refusal {
            error: String,
        }
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh.expose()),
            ("client_id", &application.client_id),
            ("client_secret", application.client_secret.expose()),
        ];
        let request = self.client.post(format!("{}/login/oauth/access_token", self.url)).form(&form);
        let response = request.send().await.map_err(|_| RefreshError::NotNow)?;
        let status = response.status();
        let text = body(response).await.ok_or(RefreshError::NotNow)?;
        if status == StatusCode::OK {
            let answer: Answer = serde_json::from_slice(&text).map_err(|_| RefreshError::NotNow)?;
            let expires_in = Duration::from_secs(answer.expires_in);
            return Ok(Pair { access: answer.access_token, refresh: answer.refresh_token, expires_in });
        }
        if status != StatusCode::BAD_REQUEST {
            return Err(RefreshError::NotNow);
        }
        let refusal: Refusal = serde_json::from_slice(&text).map_err(|_| RefreshError::NotNow)?;
        Err(match refusal.error.as_str() {
            "unauthorized_client" | "invalid_grant" => RefreshError::Refused,
            "invalid_client" => RefreshError::Misconfigured,
            _ => RefreshError::NotNow,
        })
    }
}
