//! One session: a record with, at times, a child.
//!
//! What is kept in memory for a session without a child is small on purpose (there may be ten thousand): the
//! parameters of its `initialize` are in the store and read when a child is started again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::bridge::Bridge;
use super::error::SessionError;
use super::falls::Falls;
use super::listener::Listener;
use super::places::Place;
use super::settings::Settings;
use crate::clock::UnixTime;
use crate::frontend::jsonrpc::Message;
use crate::frontend::principal::GrantId;
use crate::frontend::store::SessionDigest;
use crate::ipc::message::TenantId;

/// A session.
#[derive(Debug)]
pub struct Session {
    /// What it is known by.
    pub digest: SessionDigest,
    /// The grant that minted it; no other may use it.
    pub grant: GrantId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The protocol version that was negotiated.
    pub version: Box<str>,
    /// Its own stream.
    pub listener: Arc<Listener>,
    pub(super) child: Mutex<Child>,
    /// Whether a child with a newer token is being started.
    pub(super) renewing: AtomicBool,
    pub(super) falls: Mutex<Falls>,
    pub(super) settings: Mutex<Settings>,
    last_used: AtomicI64,
    saved: AtomicI64,
    /// Given back when the session ends, which its last request in flight may outlive.
    pub(super) place: Mutex<Option<Place>>,
}

/// What serves a session.
#[derive(Debug)]
pub(super) enum Child {
    /// Nothing; the next request starts a child.
    Cold,
    /// A child is being started; whoever needs it waits for the outcome.
    Starting(watch::Receiver<Option<Result<Arc<Bridge>, SessionError>>>),
    /// This one.
    Live(Arc<Bridge>),
    /// The session is over.
    Ended,
}

impl Session {
    pub(super) fn new(record: Record, settings: Settings, child: Child, place: Place) -> Self {
        let Record { digest, grant, tenant, version, listener, last_used } = record;
        Self {
            digest,
            grant,
            tenant,
            version,
            listener,
            child: Mutex::new(child),
            renewing: AtomicBool::new(false),
            falls: Mutex::default(),
            settings: Mutex::new(settings),
            last_used: AtomicI64::new(last_used.secs()),
            saved: AtomicI64::new(last_used.secs()),
            place: Mutex::new(Some(place)),
        }
    }

    /// Notes that the client used it.
    pub fn touch(&self, now: UnixTime) {
        self.last_used.fetch_max(now.secs(), Ordering::Relaxed);
    }

    /// Notes a request that the child has been sent, for the child after it.
    pub fn note(&self, request: &Message) {
        self.settings.lock().note(request);
    }

    /// When the client last used it.
    pub fn last_used(&self) -> UnixTime {
        UnixTime::from_secs(self.last_used.load(Ordering::Relaxed))
    }

    /// The time to write to the store, if it is not there yet.
    pub(super) fn unsaved_use(&self) -> Option<UnixTime> {
        let last = self.last_used.load(Ordering::Relaxed);
        (self.saved.swap(last, Ordering::Relaxed) != last).then(|| UnixTime::from_secs(last))
    }

    /// The running child, if one runs.
    pub fn live(&self) -> Option<Arc<Bridge>> {
        match &*self.child.lock() {
            Child::Live(bridge) => Some(Arc::clone(bridge)),
            Child::Cold | Child::Starting(_) | Child::Ended => None,
        }
    }

    /// Whether requests are in flight or a child is being started.
    pub(super) fn is_busy(&self) -> bool {
        match &*self.child.lock() {
            Child::Live(bridge) => bridge.in_flight() > 0,
            Child::Starting(_) => true,
            Child::Cold | Child::Ended => false,
        }
    }

    /// Lets go of `bridge` if it is the one that serves; the next request starts another. Whether it was.
    pub fn chill(&self, bridge: &Arc<Bridge>) -> bool {
        let mut child = self.child.lock();
        let serves = matches!(&*child, Child::Live(live) if Arc::ptr_eq(live, bridge));
        if serves {
            *child = Child::Cold;
        }
        serves
    }
}

/// The parts of a session that the store knows too.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) digest: SessionDigest,
    pub(super) grant: GrantId,
    pub(super) tenant: TenantId,
    pub(super) version: Box<str>,
    pub(super) listener: Arc<Listener>,
    pub(super) last_used: UnixTime,
}
