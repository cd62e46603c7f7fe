//! What the time brings to requests in flight: their deadlines, and silence, in which the form of an answer is settled.
//!
//! An answer may be of any size, and some clients refuse an event above 1 MiB where they read JSON of any size. So silence
//! makes it JSON, and only a message ahead of it an event stream: what comes after the silence goes to the session's own
//! stream. A client that does not listen there and can be asked for something gets an event stream all the same, because a
//! question that nobody hears fails the call.

use std::time::Duration;

use tokio::time::Instant;

use super::{Calls, Event, Mode};
use crate::child::abilities::Abilities;
use crate::child::calls::form::Form;
use crate::jsonrpc::{self, Spliced, code};

/// How long nothing is said to a client that waits before it hears of it the first time.
pub(super) const FIRST_SILENCE: Duration = Duration::from_secs(10);
/// And each further time, so that proxies keep a stream open and a dead peer is noticed.
pub(super) const SILENCE: Duration = Duration::from_secs(15);

impl Calls {
    /// What the time brings, called once a second while anything is in flight: gives up on requests whose deadline has
    /// passed and on the child's that the client never answered, and tells clients that wait of silence; `is_listened_to`
    /// tells whether somebody listens to the session's own stream. What to tell the child.
    pub(crate) fn tick(&mut self, now: Instant, is_listened_to: bool) -> Vec<Spliced> {
        // A stateless client is asked by way of the answer itself.
        let can_only_be_asked_here =
            self.mode == Mode::Session && !is_listened_to && self.abilities != Abilities::default();
        let settled = if can_only_be_asked_here { Form::Events } else { Form::Json };
        let mut out: Vec<Spliced> = Vec::new();
        let before = self.open.len();
        self.open.retain(|&number, call| {
            let keep = now < call.deadline;
            if !keep {
                let _ = call.to.try_send(Event::TimedOut);
                out.push(cancelled(number, "timeout"));
            } else if now >= call.silent_at {
                call.silent_at = now + SILENCE;
                if call.form == Form::Open {
                    call.form = settled;
                }
                // A client that reads nothing needs no word of it.
                let _ = call.to.try_send(Event::Silence(call.form));
            }
            keep
        });
        if self.open.len() < before {
            self.touched = now;
        }
        self.asks.retain(|_, ask| {
            let keep = now < ask.deadline;
            if !keep {
                let text =
                    jsonrpc::error_text(Some(&ask.id), code::INTERNAL_ERROR, "the client did not answer in time");
                out.push(Spliced::whole(text));
            }
            keep
        });
        out
    }
}

pub(super) fn cancelled(number: u64, why: &str) -> Spliced {
    let text = format!(
        r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{number},"reason":"{why}"}}}}"#
    );
    Spliced::whole(text.into())
}
