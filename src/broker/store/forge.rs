//! Which forge all of this belongs to, and when Forgejo last said whose a token is.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::store::{Store, StoreError};
use wire::clock::UnixTime;

/// SHA-256 of a Forgejo access token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint(pub(crate) [u8; 32]);

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fingerprint")
    }
}

/// When Forgejo last said that a token is its user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OwnerCheck {
    /// Of that very token.
    pub(crate) token: Fingerprint,
    /// When.
    pub(crate) at: UnixTime,
}

/// A credential whose account Forgejo is to be asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UncheckedCredential {
    /// Names it.
    pub(crate) id: String,
    /// When an access token ends that will be refreshed.
    pub(crate) refreshed_before: Option<UnixTime>,
}

/// The forge, as it was when it was noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownForge {
    /// Its address in the configuration.
    pub(crate) url: String,
    /// A digest of the keys that it signs tokens with; none while it has not told.
    pub(crate) signing_keys: Option<String>,
}

const READING: &str = "reading when a token was checked";

impl Store {
    /// The forge that this database belongs to; `None` in a new one.
    pub(crate) async fn known_forge(&self) -> Result<Option<KnownForge>, StoreError> {
        const WHAT: &str = "reading which forge this is";
        let row = sqlx::query("SELECT url, signing_keys FROM forge WHERE id = 1").fetch_optional(self.readers()).await;
        let Some(row) = row.map_err(StoreError::query(WHAT))? else { return Ok(None) };
        Ok(Some(KnownForge {
            url: row.try_get("url").map_err(StoreError::query(WHAT))?,
            signing_keys: row.try_get("signing_keys").map_err(StoreError::query(WHAT))?,
        }))
    }

    /// Notes the forge in place of whatever was noted.
    pub(crate) async fn note_forge(&self, forge: &KnownForge, now: UnixTime) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "INSERT INTO forge (id, url, signing_keys, noted_at) VALUES (1, $1, $2, $3) ON CONFLICT (id) DO UPDATE SET \
             url = excluded.url, signing_keys = excluded.signing_keys, noted_at = excluded.noted_at",
        )
        .bind(&forge.url)
        .bind(&forge.signing_keys)
        .bind(now.secs());
        self.writer().execute("noting which forge this is", statement).await?;
        Ok(())
    }

    /// When a credential's token was last found to be its user's.
    pub(crate) async fn owner_check(&self, credential: &str) -> Result<Option<OwnerCheck>, StoreError> {
        let row = sqlx::query("SELECT checked_token, checked_at FROM upstream_credentials WHERE id = $1")
            .bind(credential)
            .fetch_optional(self.readers())
            .await
            .map_err(StoreError::query(READING))?;
        let Some(row) = row else { return Ok(None) };
        let token: Option<Vec<u8>> = row.try_get("checked_token").map_err(StoreError::query(READING))?;
        let at: Option<i64> = row.try_get("checked_at").map_err(StoreError::query(READING))?;
        let token = token.and_then(|token| token.try_into().ok()).map(Fingerprint);
        Ok(token.zip(at.map(UnixTime::from_secs)).map(|(token, at)| OwnerCheck { token, at }))
    }

    /// Notes that a token was found to be its user's, and that Forgejo lets them in.
    pub(crate) async fn note_owner_check(&self, credential: &str, check: OwnerCheck) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "UPDATE upstream_credentials SET checked_token = $1, checked_at = $2, barred_since = NULL WHERE id = $3",
        )
        .bind(check.token.0.as_slice())
        .bind(check.at.secs())
        .bind(credential);
        self.writer().execute("noting a check", statement).await?;
        Ok(())
    }

    /// The same once more of a token of which it was noted `before`, unless something else was noted since.
    pub(crate) async fn renew_owner_check(
        &self,
        credential: &str,
        before: OwnerCheck,
        check: OwnerCheck,
    ) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "UPDATE upstream_credentials SET checked_at = $1, barred_since = NULL \
             WHERE id = $2 AND checked_token = $3 AND checked_at = $4",
        )
        .bind(check.at.secs())
        .bind(credential)
        .bind(before.token.0.as_slice())
        .bind(before.at.secs());
        self.writer().execute("noting a check once more", statement).await?;
        Ok(())
    }

    /// Lets a credential's check count as long ago: it is looked at again soon.
    pub(crate) async fn age_owner_check(&self, credential: &str) -> Result<(), StoreError> {
        let statement = sqlx::query("UPDATE upstream_credentials SET checked_at = 0 WHERE checked_at > 0 AND id = $1")
            .bind(credential);
        self.writer().execute("noting that a token must be checked", statement).await?;
        Ok(())
    }

    /// The same of all: whoever is connected is looked at again.
    pub(crate) async fn age_owner_checks(&self) -> Result<(), StoreError> {
        let statement = sqlx::query("UPDATE upstream_credentials SET checked_at = 0 WHERE checked_at > 0");
        self.writer().execute("noting that all tokens must be checked", statement).await?;
        Ok(())
    }

    /// Credentials that a live grant needs and that were last checked before `before`, the longest ago first.
    pub(crate) async fn credentials_unchecked_since(
        &self,
        before: UnixTime,
    ) -> Result<Vec<UncheckedCredential>, StoreError> {
        const WHAT: &str = "reading the credentials";
        let query = sqlx::query(
            "SELECT id, CASE WHEN refresh_sealed IS NOT NULL THEN access_expires_at END AS refreshed_before \
             FROM upstream_credentials c WHERE (checked_at IS NULL OR checked_at < $1) AND is_shown = 0 AND EXISTS \
             (SELECT 1 FROM grants g WHERE g.credential_id = c.id AND g.revoked_at IS NULL) \
             ORDER BY COALESCE(checked_at, 0)",
        );
        let unchecked = |row: &SqliteRow| {
            let ends: Option<i64> = row.try_get("refreshed_before").map_err(StoreError::query(WHAT))?;
            let id = row.try_get("id").map_err(StoreError::query(WHAT))?;
            Ok(UncheckedCredential { id, refreshed_before: ends.map(UnixTime::from_secs) })
        };
        self.read_each(WHAT, query.bind(before.secs()), unchecked).await
    }
}
