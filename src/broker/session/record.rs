//! One session: a record with, at times, a child.
//!
//! What is kept in memory for a session without a child is small on purpose (there may be ten thousand): the
//! parameters of its `initialize` are in the store and read when a child is started again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::auth::principal::GrantId;
use crate::child::bridge::Bridge;
use crate::child::get_stream::GetStream;
use crate::jsonrpc::Message;
use crate::session::error::SessionError;
use crate::session::quota::Permit;
use crate::session::restart_backoff::RestartBackoff;
use crate::session::settings::Settings;
use crate::store::SessionDigest;
use wire::clock::UnixTime;
use wire::message::TenantId;

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    /// What it is known by.
    pub(crate) digest: SessionDigest,
    /// The grant that minted it; no other may use it.
    pub(crate) grant: GrantId,
    /// Whose it is.
    pub(crate) tenant: TenantId,
    /// The protocol version that was negotiated.
    pub(crate) version: Box<str>,
    /// Its own stream.
    pub(crate) get_stream: Arc<GetStream>,
    pub(crate) child: Mutex<Child>,
    /// Whether a child with a newer token is being started.
    pub(crate) renewing: AtomicBool,
    pub(crate) restart_backoff: Mutex<RestartBackoff>,
    pub(crate) settings: Mutex<Settings>,
    last_used: AtomicI64,
    saved: AtomicI64,
    /// Given back when the session ends, which its last request in flight may outlive.
    pub(crate) permit: Mutex<Option<Permit>>,
}

/// What serves a session.
#[derive(Debug)]
pub(crate) enum Child {
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
    pub(crate) fn new(record: Record, settings: Settings, child: Child, permit: Permit) -> Self {
        let Record { digest, grant, tenant, version, get_stream, last_used } = record;
        Self {
            digest,
            grant,
            tenant,
            version,
            get_stream,
            child: Mutex::new(child),
            renewing: AtomicBool::new(false),
            restart_backoff: Mutex::default(),
            settings: Mutex::new(settings),
            last_used: AtomicI64::new(last_used.secs()),
            saved: AtomicI64::new(last_used.secs()),
            permit: Mutex::new(Some(permit)),
        }
    }

    /// Notes that the client used it.
    pub(crate) fn touch(&self, now: UnixTime) {
        self.last_used.fetch_max(now.secs(), Ordering::Relaxed);
    }

    /// Notes a request that the child has been sent, for the child after it.
    pub(crate) fn note(&self, request: &Message) {
        self.settings.lock().note(request);
    }

    /// When the client last used it.
    pub(crate) fn last_used(&self) -> UnixTime {
        UnixTime::from_secs(self.last_used.load(Ordering::Relaxed))
    }

    /// The time to write to the store, if it is not there yet.
    pub(crate) fn unsaved_use(&self) -> Option<UnixTime> {
        let last = self.last_used.load(Ordering::Relaxed);
        (self.saved.swap(last, Ordering::Relaxed) != last).then(|| UnixTime::from_secs(last))
    }

    /// The running child, if one runs.
    pub(crate) fn live(&self) -> Option<Arc<Bridge>> {
        match &*self.child.lock() {
            Child::Live(bridge) => Some(Arc::clone(bridge)),
            Child::Cold | Child::Starting(_) | Child::Ended => None,
        }
    }

    /// Whether requests are in flight or a child is being started.
    pub(crate) fn is_busy(&self) -> bool {
        match &*self.child.lock() {
            Child::Live(bridge) => bridge.in_flight() > 0,
            Child::Starting(_) => true,
            Child::Cold | Child::Ended => false,
        }
    }

    /// Lets go of `bridge` if it is the one that serves; the next request starts another. Whether it was.
    pub(crate) fn detach(&self, bridge: &Arc<Bridge>) -> bool {
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
pub(crate) struct Record {
    pub(crate) digest: SessionDigest,
    pub(crate) grant: GrantId,
    pub(crate) tenant: TenantId,
    pub(crate) version: Box<str>,
    pub(crate) get_stream: Arc<GetStream>,
    pub(crate) last_used: UnixTime,
}
