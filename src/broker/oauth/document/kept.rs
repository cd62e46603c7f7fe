//! What was fetched, kept for as long as its server says, and asked about again after that (RFC 9111).
//!
//! Nothing is used beyond its time: a server that does not answer, or with an error, has nothing to say for what it said
//! before. Errors are never kept.

use std::collections::HashMap;
use std::time::Duration;

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
/// How often one server is asked anew for what is kept and fresh.
const ANEW_EVERY: Duration = Duration::from_mins(1);

/// Answers by their addresses, as they were read.
#[derive(Debug)]
pub(super) struct Kept<T>(Mutex<HashMap<Url, Entry<T>>>);

#[derive(Debug, Clone)]
struct Entry<T> {
    value: T,
    headers: KeptHeaders,
    /// The end of its freshness.
    ends: UnixTime,
    /// When its server was asked last, also to no avail.
    asked: UnixTime,
}

/// How recent an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Age {
    /// Of any age within its time.
    Fresh,
    /// Something is missing in it that may be there now. Strangers can say so at will, so a server that was asked a moment
    /// ago is not asked again.
    Anew,
}

impl Age {
    fn takes(self, asked: UnixTime, now: UnixTime) -> bool {
        self == Self::Fresh || now.age_of(asked).is_some_and(|age| age < ANEW_EVERY)
    }
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
        age: Age,
        asking: Source,
        now: UnixTime,
        read: impl FnOnce(&[u8]) -> Result<T, DocumentError>,
    ) -> Result<T, DocumentError> {
        let known = match self.0.lock().get_mut(url) {
            Some(entry) => {
                if entry.ends > now && age.takes(entry.asked, now) {
                    return Ok(entry.value.clone());
                }
                entry.asked = now;
                Some(entry.clone())
            }
            None => None,
        };
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
            asked: now,
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
