//! Replaces the key that seals Forgejo's tokens, while everything goes on.
//!
//! The new key is on the disk before anything is sealed with it, the old one stays until nothing is sealed under it any
//! more. Each credential is sealed anew in its turn: a refresh that is under way compares what it replaces, and would
//! take a token that was sealed anew in between for another. What a broker has begun its successor ends.

use std::sync::Arc;

use rand::rngs::SysRng;
use tracing::{error, info, warn};

use crate::chain::chain;
use crate::forge::rotation::{Change, Rotation, RotationError};
use crate::forge::vault;
use crate::forge::vault::VaultError;
use crate::store::Credential;

/// Credentials that are looked up at once.
const BATCH: u32 = 100;

/// Why the key was not replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResealError {
    /// It is being replaced.
    #[error("the key is being replaced already; see `forgejo-mcp-brokerctl key status`")]
    UnderWay,
    /// The broker ends.
    #[error("the broker ends; it goes on with the new key when it is started again")]
    Ending,
    /// No new key can be made, or the new one cannot take the old one's place.
    #[error("{0}")]
    Key(#[from] VaultError),
    /// A credential.
    #[error(
        "the key could not be replaced; the old one is still good, and the broker goes on when it is started again"
    )]
    Failed(#[from] RotationError),
}

impl Rotation {
    /// Replaces the key and seals everything anew; how many credentials. Runs in a task of its own: who asked for it may
    /// go away.
    pub(crate) async fn replace_key(&self) -> Result<u64, ResealError> {
        let rotation = self.clone();
        let task = self.0.tasks.spawn(async move {
            let _alone = rotation.0.resealing.try_lock().map_err(|_| ResealError::UnderWay)?;
            rotation.0.vault.begin_replacing(&mut SysRng)?;
            info!(key = %rotation.0.vault.key_id(), "the key that seals Forgejo's tokens is being replaced");
            rotation.reseal_all().await
        });
        task.await.unwrap_or(Err(ResealError::Ending))
    }

    /// Ends what a broker before this one has begun.
    pub(crate) async fn go_on_replacing_key(&self) {
        if self.0.vault.older_key_id().is_some()
            && let Err(e) = self.replace_key().await
        {
            error!(error = %e, "the key that seals Forgejo's tokens could not be replaced: {}", chain(&e));
        }
    }

    async fn reseal_all(&self) -> Result<u64, ResealError> {
        let inner = &self.0;
        let mut done = 0_u64;
        loop {
            let others = self.sealed_under_others().await?;
            if others.is_empty() {
                // What was sealed before the new key was there, and is being stored, comes first.
                let _nothing_on_its_way = inner.storing.write().await;
                if self.sealed_under_others().await?.is_empty() {
                    inner.vault.end_replacing()?;
                    break;
                }
                continue;
            }
            for id in others {
                if inner.tasks.is_closed() {
                    return Err(ResealError::Ending);
                }
                self.resealed(&id).await?;
                done = done.saturating_add(1);
            }
        }
        info!(key = %inner.vault.key_id(), credentials = done, "the key that seals Forgejo's tokens was replaced");
        Ok(done)
    }

    async fn sealed_under_others(&self) -> Result<Vec<String>, RotationError> {
        Ok(self.0.store.sealed_under_others(&self.0.vault.key_id(), BATCH).await?)
    }

    async fn resealed(&self, id: &str) -> Result<(), RotationError> {
        let inner = &self.0;
        let turn = Arc::clone(inner.turns.lock().entry(id.to_owned()).or_default());
        let held = turn.lock().await;
        let Some(old) = inner.store.find_credential(id).await? else { return Ok(()) };
        let outcome = match self.sealed_anew(&old) {
            Ok(fresh) => inner.store.reseal(&old, &fresh).await.map(|()| None),
            // Nobody can be served with it; it must not keep the old key for ever.
            Err(VaultError::Damaged) => {
                warn!(tenant = %old.tenant, reason = "damaged", "a stored token cannot be opened; the user must log in again");
                let change = self.revoke(id, "damaged").await?;
                inner.store.erase_credential(&old).await.map(|()| Some(change))
            }
            Err(e) => return Err(e.into()),
        };
        drop(held);
        drop(turn);
        self.forget_idle_turns();
        let change: Option<Change> = outcome?;
        if let Some(change) = change {
            let _ = inner.changes.send(change).await;
        }
        Ok(())
    }

    fn sealed_anew(&self, old: &Credential) -> Result<Credential, VaultError> {
        let vault = &self.0.vault;
        let anew = |sealed, place: &str| vault.seal(&vault.open_sealed(sealed, place)?, place, &mut SysRng);
        let access = anew(&old.access, &vault::access_place(&old.id))?;
        let refresh = old.refresh.as_ref().map(|refresh| anew(refresh, &vault::refresh_place(&old.id))).transpose()?;
        Ok(Credential { access, refresh, ..old.clone() })
    }
}
