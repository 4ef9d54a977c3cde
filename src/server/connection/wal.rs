//! Reads a little of the server's own WAL, as it sends it to a standby (`START_REPLICATION`, "Streaming Replication
//! Protocol" in PostgreSQL's manual, 14 to 18).

use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::Connection;
use crate::error::{Error, Result};
use crate::pg::{Lsn, TimelineId, WAL_PIECE_BYTES, WalPiece};

/// `CopyBothResponse`, which begins the stream.
const COPY_BOTH: u8 = b'W';
/// The header of a message with WAL: its position, the end of the server's WAL, and the server's clock.
const HEADER_BYTES: usize = 24;
const GOODBYE: Duration = Duration::from_secs(1);

impl Connection {
    /// The WAL between two positions that the server has written; at most [`WAL_PIECE_BYTES`] of it. Ends the
    /// connection. To the server this is a standby that follows for a moment and confirms nothing.
    ///
    /// # Errors
    /// What the server reports: it has removed that WAL, or has no room for another WAL sender. Else as the connection.
    pub async fn read_wal(mut self, timeline: TimelineId, from: Lsn, until: Lsn) -> Result<WalPiece> {
        let command = format!("START_REPLICATION PHYSICAL {from} TIMELINE {timeline}");
        let wanted = usize::try_from((until.0.saturating_sub(from.0)).min(WAL_PIECE_BYTES)).unwrap_or(0);
        self.send_command(&command).await?;
        let mut piece = WalPiece {
            start: from,
            bytes: Vec::with_capacity(wanted),
        };
        let limit = self.idle_timeout();
        while piece.bytes.len() < wanted {
            if self.wire.next_tag(limit).await? == COPY_BOTH {
                self.wire.pass(limit).await?;
                continue;
            }
            match self.wire.receive(limit).await? {
                Message::CopyData(body) => self.take_wal(body.data(), &mut piece)?,
                Message::ErrorResponse(body) => return Err(self.failure(&body, &command)),
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                _ => {
                    return Err(Error::unavailable(format!(
                        "{} has no more WAL of timeline {timeline} than up to LSN {}",
                        self.wire.peer(),
                        piece.end()
                    )));
                }
            }
        }
        piece.bytes.truncate(wanted);
        self.leave_stream().await;
        Ok(piece)
    }

    fn take_wal(&self, mut message: &[u8], piece: &mut WalPiece) -> Result<()> {
        if message.try_get_u8().ok() != Some(b'w') {
            // A keepalive.
            return Ok(());
        }
        let (mut header, wal) = message
            .split_at_checked(HEADER_BYTES)
            .ok_or_else(|| self.garbled("a short message of WAL"))?;
        if Lsn(header.get_u64()) != piece.end() {
            return Err(self.garbled("WAL that does not follow"));
        }
        piece.bytes.extend_from_slice(wal);
        Ok(())
    }

    /// Says goodbye, and reads what is still on its way, because otherwise the server would log a broken connection.
    async fn leave_stream(mut self) {
        let mut message = BytesMut::new();
        frontend::copy_done(&mut message);
        frontend::terminate(&mut message);
        let leaving = async {
            self.wire.send(&message, GOODBYE).await?;
            loop {
                self.wire.receive(GOODBYE).await?;
            }
        };
        let _: std::result::Result<Result<()>, _> = tokio::time::timeout(GOODBYE, leaving).await;
    }
}
