//! How the endpoints for programs say no (RFC 6749 section 5.2, RFC 7591 section 3.2.2): JSON, never cached.

use axum::Json;
use axum::http::header::{CACHE_CONTROL, PRAGMA, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::error;

use crate::auth::rates::TooMany;
use crate::auth::token::NoRandomness;
use crate::chain::chain;
use crate::oauth::assertion::AssertionError;
use crate::store::StoreError;

/// A refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OAuthError {
    /// 400 with a registered code.
    Bad(&'static str, &'static str),
    /// 415: `invalid_request`, because of the body's media type.
    MediaType(&'static str),
    /// 401: the client is unknown or its secret is wrong. With Basic in the request the answer must name it.
    Client {
        /// Whether the client used the `Authorization` header.
        basic: bool,
    },
    /// 401: the client does not show that it has its key.
    Assertion(AssertionError),
    /// 429.
    TooMany(TooMany),
    /// 503: nothing was changed, the same request may be sent again.
    NotNow,
}

impl OAuthError {
    /// The code, the token or its family are worthless to this client.
    pub(crate) const fn invalid_grant(description: &'static str) -> Self {
        Self::Bad("invalid_grant", description)
    }

    /// The request is not one.
    pub(crate) const fn invalid_request(description: &'static str) -> Self {
        Self::Bad("invalid_request", description)
    }

    /// Whether it counts against the limit of those who only guess.
    pub(crate) fn is_a_guess(self) -> bool {
        matches!(self, Self::Bad("invalid_grant", _) | Self::Client { .. } | Self::Assertion(_))
    }
}

impl From<AssertionError> for OAuthError {
    fn from(e: AssertionError) -> Self {
        Self::Assertion(e)
    }
}

impl From<StoreError> for OAuthError {
    fn from(e: StoreError) -> Self {
        error!(error = %e, cause = ?std::error::Error::source(&e), "an OAuth request failed: {}", chain(&e));
        Self::NotNow
    }
}

impl From<NoRandomness> for OAuthError {
    fn from(e: NoRandomness) -> Self {
        error!(error = %e, "an OAuth request failed: {}", chain(&e));
        Self::NotNow
    }
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            error: &'static str,
            error_description: &'a str,
        }
        let said;
        let (status, error, error_description) = match self {
            Self::Bad(error, description) => (StatusCode::BAD_REQUEST, error, description),
            Self::MediaType(description) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request", description),
            Self::Client { .. } => {
                (StatusCode::UNAUTHORIZED, "invalid_client", "the client is not known here, or its secret is wrong")
            }
            Self::Assertion(e) => {
                said = e.to_string();
                (StatusCode::UNAUTHORIZED, "invalid_client", said.as_str())
            }
            Self::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "temporarily_unavailable", "too many requests"),
            Self::NotNow => (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", "try the same request again"),
        };
        let mut response = (status, Json(Body { error, error_description })).into_response();
        uncached(&mut response);
        let headers = response.headers_mut();
        match self {
            Self::Client { basic: true } => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"forgejo-mcp-broker\""));
            }
            Self::TooMany(TooMany { seconds }) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            Self::NotNow => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("5"));
            }
            Self::Bad(..) | Self::MediaType(_) | Self::Assertion(_) | Self::Client { basic: false } => {}
        }
        response
    }
}

/// Marks an answer that holds secrets (RFC 6749 section 5.1).
pub(crate) fn uncached(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
}
