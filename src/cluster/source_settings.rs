//! What the source's configuration means in a copy, and which of its settings are overridden there.
//!
//! The source's own files stay as they are, with one exception. A line of `data_directory` that names another directory
//! than the copy's would start the source's data directory whenever the copy is started, and only a setting on the
//! command line could win over it (`SelectConfigFiles` and `ProcessConfigFileInternal`, `guc.c`, PostgreSQL 14 to 18:
//! it is read before `postgresql.auto.conf`). Such a line is commented out.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::configuration::write_file;
use super::destination::Access;
use super::start_command::OutsideConfiguration;
use crate::error::{Error, Result};
use crate::judge::copy_settings::{Copy, Overrides, overrides};
use crate::pg::Major;
use crate::pg::configuration_files::{ConfigurationFiles, Files, Grammar};
use crate::pg::guc_file::{quote, setting_name};

/// The configuration file outside the data directory, where the source has its own there.
#[derive(Debug, Clone, Copy)]
pub struct Outside<'a> {
    pub config_file: &'a Path,
    /// What it will hold, where it is not there yet.
    pub pending: Option<&'a [u8]>,
}

/// The settings of its source that a copy overrides, and what the administrator must know of that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Judgement {
    /// The settings that are written, and those that are not followed.
    pub overrides: Overrides,
    /// What the administrator must know.
    pub notes: Vec<String>,
}

/// Judges the settings that a copy has from its source. `auto_conf` is its `postgresql.auto.conf`, as it is before it
/// is written anew; `version` is the server's, such as `17.11`, where it is known.
pub fn judge(
    data: &Path,
    outside: Option<Outside<'_>>,
    auto_conf: &[u8],
    copy: Copy,
    version: Option<&str>,
) -> Judgement {
    let Some(major) = major_of(data) else {
        return Judgement::default();
    };
    let mut found = read(data, outside);
    found.settings.extend(
        auto_conf
            .split(|byte| *byte == b'\n')
            .filter_map(crate::pg::guc_file::setting),
    );
    let value = |name: &str| {
        found
            .value(name)
            .map(|value| String::from_utf8_lossy(value).into_owned())
    };
    let mut overrides = overrides(copy, major, value);
    // In its source's place the file is its own, and Debian's programs look for the server there.
    let is_at_home = value("data_directory").is_some_and(|place| Path::new(&place) == data)
        || OutsideConfiguration::of_debian(major, data).is_some();
    if is_at_home {
        overrides
            .settings
            .retain(|(name, _)| *name != "external_pid_file");
    }
    if !version.is_none_or(has_in_place_tablespaces) {
        overrides
            .settings
            .retain(|(name, _)| *name != "allow_in_place_tablespaces");
    }
    let notes = notes(copy, &overrides);
    Judgement { overrides, notes }
}

fn notes(copy: Copy, overrides: &Overrides) -> Vec<String> {
    let mut notes = Vec::new();
    match copy {
        Copy::Rehearsal => notes.push(
            "this copy is for rehearsal and reaches nothing of its source: it follows no subscription, waits for no \
             standby, starts no jobs, logs into its own directory log, and keeps tablespaces that were made after the backup inside \
             its data directory. Give it a port of its own (docs/settings-of-a-copy.md)"
                .to_owned(),
        ),
        Copy::Clone => notes.push(
            "this clone follows no subscription of its source and starts no jobs (the lines at the end of its \
             postgresql.conf); drop what it must not have before you change that (docs/settings-of-a-copy.md)"
                .to_owned(),
        ),
        Copy::Replacement if !overrides.said.is_empty() => notes.push(format!(
            "this copy takes its source's place and keeps what reaches outside: {}",
            said(&overrides.said)
        )),
        Copy::Standby { beside_another: true } => notes.push(
            "another server of this cluster runs on this machine: the standby writes its PID file and its log \
             into its own data directory only (docs/settings-of-a-copy.md)"
                .to_owned(),
        ),
        Copy::Replacement | Copy::Standby { .. } | Copy::Drill => {}
    }
    if !overrides.left_out.is_empty() {
        notes.push(format!(
            "this copy does not load these libraries, because they may run jobs or reach other servers: {}. If replay or its \
             data need one, add it to shared_preload_libraries in postgresql.auto.conf",
            overrides.left_out.join(", ")
        ));
    }
    notes
}

fn said(settings: &[(&'static str, String)]) -> String {
    let shown = settings
        .iter()
        .map(|(name, value)| match (*name, value.as_str()) {
            ("max_logical_replication_workers", _) => "subscriptions are followed".to_owned(),
            (_, value) => format!("{name} = {}", quote(value)),
        });
    shown.collect::<Vec<_>>().join(", ")
}

/// The number in `PG_VERSION`.
fn major_of(data: &Path) -> Option<Major> {
    std::fs::read_to_string(data.join("PG_VERSION"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// PostgreSQL 14 has them from 14.5 on; a server refuses a setting that it does not know.
pub fn has_in_place_tablespaces(version: &str) -> bool {
    let minor = version
        .strip_prefix("14.")
        .and_then(|minor| minor.parse::<u32>().ok());
    minor.is_none_or(|minor| minor >= 5)
}

/// Reads the copy's configuration. Its own file counts where it has one.
fn read(data: &Path, outside: Option<Outside<'_>>) -> ConfigurationFiles {
    let own = data.join("postgresql.conf");
    let path = match outside {
        Some(outside) if !own.is_file() => outside.config_file.to_owned(),
        _ => own,
    };
    let mut found = ConfigurationFiles::default();
    found.follow(&path, Grammar::Settings, &mut Disk { outside });
    found
}

struct Disk<'a> {
    outside: Option<Outside<'a>>,
}

impl Files for Disk<'_> {
    fn read(&mut self, path: &Path) -> Option<Vec<u8>> {
        let pending = self.outside.filter(|outside| outside.config_file == path);
        match pending.and_then(|outside| outside.pending) {
            Some(pending) => Some(pending.to_vec()),
            None => std::fs::read(path).ok(),
        }
    }

    fn list(&mut self, directory: &Path) -> Option<Vec<PathBuf>> {
        let entries = std::fs::read_dir(directory).ok()?;
        Some(entries.flatten().map(|entry| entry.path()).collect())
    }
}

/// Makes sure that the copy's own `postgresql.conf` names no other data directory. Returns what the administrator must
/// know.
///
/// # Errors
/// `Internal` where a file cannot be written.
pub fn stay_at_home(data: &Path, access: Access) -> Result<Option<String>> {
    let own = data.join("postgresql.conf");
    let Some(named) = named_elsewhere(data, &own) else {
        return Ok(None);
    };
    for file in read(data, None).files {
        if file.starts_with(data) && file.symlink_metadata().is_ok_and(|found| found.is_file()) {
            comment_out(&file, access)?;
        }
    }
    let Some(still) = named_elsewhere(data, &own) else {
        return Ok(Some(format!(
            "data_directory in the source's configuration is {named}, and would win over -D: the line is commented out in \
             this copy"
        )));
    };
    let line = format!(
        "# Added by walship: a file that is included above names another directory, {still}.\ndata_directory = {}\n",
        quote(&data.to_string_lossy())
    );
    append(&own, &line, access)?;
    Ok(Some(format!(
        "data_directory in the source's configuration is {still}, and would win over -D: this copy's own is added at the \
         end of its postgresql.conf; change that line if you move the copy"
    )))
}

/// What `data_directory` is, where it is not the copy's.
fn named_elsewhere(data: &Path, own: &Path) -> Option<String> {
    if !own.is_file() {
        return None;
    }
    let found = read(data, None);
    let named = String::from_utf8_lossy(found.value("data_directory")?).into_owned();
    let resolved = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    (resolved(Path::new(&named)) != resolved(data)).then_some(named)
}

fn comment_out(file: &Path, access: Access) -> Result<()> {
    let content =
        std::fs::read(file).map_err(|error| Error::io(format!("read {}", file.display()), error))?;
    let mut after = Vec::with_capacity(content.len() + 128);
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        let names = setting_name(line).is_some_and(|name| name.eq_ignore_ascii_case(b"data_directory"));
        if names {
            after.extend_from_slice(b"# Commented out by walship, because it is another server's: ");
        }
        after.extend_from_slice(line);
    }
    if after.len() == content.len() {
        return Ok(());
    }
    write_file(file, &after, access)
}

/// Adds lines to the end of a file.
///
/// # Errors
/// `Internal` where it cannot be read or written.
pub fn append(file: &Path, lines: &str, access: Access) -> Result<()> {
    let mut content =
        std::fs::read(file).map_err(|error| Error::io(format!("read {}", file.display()), error))?;
    if content.last().is_some_and(|last| *last != b'\n') {
        content.push(b'\n');
    }
    content.extend_from_slice(lines.as_bytes());
    write_file(file, &content, access)
}

/// The settings as lines of a configuration file, with a comment that says what they are for.
#[must_use]
pub fn block(copy: Copy, overrides: &Overrides) -> String {
    if overrides.settings.is_empty() {
        return String::new();
    }
    let title = match copy {
        Copy::Rehearsal => {
            "# For a rehearsal: this copy reaches nothing of its source. If it is to take its source's place, remove\n\
             # these lines and walship.clone (docs/settings-of-a-copy.md).\n"
        }
        Copy::Clone => {
            "\n# Added by walship: this clone reaches nothing of its source (docs/settings-of-a-copy.md).\n"
        }
        Copy::Standby { .. } => "# Another server of the cluster ran on this machine.\n",
        Copy::Replacement | Copy::Drill => "",
    };
    let mut block = title.to_owned();
    for (name, value) in &overrides.settings {
        // Writing to a String cannot fail.
        let _ = writeln!(block, "{name} = {}", quote(value));
    }
    block
}
