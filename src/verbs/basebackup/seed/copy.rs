//! A copy of the primary by PostgreSQL's own `pg_basebackup`, which is watched: its progress is passed on, a copy that
//! is too large for the disk is stopped before it is written, and a program that is silent for too long is ended.
//!
//! The program is told to write `standby.signal` itself (`-R`). So whatever a kill leaves behind starts as a standby or
//! not at all.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::SeedOptions;
use super::interrupt::Interrupt;
use super::remains;
use crate::cluster::primary::Primary;
use crate::cluster::{self, StandbySettings, TablespaceMapping, programs};
use crate::error::{Error, Result};
use crate::pg::Major;
use crate::progress::Progress;
use crate::verbs::basebackup::seed::interrupt;

/// A checkpoint that is spread over time may take this long. After more, something is wrong.
const SILENCE: Duration = Duration::from_mins(90);
/// Between two looks whether the user wants the copy to end.
const LOOK: Duration = Duration::from_millis(100);
/// Time for a program to write the label of its copy before it is ended.
const LABEL_TIMEOUT: Duration = Duration::from_secs(5);
/// The last lines that are not progress are kept for an error message.
const LINES_KEPT: usize = 5;

/// A copy of which nothing is written yet.
#[derive(Debug)]
pub(super) struct Copy {
    program: PathBuf,
    arguments: Vec<String>,
    /// Proves that the copy is this seeding's.
    label: String,
    pgdata: PathBuf,
    /// The data directory existed, and was empty.
    was_there: bool,
    mappings: Vec<TablespaceMapping>,
    major: Major,
    search_path: Option<std::ffi::OsString>,
}

/// A copy that is complete.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) size_bytes: u64,
    pub(super) notes: Vec<String>,
    pub(super) start_command: String,
}

impl Copy {
    /// Looks for the program and for what it needs.
    ///
    /// # Errors
    /// `NotFound` where there is no program of the primary's major version; `Conflict` where a tablespace's new
    /// directory is not empty. The program itself checks only directories that a tablespace goes to.
    pub(super) fn prepare(options: &SeedOptions, primary: &Primary, conninfo: &str) -> Result<Self> {
        options.tablespace_mappings.iter().try_for_each(check_empty)?;
        let search = programs::find("pg_basebackup", primary.major, options.search_path.as_deref());
        let program = search
            .found
            .ok_or_else(|| no_program(primary.major, &search.others))?;
        let label = remains::new_label();
        Ok(Self {
            program,
            arguments: arguments(options, conninfo, &label),
            label,
            pgdata: options.pgdata.clone(),
            was_there: options.pgdata.exists(),
            mappings: options.tablespace_mappings.clone(),
            major: primary.major,
            search_path: options.search_path.clone(),
        })
    }

    /// Copies, and writes the settings by which the copy follows its primary.
    ///
    /// # Errors
    /// What the program or the disk says, or that the copy was interrupted; and what is left behind, if it could not be
    /// removed.
    pub(super) async fn run(
        self,
        settings: StandbySettings,
        progress: &Arc<Progress>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<Copied> {
        let progress = Arc::clone(progress);
        let given_up = Arc::new(OnceLock::new());
        let told = Arc::clone(&given_up);
        let work = move || {
            let size_bytes = self
                .copy(&progress, &told)
                .map_err(|error| self.with_remains(error))?;
            progress.phase("write settings and sync");
            let mut notes =
                cluster::make_standby(&self.pgdata, &settings).map_err(|error| self.with_remains(error))?;
            let start = cluster::standby_start_command(&self.pgdata, self.major, self.search_path.as_deref());
            notes.extend(start.notes);
            Ok(Copied {
                size_bytes,
                notes,
                start_command: start.command,
            })
        };
        let mut working = tokio::task::spawn_blocking(work);
        let worked = tokio::select! {
            biased;
            signal = interrupt.wait() => {
                let _ = given_up.set(signal);
                working.await
            }
            worked = &mut working => worked,
        };
        worked.map_err(|error| Error::defect("copy", error))?
    }

    fn copy(&self, progress: &Progress, given_up: &OnceLock<&'static str>) -> Result<u64> {
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            // A terminal's signals reach only walship, which then ends the program and removes the copy.
            .process_group(0)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Error::io(format!("start {}", self.program.display()), error))?;
        let lines = lines_of(&mut child);
        let outcome = self.watch(&lines, progress, given_up);
        if outcome.is_err() {
            self.await_label(&mut child);
            end(&mut child);
        }
        let status = child
            .wait()
            .map_err(|error| Error::io("wait for pg_basebackup", error))?;
        let watched = outcome.inspect_err(|_| self.remove_copy())?;
        if status.success() {
            return Ok(watched.copied_bytes);
        }
        let said: Vec<_> = watched.said.into_iter().collect();
        let said = said.join(" | ").replace("pg_basebackup: ", "");
        Err(Error::unavailable(format!(
            "{} failed ({status}): {}",
            self.program.display(),
            if said.is_empty() { "it said nothing" } else { &said }
        )))
    }

    /// Reads what the program says until it ends.
    fn watch(
        &self,
        lines: &Receiver<String>,
        progress: &Progress,
        given_up: &OnceLock<&'static str>,
    ) -> Result<Watched> {
        let mut watched = Watched::default();
        let mut heard = Instant::now();
        loop {
            if let Some(signal) = given_up.get() {
                return Err(interrupt::given_up(signal));
            }
            match lines.recv_timeout(LOOK) {
                Ok(line) => {
                    heard = Instant::now();
                    match ProgressLine::parse(&line) {
                        Some(at) => {
                            if watched.copied_bytes == 0 {
                                self.check_space(&at)?;
                                progress.expect(at.total_bytes);
                            }
                            progress.advance(at.done_bytes.saturating_sub(watched.copied_bytes));
                            watched.copied_bytes = watched.copied_bytes.max(at.done_bytes);
                        }
                        None => watched.keep(line),
                    }
                }
                Err(RecvTimeoutError::Timeout) if heard.elapsed() < SILENCE => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(watched),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Error::unavailable(format!(
                        "pg_basebackup said nothing for {} minutes, and walship ended it; check the primary and the \
                         network, and try again",
                        SILENCE.as_secs() / 60
                    )));
                }
            }
        }
    }

    /// Checks the space before the program writes anything. The program tells only the size of all tablespaces
    /// together.
    fn check_space(&self, at: &ProgressLine) -> Result<()> {
        let mut directories = vec![self.pgdata.as_path()];
        directories.extend(self.mappings.iter().map(|mapping| mapping.new.as_path()));
        // It is not known here where other tablespaces go; that may be on other file systems.
        if at.tablespaces > directories.len() as u64 {
            return Ok(());
        }
        cluster::check_room(&directories, at.total_bytes)
    }

    /// Waits until the program has written its label, which alone proves that the copy is this seeding's. The program
    /// makes `pg_wal` before that (`StartLogStreamer`, `pg_basebackup.c`, 14 to 18).
    fn await_label(&self, child: &mut Child) {
        let deadline = Instant::now() + LABEL_TIMEOUT;
        let has_begun = || std::fs::read_dir(&self.pgdata).is_ok_and(|mut entries| entries.next().is_some());
        while has_begun()
            && !remains::is_ours(&self.pgdata, &self.label)
            && matches!(child.try_wait(), Ok(None))
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Removes what the ended program had made. [`Copy::with_remains`] names what could not be removed.
    fn remove_copy(&self) {
        remains::remove(&self.pgdata, &self.label, self.major, self.was_there);
    }

    /// Adds to the error what is left behind, if anything is. A program that fails by itself leaves the tablespaces:
    /// each has a directory that is named after the version.
    fn with_remains(&self, error: Error) -> Error {
        let version = format!("PG_{}_", self.major);
        let is_tablespace = |directory: &Path| {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            let mut names = entries.map(|entry| entry.file_name());
            names.any(|name| name.to_string_lossy().starts_with(&version))
        };
        let tablespaces = self.mappings.iter().map(|mapping| mapping.new.as_path());
        let holds = holds_something(&self.pgdata);
        if holds && !remains::is_ours(&self.pgdata, &self.label) {
            return Error::new(
                error.kind(),
                format!(
                    "{error}. {} is not empty, and nothing proves that its files are this seeding's, so walship leaves \
                     them alone: find out whose they are",
                    self.pgdata.display()
                ),
            );
        }
        let data = Some(self.pgdata.as_path()).filter(|_| holds);
        let left: Vec<_> = data
            .into_iter()
            .chain(tablespaces.filter(|directory| is_tablespace(directory)))
            .map(|directory| directory.display().to_string())
            .collect();
        if left.is_empty() {
            return error;
        }
        let kind = error.kind();
        Error::new(
            kind,
            format!(
                "{error}. What was copied could not be removed; remove it: {}",
                left.join(", ")
            ),
        )
    }
}

#[derive(Debug, Default)]
struct Watched {
    copied_bytes: u64,
    said: VecDeque<String>,
}

impl Watched {
    fn keep(&mut self, line: String) {
        if line.trim().is_empty() || line.contains("removing ") {
            return;
        }
        tracing::info!("{line}");
        if self.said.len() == LINES_KEPT {
            self.said.pop_front();
        }
        self.said.push_back(line);
    }
}

/// `673929/802117 kB (84%), 0/1 tablespace`, perhaps with a file's name after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ProgressLine {
    done_bytes: u64,
    total_bytes: u64,
    tablespaces: u64,
}

impl ProgressLine {
    fn parse(line: &str) -> Option<Self> {
        let (done, rest) = line.trim_start().split_once('/')?;
        let (total, rest) = rest.split_once(" kB (")?;
        let (_, tablespaces) = rest.split_once("), ")?.1.split_once('/')?;
        let end = tablespaces.find(|c: char| !c.is_ascii_digit())?;
        let kib = |text: &str| text.trim().parse::<u64>().ok()?.checked_mul(1024);
        Some(Self {
            done_bytes: kib(done)?,
            total_bytes: kib(total)?,
            tablespaces: tablespaces.get(..end)?.parse().ok()?,
        })
    }
}

fn arguments(options: &SeedOptions, conninfo: &str, label: &str) -> Vec<String> {
    let checkpoint = if options.fast_checkpoint { "fast" } else { "spread" };
    let mut arguments: Vec<String> = [
        "--wal-method=stream",
        "--write-recovery-conf",
        "--progress",
        "--no-password",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(format!("--checkpoint={checkpoint}"));
    arguments.push(format!("--label={label}"));
    arguments.push(format!("--pgdata={}", options.pgdata.display()));
    arguments.push(format!("--dbname={conninfo}"));
    if let Some(slot) = &options.slot {
        arguments.push(format!("--slot={slot}"));
    }
    if let Some(rate) = options.max_rate_kib {
        arguments.push(format!("--max-rate={rate}k"));
    }
    let escape = |path: &Path| path.display().to_string().replace('=', r"\=");
    for mapping in &options.tablespace_mappings {
        let (old, new) = (escape(&mapping.old), escape(&mapping.new));
        arguments.push(format!("--tablespace-mapping={old}={new}"));
    }
    arguments
}

fn no_program(major: Major, others: &[(PathBuf, Option<Major>)]) -> Error {
    let found: Vec<_> = others
        .iter()
        .map(|(path, version)| {
            let version = version.map_or("an unknown version".to_owned(), |it| it.to_string());
            format!("{} is of {version}", path.display())
        })
        .collect();
    let found = if found.is_empty() {
        "nor one of another version".to_owned()
    } else {
        found.join(", ")
    };
    Error::not_found(format!(
        "the primary runs PostgreSQL {major}, but no pg_basebackup of that version is found here ({found}); install \
         PostgreSQL {major}, set postgres.bin_dir to the directory of its programs, or seed with --from archive"
    ))
}

/// What the program says, by line. Where it redraws its progress, a line ends with a carriage return.
fn lines_of(child: &mut Child) -> Receiver<String> {
    let (to, lines) = channel();
    if let Some(stderr) = child.stderr.take() {
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stderr);
            let mut bytes = Vec::new();
            while matches!(reader.read_until(b'\n', &mut bytes), Ok(read) if read > 0) {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                for line in text.split(['\r', '\n']).filter(|line| !line.is_empty()) {
                    if to.send(line.to_owned()).is_err() {
                        return;
                    }
                }
                bytes.clear();
            }
        });
    }
    lines
}

/// Ends the program, and its child for the WAL, which would go on without it and hold the slot.
fn end(child: &mut Child) {
    let parent = child.id().to_string();
    let is_its = |stat: &str| {
        let after_name = stat.rsplit_once(')').map(|(_, rest)| rest);
        after_name.and_then(|rest| rest.split_whitespace().nth(1)) == Some(&parent)
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let children: Vec<_> = processes
        .filter(|entry| std::fs::read_to_string(entry.path().join("stat")).is_ok_and(|stat| is_its(&stat)))
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .collect();
    let _ = child.kill();
    for pid in children {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Refuses a tablespace's directory that is not empty, whether a tablespace goes there or not.
fn check_empty(mapping: &TablespaceMapping) -> Result<()> {
    let new = mapping.new.as_path();
    if !holds_something(new) {
        return Ok(());
    }
    Err(Error::conflict(format!(
        "the tablespace's directory {} is not empty; give another one with --tablespace-mapping {}=NEW, or move the files \
         in it away",
        new.display(),
        mapping.old.display()
    )))
}

fn holds_something(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn mapping(new: &Path) -> TablespaceMapping {
        format!("/old={}", new.display()).parse().unwrap()
    }

    fn copy_of(data: &Path) -> Copy {
        Copy {
            program: PathBuf::new(),
            arguments: Vec::new(),
            label: "ours".to_owned(),
            pgdata: data.to_owned(),
            was_there: false,
            mappings: Vec::new(),
            major: Major::V17,
            search_path: None,
        }
    }

    /// One mapped directory has a tablespace of the copy, another somebody else's file.
    // Seen to fail: `seed/copy.rs`: everything in a mapped directory is removed
    #[test]
    fn seeding_removes_only_what_it_made_in_mapped_directories() {
        let top = tempfile::tempdir().unwrap();
        let [data, made, others] = ["data", "made", "others"].map(|name| top.path().join(name));
        for directory in [&data.join("pg_tblspc"), &made.join("PG_17_202406281"), &others] {
            std::fs::create_dir_all(directory).unwrap();
        }
        std::os::unix::fs::symlink(&made, data.join("pg_tblspc/16384")).unwrap();
        std::fs::write(others.join("file"), "mine").unwrap();
        std::fs::write(data.join("backup_label"), "LABEL: ours\n").unwrap();
        let copy = Copy {
            mappings: vec![mapping(&made), mapping(&others)],
            ..copy_of(&data)
        };
        let left = copy.with_remains(Error::internal("no room")).to_string();
        assert!(left.contains("data, ") && left.ends_with("made"), "{left}");
        copy.remove_copy();
        assert!(!data.exists() && !holds_something(&made));
        assert_eq!(std::fs::read(others.join("file")).unwrap(), b"mine");
        assert_eq!(
            copy.with_remains(Error::internal("no room")).to_string(),
            "no room"
        );
    }

    /// As `pg_basebackup` does, but slowly.
    // Seen to fail: `seed/copy.rs`: `await_label` is not called
    #[test]
    fn a_copy_that_was_interrupted_before_it_had_its_label_is_removed() {
        let top = tempfile::tempdir().unwrap();
        let data = top.path().join("data");
        let script = format!(
            "mkdir -p {0}/pg_wal; sleep 1; echo LABEL: ours > {0}/backup_label; exec sleep 600",
            data.display()
        );
        let copy = Copy {
            program: PathBuf::from("/bin/sh"),
            arguments: vec!["-c".to_owned(), script],
            ..copy_of(&data)
        };
        let given_up = OnceLock::new();
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !holds_something(&data) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                given_up.set("SIGINT")
            });
            copy.copy(&Progress::default(), &given_up)
        });
        assert!(ended.is_err() && !data.exists());
    }

    // Seen to fail: `seed/copy.rs`: the directory is not looked at
    #[test]
    fn a_mapped_directory_that_is_not_empty_is_refused() {
        let top = tempfile::tempdir().unwrap();
        for good in [top.path().join("missing"), top.path().to_owned()] {
            check_empty(&mapping(&good)).unwrap();
        }
        std::fs::write(top.path().join("file"), "mine").unwrap();
        let error = check_empty(&mapping(top.path())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }

    #[test]
    fn progress_is_read_as_pg_basebackup_writes_it() {
        let at = |done_kib: u64, total_kib: u64, tablespaces| ProgressLine {
            done_bytes: done_kib << 10,
            total_bytes: total_kib << 10,
            tablespaces,
        };
        for (line, expected) in [
            (
                "673929/802117 kB (84%), 0/1 tablespace",
                Some(at(673_929, 802_117, 1)),
            ),
            (
                "     0/ 22817 kB (0%), 0/3 tablespaces (...a/base/1/2)",
                Some(at(0, 22_817, 3)),
            ),
            ("pg_basebackup: error: could not connect", None),
            ("waiting for checkpoint", None),
            ("1/2 kB (", None),
        ] {
            assert_eq!(ProgressLine::parse(line), expected, "{line}");
        }
    }
}
