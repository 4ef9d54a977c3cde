//! Members of a Patroni cluster, with etcd: the real programs, on the files of `deploy/patroni`.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use walship_core::pg::Major;

use super::ports::Port;
use super::process::{Output, Running, descendants, signal, start_time};
use super::walship::{Walship, binary};
use super::{command_as_user, give_to_user, make_dir, project, scratch, tools, wait_for};

const PATIENCE: Duration = Duration::from_mins(3);

/// The passwords of the example, as a test sets them.
const PASSWORDS: [(&str, &str); 3] = [
    ("superuser", "super"),
    ("replicator", "repl"),
    ("rewinder", "rewind"),
];

/// One etcd server. Ends when dropped.
pub struct Etcd {
    pub port: Port,
    _peers: Port,
    _server: Running,
    _root: TempDir,
}

impl Etcd {
    pub fn start() -> Self {
        let (port, peers) = (Port::take(), Port::take());
        let root = scratch();
        let here = format!("http://127.0.0.1:{}", port.number);
        let among = format!("http://127.0.0.1:{}", peers.number);
        let mut etcd = command_as_user(tools(&["etcd"]));
        etcd.arg("--data-dir").arg(root.path().join("data")).args([
            "--listen-client-urls",
            &here,
            "--advertise-client-urls",
            &here,
            "--listen-peer-urls",
            &among,
            "--initial-advertise-peer-urls",
            &among,
            "--initial-cluster",
            &format!("default={among}"),
        ]);
        let server = Running::start(&mut etcd);
        wait_for("etcd", PATIENCE, || {
            get(port.number, "/health").filter(|(_, health)| health["health"] == "true")
        });
        Self {
            port,
            _peers: peers,
            _server: server,
            _root: root,
        }
    }
}

/// What a member of a cluster is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Leader,
    Replica,
}

/// A member of a cluster, and its Patroni while it runs.
pub struct Member {
    pub name: String,
    pub sql_port: Port,
    rest_port: Port,
    major: Major,
    install: PathBuf,
    dir: PathBuf,
    config: String,
    walship: Walship,
    patroni: Option<Child>,
    // Last: removed after everything else.
    _root: TempDir,
}

impl Member {
    /// A member made from `deploy/patroni/patroni.yml`; `walship` is the environment of its walship.
    pub fn new(major: Major, scope: &str, name: &str, etcd: &Etcd, walship: &Walship) -> Self {
        let root = scratch();
        let dir = make_dir(root.path(), "m", 0o755);
        let (sql_port, rest_port) = (Port::take(), Port::take());
        let install = PathBuf::from(tools(&["postgres", &major.to_string()]));
        let here = dir.to_str().unwrap();
        let moves = [
            ("scope: main", format!("scope: {scope}")),
            ("name: node1", format!("name: {name}")),
            ("127.0.0.1:2379", format!("127.0.0.1:{}", etcd.port.number)),
            ("127.0.0.1:8008", format!("127.0.0.1:{}", rest_port.number)),
            ("port=5432", format!("port={}", sql_port.number)),
            // Whoever runs the tests need not be called postgres.
            ("local all all peer", "local all all trust".to_owned()),
            (
                "local replication postgres peer",
                "local replication postgres trust".to_owned(),
            ),
            ("127.0.0.1:5432", format!("127.0.0.1:{}", sql_port.number)),
            ("/usr/lib/postgresql/18/bin", format!("{}/bin", install.display())),
            ("/var/lib/postgresql/18/main", format!("{here}/data")),
            ("/var/lib/postgresql", here.to_owned()),
            ("/var/run/postgresql", here.to_owned()),
            ("/usr/local/bin/walship", binary().to_str().unwrap().to_owned()),
            // The smallest that Patroni takes.
            ("ttl: 30", "ttl: 20".to_owned()),
            ("loop_wait: 10", "loop_wait: 1".to_owned()),
            ("retry_timeout: 10", "retry_timeout: 5".to_owned()),
        ];
        let mut config = std::fs::read_to_string(project().join("deploy/patroni/patroni.yml")).unwrap();
        for (from, to) in &moves {
            assert!(
                config.contains(from),
                "deploy/patroni/patroni.yml has no {from:?}"
            );
            config = config.replace(from, to);
        }
        for (role, password) in PASSWORDS {
            config = config.replace(&format!("CHANGE-ME-{role}"), password);
        }
        Self {
            name: name.to_owned(),
            sql_port,
            rest_port,
            major,
            install,
            dir,
            config,
            walship: walship.clone(),
            patroni: None,
            _root: root,
        }
    }

    /// Changes the configuration before Patroni is started.
    pub fn replace(&mut self, from: &str, to: &str) {
        assert!(self.config.contains(from), "the configuration has no {from:?}");
        self.config = self.config.replace(from, to);
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// What Patroni, PostgreSQL and the commands they run have said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.join("patroni.log")).unwrap_or_default()).into_owned()
    }

    /// One of PostgreSQL's or Patroni's programs, as the member's user.
    pub fn program(&self, path: impl AsRef<Path>) -> Command {
        let mut command = command_as_user(path);
        let path = format!(
            "{}:{}",
            self.install.join("bin").display(),
            std::env::var("PATH").unwrap_or_default()
        );
        command
            .envs(self.walship.environment())
            .env("PATH", path)
            .env("LD_LIBRARY_PATH", self.install.join("lib"))
            .env("LC_ALL", "C.UTF-8")
            .current_dir(&self.dir);
        command
    }

    /// Starts Patroni.
    pub fn start(&mut self) {
        let file = self.dir.join("patroni.yml");
        std::fs::write(&file, &self.config).unwrap();
        give_to_user(&file);
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.dir.join("patroni.log"))
            .unwrap();
        let patroni = PathBuf::from(tools(&["patroni"])).join("patroni");
        let mut command = self.program(patroni);
        command.arg(&file).stdout(log.try_clone().unwrap()).stderr(log);
        self.patroni = Some(command.spawn().expect("start Patroni"));
    }

    /// Waits until the member is the leader, or a replica that streams.
    #[track_caller]
    pub fn wait_role(&self, role: Role) {
        let path = match role {
            Role::Leader => "/leader",
            Role::Replica => "/replica",
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = get(self.rest_port.number, path);
            let settled = |state: &Value| match role {
                // The leader's lock comes before the promotion.
                Role::Leader => state["role"] == "primary",
                Role::Replica => state["replication_state"] == "streaming",
            };
            if answer
                .as_ref()
                .is_some_and(|(status, state)| *status == 200 && settled(state))
            {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{} is no {role:?}: {answer:?}\n{}",
                self.name,
                self.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// A connection string for this role of the example.
    pub fn conninfo(&self, role: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user={role} dbname=postgres",
            self.sql_port.number
        )
    }

    /// Runs SQL as superuser and gives what `psql -XAtq` prints.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        let output = self.try_sql(sql);
        assert!(
            output.code == Some(0),
            "{}: {sql}\n{output:?}\n{}",
            self.name,
            self.log()
        );
        output.stdout.trim_end().to_owned()
    }

    pub fn try_sql(&self, sql: &str) -> Output {
        let mut psql = self.program(self.install.join("bin/psql"));
        psql.args([
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            &self.conninfo("postgres"),
            "-c",
            sql,
        ])
        .env("PGPASSWORD", "super");
        Running::start(&mut psql).wait(PATIENCE)
    }

    /// Asks until the answer is `expected`.
    #[track_caller]
    pub fn wait_sql(&self, sql: &str, expected: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.try_sql(sql);
            if output.code == Some(0) && output.stdout.trim_end() == expected {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{}: {sql} is {output:?}, not {expected}\n{}",
                self.name,
                self.log()
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills Patroni and its PostgreSQL, as a power cut does.
    pub fn kill9(&mut self) {
        let Some(mut patroni) = self.patroni.take() else {
            return;
        };
        // PostgreSQL outlives its Patroni, and so is no child of it.
        let postmaster = std::fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
        let postmaster: Option<u32> = postmaster.lines().next().and_then(|pid| pid.parse().ok());
        let mut victims: Vec<(u32, u64)> = descendants(patroni.id());
        if let Some(pid) = postmaster {
            victims.extend(start_time(pid).map(|started| (pid, started)));
            victims.extend(descendants(pid));
        }
        let _ = patroni.kill();
        let _ = patroni.wait();
        for &(pid, started) in &victims {
            if start_time(pid) == Some(started) {
                signal(pid, rustix::process::Signal::KILL);
            }
        }
        wait_for("killed processes to end", PATIENCE, || {
            victims
                .iter()
                .all(|&(pid, started)| start_time(pid) != Some(started))
                .then_some(())
        });
    }

    /// The old leader's PostgreSQL comes back for a moment without its Patroni, does this, and stops.
    pub fn run_alone(&self, sql: &str) {
        let pg_ctl = |args: &[&str]| {
            let mut pg_ctl = self.program(self.install.join("bin/pg_ctl"));
            pg_ctl
                .args(["-s", "-w", "-D", self.data_dir().to_str().unwrap()])
                .args(["-l", self.dir.join("alone.log").to_str().unwrap()])
                .args(args);
            assert!(pg_ctl.status().unwrap().success(), "pg_ctl {args:?} failed");
        };
        pg_ctl(&["start"]);
        self.sql(sql);
        pg_ctl(&["stop", "-m", "fast"]);
    }

    /// `PostgreSQL`'s major version.
    pub fn major(&self) -> Major {
        self.major
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n  ");
            super::announce(&format!("{}:\n  {tail}", self.name));
        }
        self.kill9();
    }
}

/// A status and a JSON document over HTTP from a port of this machine.
fn get(port: u16, path: &str) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((
        status,
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?,
    ))
}
