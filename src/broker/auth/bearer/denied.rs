//! Why a request is turned away by the bearer layer, and what it is told.

/// What a client is told whose user Forgejo does not let in for now.
const BARRED: &str = "Forgejo does not let this account in at the moment: it is locked, or must change its password. Log \
                      in at Forgejo and do what it asks, or ask its administrator; then try again. Nothing was disconnected.";
/// What is said where a token comes from a network that it is not for.
const ELSEWHERE: &str =
    "This token is not for the network that it comes from. Use it from where its operator allows it.";
/// What is said to who shows a token of Forgejo's that does not tell whose it is.
const NOT_TOLD: &str = "Forgejo does not say whose this token is: it needs the scope read:user, and the account must not be \
                        locked and not have to change its password.";
/// What is said to who shows a good token of Forgejo's and is not let in.
const NOT_ADMITTED: &str = "The operator of this service does not let this account in. Where organisations or teams are let \
                            in, the token needs the scope read:organization to show them.";
/// What is said to who shows more tokens of Forgejo's than are kept apart.
const TOO_MANY_TOKENS: &str = "Too many Forgejo tokens of this account are in use here: use fewer, or disconnect some on the \
                               account page.";

/// Why a request has no principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// No header.
    Absent,
    /// More than one, another scheme, or nothing behind the scheme.
    Malformed,
    /// Never minted here.
    Unknown,
    /// Minted here, and over.
    Expired,
    /// Its grant was revoked.
    Revoked,
    /// Forgejo does not let its user in for now.
    Barred,
    /// The token is good, but not from there.
    Elsewhere,
    /// Forgejo does not say whose its own token is.
    NotTold,
    /// Its user is not let in by the operator's lists.
    NotAdmitted,
    /// Its user has too many tokens of Forgejo's here.
    TooManyTokens,
    /// Too many tokens that were never good came from there.
    TooMany {
        /// Until the next one may come.
        seconds: u64,
    },
    /// The broker cannot tell; logged where it happened.
    Unavailable,
}

impl Denied {
    /// The stable name that the log and the metrics use.
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::Absent | Self::Malformed => "no-token",
            Self::Unknown => "bad-token",
            Self::Expired => "expired-token",
            Self::Revoked => "revoked-token",
            Self::Barred => "account-barred",
            Self::Elsewhere => "wrong-network",
            Self::NotTold => "token-scope",
            Self::NotAdmitted => "not-admitted",
            Self::TooManyTokens => "too-many-tokens",
            Self::TooMany { .. } => "too-many-bad-tokens",
            Self::Unavailable => "unavailable",
        }
    }

    /// The `reason` in the challenge.
    pub(super) const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Unknown => Some("unknown"),
            Self::Expired => Some("expired"),
            Self::Revoked => Some("revoked"),
            _ => None,
        }
    }

    /// What is said where no other token would do, so that there is no challenge.
    pub(super) const fn words(self) -> Option<&'static str> {
        match self {
            Self::Barred => Some(BARRED),
            Self::Elsewhere => Some(ELSEWHERE),
            Self::NotTold => Some(NOT_TOLD),
            Self::NotAdmitted => Some(NOT_ADMITTED),
            Self::TooManyTokens => Some(TOO_MANY_TOKENS),
            _ => None,
        }
    }

    /// When it may be tried again, where that is all that is wrong.
    pub(super) const fn retry_after(self) -> Option<u64> {
        match self {
            Self::TooMany { seconds } => Some(seconds),
            Self::Unavailable => Some(5),
            _ => None,
        }
    }
}
