//! A value that a reload can exchange while the broker runs. A leaf.
//!
//! Whoever needs it takes the value of that moment and works with it to the end of what they do; so nothing changes under
//! anybody's hands, and no lock is held over a wait.

use std::sync::Arc;

use parking_lot::RwLock;

/// A handle; clones share the value. Reading is one uncontended lock and one count, without a system call.
#[derive(Debug)]
pub(crate) struct Live<T>(Arc<RwLock<Arc<T>>>);

impl<T> Live<T> {
    /// With this value.
    pub(crate) fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(value))))
    }

    /// The value of now.
    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read())
    }

    /// Another one for whoever asks from now on.
    pub(crate) fn replace(&self, value: T) {
        *self.0.write() = Arc::new(value);
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_begun_goes_on_with_what_they_have_and_who_begins_gets_the_new_value() {
        let live = Live::new(1);
        let (other, begun) = (live.clone(), live.get());
        live.replace(2);
        assert_eq!((*begun, *other.get()), (1, 2));
    }
}
