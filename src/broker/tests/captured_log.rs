//! What is logged on the thread of a test, as text.

use std::io;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use tracing::Dispatch;
use tracing::subscriber::{DefaultGuard, NoSubscriber};

/// Two that listen to nothing and stay. While only one subscriber is known, tracing asks none but the current thread's
/// whether a line that comes for the first time is of interest, and keeps the answer for all threads: a test beside
/// this one, without a log, would silence the line.
static MORE_THAN_ONE: LazyLock<[Dispatch; 2]> = LazyLock::new(|| [(); 2].map(|()| Dispatch::new(NoSubscriber::new())));

/// The lines so far. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl io::Write for CapturedLog {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl CapturedLog {
    /// Begins; ends with the guard.
    pub(crate) fn begin() -> (Self, DefaultGuard) {
        LazyLock::force(&MORE_THAN_ONE);
        let lines = Self::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (lines, tracing::subscriber::set_default(log))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).expect("text")
    }

    /// The lines with this message id.
    pub(crate) fn of(&self, message_id: &str) -> Vec<String> {
        self.text().lines().filter(|line| line.contains(message_id)).map(str::to_owned).collect()
    }
}

#[test]
fn a_line_that_a_thread_without_a_log_was_first_to_say_is_captured() {
    let (log, _here) = CapturedLog::begin();
    let say = || tracing::info!("said");
    std::thread::spawn(say).join().expect("no panic");
    say();
    assert_eq!(log.text().matches("said").count(), 1, "{}", log.text());
}
