//! Forgejo, as the broker speaks to it: who does this token belong to?
//!
//! Forgejo's answers are read as far as needed and never quoted: since version 16 the body of its 401 repeats the
//! whole token.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, DATE};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

use crate::chain::chain;
use crate::forge::access::names::NamedAccount;
use crate::metrics::{Metrics, Upstream};
use wire::clock::UnixTime;
use wire::message::{Label, TenantId};
use wire::secret::UpstreamToken;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// For a look whether it is there: a person waits.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of an answer that are read. A user has about one KiB.
const MAX_ANSWER: usize = 256 * 1024;
/// What most answers have at most.
const USUAL_ANSWER: usize = 8 * 1024;

/// Why Forgejo did not say who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// No connection, or no answer in time.
    #[error("Forgejo cannot be reached")]
    Unreachable,
    /// 401: expired, revoked or never valid.
    #[error("Forgejo does not accept the token")]
    BadToken,
    /// 403: the token lacks the scope `read:user`, or the account is deactivated or may not log in.
    #[error("Forgejo forbids it: the token needs the scope read:user, and the account must be active")]
    Forbidden,
    /// Another status.
    #[error("Forgejo answered with status {0}")]
    Status(u16),
    /// Not what Forgejo answers there.
    #[error("Forgejo's answer is not what was asked for")]
    NotUnderstood,
    /// A list has more entries than are read.
    #[error("Forgejo's list is too long")]
    TooMany,
}

impl UpstreamError {
    /// Whether Forgejo as a whole does not answer now, whoever is asked about.
    pub(crate) fn is_an_outage(self) -> bool {
        match self {
            Self::Unreachable => true,
            Self::Status(status) => status >= 500 || status == 429,
            Self::BadToken | Self::Forbidden | Self::NotUnderstood | Self::TooMany => false,
        }
    }
}

/// The parts of a Forgejo user that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForgejoUser {
    /// Never changes.
    pub(crate) id: TenantId,
    /// May change.
    pub(crate) login: Label,
    /// When the account was made. With the number it tells the account from one that was given the same number later.
    pub(crate) created: UnixTime,
    /// Sees only what they were given explicitly.
    pub(crate) restricted: bool,
    /// Deactivated, or not allowed to log in. Forgejo's API refuses them already; this is the second lock.
    pub(crate) locked: bool,
}

/// Who answers at Forgejo's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UpstreamLook {
    /// Forgejo, of this version.
    Forgejo(String),
    /// Forgejo, which asks everybody to sign in first.
    SignIn,
    /// Something else.
    Other {
        /// Its status.
        status: u16,
        /// The media type of what it says.
        what: String,
    },
    /// Nobody, and why.
    Unreachable(String),
}

/// The HTTP client could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client cannot be made")]
pub(crate) struct ClientError(#[from] reqwest::Error);

/// One Forgejo instance. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Forgejo {
    pub(crate) client: Client,
    pub(crate) api_url: String,
    /// For browsers and people.
    pub(crate) url: String,
    pub(crate) metrics: Option<Metrics>,
}

impl Forgejo {
    /// The instance at `url`, without a trailing slash.
    pub(crate) fn new(url: &str) -> Result<Self, ClientError> {
        // The first provider in a process stays; a second call finds the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("forgejo-mcp-broker/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            // A redirect would carry the token to another place.
            .redirect(Policy::none())
            .build()?;
        Ok(Self { client, api_url: url.to_owned(), url: url.to_owned(), metrics: None })
    }

    /// Browsers find the instance there, without a trailing slash, and not where the broker does.
    #[must_use]
    pub(crate) fn with_public_url(self, public_url: &str) -> Self {
        Self { url: public_url.to_owned(), ..self }
    }

    /// Counts and times what is asked.
    #[must_use]
    pub(crate) fn measured(self, metrics: Metrics) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    /// Sends a request, which is counted and timed.
    pub(crate) async fn send(&self, endpoint: Upstream, request: RequestBuilder) -> reqwest::Result<Response> {
        let asked = Instant::now();
        let answered = request.send().await;
        if let Some(metrics) = &self.metrics {
            // Its word about a token is an answer too.
            let good = answered.as_ref().is_ok_and(|response| !response.status().is_server_error());
            metrics.upstream_answered(endpoint, good, asked.elapsed());
        }
        answered
    }

    /// Whose token this is. The only endpoint that notices a deactivated account is the API itself, so this is also
    /// the check that the account is still good.
    pub(crate) async fn whoami(&self, token: &UpstreamToken) -> Result<ForgejoUser, UpstreamError> {
        #[derive(Deserialize)]
        struct User {
            id: u64,
            login: String,
            created: String,
            #[serde(default)]
            restricted: bool,
            active: Option<bool>,
            #[serde(default)]
            prohibit_login: bool,
        }
        let text = self.api("/api/v1/user", token).await?;
        let user: User = serde_json::from_slice(&text).map_err(|_| UpstreamError::NotUnderstood)?;
        Ok(ForgejoUser {
            id: TenantId::new(user.id).map_err(|_| UpstreamError::NotUnderstood)?,
            login: Label::parse(user.login).map_err(|_| UpstreamError::NotUnderstood)?,
            created: time_of(&user.created)?,
            restricted: user.restricted,
            locked: user.prohibit_login || user.active == Some(false),
        })
    }

    /// Whose a login is, as Forgejo tells strangers; `None` where it tells them of nobody: there is no such login, its
    /// account has another one now, or is not shown to all.
    pub(crate) async fn user_named(&self, login: &str) -> Result<Option<NamedAccount>, UpstreamError> {
        #[derive(Deserialize)]
        struct User {
            id: u64,
            login: String,
            created: String,
        }
        let mut url = Url::parse(&self.api_url).map_err(|_| UpstreamError::Unreachable)?;
        url.path_segments_mut()
            .map_err(|()| UpstreamError::Unreachable)?
            .pop_if_empty()
            .extend(["api", "v1", "users", login]);
        let request = self.client.get(url).timeout(PROBE_TIMEOUT);
        let response = self.send(Upstream::Api, request).await.map_err(|_| UpstreamError::Unreachable)?;
        match response.status() {
            StatusCode::OK => {}
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Err(UpstreamError::Status(status.as_u16()));
            }
            // A redirect is to the login that its account has now.
            _ => return Ok(None),
        }
        let text = body(response).await.ok_or(UpstreamError::Unreachable)?;
        let user: User = serde_json::from_slice(&text).map_err(|_| UpstreamError::NotUnderstood)?;
        if !user.login.eq_ignore_ascii_case(login) {
            return Ok(None);
        }
        let tenant = TenantId::new(user.id).map_err(|_| UpstreamError::NotUnderstood)?;
        Ok(Some(NamedAccount { tenant, created: time_of(&user.created)? }))
    }

    /// What the API answers to GET with this token.
    pub(crate) async fn api(&self, path: &str, token: &UpstreamToken) -> Result<Zeroizing<Vec<u8>>, UpstreamError> {
        let request = self.client.get(format!("{}{path}", self.api_url)).bearer_auth(token.expose());
        let response = self.send(Upstream::Api, request).await.map_err(|_| UpstreamError::Unreachable)?;
        match response.status() {
            StatusCode::OK => body(response).await.ok_or(UpstreamError::Unreachable),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                // Connections end because of this, so it must be Forgejo's own word and not that of something in
                // between. Only the shape is looked at; the text repeats the token.
                let is_forgejos = body(response).await.is_some_and(|text| is_refusal(&text));
                Err(match status {
                    StatusCode::UNAUTHORIZED if is_forgejos => UpstreamError::BadToken,
                    StatusCode::FORBIDDEN if is_forgejos => UpstreamError::Forbidden,
                    other => UpstreamError::Status(other.as_u16()),
                })
            }
            other => Err(UpstreamError::Status(other.as_u16())),
        }
    }

    /// Whether it answers at all now. Any answer that is no server's error will do: an instance may ask everybody to
    /// sign in before it tells even its version.
    pub(crate) async fn answers(&self) -> bool {
        let request = self.client.get(format!("{}/api/v1/version", self.api_url)).timeout(PROBE_TIMEOUT);
        self.send(Upstream::Api, request).await.is_ok_and(|response| !response.status().is_server_error())
    }

    /// Who answers at its address, and what time it is there, for an operator who looks for what is wrong.
    pub(crate) async fn look(&self) -> (UpstreamLook, Option<UnixTime>) {
        #[derive(Deserialize)]
        struct Version {
            version: String,
        }
        let request = self.client.get(format!("{}/api/v1/version", self.api_url)).timeout(PROBE_TIMEOUT);
        let response = match self.send(Upstream::Api, request).await {
            Ok(response) => response,
            Err(e) => return (UpstreamLook::Unreachable(chain(&e.without_url())), None),
        };
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let date = header(DATE).and_then(|date| httpdate::parse_http_date(date).ok());
        let date = date.and_then(|date| i64::try_from(date.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok());
        let status = response.status();
        // A media type is told, and no word of the text.
        let kind: String = header(CONTENT_TYPE).unwrap_or("nothing").chars().take(60).collect();
        let text = body(response).await.unwrap_or_default();
        let look = match (status, serde_json::from_slice::<Version>(&text)) {
            (StatusCode::OK, Ok(Version { version })) => {
                UpstreamLook::Forgejo(version.chars().filter(|c| !c.is_control()).take(60).collect())
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) if is_refusal(&text) => UpstreamLook::SignIn,
            _ => UpstreamLook::Other { status: status.as_u16(), what: kind },
        };
        (look, date.map(UnixTime::from_secs))
    }

    /// The public keys that it signs tokens with, as JSON (RFC 7517); open to all. `None` where it does not tell.
    pub(crate) async fn signing_keys(&self) -> Option<Zeroizing<Vec<u8>>> {
        let request = self.client.get(format!("{}/login/oauth/keys", self.api_url)).timeout(PROBE_TIMEOUT);
        body(request.send().await.ok().filter(|response| response.status() == StatusCode::OK)?).await
    }

    /// Where a browser goes to log in.
    pub(crate) fn authorize_url(&self, query: &[(&str, &str)]) -> String {
        let query: String = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        format!("{}/login/oauth/authorize?{query}", self.url)
    }

    /// The instance's address for people and their browsers.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The address under which the broker asks it.
    pub(crate) fn api_url(&self) -> &str {
        &self.api_url
    }
}

/// A time, with whatever offset the forge's own time zone has (RFC 3339).
fn time_of(text: &str) -> Result<UnixTime, UpstreamError> {
    let parsed = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| UpstreamError::NotUnderstood)?;
    Ok(UnixTime::from_secs(parsed.unix_timestamp()))
}

/// Whether this is how Forgejo's API says no: a JSON object with a `message`.
fn is_refusal(text: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(rename = "message")]
        _message: serde::de::IgnoredAny,
    }
    serde_json::from_slice::<Refusal>(text).is_ok()
}

/// The body of an answer; `None` where it breaks off or goes beyond [`MAX_ANSWER`]. Cleared when it is dropped: answers
/// hold tokens, and Forgejo's refusals repeat them.
pub(crate) async fn body(mut response: Response) -> Option<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::with_capacity(USUAL_ANSWER));
    while let Some(chunk) = response.chunk().await.ok()? {
        if text.len().saturating_add(chunk.len()) > MAX_ANSWER {
            return None;
        }
        append(&mut text, &chunk);
    }
    Some(text)
}

/// Appends without leaving a copy behind where the text has to move.
fn append(text: &mut Zeroizing<Vec<u8>>, more: &[u8]) {
    let needed = text.len().saturating_add(more.len());
    if needed > text.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(needed.saturating_mul(2)));
        larger.extend_from_slice(text);
        // The smaller one is cleared here.
        *text = larger;
    }
    text.extend_from_slice(more);
}

/// A form as the body of a request, cleared when it is dropped.
pub(crate) fn form<'a>(fields: impl IntoIterator<Item = &'a (&'a str, &'a str)>) -> Bytes {
    let fields: Vec<_> = fields.into_iter().collect();
    // No byte becomes more than three; the text never moves.
    let length = |text: &str| text.len().saturating_mul(3).saturating_add(1);
    let length = fields.iter().map(|(name, value)| length(name).saturating_add(length(value))).sum();
    let mut text = form_urlencoded::Serializer::new(String::with_capacity(length));
    text.extend_pairs(fields.into_iter().copied());
    Bytes::from_owner(Zeroizing::new(text.finish().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_moves_stays_the_same() {
        let mut text = Zeroizing::new(Vec::with_capacity(2));
        for n in 0..200_u8 {
            append(&mut text, &[n, n]);
        }
        assert_eq!(*text, (0..200).flat_map(|n| [n, n]).collect::<Vec<u8>>());
    }

    #[test]
    fn a_form_is_encoded_as_forms_are() {
        let text = form(&[("grant_type", "refresh_token"), ("refresh_token", "a+b/c=&\u{e4}")]);
        assert_eq!(&*text, b"grant_type=refresh_token&refresh_token=a%2Bb%2Fc%3D%26%C3%A4");
    }
}
