//! The configuration of a drill's server. All of it is the drill's own, so that the server reaches nothing that the
//! source's settings name. From the source it has only what the data require.
//!
//! Everything that runs, listens, archives or sends in the source is off here. `postgresql.auto.conf` has only the
//! settings of recovery (`SourceConfiguration::LeftOut`), so it overrides no line of this file.

use std::fmt::Write as _;
use std::path::Path;

use crate::cluster::has_in_place_tablespaces;
use crate::pg::guc_file::quote;
use crate::pg::{ControlFile, Major};
use crate::text::ByteSize;

/// Only part of the socket's name: nothing listens on a port.
pub const PORT: u16 = 5432;
/// Enough for the checks.
const MAX_CONNECTIONS: u32 = 40;
/// Replay fails if it finds more replication origins than this (`replorigin_advance`, `origin.c`), and `pg_control`
/// does not tell how many there are. An origin takes less than a kilobyte.
const MAX_ORIGINS: u32 = 2000;
/// Checks lock many relations at once.
const MIN_LOCKS: u32 = 256;

/// What a drill's server depends on.
#[derive(Debug, Clone, Copy)]
pub struct ServerSettings<'a> {
    /// PostgreSQL's major version.
    pub major: Major,
    pub socket_directory: &'a Path,
    pub hba_file: &'a Path,
    pub ident_file: &'a Path,
    /// The restored cluster's `pg_control`.
    pub control: &'a ControlFile,
    pub shared_buffers: ByteSize,
    /// `shared_preload_libraries`.
    pub preload_libraries: &'a str,
    /// The server's version, such as `17.11`.
    pub version: &'a str,
}

/// Only the socket's owner can reach it, because its folder is closed to all others.
pub const HBA: &str = "local all all trust\n";

/// `postgresql.conf`.
#[must_use]
pub fn postgresql_conf(server: &ServerSettings<'_>) -> String {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let shared_buffers = (server.shared_buffers.0 >> 10).max(128);
    let locks = server.control.max_locks_per_transaction.max(MIN_LOCKS);
    let mut settings: Vec<(&str, String)> = vec![
        // Only its owner can reach it.
        ("unix_socket_directories", path(server.socket_directory)),
        ("port", PORT.to_string()),
        ("hba_file", path(server.hba_file)),
        ("ident_file", path(server.ident_file)),
        ("max_connections", MAX_CONNECTIONS.to_string()),
        ("shared_buffers", format!("{shared_buffers}kB")),
        // What the data require.
        (
            "max_prepared_transactions",
            server.control.max_prepared_transactions.to_string(),
        ),
        ("max_locks_per_transaction", locks.to_string()),
        ("max_replication_slots", MAX_ORIGINS.to_string()),
        ("shared_preload_libraries", server.preload_libraries.to_owned()),
    ];
    if has_in_place_tablespaces(server.version) {
        // Tablespaces that the WAL creates are put into the data directory.
        settings.push(("allow_in_place_tablespaces", "on".to_owned()));
    }
    if server.major >= Major::V18 {
        settings.push(("max_active_replication_origins", MAX_ORIGINS.to_string()));
    }
    if server.major >= Major::V17 {
        // Triggers of the event "login" would run in every session.
        settings.push(("event_triggers", "off".to_owned()));
    }
    if server.major >= Major::V15 {
        settings.push(("archive_library", String::new()));
    }
    let fixed = FIXED.iter().map(|(name, value)| (*name, (*value).to_owned()));
    let mut text = String::from("# Written by walship drill.\n");
    for (name, value) in settings.into_iter().chain(fixed) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} = {}", quote(&value));
    }
    text
}

/// The same for every drill.
const FIXED: [(&str, &str); 23] = [
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    ("external_pid_file", ""),
    ("cluster_name", "walship drill"),
    ("huge_pages", "off"),
    // Under systemd's MemoryDenyWriteExecute= it could not make programs of queries.
    ("jit", "off"),
    // With it on, replay would require the source's numbers of connections and workers.
    ("hot_standby", "off"),
    ("wal_level", "replica"),
    ("archive_mode", "off"),
    ("archive_command", ""),
    ("max_wal_senders", "0"),
    ("synchronous_standby_names", ""),
    // Subscriptions.
    ("max_logical_replication_workers", "0"),
    // Schedulers of extensions are background workers, and none starts, whatever is preloaded.
    ("max_worker_processes", "0"),
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
    ("autovacuum", "off"),
    ("restart_after_crash", "off"),
    // Its log is read by walship.
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("log_line_prefix", "%m [%p] "),
    ("lc_messages", "C"),
    ("ssl", "off"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{ClusterState, Lsn, Major, SegmentSize, TimelineId};

    fn control(max_prepared_transactions: u32, max_locks_per_transaction: u32) -> ControlFile {
        ControlFile {
            system_identifier: 1,
            major: Major::V17,
            catalog_version: 202_406_281,
            state: ClusterState::InProduction,
            checkpoint: Lsn(0),
            redo: Lsn(0),
            timeline: TimelineId::FIRST,
            min_recovery_point: Lsn(0),
            min_recovery_timeline: None,
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions,
            max_locks_per_transaction,
            segment_size: SegmentSize::DEFAULT,
            data_checksum_version: 0,
        }
    }

    fn conf(major: Major, control: &ControlFile) -> String {
        postgresql_conf(&ServerSettings {
            major,
            socket_directory: Path::new("/tmp/it's"),
            hba_file: Path::new("/d/pg_hba.conf"),
            ident_file: Path::new("/d/pg_ident.conf"),
            control,
            shared_buffers: ByteSize(1 << 27),
            preload_libraries: "",
            version: "17.11",
        })
    }

    #[test]
    fn nothing_listens_archives_sends_or_runs_jobs() {
        let conf = conf(Major::V18, &control(0, 64));
        for line in [
            "listen_addresses = ''",
            "archive_mode = 'off'",
            "archive_command = ''",
            "archive_library = ''",
            "synchronous_standby_names = ''",
            "max_wal_senders = '0'",
            "max_logical_replication_workers = '0'",
            "shared_preload_libraries = ''",
            "max_worker_processes = '0'",
            "event_triggers = 'off'",
            "unix_socket_directories = '/tmp/it''s'",
            "shared_buffers = '131072kB'",
        ] {
            assert!(conf.contains(&format!("\n{line}\n")), "{line} is not in\n{conf}");
        }
    }

    #[test]
    fn a_version_gets_only_the_settings_it_knows() {
        let has = |major, name: &str| conf(major, &control(0, 64)).contains(name);
        for (name, last_without, since) in [
            ("archive_library", Major::V14, Major::V15),
            ("event_triggers", Major::V16, Major::V17),
            ("max_active_replication_origins", Major::V17, Major::V18),
        ] {
            assert!(!has(last_without, name) && has(since, name), "{name}");
        }
    }

    #[test]
    fn prepared_transactions_and_locks_have_as_much_room_as_in_the_source() {
        let conf = conf(Major::V14, &control(70, 1000));
        assert!(conf.contains("max_prepared_transactions = '70'"), "{conf}");
        assert!(conf.contains("max_locks_per_transaction = '1000'"), "{conf}");
    }
}
