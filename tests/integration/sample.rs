//! A real cluster's data directory, stopped, with a few real segments: what `push` and `restore` are
//! tried on where no running server is needed. Made once for all tests.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use walship_core::pg::Major;

use crate::support::postgres::{Cluster, Stop};
use crate::support::walship::Walship;
use crate::support::{command_as_user, give_to_user, scratch};

/// Size of the segments, in bytes.
pub const SEGMENT: usize = 1 << 20;

/// The parts of a stopped cluster that matter to `push` and `restore`.
pub struct Sample {
    cluster: Cluster,
    /// Whole segments of timeline 1, in order: at least five.
    pub segments: Vec<String>,
}

impl Sample {
    /// The sample of PostgreSQL 17.
    pub fn shared() -> &'static Self {
        static SAMPLE: OnceLock<Sample> = OnceLock::new();
        SAMPLE.get_or_init(|| Self::make(Major::V17))
    }

    /// Another cluster of the same version.
    pub fn other() -> &'static Self {
        static SAMPLE: OnceLock<Sample> = OnceLock::new();
        SAMPLE.get_or_init(|| Self::make(Major::V17))
    }

    fn make(major: Major) -> Self {
        let mut cluster = Cluster::builder(major)
            .option("archive_mode", "on")
            // Never succeeds: every segment stays in pg_wal.
            .option("archive_command", "false")
            .initdb();
        cluster.start();
        let mut segments: Vec<String> = (0..6)
            .map(|i| {
                cluster.sql(&format!(
                    "create table t{i} as select g, md5(g::text) from generate_series(1, 2000) g"
                ));
                cluster.switch_wal()
            })
            .collect();
        cluster.stop(Stop::Immediate);
        segments.sort();
        segments.dedup();
        assert!(segments.len() >= 5);
        Self { cluster, segments }
    }

    /// A copy of the data directory's `global/pg_control` and `pg_wal`, with an empty configuration, for a test to
    /// change.
    pub fn copy(&self) -> DataDirectory {
        let root = scratch();
        let path = root.path().join("data");
        let script = format!(
            "umask 077 && mkdir -p {to}/global {to}/pg_wal && cp {from}/PG_VERSION {to}/ && cp {from}/global/pg_control {to}/global/ && cp {from}/pg_wal/0* {to}/pg_wal/ && : > {to}/postgresql.conf",
            from = self.cluster.data_dir().display(),
            to = path.display()
        );
        let status = command_as_user("/bin/sh").args(["-c", &script]).status().unwrap();
        assert!(status.success());
        DataDirectory { path, _root: root }
    }
}

/// What looks like a data directory to `push` and `restore`.
pub struct DataDirectory {
    path: PathBuf,
    _root: tempfile::TempDir,
}

impl DataDirectory {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn segment(&self, name: &str) -> PathBuf {
        self.path.join("pg_wal").join(name)
    }

    /// Says of a file that it is whole, as PostgreSQL does for its archiver.
    pub fn announce(&self, name: &str) {
        let status = self.file("pg_wal/archive_status");
        std::fs::create_dir_all(&status).unwrap();
        std::fs::write(status.join(format!("{name}.ready")), "").unwrap();
        give_to_user(&status);
    }

    /// Makes a standby of it that has replayed everything before a segment, and no more.
    pub fn stand_before(&self, segment: &str) {
        let number = usize::from_str_radix(&segment[16..], 16).unwrap();
        let replayed = (number * SEGMENT - 0x80) as u64;
        let path = self.file("global/pg_control");
        let mut control = std::fs::read(&path).unwrap();
        // The last checkpoint and its redo position; the CRC over everything before it.
        control[32..40].copy_from_slice(&replayed.to_le_bytes());
        control[40..48].copy_from_slice(&replayed.to_le_bytes());
        let crc = crc32c::crc32c(&control[..288]);
        control[288..292].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(path, control).unwrap();
        for entry in std::fs::read_dir(self.file("pg_wal")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name.len() == segment.len() && name.as_str() >= segment {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        std::fs::write(self.file("standby.signal"), "").unwrap();
    }

    /// walship as PostgreSQL would run it here.
    pub fn walship(&self, archive: &crate::support::stores::Place) -> Walship {
        Walship::at(archive).in_dir(&self.path)
    }
}
