//! Who is asking: the outcome of a good bearer token.
//!
//! Put into the extensions of a request by the bearer layer, and by tests. Everything behind that layer trusts it
//! and asks nothing else about identity.

use std::sync::Arc;

use crate::auth::restriction::Restrictions;
use wire::clock::UnixTime;
use wire::message::{Label, TenantId};
use wire::secret::UpstreamToken;

/// The token family that one user gave one client. Refreshing keeps it, revoking ends it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GrantId(Arc<str>);

impl GrantId {
    /// From the text that the store keeps; it holds no secret.
    pub(crate) fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for GrantId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A user by way of one client, with one Forgejo credential: what a session belongs to. A client that logs the same user
/// in again, or steps up, gets another grant and stays the same holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The user.
    pub(crate) tenant: TenantId,
    /// The client.
    pub(crate) client_id: Arc<str>,
    /// Names the upstream credential. A child has one, so grants with another one (two tokens of the operator's, say)
    /// share none.
    pub(crate) credential: Arc<str>,
}

/// A grant's place among those of one holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    /// When it was given.
    pub(crate) at: UnixTime,
    /// Which.
    pub(crate) grant: GrantId,
}

impl Given {
    /// Whether what belonged to `earlier` belongs to this one from now on. Two of the same second follow each other in
    /// either order.
    pub(crate) fn follows(&self, earlier: &Self) -> bool {
        self.grant != earlier.grant && self.at >= earlier.at
    }
}

/// What a grant allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scopes {
    /// `forgejo:write`: everything. Without it `forgejo:read`: tools that only read.
    pub(crate) write: bool,
}

impl Scopes {
    /// The scope that allows reading; every grant has it.
    pub(crate) const READ: &'static str = "forgejo:read";
    /// The scope that allows writing; it includes reading.
    pub(crate) const WRITE: &'static str = "forgejo:write";

    /// Parses a space-separated list (RFC 6749 section 3.3); unknown scopes are dropped.
    pub(crate) fn parse(list: &str) -> Self {
        Self { write: list.split(' ').any(|s| s == Self::WRITE) }
    }

    /// The space-separated list.
    pub(crate) const fn as_str(self) -> &'static str {
        if self.write { "forgejo:read forgejo:write" } else { Self::READ }
    }
}

/// An authenticated caller. Cheap to clone: it is shared by the bearer layer's table and every request.
#[derive(Debug, Clone)]
pub(crate) struct Principal(Arc<PrincipalParts>);

/// The fields of a [`Principal`].
#[derive(Debug)]
pub(crate) struct PrincipalParts {
    /// The OAuth client, or the name given to `brokerctl token create --client`.
    pub(crate) client_id: Arc<str>,
    /// Names the user's Forgejo credential.
    pub(crate) credential: Arc<str>,
    /// Forgejo's id of the user; decides the uid.
    pub(crate) tenant: TenantId,
    /// Forgejo's login; for people only.
    pub(crate) login: Label,
    /// The user's Forgejo token, for the child's environment.
    pub(crate) upstream: UpstreamToken,
    /// When that token ends, where it does. Of two of a grant's tokens the one that ends later is the newer.
    pub(crate) upstream_ends: Option<UnixTime>,
    /// Whether the caller shows that token themselves, so that nobody else has it.
    pub(crate) is_shown: bool,
    /// What the grant allows.
    pub(crate) scopes: Scopes,
    /// What it is held to besides.
    pub(crate) restrictions: Restrictions,
    /// The token family.
    pub(crate) grant: GrantId,
    /// When the grant was given.
    pub(crate) granted_at: UnixTime,
}

impl Principal {
    /// Wraps the parts.
    pub(crate) fn new(parts: PrincipalParts) -> Self {
        Self(Arc::new(parts))
    }

    /// What this caller's sessions belong to.
    pub(crate) fn holder(&self) -> Holder {
        let PrincipalParts { tenant, client_id, credential, .. } = &**self;
        Holder { tenant: *tenant, client_id: Arc::clone(client_id), credential: Arc::clone(credential) }
    }

    /// The caller's grant among those of the same holder.
    pub(crate) fn given(&self) -> Given {
        Given { at: self.granted_at, grant: self.grant.clone() }
    }
}

impl std::ops::Deref for Principal {
    type Target = PrincipalParts;
    fn deref(&self) -> &PrincipalParts {
        &self.0
    }
}
