//! The operator's requests about the key that seals Forgejo's tokens, and for a copy of the database.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_LENGTH;
use axum::response::Response;
use futures_util::stream;
use tracing::info;

use crate::admin::api::{BACKUP_KEYS, KeyRotated, KeyView, SealedView};
use crate::admin::{Admin, Refused};

/// Bytes of the copy that are read at once.
const PIECE: usize = 64 * 1024;

/// `GET /key`.
pub(super) async fn show(State(admin): State<Admin>) -> Result<Json<KeyView>, Refused> {
    let sealed = admin.store.sealing_keys().await?;
    Ok(Json(KeyView {
        file: admin.vault.file().path.display().to_string(),
        managed: admin.vault.file().managed,
        key: admin.vault.key_id(),
        replacing: admin.vault.older_key_id(),
        sealed: sealed.into_iter().map(|(key, credentials)| SealedView { key, credentials }).collect(),
    }))
}

/// `POST /key/rotate`: answered when everything is sealed anew.
pub(super) async fn rotate(State(admin): State<Admin>) -> Result<Json<KeyRotated>, Refused> {
    let credentials = admin.rotation.replace_key().await?;
    Ok(Json(KeyRotated { key: admin.vault.key_id(), credentials }))
}

/// `POST /backup`: a consistent copy of the database, while everything goes on.
pub(super) async fn backup(State(admin): State<Admin>) -> Result<Response, Refused> {
    let _alone = admin.copying.lock().await;
    let mut name = admin.database.clone().into_os_string();
    name.push(".copy");
    let copy = Copy(PathBuf::from(name));
    // What a broker left that died in the middle of this.
    copy.remove();
    admin.store.backup_to(&copy.0).await?;
    // Of the keys that are named from here on each is in the copy or newer than it.
    let mut keys = admin.store.sealing_key_ids().await?;
    keys.extend(admin.vault.older_key_id());
    keys.sort();
    keys.dedup();
    let file = File::open(&copy.0).map_err(Refused::Copy)?;
    let length = file.metadata().map_err(Refused::Copy)?.len();
    info!(bytes = length, keys = keys.join(","), "a copy of the database is being handed to the operator");
    let mut response = Response::new(Body::from_stream(pieces(file)));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    if let Ok(keys) = HeaderValue::try_from(keys.join(",")) {
        response.headers_mut().insert(BACKUP_KEYS, keys);
    }
    Ok(response)
}

fn pieces(file: File) -> impl futures_util::Stream<Item = io::Result<Bytes>> {
    stream::try_unfold(file, async |mut file| {
        // Just written, so that it is in the page cache: a piece takes microseconds.
        let mut piece = Vec::with_capacity(PIECE);
        let limit = u64::try_from(PIECE).unwrap_or(u64::MAX);
        Read::by_ref(&mut file).take(limit).read_to_end(&mut piece)?;
        Ok((!piece.is_empty()).then(|| (Bytes::from(piece), file)))
    })
}

/// The name of a copy, which goes with this value; whoever reads the copy holds it open.
struct Copy(PathBuf);

impl Copy {
    fn remove(&self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.remove();
    }
}
