//! The server that a replica will follow, and the slot it will have there.

use crate::error::{Error, Result};
use crate::judge::demands::Demands;
use crate::pg::{Lsn, Major, SlotName, TimelineId};
use crate::server::{ConnInfo, Connection, SlotState};

/// What is known of the server.
#[derive(Debug)]
pub(super) struct Primary {
    /// For messages: the role and the hosts.
    pub(super) shown: String,
    pub(super) major: Major,
    pub(super) system_identifier: u64,
    pub(super) timeline: TimelineId,
    /// How far its WAL is.
    pub(super) current: Lsn,
    /// It is a standby itself: what is seeded from it is cascaded.
    pub(super) is_standby: bool,
    /// `max_slot_wal_keep_size`.
    pub(super) slot_keeps: String,
    /// What it was started with, and so whoever replays its WAL needs.
    pub(super) demands: Demands,
    /// Whether it asked for a password.
    pub(super) used_password: bool,
}

impl Primary {
    /// Connects and asks.
    ///
    /// # Errors
    /// As [`Connection::connect`]; `Invalid` for a version that walship does not know.
    pub(super) async fn connect(info: &ConnInfo) -> Result<Self> {
        let mut connection = Connection::connect(info).await?;
        let system = connection.identify_system().await?;
        let mut demands = [0; 5];
        for (value, name) in demands.iter_mut().zip(Demands::names()) {
            *value = connection.show(name).await?.parse().unwrap_or(0);
        }
        let primary = Self {
            demands: Demands::of_server(demands),
            shown: info.to_string(),
            major: connection.server_major().supported()?,
            system_identifier: system.system_identifier,
            timeline: system.timeline,
            current: system.flush_lsn,
            is_standby: connection.parameter("in_hot_standby") == Some("on"),
            slot_keeps: connection.show("max_slot_wal_keep_size").await?,
            used_password: connection.used_password(),
        };
        connection.close().await;
        Ok(primary)
    }
}

/// The replica's slot, which is there and free.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: SlotName,
    /// Whether a slot of this name was there before, and kept no WAL.
    pub(super) was_there: bool,
}

impl Slot {
    /// Makes the slot. One of this name that keeps no WAL is made anew: it is new, or has lost what it kept. One that
    /// does may be that of another replica, which is down.
    ///
    /// # Errors
    /// `Conflict` for one that is in use, keeps WAL, or is a logical one; as the server says.
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
                    "the slot {name} is there, and keeps WAL for a replica that does not stream now; give this one a \
                     slot of its own with --slot, or, if no other replica needs it, drop it first: SELECT \
                     pg_drop_replication_slot('{name}')"
                )));
            }
            SlotState::Active(said) => {
                return Err(Error::conflict(format!(
                    "the slot {name} is in use by another replica ({said}); give this one a slot of its own with \
                     --slot, or stop the other one"
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

    /// Drops the slot again, which keeps WAL now, and says in the error that ended the seeding where that did not
    /// work.
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
                    "{reason}. The slot made for it is still there and keeps WAL ({error}); drop it: SELECT \
                     pg_drop_replication_slot('{}')",
                    self.name
                ),
            ),
        }
    }
}

/// What the slot is; on a connection of its own.
pub(super) async fn look(name: &SlotName, info: &ConnInfo) -> Result<SlotState> {
    let connection = Connection::connect(info).await?;
    connection.slot_state(name).await
}
