//! What the operator says once, where the broker cannot start without: it is carried out, and the program ends.

use std::os::unix::fs::MetadataExt;

use nix::unistd::geteuid;
use tracing::info;
use wire::clock::Clock;

use crate::config::Config;
use crate::forge::api::Forgejo;
use crate::forge::identity;
use crate::forge::identity::Adoption;
use crate::forge::vault::VaultError;
use crate::http::server::{ServerError, open_vault};
use crate::store::Store;

/// Carries out `--adopt-forge`.
pub(super) async fn adopt_forge(config: &Config, adoption: Adoption) -> Result<(), ServerError> {
    let store = open_store(config).await?;
    let forgejo = Forgejo::new(&config.forgejo_url)?;
    let grants = identity::adopt(&store, &forgejo, adoption, Clock::system().now()).await?;
    store.close().await;
    info!(forge = %config.forgejo_url, grants, "the database belongs to this forge now; so many grants were revoked");
    Ok(())
}

/// Carries out `--forget-sealed`.
pub(super) async fn forget_sealed(config: &Config) -> Result<(), ServerError> {
    let store = open_store(config).await?;
    match open_vault(config, &store).await {
        Ok(_) => info!("the key file belongs to this database: nothing was given up"),
        Err(ServerError::Vault(VaultError::WrongKey { missing, .. })) => {
            for key in missing {
                let grants = store.forget_sealed_under(&key, Clock::system().now()).await?.len();
                info!(key, grants, "what was sealed under this key is given up; so many grants were revoked");
            }
        }
        Err(e) => return Err(e),
    }
    store.close().await;
    Ok(())
}

/// SQLite makes files beside the database, and an operator is often root.
async fn open_store(config: &Config) -> Result<Store, ServerError> {
    let owner = std::fs::metadata(&config.database).map(|file| file.uid());
    if owner.is_ok_and(|owner| owner != geteuid().as_raw()) {
        return Err(ServerError::NotOwner(config.database.clone()));
    }
    Ok(Store::open(&config.database).await?)
}
