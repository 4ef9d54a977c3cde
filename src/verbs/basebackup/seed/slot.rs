//! The slot that a replica will have on its primary.

use crate::error::{Error, Result};
use crate::pg::SlotName;
use crate::server::{ConnInfo, Connection, SlotState};

/// The replica's slot, after it was created.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: SlotName,
    /// Whether a slot of this name was there before, and kept no WAL.
    pub(super) was_there: bool,
}

impl Slot {
    /// Creates the slot. A slot of this name that keeps no WAL is created anew, because it is new or has lost its WAL.
    /// One that keeps WAL may be that of another replica, which is down.
    ///
    /// # Errors
    /// `Conflict` for a slot that is in use, keeps WAL, or is logical; as the server says.
    pub(super) async fn take(name: &SlotName, info: &ConnInfo) -> Result<Self> {
        let state = look(name, info).await?;
        let mut connection = Connection::connect(info).await?;
        let keeps = match &state {
            SlotState::Idle => connection.slot_keeps_wal(name).await?,
            // A logical one cannot be asked.
            SlotState::Unusable(_) => connection.slot_keeps_wal(name).await.unwrap_or(true),
            SlotState::Missing | SlotState::Active(_) => false,
        };
        let was_there = match state {
            SlotState::Missing => false,
            SlotState::Idle | SlotState::Unusable(_) if !keeps => {
                connection.drop_slot(name).await?;
                true
            }
            SlotState::Idle => {
                return Err(Error::conflict(format!(
                    "the slot {name} exists, and keeps WAL for a replica that does not stream now; give this replica \
                     another slot with --slot, or, if no other replica needs that slot, drop it first: SELECT \
                     pg_drop_replication_slot('{name}')"
                )));
            }
            SlotState::Active(said) => {
                return Err(Error::conflict(format!(
                    "another replica uses the slot {name} ({said}); give this replica another slot with --slot, or stop \
                     the other replica"
                )));
            }
            SlotState::Unusable(said) => {
                return Err(Error::conflict(format!(
                    "the slot {name} cannot serve a replica ({said}); give another name with --slot, or drop it if \
                     nobody needs it: SELECT pg_drop_replication_slot('{name}')"
                )));
            }
        };
        connection.create_slot(name).await?;
        connection.close().await;
        Ok(Self {
            name: name.clone(),
            was_there,
        })
    }

    /// Drops the slot again, because it keeps WAL now. If that fails, the error that ended the seeding says so.
    pub(super) async fn release(&self, info: &ConnInfo, reason: Error) -> Error {
        let dropped = async {
            let mut connection = Connection::connect(info).await?;
            connection.drop_slot(&self.name).await
        };
        match dropped.await {
            Ok(()) => reason,
            Err(error) => Error::new(
                reason.kind(),
                format!(
                    "{reason}. The replica's slot is still there and keeps WAL ({error}); drop it: SELECT \
                     pg_drop_replication_slot('{}')",
                    self.name
                ),
            ),
        }
    }
}

/// The slot's state, asked over another connection.
pub(super) async fn look(name: &SlotName, info: &ConnInfo) -> Result<SlotState> {
    let connection = Connection::connect(info).await?;
    connection.slot_state(name).await
}
