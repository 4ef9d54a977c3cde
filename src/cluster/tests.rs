//! Restorations of made-up clusters from a directory store: whatever goes wrong, it is named, and
//! nothing is left behind.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::SourceConfiguration;
use super::configuration::ConfigurationReport;
use super::destination::{CONTROL, SET_ASIDE_CONTROL};
use super::layout::{Layout, Root, TablespaceMapping};
use super::restore::{Remembers, Restoration};
use super::settings::{RecoverySettings, ServerSettings, TargetAction};
use crate::archive::{Archive, fixture};
use crate::cluster::{destination, remembered};
use crate::error::Result;
use crate::format::Sha256Sum;
use crate::format::backup::{BackupRecord, Configuration};
use crate::format::identity::Identity;
use crate::format::keys::BackupObject;
use crate::format::remembered::{ARCHIVE_FILE, ArchiveMark, CLONE_FILE, CloneMark};
use crate::judge::recovery_plan::Target;
use crate::pg::{ClusterIdentity, Major, SegmentSize, TimelineId};
use crate::progress::Progress;
use crate::store::{FaultKind, Faults, Operation, Store};
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
        Self::with(None).await
    }

    /// One whose source is a clone, with this mark.
    async fn with(mark: Option<&str>) -> Self {
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
        if let Some(mark) = mark {
            std::fs::write(data.join(CLONE_FILE), mark).unwrap();
            std::fs::write(data.join(ARCHIVE_FILE), "the source's").unwrap();
        }
        let store = fixture::store(top.path()).await;
        let record = fixture::store_backup(&store, &[&space, &data], PART_BYTES).await;
        Self { top, store, record }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    fn mapping(&self) -> TablespaceMapping {
        TablespaceMapping {
            old: self.path("source_ts"),
            new: self.path("ts"),
        }
    }

    fn layout(&self) -> Layout {
        Layout::new(&self.path("data"), &self.record, &[self.mapping()]).unwrap()
    }

    fn archive(&self) -> Archive {
        fixture::archive(&self.store)
    }

    async fn prepare(&self) -> Result<Restoration> {
        Restoration::prepare(
            &self.archive(),
            Arc::new(self.record.clone()),
            self.layout(),
            SourceConfiguration::Kept,
        )
        .await
    }

    async fn restore(&self) -> Result<ConfigurationReport> {
        let extracted = self.prepare().await?.extract(3, &progress()).await?;
        extracted.finish(&settings(), &remembers())
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

fn progress() -> Arc<Progress> {
    Arc::new(Progress::default())
}

fn settings() -> ServerSettings {
    ServerSettings::Recovery(RecoverySettings {
        restore_command: "walship restore %f %p".to_owned(),
        target: Target::Latest,
        inclusive: true,
        timeline: TimelineId::FIRST,
        action: TargetAction::Pause,
        copy: crate::judge::copy_settings::Copy::Replacement,
        postgres_version: "17.11".to_owned(),
    })
}

fn remembers() -> Remembers {
    let source = Identity::new(fixture_cluster(), true, chrono::DateTime::UNIX_EPOCH);
    Remembers::Own(ArchiveMark::of("u".to_owned(), &source))
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
    for changed in ["tablespace_map", "postgresql.auto.conf", ARCHIVE_FILE] {
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

/// Until then no server can start on it: a kill in between leaves no clone without its mark.
// Seen to fail: `cluster/restore.rs`: no mark is written before `pg_control`
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_has_its_mark_beside_its_sources_before_a_server_can_start() {
    let at = |seconds| {
        Identity::new(
            fixture_cluster(),
            true,
            chrono::DateTime::from_timestamp(seconds, 0).unwrap(),
        )
    };
    let (first, second, third) = (at(1), at(2), at(3));
    let mark = CloneMark::of("s3://b/second".to_owned(), &second);
    let copy = Remembers::Source(mark, None);
    let sources = serde_json::to_string(&CloneMark::of("s3://b/first".to_owned(), &first)).unwrap();
    let case = Case::with(Some(&sources)).await;
    let extracted = case
        .prepare()
        .await
        .unwrap()
        .extract(3, &progress())
        .await
        .unwrap();
    extracted.finish(&settings(), &copy).unwrap();
    let data = case.path("data");
    for archive in [&first, &second] {
        remembered::check(&data, archive, "u").unwrap_err();
    }
    remembered::check(&data, &third, "u").unwrap();
    assert!(!data.join(ARCHIVE_FILE).exists());
    assert_eq!(data.join(CLONE_FILE).metadata().unwrap().mode() & 0o777, 0o640);

    // Where the mark cannot be written, there is no server to start.
    let case = Case::with(Some("{")).await;
    let before = tree(case.top.path());
    let extracted = case
        .prepare()
        .await
        .unwrap()
        .extract(3, &progress())
        .await
        .unwrap();
    extracted.finish(&settings(), &copy).unwrap_err();
    assert_eq!(tree(case.top.path()), before);
}

/// The same backup restored as each kind of copy, beside what its source remembered.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_directory_remembers_what_it_may_write_to_and_not_what_its_source_did() {
    let archive = |seconds| {
        let created_at = chrono::DateTime::from_timestamp(seconds, 0).unwrap();
        Identity::new(fixture_cluster(), true, created_at)
    };
    let (first, source, own, other) = (archive(1), archive(2), archive(3), archive(4));
    let mark_of = |identity| ArchiveMark::of("u".to_owned(), identity);
    let copy_of = |identity| CloneMark::of("u".to_owned(), identity);
    // The archive that its source must not write to, and the one that it must not write to itself.
    let before = serde_json::to_string(&copy_of(&first)).unwrap();
    for (remembers, allowed) in [
        (Remembers::Own(mark_of(&source)), Some(&source)),
        (Remembers::Own(mark_of(&first)), Some(&first)),
        (Remembers::Source(copy_of(&source), None), None),
        (
            Remembers::Source(copy_of(&source), Some(mark_of(&own))),
            Some(&own),
        ),
    ] {
        let case = Case::with(Some(&before)).await;
        let extracted = case
            .prepare()
            .await
            .unwrap()
            .extract(3, &progress())
            .await
            .unwrap();
        extracted.finish(&settings(), &remembers).unwrap();
        let data = case.path("data");
        for identity in [&first, &source, &own, &other] {
            let checked = remembered::check(&data, identity, "u");
            // A copy without an archive may begin one that nobody knew of.
            let is_new = allowed.is_none() && [&own, &other].contains(&identity);
            let is_allowed = allowed == Some(identity) || is_new;
            assert_eq!(checked.is_ok(), is_allowed, "{remembers:?} {identity:?}");
        }
    }
}

fn fixture_cluster() -> ClusterIdentity {
    ClusterIdentity {
        system_identifier: 1,
        postgres_major: Major::V17,
        segment_size: SegmentSize::DEFAULT,
    }
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
        hba_file: "/etc/pg_hba.conf".to_owned(),
        ident_file: "/etc/pg_ident.conf".to_owned(),
    });
    // Its content is not a tar.
    assert_eq!(case.fails().await.kind(), ErrorKind::Corrupt);
    std::fs::write(case.object("configuration.tar.zst"), "other").unwrap();
    let error = case.fails().await;
    assert!(error.to_string().contains("configuration.tar.zst"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_restoration_has_no_pg_control() {
    let case = Case::new().await;
    let restoration = case.prepare().await.unwrap();
    assert!(!case.path("data").exists(), "written while preparing");
    let extracted = restoration.extract(1, &progress()).await.unwrap();
    assert!(!case.path("data").join(CONTROL).exists());
    assert!(case.path("data").join(SET_ASIDE_CONTROL).exists());
    extracted.finish(&settings(), &remembers()).unwrap();
    assert!(!case.path("data").join(SET_ASIDE_CONTROL).exists());
    let error = case.restore().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_counts_every_byte_once() {
    let case = Case::new().await;
    let progress = progress();
    let restoration = case.prepare().await.unwrap();
    restoration.extract(2, &progress).await.unwrap();
    let snapshot = progress.snapshot();
    assert_eq!(snapshot.done_bytes, case.record.size_bytes);
    assert_eq!(snapshot.total_bytes, case.record.size_bytes);
}

/// A small file system of its own, unmounted when dropped. Only root can make one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir(&at).unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "walship-test"])
            .arg(&at)
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(at));
        }
        println!("NOT TESTED: a full disk, because no file system can be mounted here");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_too_small_is_seen_before_anything_is_written() {
    let case = Case::new().await;
    let Some(disk) = SmallDisk::mount(case.path("disk"), "1m") else {
        return;
    };
    let layout = Layout::new(&disk.0.join("data"), &case.record, &[case.mapping()]).unwrap();
    let record = Arc::new(case.record.clone());
    let error = Restoration::prepare(&case.archive(), record, layout, SourceConfiguration::Kept)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    let text = error.to_string();
    assert!(
        text.contains("has 1.0 MiB free") && text.contains("needs 32."),
        "{text}"
    );
    assert_eq!(disk.0.read_dir().unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_meanwhile_ends_the_recovery_and_leaves_nothing() {
    let case = Case::new().await;
    let Some(disk) = SmallDisk::mount(case.path("disk"), "40m") else {
        return;
    };
    let data = disk.0.join("data");
    std::fs::create_dir(&data).unwrap();
    let layout = Layout::new(&data, &case.record, &[case.mapping()]).unwrap();
    let record = Arc::new(case.record.clone());
    let restoration = Restoration::prepare(&case.archive(), record, layout, SourceConfiguration::Kept)
        .await
        .unwrap();
    // Somebody else takes all but 50 kB.
    std::fs::write(disk.0.join("other"), vec![1; (40 << 20) - 50_000]).unwrap();
    let error = restoration.extract(3, &progress()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("no space left"), "{error}");
    assert!(!case.path("ts").exists(), "a tablespace was left behind");
    assert_eq!(data.read_dir().unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_not_empty_is_refused_at_once_and_untouched() {
    for name in ["data", "ts"] {
        let case = Case::new().await;
        write(&case.path(name).join("precious"), 10);
        let before = tree(case.top.path());
        let error = case.prepare().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{name}: {error}");
        assert_eq!(tree(case.top.path()), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_appears_in_a_directory_meanwhile_is_untouched() {
    for name in ["data", "ts"] {
        let case = Case::new().await;
        let restoration = case.prepare().await.unwrap();
        write(&case.path(name).join("precious"), 10);
        let before = tree(case.top.path());
        let error = restoration.extract(1, &progress()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{name}: {error}");
        assert_eq!(tree(case.top.path()), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_another_backup_is_refused() {
    let mut case = Case::new().await;
    case.record.files.sha256 = Sha256Sum::of(b"another");
    assert_eq!(case.fails().await.kind(), ErrorKind::Corrupt);
}

// Seen to fail: `cluster/extract.rs`: one look
#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_breaks_off_is_fetched_again_and_counted_once() {
    let mut case = Case::new().await;
    let faults = Faults::default();
    let patience = std::time::Duration::from_mins(1);
    case.store = case.store.with_faults(faults.clone()).with_retry_time(patience);
    let restoration = case.prepare().await.unwrap();
    for kind in [FaultKind::Short, FaultKind::Short, FaultKind::Corrupt] {
        faults.add(Operation::Get, "base/000004.tar.zst", kind);
    }
    let progress = progress();
    let extracted = restoration.extract(2, &progress).await.unwrap();
    extracted.finish(&settings(), &remembers()).unwrap();
    assert_eq!(faults.left(), 0);
    assert_eq!(progress.snapshot().done_bytes, case.record.size_bytes);
    let file = |top: &str| std::fs::read(case.path(top).join("base/5/2")).unwrap();
    assert!(file("data") == file("source"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_keeps_breaking_off_ends_the_recovery() {
    let mut case = Case::new().await;
    let faults = Faults::default();
    case.store = case.store.with_faults(faults.clone());
    faults.add(Operation::Get, "base/000004.tar.zst", FaultKind::Short);
    let error = case.fails().await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("base/000004.tar.zst"), "{error}");
}

// Seen to fail: `cluster/destination.rs`: no `refuse_inside_a_cluster`
#[test]
fn a_copy_is_not_made_inside_another_cluster() {
    for (within, says) in [
        ("PG_VERSION", "a data directory"),
        ("PG_17_202406281", "a tablespace"),
    ] {
        let outer = tempfile::tempdir().unwrap();
        std::fs::create_dir(outer.path().join(within)).unwrap();
        let data = outer.path().join("copies/data");
        std::fs::create_dir(outer.path().join("copies")).unwrap();
        let root = Root {
            directory: data.clone(),
            tablespace: None,
        };
        let layout = Layout {
            data: data.clone(),
            roots: vec![root],
        };
        let refused = destination::check(&layout).unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
        std::fs::remove_dir(outer.path().join(within)).unwrap();
        destination::check(&layout).unwrap();
    }
}
