//! What was fetched, kept for as long as its server says, and asked about again after that (RFC 9111).
//!
//! Nothing is used beyond its time: a server that does not answer, or with an error, has nothing to say for what it said
//! before. Errors are never kept.

use std::collections::HashMap;

use parking_lot::Mutex;
use url::Url;

use crate::auth::source::Source;
use crate::oauth::document::DocumentError;
use crate::oauth::document::fetch::{Answer, Fetcher};
use crate::oauth::document::freshness::freshness;
use crate::oauth::document::validators::KeptHeaders;
use wire::clock::UnixTime;

/// Answers that are kept.
const MAX_KEPT: usize = 1000;

/// Answers by their addresses, as they were read.
#[derive(Debug)]
pub(super) struct Kept<T>(Mutex<HashMap<Url, Entry<T>>>);

#[derive(Debug, Clone)]
struct Entry<T> {
    value: T,
    headers: KeptHeaders,
    /// The end of its freshness.
    ends: UnixTime,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Kept<T> {
    /// What is at an admissible address; `read` makes it of an answer that is new.
    pub(super) async fn get(
        &self,
        fetcher: &Fetcher,
        url: &Url,
        asking: Source,
        now: UnixTime,
        read: impl FnOnce(&[u8]) -> Result<T, DocumentError>,
    ) -> Result<T, DocumentError> {
        let known = self.0.lock().get(url).cloned();
        if let Some(Entry { value, ends, .. }) = &known
            && *ends > now
        {
            return Ok(value.clone());
        }
        let conditions = known.as_ref().map(|known| known.headers.conditions()).unwrap_or_default();
        let (value, headers) = match (fetcher.get(url, conditions, asking).await?, known) {
            (Answer::New(headers, text), _) => (read(&text)?, headers),
            (Answer::NotModified(headers), Some(known)) => (known.value, known.headers.updated_by(&headers)),
            (Answer::NotModified(_), None) => return Err(DocumentError::Status(304)),
        };
        let entry = freshness(&headers, now).map(|fresh| Entry {
            value: value.clone(),
            headers: KeptHeaders::of(&headers),
            ends: now.plus(fresh),
        });
        self.keep(url, entry, now);
        Ok(value)
    }

    /// Keeps an answer, or forgets the former one where this must not be kept.
    fn keep(&self, url: &Url, entry: Option<Entry<T>>, now: UnixTime) {
        let mut kept = self.0.lock();
        // Stale and nothing to ask by: of no use to anybody.
        let Some(entry) = entry.filter(|entry| entry.ends > now || !entry.headers.conditions().is_empty()) else {
            kept.remove(url);
            return;
        };
        if kept.len() >= MAX_KEPT && !kept.contains_key(url) {
            kept.retain(|_, entry| entry.ends > now);
        }
        if kept.len() >= MAX_KEPT
            && !kept.contains_key(url)
            && let Some(any) = kept.keys().next().cloned()
        {
            kept.remove(&any);
        }
        kept.insert(url.clone(), entry);
    }
}
