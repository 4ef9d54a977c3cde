//! What can be seen on this machine: the data directory if it is here, the program that archives, and files that others
//! can read or change.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::cluster::remembered;
use crate::config::{Settings, Sources};
use crate::error::Error;
use crate::judge::diagnosis::facts::{ExposedFile, HostFacts, ProgramState, ServerFacts, Space};
use crate::judge::diagnosis::{ArchiveCommand, Fact};
use crate::server::data_directory::postmaster;
use crate::server::deadline::Deadline;
use crate::server::session::Local;
use crate::server::{os_user, user_name};

/// Files of this machine that the command's settings name.
#[derive(Debug, Clone, Default)]
pub struct HostOptions {
    /// The configuration file that was read.
    pub config_file: Option<PathBuf>,
    /// `None` where the archive is not in a directory.
    pub archive_directory: Option<PathBuf>,
    /// The file of AWS credentials; it need not exist.
    pub aws_credentials: Option<PathBuf>,
}

const ELSEWHERE: &str = "the data directory is not on this machine, or not readable; give --pgdata";

/// A postmaster notes the time of its start twice, at most this many seconds apart.
const START_TOLERANCE: u64 = 3;

/// Looks at this machine. It has a deadline because a file system can hang.
pub(super) async fn gather(
    pgdata: Option<&Path>,
    server: Option<(Local, &ServerFacts)>,
    options: &HostOptions,
    deadline: Deadline,
) -> HostFacts {
    let command = server.as_ref().and_then(|(_, facts)| {
        let settings = facts.settings.as_ref().ok()?;
        ArchiveCommand::parse(settings.get("archive_command")?)
    });
    let (given, options) = (pgdata.map(Path::to_owned), options.clone());
    let local = server.map(|(local, _)| local).unwrap_or_default();
    let looking = tokio::task::spawn_blocking(move || {
        let data = given.or_else(|| local_data_directory(&local));
        look(data.as_deref(), command.as_ref(), &options)
    });
    match tokio::time::timeout_at(deadline.at(), looking).await {
        Ok(Ok(facts)) => facts,
        _ => nothing(&format!(
            "the file system did not answer within {} s",
            deadline.limit().as_secs_f64()
        )),
    }
}

fn nothing(why: &str) -> HostFacts {
    HostFacts {
        pg_wal_space: Err(why.to_owned()),
        exposed_files: Err(why.to_owned()),
        user: user(),
        owner: Err(why.to_owned()),
        program: Err(why.to_owned()),
        command_archive: Err(why.to_owned()),
        remembered: Err(why.to_owned()),
    }
}

fn user() -> String {
    os_user().unwrap_or_else(|| rustix::process::geteuid().as_raw().to_string())
}

fn look(data: Option<&Path>, command: Option<&ArchiveCommand>, options: &HostOptions) -> HostFacts {
    let mut facts = nothing(ELSEWHERE);
    facts.exposed_files = Ok(exposed_files(options, data));
    let Some(data) = data else { return facts };
    facts.pg_wal_space = space(&data.join("pg_wal"));
    facts.owner = std::fs::metadata(data)
        .map(|metadata| user_name(metadata.uid()).unwrap_or_else(|| metadata.uid().to_string()))
        .map_err(|error| format!("look at {}: {error}", data.display()));
    facts.remembered = remembered::read(data)
        .map(|remembered| (data.display().to_string(), remembered))
        .map_err(|error| error.to_string());
    if let Some(command) = command {
        facts.program = program(&command.program);
        facts.command_archive = command_archive(command, data);
    }
    facts
}

/// The server's data directory, if it is on this machine. A standby elsewhere may have the same path and system
/// identifier, but it was not started at the same moment.
fn local_data_directory(local: &Local) -> Option<PathBuf> {
    let data = PathBuf::from(local.data_directory.as_ref()?);
    // The postmaster takes the time twice: for its file, and a moment later for SQL.
    let apart = local.started_at?.abs_diff(postmaster(&data)?.started_at?);
    (apart <= START_TOLERANCE).then_some(data)
}

fn space(pg_wal: &Path) -> Fact<Space> {
    let found = rustix::fs::statvfs(pg_wal)
        .map_err(|error| format!("ask for the free space of {}: {error}", pg_wal.display()))?;
    Ok(Space {
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
    })
}

/// A bare name is looked up in the server's PATH, which is not known.
fn program(program: &str) -> Fact<ProgramState> {
    let path = Path::new(program);
    if !path.is_absolute() {
        return Err("it is looked up in the server's PATH".to_owned());
    }
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => Ok(ProgramState::NotExecutable),
        Ok(_) => Ok(ProgramState::Runs),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(ProgramState::Missing),
        Err(error) => Err(error.to_string()),
    }
}

/// The archive that walship would use as the server's child, by the command's own flags and variables, the postmaster's
/// environment, and the configuration file that those name.
fn command_archive(command: &ArchiveCommand, data: &Path) -> Fact<String> {
    let postmaster = postmaster(data).ok_or("the server does not run here")?;
    let path = format!("/proc/{}/environ", postmaster.pid);
    let bytes = std::fs::read(&path).map_err(|error| {
        format!("the server's environment cannot be read ({error}); run this as its user")
    })?;
    let mut environment = walship_variables(&bytes);
    environment.extend(command.variables.iter().cloned());
    let flags = command.archive.iter().map(|archive| ("archive", archive.clone()));
    let settings = Settings::load(&Sources {
        config_flag: command.config.as_ref().map(|path| data.join(path)),
        flags: flags.collect(),
        environment,
    });
    settings
        .and_then(|settings| settings.archive())
        .map(|archive| archive.to_string())
        .map_err(|error: Error| error.to_string())
}

/// walship's own settings. None of them is a secret; the rest of the environment is not looked at.
fn walship_variables(environ: &[u8]) -> BTreeMap<String, String> {
    let variables = environ.split(|byte| *byte == 0);
    variables
        .filter_map(|variable| std::str::from_utf8(variable).ok()?.split_once('='))
        .filter(|(name, _)| name.starts_with("WALSHIP_"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn exposed_files(options: &HostOptions, data: Option<&Path>) -> Vec<ExposedFile> {
    let writable = [&options.config_file, &options.archive_directory];
    let writable = writable
        .into_iter()
        .flatten()
        .filter(|path| others_may(path, 0o002))
        .map(|path| (path.clone(), true));
    let debian = data.and_then(debian_environment);
    let readable = options
        .aws_credentials
        .iter()
        .chain(debian.as_ref())
        .filter(|path| others_may(path, 0o004))
        .map(|path| (path.clone(), false));
    writable
        .chain(readable)
        .map(|(path, writable)| ExposedFile {
            path: path.display().to_string(),
            writable,
        })
        .collect()
}

fn others_may(path: &Path, bit: u32) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & bit != 0)
}

/// Debian starts the server of `/var/lib/postgresql/VERSION/CLUSTER` with the environment of
/// `/etc/postgresql/VERSION/CLUSTER/environment`. If that file has keys, it must be private.
fn debian_environment(data: &Path) -> Option<PathBuf> {
    let below = data.strip_prefix("/var/lib/postgresql").ok()?;
    let path = Path::new("/etc/postgresql").join(below).join("environment");
    let text = std::fs::read_to_string(&path).ok()?;
    text.contains("SECRET").then_some(path)
}
