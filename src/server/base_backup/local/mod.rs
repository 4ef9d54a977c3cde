//! A base backup that is read from the data directory on this machine, between `pg_backup_start` and `pg_backup_stop`.
//!
//! What holds: the directory is that of the server which was asked, because it holds the snapshot file that a session
//! of that server exports; every tablespace and every database is there; page checksums are verified as the server
//! would; the backup ends with the session, and leaves nothing behind on the server. A thread reads, and at most
//! [`WAITING`] pieces wait to be taken.

mod names;
mod page;
mod sender;
mod tar_out;

use std::collections::BTreeSet;
use std::io::ErrorKind as IoKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use self::sender::Sender;
use super::command::{check, parse_duration};
use super::{BaseBackupOptions, Event, TablespaceHeader};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pg::sql::quote_literal;
use crate::pg::{ControlFile, Lsn, TimelineId};
use crate::server::data_directory::read_control_file;
use crate::server::{ConnInfo, Connection};

/// Pieces that wait to be taken.
const WAITING: usize = 4;
/// How often the session is asked whether it lives: often enough that no proxy closes it as idle.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// The tablespace whose databases are in `base` (`pg_tablespace.dat`).
const PG_DEFAULT: &str = "1663";

/// A backup in progress. Dropping it ends the backup on the server.
#[derive(Debug)]
pub struct LocalBackup {
    /// Where recovery from this backup starts.
    pub start_lsn: Lsn,
    /// The timeline of that position.
    pub start_timeline: TimelineId,
    /// The archives to come: every tablespace, and the data directory last.
    pub tablespaces: Vec<TablespaceHeader>,
    connection: Connection,
    /// When the session gave its last sign of life.
    alive: Instant,
    steps: mpsc::Receiver<Result<Step>>,
}

/// What the reading thread sends.
#[derive(Debug)]
enum Step {
    Event(Event),
    /// Everything was read, but for the files that only the end of the backup provides.
    Stop(oneshot::Sender<Stopped>),
}

/// What `pg_backup_stop` answers.
#[derive(Debug)]
struct Stopped {
    lsn: Lsn,
    label: String,
    tablespace_map: String,
}

/// Where the reading thread sends to. Sending fails when the receiver is gone.
struct Outlet(mpsc::Sender<Result<Step>>);

impl Outlet {
    fn send(&self, event: Event) -> Result<()> {
        self.0
            .blocking_send(Ok(Step::Event(event)))
            .map_err(|_| given_up())
    }

    /// Asks the other side to end the backup on the server.
    fn stop(&self) -> Result<Stopped> {
        let (answer, stopped) = oneshot::channel();
        self.0
            .blocking_send(Ok(Step::Stop(answer)))
            .map_err(|_| given_up())?;
        stopped.blocking_recv().map_err(|_| given_up())
    }
}

fn given_up() -> Error {
    Error::unavailable("the backup was abandoned")
}

/// What the server says of itself.
#[derive(Debug)]
struct Facts {
    data_directory: PathBuf,
    checkpoint_timeout: Option<Duration>,
}

/// A data directory on this machine that was proven to be the server's own, and to be readable here with all its
/// tablespaces and databases.
#[derive(Debug)]
pub struct OwnDirectory {
    connection: Connection,
    facts: Facts,
    system_identifier: u64,
}

impl OwnDirectory {
    /// Asks the server for its data directory, and looks at it.
    ///
    /// # Errors
    /// `Invalid` where the data directory cannot be read here or is not that server's, for a standby, and for a role that
    /// may not start a backup; else as the connection, and errors that the server reports.
    pub async fn of(info: &ConnInfo, system_identifier: u64) -> Result<Self> {
        let mut connection = Connection::connect(info).await?;
        let facts = facts(&mut connection).await?;
        let directory = &facts.data_directory;
        let version = read_here(directory, system_identifier)?.tablespace_directory();
        same_server(&mut connection, directory).await?;
        all_is_here(&mut connection, directory, &version).await?;
        may_back_up(&mut connection).await?;
        Ok(Self {
            connection,
            facts,
            system_identifier,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.facts.data_directory
    }
}

impl LocalBackup {
    /// Starts a backup of the server's data directory. Returns when the server's checkpoint is done, for which it has as
    /// long as with [`Connection::base_backup`].
    ///
    /// # Errors
    /// `Invalid` where the data directory is not readable any more, and for a label that PostgreSQL would refuse; else as
    /// the connection, and errors that the server reports.
    pub async fn start(own: OwnDirectory, options: &BaseBackupOptions) -> Result<Self> {
        check(options)?;
        let OwnDirectory {
            mut connection,
            facts,
            system_identifier,
        } = own;
        let directory = &facts.data_directory;
        let start_lsn = start(&mut connection, options, &facts).await?;
        // It holds the backup's own checkpoint now.
        let control = read_here(directory, system_identifier)?;
        let version = control.tablespace_directory();
        let mut tablespaces = tablespaces(directory, &version)?;
        tablespaces.push(TablespaceHeader {
            oid: None,
            location: None,
            size_kib: None,
        });
        let (outlet, steps) = mpsc::channel(WAITING);
        let sender = Sender::new(
            facts.data_directory,
            control,
            start_lsn,
            tablespaces.clone(),
            options.max_rate_kib.map(|rate| u64::from(rate) << 10),
            Outlet(outlet.clone()),
        );
        tokio::task::spawn_blocking(move || {
            if let Err(error) = sender.send() {
                // The receiver may be gone.
                let _ = outlet.blocking_send(Err(error));
            }
        });
        Ok(Self {
            start_lsn,
            start_timeline: control.timeline,
            tablespaces,
            connection,
            alive: Instant::now(),
            steps,
        })
    }

    /// The next event; after `End` there is none, and asking again is an error.
    ///
    /// # Errors
    /// `Corrupt` where a page's checksum is wrong, `Invalid` for a file that cannot be read or stored, else what the
    /// server reports at the end, and `Unavailable` where the session broke: the backup failed then.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            if self.alive.elapsed() > KEEPALIVE {
                one_row(&mut self.connection, "keep the session", "select 1").await?;
                self.alive = Instant::now();
            }
            let Ok(step) = timeout(KEEPALIVE, self.steps.recv()).await else {
                continue;
            };
            match step {
                Some(Ok(Step::Event(event))) => return Ok(event),
                Some(Ok(Step::Stop(answer))) => {
                    let stopped = self.stop().await?;
                    // If the thread has ended, the channel says so next.
                    let _ = answer.send(stopped);
                }
                Some(Err(error)) => return Err(error),
                None => return Err(Error::defect("read the data directory", "it ended early")),
            }
        }
    }

    async fn stop(&mut self) -> Result<Stopped> {
        let function = if self.connection.server_major().has_new_base_backup() {
            "pg_backup_stop(false)"
        } else {
            "pg_stop_backup(false, false)"
        };
        let query = format!("select lsn, labelfile, spcmapfile from {function}");
        let row = one_row(&mut self.connection, "end the backup", &query).await?;
        let mut row = row.into_iter().map(Option::unwrap_or_default);
        let mut next = || row.next().unwrap_or_default();
        let stopped = Stopped {
            lsn: next().parse()?,
            label: next(),
            tablespace_map: next(),
        };
        self.check_tablespaces(&stopped.tablespace_map)?;
        Ok(stopped)
    }

    /// The server lists the tablespaces at the very start, and walship a moment later.
    fn check_tablespaces(&self, map: &str) -> Result<()> {
        let listed: BTreeSet<u32> = map
            .lines()
            .filter_map(|line| line.split_once(' ')?.0.parse().ok())
            .collect();
        let read: BTreeSet<u32> = self.tablespaces.iter().filter_map(|header| header.oid).collect();
        if listed == read {
            return Ok(());
        }
        Err(Error::invalid(
            "a tablespace was created or dropped while the backup began; take the backup again",
        ))
    }
}

async fn one_row(connection: &mut Connection, what: &str, query: &str) -> Result<Vec<Option<String>>> {
    let rows = connection.sql(what, query).await?;
    rows.into_iter()
        .next()
        .ok_or_else(|| Error::corrupt(format!("{what}: the server answered nothing")))
}

/// Prepares the session, which must last as long as the backup. File names arrive as they are in the file system.
async fn facts(connection: &mut Connection) -> Result<Facts> {
    let query = "select pg_catalog.current_setting('data_directory'), pg_catalog.current_setting('checkpoint_timeout'), \
         pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('block_size'), \
         pg_catalog.current_setting('segment_size'), pg_catalog.set_config('search_path', 'pg_catalog', false), \
         pg_catalog.set_config('client_encoding', 'SQL_ASCII', false), \
         pg_catalog.set_config('default_transaction_deferrable', 'off', false)";
    let row = one_row(connection, "ask for the data directory", query).await?;
    // Only the timeouts that this version has.
    let timeouts = "select set_config(name, '0', false) from pg_settings where name in ('statement_timeout', \
         'transaction_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout')";
    connection.sql("let the session last", timeouts).await?;
    let text = |column: usize| row.get(column).and_then(Option::as_deref).unwrap_or_default();
    if text(2) == "t" {
        return Err(Error::invalid(
            "the server is a standby, and walship reads only a primary's data directory",
        ));
    }
    if (text(3), text(4)) != ("8192", "1GB") {
        return Err(Error::invalid(format!(
            "the server was built with pages of {} bytes and files of {}, which walship does not read itself",
            text(3),
            text(4)
        )));
    }
    Ok(Facts {
        data_directory: PathBuf::from(text(0)),
        checkpoint_timeout: parse_duration(text(1)),
    })
}

/// Proves that the role may start and stop a backup.
async fn may_back_up(connection: &mut Connection) -> Result<()> {
    let functions = if connection.server_major().has_new_base_backup() {
        ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"]
    } else {
        [
            "pg_start_backup(text, boolean, boolean)",
            "pg_stop_backup(boolean, boolean)",
        ]
    };
    for function in functions {
        let query = format!("select has_function_privilege('pg_catalog.{function}', 'execute')");
        let row = one_row(connection, "ask what the role may do", &query).await?;
        if row.into_iter().flatten().next().as_deref() != Some("t") {
            return Err(Error::invalid(format!(
                "the role may not execute {function}; grant it, or connect as a superuser"
            )));
        }
    }
    Ok(())
}

/// The control file of the data directory, if that is here and the cluster's.
fn read_here(data_directory: &Path, system_identifier: u64) -> Result<ControlFile> {
    let shown = data_directory.display();
    let control = match read_control_file(data_directory) {
        Err(error) if error.kind() == ErrorKind::Internal => {
            return Err(Error::invalid(format!(
                "{error}; run this command as the user who runs the server"
            )));
        }
        control => control?,
    };
    match control {
        None => Err(Error::invalid(format!(
            "the server's data directory {shown} is not on this machine; run this command on the server's own machine"
        ))),
        Some(control) if control.system_identifier != system_identifier => Err(Error::invalid(format!(
            "{shown} on this machine belongs to the cluster with system identifier {}, the server's to {system_identifier}; \
             run this command on the server's own machine",
            control.system_identifier
        ))),
        Some(control) => Ok(control),
    }
}

async fn start(connection: &mut Connection, options: &BaseBackupOptions, facts: &Facts) -> Result<Lsn> {
    let (label, fast) = (quote_literal(&options.label), options.fast_checkpoint);
    let query = if connection.server_major().has_new_base_backup() {
        format!("select pg_backup_start({label}, {fast})")
    } else {
        format!("select pg_start_backup({label}, {fast}, false)")
    };
    let patience = connection.idle_timeout();
    let checkpoint = facts.checkpoint_timeout.unwrap_or(Duration::from_hours(1));
    connection.set_idle_timeout(patience + 2 * checkpoint);
    let row = one_row(connection, "start the backup", &query)
        .await
        .context(|| "back up the data directory")?;
    connection.set_idle_timeout(patience);
    row.into_iter().flatten().next().unwrap_or_default().parse()
}

/// Proves that the directory is the server's, and neither a copy of it nor a clone's under the same path: it holds the
/// file of a snapshot that the session exports, and only as long as the transaction lasts (`ExportSnapshot`,
/// `snapmgr.c`, PostgreSQL 14 to 18).
async fn same_server(connection: &mut Connection, data_directory: &Path) -> Result<()> {
    let begin = "begin isolation level read committed";
    connection.sql("begin a transaction", begin).await?;
    let row = one_row(connection, "export a snapshot", "select pg_export_snapshot()").await?;
    let snapshot = row.into_iter().flatten().next().unwrap_or_default();
    let file = data_directory.join("pg_snapshots").join(&snapshot);
    let was_there = file.is_file();
    connection.sql("end the transaction", "commit").await?;
    if was_there && !file.exists() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{} on this machine is not the data directory that the server works in, but a copy of it, or a standby's; run this \
         command on the server's own machine",
        data_directory.display()
    )))
}

/// Proves that every tablespace and every database of the server is visible here. If a file system is not mounted here,
/// as in a container, its databases would look dropped.
async fn all_is_here(connection: &mut Connection, data_directory: &Path, version: &str) -> Result<()> {
    tablespaces(data_directory, version)?;
    // A half-dropped database may have no files (DATCONNLIMIT_INVALID_DB, pg_database.h).
    let query = "select oid, dattablespace from pg_database where datconnlimit <> -2";
    for row in connection.sql("ask for the databases", query).await? {
        let mut row = row.into_iter().map(Option::unwrap_or_default);
        let (database, tablespace) = (row.next().unwrap_or_default(), row.next().unwrap_or_default());
        let databases = if tablespace == PG_DEFAULT {
            data_directory.join("base")
        } else {
            version_directory_of(data_directory, &tablespace, version)
        };
        let directory = databases.join(&database);
        if let Some(link) = [&databases, &directory]
            .into_iter()
            .find(|path| path.is_symlink())
        {
            return Err(Error::invalid(format!(
                "{} is a link, which no base backup follows, not even the server's; put a directory there, which may be \
                 a mount point",
                link.display()
            )));
        }
        let file = directory.join("PG_VERSION");
        if !file.is_file() {
            let again = format!("{query} and oid = {database} and dattablespace = {tablespace}");
            let is_listed = !connection.sql("ask for a database", &again).await?.is_empty();
            if is_listed {
                return Err(not_seen(&file));
            }
        }
    }
    Ok(())
}

/// Where a tablespace has the files of this version.
fn version_directory_of(data_directory: &Path, tablespace: &str, version: &str) -> PathBuf {
    data_directory.join("pg_tblspc").join(tablespace).join(version)
}

fn not_seen(path: &Path) -> Error {
    Error::invalid(format!(
        "the server has {}, which is not here: it was dropped just now, or a file system of the server is not mounted where \
         this command runs; run this command where the server's file systems are mounted",
        path.display()
    ))
}

/// The tablespaces: links in `pg_tblspc` whose names are numbers (`do_pg_backup_start`, `xlog.c`).
fn tablespaces(data_directory: &Path, version: &str) -> Result<Vec<TablespaceHeader>> {
    let folder = data_directory.join("pg_tblspc");
    let failed = |error| unreadable(&folder, error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().into_string().unwrap_or_default();
        let Some(oid) = name.parse().ok().filter(|_| names::is_number(&name)) else {
            continue;
        };
        if !entry.file_type().map_err(failed)?.is_symlink() {
            return Err(Error::invalid(format!(
                "{} is an in-place tablespace, which walship does not read itself",
                entry.path().display()
            )));
        }
        let files = version_directory_of(data_directory, &name, version);
        if !files.is_dir() {
            return Err(not_seen(&files));
        }
        let location = std::fs::read_link(entry.path()).map_err(failed)?;
        let location = location.into_os_string().into_string().map_err(|location| {
            Error::invalid(format!(
                "the tablespace in {} has a path that is not UTF-8; rename it",
                location.display()
            ))
        })?;
        found.push(TablespaceHeader {
            oid: Some(oid),
            location: Some(location),
            size_kib: None,
        });
    }
    Ok(found)
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    match error.kind() {
        IoKind::PermissionDenied => Error::invalid(format!(
            "read {}: {error}; run this command as the user who runs the server",
            path.display()
        )),
        _ => Error::io(format!("read {}", path.display()), error),
    }
}
