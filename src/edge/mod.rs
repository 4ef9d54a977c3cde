//! Where the program meets its caller: flags that several commands share, the runtime, printing and logging, exit
//! codes, and how another walship, such as an agent or a job of its schedule, is started with the same settings.

pub mod agent;
pub mod exit;
pub mod exposition;
pub mod logging;
pub mod notify;
pub mod print;
mod progress_bar;
pub mod runtime;
pub mod schedule;
pub mod scheduled;
pub mod target;
mod this_walship;

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub use self::progress_bar::watched;
pub use self::this_walship::this_walship;
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::judge::diagnosis::Limits;

/// A variable of the environment; none where it is not UTF-8.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Where PostgreSQL's programs are looked for: `postgres.bin_dir`, and then `PATH`.
pub fn search_path(settings: &Settings) -> Result<Option<OsString>> {
    let path = std::env::var_os("PATH");
    let Some(bin_dir) = &settings.postgres.bin_dir else {
        return Ok(path);
    };
    let others = path.as_deref().map(std::env::split_paths).into_iter().flatten();
    std::env::join_paths(std::iter::once(bin_dir.clone()).chain(others))
        .map(Some)
        .map_err(|_| Error::invalid("postgres.bin_dir has a colon in it; give a directory without one"))
}

/// The path from the root on; it need not exist.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io(format!("find {}", path.display()), error))
}

/// Writes a file that is there as a whole or not at all, and durable; one of that name is replaced.
pub fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".walship-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

/// The data directory that a flag names, or else `PGDATA`.
pub fn pgdata(flag: Option<PathBuf>) -> Option<PathBuf> {
    let variable = || std::env::var_os("PGDATA").filter(|path| !path.is_empty());
    flag.or_else(|| variable().map(PathBuf::from))
}

/// The limits beyond which doctor and status warn.
pub fn limits(settings: &Settings) -> Limits {
    Limits {
        backup_age: settings.doctor.max_backup_age,
        archive_delay: settings.doctor.max_archive_delay,
        standby_lag: settings.doctor.max_standby_lag,
        verify_age: settings.doctor.max_verify_age,
        drill_age: settings.doctor.max_drill_age,
        push_time: settings.push.timeout,
    }
}
