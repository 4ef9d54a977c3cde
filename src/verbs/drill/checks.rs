//! Checks of the restored data: the user's statements, `pg_amcheck`, `pg_checksums`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::programs::Programs;
use super::server::{clear_libpq, log_end};
use super::settings::PORT;
use super::sql_check::SqlCheck;
use crate::error::{Error, Result};
use crate::format::proof::{Check, CheckKind, Outcome};
use crate::pg::Major;
use crate::server::{ConnInfo, Connection};

/// At most this many lines of a program's output are reported.
const TOLD_LINES: usize = 5;
/// The exit code of `pg_amcheck` for damaged data; 1 is for everything else that went wrong (`pg_amcheck.c`).
const AMCHECK_FOUND: i32 = 2;
/// Of all sessions. What a database or a role has of its own (`ALTER ROLE … SET`) is for its programs: it must neither keep
/// a check from its work nor hide damage.
const SESSION: [&str; 12] = [
    // A prepared transaction may hold a lock for ever.
    "lock_timeout=60s",
    "statement_timeout=0",
    "idle_in_transaction_session_timeout=0",
    "idle_session_timeout=0",
    "default_transaction_read_only=off",
    "default_transaction_deferrable=off",
    "session_preload_libraries=",
    "local_preload_libraries=",
    "role=none",
    "zero_damaged_pages=off",
    "ignore_checksum_failure=off",
    "ignore_system_indexes=off",
];

/// The user's own statements.
#[derive(Debug, Clone)]
pub struct SqlFile {
    pub path: PathBuf,
    pub text: String,
    /// The database they run in.
    pub database: String,
}

/// How the drill's server is reached.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    pub socket_directory: &'a Path,
    /// A superuser.
    pub user: &'a str,
    /// The server's.
    pub major: Option<Major>,
    /// How long an answer may take.
    pub limit: Duration,
}

impl Access<'_> {
    /// Opens a session for walship's own questions.
    pub async fn connect(&self, database: &str) -> Result<Connection> {
        self.session(self.info(database)?).await
    }

    fn info(&self, database: &str) -> Result<ConnInfo> {
        let socket_directory = self.socket_directory.to_string_lossy();
        let quoted = |value: &str| value.replace('\\', r"\\").replace('\'', r"\'");
        let given = format!(
            "host='{}' port={PORT} user='{}' dbname='{}' options='{}' application_name=walship",
            quoted(&socket_directory),
            quoted(self.user),
            quoted(database),
            self.session_options()
        );
        ConnInfo::resolve_database(Some(&given), |_| None)
    }

    /// As the server takes them from a client.
    fn session_options(&self) -> String {
        let newer = (self.major >= Some(Major::V17)).then_some("transaction_timeout=0");
        let settings = SESSION.into_iter().chain(newer);
        settings
            .map(|setting| format!("-c {setting}"))
            .collect::<Vec<_>>()
            .join(" ")
    }

    async fn session(&self, info: ConnInfo) -> Result<Connection> {
        let mut connection = Connection::connect(&info).await?;
        connection.set_idle_timeout(self.limit);
        Ok(connection)
    }
}

fn check(kind: CheckKind, begun: Instant, outcome: Outcome, detail: impl Into<String>) -> Check {
    Check {
        kind,
        outcome,
        ms: begun.elapsed().as_millis() as u64,
        detail: detail.into(),
    }
}

/// Runs the user's statements.
pub async fn sql(access: Access<'_>, file: &SqlFile) -> Check {
    let begun = Instant::now();
    let name = file.path.display();
    let (outcome, detail) = match answers(access, file).await {
        Ok(passed) => (Outcome::Passed, passed),
        Err(failed) => (Outcome::Failed, failed),
    };
    check(CheckKind::Sql, begun, outcome, format!("{name}: {detail}"))
}

async fn answers(access: Access<'_>, file: &SqlFile) -> std::result::Result<String, String> {
    let mut answers = SqlCheck::default();
    let ran = async {
        let info = access.info(&file.database)?.for_users_statements();
        let mut connection = access.session(info).await?;
        connection
            .script("the script", &file.text, |event| answers.saw(event))
            .await?;
        connection.close().await;
        Ok::<_, Error>(())
    };
    match ran.await {
        Ok(()) => answers.finish(),
        Err(error) => Err(format!("statement {}: {error}", answers.statement())),
    }
}

/// Runs `pg_amcheck` on every database, where it is installed.
pub async fn amcheck(access: Access<'_>, programs: &Programs, directory: &Path, jobs: usize) -> Check {
    let begun = Instant::now();
    let done = |outcome, detail: String| check(CheckKind::Amcheck, begun, outcome, detail);
    let Some(program) = programs.optional("pg_amcheck") else {
        return done(Outcome::Skipped, "pg_amcheck is not installed".to_owned());
    };
    match extension_is_there(access).await {
        Ok(true) => {}
        Ok(false) => {
            let why = "the extension amcheck is not installed (it comes with PostgreSQL's contrib modules)";
            return done(Outcome::Skipped, why.to_owned());
        }
        Err(error) => return done(Outcome::Failed, error.to_string()),
    }
    let mut command = tokio::process::Command::new(program);
    clear_libpq(command.as_std_mut());
    command
        .env(
            "PGOPTIONS",
            format!("{} -c session_replication_role=replica", access.session_options()),
        )
        .arg("--host")
        .arg(access.socket_directory)
        .args(["--port", &PORT.to_string(), "--username", access.user])
        .args(["--all", "--install-missing", "--no-password"])
        .args(["--jobs", &jobs.to_string()]);
    match run(command, directory, "amcheck.log").await {
        Ok((Some(0), _)) => done(Outcome::Passed, "tables and indexes of every database".to_owned()),
        Ok((Some(AMCHECK_FOUND), said)) => done(Outcome::Failed, format!("it found damage: {said}")),
        Ok((_, said)) => done(Outcome::Failed, format!("it could not check: {said}")),
        Err(error) => done(Outcome::Failed, error.to_string()),
    }
}

async fn extension_is_there(access: Access<'_>) -> Result<bool> {
    let mut connection = access.connect("template1").await?;
    let rows = connection
        .simple_query("SELECT 1 FROM pg_catalog.pg_available_extensions WHERE name = 'amcheck'")
        .await?;
    connection.close().await;
    Ok(!rows.is_empty())
}

/// Runs `pg_checksums` on the data directory of a server that was shut down.
pub async fn checksums(programs: &Programs, data: &Path, directory: &Path, enabled: bool) -> Check {
    let begun = Instant::now();
    let done = |outcome, detail: String| check(CheckKind::Checksums, begun, outcome, detail);
    if !enabled {
        return done(Outcome::Skipped, "the cluster has no data checksums".to_owned());
    }
    let Some(program) = programs.optional("pg_checksums") else {
        return done(Outcome::Skipped, "pg_checksums is not installed".to_owned());
    };
    let mut command = tokio::process::Command::new(program);
    clear_libpq(command.as_std_mut());
    command.arg("--check").arg("--pgdata").arg(data);
    match run(command, directory, "checksums.log").await {
        Ok((Some(0), _)) => done(Outcome::Passed, "every page".to_owned()),
        Ok((_, said)) => done(Outcome::Failed, said),
        Err(error) => done(Outcome::Failed, error.to_string()),
    }
}

/// Runs a program to its end, or until it is dropped. Returns its exit code, and its output in one line.
async fn run(
    mut command: tokio::process::Command,
    directory: &Path,
    log: &str,
) -> Result<(Option<i32>, String)> {
    let path = directory.join(log);
    let output = std::fs::File::create(&path).and_then(|file| Ok((file.try_clone()?, file)));
    let (stdout, stderr) = output.map_err(|error| Error::io(format!("write {}", path.display()), error))?;
    let status = command
        .env("LC_ALL", "C")
        // If this process is killed, the next drill knows the program by its working directory.
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .kill_on_drop(true)
        .status()
        .await;
    let status = status
        .map_err(|error| Error::io(format!("run {}", command.as_std().get_program().display()), error))?;
    Ok((status.code(), first_lines(&log_end(&path))))
}

/// The first lines that say something.
fn first_lines(said: &str) -> String {
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let told = lines
        .get(..TOLD_LINES.min(lines.len()))
        .unwrap_or_default()
        .join("; ");
    match lines.len().saturating_sub(TOLD_LINES) {
        0 => told,
        more => format!("{told} … and {more} more lines"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_output_is_reported_by_its_beginning_and_its_length() {
        assert_eq!(first_lines("a\n\n  b\n"), "a; b");
        let text = (1..=8).map(|n| format!("{n}\n")).collect::<String>();
        assert_eq!(first_lines(&text), "1; 2; 3; 4; 5 … and 3 more lines");
    }
}
