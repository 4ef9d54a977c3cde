//! Restorations of made-up clusters from a directory store: whatever goes wrong, it is named, and
//! nothing is left behind.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::configuration::ConfigurationReport;
use super::destination::{CONTROL, SET_ASIDE_CONTROL};
use super::fixture;
use super::layout::Layout;
use super::restore::Restoration;
use super::settings::{RecoverySettings, TargetAction};
use crate::archive::backup::{BackupRecord, Configuration};
use crate::archive::keys::BackupObject;
use crate::archive::recovery_plan::Target;
use crate::commands::progress::Progress;
use crate::error::Result;
use crate::pg::TimelineId;
use crate::store::Store;
use crate::{Error, ErrorKind};

/// A stored backup of a made-up cluster with one tablespace, and where it will be restored.
struct Case {
    top: tempfile::TempDir,
    store: Store,
    record: BackupRecord,
}

const PART_BYTES: usize = 10_000;

impl Case {
    async fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let (data, space) = (top.path().join("source"), top.path().join("source_ts"));
        for (path, bytes) in [
            ("backup_label", 200),
            ("PG_VERSION", 3),
            ("postgresql.auto.conf", 0),
            ("tablespace_map", 30),
            ("pg_wal/archive_status/x", 0),
            ("global/pg_control", 8192),
            ("base/5/1", 8192),
            ("base/5/2", 100_001),
            ("base/5/3", 0),
            ("base/5/4", 25_000),
        ] {
            write(&data.join(path), bytes);
        }
        std::fs::set_permissions(data.join("base/5/1"), PermissionsExt::from_mode(0o600)).unwrap();
        write(&space.join("PG_17_202406281/5/16385"), 40_960);
        let store = fixture::store(top.path()).await;
        let record = fixture::store_backup(&store, &[&space, &data], PART_BYTES).await;
        Self { top, store, record }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    fn layout(&self) -> Layout {
        let source = self.path("source_ts");
        let mapping = format!("{}={}", source.display(), self.path("ts").display());
        Layout::new(&self.path("data"), &self.record, &[mapping.parse().unwrap()]).unwrap()
    }

    async fn restore(&self) -> Result<ConfigurationReport> {
        let record = Arc::new(self.record.clone());
        let restoration = Restoration::prepare(&self.store, record, self.layout()).await?;
        let extracted = restoration.extract(3, &Arc::new(Progress::default())).await?;
        extracted.finish(&settings())
    }

    /// The restoration fails, and everything is as it was.
    async fn fails(&self) -> Error {
        let before = tree(self.top.path());
        let error = self.restore().await.unwrap_err();
        assert_eq!(tree(self.top.path()), before, "{error}");
        error
    }

    /// The file of an object in the directory store.
    fn object(&self, object: &str) -> PathBuf {
        self.path("archive")
            .join(format!("backups/{}/{object}", self.record.id))
    }
}

fn settings() -> RecoverySettings {
    RecoverySettings {
        restore_command: "walship restore %f %p".to_owned(),
        target: Target::Latest,
        inclusive: true,
        timeline: TimelineId::FIRST,
        action: TargetAction::Pause,
        archiving_off: false,
    }
}

fn write(path: &Path, bytes: usize) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let content: Vec<u8> = (0..bytes).map(|at| (at * at / 7 + bytes) as u8).collect();
    std::fs::write(path, content).unwrap();
}

/// Every file and directory below `top`, with its mode and content.
fn tree(top: &Path) -> BTreeMap<PathBuf, (u32, Option<Vec<u8>>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![top.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in directory.read_dir().unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = metadata.is_file().then(|| std::fs::read(&path).unwrap());
            if metadata.is_dir() {
                open.push(path.clone());
            }
            let name = path.strip_prefix(top).unwrap().to_owned();
            found.insert(name, (metadata.mode() & 0o777, content));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file_comes_back_with_its_mode_and_time() {
    let case = Case::new().await;
    case.restore().await.unwrap();
    let mut restored = tree(&case.path("data"));
    let mut source = tree(&case.path("source"));
    let map = restored.remove(Path::new("tablespace_map")).unwrap().1.unwrap();
    let expected = format!("16384 {}\n", case.path("ts").display());
    assert_eq!(String::from_utf8(map).unwrap(), expected);
    assert!(restored.remove(Path::new("recovery.signal")).is_some());
    for changed in ["tablespace_map", "postgresql.auto.conf"] {
        restored.remove(Path::new(changed));
        source.remove(Path::new(changed));
    }
    assert_eq!(restored, source);
    assert_eq!(tree(&case.path("ts")), tree(&case.path("source_ts")));
    for file in ["base/5/2", "base/5/3", CONTROL] {
        let time = |top: &str| case.path(top).join(file).metadata().unwrap().mtime();
        assert_eq!(time("data"), time("source"), "{file}");
    }
    assert_eq!(case.path("data").metadata().unwrap().mode() & 0o777, 0o750);
}

#[tokio::test]
async fn a_runtime_with_one_thread_is_enough() {
    Case::new().await.restore().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_any_object_is_named_and_leaves_nothing_behind() {
    let case = Case::new().await;
    let mut objects: Vec<String> = vec!["files.zst".to_owned()];
    for (stream, parts) in case.record.streams.iter().enumerate() {
        let key = case.record.stream_key(stream).unwrap();
        objects.extend((1..=parts.parts.len() as u32).map(|n| BackupObject::Part(key, n).to_string()));
    }
    assert!(objects.len() > 15);
    for object in objects {
        let path = case.object(&object);
        let whole = std::fs::read(&path).unwrap();
        let other = std::fs::read(case.object("base/000003.tar.zst")).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for damage in [flipped, whole[..whole.len() - 1].to_vec(), Vec::new(), other] {
            if damage == whole {
                continue;
            }
            std::fs::write(&path, damage).unwrap();
            let error = case.fails().await;
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{object}: {error}");
            assert!(error.to_string().contains(&object), "{object}: {error}");
        }
        std::fs::remove_file(&path).unwrap();
        let error = case.fails().await;
        assert_eq!(error.kind(), ErrorKind::NotFound, "{object}: {error}");
        assert!(error.to_string().contains(&object), "{object}: {error}");
        std::fs::write(&path, whole).unwrap();
    }
    case.restore().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_configuration_files_are_named_and_nothing_is_restored() {
    let mut case = Case::new().await;
    let id = case.record.id.clone();
    let object = fixture::put(&case.store, &id, BackupObject::Configuration, vec![1, 2, 3]).await;
    case.record.configuration = Some(Configuration {
        object,
        data_directory: "/pg".to_owned(),
        config_file: "/etc/postgresql.conf".to_owned(),
    });
    // What it holds is no tar.
    assert_eq!(case.fails().await.kind(), ErrorKind::Corrupt);
    std::fs::write(case.object("configuration.tar.zst"), "other").unwrap();
    let error = case.fails().await;
    assert!(error.to_string().contains("configuration.tar.zst"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_its_end_has_no_pg_control() {
    let case = Case::new().await;
    let record = Arc::new(case.record.clone());
    let restoration = Restoration::prepare(&case.store, record, case.layout())
        .await
        .unwrap();
    assert!(!case.path("data").exists(), "written while preparing");
    let extracted = restoration
        .extract(1, &Arc::new(Progress::default()))
        .await
        .unwrap();
    assert!(!case.path("data").join(CONTROL).exists());
    assert!(case.path("data").join(SET_ASIDE_CONTROL).exists());
    extracted.finish(&settings()).unwrap();
    assert!(!case.path("data").join(SET_ASIDE_CONTROL).exists());
    let error = case.restore().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_counts_every_byte_once() {
    let case = Case::new().await;
    let progress = Arc::new(Progress::default());
    let record = Arc::new(case.record.clone());
    let restoration = Restoration::prepare(&case.store, record, case.layout())
        .await
        .unwrap();
    restoration.extract(2, &progress).await.unwrap();
    let snapshot = progress.snapshot();
    assert_eq!(snapshot.done_bytes, case.record.size_bytes);
    assert_eq!(snapshot.total_bytes, case.record.size_bytes);
}
