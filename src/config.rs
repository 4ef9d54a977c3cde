//! Settings: flag before environment before file before default, each with its origin.
//!
//! [`SETTINGS`] is the whole list. Every setting is a key of the TOML file (`push.timeout` is
//! `timeout` in `[push]`) and an environment variable (`WALSHIP_PUSH_TIMEOUT`).

mod list;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use chrono::TimeDelta;

use crate::error::{Error, Result};
use crate::judge::diagnosis::Check;
use crate::judge::retention::RetentionPolicy;
use crate::judge::seed_source::WalLimits;
use crate::server::os_user;
use crate::store::{Location, S3Options, StoreOptions};

use crate::text::ByteSize;
pub use list::{SETTINGS, Setting};
use values::Count;
pub use values::{duration_text, parse_duration};

/// The file that is read when neither `--config` nor `WALSHIP_CONFIG` names one, if it is there.
pub const DEFAULT_FILE: &str = "/etc/walship/walship.toml";

/// Where a setting's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A flag of the command line.
    Flag,
    /// An environment variable.
    Environment,
    /// The configuration file.
    File,
}

/// How a standby's failed restore ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandbyFailure {
    /// Exit code 1: the standby streams, or asks again.
    Continue,
    /// Exit code 200: the standby shuts down.
    Stop,
}

/// How a base backup reads the server's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupMethod {
    /// Over the replication protocol.
    Stream,
    /// From the data directory on this machine.
    Local,
}

/// Format of what is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object on each line.
    Json,
}

/// All settings, validated.
#[derive(Debug, Clone)]
pub struct Settings {
    raw: Raw,
    /// `log.level`.
    pub log_level: tracing::Level,
    /// `log.format`.
    pub log_format: LogFormat,
    /// `[push]`.
    pub push: PushSettings,
    /// `[restore]`.
    pub restore: RestoreSettings,
    /// `[backup]`.
    pub backup: BackupSettings,
    /// `[retention]`; it may promise nothing.
    pub retention: RetentionPolicy,
    /// `[doctor]`.
    pub doctor: DoctorSettings,
    /// `postgres.bin_dir`.
    pub bin_dir: Option<PathBuf>,
    /// `[seed]`.
    pub seed: SeedSettings,
    /// `recover.concurrency`, at least 1.
    pub recover_concurrency: usize,
    /// `[drill]`.
    pub drill: DrillSettings,
    /// `[verify]`.
    pub verify: VerifySettings,
    /// `[agent]`.
    pub agent: AgentSettings,
    /// `[s3]`; its `operation_timeout` is `s3.timeout`.
    pub store: StoreOptions,
}

/// Settings of `walship push`.
#[derive(Debug, Clone)]
pub struct PushSettings {
    /// `push.timeout`.
    pub timeout: Duration,
    /// `push.compression_level`.
    pub compression_level: i32,
    /// `push.memory`, in bytes.
    pub memory_bytes: usize,
}

/// Settings of `walship restore`.
#[derive(Debug, Clone)]
pub struct RestoreSettings {
    /// `restore.timeout`.
    pub timeout: Duration,
    /// `restore.standby_timeout`.
    pub standby_timeout: Duration,
    /// `restore.standby_failure`.
    pub standby_failure: StandbyFailure,
}

/// Settings of `walship basebackup`.
#[derive(Debug, Clone)]
pub struct BackupSettings {
    /// `backup.method`.
    pub method: BackupMethod,
    /// `backup.compression_level`.
    pub compression_level: i32,
    /// `backup.concurrency`, at least 1.
    pub concurrency: usize,
    /// `backup.part_size`, in bytes of tar.
    pub part_bytes: u64,
    /// `backup.max_rate`, in bytes a second.
    pub max_rate: Option<ByteSize>,
    /// `backup.wal_timeout`.
    pub wal_timeout: Duration,
}

/// Settings of `walship doctor`.
#[derive(Debug, Clone)]
pub struct DoctorSettings {
    /// `doctor.timeout`.
    pub timeout: Duration,
    /// `doctor.max_backup_age`.
    pub max_backup_age: Duration,
    /// `doctor.max_archive_delay`.
    pub max_archive_delay: Duration,
    /// `doctor.max_standby_lag`.
    pub max_standby_lag: Duration,
    /// `doctor.max_verify_age`.
    pub max_verify_age: Duration,
    /// `doctor.max_drill_age`.
    pub max_drill_age: Duration,
    /// `doctor.ignore`.
    pub ignore: Vec<Check>,
}

/// Settings of `walship basebackup --seed-replica`.
#[derive(Debug, Clone)]
pub struct SeedSettings {
    /// `seed.archive_wal_percent` and `seed.archive_wal_limit`.
    pub archive_wal: WalLimits,
    /// `seed.start_timeout`.
    pub start_timeout: Duration,
}

/// Settings of `walship drill`.
#[derive(Debug, Clone)]
pub struct DrillSettings {
    /// `drill.directory`.
    pub directory: PathBuf,
    /// `drill.timeout`.
    pub timeout: Duration,
    /// `drill.user`.
    pub user: Option<String>,
    /// `drill.amcheck`.
    pub amcheck: bool,
    /// `drill.shared_buffers`, in bytes.
    pub shared_buffers: ByteSize,
    /// `drill.preload_libraries`.
    pub preload_libraries: String,
}

/// Settings of `walship verify`.
#[derive(Debug, Clone)]
pub struct VerifySettings {
    /// `verify.recheck`.
    pub recheck: Duration,
    /// `verify.concurrency`, at least 1.
    pub concurrency: usize,
    /// `verify.max_rate`, in bytes a second.
    pub max_rate: Option<ByteSize>,
}

/// Settings of `walship agent`, and of those who ask it.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// `agent.socket`.
    pub socket: Option<PathBuf>,
    /// `agent.autostart`.
    pub autostart: bool,
    /// `agent.idle_timeout`.
    pub idle_timeout: Duration,
    /// `agent.lookahead`, at least 1.
    pub lookahead: usize,
    /// `agent.prefetch`.
    pub prefetch: usize,
}

/// What the command line and the environment say; the file is found through them.
#[derive(Debug, Default)]
pub struct Sources {
    /// `--config`.
    pub config_flag: Option<PathBuf>,
    /// Settings given as flags, by key.
    pub flags: Vec<(&'static str, String)>,
    /// The environment.
    pub environment: BTreeMap<String, String>,
}

impl Settings {
    /// Reads the file, if there is one, and puts all sources together.
    ///
    /// # Errors
    /// `Invalid`, naming the key, the value and where it was set.
    pub fn load(sources: &Sources) -> Result<Self> {
        let from_environment = sources
            .environment
            .get("WALSHIP_CONFIG")
            .filter(|path| !path.is_empty());
        let named = sources
            .config_flag
            .clone()
            .or_else(|| from_environment.map(PathBuf::from));
        let (path, required) = named.map_or((PathBuf::from(DEFAULT_FILE), false), |path| (path, true));
        let file = match std::fs::read_to_string(&path) {
            Ok(text) => Some((path, text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => None,
            Err(error) => return Err(unreadable_file(&path, &error)),
        };
        Self::resolve(
            sources,
            file.as_ref().map(|(path, text)| (path.as_path(), text.as_str())),
        )
    }

    fn resolve(sources: &Sources, file: Option<(&Path, &str)>) -> Result<Self> {
        let mut raw = Raw {
            values: BTreeMap::new(),
            file: None,
        };
        if let Some((path, text)) = file {
            raw.read_file(path, text)?;
        }
        for setting in SETTINGS {
            // An empty variable counts as not set, as for libpq and the AWS tools.
            if let Some(value) = sources
                .environment
                .get(&setting.environment_variable())
                .filter(|v| !v.is_empty())
            {
                raw.values
                    .insert(setting.key, (value.clone(), Origin::Environment));
            }
        }
        for (key, value) in &sources.flags {
            raw.values.insert(key, (value.clone(), Origin::Flag));
        }
        raw.validate()
    }

    /// The archive's URL.
    ///
    /// # Errors
    /// `Invalid` where none is set, or it is none.
    pub fn archive(&self) -> Result<Location> {
        self.raw.optional("archive")?.ok_or_else(|| {
            Error::invalid(format!(
                "no archive is set; give --archive URL, WALSHIP_ARCHIVE, or archive = \"s3://bucket/prefix\" in {DEFAULT_FILE}"
            ))
        })
    }

    /// Whether retention is configured here: then this host deletes from the archive.
    #[must_use]
    pub fn expires(&self) -> bool {
        self.retention.check().is_ok()
    }

    /// The configuration file that was read.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.raw.file.as_deref()
    }

    /// These settings for another archive.
    #[must_use]
    pub fn with_archive(&self, url: &str) -> Self {
        let mut settings = self.clone();
        settings
            .raw
            .values
            .insert("archive", (url.to_owned(), Origin::Flag));
        settings
    }

    /// What another walship process needs to come to the same settings: the file's path, and the
    /// environment variables for what was not in it. Holds no secrets: no setting is one.
    #[must_use]
    pub fn to_reproduce(&self) -> (Option<&Path>, Vec<(String, &str)>) {
        let set_elsewhere = SETTINGS.iter().filter_map(|setting| {
            let (value, origin) = self.raw.values.get(setting.key)?;
            (*origin != Origin::File).then(|| (setting.environment_variable(), value.as_str()))
        });
        (self.raw.file.as_deref(), set_elsewhere.collect())
    }
}

fn unreadable_file(path: &Path, error: &std::io::Error) -> Error {
    let shown = path.display();
    Error::invalid(match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("there is no configuration file {shown}; check --config or WALSHIP_CONFIG")
        }
        std::io::ErrorKind::PermissionDenied => {
            let user = os_user().unwrap_or_else(|| rustix::process::geteuid().as_raw().to_string());
            format!(
                "read the configuration file {shown}: permission denied; make it, and the directories above it, \
                 readable for user {user}"
            )
        }
        _ => format!("read the configuration file {shown}: {error}"),
    })
}

/// What is wrong with a file that is not TOML, with the line.
fn syntax_error(error: &toml::de::Error, text: &str) -> String {
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
        return error.message().to_owned();
    };
    let number = before.matches('\n').count();
    let line = text.lines().nth(number).unwrap_or_default();
    let message = error.message().replace('\n', ", ");
    let value = line.split_once('=').map_or("", |(_, value)| value.trim());
    let is_bare = value.starts_with(|c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-'));
    let hint = if is_bare {
        format!("; a text needs quotes: \"{value}\"")
    } else {
        String::new()
    };
    format!("line {}: {message}{hint}", number + 1)
}

/// Values as they were written, before validation.
#[derive(Debug, Clone)]
struct Raw {
    values: BTreeMap<&'static str, (String, Origin)>,
    file: Option<PathBuf>,
}

impl Raw {
    fn read_file(&mut self, path: &Path, text: &str) -> Result<()> {
        let invalid = |what: String| Error::invalid(format!("configuration file {}: {what}", path.display()));
        let table: toml::Table = text
            .parse()
            .map_err(|error: toml::de::Error| invalid(syntax_error(&error, text)))?;
        let mut pairs = Vec::new();
        flatten("", &table, &mut pairs);
        for (key, value) in pairs {
            let setting = SETTINGS
                .iter()
                .find(|setting| setting.key == key)
                .ok_or_else(|| {
                    invalid(format!(
                        "unknown key \"{key}\"; the nearest known one is \"{}\"",
                        nearest_key(&key)
                    ))
                })?;
            let value = match value {
                toml::Value::String(text) => text.clone(),
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(flag) => flag.to_string(),
                other => {
                    return Err(invalid(format!(
                        "\"{key}\" is {}, where a text or number belongs",
                        other.type_str()
                    )));
                }
            };
            self.values.insert(setting.key, (value, Origin::File));
        }
        self.file = Some(path.to_owned());
        Ok(())
    }

    fn validate(self) -> Result<Settings> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let at_least_one = |number: usize| {
            if number == 0 {
                automatic_workers(cores)
            } else {
                number
            }
        };
        Ok(Settings {
            log_level: self.required("log.level")?,
            log_format: self.required("log.format")?,
            push: PushSettings {
                timeout: self.duration("push.timeout")?,
                compression_level: self.level("push.compression_level")?,
                memory_bytes: self.required::<ByteSize>("push.memory")?.0 as usize,
            },
            restore: RestoreSettings {
                timeout: self.duration("restore.timeout")?,
                standby_timeout: self.duration("restore.standby_timeout")?,
                standby_failure: self.required("restore.standby_failure")?,
            },
            backup: BackupSettings {
                method: self.required("backup.method")?,
                compression_level: self.level("backup.compression_level")?,
                concurrency: at_least_one(self.required("backup.concurrency")?),
                part_bytes: self.part_size()?,
                max_rate: self.optional("backup.max_rate")?,
                wal_timeout: self.duration("backup.wal_timeout")?,
            },
            retention: self.retention()?,
            doctor: DoctorSettings {
                timeout: self.duration("doctor.timeout")?,
                max_backup_age: self.duration("doctor.max_backup_age")?,
                max_archive_delay: self.duration("doctor.max_archive_delay")?,
                max_standby_lag: self.duration("doctor.max_standby_lag")?,
                max_verify_age: self.duration("doctor.max_verify_age")?,
                max_drill_age: self.duration("doctor.max_drill_age")?,
                ignore: self.checks("doctor.ignore")?,
            },
            bin_dir: self.optional("postgres.bin_dir")?,
            seed: SeedSettings {
                archive_wal: WalLimits {
                    percent: self.required("seed.archive_wal_percent")?,
                    bytes: self.required("seed.archive_wal_limit")?,
                },
                start_timeout: self.duration("seed.start_timeout")?,
            },
            // While one part is waited for another is decompressed.
            recover_concurrency: match self.required("recover.concurrency")? {
                0 => automatic_workers(2 * cores),
                number => number,
            },
            drill: DrillSettings {
                directory: self.required("drill.directory")?,
                timeout: self.duration("drill.timeout")?,
                user: self.optional("drill.user")?,
                amcheck: self.required("drill.amcheck")?,
                shared_buffers: self.required("drill.shared_buffers")?,
                preload_libraries: self.text("drill.preload_libraries"),
            },
            verify: VerifySettings {
                recheck: self.duration("verify.recheck")?,
                concurrency: at_least_one(self.required("verify.concurrency")?),
                max_rate: self.verify_rate()?,
            },
            agent: AgentSettings {
                socket: self.socket()?,
                autostart: self.required("agent.autostart")?,
                idle_timeout: self.duration("agent.idle_timeout")?,
                lookahead: match self.required("agent.lookahead")? {
                    0 => automatic_workers(2 * cores),
                    number => number,
                },
                prefetch: self.required("agent.prefetch")?,
            },
            store: self.store_options()?,
            raw: self,
        })
    }

    fn retention(&self) -> Result<RetentionPolicy> {
        let count = |key| {
            self.optional::<Count>(key)
                .map(|count| count.map(|Count(count)| count))
        };
        Ok(RetentionPolicy {
            window: self.window()?,
            backups: count("retention.keep_backups")?,
            daily: count("retention.keep_daily")?,
            weekly: count("retention.keep_weekly")?,
            monthly: count("retention.keep_monthly")?,
            yearly: count("retention.keep_yearly")?,
        })
    }

    fn window(&self) -> Result<Option<TimeDelta>> {
        let key = "retention.keep_window";
        if self.text(key).is_empty() {
            return Ok(None);
        }
        let window = TimeDelta::from_std(self.duration(key)?).map_err(|error| self.invalid(key, error))?;
        if window < TimeDelta::hours(1) {
            return Err(self.invalid(
                key,
                "a window shorter than an hour would keep next to nothing; write 14d",
            ));
        }
        Ok(Some(window))
    }

    fn store_options(&self) -> Result<StoreOptions> {
        let path_style = match self.text("s3.path_style").as_str() {
            "auto" => None,
            _ => Some(self.required("s3.path_style")?),
        };
        Ok(StoreOptions {
            operation_timeout: self.duration("s3.timeout")?,
            connect_timeout: self.duration("s3.connect_timeout")?,
            request_timeout: self.duration("s3.request_timeout")?,
            s3: S3Options {
                endpoint: self.optional("s3.endpoint")?,
                region: self.optional("s3.region")?,
                path_style,
                storage_class: self.optional("s3.storage_class")?,
                server_side_encryption: self.optional("s3.server_side_encryption")?,
                kms_key_id: self.optional("s3.kms_key_id")?,
                ca_file: self.optional("s3.ca_file")?,
                ..S3Options::default()
            },
        })
    }

    fn text(&self, key: &str) -> String {
        match self.values.get(key) {
            Some((value, _)) => value.clone(),
            None => SETTINGS
                .iter()
                .find(|setting| setting.key == key)
                .map_or_else(String::new, |s| s.default.to_owned()),
        }
    }

    fn required<T: FromStr<Err: fmt::Display>>(&self, key: &'static str) -> Result<T> {
        self.text(key).parse().map_err(|error| self.invalid(key, error))
    }

    fn optional<T: FromStr<Err: fmt::Display>>(&self, key: &'static str) -> Result<Option<T>> {
        if self.text(key).is_empty() {
            Ok(None)
        } else {
            self.required(key).map(Some)
        }
    }

    fn duration(&self, key: &'static str) -> Result<Duration> {
        parse_duration(&self.text(key)).map_err(|error| self.invalid(key, error))
    }

    fn level(&self, key: &'static str) -> Result<i32> {
        let level = self.required(key)?;
        if !(-7..=19).contains(&level) {
            return Err(self.invalid(key, "zstd levels go from -7 (fastest) to 19 (smallest)"));
        }
        Ok(level)
    }

    /// Ids of checks, separated by commas.
    fn checks(&self, key: &'static str) -> Result<Vec<Check>> {
        let text = self.text(key);
        let ids = text.split(',').map(str::trim).filter(|id| !id.is_empty());
        ids.map(|id| id.parse().map_err(|why: String| self.invalid(key, why)))
            .collect()
    }

    fn socket(&self) -> Result<Option<PathBuf>> {
        let socket: Option<PathBuf> = self.optional("agent.socket")?;
        match socket {
            Some(path) if !path.is_absolute() => Err(self.invalid("agent.socket", "give an absolute path")),
            socket => Ok(socket),
        }
    }

    fn part_size(&self) -> Result<u64> {
        let ByteSize(bytes) = self.required("backup.part_size")?;
        if !((4 << 20)..=(256 << 20)).contains(&bytes) {
            return Err(self.invalid("backup.part_size", "choose 4MiB to 256MiB"));
        }
        Ok(bytes)
    }

    /// Slower than this the store's own time limits end the reading.
    fn verify_rate(&self) -> Result<Option<ByteSize>> {
        let rate: Option<ByteSize> = self.optional("verify.max_rate")?;
        match rate {
            Some(rate) if rate.0 < (64 << 10) => {
                Err(self.invalid("verify.max_rate", "choose at least 64KiB, or none"))
            }
            rate => Ok(rate),
        }
    }

    fn invalid(&self, key: &'static str, why: impl fmt::Display) -> Error {
        let (value, from) = match self.values.get(key) {
            Some((value, Origin::Flag)) => (value.as_str(), " of the command line".to_owned()),
            Some((value, Origin::Environment)) => (value.as_str(), " of the environment".to_owned()),
            Some((value, Origin::File)) => {
                let path = self.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
                (value.as_str(), format!(" in {}", path.display()))
            }
            None => ("", String::new()),
        };
        // A URL with a password in it is refused without repeating it.
        if key == "archive" || key == "s3.endpoint" {
            return Error::invalid(format!("setting {key}{from}: {why}"));
        }
        Error::invalid(format!("setting {key} = \"{value}\"{from}: {why}"))
    }
}

fn flatten<'a>(prefix: &str, table: &'a toml::Table, pairs: &mut Vec<(String, &'a toml::Value)>) {
    for (key, value) in table {
        let key = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        match value {
            toml::Value::Table(table) => flatten(&key, table, pairs),
            _ => pairs.push((key, value)),
        }
    }
}

fn nearest_key(key: &str) -> &'static str {
    let distance = |setting: &&Setting| strsim::damerau_levenshtein(setting.key, key);
    SETTINGS
        .iter()
        .min_by_key(distance)
        .map_or("archive", |setting| setting.key)
}

/// Each takes memory, of which walship takes no more than 192 MiB on however many cores.
const AUTOMATIC_WORKERS: usize = 8;

fn automatic_workers(cores: usize) -> usize {
    cores.min(AUTOMATIC_WORKERS)
}

#[cfg(test)]
mod tests;
