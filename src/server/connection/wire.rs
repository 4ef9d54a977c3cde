//! Messages on a stream: bytes in, PostgreSQL's protocol messages out, each read under a deadline.
//!
//! Reading is by blocks, and the payload of a message is a slice of its block: a base backup is not
//! copied on its way. A read that is cancelled half-way loses nothing.

use std::io;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use postgres_protocol::message::backend::{Header, Message};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::error::{Error, Result};

/// The read buffer grows in blocks of this size, a little more than a socket's buffer holds.
const BLOCK_BYTES: usize = 256 * 1024;
/// With less room than this a new block is allocated, and the start of the message is moved there.
const LEAST_ROOM_BYTES: usize = 64 * 1024;
/// The longest message before the login, while the sender is unknown.
const LOGIN_MESSAGE_BYTES: usize = 64 * 1024;
/// The longest message after it. A base backup's are 32 KiB.
const MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// One end of PostgreSQL's protocol.
pub(super) struct Wire<S> {
    stream: S,
    buffer: BytesMut,
    longest_bytes: usize,
    peer: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// A fresh connection to a peer of this name.
    pub(super) fn new(stream: S, peer: String) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            longest_bytes: LOGIN_MESSAGE_BYTES,
            peer,
        }
    }

    /// Lifts the limits that hold before the login.
    pub(super) fn logged_in(&mut self) {
        self.longest_bytes = MESSAGE_BYTES;
    }

    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    /// Who is at the other end, for messages.
    pub(super) fn peer(&self) -> &str {
        &self.peer
    }

    pub(super) async fn send(&mut self, bytes: &[u8], limit: Duration) -> Result<()> {
        let sending = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        match tokio::time::timeout(limit, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.broken(&error)),
            Err(_) => Err(self.silent(limit)),
        }
    }

    /// The next message. `limit` is for each wait for bytes: each block has a timer, not each message.
    pub(super) async fn receive(&mut self, limit: Duration) -> Result<Message> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(message);
            }
            self.fill(limit).await?;
        }
    }

    async fn fill(&mut self, limit: Duration) -> Result<()> {
        if self.buffer.capacity() - self.buffer.len() < LEAST_ROOM_BYTES {
            self.buffer.reserve(BLOCK_BYTES);
        }
        let reading = self.stream.read_buf(&mut self.buffer);
        match tokio::time::timeout(limit, reading).await {
            Ok(Ok(0)) => Err(self.broken(&io::ErrorKind::UnexpectedEof.into())),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.broken(&error)),
            Err(_) => Err(self.silent(limit)),
        }
    }

    /// The tag of the next message, which is still to be received.
    pub(super) async fn next_tag(&mut self, limit: Duration) -> Result<u8> {
        loop {
            let header = Header::parse(&self.buffer).map_err(|error| self.garbled(&error.to_string()))?;
            if let Some(header) = header {
                return Ok(header.tag());
            }
            self.fill(limit).await?;
        }
    }

    /// Skips the next message.
    pub(super) async fn pass(&mut self, limit: Duration) -> Result<()> {
        loop {
            let header = Header::parse(&self.buffer).map_err(|error| self.garbled(&error.to_string()))?;
            // The length counts itself, and not the tag.
            let length = header.and_then(|header| usize::try_from(header.len()).ok()?.checked_add(1));
            match length {
                Some(length) if length > self.longest_bytes => {
                    return Err(self.garbled(&format!("a message of {length} bytes")));
                }
                Some(length) if self.buffer.len() >= length => {
                    self.buffer.advance(length);
                    return Ok(());
                }
                _ => self.fill(limit).await?,
            }
        }
    }

    fn buffered(&mut self) -> Result<Option<Message>> {
        let header = Header::parse(&self.buffer).map_err(|error| self.garbled(&error.to_string()))?;
        let Some(header) = header else {
            return Ok(None);
        };
        if usize::try_from(header.len()).map_or(true, |length| length > self.longest_bytes) {
            return Err(self.garbled(&format!("a message of {} bytes", header.len())));
        }
        Message::parse(&mut self.buffer).map_err(|error| self.garbled(&error.to_string()))
    }

    /// The peer sent something that is not the protocol.
    pub(super) fn garbled(&self, what: &str) -> Error {
        Error::corrupt(format!(
            "{} sent something that PostgreSQL does not send ({what}); check that host and port lead to a PostgreSQL server",
            self.peer
        ))
    }

    fn silent(&self, limit: Duration) -> Error {
        Error::unavailable(format!(
            "{} sent nothing for {} s; check the server's load and the network, and try again",
            self.peer,
            limit.as_secs_f32()
        ))
    }

    fn broken(&self, error: &io::Error) -> Error {
        let what = match error.kind() {
            io::ErrorKind::UnexpectedEof => "the server closed it".to_owned(),
            _ => error.to_string(),
        };
        Error::unavailable(format!(
            "the connection to {} broke: {what}; look into the server's log, and try again",
            self.peer
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    async fn receive(bytes: &[u8]) -> Result<Message> {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut wire = Wire::new(near, "db".to_owned());
        far.write_all(bytes).await.unwrap();
        wire.receive(LIMIT).await
    }

    #[tokio::test]
    async fn a_message_that_claims_to_be_huge_is_refused_before_it_is_read() {
        let error = receive(b"d\x7F\xFF\xFF\xFF").await.err().unwrap();
        assert_eq!(error.kind(), crate::ErrorKind::Corrupt);
    }

    #[tokio::test]
    async fn what_another_kind_of_server_says_is_an_error() {
        for bytes in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"SSH-2.0-OpenSSH",
            b"Z\0\0\0\x01",
            b"?\0\0\0\x04",
        ] {
            assert!(receive(bytes).await.is_err());
        }
    }

    #[tokio::test]
    async fn silence_ends_at_the_deadline() {
        let (near, _far) = tokio::io::duplex(64);
        let error = Wire::new(near, "db".to_owned())
            .receive(LIMIT)
            .await
            .err()
            .unwrap();
        assert!(
            error.is_retryable() && error.to_string().contains("nothing for 0.2 s"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_message_that_arrives_in_pieces_is_one_message() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut wire = Wire::new(near, "db".to_owned());
        tokio::spawn(async move {
            for byte in b"d\0\0\0\x07abc" {
                far.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            far
        });
        match wire.receive(LIMIT).await.unwrap() {
            Message::CopyData(body) => assert_eq!(body.data(), b"abc"),
            _ => panic!("another message"),
        }
    }
}
