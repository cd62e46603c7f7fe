//! One session: a record with, at times, a child.
//!
//! What is kept in memory for a session without a child is small on purpose (there may be ten thousand): the
//! parameters of its `initialize` are in the store and read when a child is started again.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::auth::principal::{Given, GrantId, Holder, Principal};
use crate::child::bridge::Bridge;
use crate::child::get_stream::GetStream;
use crate::child::listed::{Listed, ToolSet};
use crate::jsonrpc::Message;
use crate::session::machine::{ChildNumber, Effect, Event, Machine};
use crate::session::quota::Permit;
use crate::session::route::{Route, RouteKey};
use crate::session::settings::Settings;
use crate::store::SessionDigest;
use wire::clock::UnixTime;
use wire::message::TenantId;

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    /// What it is known by.
    pub(crate) digest: SessionDigest,
    /// What it belongs to: nobody else may use it.
    holder: Holder,
    /// The protocol version that was negotiated.
    pub(crate) version: Box<str>,
    /// Its own stream.
    pub(crate) get_stream: Arc<GetStream>,
    /// Its child.
    pub(crate) route: Arc<Route>,
    state: Mutex<State>,
}

/// Whether somebody may use a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// It is another user's or another client's.
    No,
    /// Yes.
    Yes,
    /// Yes, and it belongs to the caller's grant from now on.
    Moved {
        /// What it belonged to.
        from: GrantId,
    },
}

/// All that changes but the child, under one lock.
#[derive(Debug)]
struct State {
    settings: Settings,
    /// What the latest child lists, while there is one.
    listed: Option<Listed>,
    /// The holder's latest grant that used it; ends with it.
    given: Given,
    last_used: UnixTime,
    saved: UnixTime,
    /// Given back when the session ends, which its last request in flight may outlive.
    permit: Option<Permit>,
}

impl Session {
    pub(crate) fn new(record: Record, settings: Settings, machine: Machine<Arc<Bridge>>, permit: Permit) -> Self {
        let Record { digest, holder, given, version, get_stream, last_used } = record;
        let permit = Some(permit);
        let state = State { settings, listed: None, given, last_used, saved: last_used, permit };
        let key = RouteKey::Session(digest);
        let route = Arc::new(Route::new(key, holder.tenant, Arc::clone(&get_stream), machine));
        Self { digest, holder, version, get_stream, route, state: Mutex::new(state) }
    }

    /// Whose it is.
    pub(crate) fn tenant(&self) -> TenantId {
        self.holder.tenant
    }

    /// Through which client.
    pub(crate) fn client(&self) -> &str {
        &self.holder.client_id
    }

    /// The grant that it ends with.
    pub(crate) fn grant(&self) -> GrantId {
        self.state.lock().given.grant.clone()
    }

    /// Whether the caller may use it: the same user through the same client, by whatever login. It moves to a later one,
    /// because the earlier may end first.
    pub(crate) fn admit(&self, caller: &Principal) -> Admitted {
        if self.holder != caller.holder() {
            return Admitted::No;
        }
        let (given, mut state) = (caller.given(), self.state.lock());
        if !given.follows(&state.given) {
            return Admitted::Yes;
        }
        Admitted::Moved { from: std::mem::replace(&mut state.given, given).grant }
    }

    /// It is over: its permit is given back, and this is to be done with its child.
    pub(crate) fn end(&self) -> Effect<Arc<Bridge>> {
        let permit = self.state.lock().permit.take();
        let effect = self.route.step(Event::Over);
        // Outside of the lock: it may go to somebody who waits for it.
        drop(permit);
        effect
    }

    /// Whether it has not been used since `since`, and nothing is under way.
    pub(crate) fn is_unused_since(&self, since: UnixTime) -> bool {
        // In this order: a use is noted before its request wants a child.
        !self.route.is_busy() && self.last_used() <= since
    }

    /// Notes that the client used it.
    pub(crate) fn touch(&self, now: UnixTime) {
        let mut state = self.state.lock();
        state.last_used = state.last_used.max(now);
    }

    /// Notes a request that the child has been sent, for the child after it.
    pub(crate) fn note(&self, request: &Message) {
        if Settings::concerns(request) {
            self.state.lock().settings.note(request);
        }
    }

    /// Takes over what was recorded of the settings, and gives what a fresh child is brought to and measured by: the
    /// requests, the tools, and what the child before answered to `initialize` if that was not as the first did.
    pub(crate) fn restored_settings(&self, recorded: &str) -> (Vec<Message>, Option<ToolSet>, Option<Box<str>>) {
        let mut state = self.state.lock();
        state.settings.restore(recorded);
        state.note_listed();
        (state.settings.requests(), state.settings.tools(), state.settings.answer())
    }

    /// Its latest child is this one, which lists tools here.
    pub(crate) fn follows(&self, listed: Listed) {
        let mut state = self.state.lock();
        state.note_listed();
        state.listed = Some(listed);
    }

    /// Its latest child answered `initialize` in another way than the one before.
    pub(crate) fn answered(&self, answer: String) {
        self.state.lock().settings.answered(answer);
    }

    /// The settings to write to the store, if they are not there yet; they count as written from now on.
    pub(crate) fn take_unsaved_settings(&self) -> Option<String> {
        let mut state = self.state.lock();
        state.note_listed();
        state.settings.take_unsaved()
    }

    /// The settings could not be written after all.
    pub(crate) fn settings_not_saved(&self) {
        self.state.lock().settings.not_saved();
    }

    /// When the client last used it.
    pub(crate) fn last_used(&self) -> UnixTime {
        self.state.lock().last_used
    }

    /// The time to write to the store, if it is not there yet.
    pub(crate) fn unsaved_use(&self) -> Option<UnixTime> {
        let state = self.state.lock();
        (state.saved != state.last_used).then_some(state.last_used)
    }

    /// This time was written.
    pub(crate) fn use_saved(&self, at: UnixTime) {
        self.state.lock().saved = at;
    }

    /// The running child, if one runs, with its number.
    pub(crate) fn child(&self) -> Option<(ChildNumber, Arc<Bridge>)> {
        self.route.child()
    }

    /// The running child, if one runs.
    pub(crate) fn live(&self) -> Option<Arc<Bridge>> {
        self.route.live()
    }
}

impl State {
    fn note_listed(&mut self) {
        if let Some(listed) = self.listed.take() {
            let is_final = listed.is_final();
            self.settings.listed(listed.get());
            self.listed = Some(listed).filter(|_| !is_final);
        }
    }
}

/// The parts of a session that the store knows too.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) digest: SessionDigest,
    pub(crate) holder: Holder,
    pub(crate) given: Given,
    pub(crate) version: Box<str>,
    pub(crate) get_stream: Arc<GetStream>,
    pub(crate) last_used: UnixTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes on 64-bit targets, in three allocations.
    const SMALL: usize = 520;

    #[test]
    fn a_session_without_a_child_is_small() {
        // Beside these: the texts of its holder, its grant and its settings, and its entries in the table.
        let parts = size_of::<Session>() + size_of::<Route>() + size_of::<GetStream>();
        assert!(parts <= SMALL, "{} + {} + {}", size_of::<Session>(), size_of::<Route>(), size_of::<GetStream>());
    }
}
