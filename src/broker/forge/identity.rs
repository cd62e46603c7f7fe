//! Which forge is this? A database belongs to one, because users are known by the numbers that it gave them.
//!
//! A forge is known by its address and by the public keys that it signs tokens with (`/login/oauth/keys`, open to all):
//! Forgejo makes them once, in its own data directory, so that the same keys mean the same forge, also under another
//! address, and a forge that was set up anew has others. A forge whose database alone was lost keeps them; its accounts
//! have other times of making, which is looked at with each token (`src/broker/forge/rotation/ownership.rs`). A forge
//! that does not tell its keys now (it is away, asks everybody to sign in, or signs with a secret) is known by its
//! address alone.
//!
//! Another forge than the one that is noted stops the start: every number would mean somebody else. The operator says
//! what it is, once, with `forgejo-mcp-broker --adopt-forge`.

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tracing::{error, info};

use wire::clock::UnixTime;
use wire::telemetry::message_id;

use crate::chain::chain;
use crate::forge::api::Forgejo;
use crate::hex;
use crate::store::{KnownForge, Store, StoreError};

/// Why the broker does not go on with this forge.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForgeError {
    /// The store failed.
    #[error("which forge this is cannot be looked up")]
    Store(#[from] StoreError),
    /// It is another one, as far as can be told.
    #[error(
        "this database belongs to the forge {} ({}), and [forgejo] url is now {} ({}). If it is the same forge, moved or \
         with new keys, run `forgejo-mcp-broker --adopt-forge same` once: its users stay. If it is another one, or was \
         set up anew, run `forgejo-mcp-broker --adopt-forge other` once: all grants are revoked and everybody logs in \
         again. If neither, put the old address back",
        known.url, keys(known), now.url, keys(now)
    )]
    Changed {
        /// The one that is noted.
        known: KnownForge,
        /// The one that is there.
        now: KnownForge,
    },
}

/// What the operator says of a forge that is not the one that is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Adoption {
    /// The same forge: its users are who they were.
    Same,
    /// Another forge: nobody is who they were.
    Other,
}

fn keys(forge: &KnownForge) -> String {
    let short = |keys: &String| format!("signing keys {}", keys.get(..12).unwrap_or(keys));
    forge.signing_keys.as_ref().map_or_else(|| "signing keys unknown".to_owned(), short)
}

/// Compares the forge with the one that is noted, and notes what was not known. Refused where it is another.
pub(crate) async fn settle(store: &Store, forgejo: &Forgejo, now: UnixTime) -> Result<(), ForgeError> {
    let found = found(forgejo).await;
    let Some(known) = store.known_forge().await? else {
        return Ok(store.note_forge(&found, now).await?);
    };
    let same_keys = known.signing_keys.as_ref().zip(found.signing_keys.as_ref()).map(|(known, found)| known == found);
    match (known.url == found.url, same_keys) {
        (_, Some(false)) | (false, None) => Err(ForgeError::Changed { known, now: found }),
        // Only it can have signed with these keys.
        (false, Some(true)) => {
            info!(from = %known.url, to = %found.url, "the forge has moved: it signs with the same keys");
            Ok(store.note_forge(&found, now).await?)
        }
        (true, None) if known.signing_keys.is_none() => Ok(store.note_forge(&found, now).await?),
        (true, _) => Ok(()),
    }
}

/// The same while the broker runs, where nobody is asked: an alarm, and every account is looked at again. Gives back
/// whether all is well.
pub(crate) async fn look(store: &Store, forgejo: &Forgejo, now: UnixTime) -> bool {
    match settle(store, forgejo, now).await {
        Ok(()) => true,
        Err(e @ ForgeError::Changed { .. }) => {
            error!(
                MESSAGE_ID = message_id::FOREIGN_FORGE,
                reason = "foreign-forge",
                "{e}. The broker goes on until then, and compares every token with its owner"
            );
            false
        }
        Err(e) => {
            error!(error = %e, "which forge this is could not be compared: {}", chain(&e));
            true
        }
    }
}

/// Carries out what the operator says. How many grants were revoked.
pub(crate) async fn adopt(
    store: &Store,
    forgejo: &Forgejo,
    adoption: Adoption,
    now: UnixTime,
) -> Result<u64, ForgeError> {
    let ended = match adoption {
        Adoption::Same => 0,
        // First: should this end in between, nobody is somebody else.
        Adoption::Other => store.end_everybody("foreign-forge", now).await?,
    };
    store.note_forge(&found(forgejo).await, now).await?;
    Ok(ended)
}

async fn found(forgejo: &Forgejo) -> KnownForge {
    KnownForge { url: forgejo.api_url().to_owned(), signing_keys: signing_keys(forgejo).await }
}

/// A digest of the public keys; `None` where there are none, or the forge does not tell them now.
async fn signing_keys(forgejo: &Forgejo) -> Option<String> {
    /// The parts that are the key, of an RSA and of an elliptic one (RFC 7518 section 6).
    #[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
    struct PublicKey {
        kty: String,
        crv: Option<String>,
        n: Option<String>,
        e: Option<String>,
        x: Option<String>,
        y: Option<String>,
    }
    #[derive(Deserialize)]
    struct PublicKeys {
        keys: Vec<PublicKey>,
    }
    let text = forgejo.signing_keys().await?;
    let PublicKeys { mut keys } = serde_json::from_slice(&text).ok()?;
    if keys.is_empty() {
        return None;
    }
    keys.sort();
    let mut digest = Sha256::new();
    for key in keys {
        for part in [Some(key.kty), key.crv, key.n, key.e, key.x, key.y] {
            digest.update(part.unwrap_or_default());
            digest.update([0]);
        }
    }
    Some(hex::encode(&<[u8; 32]>::from(digest.finalize())))
}
