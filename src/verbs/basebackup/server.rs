//! The server that a backup is taken from, and whether walship supports it.

use std::path::PathBuf;

use super::configuration::Places;
use crate::error::{Context, Error, Result};
use crate::format::backup::WalFrom;
use crate::pg::{ClusterIdentity, Lsn, SegmentSize, TimelineId};
use crate::server::{ConnInfo, Connection};
use crate::verbs::basebackup::configuration;

/// A connection, and what is known of the server.
pub(super) struct Server {
    pub(super) connection: Connection,
    pub(super) cluster: ClusterIdentity,
    /// The timeline it writes, or replays.
    pub(super) timeline: TimelineId,
    /// That timeline's history, once it was asked for.
    pub(super) history: Option<String>,
    /// As it names itself: `17.11`.
    pub(super) version: String,
    /// Where its configuration is, if it can be read here.
    pub(super) configuration: Option<Places>,
    /// A backup that begins now needs no WAL before this, because a primary makes a checkpoint for it. What a standby's
    /// backup needs is known only when it begins.
    pub(super) wal_from: Option<WalFrom>,
    /// How far its WAL is written; on a standby, received or replayed.
    pub(super) flush_lsn: Lsn,
    pub(super) is_standby: bool,
    /// As the server says; `None` where this role may not see it.
    pub(super) data_directory: Option<PathBuf>,
    pub(super) port: String,
    /// Whether its WAL is archived: a standby's is, by its primary.
    pub(super) archives: bool,
}

impl Server {
    /// Connects and checks that a backup can be taken.
    ///
    /// # Errors
    /// As [`Connection::connect`]; `Invalid` for a version or a `wal_level` that cannot be used.
    pub(super) async fn connect(info: &ConnInfo) -> Result<Self> {
        let mut connection = Connection::connect(info).await?;
        let major = connection.server_major().supported();
        let major = major.context(|| "take a base backup")?;
        let system = connection.identify_system().await?;
        let segment_size = parse_segment_size(&connection.show("wal_segment_size").await?)?;
        let wal_level = connection.show("wal_level").await?;
        if !matches!(wal_level.as_str(), "replica" | "logical") {
            return Err(Error::invalid(format!(
                "the server's wal_level is {wal_level}, and with that a backup cannot be recovered; \
                 set wal_level = replica and restart the server"
            )));
        }
        let is_standby = connection.parameter("in_hot_standby") == Some("on");
        let archives = is_standby || connection.show("archive_mode").await? != "off";
        let version = connection.parameter("server_version").unwrap_or_default();
        let version = version.split_whitespace().next().unwrap_or_default().to_owned();
        let data_directory = connection.show("data_directory").await.ok().map(PathBuf::from);
        let port = connection.show("port").await?;
        let configuration = configuration::find(&mut connection, system.system_identifier).await;
        Ok(Self {
            connection,
            cluster: ClusterIdentity {
                system_identifier: system.system_identifier,
                postgres_major: major,
                segment_size,
            },
            timeline: system.timeline,
            history: None,
            version,
            configuration,
            wal_from: (!is_standby).then_some(WalFrom {
                timeline: system.timeline,
                lsn: system.flush_lsn,
            }),
            flush_lsn: system.flush_lsn,
            data_directory,
            port,
            archives,
            is_standby,
        })
    }

    /// Called when it is known that the backup will be taken.
    pub(super) fn warn_if_not_archiving(&self) {
        if !self.archives {
            tracing::warn!(
                "the server's archive_mode is off: unless something else archives its WAL, this backup will stay \
                 unfinished. Set archive_mode = on and archive_command = 'walship push %p'"
            );
        }
    }
}

/// A size as `SHOW wal_segment_size` prints it: the largest unit that divides it, `16MB` or `1GB`.
fn parse_segment_size(shown: &str) -> Result<SegmentSize> {
    let bytes = [("MB", 1 << 20), ("GB", 1 << 30), ("kB", 1 << 10), ("B", 1)]
        .iter()
        .find_map(|(unit, bytes)| shown.strip_suffix(unit)?.parse::<u32>().ok()?.checked_mul(*bytes));
    let bytes = bytes.ok_or_else(|| {
        Error::invalid(format!(
            "the server says that its wal_segment_size is {shown:?}, and walship does not know that size"
        ))
    })?;
    SegmentSize::new(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_segment_size_is_read_as_postgresql_shows_it() {
        for shift in 20..=29 {
            let shown = format!("{}MB", 1 << (shift - 20));
            assert_eq!(parse_segment_size(&shown).unwrap().bytes(), 1 << shift);
        }
        assert_eq!(parse_segment_size("1GB").unwrap().bytes(), 1 << 30);
        for shown in ["", "16", "MB", "-1MB", "3MB", "4GB", "16 MB"] {
            assert!(parse_segment_size(shown).is_err(), "{shown}");
        }
    }
}
