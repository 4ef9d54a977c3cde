//! Physical replication slots: made, looked at and dropped over the replication protocol. For SQL a replication role
//! often has no line in `pg_hba.conf`.

use std::time::Duration;

use postgres_protocol::message::backend::Message;

use super::Connection;
use super::server_error::ServerError;
use crate::error::Result;
use crate::pg::{Major, SlotName};

/// `CopyBothResponse`, which `postgres-protocol` does not know.
const COPY_BOTH_RESPONSE: u8 = b'W';

/// How long a slot that is to be dropped may still be in use.
const DROP_TIMEOUT: Duration = Duration::from_secs(30);

/// The state of the slot of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotState {
    /// There is none.
    Missing,
    /// Nobody streams through it.
    Idle,
    /// Somebody does; the text is the server's, which says who.
    Active(String),
    /// No standby can stream through it, because it is a logical one or has lost its WAL; the text is the server's.
    Unusable(String),
}

impl Connection {
    /// Makes a physical slot, which keeps the WAL from now on.
    ///
    /// # Errors
    /// As [`Connection::simple_query`]; `Invalid` where it exists.
    pub async fn create_slot(&mut self, name: &SlotName) -> Result<()> {
        let command = format!("CREATE_REPLICATION_SLOT {name} PHYSICAL RESERVE_WAL");
        self.query(&command, &command).await.map(drop)
    }

    /// Drops a slot, once nobody streams through it any more: the last client may still be disconnecting.
    ///
    /// # Errors
    /// As [`Connection::simple_query`].
    pub async fn drop_slot(&mut self, name: &SlotName) -> Result<()> {
        let command = format!("DROP_REPLICATION_SLOT {name} WAIT");
        self.set_idle_timeout(DROP_TIMEOUT);
        self.query(&command, &command).await.map(drop)
    }

    /// Whether a physical slot keeps WAL. One that was never used, or has lost its WAL, does not. PostgreSQL 14 does
    /// not tell, and the slot counts as keeping WAL.
    ///
    /// # Errors
    /// As [`Connection::simple_query`]; for a logical slot too.
    pub async fn slot_keeps_wal(&mut self, name: &SlotName) -> Result<bool> {
        if self.server_major() < Major::V15 {
            return Ok(true);
        }
        let command = format!("READ_REPLICATION_SLOT {name}");
        let rows = self.simple_query(&command).await?;
        // slot_type, restart_lsn, restart_tli
        let row = rows.into_iter().next().unwrap_or_default();
        Ok(row.into_iter().nth(1).flatten().is_some())
    }

    /// Looks at a slot by beginning to stream through it, which ends this connection. The slot stays as it was.
    ///
    /// # Errors
    /// As [`Connection::simple_query`].
    pub async fn slot_state(mut self, name: &SlotName) -> Result<SlotState> {
        // A standby refuses to stream before this command (14 to 18).
        let lsn = self.identify_system().await?.flush_lsn;
        let command = format!("START_REPLICATION SLOT {name} PHYSICAL {lsn}");
        self.send_command(&command).await?;
        loop {
            if self.wire.next_tag(self.idle_timeout).await? == COPY_BOTH_RESPONSE {
                self.close().await;
                return Ok(SlotState::Idle);
            }
            match self.wire.receive(self.idle_timeout).await? {
                Message::ErrorResponse(body) => {
                    let said = ServerError::read(body.fields());
                    return match said.code() {
                        "42704" => Ok(SlotState::Missing),
                        "55006" => Ok(SlotState::Active(said.text())),
                        "55000" => Ok(SlotState::Unusable(said.text())),
                        _ => Err(said.of_command(self.wire.peer(), &self.session, &command)),
                    };
                }
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                _ => return Err(self.garbled("a message out of place for START_REPLICATION")),
            }
        }
    }
}
