//! The stores that the tests run on: a directory, and real S3 servers.
//!
//! `WALSHIP_TEST_STORES` says which, by default `directory,localstack,seaweedfs,minio`. One that was
//! asked for and cannot be started fails the test; one that was left out is announced as not tested.
//!
//! A server is started once for a test process by `localstack/start-server`, whose standard input
//! this process holds: however it ends, the server ends with it. `scripts/test` starts each server
//! once for all test binaries and hands its description (the line of JSON that start-server prints)
//! to them in `WALSHIP_TEST_LOCALSTACK`, `WALSHIP_TEST_SEAWEEDFS` and `WALSHIP_TEST_MINIO`.
//! There is one bucket; each [`Place`] is a prefix of its own in it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tempfile::TempDir;

use super::{announce, make_dir, project, scratch};

/// An S3 server that can be run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Checks no credentials.
    LocalStack,
    SeaweedFs,
    MinIo,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::LocalStack, Self::SeaweedFs, Self::MinIo];

    /// Its name in `WALSHIP_TEST_STORES` and for `start-server`.
    pub fn name(self) -> &'static str {
        match self {
            Self::LocalStack => "localstack",
            Self::SeaweedFs => "seaweedfs",
            Self::MinIo => "minio",
        }
    }
}

/// A store that the test run covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestStore {
    Directory,
    Server(Kind),
}

impl TestStore {
    pub fn name(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Server(kind) => kind.name(),
        }
    }

    /// An empty place in this store, starting its server if need be.
    pub fn new_place(self) -> Place {
        match self {
            Self::Directory => Place::directory(),
            Self::Server(kind) => StoreServer::shared(kind).new_place(),
        }
    }
}

/// The stores of this test run. Says once which ones it leaves out.
pub fn chosen() -> &'static [TestStore] {
    static CHOSEN: OnceLock<Vec<TestStore>> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let all: Vec<TestStore> = std::iter::once(TestStore::Directory)
            .chain(Kind::ALL.into_iter().map(TestStore::Server))
            .collect();
        let Ok(wanted) = std::env::var("WALSHIP_TEST_STORES") else {
            return all;
        };
        let wanted: Vec<&str> = wanted
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .collect();
        for name in &wanted {
            let known = all.iter().any(|store| store.name() == *name);
            assert!(known, "WALSHIP_TEST_STORES: no store {name:?}");
        }
        let (chosen, left): (Vec<_>, Vec<_>) = all.into_iter().partition(|s| wanted.contains(&s.name()));
        assert!(!chosen.is_empty(), "WALSHIP_TEST_STORES names no store");
        for store in left {
            announce(&format!(
                "NOT TESTED: {} (left out of WALSHIP_TEST_STORES)",
                store.name()
            ));
        }
        chosen
    })
}

/// Where an archive can be: its URL and the environment that reaches it.
#[derive(Debug)]
pub struct Place {
    /// `s3://walship/PREFIX` or `file:///PATH`.
    pub url: String,
    /// `AWS_*` variables; empty for a directory.
    pub env: Vec<(&'static str, String)>,
    _dir: Option<TempDir>,
}

impl Place {
    /// An empty folder of the test user.
    pub fn directory() -> Self {
        let dir = scratch();
        let archive = make_dir(dir.path(), "archive", 0o700);
        Self {
            url: format!("file://{}", archive.display()),
            env: Vec::new(),
            _dir: Some(dir),
        }
    }

    /// The folder of a `file://` place.
    pub fn path(&self) -> Option<&Path> {
        self.url.strip_prefix("file://").map(Path::new)
    }

    /// Bucket and prefix of an `s3://` place.
    pub fn bucket_and_prefix(&self) -> Option<(&str, &str)> {
        self.url.strip_prefix("s3://")?.split_once('/')
    }

    /// Where the server is; none for a directory.
    pub fn endpoint(&self) -> Option<&str> {
        self.env
            .iter()
            .find(|(name, _)| *name == "AWS_ENDPOINT_URL")
            .map(|(_, value)| value.as_str())
    }

    /// The same environment with another URL, such as a bucket that is not there.
    #[must_use]
    pub fn with_url(&self, url: &str) -> Self {
        Self {
            url: url.to_owned(),
            env: self.env.clone(),
            _dir: None,
        }
    }

    /// The same place with one variable changed, such as the endpoint of a proxy or a wrong secret.
    /// A directory is still removed with the place it came from.
    #[must_use]
    pub fn with_env(&self, name: &'static str, value: &str) -> Self {
        let mut env: Vec<_> = self.env.iter().filter(|(n, _)| *n != name).cloned().collect();
        env.push((name, value.to_owned()));
        Self {
            url: self.url.clone(),
            env,
            _dir: None,
        }
    }
}

/// A running S3 server with the bucket `walship`.
#[derive(Debug)]
pub struct StoreServer {
    pub kind: Kind,
    pub endpoint: String,
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
    pub bucket: String,
    /// Process id of the server; its session's number too.
    pub pid: u32,
    /// `start-server`, which ends the server when its standard input closes.
    keeper: Option<Child>,
}

impl StoreServer {
    /// The server of this kind that all tests of this process use.
    pub fn shared(kind: Kind) -> &'static Self {
        static SERVERS: [OnceLock<StoreServer>; 3] = [const { OnceLock::new() }; 3];
        SERVERS[kind as usize].get_or_init(|| {
            let variable = format!("WALSHIP_TEST_{}", kind.name().to_uppercase());
            match std::env::var(&variable) {
                Ok(line) => Self::from_json(kind, &line, None),
                Err(_) => Self::start(kind),
            }
        })
    }

    /// A server of its own, for a test that stops or damages it. Ends when dropped.
    pub fn start(kind: Kind) -> Self {
        let name = kind.name();
        let mut keeper = Command::new(project().join("localstack/start-server"))
            .args([name, "--until-stdin-closes"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("run localstack/start-server {name}: {e}"));
        let mut line = String::new();
        let said = BufReader::new(keeper.stdout.take().expect("a piped stdout")).read_line(&mut line);
        if said.is_err() || line.is_empty() {
            let status = keeper.wait();
            panic!(
                "the store {name} cannot be started ({status:?}, reason above). To leave it out on \
                 purpose name the others in WALSHIP_TEST_STORES"
            );
        }
        Self::from_json(kind, &line, Some(keeper))
    }

    fn from_json(kind: Kind, line: &str, keeper: Option<Child>) -> Self {
        let server: Value =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("description of {kind:?}: {e}: {line}"));
        let text = |name: &str| -> String {
            server[name]
                .as_str()
                .unwrap_or_else(|| panic!("{name} is missing in {line}"))
                .to_owned()
        };
        Self {
            kind,
            endpoint: text("endpoint"),
            access_key: text("access_key"),
            secret_key: text("secret_key"),
            region: text("region"),
            bucket: text("bucket"),
            pid: server["pid"]
                .as_u64()
                .and_then(|pid| u32::try_from(pid).ok())
                .expect("a pid"),
            keeper,
        }
    }

    /// An empty prefix that no other test uses.
    pub fn new_place(&self) -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Place {
            url: format!("s3://{}/test-{process}-{number}-{now:x}", self.bucket),
            env: vec![
                ("AWS_ENDPOINT_URL", self.endpoint.clone()),
                ("AWS_ACCESS_KEY_ID", self.access_key.clone()),
                ("AWS_SECRET_ACCESS_KEY", self.secret_key.clone()),
                ("AWS_REGION", self.region.clone()),
            ],
            _dir: None,
        }
    }
}

impl Drop for StoreServer {
    fn drop(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            drop(keeper.stdin.take());
            let _ = keeper.wait();
        }
    }
}
