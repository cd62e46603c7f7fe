//! What clients find out by themselves: the protected resource (RFC 9728) and the authorization server (RFC 8414).
//!
//! Made from configuration alone, once; no header of a request has a say.

use axum::Router;
use axum::body::Bytes;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};

use crate::auth::principal::Scopes;
use crate::oauth::config::Fetch;
use crate::oauth::keys::Algorithm;

/// How long clients and proxies may keep a document, in seconds.
const MAY_BE_CACHED: &str = "public, max-age=300";

/// The protected resource: `/mcp`.
fn resource(public_url: &str, offered: Scopes) -> Value {
    json!({
        "resource": format!("{public_url}/mcp"),
        "authorization_servers": [public_url],
        "scopes_supported": listed(offered),
        "bearer_methods_supported": ["header"],
        "resource_name": "Forgejo",
        "resource_documentation": format!("{public_url}/"),
    })
}

/// The authorization server. `offline_access` is not among the scopes: every client gets a refresh token, and those
/// that see it ask for consent each time.
fn server(public_url: &str, offered: Scopes, fetch: Fetch) -> Value {
    let mut methods = vec!["none", "client_secret_basic", "client_secret_post"];
    // A key is published with a document.
    if fetch != Fetch::Off {
        methods.push("private_key_jwt");
    }
    let mut server = json!({
        "issuer": public_url,
        "authorization_endpoint": format!("{public_url}/oauth/authorize"),
        "token_endpoint": format!("{public_url}/oauth/token"),
        "registration_endpoint": format!("{public_url}/oauth/register"),
        "revocation_endpoint": format!("{public_url}/oauth/revoke"),
        "scopes_supported": listed(offered),
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_methods_supported": methods,
        "authorization_response_iss_parameter_supported": true,
        "client_id_metadata_document_supported": fetch != Fetch::Off,
        "protected_resources": [format!("{public_url}/mcp")],
        "service_documentation": format!("{public_url}/"),
    });
    if fetch != Fetch::Off
        && let Some(members) = server.as_object_mut()
    {
        for endpoint in ["token", "revocation"] {
            members.insert(format!("{endpoint}_endpoint_auth_signing_alg_values_supported"), json!(Algorithm::NAMES));
        }
    }
    server
}

fn listed(scopes: Scopes) -> Vec<&'static str> {
    scopes.as_str().split(' ').collect()
}

/// The routes; the two documents only where there is something to offer. Below `/.well-known/` everything else is a plain
/// JSON 404: clients probe, and take a page or a 401 for an answer.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>(public_url: &str, offer: Option<(Scopes, Fetch)>) -> Router<S> {
    let mut router =
        Router::new().route("/.well-known/{*rest}", get(unknown)).route("/mcp/.well-known/{*rest}", get(unknown));
    let Some((offered, fetch)) = offer else { return router };
    let (resource, server) =
        (resource(public_url, offered).to_string(), server(public_url, offered, fetch).to_string());
    for (path, text) in [
        ("/.well-known/oauth-protected-resource", &resource),
        ("/.well-known/oauth-protected-resource/mcp", &resource),
        ("/.well-known/oauth-authorization-server", &server),
        ("/.well-known/openid-configuration", &server),
    ] {
        let text = Bytes::from(text.clone());
        router = router.route(path, get(move || async move { document(StatusCode::OK, text) }));
    }
    router
}

fn document(status: StatusCode, text: Bytes) -> Response {
    let mut response = (status, text).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static(if status == StatusCode::OK { MAY_BE_CACHED } else { "no-store" }),
    );
    response
}

async fn unknown() -> Response {
    document(StatusCode::NOT_FOUND, Bytes::from_static(br#"{"error":"not_found"}"#))
}
