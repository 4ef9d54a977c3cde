//! A real `PostgreSQL` server of a chosen major version, as a child of the test.
//!
//! The postmaster is started directly, not through `pg_ctl`: its process id is known, and its
//! environment is what the test says, which archive and restore commands inherit. It ends with the
//! [`Cluster`]. Connection settings are given on its command line, so that a data directory copied
//! or recovered from another cluster starts unchanged.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;
use walship_core::pg::Major;

use super::ports::Port;
use super::process::{Output, Running, descendants, signal, start_time};
use super::{command_as_user, give_to_user, make_dir, scratch, tools, wait_for};

const START: Duration = Duration::from_secs(90);
const STOP: Duration = Duration::from_mins(1);
const PROGRAM: Duration = Duration::from_mins(5);

/// How [`Cluster::stop`] ends a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Ends connections, writes a checkpoint, archives what is left.
    Fast,
    /// Leaves at once; the next start recovers.
    Immediate,
}

/// What a new cluster is made with.
pub struct Builder {
    major: Major,
    segment_mib: u32,
    initdb: Vec<String>,
    options: Vec<(String, String)>,
    env: BTreeMap<OsString, OsString>,
}

impl Builder {
    /// Size of a WAL segment: 1 (here the default, so that little traffic fills many) to 1024.
    pub fn segment_mib(mut self, mib: u32) -> Self {
        self.segment_mib = mib;
        self
    }

    /// A setting for `postgresql.conf`.
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.options.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A variable in the server's environment, and so in that of its archive command.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// One more argument for `initdb`, such as `--data-checksums`.
    pub fn initdb_arg(mut self, arg: &str) -> Self {
        self.initdb.push(arg.to_owned());
        self
    }

    /// Makes the cluster; it is not started.
    pub fn initdb(self) -> Cluster {
        let root = scratch();
        let data_dir = root.path().join("data");
        let mut cluster = Cluster::over(self.major, root, data_dir);
        cluster.env.extend(self.env);
        let data = cluster.data_dir.to_str().expect("a path in UTF-8").to_owned();
        let segments = format!("--wal-segsize={}", self.segment_mib);
        let mut args = vec![
            "-D",
            &data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        ];
        args.push(&segments);
        args.extend(self.initdb.iter().map(String::as_str));
        cluster.run_program("initdb", &args).succeeded();
        // Tests kill processes, not machines: what was written is there without fsync.
        for (name, value) in [
            ("fsync", "off"),
            ("shared_buffers", "16MB"),
            ("max_connections", "30"),
        ] {
            cluster.set(name, value);
        }
        for (name, value) in &self.options {
            cluster.set(name, value);
        }
        cluster
    }
}

/// A data directory and, between `start` and `stop`, the server on it.
pub struct Cluster {
    major: Major,
    install: PathBuf,
    data_dir: PathBuf,
    socket_dir: PathBuf,
    log_path: PathBuf,
    log_mark: u64,
    port: Port,
    env: BTreeMap<OsString, OsString>,
    postmaster: Option<Child>,
    // Last: removed after everything else.
    root: TempDir,
}

impl Cluster {
    /// A new cluster of this major version.
    pub fn builder(major: Major) -> Builder {
        Builder {
            major,
            segment_mib: 1,
            initdb: Vec::new(),
            options: Vec::new(),
            env: BTreeMap::new(),
        }
    }

    /// Takes an existing data directory, such as a recovered one. It is not removed at the end.
    pub fn adopt(major: Major, data_dir: impl Into<PathBuf>) -> Self {
        Self::over(major, scratch(), data_dir.into())
    }

    fn over(major: Major, root: TempDir, data_dir: PathBuf) -> Self {
        Self {
            major,
            install: PathBuf::from(tools(&["postgres", &major.to_string()])),
            data_dir,
            socket_dir: make_dir(root.path(), "s", 0o755),
            log_path: root.path().join("server.log"),
            log_mark: 0,
            port: Port::take(),
            env: BTreeMap::new(),
            postmaster: None,
            root,
        }
    }

    // --- where things are ---

    pub fn major(&self) -> Major {
        self.major
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The folder of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The port, of the socket and on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// A libpq connection string over the Unix socket.
    pub fn conninfo(&self) -> String {
        let (socket, port) = (self.socket_dir.display(), self.port());
        format!("host={socket} port={port} user=postgres dbname=postgres")
    }

    /// A libpq connection string over TCP.
    pub fn tcp_conninfo(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres",
            self.port()
        )
    }

    /// The folder of `PostgreSQL`'s programs.
    pub fn bin_dir(&self) -> PathBuf {
        self.install.join("bin")
    }

    /// A new folder of the server's user beside the data directory, for example for a tablespace.
    pub fn make_dir(&self, name: &str) -> PathBuf {
        make_dir(self.root.path(), name, 0o700)
    }

    /// Everything that the server has logged, over all its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log_path).unwrap_or_default()).into_owned()
    }

    /// What the server has logged since its latest start.
    pub fn log_since_start(&self) -> String {
        let log = std::fs::read(&self.log_path).unwrap_or_default();
        let from = usize::try_from(self.log_mark).map_or(0, |mark| mark.min(log.len()));
        String::from_utf8_lossy(&log[from..]).into_owned()
    }

    /// The postmaster's process id. Panics when the server was not started.
    pub fn pid(&self) -> u32 {
        self.postmaster.as_ref().expect("the server was started").id()
    }

    // --- settings ---

    /// Appends a setting to `postgresql.conf`; the last one counts. Takes effect at the next start
    /// or [`Cluster::reload`], unless `postgresql.auto.conf` has the same setting.
    pub fn set(&self, name: &str, value: &str) {
        let line = format!("{name} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''"));
        self.append("postgresql.conf", &line);
    }

    /// Appends to a file in the data directory, making it if need be.
    pub fn append(&self, file: &str, text: &str) {
        let path = self.data_dir.join(file);
        let mut to = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
        to.write_all(text.as_bytes()).expect("write a setting");
        give_to_user(&path);
    }

    /// Sets a variable in the environment of the server from its next start on.
    pub fn set_env(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        self.env.insert(name.into(), value.into());
    }

    /// Has the server read its settings again.
    pub fn reload(&self) {
        signal(self.pid(), Signal::HUP);
    }

    // --- start and end ---

    /// Starts the server and waits until it accepts connections; panics with its log otherwise.
    #[track_caller]
    pub fn start(&mut self) {
        if let Err(log) = self.try_start() {
            panic!("PostgreSQL {} did not start:\n{log}", self.major);
        }
    }

    /// As [`Cluster::start`], with more arguments for this start.
    #[track_caller]
    pub fn start_with(&mut self, args: &[&str]) {
        self.launch_with(args);
        if let Err(log) = self.wait_ready(START) {
            panic!("PostgreSQL {} did not start:\n{log}", self.major);
        }
    }

    /// Starts the server and waits until it accepts connections, as `pg_ctl start` does. When it
    /// ends instead, or is not ready in time, gives its log since this start.
    pub fn try_start(&mut self) -> Result<(), String> {
        self.launch();
        self.wait_ready(START)
    }

    /// Starts the server without waiting for anything.
    pub fn launch(&mut self) {
        self.launch_with(&[]);
    }

    fn launch_with(&mut self, args: &[&str]) {
        assert!(!self.is_running(), "the server runs already");
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.log_path)
            .expect("open the log");
        self.log_mark = log.metadata().map_or(0, |m| m.len());
        let mut command = self.program("postgres");
        command
            .arg("-D")
            .arg(&self.data_dir)
            .args(args)
            .args(["-c", "listen_addresses=127.0.0.1"])
            .args(["-c", &format!("port={}", self.port())])
            .args([
                "-c",
                &format!("unix_socket_directories={}", self.socket_dir.display()),
            ])
            .envs(&self.env)
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log);
        self.postmaster = Some(
            command
                .spawn()
                .unwrap_or_else(|e| panic!("start {command:?}: {e}")),
        );
    }

    /// Waits until a launched server accepts connections; gives its log when it ends instead or the
    /// time is up.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<(), String> {
        let deadline = Instant::now() + timeout;
        while !self.says_ready() {
            if !self.is_running() || Instant::now() > deadline {
                return Err(self.log_since_start());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Waits until the server has ended by itself.
    #[track_caller]
    pub fn wait_exit(&mut self, timeout: Duration) -> ExitStatus {
        let mut postmaster = self.postmaster.take().expect("the server was started");
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = postmaster.try_wait().expect("ask for the postmaster's state") {
                return status;
            }
            if Instant::now() > deadline {
                self.postmaster = Some(postmaster);
                panic!(
                    "PostgreSQL still runs after {timeout:?}:\n{}",
                    self.log_since_start()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Does the postmaster live?
    pub fn is_running(&mut self) -> bool {
        self.postmaster
            .as_mut()
            .is_some_and(|p| p.try_wait().expect("ask for its state").is_none())
    }

    /// Line 8 of `postmaster.pid`, which is what `pg_ctl` waits for.
    fn says_ready(&self) -> bool {
        let text = std::fs::read_to_string(self.data_dir.join("postmaster.pid")).unwrap_or_default();
        let mut lines = text.lines();
        let own = lines.next().and_then(|pid| pid.trim().parse().ok()) == Some(self.pid());
        own && lines
            .nth(6)
            .is_some_and(|status| matches!(status.trim(), "ready" | "standby"))
    }

    /// Ends the server and waits for its end; no server is no error.
    #[track_caller]
    pub fn stop(&mut self, how: Stop) {
        if !self.is_running() {
            self.postmaster = None;
            return;
        }
        signal(
            self.pid(),
            if how == Stop::Fast {
                Signal::INT
            } else {
                Signal::QUIT
            },
        );
        self.wait_exit(STOP);
    }

    /// Kills the postmaster and then every process below it, archive commands too, with SIGKILL.
    pub fn kill9(&mut self) {
        let Some(mut postmaster) = self.postmaster.take() else {
            return;
        };
        let below = descendants(postmaster.id());
        let _ = postmaster.kill();
        let _ = postmaster.wait();
        for &(pid, started) in &below {
            if start_time(pid) == Some(started) {
                signal(pid, Signal::KILL);
            }
        }
        // Shared memory is free when the last one is gone; the next start needs that.
        wait_for("killed processes to end", STOP, || {
            below
                .iter()
                .all(|&(pid, started)| start_time(pid) != Some(started))
                .then_some(())
        });
    }

    // --- work ---

    /// Runs SQL as superuser, each statement in a transaction of its own, and gives what `psql -XAtq`
    /// prints; panics with the error.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        match self.try_sql(sql) {
            Ok(answer) => answer,
            Err(error) => panic!("{sql}\n{error}\nserver log:\n{}", self.log_since_start()),
        }
    }

    /// Runs SQL as superuser; gives what psql prints, or its error.
    pub fn try_sql(&self, sql: &str) -> Result<String, String> {
        // From a file, not with -c: each statement is a transaction of its own, and every version
        // prints every answer (14 prints only the last one of a -c).
        let mut script = tempfile::tempfile().expect("a temporary file");
        script
            .write_all(sql.as_bytes())
            .and_then(|()| script.rewind())
            .expect("write the script");
        let mut psql = self.program("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f", "-"])
            .stdin(script);
        let output = Running::start(&mut psql).wait(PROGRAM);
        if output.code == Some(0) {
            Ok(output.stdout.trim_end_matches('\n').to_owned())
        } else {
            Err(output.stderr)
        }
    }

    /// Asks until the answer is `expected`; panics with the last answer when the time is up.
    #[track_caller]
    pub fn wait_until(&self, sql: &str, expected: &str, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        loop {
            let answer = self.try_sql(sql);
            if answer.as_deref() == Ok(expected) {
                return;
            }
            if Instant::now() > deadline {
                let log = self.log_since_start();
                panic!("{sql}\nis {answer:?} after {timeout:?}, not {expected:?}; server log:\n{log}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the current WAL segment; gives the name of the file that is now complete. Something is
    /// written first, so that there is always a segment to end.
    pub fn switch_wal(&self) -> String {
        self.sql(
            "select pg_walfile_name(lsn) from (select pg_logical_emit_message(false, 'walship', 'x') as lsn) m;
             select from pg_switch_wal()",
        )
        .lines()
        .next()
        .expect("a file name")
        .to_owned()
    }

    /// Runs one of `PostgreSQL`'s programs as the server's user, told by `PG*` variables where this
    /// server is.
    pub fn run_program(&self, name: &str, args: &[&str]) -> Output {
        Running::start(self.program(name).args(args)).wait(PROGRAM)
    }

    /// A standby's data directory, by `pg_basebackup`.
    pub fn copy_to(&self, data: &Path) {
        let data = data.to_str().expect("a path in UTF-8");
        self.run_program("pg_basebackup", &["-D", data, "-X", "stream", "-c", "fast", "-R"])
            .succeeded();
    }

    /// As [`Cluster::run_program`], for what the caller wants to add to or wait for itself.
    pub fn program(&self, name: &str) -> Command {
        let mut command = command_as_user(self.bin_dir().join(name));
        let mut path = self.bin_dir().into_os_string();
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        command
            .current_dir(self.root.path())
            .env("PATH", path)
            // Without it the server's libpqwalreceiver finds the system's libpq.
            .env("LD_LIBRARY_PATH", self.install.join("lib"))
            .env("LC_ALL", "C")
            .env("PGHOST", &self.socket_dir)
            .env("PGPORT", self.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log_since_start();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(40)..];
            let mut report = format!("PostgreSQL {} in {}:\n", self.major, self.data_dir.display());
            for line in tail {
                let _ = writeln!(report, "  {line}");
            }
            eprintln!("{report}");
        }
        if !self.is_running() {
            return;
        }
        signal(self.pid(), Signal::QUIT);
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.is_running() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        self.kill9();
    }
}
