//! Requests whose answer cannot come any more: they get an error with their id at once, instead of waiting for their
//! deadline.

use tokio::time::Instant;

use super::{Calls, Ending, Event};
use crate::child::misread::Meant;
use crate::jsonrpc::{self, Spliced, code};

impl Calls {
    /// Answers the request that something unreadable was meant for with an error, where it can be meant for no other; how
    /// many that were.
    pub(crate) fn fail_meant(&mut self, meant: Meant, message: &str, now: Instant) -> usize {
        let number = match meant {
            Meant::Number(number) => Some(number),
            Meant::TheOnlyOne if self.open.len() == 1 => self.open.keys().next().copied(),
            Meant::TheOnlyOne | Meant::Nobody => None,
        };
        let Some(call) = number.and_then(|number| self.open.remove(&number)) else { return 0 };
        self.touched = now;
        let text = jsonrpc::error_text(Some(&call.id), code::INTERNAL_ERROR, message);
        let _ = call.to.try_send(Event::Answer(Spliced::whole(text), Ending::Error(None)));
        1
    }

    /// Answers everything in flight with an error: the child is gone.
    pub(crate) fn fail_all(&mut self, message: &str) -> usize {
        self.closed = true;
        let failed = self.open.len();
        for (_, call) in self.open.drain() {
            let text = jsonrpc::error_text(Some(&call.id), code::INTERNAL_ERROR, message);
            let _ = call.to.try_send(Event::Gone(Spliced::whole(text)));
        }
        self.asks.clear();
        self.listens.end_all();
        failed
    }
}
