//! A stub of Forgejo 16 for tests, benchmarks and the quickstart: the API and the OAuth provider as far as the broker and
//! its children use them, with the real one's errors, counters and blind spots. It is no Forgejo and says so.
//!
//! In a test: `#[path = "support/forge.rs"] mod forge;`, then bind a listener, `Forge::new(Clock::manual(…))`,
//! `tokio::spawn(forge::serve(listener, forge.clone()))`, and `forge.with(|state| …)` or the control API under `/stub/`.

use std::future::ready;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State as Extract};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

mod accounts;
mod api;
mod authorize;
mod control;
mod oauth;
pub mod state;

pub use state::Forge;

/// Serves `forge` on `listener` until dropped. The root URL becomes `http://<the listener's address>`.
pub async fn serve(listener: TcpListener, forge: Forge) -> std::io::Result<()> {
    let root = format!("http://{}", listener.local_addr()?);
    forge.with(|state| state.root = root);
    let misbehaving = api::routes()
        .merge(accounts::routes())
        .merge(oauth::routes())
        .merge(authorize::routes())
        .route("/", get(|| ready("This is stub-forgejo, a stand-in for tests. It is not Forgejo.\n")))
        .layer(from_fn_with_state(forge.clone(), misbehave));
    let router: Router =
        misbehaving.merge(control::routes()).layer(axum::middleware::map_response(label)).with_state(forge);
    axum::serve(listener, router).await
}

/// Notes the request, then does to it what the mode says.
async fn misbehave(Extract(forge): Extract<Forge>, request: Request, next: Next) -> Response {
    let (fail, user) = forge.with(|state| {
        let user = api::caller(state, request.headers(), request.uri()).ok().flatten();
        let user = user.and_then(|caller| state.user(caller.user)).map(|user| (user.id, user.login.clone()));
        let (id, login) = user.unzip();
        let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
        let (mode, is_api) = (state.mode, path.starts_with("/api/"));
        let fails = mode.fail_api && is_api || mode.fail_memberships && path == state::MEMBERSHIPS;
        let about = path.strip_prefix("/api/v1/users/").and_then(|login| state.user_by_login(login));
        let them = [id, about.map(|user| user.id)];
        let fails_them = is_api && mode.fail_api_of.is_some() && them.contains(&mode.fail_api_of);
        state.requests.push(state::Seen { method, path, user: login });
        (mode.fail.or_else(|| fails.then_some(502)).or_else(|| fails_them.then_some(500)), id)
    });
    forge.unhung(request.uri().path(), user).await;
    if let Some(status) = fail {
        return StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY).into_response();
    }
    next.run(request).await
}

/// Every answer says whose it is.
async fn label(mut response: Response) -> Response {
    response.headers_mut().insert(header::SERVER, HeaderValue::from_static("stub-forgejo"));
    response
}

/// An answer that breaks off: to the client the same as a connection lost before it.
fn lost() -> Response {
    let broken = futures_util::stream::once(ready(Err::<String, _>(std::io::Error::other("lost on purpose"))));
    Response::new(Body::from_stream(broken))
}
