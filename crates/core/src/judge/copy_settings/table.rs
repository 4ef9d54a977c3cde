//! The judgements.

use super::Act::{Filtered, Kept, Own, Said, Set, SetBeside};
use super::Row;
use crate::pg::Major;

/// A row of settings that all supported versions have.
const fn row(names: &'static [&'static str], reaches: &'static str, why: &'static str) -> Row {
    Row {
        names,
        since: Major::V14,
        until: Major::V18,
        reaches,
        rehearsal: Kept,
        replacement: Kept,
        standby: Kept,
        drill: None,
        why,
    }
}

/// Every setting of PostgreSQL 14 to 18 that names a place or makes the server act outside.
pub(crate) const TABLE: &[Row] = &[
    // Where the server lives.
    Row {
        rehearsal: Own("the line is commented out where it names another directory"),
        replacement: Own("as for a rehearsal"),
        standby: Own("as for a rehearsal"),
        ..row(
            &["data_directory"],
            "the directory that the server works on",
            "It wins over -D: a copy would start on its source's directory. Where a file outside the copy sets it, the \
             copy's own place is added at the end of its postgresql.conf, and the copy cannot be moved",
        )
    },
    row(
        &["config_file"],
        "the configuration file",
        "It can only stand on the command line. Where the source's configuration lies outside its data directory, the \
         start command that is printed names it, with the copy's data_directory, which wins over the file's",
    ),
    row(
        &["hba_file", "ident_file"],
        "files that are read",
        "Read only. A drill has its own",
    ),
    Row {
        rehearsal: Set("walship-copy.pid"),
        replacement: Said,
        standby: SetBeside("walship-copy.pid"),
        drill: Some(""),
        ..row(
            &["external_pid_file"],
            "a file that is written, and removed when the server stops",
            "It is the source's: who reads it would signal the wrong server. The name without a path is in the copy's data \
             directory; an empty one PostgreSQL complains about. Kept where the copy lies in the directory that its configuration \
             names: there the file is its own",
        )
    },
    Row {
        until: Major::V14,
        rehearsal: Set("pg_stat_tmp"),
        replacement: Kept,
        standby: SetBeside("pg_stat_tmp"),
        ..row(
            &["stats_temp_directory"],
            "a directory in which files are written and removed",
            "Two servers would take each other's statistics",
        )
    },
    // Logs.
    Row {
        rehearsal: Set("log"),
        standby: SetBeside("log"),
        ..row(
            &["log_directory"],
            "a directory in which files are written, and with log_truncate_on_rotation emptied",
            "The copy's log would mix with its source's, or empty it. \"log\" is in the copy's data directory",
        )
    },
    Row {
        rehearsal: Set("postgresql-%Y-%m-%d_%H%M%S.log"),
        ..row(
            &["log_filename"],
            "names of files, which may lead out of log_directory",
            "As log_directory",
        )
    },
    Row {
        rehearsal: Set("stderr"),
        drill: Some("stderr"),
        ..row(
            &["log_destination"],
            "where messages go: syslog and the event log are shared with the source",
            "A copy's errors must not alarm those who watch its source",
        )
    },
    Row {
        drill: Some("off"),
        ..row(
            &["logging_collector"],
            "whether files are written in log_directory",
            "log_directory is the copy's own",
        )
    },
    row(
        &[
            "event_source",
            "syslog_facility",
            "syslog_ident",
            "syslog_sequence_numbers",
            "syslog_split_messages",
        ],
        "how messages look in syslog and in the event log",
        "Without effect where log_destination is stderr",
    ),
    // Who can reach it, and whom it reaches.
    Row {
        drill: Some(""),
        ..row(
            &["listen_addresses"],
            "addresses at which clients are let in",
            "PostgreSQL does not start on a port that another server has. Where the source is down its clients would find \
             the copy: give it a port of its own, or start it with -c listen_addresses=",
        )
    },
    row(
        &["port"],
        "the port, and the name of the socket",
        "As listen_addresses",
    ),
    row(
        &[
            "unix_socket_directories",
            "unix_socket_group",
            "unix_socket_permissions",
        ],
        "directories in which sockets and their lock files are made",
        "PostgreSQL does not touch a socket that another server has. A drill has its own folder, closed to others",
    ),
    Row {
        rehearsal: Set("off"),
        ..row(
            &["bonjour"],
            "whether the server makes itself known in the network",
            "Clients would find the copy under its source's name",
        )
    },
    row(
        &["bonjour_name"],
        "the name for that",
        "Without effect where bonjour is off",
    ),
    Row {
        drill: Some("walship drill"),
        ..row(
            &["cluster_name"],
            "a name in the titles of processes",
            "It names, and reaches nothing",
        )
    },
    // Archiving.
    Row {
        rehearsal: Set("off"),
        replacement: Said,
        drill: Some("off"),
        ..row(
            &["archive_mode"],
            "whether WAL is archived",
            "A copy's WAL in its source's archive would be a second history. A clone archives as Patroni configures it, and \
             its mark keeps it out of its source's archive",
        )
    },
    Row {
        drill: Some(""),
        ..row(
            &["archive_command"],
            "a command for each segment",
            "Without effect where archive_mode is off",
        )
    },
    Row {
        since: Major::V15,
        drill: Some(""),
        ..row(
            &["archive_library"],
            "a library for each segment",
            "Without effect where archive_mode is off",
        )
    },
    row(
        &["basic_archive.archive_directory"],
        "a directory to which segments are copied",
        "Without effect where archive_mode is off",
    ),
    // Recovery.
    Row {
        rehearsal: Own("walship restore"),
        replacement: Own("walship restore"),
        standby: Own("walship restore"),
        drill: None,
        ..row(
            &["restore_command"],
            "a command for each segment",
            "The source's would read another archive",
        )
    },
    Row {
        rehearsal: Set(""),
        replacement: Set(""),
        standby: Set(""),
        ..row(
            &["archive_cleanup_command", "recovery_end_command"],
            "commands that recovery runs",
            "They remove from an archive, or tell others that the source's standby was promoted",
        )
    },
    Row {
        rehearsal: Set(""),
        replacement: Set(""),
        standby: Own("the new primary's"),
        ..row(
            &["primary_conninfo", "primary_slot_name"],
            "the server to stream from, and the slot to use there",
            "The source's slot would be taken away from it",
        )
    },
    Row {
        rehearsal: Own("as asked for; empty where not"),
        replacement: Own("as asked for; empty where not"),
        standby: Own("empty; timeline: latest"),
        ..row(
            &[
                "recovery_target",
                "recovery_target_action",
                "recovery_target_inclusive",
                "recovery_target_lsn",
                "recovery_target_name",
                "recovery_target_time",
                "recovery_target_timeline",
                "recovery_target_xid",
            ],
            "where recovery ends",
            "The source's were for another recovery",
        )
    },
    Row {
        rehearsal: Set("0"),
        replacement: Set("0"),
        standby: Set("0"),
        ..row(
            &["recovery_min_apply_delay"],
            "how late a standby replays",
            "A delayed standby's; it would delay recovery too",
        )
    },
    Row {
        until: Major::V15,
        rehearsal: Set(""),
        replacement: Set(""),
        ..row(
            &["promote_trigger_file"],
            "a file that ends recovery, and is removed then",
            "It is there for the source's standbys; a copy that pauses at its target would take it and go on",
        )
    },
    // What runs by itself.
    Row {
        rehearsal: Set("0"),
        replacement: Said,
        drill: Some("0"),
        ..row(
            &["max_logical_replication_workers"],
            "whether subscriptions are followed",
            "A subscriber's copy takes changes out of the publisher's slot, and they are gone for the subscriber itself. \
             To keep subscriptions from starting for good: ALTER SUBSCRIPTION … DISABLE, then SET (slot_name = NONE), \
             then DROP SUBSCRIPTION; without SET it drops the publisher's slot",
        )
    },
    Row {
        rehearsal: Filtered,
        replacement: Said,
        drill: Some("drill.preload_libraries"),
        ..row(
            &["shared_preload_libraries"],
            "libraries, some of which run jobs, send requests or connect to other servers",
            "Only the libraries below are loaded: they are known to do none of that. The report names what is left out",
        )
    },
    Row {
        rehearsal: Filtered,
        drill: Some(""),
        ..row(
            &["local_preload_libraries", "session_preload_libraries"],
            "libraries that each session loads",
            "As shared_preload_libraries",
        )
    },
    Row {
        drill: Some("0"),
        ..row(
            &["max_worker_processes"],
            "how many workers libraries may start",
            "A server that can be read during recovery needs what its source had",
        )
    },
    Row {
        rehearsal: Set(""),
        replacement: Said,
        drill: Some(""),
        ..row(
            &["synchronous_standby_names"],
            "standbys for which each commit waits",
            "No standby follows the copy: its first commit would never end",
        )
    },
    Row {
        since: Major::V17,
        rehearsal: Set(""),
        replacement: Said,
        ..row(
            &["synchronized_standby_slots"],
            "slots for which logical decoding waits",
            "The copy has no slots",
        )
    },
    Row {
        since: Major::V17,
        rehearsal: Set("off"),
        ..row(
            &["sync_replication_slots"],
            "whether a standby copies its primary's slots",
            "It connects to the primary",
        )
    },
    row(
        &[
            "hot_standby_feedback",
            "wal_receiver_create_temp_slot",
            "wal_receiver_status_interval",
            "wal_receiver_timeout",
        ],
        "what a standby does on its primary",
        "Without effect where primary_conninfo is empty",
    ),
    row(
        &["basebackup_to_shell.command", "basebackup_to_shell.required_role"],
        "a command that runs when somebody takes a base backup with that target",
        "It runs only where somebody asks for it",
    ),
    Row {
        drill: Some("0"),
        ..row(
            &["max_wal_senders"],
            "how many may stream from the server",
            "A server that can be read during recovery needs what its source had. As listen_addresses",
        )
    },
    // What the machine has once.
    Row {
        rehearsal: Set("off"),
        drill: Some("off"),
        ..row(
            &["huge_pages"],
            "memory that is set aside on the machine",
            "The copy would take the pages that its source needs to start again",
        )
    },
    row(
        &[
            "dynamic_shared_memory_type",
            "huge_page_size",
            "min_dynamic_shared_memory",
            "shared_memory_type",
        ],
        "shared memory, by names made from the data directory",
        "Two servers do not meet there",
    ),
    // What is only read.
    row(
        &[
            "krb_server_keyfile",
            "ssl_ca_file",
            "ssl_cert_file",
            "ssl_crl_dir",
            "ssl_crl_file",
            "ssl_dh_params_file",
            "ssl_key_file",
        ],
        "files that are read",
        "Read only. Without them the server does not start, or lets nobody in",
    ),
    Row {
        drill: Some("off"),
        ..row(
            &["ssl"],
            "whether those files are needed",
            "A drill has no need of them",
        )
    },
    row(
        &["ssl_passphrase_command", "ssl_passphrase_command_supports_reload"],
        "a command that gives a passphrase",
        "It reads",
    ),
    row(
        &["dynamic_library_path", "jit_provider"],
        "where libraries are found",
        "Read only; they run where a session or another setting names them",
    ),
    Row {
        since: Major::V15,
        ..row(
            &["output_plugin_libraries"],
            "libraries for logical decoding",
            "They run where somebody decodes",
        )
    },
    Row {
        since: Major::V18,
        ..row(
            &["extension_control_path", "oauth_validator_libraries"],
            "where extensions and validators are found",
            "Read only; they run where a session needs them",
        )
    },
    row(
        &["timezone_abbreviations"],
        "a file of the installation",
        "Read only",
    ),
    // Tablespaces.
    row(
        &["default_tablespace", "temp_tablespaces"],
        "tablespaces by name",
        "Where they lie is decided by the copy, not by these",
    ),
    Row {
        rehearsal: Set("on"),
        drill: Some("on"),
        ..row(
            &["allow_in_place_tablespaces"],
            "whether a tablespace may lie in the data directory",
            "Tablespaces that were made after the backup lie inside the copy",
        )
    },
];
