//! Forgejo's token endpoint, for both of its grant types.
//!
//! Forgejo counts: each answer makes every earlier refresh token of the user and this application worthless, so an
//! answer that is lost on the way may have burnt the one that is stored. All its errors are 400 with a JSON body; what
//! they mean was seen on a real one.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;

use crate::forge::api;
use crate::forge::api::{Forgejo, body};
use crate::forge::application::Application;
use crate::forge::scopes::effective;
use crate::metrics::Upstream;
use wire::secret::UpstreamToken;

const FORM: &str = "application/x-www-form-urlencoded";

/// A fresh pair.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The access token.
    pub(crate) access: UpstreamToken,
    /// The refresh token that replaces every earlier one.
    pub(crate) refresh: UpstreamToken,
    /// How long the access token is good for.
    pub(crate) expires_in: Duration,
}

/// Why there is no fresh pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PairError {
    /// The code or the refresh token is worthless: used, expired, revoked, or the user is gone. Only a login helps.
    #[error("Forgejo refuses it for good")]
    Refused,
    /// Forgejo does not know the broker's application or its secret. Every user would be refused, so nobody is.
    #[error("Forgejo does not accept the broker's own client id or secret: check [forgejo] in the configuration")]
    Misconfigured,
    /// Not reachable, no answer in time, or a server error: worth another try, though the answer may be lost.
    #[error("Forgejo does not answer now")]
    NotNow,
}

impl PairError {
    /// The stable name that the metrics use.
    const fn code(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Misconfigured => "misconfigured",
            Self::NotNow => "not-now",
        }
    }
}

/// What comes back from a login at Forgejo.
#[derive(Debug)]
pub(crate) struct AuthorizationAnswer {
    /// Forgejo's code.
    pub(crate) code: String,
    /// PKCE's verifier (RFC 7636).
    pub(crate) verifier: String,
    /// The redirect address of the authorization request, again.
    pub(crate) redirect: String,
}

impl Forgejo {
    /// Exchanges a refresh token.
    pub(crate) async fn refresh(&self, application: &Application, refresh: &UpstreamToken) -> Result<Pair, PairError> {
        let form = [("grant_type", "refresh_token"), ("refresh_token", refresh.expose())];
        let refreshed = self.pair(application, &form).await;
        if let Some(metrics) = &self.metrics {
            metrics.token_refreshed(refreshed.as_ref().map_or_else(|error| error.code(), |_| "ok"));
        }
        refreshed
    }

    /// Exchanges the code of a login.
    pub(crate) async fn exchange(
        &self,
        application: &Application,
        answer: &AuthorizationAnswer,
    ) -> Result<Pair, PairError> {
        let form = [
            ("grant_type", "authorization_code"),
            ("code", &answer.code),
            ("code_verifier", &answer.verifier),
            ("redirect_uri", &answer.redirect),
        ];
        self.pair(application, &form).await
    }

    /// The scopes that Forgejo holds a token to: those of the user's first login through this application, whatever is
    /// asked for now. `None` where it does not say.
    pub(crate) async fn granted_scopes(
        &self,
        application: &Application,
        access: &UpstreamToken,
    ) -> Option<Vec<String>> {
        #[derive(Deserialize)]
        struct Introspected {
            active: bool,
            scope: Option<String>,
        }
        let Application { client_id, client_secret, .. } = application;
        let request = self.client.post(format!("{}/login/oauth/introspect", self.api_url));
        let request = request.basic_auth(client_id, Some(client_secret.expose())).header(CONTENT_TYPE, FORM);
        let request = request.body(api::form(&[("token", access.expose())]));
        let response = request.send().await.ok().filter(|response| response.status() == StatusCode::OK)?;
        let told: Introspected = serde_json::from_slice(&body(response).await?).ok()?;
        told.scope.filter(|_| told.active).map(|scope| effective(&scope))
    }

    /// Whether Forgejo knows this application and its secret. Introspection is what it answers to nobody else.
    pub(crate) async fn knows(&self, application: &Application) -> bool {
        let Application { client_id, client_secret, .. } = application;
        let request = self.client.post(format!("{}/login/oauth/introspect", self.api_url));
        let request = request.basic_auth(client_id, Some(client_secret.expose())).header(CONTENT_TYPE, FORM);
        let answered = self.send(Upstream::Token, request.body(api::form(&[("token", "none")]))).await;
        answered.is_ok_and(|response| response.status() == StatusCode::OK)
    }

    async fn pair(&self, application: &Application, form: &[(&str, &str)]) -> Result<Pair, PairError> {
        #[derive(Deserialize)]
        struct Granted {
            access_token: UpstreamToken,
            refresh_token: UpstreamToken,
            expires_in: u64,
        }
        #[derive(Deserialize)]
        struct Refusal {
            error: String,
            #[serde(default)]
            error_description: String,
        }
        let client = [("client_id", &*application.client_id), ("client_secret", application.client_secret.expose())];
        let request = self.client.post(format!("{}/login/oauth/access_token", self.api_url));
        let request = request.header(CONTENT_TYPE, FORM).body(api::form(form.iter().chain(&client)));
        let response = self.send(Upstream::Token, request).await.map_err(|_| PairError::NotNow)?;
        let status = response.status();
        let text = body(response).await.ok_or(PairError::NotNow)?;
        if status == StatusCode::OK {
            let granted: Granted = serde_json::from_slice(&text).map_err(|_| PairError::NotNow)?;
            let expires_in = Duration::from_secs(granted.expires_in);
            return Ok(Pair { access: granted.access_token, refresh: granted.refresh_token, expires_in });
        }
        if status != StatusCode::BAD_REQUEST {
            return Err(PairError::NotNow);
        }
        let refusal: Refusal = serde_json::from_slice(&text).map_err(|_| PairError::NotNow)?;
        Err(match refusal.error.as_str() {
            // With a code, a wrong secret is called this too; only the description tells.
            "unauthorized_client" if refusal.error_description.contains("client secret") => PairError::Misconfigured,
            "unauthorized_client" | "invalid_grant" => PairError::Refused,
            "invalid_client" => PairError::Misconfigured,
            _ => PairError::NotNow,
        })
    }
}
