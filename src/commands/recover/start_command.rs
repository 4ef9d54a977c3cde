//! The command that starts the recovered server on this system.

use std::path::{Path, PathBuf};

use super::guc_file::value_of;
use super::shell::shell_word;
use crate::archive::backup::{BackupRecord, Configuration};

/// What this system has to start a server with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// Whether Debian's `pg_ctlcluster` is installed.
    pub has_pg_ctlcluster: bool,
    /// `pg_ctl` of the right major version.
    pub pg_ctl: Option<PathBuf>,
    /// Whether the data directory has its own `postgresql.conf`.
    pub data_has_configuration: bool,
    /// The configuration outside the data directory.
    pub outside: Option<OutsideConfiguration>,
}

/// A configuration file outside the data directory that is there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutsideConfiguration {
    /// Its path.
    pub config_file: PathBuf,
    /// The data directory it is for.
    pub data_directory: PathBuf,
}

/// How to start the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartCommand {
    /// The command, for a shell.
    pub command: String,
    /// What stands in its way.
    pub note: Option<String>,
}

impl System {
    /// Looks at this system. `search_path` is `PATH`.
    #[must_use]
    pub fn look(record: &BackupRecord, data: &Path, search_path: Option<&std::ffi::OsStr>) -> Self {
        let directories: Vec<PathBuf> = search_path
            .map(std::env::split_paths)
            .into_iter()
            .flatten()
            .collect();
        let packaged = PathBuf::from(format!("/usr/lib/postgresql/{}/bin", record.postgres_major));
        let redhat = PathBuf::from(format!("/usr/pgsql-{}/bin", record.postgres_major));
        // In PATH the version is not known; the packages' directories name it.
        let pg_ctl = [packaged, redhat]
            .iter()
            .chain(&directories)
            .map(|directory| directory.join("pg_ctl"))
            .find(|program| program.is_file());
        Self {
            has_pg_ctlcluster: directories
                .iter()
                .chain([&PathBuf::from("/usr/bin")])
                .any(|directory| directory.join("pg_ctlcluster").is_file()),
            pg_ctl,
            data_has_configuration: data.join("postgresql.conf").is_file(),
            outside: record.configuration.as_ref().and_then(look_outside),
        }
    }
}

fn look_outside(configuration: &Configuration) -> Option<OutsideConfiguration> {
    let config_file = PathBuf::from(&configuration.config_file);
    let content = std::fs::read(&config_file).ok()?;
    let data_directory = value_of(&content, "data_directory")
        .and_then(|value| String::from_utf8(value).ok())
        .unwrap_or_else(|| configuration.data_directory.clone());
    Some(OutsideConfiguration {
        config_file,
        data_directory: PathBuf::from(data_directory),
    })
}

/// The command for a data directory.
#[must_use]
pub fn start_command(data: &Path, system: &System, missing_configuration: Option<&Path>) -> StartCommand {
    let outside = system.outside.as_ref().filter(|_| !system.data_has_configuration);
    if let Some(outside) = outside
        && system.has_pg_ctlcluster
        && outside.data_directory == data
        && let Some((version, cluster)) = debian_cluster(&outside.config_file)
    {
        return StartCommand {
            command: format!("pg_ctlcluster {version} {cluster} start"),
            note: None,
        };
    }
    let data_word = word(data);
    let pg_ctl = system.pg_ctl.as_deref().unwrap_or(Path::new("pg_ctl"));
    let log = word(&data.join("startup.log"));
    let mut command = format!("{} -D {data_word} -l {log}", word(pg_ctl));
    if let Some(outside) = outside {
        // The file's own data_directory would win over -D.
        let options = format!(
            "-c config_file={} -c data_directory={data_word}",
            word(&outside.config_file)
        );
        command.push_str(" -o ");
        command.push_str(&shell_word(&options));
    }
    command.push_str(" start");
    StartCommand {
        command,
        note: note(system, missing_configuration),
    }
}

fn note(system: &System, missing_configuration: Option<&Path>) -> Option<String> {
    if system.data_has_configuration || system.outside.is_some() {
        return None;
    }
    Some(match missing_configuration {
        Some(path) => format!(
            "the server's configuration file {} is missing; put it back before you start the server",
            path.display()
        ),
        None => {
            "the data directory has no postgresql.conf, and the backup has no configuration from outside it; \
                 the server needs one before it starts (postgresql.conf, pg_hba.conf)"
                .to_owned()
        }
    })
}

/// Version and name of a Debian cluster, from `/etc/postgresql/17/main/postgresql.conf`.
fn debian_cluster(config_file: &Path) -> Option<(&str, &str)> {
    let rest = config_file.to_str()?.strip_prefix("/etc/postgresql/")?;
    let mut parts = rest.split('/');
    let (version, cluster) = (parts.next()?, parts.next()?);
    (parts.eq(["postgresql.conf"])).then_some((version, cluster))
}

fn word(path: &Path) -> String {
    shell_word(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system() -> System {
        System {
            has_pg_ctlcluster: false,
            pg_ctl: Some("/usr/lib/postgresql/17/bin/pg_ctl".into()),
            data_has_configuration: true,
            outside: None,
        }
    }

    fn debian() -> System {
        System {
            has_pg_ctlcluster: true,
            data_has_configuration: false,
            outside: Some(OutsideConfiguration {
                config_file: "/etc/postgresql/17/main/postgresql.conf".into(),
                data_directory: "/var/lib/postgresql/17/main".into(),
            }),
            ..system()
        }
    }

    fn command(data: &str, system: &System) -> String {
        let start = start_command(Path::new(data), system, None);
        assert_eq!(start.note, None);
        start.command
    }

    #[test]
    fn a_data_directory_with_its_configuration_needs_only_pg_ctl() {
        assert_eq!(
            command("/pg data", &system()),
            "/usr/lib/postgresql/17/bin/pg_ctl -D '/pg data' -l '/pg data/startup.log' start"
        );
    }

    #[test]
    fn debians_cluster_is_started_debians_way() {
        assert_eq!(
            command("/var/lib/postgresql/17/main", &debian()),
            "pg_ctlcluster 17 main start"
        );
    }

    #[test]
    fn a_copy_beside_debians_cluster_borrows_its_configuration_but_not_its_data() {
        assert_eq!(
            command("/copy", &debian()),
            "/usr/lib/postgresql/17/bin/pg_ctl -D /copy -l /copy/startup.log -o '-c \
             config_file=/etc/postgresql/17/main/postgresql.conf -c data_directory=/copy' start"
        );
    }

    #[test]
    fn a_missing_configuration_is_said() {
        let bare = System {
            data_has_configuration: false,
            pg_ctl: None,
            ..system()
        };
        let start = start_command(Path::new("/pg"), &bare, Some(Path::new("/etc/x.conf")));
        assert_eq!(start.command, "pg_ctl -D /pg -l /pg/startup.log start");
        assert!(start.note.unwrap().contains("/etc/x.conf"));
        assert!(start_command(Path::new("/pg"), &bare, None).note.is_some());
    }

    #[test]
    fn only_debians_own_layout_is_taken_for_it() {
        for path in [
            "/etc/postgresql/17/postgresql.conf",
            "/etc/postgresql/17/main/conf.d/postgresql.conf",
            "/srv/17/main/postgresql.conf",
        ] {
            assert_eq!(debian_cluster(Path::new(path)), None, "{path}");
        }
    }
}
