//! Asks walship's agent, as `push` and `restore` do first, over a Unix socket. No runtime, no TLS.
//!
//! If anything is wrong with the agent (it does not run, it hangs, it is another user's, it has another version), the
//! answer is `None` within [`protocol::SILENCE`], and the caller does the work itself.

mod address;
pub mod protocol;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tempfile::TempPath;

pub use self::address::{Address, Archive, is_ours, make_folder};
pub use self::protocol::Ask;
use self::protocol::{LINE_LIMIT, Reply, Request, SILENCE, What, line, parse};
use walship_core::{Error, ErrorKind, Result};

/// What an agent answered.
#[derive(Debug)]
pub enum Answer {
    /// The file is durable in the archive.
    Stored,
    /// The file is verified, and waits here to be renamed.
    Ready(ReadyFile),
    /// It is proven that the archive has no such file.
    Absent(String),
    /// The archive has the segment, and it is not for this server.
    Withheld(String),
    /// The agent is alive.
    Alive,
}

/// A file in the agent's spool. The agent keeps it while the connection is open.
#[derive(Debug)]
pub struct ReadyFile {
    file: TempPath,
    _conversation: UnixStream,
}

impl ReadyFile {
    /// Gives the file its name, unless a file of that name exists.
    ///
    /// # Errors
    /// The operating system's: the agent may have ended and removed the file.
    pub fn deliver(self, destination: &Path) -> std::io::Result<()> {
        self.file
            .persist_noclobber(destination)
            .map_err(|failed| failed.error)
    }
}

/// Asks the agent, and waits for its answer for at most `limit`. `None` where no agent can be relied on: the caller
/// does the work itself then.
///
/// # Errors
/// The failure of the agent's work, if the caller's own work would end in the same way.
#[must_use]
pub fn ask(address: &Address, ask: Ask, limit: Duration) -> Option<Result<Answer>> {
    let request = Request {
        fingerprint: address.fingerprint()?,
        ask,
    };
    let (reply, conversation) = converse(address, &request, limit)?;
    match reply {
        Reply::Stored => Some(Ok(Answer::Stored)),
        Reply::Ready { file } => Some(Ok(Answer::Ready(ReadyFile {
            file: TempPath::try_from_path(file).ok()?,
            _conversation: conversation,
        }))),
        Reply::Absent { reason } => Some(Ok(Answer::Absent(reason))),
        Reply::Withheld { reason } => Some(Ok(Answer::Withheld(reason))),
        Reply::Alive => Some(Ok(Answer::Alive)),
        Reply::Failed { kind, message } if is_relied_on(kind) => Some(Err(Error::new(kind, message))),
        Reply::Failed { .. } | Reply::Working | Reply::Foreign => None,
    }
}

/// Whether a client takes this failure of the agent's for its own. Else its own environment may do better: other
/// credentials, files, settings.
#[must_use]
pub fn is_relied_on(kind: ErrorKind) -> bool {
    !matches!(
        kind,
        ErrorKind::Denied | ErrorKind::Invalid | ErrorKind::Internal | ErrorKind::NotFound
    )
}

/// Tells the agent what was done without it. Nobody waits for it, and nothing depends on it.
pub fn tell(address: &Address, what: What, took: Duration, failure: Option<ErrorKind>) {
    let told = || {
        let ask = Ask::Done {
            what,
            millis: took.as_millis() as u64,
            failure,
        };
        let fingerprint = address.fingerprint()?;
        let mut stream = connect(address)?;
        stream.set_write_timeout(Some(SILENCE)).ok()?;
        stream.write_all(&line(&Request { fingerprint, ask }).ok()?).ok()
    };
    let _ = told();
}

/// Sends the request and reads lines until one is an answer. Returns the answer and its connection.
fn converse(address: &Address, request: &Request, limit: Duration) -> Option<(Reply, UnixStream)> {
    let deadline = Instant::now() + limit;
    let mut stream = connect(address)?;
    stream.set_write_timeout(Some(SILENCE)).ok()?;
    stream.write_all(&line(request).ok()?).ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            // The agent is alive, and has tried for as long as this process may.
            let reply = Reply::Failed {
                kind: ErrorKind::Unavailable,
                message: format!("the agent was not done within {} s", limit.as_secs_f64()),
            };
            return Some((reply, reader.into_inner()));
        };
        let silence = SILENCE.min(left.max(Duration::from_millis(1)));
        reader.get_ref().set_read_timeout(Some(silence)).ok()?;
        let mut text = Vec::new();
        reader
            .by_ref()
            .take(LINE_LIMIT)
            .read_until(b'\n', &mut text)
            .ok()?;
        if text.pop() != Some(b'\n') {
            return None;
        }
        match parse(&text).ok()? {
            Reply::Working => {}
            reply => return Some((reply, reader.into_inner())),
        }
    }
}

/// Connects without waiting: an agent that was stopped lets its queue fill, and then `connect` would
/// block for ever.
fn connect(address: &Address) -> Option<UnixStream> {
    let to = SocketAddrUnix::new(&address.socket).ok()?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    rustix::net::connect(&socket, &to).ok()?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    (peer.uid == rustix::process::geteuid()).then_some(stream)
}
