//! Lines for the journal with their fields, in its native protocol (`systemd.io/JOURNAL_NATIVE_PROTOCOL`).
//!
//! Never waits for the journal: a datagram that its socket does not take at once is dropped and counted, and the count
//! is told with the next line that is taken (`LOST`). A journal that hangs would otherwise hold up the supervisor's one
//! thread. Every value is cut, so that no line is too long for a datagram.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::entry::{Entry, Sink};

/// Where systemd listens (systemd-journald.service(8)).
const SOCKET: &str = "/run/systemd/journal/socket";
/// Bytes of one value; the rest is cut off. A datagram takes some 200 KiB (`net.core.wmem_default`).
const MAX_VALUE: usize = 16 * 1024;

/// Sends each entry as one datagram.
#[derive(Debug)]
pub(crate) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    /// Entries that were dropped since the last one that was sent.
    lost: AtomicU64,
}

impl Journal {
    /// Fails where nobody listens.
    pub(crate) fn open() -> io::Result<Self> {
        Self::to(Path::new(SOCKET))
    }

    fn to(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // The journal takes no notice of an empty one.
        socket.send_to(&[], path)?;
        Ok(Self { socket, path: path.to_owned(), lost: AtomicU64::new(0) })
    }
}

impl Sink for Journal {
    fn send(&self, mut entry: Entry) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            entry.put("LOST", lost.to_string());
        }
        // By name each time: a journal that was started anew listens at the same path with another socket.
        if self.socket.send_to(&datagram(&entry), &self.path).is_err() {
            self.lost.fetch_add(lost.saturating_add(1), Ordering::Relaxed);
        }
    }
}

/// Any value: its length goes ahead of it, so that no newline in it can begin another field.
fn datagram(entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in entry.fields() {
        let value = value.get(..value.floor_char_boundary(MAX_VALUE)).unwrap_or_default();
        bytes.extend(name.as_bytes());
        bytes.push(b'\n');
        bytes.extend(u64::try_from(value.len()).unwrap_or_default().to_le_bytes());
        bytes.extend(value.as_bytes());
        bytes.push(b'\n');
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Entries;
    use crate::telemetry::CHILD;
    use tracing_subscriber::layer::SubscriberExt;

    fn journal() -> (tempfile::TempDir, UnixDatagram, Entries<Journal>) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        let reader = UnixDatagram::bind(&path).expect("bound");
        reader.set_nonblocking(true).expect("set");
        let journal = Journal::to(&path).expect("opened");
        assert_eq!(heard(&reader), Some(Vec::new()), "the first one is empty");
        (dir, reader, Entries::new(journal))
    }

    /// The fields of the next entry, in order.
    fn heard(reader: &UnixDatagram) -> Option<Vec<(String, String)>> {
        let mut bytes = vec![0; 256 * 1024];
        let length = reader.recv(&mut bytes).ok()?;
        let (mut left, mut fields) = (&bytes[..length], Vec::new());
        while !left.is_empty() {
            let name = left.iter().position(|&b| b == b'\n').expect("a name");
            let size: [u8; 8] = left[name + 1..name + 9].try_into().expect("a length");
            let end = name + 9 + usize::try_from(u64::from_le_bytes(size)).expect("fits");
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
            fields.push((text(&left[..name]), text(&left[name + 9..end])));
            assert_eq!(left[end], b'\n');
            left = &left[end + 1..];
        }
        Some(fields)
    }

    fn value<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
        fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn an_entry_has_its_fields_and_those_of_its_spans_and_none_that_a_value_forges() {
        let (_dir, reader, journal) = journal();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), || {
            let span = tracing::info_span!("child", tenant = 7, late = tracing::field::Empty);
            span.record("late", "yes");
            span.in_scope(|| tracing::warn!(MESSAGE_ID = "6f", child_pid = 3, reason = "a\nUID=0", "it was {}", "x"));
        });
        let fields = heard(&reader).expect("an entry");
        for (name, expected) in [
            ("MESSAGE", "it was x"),
            ("MESSAGE_ID", "6f"),
            ("PRIORITY", "4"),
            ("TENANT", "7"),
            ("LATE", "yes"),
            ("CHILD_PID", "3"),
            ("REASON", "a\nUID=0"),
        ] {
            assert_eq!(value(&fields, name), Some(expected), "{fields:?}");
        }
        assert_eq!(value(&fields, "UID"), None);
        assert!(value(&fields, "CODE_FILE").is_some_and(|file| file.ends_with("journal.rs")), "{fields:?}");
    }

    #[test]
    fn what_a_child_writes_has_an_identifier_of_its_own_and_the_fields_of_its_session() {
        let (_dir, reader, journal) = journal();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), || {
            let span = tracing::info_span!("child", session = tracing::field::Empty);
            span.record("session", "0a1b2c3d");
            span.in_scope(|| tracing::info!(target: CHILD, "panic: out of luck"));
            tracing::info!("ours");
        });
        let childs = heard(&reader).expect("an entry");
        assert_eq!(value(&childs, "SYSLOG_IDENTIFIER"), Some("forgejo-mcp"));
        assert_eq!(value(&childs, "SESSION"), Some("0a1b2c3d"));
        assert_eq!(value(&childs, "MESSAGE"), Some("panic: out of luck"));
        assert_ne!(value(&heard(&reader).expect("an entry"), "SYSLOG_IDENTIFIER"), Some("forgejo-mcp"));
    }

    #[test]
    fn a_journal_that_hangs_holds_up_nobody_and_is_told_later_how_much_was_lost() {
        let (_dir, reader, journal) = journal();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), || {
            // Far beyond what the socket keeps (net.unix.max_dgram_qlen, and its memory).
            let long = "x".repeat(100_000);
            for _ in 0..5000 {
                tracing::info!("{long}");
            }
            let mut kept = 0;
            while let Some(fields) = heard(&reader) {
                assert_eq!(value(&fields, "MESSAGE").map(str::len), Some(MAX_VALUE), "a value is cut");
                kept += 1;
            }
            assert!(kept < 5000, "nothing hung, so nothing is proven");
            tracing::info!("again");
            let fields = heard(&reader).expect("an entry");
            assert_eq!(value(&fields, "LOST"), Some((5000 - kept).to_string().as_str()), "{fields:?}");
        });
    }
}
