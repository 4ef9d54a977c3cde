//! The server that a replica will follow.

use crate::error::Result;
use crate::judge::demands::Demands;
use crate::pg::{Lsn, Major, TimelineId};
use crate::server::{ConnInfo, Connection};

/// What is known of the server.
#[derive(Debug)]
pub(crate) struct Primary {
    /// For messages: the role and the hosts.
    pub(crate) shown: String,
    pub(crate) major: Major,
    pub(crate) system_identifier: u64,
    pub(crate) timeline: TimelineId,
    /// How far it has written or replayed WAL.
    pub(crate) current: Lsn,
    /// It is a standby itself: a replica seeded from it is cascaded.
    pub(crate) is_standby: bool,
    /// `max_slot_wal_keep_size`.
    pub(crate) slot_keeps: String,
    /// The settings that it was started with and that replay of its WAL needs.
    pub(crate) demands: Demands,
    /// Whether it asked for a password.
    pub(crate) used_password: bool,
}

impl Primary {
    /// Connects and asks.
    ///
    /// # Errors
    /// As [`Connection::connect`]; `Invalid` for a version that walship does not know.
    pub(crate) async fn connect(info: &ConnInfo) -> Result<Self> {
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
