//! The command that starts the recovered server on this system.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::guc_file::value_of;
use super::shell::shell_word;
use crate::archive::backup::{BackupRecord, Configuration};

/// `pg_ctl --version` takes no time; one that hangs is passed over.
const VERSION_TIMEOUT: Duration = Duration::from_secs(3);

/// What this system has to start a server with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// The major version of the server.
    pub major: String,
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
    pub notes: Vec<String>,
}

impl System {
    /// Looks at this system. `search_path` is `PATH`, `pending` what the configuration file will hold
    /// that could not be put back.
    #[must_use]
    pub fn look(
        record: &BackupRecord,
        data: &Path,
        search_path: Option<&std::ffi::OsStr>,
        pending: Option<&[u8]>,
    ) -> Self {
        let directories: Vec<PathBuf> = search_path
            .map(std::env::split_paths)
            .into_iter()
            .flatten()
            .collect();
        let packaged = PathBuf::from(format!("/usr/lib/postgresql/{}/bin", record.postgres_major));
        let redhat = PathBuf::from(format!("/usr/pgsql-{}/bin", record.postgres_major));
        let major = record.postgres_major.to_string();
        let pg_ctl_in = |directory: &PathBuf| Some(directory.join("pg_ctl")).filter(|path| path.is_file());
        // The packages' directories name the version; in PATH it may be any.
        let pg_ctl = [packaged, redhat].iter().find_map(pg_ctl_in).or_else(|| {
            let mut in_path = directories.iter().filter_map(pg_ctl_in);
            in_path.find(|program| major_of(program).as_deref() == Some(&major))
        });
        Self {
            major,
            has_pg_ctlcluster: directories
                .iter()
                .chain([&PathBuf::from("/usr/bin")])
                .any(|directory| directory.join("pg_ctlcluster").is_file()),
            pg_ctl,
            data_has_configuration: data.join("postgresql.conf").is_file(),
            outside: record
                .configuration
                .as_ref()
                .and_then(|configuration| look_outside(configuration, pending)),
        }
    }
}

/// The major version that a `pg_ctl` is of; none where it does not say so in time.
fn major_of(pg_ctl: &Path) -> Option<String> {
    let mut child = Command::new(pg_ctl)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let begun = Instant::now();
    while !matches!(child.try_wait(), Ok(Some(_))) {
        if begun.elapsed() > VERSION_TIMEOUT {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut said = String::new();
    let output = child.stdout.take()?.take(256);
    std::io::BufReader::new(output).read_line(&mut said).ok()?;
    major_in(&said).map(str::to_owned)
}

/// `17` in `pg_ctl (PostgreSQL) 17.2 (Debian 17.2-1)`, and in `pg_ctl (PostgreSQL) 18beta1`.
fn major_in(said: &str) -> Option<&str> {
    let version = said.split_once("(PostgreSQL) ")?.1;
    let end = version
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(version.len());
    version.get(..end).filter(|major| !major.is_empty())
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
            // The cluster whose configuration it is may be running, and its PID file is not ours.
            options.push_str(" -c external_pid_file=");
            notes.push(format!(
                "the configuration, {}, is that of the cluster in {}; beside a live server choose another port: \
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
            major: "17".to_owned(),
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
    fn a_missing_configuration_is_said() {
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
    fn a_pg_ctl_says_its_version() {
        for (said, major) in [
            ("pg_ctl (PostgreSQL) 17.2 (Debian 17.2-1.pgdg120+1)\n", Some("17")),
            ("pg_ctl (PostgreSQL) 18beta1\n", Some("18")),
            ("pg_ctl (PostgreSQL) \n", None),
            ("", None),
        ] {
            assert_eq!(major_in(said), major, "{said}");
        }
        assert_eq!(major_of(Path::new("/bin/true")), None);
    }

    #[test]
    fn a_configuration_that_is_still_to_be_put_back_counts() {
        let configuration = |object| Configuration {
            object,
            data_directory: "/var/lib/postgresql/17/main".to_owned(),
            config_file: "/etc/postgresql/17/main-that-is-not-here/postgresql.conf".to_owned(),
        };
        let object = crate::archive::backup::StoredObject {
            stored_bytes: 0,
            sha256: crate::archive::Sha256Sum::of(b""),
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
