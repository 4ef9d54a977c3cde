//! The built binary, run as the test user with nothing in its environment but what a test gives.

use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use walship_core::pg::Major;

use super::command_as_user;
use super::postgres::Cluster;
use super::process::{Output, Running};
use super::stores::Place;

/// After this long a walship that does not end is killed, and its test fails.
const PATIENCE: Duration = Duration::from_mins(3);
/// As long may a recovery take.
const RECOVERY: Duration = Duration::from_mins(2);

/// How walship will be run. Cheap to clone, so that a test can vary one thing.
#[derive(Debug, Clone)]
pub struct Walship {
    env: Vec<(OsString, OsString)>,
    dir: PathBuf,
    timeout: Duration,
}

impl Walship {
    /// With this archive in `WALSHIP_ARCHIVE`.
    pub fn new(archive_url: &str) -> Self {
        Self::without_archive().env("WALSHIP_ARCHIVE", archive_url)
    }

    /// With the archive and the environment of a place.
    pub fn at(place: &Place) -> Self {
        place
            .env
            .iter()
            .fold(Self::new(&place.url), |walship, (name, value)| {
                walship.env(name, value)
            })
    }

    /// With no setting at all.
    pub fn without_archive() -> Self {
        Self {
            env: Vec::new(),
            dir: "/".into(),
            timeout: PATIENCE,
        }
    }

    /// Sets a variable, whatever it was before.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self = self.env_remove(name.as_ref());
        self.env
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Takes a variable out again.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.env.retain(|(present, _)| present != name.as_ref());
        self
    }

    /// Its working directory: for `push` and `restore`, as under `PostgreSQL`, the data directory.
    #[must_use]
    pub fn in_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = dir.into();
        self
    }

    /// After how long it is killed and the test fails.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The command, not yet started, for what the caller wants to add.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        self.set_up(command_as_user(binary()), args)
    }

    /// The command below a program that starts others, such as `strace`, and its options.
    pub fn command_under<S: AsRef<OsStr>>(&self, program: &str, options: &[&str], args: &[S]) -> Command {
        let mut command = command_as_user(program);
        command.args(options).arg(binary());
        self.set_up(command, args)
    }

    fn set_up<S: AsRef<OsStr>>(&self, mut command: Command, args: &[S]) -> Command {
        command
            .args(args)
            .envs(self.env.iter().cloned())
            .current_dir(&self.dir);
        command
    }

    /// After how long it is killed and the test fails.
    pub fn patience(&self) -> Duration {
        self.timeout
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        self.spawn(args).wait(self.timeout)
    }

    /// Starts it, to be killed or waited for.
    pub fn spawn<S: AsRef<OsStr>>(&self, args: &[S]) -> Running {
        Running::start(&mut self.command(args))
    }

    /// The environment, for a server whose archive command is walship.
    pub fn environment(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.env
            .iter()
            .map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }

    /// A server on an existing data directory, whose commands run with this environment.
    pub fn adopt(&self, major: Major, data_dir: impl Into<PathBuf>) -> Cluster {
        let mut cluster = Cluster::adopt(major, data_dir);
        for (name, value) in self.environment() {
            cluster.set_env(name, value);
        }
        cluster
    }

    /// What `walship recover` made, started, once it has opened for writing.
    pub fn opened(&self, major: Major, data_dir: impl Into<PathBuf>) -> Cluster {
        let mut cluster = self.adopt(major, data_dir);
        cluster.start();
        cluster.wait_until("select not pg_is_in_recovery()", "t", RECOVERY);
        cluster
    }
}

/// The binary (another one where `WALSHIP_TEST_BINARY` names it), at a path that the test user can
/// execute: where the target folder cannot be read by others (in root's home), a copy in `/tmp` that is
/// renewed when the binary changes. The path has no blank or quote in it, so that it can stand in an
/// archive command.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let chosen = std::env::var_os("WALSHIP_TEST_BINARY").map(PathBuf::from);
        let chosen = chosen.unwrap_or_else(|| env!("CARGO_BIN_EXE_walship").into());
        let built = chosen.as_path();
        let plain = built.to_str().is_some_and(|path| {
            path.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"/-_.".contains(&b))
        });
        let test = command_as_user("/usr/bin/test").arg("-x").arg(built).status();
        if plain && test.is_ok_and(|status| status.success()) {
            return built.to_owned();
        }
        copy_to_tmp(built).unwrap_or_else(|e| panic!("copy {} to /tmp: {e}", built.display()))
    })
}

fn copy_to_tmp(built: &Path) -> std::io::Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    built.hash(&mut hasher);
    let dir = PathBuf::from(format!("/tmp/walship-test-bin-{:016x}", hasher.finish()));
    let copy = dir.join("walship");
    let original = built.metadata()?;
    let is_current = copy.metadata().is_ok_and(|copied| {
        copied.len() == original.len() && copied.modified().ok() == original.modified().ok()
    });
    if !is_current {
        std::fs::create_dir_all(&dir)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
        // Renamed into place: another test process may be running the old one, or copying too.
        let mut fresh = tempfile::NamedTempFile::new_in(&dir)?;
        std::io::copy(&mut std::fs::File::open(built)?, &mut fresh)?;
        fresh
            .as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o755))?;
        fresh.as_file().set_modified(original.modified()?)?;
        // A file that is open for writing cannot be executed.
        fresh.into_temp_path().persist(&copy)?;
    }
    Ok(copy)
}
