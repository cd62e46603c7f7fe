//! What the session registry knows of the world that makes children: this trait and nothing else.
//!
//! In production the supervisor's client implements it (`supervisor_client.rs` beside this file), in tests a fake that
//! hands out in-memory pipes and forks nothing. A [`Backend`] is not trusted: what comes out of it is bytes of a
//! program that a hostile repository may have talked into anything.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::AsyncRead;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use wire::ending::Ending;
use wire::message::{Label, Refusal, TenantId};
use wire::secret::UpstreamToken;

/// Starts backends.
pub(crate) trait Spawner: Send + Sync + std::fmt::Debug + 'static {
    /// Starts one child for one user. Dropping the future gives up on it; a child that starts all the same is stopped.
    fn spawn(&self, order: SpawnRequest) -> BoxFuture<'_, Result<Backend, SpawnError>>;
}

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) struct SpawnRequest {
    /// Whose child.
    pub(crate) tenant: TenantId,
    /// For the log.
    pub(crate) label: Label,
    /// For the child's environment.
    pub(crate) token: UpstreamToken,
}

/// The far end of a child's standard output or error.
pub(crate) type ReadEnd = Pin<Box<dyn AsyncRead + Send>>;
/// The far end of a child's standard input.
pub(crate) type WriteEnd = Arc<dyn PipeWriter>;

/// A pipe that is written without waiting, and waited for without writing.
pub(crate) trait PipeWriter: Send + Sync {
    /// Writes what the pipe takes now; `WouldBlock` where it takes nothing.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Resolves when the pipe may take something. Any number may wait; safe to cancel.
    fn writable(&self) -> BoxFuture<'_, io::Result<()>>;
}

impl PipeWriter for pipe::Sender {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        pipe::Sender::try_write(self, bytes)
    }

    fn writable(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(pipe::Sender::writable(self))
    }
}

/// A running child. Dropping all of it closes the pipes but does not stop the child; [`Backend::stopper`] does.
pub(crate) struct Backend {
    /// Its standard input.
    pub(crate) stdin: WriteEnd,
    /// Its standard output.
    pub(crate) stdout: ReadEnd,
    /// Its standard error.
    pub(crate) stderr: ReadEnd,
    /// Resolves once, when the child is gone and reaped. A dropped sender reads as [`Ended::SupervisorLost`].
    pub(crate) ended: oneshot::Receiver<Ended>,
    /// Cancelled when the supervisor has said that it stops: the child goes then in any case.
    pub(crate) leaving: CancellationToken,
    /// Cancelled when another program than this child's is installed: it should go when nobody has a call.
    pub(crate) outdated: CancellationToken,
    /// Stops it.
    pub(crate) stopper: Box<dyn Stopper>,
    /// For the log only.
    pub(crate) pid: u32,
    /// For the log only.
    pub(crate) uid: u32,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("pid", &self.pid).field("uid", &self.uid).finish_non_exhaustive()
    }
}

/// Begins the stop ladder of one child. Does not wait; [`Backend::ended`] tells when it is done.
pub(crate) trait Stopper: Send + Sync {
    /// Asks for the stop; asking again changes nothing.
    fn stop(&self);
}

/// How a backend ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The process ended and was reaped.
    Exit(Ending),
    /// The connection to the supervisor is gone, and with it the child. Not the child's doing: the session lives on.
    SupervisorLost,
}

/// Why there is no backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpawnError {
    /// The supervisor cannot be reached now.
    #[error("the supervisor cannot be reached")]
    Unreachable,
    /// The supervisor refused.
    #[error("{0}")]
    Refused(Refusal),
}

impl SpawnError {
    /// How long to wait before trying again, where waiting helps.
    pub(crate) fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Unreachable => Some(Duration::from_secs(2)),
            // It is gone as soon as nobody has a call, and then the next one starts at the first word.
            Self::Refused(Refusal::ShuttingDown) => Some(Duration::from_millis(250)),
            Self::Refused(refusal) => refusal.retry_after_ms().map(|ms| Duration::from_millis(u64::from(ms))),
        }
    }
}
