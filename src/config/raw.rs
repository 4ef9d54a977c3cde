//! Settings as they were written, each with its origin.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::list::{ARCHIVE, SETTINGS, Setting};
use super::{DEFAULT_FILE, Sources};
use crate::error::{Error, Result};

/// Where a setting's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Flag,
    Environment,
    File,
}

/// Values before they are read.
#[derive(Debug, Clone, Default)]
pub(super) struct Raw {
    values: BTreeMap<&'static str, (String, Origin)>,
    pub(super) file: Option<PathBuf>,
}

impl Raw {
    pub(super) fn gather(sources: &Sources, file: Option<(&Path, &str)>) -> Result<Self> {
        let mut raw = Self::default();
        if let Some((path, text)) = file {
            raw.read_file(path, text)?;
        }
        for setting in SETTINGS {
            // An empty variable counts as not set, as for libpq and the AWS tools.
            let value = sources.environment.get(&setting.environment_variable());
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                raw.values
                    .insert(setting.key, (value.clone(), Origin::Environment));
            }
        }
        for (key, value) in &sources.flags {
            raw.set_flag(key, value);
        }
        Ok(raw)
    }

    pub(super) fn set_flag(&mut self, key: &'static str, value: &str) {
        self.values.insert(key, (value.to_owned(), Origin::Flag));
    }

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

    /// The value, or the default, read by `read`.
    pub(super) fn read<T>(
        &self,
        key: &str,
        default: &str,
        read: impl FnOnce(&str) -> std::result::Result<T, String>,
    ) -> Result<T> {
        let text = self.values.get(key).map_or(default, |(value, _)| value);
        read(text).map_err(|why| self.invalid(key, &why))
    }

    /// The settings that were not set in the file, as environment variables, without those that are secrets.
    pub(super) fn set_elsewhere(&self) -> Vec<(String, &str)> {
        let variable = |setting: &Setting| {
            let (value, origin) = self.values.get(setting.key)?;
            let is_told = *origin != Origin::File && !is_secret(setting.key);
            is_told.then(|| (setting.environment_variable(), value.as_str()))
        };
        SETTINGS.iter().filter_map(variable).collect()
    }

    fn invalid(&self, key: &str, why: &str) -> Error {
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
        if key == ARCHIVE.key || key == "s3.endpoint" || is_secret(key) {
            return Error::invalid(format!("setting {key}{from}: {why}"));
        }
        Error::invalid(format!("setting {key} = \"{value}\"{from}: {why}"))
    }
}

/// Whoever knows the URL of a webhook can write there, and a command may have a password in it.
fn is_secret(key: &str) -> bool {
    // A connection string may hold a password.
    key.starts_with("notify.") || key == "metrics.pgbouncer"
}

/// Why a file is not TOML, with the line.
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
        .map_or(ARCHIVE.key, |setting| setting.key)
}
