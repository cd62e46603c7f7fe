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

/// The round of checks that counts now.
macro_rules! round {
    () => {
        "(SELECT round FROM check_rounds WHERE id = 1)"
    };
}
pub(super) use round;

/// When a credential's token was checked, as far as that counts: in an earlier round it was long ago.
macro_rules! checked_at {
    () => {
        concat!("CASE WHEN checked_at IS NULL OR checked_round = ", round!(), " THEN checked_at ELSE 0 END")
    };
}

/// Credentials that a live grant needs and that were last checked before `$1`, as two columns of [`UncheckedCredential`].
const UNCHECKED: &str = concat!(
    "SELECT id, CASE WHEN refresh_sealed IS NOT NULL THEN access_expires_at END AS refreshed_before \
     FROM upstream_credentials c WHERE (checked_round, checked_at) < (",
    round!(),
    ", $1) AND is_shown = 0 AND EXISTS \
     (SELECT 1 FROM grants g WHERE g.credential_id = c.id AND g.revoked_at IS NULL) \
     ORDER BY checked_round, checked_at"
);

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
        let row = sqlx::query(concat!(
            "SELECT checked_token, ",
            checked_at!(),
            " AS checked_at FROM upstream_credentials WHERE id = $1"
        ))
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
        let statement = sqlx::query(concat!(
            "UPDATE upstream_credentials SET checked_token = $1, checked_at = $2, barred_since = NULL, checked_round = ",
            round!(),
            " WHERE id = $3"
        ))
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
        let statement = sqlx::query(concat!(
            "UPDATE upstream_credentials SET checked_at = $1, barred_since = NULL, checked_round = ",
            round!(),
            " WHERE id = $2 AND checked_token = $3 AND $4 = ",
            checked_at!()
        ))
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

    /// The same of all, by another round: whoever is connected is looked at again.
    pub(crate) async fn age_owner_checks(&self) -> Result<(), StoreError> {
        const WHAT: &str = "noting that all tokens must be checked";
        let statement = sqlx::query("UPDATE check_rounds SET round = round + 1 WHERE id = 1");
        let done = self.writer().execute(WHAT, statement).await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Damaged(WHAT)) }
    }

    /// Credentials that a live grant needs and that were last checked before `before`, the longest ago first.
    pub(crate) async fn credentials_unchecked_since(
        &self,
        before: UnixTime,
    ) -> Result<Vec<UncheckedCredential>, StoreError> {
        const WHAT: &str = "reading the credentials";
        let query = sqlx::query(UNCHECKED);
        let unchecked = |row: &SqliteRow| {
            let ends: Option<i64> = row.try_get("refreshed_before").map_err(StoreError::query(WHAT))?;
            let id = row.try_get("id").map_err(StoreError::query(WHAT))?;
            Ok(UncheckedCredential { id, refreshed_before: ends.map(UnixTime::from_secs) })
        };
        self.read_each(WHAT, query.bind(before.secs()), unchecked).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::identity::fixture::{START, fixture, grant};

    const TOKEN: Fingerprint = Fingerprint([7; 32]);

    async fn unchecked(store: &Store) -> Vec<String> {
        let unchecked = store.credentials_unchecked_since(START).await.expect("read");
        unchecked.into_iter().map(|credential| credential.id).collect()
    }

    #[tokio::test]
    async fn what_was_found_before_a_new_round_counts_no_more_and_cannot_be_renewed() {
        let fixture = fixture().await;
        let store = &fixture.store;
        store.insert_grant(&grant(&fixture.vault, "grant-2", 2).0).await.expect("stored");
        let (first, second) = ("credential-grant-1", "credential-grant-2");
        let check = OwnerCheck { token: TOKEN, at: START };
        store
            .note_owner_check(second, OwnerCheck { at: START.plus(std::time::Duration::from_secs(1)), ..check })
            .await
            .expect("noted");
        store.note_owner_check(first, check).await.expect("noted");
        assert_eq!(unchecked(store).await, Vec::<String>::new());
        store.age_owner_checks().await.expect("a new round");
        assert_eq!(unchecked(store).await, [first, second], "the longest ago first");
        let aged = OwnerCheck { at: UnixTime::from_secs(0), ..check };
        assert_eq!(store.owner_check(first).await.expect("read"), Some(aged));
        // Forgejo was asked before the round began.
        store.renew_owner_check(first, check, check).await.expect("nothing");
        assert_eq!(store.owner_check(first).await.expect("read"), Some(aged));
        store.renew_owner_check(first, aged, check).await.expect("noted");
        assert_eq!(store.owner_check(first).await.expect("read"), Some(check));
        assert_eq!(unchecked(store).await, [second]);
        store.note_owner_check(second, check).await.expect("noted");
        assert_eq!(unchecked(store).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_new_round_is_refused_where_it_would_change_nothing() {
        let store = Store::in_memory().await.expect("a store");
        store.writer().execute("testing", sqlx::query("DELETE FROM check_rounds")).await.expect("damaged");
        assert!(matches!(store.age_owner_checks().await, Err(StoreError::Damaged(_))));
    }

    #[tokio::test]
    async fn who_must_be_looked_at_is_found_in_the_order_of_an_index_and_nothing_is_sorted() {
        let store = Store::in_memory().await.expect("a store");
        let steps = store.plan(UNCHECKED).await;
        assert!(steps.iter().any(|step| step.contains("SEARCH c USING INDEX credentials_by_check")), "{steps:?}");
        assert!(!steps.iter().any(|step| step.contains("ORDER BY")), "{steps:?}");
    }
}
