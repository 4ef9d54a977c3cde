//! That nothing is acknowledged before it is durable: the order of the system calls of the built
//! binary, and what it makes of a disk that refuses or hangs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use walship_core::pg::Major;

use crate::recover::lost_its_configuration;
use crate::recovery::take_backup;
use crate::sample::Sample;
use crate::server::{archiving_primary, wait_archived};
use crate::support::postgres::Cluster;
use crate::support::scratch;
use crate::support::stores::Place;
use crate::support::trace::{Call, Trace, faulted, with_fault};
use crate::support::walship::Walship;

const WRITES: [&str; 5] = ["write", "writev", "pwrite64", "pwritev", "pwritev2"];
const NEW_NAMES: [&str; 5] = ["rename", "renameat", "renameat2", "link", "linkat"];
const DIRECTORIES: [&str; 2] = ["mkdir", "mkdirat"];
const REMOVALS: [&str; 3] = ["unlink", "unlinkat", "rmdir"];

fn push(name: &str) -> [String; 2] {
    ["push".to_owned(), format!("pg_wal/{name}")]
}

fn object(place: &Place, segment: &str) -> PathBuf {
    let key = format!("wal/{}/{}/{segment}.zst", &segment[..8], &segment[..16]);
    place.path().unwrap().join(key)
}

/// The calls that gave an object of this archive its name, each of them checked: its content was
/// fsynced before, its directory and those above it after, and everything before the end.
fn durably_published(trace: &Trace, root: &Path) -> Vec<PathBuf> {
    let within = |call: &&Call| call.target().starts_with(root);
    let published: Vec<&Call> = trace.calls(&NEW_NAMES).filter(within).collect();
    for call in &published {
        assert_written_durably(trace, call);
        assert_directories_synced(trace, root, call);
    }
    for made in trace.calls(&DIRECTORIES).filter(within) {
        let parent = made.target().parent().unwrap();
        assert!(
            trace.is_synced(parent, made.ended, trace.end()),
            "{} was not fsynced after {made:?}",
            parent.display()
        );
    }
    published.iter().map(|call| call.target().to_owned()).collect()
}

/// The content of what gets a name here was fsynced before.
fn assert_written_durably(trace: &Trace, call: &Call) {
    let written = trace
        .calls(&WRITES)
        .filter(|write| write.path() == call.path() && write.ended < call.begun)
        .map(|write| write.ended)
        .max();
    let written = written.unwrap_or_else(|| panic!("nothing was written before {call:?}"));
    assert!(
        trace.is_synced(call.path(), written, call.begun),
        "the content was not fsynced before {call:?}"
    );
}

fn assert_directories_synced(trace: &Trace, root: &Path, change: &Call) {
    let directory = change.target().parent().unwrap();
    for above in directory.ancestors().take_while(|above| above.starts_with(root)) {
        assert!(
            trace.is_synced(above, change.ended, trace.end()),
            "{} was not fsynced after {change:?}",
            above.display()
        );
    }
}

// Seen to fail: `directory/publication.rs`: no `sync_all`; no `sync_up_to` after publishing, or for the nearest folder
// only; no `sync_up_to` before a conflict is reported
#[test]
fn a_push_is_acknowledged_only_when_file_and_directories_are_fsynced() {
    let (data, place) = (Sample::shared().copy(), Place::directory());
    let root = place.path().unwrap().join("new");
    let archive = place.with_url(&format!("file://{}", root.display()));
    let walship = data.walship(&archive);
    let segment = &Sample::shared().segments[0];
    let (output, trace) = Trace::of(&walship, &push(segment));
    output.succeeded();
    let object = object(&archive, segment);
    let published = durably_published(&trace, &root);
    assert_eq!(
        published,
        [
            root.join("walship.probe"),
            root.join("walship.json"),
            object.clone()
        ]
    );

    // Who finds the same content there cannot know whether it was fsynced by who wrote it.
    let (output, trace) = Trace::of(&walship, &push(segment));
    output.succeeded();
    let folder = root.join(&object);
    for above in folder
        .ancestors()
        .skip(1)
        .take_while(|above| above.starts_with(&root))
    {
        assert!(trace.is_synced(above, 0, trace.end()), "{}", above.display());
    }
}

// Seen to fail: `directory/root.rs`: no `sync_parent`
#[test]
fn the_archives_own_directory_is_durable_even_where_another_made_it_and_crashed() {
    let (data, place) = (Sample::shared().copy(), Place::directory());
    let segment = &Sample::shared().segments[0];
    let (output, trace) = Trace::of(&data.walship(&place), &push(segment));
    output.succeeded();
    let parent = place.path().unwrap().parent().unwrap();
    assert!(trace.is_synced(parent, 0, trace.end()));
}

// Seen to fail: `directory/root.rs`: the failed fsync of a directory is ignored
#[test]
fn an_fsync_that_fails_is_no_success() {
    let (data, place) = (Sample::shared().copy(), Place::directory());
    let segments = &Sample::shared().segments;
    let walship = data.walship(&place);
    walship.run(&push(&segments[0])).succeeded();
    let object = object(&place, &segments[1]);
    let archive = place.path().unwrap();
    let remembered = data.path().join("walship.archive");
    // The directory that the archive's own is in, that one, and those down to the object's.
    let directories = object.ancestors().skip(1);
    let directories = directories.take_while(|above| Some(*above) != archive.parent());
    let mut expected: BTreeSet<PathBuf> = directories.map(Path::to_owned).collect();
    expected.extend([archive.parent().unwrap().to_owned(), object.clone()]);
    let mut refused = BTreeSet::new();
    // The calls are counted in each thread by itself, and which thread makes them is the runtime's affair.
    for which in (1..=expected.len()).cycle().take(100 * expected.len()) {
        // The first push of a cluster is the one that sees to the directory that the archive's own is in.
        let _ = std::fs::remove_file(&remembered);
        let fault = format!("fsync:error=EIO:when={which}");
        let (output, at) = faulted(&walship, &fault, &[], &push(&segments[1]));
        if at.is_empty() {
            output.succeeded();
        } else {
            let output = output.exited(1);
            let named = ["fsync", "walship.archive"]
                .iter()
                .any(|word| output.stderr.contains(word));
            assert!(named, "{}", output.stderr);
            walship.run(&push(&segments[1])).succeeded();
        }
        // The object's file has a name of its own until it is published.
        let names = at
            .into_iter()
            .filter(|path| !path.starts_with(data.path()))
            .map(|path| if path.is_dir() { path } else { object.clone() });
        refused.extend(names);
        std::fs::remove_file(&object).unwrap();
        if refused == expected {
            break;
        }
    }
    assert_eq!(refused, expected);
}

// Seen to fail: `crates/store/src/directory.rs`: no time limit
#[test]
fn a_file_system_that_hangs_ends_in_an_error_in_time() {
    let (data, place) = (Sample::shared().copy(), Place::directory());
    let segments = &Sample::shared().segments;
    let walship = data
        .walship(&place)
        .env("WALSHIP_PUSH_TIMEOUT", "2s")
        .env("WALSHIP_RESTORE_TIMEOUT", "2s");
    let stored = &segments[0];
    walship.run(&push(stored)).succeeded();
    let object = object(&place, stored);
    let restore = ["restore", stored, "pg_wal/RECOVERYXLOG"];
    // Without a limit both would succeed, after this time; strace keeps even a dead process so long.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let output = with_fault(&walship, "fsync:delay_enter=8s", &[], &push(&segments[1])).exited(1);
            assert!(output.stderr.contains("did not answer"), "{}", output.stderr);
        });
        let output = with_fault(&walship, "read:delay_enter=8s", &[&object], &restore).exited(200);
        assert!(output.stderr.contains("did not answer"), "{}", output.stderr);
    });
}

/// A small primary with a tablespace, its archive, and a base backup in it.
fn backed_up(place: &Place) -> (Cluster, Walship, PathBuf) {
    let walship = Walship::at(place);
    let primary = archiving_primary(Major::V17, &walship);
    let tablespace = primary.make_dir("ts");
    primary.sql(&format!(
        "create tablespace ts location '{}'",
        tablespace.display()
    ));
    primary.sql("create table t tablespace ts as select generate_series(1, 1000)");
    take_backup(&walship, &primary);
    let segment = primary.switch_wal();
    wait_archived(&primary, &segment);
    (primary, walship, tablespace)
}

// Seen to fail: `cluster/restore.rs`: no `syncfs`; `syncfs` after `pg_control` has its name; no fsync of `global`
#[test]
fn a_recovered_directory_can_be_started_only_when_everything_in_it_is_on_disk() {
    let place = Place::directory();
    let (_primary, walship, tablespace) = backed_up(&place);
    let top = scratch();
    let (data, moved) = (top.path().join("data"), top.path().join("ts"));
    let mapping = format!("{}={}", tablespace.display(), moved.display());
    let arguments = [
        "recover",
        "--pgdata",
        data.to_str().unwrap(),
        "--tablespace-mapping",
        &mapping,
    ];
    let (output, trace) = Trace::of(&walship, &arguments);
    output.succeeded();

    let control = data.join("global/pg_control");
    let released: Vec<&Call> = trace
        .calls(&NEW_NAMES)
        .filter(|call| call.target() == control)
        .collect();
    let [released] = released[..] else {
        panic!("pg_control got its name {} times", released.len())
    };
    let restored = |call: &Call| [&data, &moved].iter().any(|root| call.target().starts_with(root));
    let changes: Vec<&Call> = trace
        .calls(&WRITES)
        .chain(trace.calls(&DIRECTORIES))
        .chain(trace.calls(&REMOVALS))
        .chain(
            trace
                .calls(&["openat"])
                .filter(|call| call.arguments.contains("O_CREAT")),
        )
        .filter(|call| restored(call))
        .collect();
    assert!(changes.len() > 900, "{} calls", changes.len());
    let last = changes.iter().map(|call| call.ended).max().unwrap();
    for root in [&data, &moved] {
        let synced = trace
            .calls(&["syncfs"])
            .any(|call| call.path() == root && call.begun > last && call.ended < released.begun);
        assert!(
            synced,
            "{} was not synced between the last change and pg_control",
            root.display()
        );
    }
    assert!(trace.is_synced(&data.join("global"), released.ended, trace.end()));
}

// Seen to fail: `cluster/configuration.rs`: no fsync of the file; no fsync of its folder
#[test]
fn a_configuration_file_is_put_back_durably() {
    let place = Place::directory();
    let (_primary, walship, etc) = lost_its_configuration(&place);
    let top = scratch();
    let data = top.path().join("data");
    let (output, trace) = Trace::of(&walship, &["recover", "--pgdata", data.to_str().unwrap()]);
    output.succeeded();
    let lost = etc.join("pg_hba.conf");
    let named = |path: &Path| {
        let mut calls = trace.calls(&NEW_NAMES).filter(|call| call.target() == path);
        calls
            .next()
            .unwrap_or_else(|| panic!("{} got no name", path.display()))
    };
    let (put_back, released) = (named(&lost), named(&data.join("global/pg_control")));
    assert_written_durably(&trace, put_back);
    assert!(trace.is_synced(&etc, put_back.ended, released.begun));
}

// Seen to fail: `cluster/extract.rs`: a failed sync is ignored
#[test]
fn a_failing_sync_leaves_nothing_that_starts() {
    let place = Place::directory();
    let (_primary, walship, tablespace) = backed_up(&place);
    let top = scratch();
    let (data, moved) = (top.path().join("data"), top.path().join("ts"));
    let mapping = format!("{}={}", tablespace.display(), moved.display());
    let arguments = [
        "recover",
        "--pgdata",
        data.to_str().unwrap(),
        "--tablespace-mapping",
        &mapping,
    ];
    let output = with_fault(&walship, "syncfs:error=EIO", &[], &arguments).exited(1);
    assert!(output.stderr.contains("syncfs"), "{}", output.stderr);
    assert!(!data.exists() && !moved.exists());
}

// Seen to fail: `directory/deletion.rs`: the folder is not fsynced
#[test]
fn what_a_base_backup_stores_and_removes_is_durable_when_it_reports_success() {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let primary = archiving_primary(Major::V17, &walship);
    let conninfo = primary.conninfo();
    let (output, trace) = Trace::of(&walship, &["basebackup", "-d", &conninfo, "--json"]);
    output.succeeded();
    let root = place.path().unwrap();
    let published = durably_published(&trace, root);
    let position = |name: &str| published.iter().position(|path| path.ends_with(name));
    let record = position("backup.json").unwrap();
    for earlier in ["started.json", "manifest.zst", "files.zst", "base/000001.tar.zst"] {
        assert!(position(earlier).unwrap() < record, "{published:?}");
    }
    let removed: Vec<&Call> = trace
        .calls(&REMOVALS)
        .filter(|call| call.target().starts_with(root.join("backups")))
        .collect();
    assert!(
        removed.iter().any(|call| call.target().ends_with("alive.json")),
        "{removed:?}"
    );
    for call in removed {
        let directory = call.target().parent().unwrap();
        assert!(trace.is_synced(directory, call.ended, trace.end()), "{call:?}");
    }
}
