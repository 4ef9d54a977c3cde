//! An archive that goes away, or becomes another, while walship works with it: nothing is acknowledged, nothing is
//! called missing, and nothing is written where it was.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use walship_core::ErrorKind;
use walship_store::{Body, Location, PutMode, Store};

use crate::agent::Agent;
use crate::sample::{DataDirectory, Sample};
use crate::store_contract::{block_on, options};
use crate::store_faults::open;
use crate::support::proxy::Proxy;
use crate::support::stores::{Place, TestStore, chosen};
use crate::support::trace::with_fault;
use crate::support::{announce, make_dir, wait_for};

fn push(name: &str) -> [String; 2] {
    ["push".to_owned(), format!("pg_wal/{name}")]
}

/// This cluster has archived before: it begins no archive anew.
fn mark_archived(data: &DataDirectory) {
    let status = make_dir(&data.file("pg_wal"), "archive_status", 0o700);
    for segment in &Sample::shared().segments {
        fs::write(status.join(format!("{segment}.done")), "").unwrap();
    }
}

/// What an unmount leaves: the archive is elsewhere, and its path leads to an empty directory.
fn unmount(path: &Path) -> PathBuf {
    let elsewhere = path.with_extension("elsewhere");
    fs::rename(path, &elsewhere).unwrap();
    make_dir(
        path.parent().unwrap(),
        path.file_name().unwrap().to_str().unwrap(),
        0o700,
    );
    elsewhere
}

fn mount(path: &Path, elsewhere: &Path) {
    assert_eq!(
        fs::read_dir(path).unwrap().count(),
        0,
        "nothing was written into the mount point"
    );
    fs::remove_dir(path).unwrap();
    fs::rename(elsewhere, path).unwrap();
}

// Seen to fail: `directory/root.rs`: `check_in_place` always succeeds
#[test]
fn a_store_says_nothing_of_a_directory_that_its_path_no_longer_leads_to() {
    block_on(async {
        let place = Place::directory();
        let (store, root) = (open(&place).await, place.path().unwrap());
        let body = Body::from_bytes("x");
        for key in ["wal/a", "wal/b"] {
            store.put(key, &body, PutMode::Create).await.unwrap();
        }
        for gone in [true, false] {
            let version = store.head("wal/a").await.unwrap().unwrap().version;
            let elsewhere = unmount(root);
            if gone {
                fs::remove_dir(root).unwrap();
            }
            let errors = [
                store.put("wal/c", &body, PutMode::Create).await.unwrap_err(),
                store.put("wal/a", &body, PutMode::Create).await.unwrap_err(),
                store.put("wal/b", &body, PutMode::Replace).await.unwrap_err(),
                store
                    .put("wal/a", &body, PutMode::ReplaceIf(version))
                    .await
                    .unwrap_err(),
                store.put("new/c", &body, PutMode::Create).await.unwrap_err(),
                store.get("wal/d").await.unwrap_err(),
                store.head("wal/d").await.unwrap_err(),
                store.list("wal/", None).next().await.unwrap_err(),
                store.list("none/", None).next().await.unwrap_err(),
                store.delete(&["wal/d".to_owned()]).await.unwrap_err(),
                store.clock().await.unwrap_err(),
                store.probe_delete().await.unwrap_err(),
            ];
            for error in errors {
                assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
                let says = if gone {
                    "does not exist any more"
                } else {
                    "another directory"
                };
                assert!(error.to_string().contains(says), "{error}");
            }
            if gone {
                fs::create_dir(root).unwrap();
            } else {
                // Who looks anew finds what is there now.
                assert!(store.reopened().list("", None).next().await.unwrap().is_none());
            }
            mount(root, &elsewhere);
            assert_eq!(store.read("wal/a", 1).await.unwrap(), "x");
        }
    });
}

#[test]
fn a_directory_that_is_made_anew_is_not_the_one_that_was_removed() {
    block_on(async {
        let place = Place::directory();
        let (store, root) = (open(&place).await, place.path().unwrap());
        assert!(store.list("", None).next().await.unwrap().is_none());
        // A file system gives the number of a removed directory to the next one, unless somebody holds it.
        fs::remove_dir(root).unwrap();
        fs::create_dir(root).unwrap();
        let error = store.list("", None).next().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    });
}

// Seen to fail: `directory/root.rs`: devices are not compared
#[test]
fn nothing_is_stored_on_another_file_system_below_the_archive() {
    let place = Place::directory();
    let root = place.path().unwrap();
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    if other.path().metadata().unwrap().dev() == root.metadata().unwrap().dev() {
        announce("NOT TESTED: an archive on two file systems (/dev/shm is not one of its own)");
        return;
    }
    block_on(async {
        let store = open(&place).await;
        symlink(other.path(), root.join("wal")).unwrap();
        for key in ["wal/a", "wal/00000001/a"] {
            let error = store
                .put(key, &Body::from_bytes("x"), PutMode::Create)
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            assert!(error.to_string().contains("one file system"), "{error}");
        }
        assert!(store.list("", None).next().await.unwrap().is_none());
    });
}

#[test]
fn with_an_agent_nothing_is_acknowledged_of_an_archive_that_was_unmounted() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let segments = &Sample::shared().segments;
    let agent = Agent::start(&data.walship(&archive), data.path());
    let path = archive.path().unwrap();
    agent.ask().run(&push(&segments[0])).succeeded();
    mark_archived(&data);
    let elsewhere = unmount(path);
    for segment in &segments[1..3] {
        agent.ask().run(&push(segment)).exited(1);
    }
    mount(path, &elsewhere);
    for segment in &segments[1..3] {
        agent.ask().run(&push(segment)).succeeded();
    }
    agent.end();
}

// Seen to fail: `directory/root.rs`: the directory is opened by its path at each use; `agent/known_archive.rs`:
// `release_unused` drops nothing
#[test]
fn an_agent_lets_go_of_a_directory_that_it_does_not_use() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let agent = Agent::start(&data.walship(&archive), data.path());
    agent.ask().run(&push(&Sample::shared().segments[0])).succeeded();
    let path = archive.path().unwrap();
    let held = || {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap();
        let mut open = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        open.any(|open| open.starts_with(path))
    };
    assert!(held(), "it was used a moment ago");
    wait_for("the agent to let go", Duration::from_mins(1), || {
        (!held()).then_some(())
    });
    agent.end();
}

#[test]
fn without_an_agent_nothing_is_acknowledged_that_an_unmount_overtook() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let segments = &Sample::shared().segments;
    let walship = data.walship(&archive);
    walship.run(&push(&segments[0])).succeeded();
    let path = archive.path().unwrap();
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| with_fault(&walship, "fsync:delay_enter=2s", &[], &push(&segments[1])));
        let written = || {
            let folder = path.join(format!("wal/{}/{}", &segments[1][..8], &segments[1][..16]));
            let mut names = fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name());
            names
                .any(|name| name.to_str().unwrap().starts_with(".walship-"))
                .then_some(())
        };
        wait_for("the object to be written", Duration::from_mins(1), written);
        let elsewhere = unmount(path);
        let output = pushing.join().unwrap().exited(1);
        assert!(
            output.stderr.contains("another directory than a moment ago"),
            "{}",
            output.stderr
        );
        mount(path, &elsewhere);
    });
    walship.run(&push(&segments[1])).succeeded();
}

/// On a server in front of which a proxy stands.
fn on_a_server(test: impl FnOnce(&Place, &Proxy)) {
    let server = chosen()
        .iter()
        .find(|store| matches!(store, TestStore::Server(_)));
    let Some(server) = server else {
        return;
    };
    let place = server.new_place();
    let proxy = Proxy::start(place.endpoint().unwrap());
    test(&place.with_env("AWS_ENDPOINT_URL", &proxy.endpoint()), &proxy);
}

fn remove(place: &Place, key: &str) {
    block_on(async {
        let location: Location = place.url.parse().unwrap();
        let store = Store::open(&location, &options(place)).await.unwrap();
        store.delete(&[key.to_owned()]).await.unwrap();
    });
}

// Seen to fail: `archive/identity.rs`: `confirm` does not look
#[test]
fn nothing_is_acknowledged_of_a_bucket_that_was_emptied_meanwhile() {
    on_a_server(|archive, proxy| {
        let (data, segments) = (Sample::shared().copy(), &Sample::shared().segments);
        let walship = data.walship(archive);
        walship.run(&push(&segments[0])).succeeded();
        // Between the look at the archive and the object.
        let held = proxy.hold("PUT", &segments[1]);
        std::thread::scope(|scope| {
            let pushing = scope.spawn(|| walship.run(&push(&segments[1])));
            held.wait();
            remove(archive, "walship.json");
            drop(held);
            let output = pushing.join().unwrap().exited(1);
            assert!(
                output.stderr.contains("walship.json is missing now"),
                "{}",
                output.stderr
            );
        });
    });
}

#[test]
fn with_an_agent_nothing_is_acknowledged_of_a_bucket_that_was_emptied() {
    on_a_server(|archive, proxy| {
        let (data, segments) = (Sample::shared().copy(), &Sample::shared().segments);
        let agent = Agent::start(&data.walship(archive), data.path());
        agent.ask().run(&push(&segments[0])).succeeded();
        proxy.forget();
        agent.ask().run(&push(&segments[1])).succeeded();
        assert_eq!(
            (proxy.count("PUT"), proxy.count("GET"), proxy.requests().len()),
            (1, 1, 2)
        );
        remove(archive, "walship.json");
        // Its own message is not the last word: the process asks for itself, and the cluster remembers its archive.
        let output = agent.ask().run(&push(&segments[2])).exited(1);
        assert!(
            output.stderr.contains("this cluster writes to"),
            "{}",
            output.stderr
        );
        agent.end();
    });
}
