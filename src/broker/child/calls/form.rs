//! In which form the answer to a request goes out, which decides where messages ahead of it go.

/// A form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Not decided: an event stream where a message comes ahead of the answer, else JSON.
    Open,
    /// An event stream, which has room for messages ahead of the answer.
    Events,
    /// JSON, which has none.
    Json,
}

impl Form {
    /// Whether messages ahead of the answer go to who waits for the answer.
    pub(crate) const fn takes_notes(self) -> bool {
        matches!(self, Self::Open | Self::Events)
    }
}
