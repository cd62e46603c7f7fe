//! OAuth clients that registered themselves (RFC 7591).

use std::time::Duration;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::auth::source::Source;
use crate::auth::token::TokenHash;
use crate::store::{Store, StoreError};
use wire::clock::UnixTime;

/// A client as it registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RegisteredClient {
    /// Made here.
    pub(crate) client_id: String,
    /// What it calls itself.
    pub(crate) name: String,
    /// Where codes may be sent.
    pub(crate) redirects: Vec<String>,
    /// Of a confidential client.
    pub(crate) secret: Option<TokenHash>,
}

/// How often it is written that an unused client has registered again.
const RENEWED_EVERY: Duration = Duration::from_mins(10);

const READING: &str = "reading a registered client";
const COLUMNS: &str = "SELECT client_id, name, redirects, secret_hash FROM registered_clients WHERE client_id = $1";
const ALIKE: &str = "SELECT client_id, name, redirects, secret_hash FROM registered_clients \
                     WHERE metadata_hash = $1 AND secret_hash IS NULL ORDER BY created_at, client_id LIMIT 1";

impl Store {
    /// Writes a client that registered `from` somewhere; `alike` is the SHA-256 of all that it registered with.
    pub(crate) async fn insert_client(
        &self,
        client: &RegisteredClient,
        alike: &[u8; 32],
        from: Source,
        now: UnixTime,
    ) -> Result<(), StoreError> {
        const WHAT: &str = "storing a registered client";
        let redirects = serde_json::to_string(&client.redirects).map_err(|_| StoreError::Damaged(WHAT))?;
        let statement = sqlx::query(
            "INSERT INTO registered_clients (client_id, name, redirects, secret_hash, metadata_hash, created_at, \
             network) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&client.client_id)
        .bind(&client.name)
        .bind(redirects)
        .bind(client.secret.as_ref().map(|hash| hash.0.as_slice()))
        .bind(alike.as_slice())
        .bind(now.secs())
        .bind(from.network());
        self.writer().execute(WHAT, statement).await?;
        Ok(())
    }

    /// A client by its id.
    pub(crate) async fn find_client(&self, client_id: &str) -> Result<Option<RegisteredClient>, StoreError> {
        let row = sqlx::query(COLUMNS).bind(client_id).fetch_optional(self.readers()).await;
        row.map_err(StoreError::query(READING))?.as_ref().map(client).transpose()
    }

    /// The public client that registered with the very same metadata.
    pub(crate) async fn find_client_alike(&self, alike: &[u8; 32]) -> Result<Option<RegisteredClient>, StoreError> {
        let row = sqlx::query(ALIKE).bind(alike.as_slice()).fetch_optional(self.readers()).await;
        row.map_err(StoreError::query(READING))?.as_ref().map(client).transpose()
    }

    /// Notes that an unused client has registered again: its time begins anew. At most every few minutes, because each
    /// write costs everybody and repeating a registration is not limited.
    pub(crate) async fn renew_client(&self, client_id: &str, now: UnixTime) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "UPDATE registered_clients SET created_at = $1 \
             WHERE client_id = $2 AND logged_in_at IS NULL AND created_at < $3",
        )
        .bind(now.secs())
        .bind(client_id)
        .bind(now.minus(RENEWED_EVERY).secs());
        self.writer().execute("renewing a registered client", statement).await?;
        Ok(())
    }

    /// How many clients have never completed a login.
    pub(crate) async fn unused_clients(&self) -> Result<i64, StoreError> {
        let row = sqlx::query("SELECT COUNT(*) AS n FROM registered_clients WHERE logged_in_at IS NULL");
        let row = row.fetch_one(self.readers()).await.map_err(StoreError::query("counting clients"))?;
        row.try_get("n").map_err(StoreError::query("counting clients"))
    }

    /// Removes clients that registered before `before` and never completed a login; how many.
    pub(crate) async fn forget_unused_clients(&self, before: UnixTime) -> Result<u64, StoreError> {
        let statement = sqlx::query("DELETE FROM registered_clients WHERE logged_in_at IS NULL AND created_at < $1")
            .bind(before.secs());
        Ok(self.writer().execute("removing unused clients", statement).await?.rows_affected())
    }
}

fn client(row: &SqliteRow) -> Result<RegisteredClient, StoreError> {
    let text = |name: &str| row.try_get::<String, _>(name).map_err(StoreError::query(READING));
    let secret: Option<Vec<u8>> = row.try_get("secret_hash").map_err(StoreError::query(READING))?;
    let secret = secret.map(|bytes| bytes.try_into().map(TokenHash)).transpose();
    Ok(RegisteredClient {
        client_id: text("client_id")?,
        name: text("name")?,
        redirects: serde_json::from_str(&text("redirects")?).map_err(|_| StoreError::Damaged(READING))?,
        secret: secret.map_err(|_| StoreError::Damaged(READING))?,
    })
}
