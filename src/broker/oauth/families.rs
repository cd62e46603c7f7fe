//! What a refresh token that comes back means: a lost answer, a second program with the same login, or a thief. No I/O.
//!
//! Clients send a token twice because an answer was lost, or because several of their processes share one login and each
//! remembers the token that it read last. A thief does the same. So a used token is good while nothing that it was
//! exchanged for was ever used, and for a window after its exchange; then its family ends (RFC 9700 section 4.14.2). Each
//! further pair forks the family; the branches are counted, bounded, and shown to their user.

use std::time::Duration;

use crate::store::{NoPair, Seen, Verdict};
use wire::clock::UnixTime;

/// Branches of one family at once: more programs do not share one login.
const MAX_BRANCHES: u32 = 16;

/// What the operator decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReusePolicy {
    /// How long after its exchange a used token whose successor was used gives a sibling.
    pub(crate) window: Duration,
    /// Whether a second branch that refreshes after the window ends the family.
    pub(crate) one_branch: bool,
}

impl ReusePolicy {
    /// What becomes of a token that is shown now and has not expired.
    pub(crate) fn judge(self, seen: &Seen, now: UnixTime) -> Verdict {
        match seen.used {
            Some(used) if seen.succeeded && self.is_past(used, now) => Verdict::No(NoPair::Reused),
            Some(_) if seen.live_branches >= MAX_BRANCHES => Verdict::No(NoPair::TooManyBranches),
            Some(_) => Verdict::Fork,
            None => match (seen.forked.filter(|forked| self.is_past(*forked, now)), seen.settled) {
                (Some(_), None) => Verdict::Next { settle: true },
                (Some(_), Some(settled)) if self.one_branch && settled != seen.branch => {
                    Verdict::No(NoPair::SecondBranch)
                }
                _ => Verdict::Next { settle: false },
            },
        }
    }

    /// Whether the window after `then` is over; where the clock went backwards, it is.
    fn is_past(self, then: UnixTime, now: UnixTime) -> bool {
        now.age_of(then).is_none_or(|age| age >= self.window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
    const FRESH: Seen = Seen { used: None, succeeded: false, branch: 0, live_branches: 1, forked: None, settled: None };

    fn ago(minutes: u64) -> UnixTime {
        NOW.minus(Duration::from_mins(minutes))
    }

    #[test]
    fn a_used_token_is_good_until_its_successor_is_used_and_for_a_window_after_its_exchange() {
        let ahead = Some(NOW.plus(Duration::from_mins(1)));
        let table = [
            ("it was not used", FRESH, Verdict::Next { settle: false }),
            ("its answer was lost", Seen { used: Some(ago(600)), ..FRESH }, Verdict::Fork),
            ("a second program, at once", Seen { used: Some(ago(0)), succeeded: true, ..FRESH }, Verdict::Fork),
            ("a second program, in the window", Seen { used: Some(ago(4)), succeeded: true, ..FRESH }, Verdict::Fork),
            ("after it", Seen { used: Some(ago(5)), succeeded: true, ..FRESH }, Verdict::No(NoPair::Reused)),
            ("before it was used", Seen { used: ahead, succeeded: true, ..FRESH }, Verdict::No(NoPair::Reused)),
            (
                "the seventeenth program",
                Seen { used: Some(ago(0)), live_branches: 16, ..FRESH },
                Verdict::No(NoPair::TooManyBranches),
            ),
        ];
        let policy = ReusePolicy { window: Duration::from_mins(5), one_branch: false };
        for (what, seen, verdict) in table {
            assert_eq!(policy.judge(&seen, NOW), verdict, "{what}");
        }
    }

    #[test]
    fn the_branch_that_refreshes_first_after_the_window_is_settled_on_and_a_second_ends_the_family_if_so_decided() {
        let forked = Seen { forked: Some(ago(6)), ..FRESH };
        let table = [
            ("within the window", Seen { forked: Some(ago(4)), ..FRESH }, Verdict::Next { settle: false }, None),
            ("the first after it", forked, Verdict::Next { settle: true }, None),
            ("the same again", Seen { settled: Some(0), ..forked }, Verdict::Next { settle: false }, None),
            (
                "another one",
                Seen { settled: Some(0), branch: 1, ..forked },
                Verdict::Next { settle: false },
                Some(Verdict::No(NoPair::SecondBranch)),
            ),
        ];
        for (what, seen, verdict, where_one_branch) in table {
            let policy = ReusePolicy { window: Duration::from_mins(5), one_branch: false };
            assert_eq!(policy.judge(&seen, NOW), verdict, "{what}");
            let policy = ReusePolicy { one_branch: true, ..policy };
            assert_eq!(policy.judge(&seen, NOW), where_one_branch.unwrap_or(verdict), "{what}, one branch");
        }
    }
}
