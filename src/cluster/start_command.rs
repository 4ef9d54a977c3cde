//! The command that starts the recovered server on this system.

use std::path::{Path, PathBuf};

use super::shell::shell_word;
use crate::cluster::programs;
use crate::format::backup::{BackupRecord, Configuration};
use crate::pg::Major;
use crate::pg::guc_file::value_of;

/// What this system has for starting a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// The major version of the server.
    pub major: Major,
    /// Whether Debian's `pg_ctlcluster` is installed.
    pub has_pg_ctlcluster: bool,
    /// `pg_ctl` of the right major version.
    pub pg_ctl: Option<PathBuf>,
    /// Whether the data directory has its own `postgresql.conf`.
    pub data_has_configuration: bool,
    /// The configuration outside the data directory.
    pub outside: Option<OutsideConfiguration>,
}

/// A configuration file outside the data directory that is there now, or will be once it is put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutsideConfiguration {
    pub config_file: PathBuf,
    /// The data directory it is for.
    pub data_directory: PathBuf,
}

/// How to start the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartCommand {
    /// The command, for a shell.
    pub command: String,
    /// What keeps it from starting.
    pub notes: Vec<String>,
}

impl System {
    /// Looks at this system. `search_path` is `PATH`.
    #[must_use]
    pub fn look(
        major: Major,
        data: &Path,
        search_path: Option<&std::ffi::OsStr>,
        outside: Option<OutsideConfiguration>,
    ) -> Self {
        let mut directories = search_path.map(std::env::split_paths).into_iter().flatten();
        let has_pg_ctlcluster = directories.any(|directory| directory.join("pg_ctlcluster").is_file())
            || Path::new("/usr/bin/pg_ctlcluster").is_file();
        Self {
            major,
            has_pg_ctlcluster,
            pg_ctl: programs::find("pg_ctl", major, search_path).found,
            data_has_configuration: data.join("postgresql.conf").is_file(),
            outside,
        }
    }
}

impl OutsideConfiguration {
    /// The source's configuration: there now, or `pending` because it could not be put back.
    #[must_use]
    pub fn of_backup(record: &BackupRecord, pending: Option<&[u8]>) -> Option<Self> {
        look_outside(record.configuration.as_ref()?, pending)
    }

    /// That of a Debian cluster of this version with this data directory, if there is one.
    #[must_use]
    pub fn of_debian(major: Major, data: &Path) -> Option<Self> {
        let clusters = std::fs::read_dir(format!("/etc/postgresql/{major}")).ok()?;
        let mut files = clusters.filter_map(|cluster| Some(cluster.ok()?.path().join("postgresql.conf")));
        files.find_map(|config_file| {
            let content = std::fs::read(&config_file).ok()?;
            let data_directory = String::from_utf8(value_of(&content, "data_directory")?).ok()?;
            (Path::new(&data_directory) == data).then(|| Self {
                config_file,
                data_directory: data.to_owned(),
            })
        })
    }
}

fn look_outside(configuration: &Configuration, pending: Option<&[u8]>) -> Option<OutsideConfiguration> {
    let config_file = PathBuf::from(&configuration.config_file);
    let content = match pending {
        Some(pending) => pending.to_vec(),
        None => std::fs::read(&config_file).ok()?,
    };
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
pub fn start_command(data: &Path, system: &System) -> StartCommand {
    let outside = system.outside.as_ref().filter(|_| !system.data_has_configuration);
    if let Some(outside) = outside
        && system.has_pg_ctlcluster
        && outside.data_directory == data
        && let Some((version, cluster)) = debian_cluster(&outside.config_file)
    {
        return StartCommand {
            command: format!("pg_ctlcluster {version} {cluster} start"),
            notes: Vec::new(),
        };
    }
    let mut notes = Vec::new();
    if !system.data_has_configuration && outside.is_none() {
        notes.push(
            "the data directory has no postgresql.conf, and the backup has no configuration from outside it; \
             the server needs one before it starts (postgresql.conf, pg_hba.conf)"
                .to_owned(),
        );
    }
    if system.pg_ctl.is_none() {
        notes.push(format!(
            "the start command needs the pg_ctl of PostgreSQL {0}, which is not found on this machine: install \
             PostgreSQL {0}, or give the path of its pg_ctl",
            system.major
        ));
    }
    let data_word = word(data);
    let pg_ctl = system.pg_ctl.as_deref().unwrap_or(Path::new("pg_ctl"));
    let log = word(&data.join("startup.log"));
    let mut command = format!("{} -D {data_word} -l {log}", word(pg_ctl));
    if let Some(outside) = outside {
        // The file's own data_directory would win over -D.
        let mut options = format!(
            "-c config_file={} -c data_directory={data_word}",
            word(&outside.config_file)
        );
        if outside.data_directory != data {
            // The cluster that the configuration is for may be running; its PID file must stay as it is.
            options.push_str(" -c external_pid_file=");
            notes.push(format!(
                "the configuration, {}, is that of the cluster in {}; if that server runs, choose another port: \
                 add -c port=N to what -o has",
                outside.config_file.display(),
                outside.data_directory.display()
            ));
        }
        command.push_str(" -o ");
        command.push_str(&shell_word(&options));
    }
    command.push_str(" start");
    StartCommand { command, notes }
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
            major: Major::V17,
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
        let start = start_command(Path::new(data), system);
        assert!(start.notes.is_empty(), "{:?}", start.notes);
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
        let start = start_command(Path::new("/copy"), &debian());
        assert_eq!(
            start.command,
            "/usr/lib/postgresql/17/bin/pg_ctl -D /copy -l /copy/startup.log -o '-c \
             config_file=/etc/postgresql/17/main/postgresql.conf -c data_directory=/copy -c external_pid_file=' start"
        );
        assert!(start.notes.concat().contains("another port"));
    }

    #[test]
    fn a_missing_configuration_is_named() {
        let bare = System {
            data_has_configuration: false,
            pg_ctl: None,
            ..system()
        };
        let start = start_command(Path::new("/pg"), &bare);
        assert_eq!(start.command, "pg_ctl -D /pg -l /pg/startup.log start");
        let notes = start.notes.concat();
        assert!(
            notes.contains("postgresql.conf") && notes.contains("pg_ctl of PostgreSQL 17"),
            "{notes}"
        );
    }

    #[test]
    fn a_configuration_that_is_still_to_be_put_back_counts() {
        let configuration = |object| Configuration {
            object,
            data_directory: "/var/lib/postgresql/17/main".to_owned(),
            config_file: "/etc/postgresql/17/main-that-is-not-here/postgresql.conf".to_owned(),
            hba_file: "/etc/pg_hba.conf".to_owned(),
            ident_file: "/etc/pg_ident.conf".to_owned(),
        };
        let object = crate::format::backup::StoredObject {
            stored_bytes: 0,
            sha256: crate::format::Sha256Sum::of(b""),
        };
        let configuration = configuration(object);
        assert_eq!(look_outside(&configuration, None), None);
        let outside = look_outside(&configuration, Some(b"port = 5433\n")).unwrap();
        assert_eq!(outside.data_directory, Path::new("/var/lib/postgresql/17/main"));
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
