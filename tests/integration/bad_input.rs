//! Bad input: one line that names the thing and the way out, and the documented exit code.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use walship_core::pg::Major;

use crate::connection::{set_hba, started};
use crate::recovery::History;
use crate::sample::{DataDirectory, Sample};
use crate::support::postgres::{Cluster, Stop};
use crate::support::process::Output;
use crate::support::proxy::{Fault, Proxy};
use crate::support::stores::{self, Kind, Place, StoreServer, TestStore};
use crate::support::walship::Walship;
use crate::support::{announce, give_to_user, make_dir, scratch, sealed};

/// Ended with this code, silent on stdout, with one line that says all of this.
#[track_caller]
fn refused(output: Output, code: i32, says: &[&str]) {
    let output = output.exited(code);
    assert_eq!(
        output.stderr.trim_end().lines().count(),
        1,
        "one line: {output:#?}"
    );
    assert_eq!(output.stdout, "", "{output:#?}");
    for part in says {
        assert!(
            output.stderr.contains(part),
            "should say {part:?}: {}",
            output.stderr
        );
    }
}

/// The three commands that meet a store first, each with the code that its caller understands.
#[track_caller]
fn every_command_says(place: &Place, change: impl Fn(Walship) -> Walship, list_code: i32, says: &[&str]) {
    let data = Sample::shared().copy();
    let name = &Sample::shared().segments[0];
    let walship = change(data.walship(place))
        .env("WALSHIP_PUSH_TIMEOUT", "5s")
        .env("WALSHIP_RESTORE_TIMEOUT", "5s")
        .env("WALSHIP_S3_TIMEOUT", "5s");
    refused(walship.run(&["list"]), list_code, says);
    refused(walship.run(&["push", &format!("pg_wal/{name}")]), 1, says);
    refused(walship.run(&["restore", name, "pg_wal/RECOVERYXLOG"]), 200, says);
}

fn servers(kinds: &[Kind]) -> Vec<&'static StoreServer> {
    kinds
        .iter()
        .filter(|kind| stores::chosen().contains(&TestStore::Server(**kind)))
        .map(|kind| StoreServer::shared(*kind))
        .collect()
}

#[test]
fn a_url_that_is_none_says_what_one_looks_like() {
    for (url, says) in [
        ("s3://", "bucket"),
        ("s3:///prefix", "bucket"),
        ("ftp://host/x", "s3://"),
        ("/srv/archive", "file://"),
        ("file://relative", "file:///"),
    ] {
        every_command_says(
            &Place::directory().with_url(url),
            |walship| walship,
            2,
            &["archive", says],
        );
    }
    let data = Sample::shared().copy();
    refused(
        Walship::without_archive().in_dir(data.path()).run(&["list"]),
        2,
        &["WALSHIP_ARCHIVE"],
    );
}

#[test]
fn a_missing_bucket_is_named() {
    for server in servers(&[Kind::MinIo, Kind::LocalStack]) {
        let place = server.new_place().with_url("s3://walship-no-such-bucket/prefix");
        every_command_says(&place, |walship| walship, 2, &["walship-no-such-bucket"]);
    }
}

#[test]
fn wrong_keys_are_told_from_an_outage() {
    for server in servers(&[Kind::MinIo, Kind::SeaweedFs]) {
        let place = server.new_place().with_env("AWS_SECRET_ACCESS_KEY", "wrong");
        every_command_says(&place, |walship| walship, 6, &["secret"]);
        let place = server.new_place().with_env("AWS_ACCESS_KEY_ID", "AKIANOBODY");
        every_command_says(&place, |walship| walship, 6, &["key"]);
    }
}

#[test]
fn without_credentials_it_says_so_and_soon() {
    for server in servers(&[Kind::MinIo]) {
        let place = server.new_place();
        let before = Instant::now();
        every_command_says(
            &place,
            |walship| {
                walship
                    .env_remove("AWS_ACCESS_KEY_ID")
                    .env_remove("AWS_SECRET_ACCESS_KEY")
                    .env("AWS_EC2_METADATA_DISABLED", "true")
            },
            6,
            &["credentials"],
        );
        assert!(
            before.elapsed() < Duration::from_secs(30),
            "{:?}",
            before.elapsed()
        );
    }
}

#[test]
fn a_clock_that_is_off_by_a_day_stops_nothing() {
    let library = ["x86_64", "aarch64"]
        .map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1"))
        .into_iter()
        .find(|path| Path::new(path).exists());
    let Some(library) = library else {
        announce("NOT TESTED: a clock that is off (libfaketime is missing: apt-get install faketime)");
        return;
    };
    let skewed = |walship: Walship, offset: &str| {
        walship
            .env("LD_PRELOAD", &library)
            .env("FAKETIME", offset)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    };
    let name = &Sample::shared().segments[0];
    for server in servers(&[Kind::MinIo]) {
        for offset in ["-1d", "+1d"] {
            let data = Sample::shared().copy();
            let place = server.new_place();
            let proxy = Proxy::start(&server.endpoint);
            let place = place.with_env("AWS_ENDPOINT_URL", &proxy.endpoint());
            // The SDK learns the server's time from its refusal and signs anew.
            let walship = skewed(data.walship(&place), offset);
            walship.run(&["push", &format!("pg_wal/{name}")]).succeeded();
            let asked = proxy.count("PUT") + proxy.count("GET");
            walship.run(&["restore", name, "pg_wal/RECOVERYXLOG"]).succeeded();
            assert_eq!(
                fs::read(data.segment("RECOVERYXLOG")).unwrap(),
                fs::read(data.segment(name)).unwrap()
            );
            proxy.forget();
            data.walship(&place)
                .run(&["restore", name, "pg_wal/AGAIN"])
                .succeeded();
            let needed = proxy.count("GET");
            proxy.forget();
            walship.run(&["restore", name, "pg_wal/ONCE_MORE"]).succeeded();
            assert!(
                proxy.count("GET") > needed,
                "no request was refused ({asked}): is the clock off at all?"
            );
        }
    }
}

/// How long push and restore take against this store with three seconds each, and what they say.
fn ends_in_time(place: &Place, says: &[&str]) {
    let data = Sample::shared().copy();
    let name = &Sample::shared().segments[0];
    let walship = data
        .walship(place)
        .env("WALSHIP_PUSH_TIMEOUT", "3s")
        .env("WALSHIP_RESTORE_TIMEOUT", "3s");
    for (arguments, code) in [
        (vec!["push".to_owned(), format!("pg_wal/{name}")], 1),
        (
            vec!["restore".to_owned(), name.clone(), "pg_wal/RECOVERYXLOG".into()],
            200,
        ),
    ] {
        let before = Instant::now();
        let output = walship.run(&arguments);
        let took = before.elapsed();
        refused(output, code, says);
        assert!(took < Duration::from_secs(8), "{arguments:?} took {took:?}");
        assert!(
            took > Duration::from_secs(1),
            "{arguments:?} gave up after {took:?}"
        );
    }
}

#[test]
fn a_store_that_cannot_be_reached_ends_push_and_restore_in_time() {
    for server in servers(&[Kind::SeaweedFs]) {
        let refusing = server
            .new_place()
            .with_env("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
        ends_in_time(&refusing, &["127.0.0.1:9"]);
        let proxy = Proxy::start(&server.endpoint);
        proxy.set(Fault::BlackHole);
        let silent = server.new_place().with_env("AWS_ENDPOINT_URL", &proxy.endpoint());
        ends_in_time(&silent, &[proxy.endpoint().trim_start_matches("http://")]);
    }
}

#[test]
fn an_archive_that_is_none_is_never_an_empty_one() {
    let place = Place::directory();
    let root = scratch();
    let data = root.path().join("data");
    for arguments in [
        vec!["list"],
        vec!["list", "--json"],
        vec!["recover", "--pgdata", data.to_str().unwrap()],
        vec!["basebackup", "--finish", "20260101T000000Z"],
    ] {
        refused(
            Walship::at(&place).run(&arguments),
            2,
            &["walship.json", &place.url],
        );
    }
    assert!(!data.exists());
}

#[test]
fn an_archive_of_a_newer_format_is_read_by_no_command() {
    let place = copy_of_archive(shared());
    let identity = place.path().unwrap().join("walship.json");
    let text = fs::read_to_string(&identity).unwrap();
    let newer = text.replace("\"format_version\": 1", "\"format_version\": 2");
    assert_ne!(newer, text);
    fs::write(&identity, sealed(newer)).unwrap();
    let root = scratch();
    let data = root.path().join("data");
    let server = started(Major::V17, &[]);
    let conninfo = server.conninfo();
    for arguments in [
        vec!["list"],
        vec!["recover", "--pgdata", data.to_str().unwrap()],
        vec!["basebackup", "-d", &conninfo],
    ] {
        refused(
            Walship::at(&place).run(&arguments),
            2,
            &["format version 2", "walship.json", "install"],
        );
    }
    assert!(!data.exists());
}

#[test]
fn another_clusters_archive_is_refused() {
    let place = copy_of_archive(shared());
    let stranger = Sample::shared().copy();
    let push = format!("pg_wal/{}", Sample::shared().segments[0]);
    refused(
        stranger.walship(&place).run(&["push", &push]),
        1,
        &["system identifier", &place.url],
    );
    // The same for a recovery that asks for WAL in the wrong archive: never the end of its WAL.
    for name in [Sample::shared().segments[0].as_str(), "0000000100000000000000F0"] {
        refused(
            stranger
                .walship(&place)
                .run(&["restore", name, "pg_wal/RECOVERYXLOG"]),
            200,
            &["system identifier"],
        );
    }
    let other = started(Major::V17, &[]);
    refused(
        Walship::at(&place).run(&["basebackup", "-d", &other.conninfo()]),
        2,
        &["system identifier"],
    );
}

#[test]
fn a_directory_that_is_no_data_directory_is_named() {
    let place = Place::directory();
    let root = scratch();
    let folder = make_dir(root.path(), "not-data", 0o700);
    make_dir(&folder, "pg_wal", 0o700);
    fs::write(folder.join("pg_wal/00000002.history"), "1\t0/3000000\tx\n").unwrap();
    refused(
        Walship::at(&place)
            .in_dir(&folder)
            .run(&["push", "pg_wal/00000002.history"]),
        1,
        &["pg_control", folder.to_str().unwrap()],
    );
}

#[test]
fn a_server_that_cannot_be_backed_up_is_told_what_to_set() {
    let place = Place::directory();
    let minimal = started(Major::V17, &[("wal_level", "minimal"), ("max_wal_senders", "0")]);
    let backup = |cluster: &Cluster| Walship::at(&place).run(&["basebackup", "-d", &cluster.tcp_conninfo()]);
    let output = backup(&minimal);
    assert_ne!(output.code, Some(0));
    let code = output.code.unwrap();
    refused(output, code, &["max_wal_senders", "wal_level"]);
    drop(minimal);

    let strict = started(Major::V17, &[]);
    set_hba(&strict, "host all all 127.0.0.1/32 trust");
    refused(backup(&strict), 6, &["pg_hba.conf", "host replication"]);
    let output = Walship::at(&place).run(&["basebackup", "-d", "host=/nowhere port=5999 user=x"]);
    refused(output, 5, &["/nowhere", "5999"]);
    assert_eq!(fs::read_dir(place.path().unwrap()).unwrap().count(), 0);
}

#[test]
fn words_that_walship_does_not_know_are_answered_with_those_it_does() {
    let place = Place::directory();
    let root = scratch();
    let file = root.path().join("walship.toml");
    let config = |text: &str| {
        fs::write(&file, text).unwrap();
        Walship::at(&place).env("WALSHIP_CONFIG", &file).run(&["list"])
    };
    refused(
        config("[push]\ntimeoot = \"3s\"\n"),
        2,
        &["push.timeoot", "push.timeout"],
    );
    refused(config("archiv = \"file:///x\"\n"), 2, &["archiv", "archive"]);
    refused(config("[push]\ntimeout = 3\n"), 2, &["push.timeout"]);
    refused(config("[push\n"), 2, &["walship.toml"]);
    let walship = Walship::at(&place);
    refused(
        walship.run(&["basebackup", "-d", "hots=localhost"]),
        2,
        &["hots", "host"],
    );
    refused(
        walship.clone().env("WALSHIP_PUSH_TIMEOUT", "soon").run(&["list"]),
        2,
        &["push.timeout", "environment", "soon"],
    );
    refused(
        walship.run(&["--config", "/nonexistent/walship.toml", "list"]),
        2,
        &["/nonexistent/walship.toml"],
    );
}

/// An archived primary with a backup, for tests that change nothing in it.
fn shared() -> &'static History {
    static HISTORY: OnceLock<History> = OnceLock::new();
    HISTORY.get_or_init(|| {
        let mut history = History::write(Major::V17, Place::directory());
        history.primary.stop(Stop::Fast);
        history
    })
}

fn copy_of_archive(history: &History) -> Place {
    let place = Place::directory();
    let copied = crate::support::command_as_user("/bin/cp")
        .arg("-aT")
        .arg(history.place.path().unwrap())
        .arg(place.path().unwrap())
        .status()
        .unwrap();
    assert!(copied.success());
    place
}

/// Everything below a folder, with its content.
fn listing(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(listing(&path));
            found.insert(path, None);
        } else {
            let content = fs::read(&path).unwrap();
            found.insert(path, Some(content));
        }
    }
    found
}

/// `recover` of the shared history into `root`, where anything may already be.
fn recover_into(root: &Path, data: &Path) -> Output {
    let history = shared();
    let mut arguments = vec![
        "recover".to_owned(),
        "--pgdata".into(),
        data.to_str().unwrap().into(),
    ];
    for (i, tablespace) in history.tablespaces.iter().enumerate() {
        arguments.push("--tablespace-mapping".into());
        arguments.push(format!(
            "{}={}",
            tablespace.display(),
            root.join(format!("ts{i}")).display()
        ));
    }
    history.walship.run(&arguments)
}

#[test]
fn what_is_not_empty_is_left_as_it_is() {
    for (occupied, is_tablespace) in [("data", false), ("ts0", true), ("ts1", true)] {
        for content in ["file", ".hidden", "folder"] {
            let root = scratch();
            let folder = make_dir(root.path(), occupied, 0o700);
            if content == "folder" {
                make_dir(&folder, "folder", 0o700);
            } else {
                fs::write(folder.join(content), "precious").unwrap();
            }
            let before = listing(root.path());
            let output = recover_into(root.path(), &root.path().join("data"));
            refused(output, 4, &[folder.to_str().unwrap(), "not empty"]);
            assert_eq!(
                listing(root.path()),
                before,
                "{occupied}/{content}, {is_tablespace}"
            );
        }
    }
}

#[test]
fn a_place_that_cannot_be_made_is_named() {
    let root = scratch();
    let data = root.path().join("missing/parent/data");
    let output = recover_into(root.path(), &data);
    if output.code == Some(0) {
        // Made with its parents: then it must be whole.
        assert!(data.join("global/pg_control").exists());
    } else {
        let code = output.code.unwrap();
        refused(output, code, &["missing"]);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
    let locked = make_dir(root.path(), "locked", 0o555);
    let output = recover_into(root.path(), &locked.join("data"));
    refused(output, 1, &[locked.to_str().unwrap()]);
    assert_eq!(fs::read_dir(&locked).unwrap().count(), 0);
}

/// A small file system, unmounted at the end.
pub(crate) struct SmallDisk(pub(crate) PathBuf);

impl SmallDisk {
    pub(crate) fn mount(root: &Path, options: &str) -> Option<Self> {
        let folder = make_dir(root, "disk", 0o700);
        let mounted = rustix::process::geteuid().is_root()
            && Command::new("mount")
                .args(["-t", "tmpfs", "-o", options, "tmpfs"])
                .arg(&folder)
                .status()
                .is_ok_and(|status| status.success());
        if !mounted {
            announce("NOT TESTED: a full disk (mounting a tmpfs takes root)");
            return None;
        }
        give_to_user(&folder);
        Some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_is_too_small_is_noticed_and_nothing_is_left_on_it() {
    let root = scratch();
    let Some(disk) = SmallDisk::mount(root.path(), "size=8m,mode=0755") else {
        return;
    };
    let output = recover_into(root.path(), &disk.0.join("data"));
    refused(output, 1, &["space", disk.0.to_str().unwrap()]);
    assert_eq!(fs::read_dir(&disk.0).unwrap().count(), 0);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn a_full_disk_fails_push_and_restore_without_remains() {
    let root = scratch();
    let Some(disk) = SmallDisk::mount(root.path(), "size=512k,mode=0755") else {
        return;
    };
    let (data, place): (DataDirectory, Place) = (Sample::shared().copy(), Place::directory());
    let name = &Sample::shared().segments[0];
    data.walship(&place)
        .run(&["push", &format!("pg_wal/{name}")])
        .succeeded();
    let destination = disk.0.join("RECOVERYXLOG");
    let output = data.walship(&place).env("WALSHIP_RESTORE_TIMEOUT", "3s").run(&[
        "restore",
        name,
        destination.to_str().unwrap(),
    ]);
    refused(output, 200, &["space", disk.0.to_str().unwrap()]);
    assert_eq!(fs::read_dir(&disk.0).unwrap().count(), 0);
    // A directory archive on the full disk.
    fs::write(disk.0.join("filler"), vec![1; 400 << 10]).unwrap();
    let archive = make_dir(&disk.0, "archive", 0o700);
    let full = Place::directory().with_url(&format!("file://{}", archive.display()));
    let noise: Vec<u8> = fs::read(data.segment(name)).unwrap();
    assert!(noise.len() > 512 << 10);
    fs::write(disk.0.join("more"), vec![2; 96 << 10]).unwrap();
    // Of a cluster that has no archive yet.
    let output = Sample::shared()
        .copy()
        .walship(&full)
        .env("WALSHIP_PUSH_TIMEOUT", "3s")
        .run(&["push", &format!("pg_wal/{name}")]);
    refused(output, 1, &["space"]);
    let stored = listing(&archive);
    assert!(
        !stored
            .keys()
            .any(|path| path.to_str().unwrap().contains(name.as_str())),
        "{:?}",
        stored.keys()
    );
}
