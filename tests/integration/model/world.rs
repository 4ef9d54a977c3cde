//! The servers, the archive, and what the model knows of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use walship_core::pg::Major;

use crate::server::archiving_builder;
use crate::support::postgres::{Cluster, Stop};
use crate::support::process::Output;
use crate::support::scratch;
use crate::support::stores::Place;
use crate::support::walship::Walship;

pub(super) type Rows = BTreeSet<u64>;

/// How long a segment may take into the archive where nothing is wrong.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// After which a segment that must not be acknowledged counts as refused.
const REFUSAL: Duration = Duration::from_secs(4);

/// A server, and the rows that it must have.
pub(super) struct Server {
    pub(super) cluster: Cluster,
    pub(super) rows: Rows,
    pub(super) tablespaces: Vec<PathBuf>,
    /// Its data directory, where the cluster itself does not keep it.
    _root: Option<tempfile::TempDir>,
}

/// A backup that `walship basebackup` said is complete.
#[derive(Clone)]
pub(super) struct Backup {
    pub(super) id: String,
    /// What its server had when it was begun.
    pub(super) rows: Rows,
    pub(super) tablespaces: Vec<PathBuf>,
}

/// A copy of production's data directory from a time when it was stopped.
pub(super) struct Snapshot {
    pub(super) root: tempfile::TempDir,
    pub(super) rows: Rows,
    pub(super) acknowledged: Rows,
}

pub(super) struct World {
    random: u64,
    pub(super) major: Major,
    pub(super) walship: Walship,
    place: Place,
    pub(super) production: Server,
    /// A former primary that was not stopped.
    pub(super) former: Option<Server>,
    /// A standby that knows nothing but the archive.
    pub(super) follower: Option<Server>,
    pub(super) snapshot: Option<Snapshot>,
    pub(super) backups: Vec<Backup>,
    /// The rows of production's history that were acknowledged: recovery must bring them back.
    pub(super) acknowledged: Rows,
    /// The rows of production's history, acknowledged or not.
    pub(super) history: Rows,
    /// Somebody else archived life of his own.
    pub(super) ambiguous: bool,
    /// Production was set back behind what it has archived: nothing of it may be stored any more.
    pub(super) set_back: bool,
    /// Where the archive is while it is not mounted.
    pub(super) unmounted: Option<PathBuf>,
    next_row: u64,
    told: Vec<String>,
}

impl World {
    pub(super) fn new(seed: u64, major: Major) -> Self {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let mut cluster = archiving_builder(major, &walship)
            .option("wal_level", "replica")
            .option("min_wal_size", "2MB")
            .option("max_wal_size", "8MB")
            // Whose files are compared changes them only when told to.
            .option("autovacuum", "off")
            .initdb();
        cluster.start();
        cluster.sql("create table rows (n bigint)");
        let production = Server::new(cluster, Rows::new(), Vec::new(), None);
        let mut world = Self {
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            major,
            walship,
            place,
            production,
            former: None,
            follower: None,
            snapshot: None,
            backups: Vec::new(),
            acknowledged: Rows::new(),
            history: Rows::new(),
            ambiguous: false,
            set_back: false,
            unmounted: None,
            next_row: 1,
            told: vec![format!("seed {seed}, PostgreSQL {major}")],
        };
        world.write();
        world
    }

    /// A number below `bound` (xorshift).
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % bound
    }

    pub(super) fn tell(&mut self, step: impl Into<String>) {
        self.told.push(step.into());
    }

    pub(super) fn told(&self) -> String {
        self.told.join("; ")
    }

    /// Fails unless `holds`, with the whole life.
    #[track_caller]
    pub(super) fn must(&self, holds: bool, promise: &str) {
        assert!(holds, "NOT TRUE: {promise}\nthe life so far: {}", self.told());
    }

    pub(super) fn archive(&self) -> PathBuf {
        let mounted = self.place.path().expect("a directory").to_owned();
        self.unmounted.clone().unwrap_or(mounted)
    }

    pub(super) fn mount_point(&self) -> PathBuf {
        self.place.path().expect("a directory").to_owned()
    }

    /// Every object of the archive but what keeps changing by design.
    pub(super) fn objects(&self) -> BTreeMap<PathBuf, u64> {
        let mut found = files(&self.archive());
        found.retain(|path, _| !path.starts_with("ledger"));
        found
    }

    // --- rows ---

    pub(super) fn new_row(&mut self) -> u64 {
        self.next_row += 1;
        self.next_row
    }

    /// Production writes a row and ends a segment; whether that was acknowledged.
    pub(super) fn write(&mut self) -> bool {
        let may_be_stored = self.unmounted.is_none() && !self.set_back;
        let row = self.new_row();
        self.production.insert(row);
        self.history.insert(row);
        let segment = self.production.cluster.switch_wal();
        let stored = self
            .production
            .is_done(&segment, if may_be_stored { PATIENCE } else { REFUSAL });
        if stored {
            self.must(
                may_be_stored,
                "a segment that cannot be in the archive is not acknowledged",
            );
            self.acknowledged.clone_from(&self.production.rows);
        } else {
            self.must(!may_be_stored, "a segment that can be stored is acknowledged");
        }
        stored
    }

    /// Every segment that a server counts as archived stands in the archive as it is in `pg_wal`.
    pub(super) fn check_acknowledged(&self) {
        for server in std::iter::once(&self.production).chain(&self.former) {
            for segment in server.done() {
                let (timeline, log) = (&segment[..8], &segment[..16]);
                let object = self.archive().join(format!("wal/{timeline}/{log}/{segment}.zst"));
                let ours = std::fs::read(server.cluster.data_dir().join("pg_wal").join(&segment));
                // It may have been removed just now.
                let Ok(ours) = ours else { continue };
                let stored = std::fs::read(&object)
                    .ok()
                    .and_then(|object| zstd::decode_all(&object[..]).ok());
                self.must(
                    stored.as_deref() == Some(&ours[..]),
                    &format!("{segment}, which was acknowledged, is in the archive as it is in pg_wal"),
                );
            }
        }
    }

    // --- recovery ---

    /// Recovers a copy aside; its rows, or why not.
    pub(super) fn recovered(&self, backup: &Backup, arguments: &[&str]) -> Result<Rows, Output> {
        let copy = self.copy(&backup.tablespaces, arguments)?;
        let mut copy = copy;
        copy.cluster.start();
        copy.cluster
            .wait_until("select pg_is_in_recovery()", "f", PATIENCE);
        let rows = copy.read();
        copy.cluster.stop(Stop::Immediate);
        Ok(rows)
    }

    /// What `walship recover` makes; not started.
    pub(super) fn copy(&self, tablespaces: &[PathBuf], arguments: &[&str]) -> Result<Server, Output> {
        let root = scratch();
        let data = root.path().join("data");
        let mut all: Vec<String> = vec!["recover".into(), "--pgdata".into(), data.to_str().unwrap().into()];
        let mut mapped = Vec::new();
        for (number, old) in tablespaces.iter().enumerate() {
            let new = root.path().join(format!("ts{number}"));
            all.push("--tablespace-mapping".into());
            all.push(format!("{}={}", old.display(), new.display()));
            mapped.push(new);
        }
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let output = self.walship.run(&all);
        if output.code != Some(0) {
            return Err(output);
        }
        let cluster = self.walship.adopt(self.major, &data);
        Ok(Server::new(cluster, Rows::new(), mapped, Some(root)))
    }
}

impl Server {
    /// `root` is where its data directory is, unless the cluster keeps that itself.
    pub(super) fn new(
        cluster: Cluster,
        rows: Rows,
        tablespaces: Vec<PathBuf>,
        root: Option<tempfile::TempDir>,
    ) -> Self {
        Self {
            cluster,
            rows,
            tablespaces,
            _root: root,
        }
    }

    pub(super) fn insert(&mut self, row: u64) {
        self.cluster.sql(&format!("insert into rows values ({row})"));
        self.rows.insert(row);
    }

    pub(super) fn read(&self) -> Rows {
        let shown = self.cluster.sql("select n from rows order by n");
        shown.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Whether the archiver counts this segment as archived, within this time. It is announced once it is switched, and
    /// the next checkpoint may remove all traces of one that is archived.
    pub(super) fn is_done(&self, segment: &str, patience: Duration) -> bool {
        let announced = self
            .cluster
            .data_dir()
            .join(format!("pg_wal/archive_status/{segment}.ready"));
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if !announced.exists() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    /// The segments that it counts as archived.
    fn done(&self) -> Vec<String> {
        let status = self.cluster.data_dir().join("pg_wal/archive_status");
        let entries = std::fs::read_dir(status).unwrap();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let done = names.filter_map(|name| name.strip_suffix(".done").map(str::to_owned));
        done.filter(|name| name.len() == 24).collect()
    }

    /// Its files outside the data directory, and those inside that only it writes, with what is in them.
    pub(super) fn fingerprint(&self) -> BTreeMap<PathBuf, u64> {
        let mut all = BTreeMap::new();
        for directory in &self.tablespaces {
            all.extend(
                files(directory)
                    .into_iter()
                    .map(|(path, sum)| (directory.join(path), sum)),
            );
        }
        all
    }
}

/// Every file below a directory, by its relative path, with a hash of its content.
fn files(directory: &Path) -> BTreeMap<PathBuf, u64> {
    fn enter(top: &Path, directory: &Path, found: &mut BTreeMap<PathBuf, u64>) {
        let Ok(entries) = std::fs::read_dir(directory) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                enter(top, &path, found);
            } else if let Ok(content) = std::fs::read(&path) {
                use std::hash::{DefaultHasher, Hash, Hasher};
                let mut hasher = DefaultHasher::new();
                content.hash(&mut hasher);
                found.insert(path.strip_prefix(top).unwrap().to_owned(), hasher.finish());
            }
        }
    }
    let mut found = BTreeMap::new();
    enter(directory, directory, &mut found);
    found
}
