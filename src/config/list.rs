//! Every setting, declared once: its key, type, default and what it does. The sections' structs, [`SETTINGS`]
//! and the reading are made from that. To add a setting, add it here and to the table in `docs/configuration.md`.
#![allow(clippy::doc_markdown, rustdoc::invalid_html_tags)] // what stands in a help is shown in docs as it is

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use chrono::TimeDelta;

use super::raw::Raw;
use super::values::{
    BackupMethod, LogFormat, OnEvent, SecretUrl, StandbyFailure, TimeZoneChoice, Value, absolute, count,
    listen_address, one_for_each_core, part_size, path_style, two_for_each_core, verify_rate, window, word,
    zstd_level,
};
use crate::error::Result;
use crate::judge::diagnosis::Check;
use crate::judge::retention::RetentionPolicy;
use crate::judge::schedule::{Job, Pattern};
use crate::judge::seed_source::WalLimits;
use crate::store::{S3Options, StoreOptions};
use crate::text::ByteSize;

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its key in the file, with the table's name in front.
    pub key: &'static str,
    /// Its default as it would be written; empty where there is none.
    pub default: &'static str,
    /// What it does, in one sentence; `docs/configuration.md` has the same.
    #[cfg_attr(not(test), allow(dead_code))]
    pub help: &'static str,
}

impl Setting {
    /// The environment variable of this setting.
    #[must_use]
    pub fn environment_variable(&self) -> String {
        format!("WALSHIP_{}", self.key.replace('.', "_").to_uppercase())
    }
}

/// The one setting without a section. It is read where it is needed, because some commands need no archive.
pub(super) const ARCHIVE: Setting = Setting {
    key: "archive",
    default: "",
    help: "URL of the archive: s3://bucket/prefix or file:///path",
};

/// A section is `[section] field: Struct`, where `field` is the one of [`Settings`]; with `=> Type` the field is of
/// that type, which is made from the struct. In it stands `key: Type = default, help` for each setting. The type says
/// how a value is written ([`Value`]), or with `as reader` that function does.
macro_rules! settings {
    ($(
        $(#[$doc:meta])*
        [$section:ident] $field:ident: $Struct:ident $(=> $Made:ty)? {
            $($key:ident: $Type:ty $(as $reader:ident)? = $default:literal, $help:literal;)*
        }
    )*) => {
        /// Every setting.
        pub const SETTINGS: &[Setting] = &[
            ARCHIVE,
            $($(Setting {
                key: concat!(stringify!($section), ".", stringify!($key)),
                default: $default,
                help: $help,
            },)*)*
        ];

        /// All settings, validated.
        #[derive(Debug, Clone)]
        pub struct Settings {
            pub(super) raw: Raw,
            $($(#[$doc])* pub $field: settings!(@last $Struct $(, $Made)?),)*
        }

        impl Settings {
            pub(super) fn read(raw: Raw) -> Result<Self> {
                Ok(Self { $($field: $Struct::read(&raw)?.into(),)* raw })
            }
        }

        $(
            $(#[$doc])*
            #[derive(Debug, Clone)]
            pub struct $Struct {
                $(#[doc = $help] pub $key: $Type,)*
            }

            impl $Struct {
                fn read(raw: &Raw) -> Result<Self> {
                    Ok(Self {$(
                        $key: raw.read(
                            concat!(stringify!($section), ".", stringify!($key)),
                            $default,
                            settings!(@last (Value::read) $(, $reader)?),
                        )?,
                    )*})
                }
            }
        )*
    };
    (@last $first:tt) => { $first };
    (@last $first:tt, $last:tt) => { $last };
}

settings! {
    /// What is logged.
    [log] log: LogSettings {
        level: tracing::Level = "warn", "what is logged to stderr: error, warn, info, debug or trace";
        format: LogFormat as word = "text", "text, or json for one object on each line";
    }

    /// Settings of `walship push`.
    [push] push: PushSettings {
        timeout: Duration = "30s", "time after which push gives up and PostgreSQL tries again";
        compression_level: i32 as zstd_level = "1", "zstd level of WAL, -7 (fastest) to 19 (smallest)";
        memory: ByteSize = "8MiB",
            "compressed bytes that push keeps in memory; more goes to an unlinked temporary file";
    }

    /// Settings of `walship restore`.
    [restore] restore: RestoreSettings {
        timeout: Duration = "60s",
            "time after which restore gives up in archive recovery, which stops PostgreSQL safely";
        standby_timeout: Duration = "10s",
            "time after which restore gives up on a standby, which then streams or asks again";
        standby_failure: StandbyFailure as word = "continue",
            "after a failure a standby goes on (continue) or shuts down (stop)";
    }

    /// Settings of `walship basebackup`.
    [backup] backup: BackupSettings {
        method: BackupMethod as word = "auto",
            "a base backup is read from the server's data directory (local), comes over the replication protocol (stream), or is read where the directory is here and may be read, and else comes (auto)";
        compression_level: i32 as zstd_level = "1", "zstd level of base backups, -7 (fastest) to 19 (smallest)";
        concurrency: usize as one_for_each_core = "0",
            "threads that compress a base backup; 0 means one for each core, at most 8";
        part_size: ByteSize as part_size = "32MiB", "bytes of tar in one object of a base backup";
        max_rate: Option<ByteSize> = "",
            "most bytes a second that are read from the server for a base backup; none means no limit";
        wal_timeout: Duration = "5m", "time to wait for the WAL that a base backup needs to arrive in the archive";
    }

    /// What retention keeps; all of it may be unset.
    [retention] retention: RetentionSettings => RetentionPolicy {
        keep_window: Option<TimeDelta> as window = "",
            "every moment of this last time stays reachable, such as 14d; none means no such promise";
        keep_backups: Option<u32> as count = "",
            "number of the newest backups that stay, with all WAL after them; none means one";
        keep_daily: Option<u32> as count = "",
            "number of the latest days with a backup whose newest backup stays, restorable by itself";
        keep_weekly: Option<u32> as count = "", "the same for weeks";
        keep_monthly: Option<u32> as count = "", "the same for months";
        keep_yearly: Option<u32> as count = "", "the same for years";
    }

    /// The server's programs.
    [postgres] postgres: PostgresSettings {
        bin_dir: Option<PathBuf> = "", "directory of PostgreSQL's programs, before PATH and where packages put them";
    }

    /// Settings of `walship basebackup --seed-replica`.
    [seed] seed: SeedSettings {
        archive_wal_limit: ByteSize = "10GiB",
            "with more WAL than this since the newest backup, a replica is copied from the primary";
        archive_wal_percent: u32 = "30", "likewise with more than this part of the backup's size";
        start_timeout: Duration = "10m", "time that a started replica has until it streams";
    }

    /// Settings of `walship recover`, and of all that restores a backup.
    [recover] recover: RecoverSettings {
        concurrency: usize as two_for_each_core = "0",
            "parts of a base backup that are restored at the same time; 0 means two for each core, at most 8";
    }

    /// Settings of `walship doctor`.
    [doctor] doctor: DoctorSettings {
        timeout: Duration = "8s",
            "time after which doctor answers even if something hangs; Nagios waits 10 s for a remote check";
        max_backup_age: Duration = "26h",
            "age of the newest backup from which doctor warns; twice as much is a problem";
        max_archive_delay: Duration = "5m",
            "time that finished WAL may wait for the archiver before doctor warns; twelve times as much is a problem";
        max_standby_lag: Duration = "5m", "time that a standby's replay may be behind before doctor warns";
        max_verify_age: Duration = "8d",
            "age of the last clean verification from which doctor warns, once there was one";
        max_drill_age: Duration = "35d",
            "age of the last drill that passed from which doctor warns, once there was one";
        ignore: Vec<Check> = "",
            "checks, separated by commas, whose warnings and problems do not count, such as settings.data_checksums";
    }

    /// Settings of `walship drill`.
    [drill] drill: DrillSettings {
        directory: PathBuf = "/var/tmp", "where walship drill restores to, in a directory of its own that it removes";
        timeout: Duration = "12h", "time after which a drill is stopped";
        user: Option<String> = "", "superuser of the restored cluster that the checks run as; none means postgres";
        amcheck: bool = "true", "whether pg_amcheck runs where it is installed: true or false";
        shared_buffers: ByteSize = "128MiB", "shared_buffers of the drill's server; replay is faster with more";
        preload_libraries: String = "",
            "shared_preload_libraries of the drill's server, for extensions with WAL records or tables of their own";
    }

    /// Settings of `walship verify`.
    [verify] verify: VerifySettings {
        recheck: Duration = "30d",
            "time within which verify reads every object again, whatever it knows; a share of them in each run";
        concurrency: usize as one_for_each_core = "0",
            "objects that verify reads at the same time; 0 means one for each core, at most 8";
        max_rate: Option<ByteSize> as verify_rate = "",
            "most bytes a second that verify reads from the store; none means no limit";
    }

    /// Settings of `walship agent`, and of the commands that ask it.
    [agent] agent: AgentSettings {
        socket: Option<PathBuf> as absolute = "",
            "socket of the agent; none means a name of its own in /run/walship where that is this user's, else in /tmp/walship-<uid>";
        autostart: bool = "false",
            "whether push starts an agent when files wait for the archiver, and restore in recovery: true or false";
        idle_timeout: Duration = "5m", "time without a request after which an agent that was started by itself ends";
        lookahead: usize as two_for_each_core = "0",
            "files that an agent works on at the same time, compressing on each core; 0 means two for each core, at most 8";
        prefetch: usize = "8", "segments that an agent fetches ahead of recovery and holds ready; 0 means none";
    }

    /// What the agent shows to Prometheus.
    [metrics] metrics: MetricsSettings {
        listen: Option<SocketAddr> as listen_address = "",
            "address and port at which the agent shows its metrics, such as 127.0.0.1:9987; none means it does not";
        hosts: Vec<String> = "",
            "names, separated by commas, by which that port may be asked, besides addresses and localhost";
        interval: Duration = "1m", "how often the agent looks at the archive for its metrics";
        postgres: bool = "false", "whether the agent asks the server for PostgreSQL's own metrics: true or false";
        slow_query: Duration = "5s", "time from which a running query counts as slow";
        pgbouncer: Option<String> = "",
            "connection string of PgBouncer's console, whose metrics the agent shows; the role is one of its stats_users; a secret";
        pgbouncer_log: Option<PathBuf> as absolute = "", "PgBouncer's log, in which the agent counts errors";
    }

    /// What `walship agent` runs by itself, and when.
    [schedule] schedule: ScheduleSettings {
        basebackup: Option<Pattern> = "",
            "when the agent runs walship basebackup: a cron expression, such as 30 2 * * * for 02:30 each day; none means never";
        expire: Option<Pattern> = "", "the same for walship expire";
        verify: Option<Pattern> = "", "the same for walship verify";
        drill: Option<Pattern> = "", "the same for walship drill";
        doctor: Option<Pattern> = "", "the same for walship doctor";
        time_zone: TimeZoneChoice as word = "local",
            "by which clock: local, which is the zone of the agent's machine or of its variable TZ, or utc";
        jitter: Option<Duration> = "", "each run is put off by less than this, always the same for a moment; none means not at all";
        on_gap: OnEvent as word = "none",
            "what a gap in the archived WAL after the newest backup leads to: basebackup, or none";
        on_new_timeline: OnEvent as word = "none",
            "what a promotion leads to, if there is no backup of the new timeline: basebackup, or none";
        max_extra: u32 = "2", "most backups a day that on_gap and on_new_timeline lead to";
        on_standby: bool = "false", "whether jobs are run where the server is a standby: true or false";
        state_directory: Option<PathBuf> as absolute = "",
            "where the agent notes how its jobs ended; none means /var/lib/walship where that is this user's, else the directory of the agent's socket";
    }

    /// Who is told how a scheduled command ended, or the same command by hand.
    [notify] notify: NotifySettings {
        basebackup_ping_url: Option<SecretUrl> = "",
            "URL that is pinged when walship basebackup begins and ends, as healthchecks.io has it; a secret";
        expire_ping_url: Option<SecretUrl> = "", "the same for walship expire";
        verify_ping_url: Option<SecretUrl> = "", "the same for walship verify";
        drill_ping_url: Option<SecretUrl> = "", "the same for walship drill";
        doctor_ping_url: Option<SecretUrl> = "", "the same for walship doctor, where the agent runs it";
        webhook: Option<SecretUrl> = "", "URL that gets the report of each of them as JSON when it has ended; a secret";
        command: Option<String> = "",
            "command for /bin/sh that gets the same on its standard input, with WALSHIP_JOB, WALSHIP_RESULT and WALSHIP_EXIT_CODE";
    }

    /// How a store is reached.
    [s3] store: S3Settings => StoreOptions {
        endpoint: Option<String> = "",
            "base URL of an S3-compatible server; none means AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, else AWS";
        region: Option<String> = "",
            "region; none means the AWS environment's or profile's, us-east-1 where there is an endpoint";
        path_style: Option<bool> as path_style = "auto",
            "bucket in the path: true, false, or auto, which means true where there is an endpoint";
        storage_class: Option<String> = "",
            "storage class of new objects, such as STANDARD_IA; none means the bucket's default";
        server_side_encryption: Option<String> = "",
            "AES256 (SSE-S3) or aws:kms (SSE-KMS); none means the bucket's default";
        kms_key_id: Option<String> = "", "key for aws:kms; none means the account's default key";
        ca_file: Option<PathBuf> = "", "PEM file of the certificate authorities to trust instead of the system's";
        connect_timeout: Duration = "5s", "time to open a connection";
        request_timeout: Duration = "20s", "time for one attempt of a request without progress";
        timeout: Duration = "60s", "time for a request with all its retries, in all commands but push and restore";
    }
}

impl From<RetentionSettings> for RetentionPolicy {
    fn from(retention: RetentionSettings) -> Self {
        Self {
            window: retention.keep_window,
            backups: retention.keep_backups,
            daily: retention.keep_daily,
            weekly: retention.keep_weekly,
            monthly: retention.keep_monthly,
            yearly: retention.keep_yearly,
        }
    }
}

impl From<S3Settings> for StoreOptions {
    fn from(s3: S3Settings) -> Self {
        Self {
            operation_timeout: s3.timeout,
            connect_timeout: s3.connect_timeout,
            request_timeout: s3.request_timeout,
            s3: S3Options {
                endpoint: s3.endpoint,
                region: s3.region,
                path_style: s3.path_style,
                storage_class: s3.storage_class,
                server_side_encryption: s3.server_side_encryption,
                kms_key_id: s3.kms_key_id,
                ca_file: s3.ca_file,
                ..S3Options::default()
            },
        }
    }
}

impl SeedSettings {
    /// The most WAL with which a replica is made from the archive.
    #[must_use]
    pub fn archive_wal(&self) -> WalLimits {
        WalLimits {
            percent: self.archive_wal_percent,
            bytes: self.archive_wal_limit,
        }
    }
}

impl ScheduleSettings {
    /// When each job is run, for those that are.
    #[must_use]
    pub fn patterns(&self) -> BTreeMap<Job, Pattern> {
        let of = |job| match job {
            Job::Basebackup => &self.basebackup,
            Job::Expire => &self.expire,
            Job::Verify => &self.verify,
            Job::Drill => &self.drill,
            Job::Doctor => &self.doctor,
        };
        let planned = Job::ALL
            .into_iter()
            .filter_map(|job| Some((job, of(job).clone()?)));
        planned.collect()
    }

    /// Whether there is anything to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns().is_empty() && self.on_gap == OnEvent::None && self.on_new_timeline == OnEvent::None
    }
}
