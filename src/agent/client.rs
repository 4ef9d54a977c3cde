//! The client's side, for `push` and `restore`: a socket and nothing else. No runtime, no TLS.
//!
//! Whatever is wrong with the agent (there is none, it hangs, it is another user's, it speaks
//! another version) ends in `None` within [`super::protocol::SILENCE`], and the caller does the work.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::Address;
use super::protocol::{Ask, LINE_LIMIT, Reply, Request, SILENCE, line, parse};
use crate::error::{Error, ErrorKind, Result};

/// What an agent answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The file is durable in the archive.
    Stored,
    /// The file is verified, and waits here to be renamed.
    Ready(PathBuf),
    /// It is proven that the archive has no such file.
    Absent(String),
    /// It lives.
    Alive,
}

/// Asks the agent, and waits for its answer for at most `limit`; `None` where there is no agent to be
/// relied on, so that the caller does the work itself.
///
/// # Errors
/// What the agent's work failed with, where the caller's own would end in the same way.
#[must_use]
pub fn ask(address: &Address, ask: Ask, limit: Duration) -> Option<Result<Answer>> {
    let request = Request {
        fingerprint: address.fingerprint()?,
        ask,
    };
    match converse(address, &request, limit)? {
        Reply::Stored => Some(Ok(Answer::Stored)),
        Reply::Ready { file } => Some(Ok(Answer::Ready(file))),
        Reply::Absent { reason } => Some(Ok(Answer::Absent(reason))),
        Reply::Alive => Some(Ok(Answer::Alive)),
        // What this process's own environment may know better: credentials, files, settings.
        Reply::Failed {
            kind: ErrorKind::Denied | ErrorKind::Invalid | ErrorKind::Internal | ErrorKind::NotFound,
            ..
        }
        | Reply::Working
        | Reply::Foreign => None,
        Reply::Failed { kind, message } => Some(Err(Error::new(kind, message))),
    }
}

/// Sends the request and reads lines until one is an answer.
fn converse(address: &Address, request: &Request, limit: Duration) -> Option<Reply> {
    let deadline = Instant::now() + limit;
    let mut stream = connect(address)?;
    stream.set_write_timeout(Some(SILENCE)).ok()?;
    stream.write_all(&line(request).ok()?).ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            // It lives, and has tried as long as this process may.
            return Some(Reply::Failed {
                kind: ErrorKind::Unavailable,
                message: format!("the agent was not done within {} s", limit.as_secs_f64()),
            });
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
            reply => return Some(reply),
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
