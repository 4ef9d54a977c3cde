//! Settings: flag before environment before file before default, each with its origin.
//!
//! `list.rs` is the whole list. Every setting is a key of the TOML file (`push.timeout` is
//! `timeout` in `[push]`) and an environment variable (`WALSHIP_PUSH_TIMEOUT`).

mod list;
mod raw;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::server::os_user;
use crate::store::Location;
pub use list::Settings;
use list::{ARCHIVE, NotifySettings};
use raw::Raw;
use values::Value;
pub use values::{
    BackupMethod, LogFormat, OnEvent, SecretUrl, StandbyFailure, TimeZoneChoice, cores, duration_text,
    parse_duration,
};

/// The file that is read when neither `--config` nor `WALSHIP_CONFIG` names one, if it is there.
pub const DEFAULT_FILE: &str = "/etc/walship/walship.toml";

/// What the command line and the environment say; they also name the file.
#[derive(Debug, Default)]
pub struct Sources {
    /// `--config`.
    pub config_flag: Option<PathBuf>,
    /// Settings given as flags, by key.
    pub flags: Vec<(&'static str, String)>,
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
        Self::read(Raw::gather(sources, file)?)
    }

    /// The archive's URL.
    ///
    /// # Errors
    /// `Invalid` where none is set, or where it is not one.
    pub fn archive(&self) -> Result<Location> {
        let archive: Option<_> = self.raw.read(ARCHIVE.key, ARCHIVE.default, Value::read)?;
        archive.ok_or_else(|| {
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
        settings.raw.set_flag(ARCHIVE.key, url);
        settings
    }

    /// These settings for a run that somebody else tells of.
    #[must_use]
    pub fn silenced(mut self) -> Self {
        self.notify = NotifySettings {
            basebackup_ping_url: None,
            expire_ping_url: None,
            verify_ping_url: None,
            drill_ping_url: None,
            doctor_ping_url: None,
            webhook: None,
            command: None,
        };
        self
    }

    /// What another walship process needs for the same settings: the file's path, and environment variables for the
    /// settings from elsewhere. No secret is among them: what says whom to notify is left out.
    #[must_use]
    pub fn to_reproduce(&self) -> (Option<&Path>, Vec<(String, &str)>) {
        (self.raw.file.as_deref(), self.raw.set_elsewhere())
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
