//! The list of all settings.

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its key in the file, with the table's name in front.
    pub key: &'static str,
    /// Its default as it would be written; empty where there is none.
    pub default: &'static str,
    /// What it does, in one sentence.
    pub help: &'static str,
}

impl Setting {
    /// The environment variable of this setting.
    #[must_use]
    pub fn environment_variable(&self) -> String {
        format!("WALSHIP_{}", self.key.replace('.', "_").to_uppercase())
    }
}

const fn setting(key: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { key, default, help }
}

/// Every setting there is.
pub const SETTINGS: &[Setting] = &[
    setting(
        "archive",
        "",
        "URL of the archive: s3://bucket/prefix or file:///path",
    ),
    setting(
        "log.level",
        "warn",
        "what is logged to stderr: error, warn, info, debug or trace",
    ),
    setting("log.format", "text", "text, or json for one object on each line"),
    setting(
        "push.timeout",
        "30s",
        "time after which push gives up and PostgreSQL tries again",
    ),
    setting(
        "push.compression_level",
        "1",
        "zstd level of WAL, -7 (fastest) to 19 (smallest)",
    ),
    setting(
        "push.memory",
        "8MiB",
        "compressed bytes that push keeps in memory; more goes to an unlinked temporary file",
    ),
    setting(
        "restore.timeout",
        "60s",
        "time after which restore gives up in archive recovery, which stops PostgreSQL safely",
    ),
    setting(
        "restore.standby_timeout",
        "10s",
        "time after which restore gives up on a standby, which then streams or asks again",
    ),
    setting(
        "restore.standby_failure",
        "continue",
        "after a failure a standby goes on (continue) or shuts down (stop)",
    ),
    setting(
        "backup.method",
        "stream",
        "a base backup comes over the replication protocol (stream) or is read from the data directory here (local)",
    ),
    setting(
        "backup.compression_level",
        "1",
        "zstd level of base backups, -7 (fastest) to 19 (smallest)",
    ),
    setting(
        "backup.concurrency",
        "0",
        "threads that compress a base backup; 0 means one for each core, at most 8",
    ),
    setting(
        "backup.part_size",
        "32MiB",
        "bytes of tar in one object of a base backup",
    ),
    setting(
        "backup.max_rate",
        "",
        "most bytes a second that are read from the server for a base backup; none means no limit",
    ),
    setting(
        "backup.wal_timeout",
        "5m",
        "time to wait for the WAL that a base backup needs to arrive in the archive",
    ),
    setting(
        "retention.keep_window",
        "",
        "every moment of this last time stays reachable, such as 14d; none means no such promise",
    ),
    setting(
        "retention.keep_backups",
        "",
        "so many of the newest backups stay, with all WAL after them; none means the newest one",
    ),
    setting(
        "retention.keep_daily",
        "",
        "of the last so many days with a backup, the newest backup stays, restorable by itself",
    ),
    setting("retention.keep_weekly", "", "the same for weeks"),
    setting("retention.keep_monthly", "", "the same for months"),
    setting("retention.keep_yearly", "", "the same for years"),
    setting(
        "postgres.bin_dir",
        "",
        "directory of PostgreSQL's programs, before PATH and where packages put them",
    ),
    setting(
        "seed.archive_wal_limit",
        "10GiB",
        "with more WAL than this since the newest backup, a replica is copied from the primary",
    ),
    setting(
        "seed.archive_wal_percent",
        "30",
        "likewise with more than this part of the backup's size",
    ),
    setting(
        "seed.start_timeout",
        "10m",
        "time that a started replica has until it streams",
    ),
    setting(
        "recover.concurrency",
        "0",
        "parts of a base backup that are restored at the same time; 0 means two for each core, at most 8",
    ),
    setting(
        "doctor.timeout",
        "8s",
        "time after which doctor has its answer, whatever hangs; Nagios waits 10 s for a remote check",
    ),
    setting(
        "doctor.max_backup_age",
        "26h",
        "age of the newest backup from which doctor warns; twice as much is a problem",
    ),
    setting(
        "doctor.max_archive_delay",
        "5m",
        "time that finished WAL may wait for the archiver before doctor warns; twelve times as much is a problem",
    ),
    setting(
        "doctor.max_standby_lag",
        "5m",
        "time that a standby's replay may be behind before doctor warns",
    ),
    setting(
        "doctor.max_verify_age",
        "8d",
        "age of the last clean verification from which doctor warns, once there was one",
    ),
    setting(
        "doctor.max_drill_age",
        "35d",
        "age of the last drill that passed from which doctor warns, once there was one",
    ),
    setting(
        "doctor.ignore",
        "",
        "checks, separated by commas, whose warnings and problems count for nothing, such as settings.data_checksums",
    ),
    setting(
        "drill.directory",
        "/var/tmp",
        "where walship drill restores to, in a directory of its own that it removes",
    ),
    setting("drill.timeout", "12h", "time after which a drill is given up"),
    setting(
        "drill.user",
        "",
        "superuser of the restored cluster that the checks run as; none means postgres",
    ),
    setting(
        "drill.amcheck",
        "true",
        "whether pg_amcheck runs where it is installed: true or false",
    ),
    setting(
        "drill.shared_buffers",
        "128MiB",
        "shared_buffers of the drill's server; replay is faster with more",
    ),
    setting(
        "drill.preload_libraries",
        "",
        "shared_preload_libraries of the drill's server, for extensions with WAL records or tables of their own",
    ),
    setting(
        "verify.recheck",
        "30d",
        "time within which verify reads every object again, whatever it knows; a share of them in each run",
    ),
    setting(
        "verify.concurrency",
        "0",
        "objects that verify reads at the same time; 0 means one for each core, at most 8",
    ),
    setting(
        "verify.max_rate",
        "",
        "most bytes a second that verify reads from the store; none means no limit",
    ),
    setting(
        "agent.socket",
        "",
        "socket of the agent; none means a name of its own in /run/walship where that is this user's, else in /tmp/walship-<uid>",
    ),
    setting(
        "agent.autostart",
        "false",
        "whether push starts an agent when files wait for the archiver, and restore in recovery: true or false",
    ),
    setting(
        "agent.idle_timeout",
        "5m",
        "time without a request after which an agent that was started by itself ends",
    ),
    setting(
        "agent.lookahead",
        "0",
        "files that an agent works on at the same time, compressing one on each core; 0 means two for each core, at most 8",
    ),
    setting(
        "agent.prefetch",
        "8",
        "segments that an agent fetches ahead of recovery and holds ready; 0 means none",
    ),
    setting(
        "s3.endpoint",
        "",
        "base URL of an S3-compatible server; none means AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, else AWS",
    ),
    setting(
        "s3.region",
        "",
        "region; none means the AWS environment's or profile's, us-east-1 where there is an endpoint",
    ),
    setting(
        "s3.path_style",
        "auto",
        "bucket in the path: true, false, or auto, which means true where there is an endpoint",
    ),
    setting(
        "s3.storage_class",
        "",
        "storage class of new objects, such as STANDARD_IA; none means the bucket's default",
    ),
    setting(
        "s3.server_side_encryption",
        "",
        "AES256 (SSE-S3) or aws:kms (SSE-KMS); none means the bucket's default",
    ),
    setting(
        "s3.kms_key_id",
        "",
        "key for aws:kms; none means the account's default key",
    ),
    setting(
        "s3.ca_file",
        "",
        "PEM file of the certificate authorities to trust instead of the system's",
    ),
    setting("s3.connect_timeout", "5s", "time to open a connection"),
    setting(
        "s3.request_timeout",
        "20s",
        "time for one attempt of a request without progress",
    ),
    setting(
        "s3.timeout",
        "60s",
        "time for a request with all its retries, in all commands but push and restore",
    ),
];
