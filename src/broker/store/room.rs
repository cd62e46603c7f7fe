//! Room among what strangers leave behind: logins under way, clients that nobody has logged in with.
//!
//! Each kind has a bound for everybody together, and what is full is shared by network: whoever comes takes the place of the
//! oldest that the network with the most of them has. So a network that has less than the others always finds room,
//! however many are against it, and the network that has the most makes room from its own, or gets none.

use sqlx::Row;

use crate::auth::source::Source;
use crate::store::{Store, StoreError};
use wire::clock::UnixTime;

/// The oldest row of the network that has the most. Of the network that asks (`$1`) only one from before `$2`.
macro_rules! oldest_of_largest {
    ($key:literal, $table:literal, $counted:literal) => {
        concat!(
            "WITH largest AS (SELECT network FROM ",
            $table,
            " WHERE ",
            $counted,
            " GROUP BY network \
             ORDER BY COUNT(*) DESC, CASE WHEN network = $1 THEN 0 ELSE 1 END LIMIT 1) \
             SELECT t.",
            $key,
            " AS row_key FROM ",
            $table,
            " t JOIN largest l ON l.network = t.network \
             WHERE ",
            $counted,
            " AND (t.network <> $1 OR t.created_at < $2) ORDER BY t.created_at LIMIT 1"
        )
    };
}

const LOGIN: &str = oldest_of_largest!("state_hash", "logins", "created_at IS NOT NULL");
const CLIENT: &str = oldest_of_largest!("client_id", "registered_clients", "logged_in_at IS NULL");

impl Store {
    /// Makes room for a login of this network, where the network may have it; whether there is room. A login that began
    /// before `expired` is nobody's any more.
    pub(crate) async fn make_room_for_login(&self, asking: Source, expired: UnixTime) -> Result<bool, StoreError> {
        const WHAT: &str = "making room for a login";
        let found = sqlx::query(LOGIN).bind(asking.network()).bind(expired.secs()).fetch_optional(self.readers()).await;
        let Some(row) = found.map_err(StoreError::query(WHAT))? else { return Ok(false) };
        let state: Vec<u8> = row.try_get("row_key").map_err(StoreError::query(WHAT))?;
        self.writer().execute(WHAT, sqlx::query("DELETE FROM logins WHERE state_hash = $1").bind(state)).await?;
        Ok(true)
    }

    /// The same for a client. One of the network's own that registered after `in_use` may still be at its login.
    pub(crate) async fn make_room_for_client(&self, asking: Source, in_use: UnixTime) -> Result<bool, StoreError> {
        const WHAT: &str = "making room for a client";
        let found = sqlx::query(CLIENT).bind(asking.network()).bind(in_use.secs()).fetch_optional(self.readers()).await;
        let Some(row) = found.map_err(StoreError::query(WHAT))? else { return Ok(false) };
        let client: String = row.try_get("row_key").map_err(StoreError::query(WHAT))?;
        // Asked again, because its login may have been faster.
        let delete = sqlx::query("DELETE FROM registered_clients WHERE client_id = $1 AND logged_in_at IS NULL");
        self.writer().execute(WHAT, delete.bind(client)).await?;
        Ok(true)
    }
}
