//! How long an answer may be kept, by its own headers (RFC 9111 section 4.2), within our own bounds.

use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::{AGE, CACHE_CONTROL, DATE, EXPIRES, HeaderName};

use wire::clock::UnixTime;

/// For an answer that does not say.
const DEFAULT_AGE: Duration = Duration::from_hours(1);
/// Whatever the answer says.
const MAX_AGE: Duration = Duration::from_hours(24);

/// From now on; none where it must not be kept, zero where it must be asked about before each use (section 5.2.2). `now`
/// counts only where the server does not say what time it has.
pub(crate) fn freshness(headers: &HeaderMap, now: UnixTime) -> Option<Duration> {
    let lines = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let directives: Vec<String> =
        lines.flat_map(|line| line.split(',')).map(|one| one.trim().to_ascii_lowercase()).collect();
    if directives.iter().any(|one| one == "no-store") {
        return None;
    }
    if directives.iter().any(|one| one == "no-cache") {
        return Some(Duration::ZERO);
    }
    let max_age =
        directives.iter().find_map(|one| one.strip_prefix("max-age=")).and_then(|age| seconds(age.trim_matches('"')));
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let lifetime = match (max_age, text(EXPIRES)) {
        (Some(lifetime), _) => lifetime,
        // An Expires that is no date means that it has passed (section 5.3); "0" is the usual one.
        (None, Some(expires)) => {
            let date = text(DATE).and_then(date_of).unwrap_or(now);
            date_of(expires).map(|end| end.since(date)).unwrap_or_default()
        }
        (None, None) => return Some(DEFAULT_AGE),
    };
    let age = text(AGE).and_then(seconds).unwrap_or_default();
    Some(lifetime.saturating_sub(age).min(MAX_AGE))
}

fn date_of(text: &str) -> Option<UnixTime> {
    httpdate::parse_http_date(text).ok().map(UnixTime::from)
}

fn seconds(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(headers: &[(&'static str, &'static str)]) -> Option<Duration> {
        let pairs =
            headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a value")));
        let noon = date_of("Mon, 23 Nov 2026 12:00:00 GMT").expect("a date");
        freshness(&pairs.collect(), noon)
    }

    /// In minutes, for an answer with these headers at 12:00.
    fn minutes(headers: &[(&'static str, &'static str)]) -> u64 {
        answered(headers).expect("it may be kept").as_secs() / 60
    }

    #[test]
    fn it_is_what_the_headers_say() {
        const DAY: u64 = 24 * 60;
        let one = "Mon, 23 Nov 2026 13:00:00 GMT";
        assert_eq!(minutes(&[]), 60, "unsaid");
        assert_eq!(minutes(&[("cache-control", "public, Max-Age=300")]), 5);
        assert_eq!(minutes(&[("cache-control", "max-age=300"), ("expires", one)]), 5, "max-age is the stronger");
        assert_eq!(minutes(&[("cache-control", "max-age=300"), ("age", "120")]), 3, "what a cache before us took");
        assert_eq!(minutes(&[("cache-control", "max-age=300"), ("age", "900")]), 0);
        assert_eq!(minutes(&[("cache-control", "max-age=300, no-cache")]), 0);
        assert_eq!(answered(&[("cache-control", "max-age=300, no-store")]), None);
        assert_eq!(minutes(&[("cache-control", "max-age=99999999999")]), DAY);
        assert_eq!(minutes(&[("expires", one)]), 60, "by our clock");
        assert_eq!(minutes(&[("expires", one), ("date", "Mon, 23 Nov 2026 12:30:00 GMT")]), 30, "by the server's");
        assert_eq!(minutes(&[("expires", "Mon, 23 Nov 2026 11:00:00 GMT")]), 0, "passed");
        assert_eq!(minutes(&[("expires", "0")]), 0, "no date has passed");
        assert_eq!(minutes(&[("expires", "Fri, 23 Nov 2029 12:00:00 GMT")]), DAY);
        assert_eq!(minutes(&[("cache-control", "public"), ("expires", one)]), 60);
    }
}
