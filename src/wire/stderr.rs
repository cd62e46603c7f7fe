//! Standard error for log lines, which never waits for a reader: what cannot be written at once is dropped and counted.
//!
//! Standard error may be a pipe or a terminal that nobody reads any more. A write that waits for it would hold up the
//! supervisor's one thread, and with it every user, or all workers of the broker, one behind the other.
//!
//! `O_NONBLOCK` on descriptor 2 is no way: the flag sits on the open file description, which is shared with whoever
//! started the program, such as a shell and its terminal. So a pipe or terminal is opened anew by `/proc/self/fd/2`,
//! which makes a description of our own (proc(5)). Where that is refused, as with a pipe of another user's, poll(2) is
//! asked first and no more than `PIPE_BUF` is written, which a pipe that is ready takes whole (pipe(7)); only another
//! program that writes to the same pipe in that moment could make it wait. A socket is asked with `MSG_DONTWAIT`. A file
//! is written to as it is: it waits for its disk alone.

use std::fs::{File, OpenOptions};
use std::io;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use tracing_subscriber::fmt::MakeWriter;

use crate::json_lines;

/// Bytes of one line; the rest is cut off. Longer ones are lists of what is wrong with a configuration.
const MAX_LINE: usize = 16 * 1024;
/// What a pipe takes whole or not at all (pipe(7): `PIPE_BUF` of Linux).
const PIPE_BUF: usize = 4096;

/// There is one standard error for the whole process.
static STDERR: OnceLock<Mutex<Lines<Stderr>>> = OnceLock::new();

/// Opens what the lines go to, while there is a descriptor for it.
pub(crate) fn open() -> &'static Mutex<Lines<Stderr>> {
    STDERR.get_or_init(|| Mutex::new(Lines::new(Stderr::open())))
}

/// Writes one line, or counts it as lost. Never waits.
pub(crate) fn line(text: &[u8]) {
    open().lock().unwrap_or_else(PoisonError::into_inner).line(text);
}

/// For the subscriber: each event is one write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        line(text);
        // Never an error: the subscriber would tell it on standard error, and wait there.
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        *self
    }
}

/// Writes without waiting: how many bytes were taken; `WouldBlock` for none.
pub(crate) trait TryWrite {
    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize>;
}

/// Descriptor 2, by what it is.
#[derive(Debug)]
pub(crate) enum Stderr {
    /// Opened anew, so that it does not wait by itself.
    Own(File),
    /// A socket.
    Socket,
    /// Everything else, which is asked first.
    Shared,
}

impl Stderr {
    fn open() -> Self {
        let path = "/proc/self/fd/2";
        let Ok(meta) = std::fs::metadata(path) else { return Self::Shared };
        let kind = meta.file_type();
        if kind.is_socket() {
            return Self::Socket;
        }
        if kind.is_file() {
            // Not opened anew: that would begin at the start of the file. It is always ready.
            return Self::Shared;
        }
        let opened = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
        opened.map_or(Self::Shared, Self::Own)
    }
}

impl TryWrite for Stderr {
    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Own(file) => file.write(bytes),
            Self::Socket => Ok(send(io::stderr().as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?),
            Self::Shared => {
                let stderr = io::stderr();
                let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut ready, PollTimeout::ZERO)? == 0 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(nix::unistd::write(stderr.as_fd(), bytes.get(..PIPE_BUF).unwrap_or(bytes))?)
            }
        }
    }
}

/// Lines on their way to something that may not take them.
#[derive(Debug)]
pub(crate) struct Lines<W> {
    to: W,
    /// The end of a line whose beginning was written; at most [`MAX_LINE`] bytes.
    rest: Vec<u8>,
    /// Lines that were dropped since the last one that was written.
    lost: u64,
}

impl<W: TryWrite> Lines<W> {
    const fn new(to: W) -> Self {
        Self { to, rest: Vec::new(), lost: 0 }
    }

    fn line(&mut self, text: &[u8]) {
        let mut rest = std::mem::take(&mut self.rest);
        rest.drain(..self.write(&rest));
        self.rest = rest;
        if self.lost > 0 {
            let note = format!("{} log lines were lost: nobody read them", self.lost);
            let note = if json_lines::is_on() { json_lines::of_text("4", &note) } else { note + "\n" };
            if self.begin(note.as_bytes()) {
                self.lost = 0;
            }
        }
        let cut = text.get(..MAX_LINE - 1).map(|begin| [begin, b"\n"].concat());
        if self.lost > 0 || !self.begin(cut.as_deref().unwrap_or(text)) {
            self.lost = self.lost.saturating_add(1);
        }
    }

    /// Begins a line, if nothing is ahead of it; its end is kept in `rest`. `false`: none of it was written.
    fn begin(&mut self, line: &[u8]) -> bool {
        let taken = if self.rest.is_empty() { self.write(line) } else { 0 };
        if taken > 0 {
            line.get(taken..).unwrap_or_default().clone_into(&mut self.rest);
        }
        taken > 0
    }

    /// How much of it can be written now.
    fn write(&mut self, text: &[u8]) -> usize {
        let mut left = text;
        while !left.is_empty() {
            match self.to.try_write(left.get(..PIPE_BUF).unwrap_or(left)) {
                Ok(taken) if taken > 0 => left = left.get(taken..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Full, or closed for good, and then there is nobody to tell.
                Ok(_) | Err(_) => break,
            }
        }
        text.len() - left.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, and then none.
    #[derive(Debug, Default)]
    struct Reader {
        room: usize,
        read: Vec<u8>,
    }

    impl TryWrite for Reader {
        fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            self.read.extend(&bytes[..taken]);
            if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
        }
    }

    fn read(lines: &Lines<Reader>) -> String {
        String::from_utf8_lossy(&lines.to.read).into_owned()
    }

    #[test]
    fn a_line_is_whole_or_lost_and_the_lost_ones_are_counted_once_it_flows_again() {
        let mut lines = Lines::new(Reader { room: 9, ..Reader::default() });
        for line in ["one\n", "two, long\n", "three\n", "four\n"] {
            lines.line(line.as_bytes());
        }
        assert_eq!(read(&lines), "one\ntwo, ", "begun, and never two lines in one");
        lines.to.room = 1000;
        lines.line(b"five\n");
        lines.line(b"six\n");
        assert_eq!(read(&lines), "one\ntwo, long\n2 log lines were lost: nobody read them\nfive\nsix\n");
        // Room for the note, and no more.
        lines.to.room = 0;
        lines.line(b"seven\n");
        let note = "1 log lines were lost: nobody read them\n";
        lines.to.room = note.len();
        lines.line(b"eight\n");
        lines.to.room = 1000;
        lines.line(b"nine\n");
        assert!(read(&lines).ends_with(&format!("six\n{note}{note}nine\n")), "{}", read(&lines));
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut lines = Lines::new(Reader { room: 1, ..Reader::default() });
        for _ in 0..3 {
            lines.line(&vec![b'x'; 10 * MAX_LINE]);
        }
        assert_eq!((lines.rest.len(), lines.lost), (MAX_LINE - 1, 2));
    }
}
