//! The headers of a kept answer by which its server is asked whether it is still so (RFC 9111 section 4.3).

use axum::http::HeaderMap;
use axum::http::header::{CACHE_CONTROL, ETAG, EXPIRES, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};

/// What of an answer's headers outlives it.
const KEPT: [HeaderName; 4] = [CACHE_CONTROL, EXPIRES, ETAG, LAST_MODIFIED];
/// Bytes of such a header; a longer one is as good as none.
const MAX_VALUE: usize = 256;

/// The headers that are kept beside what was answered.
#[derive(Debug, Clone, Default)]
pub(super) struct KeptHeaders(HeaderMap);

impl KeptHeaders {
    /// Those of an answer.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut kept = HeaderMap::new();
        for name in KEPT {
            for value in headers.get_all(&name).iter().filter(|value| value.len() <= MAX_VALUE) {
                kept.append(name.clone(), value.clone());
            }
        }
        Self(kept)
    }

    /// What an answer of 304 says, with what it leaves unsaid (section 4.3.4); Date and Age are its own.
    pub(super) fn updated_by(&self, not_modified: &HeaderMap) -> HeaderMap {
        let mut all = not_modified.clone();
        for (name, value) in &self.0 {
            if !not_modified.contains_key(name) {
                all.append(name, value.clone());
            }
        }
        all
    }

    /// The conditions of the next request (section 4.3.1); empty where the server gave nothing to ask by.
    pub(super) fn conditions(&self) -> HeaderMap {
        let pairs = [(ETAG, IF_NONE_MATCH), (LAST_MODIFIED, IF_MODIFIED_SINCE)];
        pairs.into_iter().filter_map(|(has, asks)| self.0.get(has).map(|value| (asks, value.clone()))).collect()
    }
}
