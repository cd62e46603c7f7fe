//! A store with one grant, its token, and the bearer layer over it, at a time that stands still.

use std::sync::Arc;
use std::time::Duration;

use crate::auth::bearer::{Challenge, Principals};
use crate::auth::principal::{GrantId, Scopes};
use crate::auth::restriction::Restrictions;
use crate::auth::token::AccessToken;
use crate::forge::vault;
use crate::forge::vault::{Vault, vault_in};
use crate::store::{NewGrant, Store};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue};
use rand::rngs::SysRng;
use wire::clock::{Clock, UnixTime};
use wire::message::{Label, TenantId};
use wire::secret::UpstreamToken;

pub(crate) const START: UnixTime = UnixTime::from_secs(1_800_000_000);
pub(crate) const TTL: Duration = Duration::from_hours(1);
pub(crate) const UPSTREAM: &str = "the-upstream-token-of-somebody";

pub(crate) struct Fixture {
    pub(crate) principals: Principals,
    pub(crate) store: Store,
    pub(crate) vault: Arc<Vault>,
    pub(crate) clock: Clock,
    pub(crate) grant: GrantId,
    pub(crate) token: AccessToken,
}

/// A vault with a key of its own.
pub(crate) fn vault() -> Arc<Vault> {
    let dir = tempfile::tempdir().expect("a directory");
    Arc::new(vault_in(dir.path()))
}

/// A grant of a user, to be stored, and its token.
pub(crate) fn grant(vault: &Vault, id: &str, user: u64) -> (NewGrant, AccessToken) {
    let token = AccessToken::mint(&mut SysRng).expect("a token");
    let upstream = UpstreamToken::parse(UPSTREAM).expect("a token");
    let credential_id = format!("credential-{id}");
    let new = NewGrant {
        grant: GrantId::new(id),
        client_id: "cli".to_owned(),
        tenant: TenantId::new(user).expect("an id"),
        login: Label::parse(format!("user{user}")).expect("a label"),
        scopes: Scopes { write: true },
        restrictions: Restrictions::default(),
        credential: vault.seal(&upstream, &vault::access_place(&credential_id), &mut SysRng).expect("sealed"),
        credential_id,
        token: token.hash(),
        created_at: START,
        expires_at: START.plus(TTL),
    };
    (new, token)
}

pub(crate) fn principals_over(store: Store, vault: Arc<Vault>, clock: Clock) -> Principals {
    let challenge = Challenge {
        resource_metadata: Some("https://broker.example/.well-known/oauth-protected-resource/mcp".to_owned()),
        scope: "forgejo:read forgejo:write",
        is_bare: false,
    };
    Principals::new(store, vault, clock, challenge, None)
}

pub(crate) async fn fixture() -> Fixture {
    let (store, vault) = (Store::in_memory().await.expect("a store"), vault());
    let clock = Clock::manual(START);
    let (new, token) = grant(&vault, "grant-1", 1);
    store.insert_grant(&new).await.expect("stored");
    let principals = principals_over(store.clone(), Arc::clone(&vault), clock.clone());
    Fixture { principals, store, vault, clock, grant: new.grant, token }
}

/// Revokes as the operator's door does: the store first, then memory.
pub(crate) async fn revoke(store: &Store, principals: &Principals, grant: &GrantId) -> bool {
    let revoked = store.revoke_grant(grant, "operator", START).await.expect("revoked");
    principals.forget_grant(grant);
    revoked
}

pub(crate) fn authorization(values: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(AUTHORIZATION, HeaderValue::from_str(value).expect("a header"));
    }
    headers
}
