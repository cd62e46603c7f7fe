//! Assertions that were used, until they end: each is good once (RFC 7523 section 3, `jti`).
//!
//! Only what a client's key has signed comes here, but anybody may publish a key. So all places are shared: where they are
//! taken, the client with the most makes room, and loses memory of what ends first.

use std::collections::HashMap;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use wire::clock::UnixTime;

/// Of all clients together: ten megabytes at most. One client alone would need 80 a second to fill them.
const MAX_USED: usize = 50_000;

/// SHA-256 of a client's id, or of an assertion's name: strangers choose how long these are.
type Digested = [u8; 32];

/// By client, when each ends.
type Used = HashMap<Digested, HashMap<Digested, UnixTime>>;

/// What is remembered.
#[derive(Debug, Default)]
pub(crate) struct UsedAssertions(Mutex<Used>);

/// An assertion that is no good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// It was used before.
    Used,
    /// There is no place for it now.
    Full,
}

impl UsedAssertions {
    /// Uses one of this client, of this name, that is good until `ends`.
    pub(crate) fn take(&self, client: &str, name: &str, ends: UnixTime, now: UnixTime) -> Result<(), NotTaken> {
        self.take_one_of(MAX_USED, client, name, ends, now)
    }

    fn take_one_of(
        &self,
        most: usize,
        client: &str,
        name: &str,
        ends: UnixTime,
        now: UnixTime,
    ) -> Result<(), NotTaken> {
        let (client, name) = (digest(client), digest(name));
        let mut used = self.0.lock();
        if used.get(&client).and_then(|used| used.get(&name)).is_some_and(|ends| *ends > now) {
            return Err(NotTaken::Used);
        }
        let taken = |used: &Used| used.values().map(HashMap::len).sum::<usize>();
        if taken(&used) >= most {
            forget(&mut used, now);
        }
        if taken(&used) >= most {
            let own = used.get(&client).map_or(0, HashMap::len);
            let largest = used.values_mut().max_by_key(|used| used.len()).filter(|used| used.len() > own);
            let first =
                |used: &HashMap<Digested, UnixTime>| used.iter().min_by_key(|(_, ends)| **ends).map(|(name, _)| *name);
            let Some((largest, name)) = largest.and_then(|used| first(used).map(|name| (used, name))) else {
                return Err(NotTaken::Full);
            };
            largest.remove(&name);
        }
        used.entry(client).or_default().insert(name, ends);
        Ok(())
    }

    /// Forgets those that have ended.
    pub(crate) fn forget(&self, now: UnixTime) {
        forget(&mut self.0.lock(), now);
    }
}

fn digest(text: &str) -> Digested {
    Sha256::digest(text.as_bytes()).into()
}

fn forget(used: &mut Used, now: UnixTime) {
    used.retain(|_, used| {
        used.retain(|_, ends| *ends > now);
        !used.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn later(seconds: u64) -> UnixTime {
        NOW.plus(std::time::Duration::from_secs(seconds))
    }

    #[test]
    fn a_name_is_good_once_for_each_client_until_it_ends() {
        let used = UsedAssertions::default();
        assert_eq!(used.take("a", "1", later(60), NOW), Ok(()));
        assert_eq!(used.take("a", "1", later(90), later(59)), Err(NotTaken::Used));
        assert_eq!(used.take("b", "1", later(60), NOW), Ok(()));
        assert_eq!(used.take("a", "2", later(60), NOW), Ok(()));
        used.forget(later(59));
        assert_eq!(used.take("a", "2", later(120), later(59)), Err(NotTaken::Used));
        used.forget(later(60));
        assert!(used.0.lock().is_empty(), "nothing is kept of those that have ended");
    }

    #[test]
    fn the_client_with_the_most_makes_room_and_nobody_else_loses_anything() {
        let used = UsedAssertions::default();
        for (n, name) in ["1", "2", "3"].into_iter().enumerate() {
            let ends = later(60 + u64::try_from(n).expect("few"));
            assert_eq!(used.take_one_of(4, "flood", name, ends, NOW), Ok(()));
        }
        assert_eq!(used.take_one_of(4, "a", "1", later(50), NOW), Ok(()));
        assert_eq!(used.take_one_of(4, "flood", "4", later(60), NOW), Err(NotTaken::Full), "it has the most itself");
        assert_eq!(used.take_one_of(4, "b", "1", later(60), NOW), Ok(()));
        for (client, name) in [("a", "1"), ("b", "1"), ("flood", "2"), ("flood", "3")] {
            assert_eq!(used.take_one_of(4, client, name, later(60), NOW), Err(NotTaken::Used), "{client} {name}");
        }
        assert_eq!(used.take_one_of(4, "flood", "4", later(90), later(50)), Ok(()), "what has ended makes room first");
    }
}
