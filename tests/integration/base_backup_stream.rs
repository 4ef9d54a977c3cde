//! Base backups from real servers, event by event.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use walship::inside::{BaseBackupOptions, BaseBackupStream, Event};
use walship_core::pg::{Lsn, Major};
use walship_core::{ErrorKind, Result};

use crate::connection::{connect, run};
use crate::server::majors;
use crate::support::postgres::{Cluster, Stop};
use crate::support::{give_to_user, scratch};

const PATIENCE: Duration = Duration::from_mins(1);

/// A whole backup in memory.
#[derive(Default)]
struct Taken {
    archives: BTreeMap<usize, Vec<u8>>,
    manifest: Vec<u8>,
    stop_lsn: Option<Lsn>,
}

async fn start(cluster: &Cluster, options: BaseBackupOptions) -> Result<BaseBackupStream> {
    connect(&cluster.conninfo()).await?.base_backup(options).await
}

async fn take(stream: &mut BaseBackupStream) -> Result<Taken> {
    let mut taken = Taken::default();
    let mut current = None;
    loop {
        match stream.next().await? {
            Event::ArchiveStart(index) => {
                assert!(taken.archives.insert(index, Vec::new()).is_none());
                current = Some(index);
            }
            Event::Data(bytes) => taken
                .archives
                .get_mut(&current.unwrap())
                .unwrap()
                .extend_from_slice(&bytes),
            Event::ManifestStart => assert_eq!(taken.archives.len(), stream.tablespaces.len()),
            Event::Manifest(bytes) => taken.manifest.extend_from_slice(&bytes),
            Event::Progress(_) => {}
            Event::End { stop_lsn, .. } => {
                taken.stop_lsn = Some(stop_lsn);
                return Ok(taken);
            }
        }
    }
}

fn options(label: &str) -> BaseBackupOptions {
    BaseBackupOptions {
        fast_checkpoint: true,
        ..BaseBackupOptions::new(label)
    }
}

fn started(major: Major) -> Cluster {
    let mut cluster = Cluster::builder(major).initdb_arg("--data-checksums").initdb();
    cluster.start();
    cluster
}

/// Unpacks a tar archive with the system's tar, and gives what it lists.
fn unpack(archive: &[u8], into: &Path) -> Vec<String> {
    std::fs::create_dir_all(into).unwrap();
    let file = into.with_extension("tar");
    std::fs::write(&file, archive).unwrap();
    let output = Command::new("tar")
        .arg("-xvf")
        .arg(&file)
        .arg("-C")
        .arg(into)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let listed = String::from_utf8(output.stdout).unwrap();
    listed.lines().map(str::to_owned).collect()
}

/// Where the last member of a tar archive ends.
fn members_end(archive: &[u8]) -> usize {
    let mut at = 0;
    while archive.get(at).is_some_and(|first| *first != 0) {
        let size = std::str::from_utf8(&archive[at + 124..at + 135]).unwrap();
        let size = usize::from_str_radix(size, 8).unwrap();
        at += 512 + size.next_multiple_of(512);
    }
    at
}

#[test]
fn a_backup_is_whole_and_postgresql_verifies_it() {
    for &major in majors() {
        let cluster = started(major);
        let location = cluster.make_dir("space");
        cluster.sql(&format!(
            "create tablespace space location '{}'",
            location.display()
        ));
        cluster.sql("create table a as select generate_series(1, 20000) i; create table b tablespace space as select * from a;");
        let label = "it's \"here\" \\ 'n äll";
        let (stream, taken) = run(async {
            let mut stream = start(&cluster, options(label)).await.unwrap();
            let taken = take(&mut stream).await.unwrap();
            assert!(stream.next().await.is_err(), "nothing follows the end");
            (stream, taken)
        });
        assert!(taken.stop_lsn.unwrap() > stream.start_lsn);
        assert_eq!(stream.tablespaces.len(), 2);
        assert!(stream.tablespaces.iter().all(|header| header.size_kib > Some(0)));

        let root = scratch();
        let data = root.path().join("copy");
        let mut files = 0;
        for (index, header) in stream.tablespaces.iter().enumerate().rev() {
            let archive = &taken.archives[&index];
            // Two zero blocks end a tar archive; PostgreSQL 14 leaves them to the client.
            let trailer = if major >= Major::V15 { 1024 } else { 0 };
            assert_eq!(
                archive.len() - members_end(archive),
                trailer,
                "PostgreSQL {major}"
            );
            let into = match header.oid {
                None => data.clone(),
                Some(oid) => {
                    assert_eq!(header.location.as_deref(), location.to_str());
                    let link = data.join(format!("pg_tblspc/{oid}"));
                    let _ = std::fs::remove_file(&link);
                    link
                }
            };
            files += unpack(archive, &into)
                .iter()
                .filter(|name| !name.ends_with('/'))
                .count();
        }
        let backup_label = std::fs::read_to_string(data.join("backup_label")).unwrap();
        assert!(
            backup_label.contains(&format!("LABEL: {label}\n")),
            "{backup_label}"
        );
        let manifest: serde_json::Value = serde_json::from_slice(&taken.manifest).unwrap();
        let listed = manifest["Files"].as_array().unwrap().len();
        assert_eq!(listed, files, "PostgreSQL {major}");
        std::fs::write(data.join("backup_manifest"), &taken.manifest).unwrap();
        let all = Command::new("chmod")
            .args(["-R", "a+rX"])
            .arg(root.path())
            .status()
            .unwrap();
        assert!(all.success());
        for tar in std::fs::read_dir(data.join("pg_tblspc")).unwrap() {
            let path = tar.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "tar") {
                std::fs::remove_file(path).unwrap();
            }
        }
        cluster
            .run_program("pg_verifybackup", &["--no-parse-wal", data.to_str().unwrap()])
            .succeeded();
    }
}

#[test]
fn a_backup_without_a_manifest_and_with_a_rate_ends_as_well() {
    for &major in majors() {
        let cluster = started(major);
        let taken = run(async {
            let plain = BaseBackupOptions {
                manifest: false,
                max_rate_kib: Some(1_048_576),
                ..options("plain")
            };
            take(&mut start(&cluster, plain).await.unwrap()).await.unwrap()
        });
        assert!(taken.manifest.is_empty() && taken.archives.len() == 1);
    }
}

#[test]
fn dropping_the_stream_ends_the_backup_on_the_server() {
    for &major in majors() {
        let cluster = started(major);
        let slow = BaseBackupOptions {
            max_rate_kib: Some(1024),
            ..options("slow")
        };
        run(async {
            let mut stream = start(&cluster, slow).await.unwrap();
            for _ in 0..3 {
                stream.next().await.unwrap();
            }
            assert_eq!(
                cluster.sql("select count(*) from pg_stat_progress_basebackup"),
                "1"
            );
        });
        cluster.wait_until("select count(*) from pg_stat_progress_basebackup", "0", PATIENCE);
    }
}

#[test]
fn a_damaged_page_makes_the_backup_fail_as_corrupt() {
    for &major in majors() {
        let mut cluster = started(major);
        cluster.sql("create table a as select generate_series(1, 20000) i");
        let file = cluster.sql("select pg_relation_filepath('a')");
        cluster.stop(Stop::Fast);
        let path = cluster.data_dir().join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[8192 * 3 + 5000] ^= 0xFF;
        std::fs::write(&path, bytes).unwrap();
        give_to_user(&path);
        cluster.start();
        let error = run(async {
            let mut stream = start(&cluster, options("damaged")).await.unwrap();
            take(&mut stream).await.err().expect("a failed checksum")
        });
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}

#[test]
fn a_promotion_during_the_backup_makes_it_fail() {
    for &major in majors() {
        let mut cluster = started(major);
        cluster.sql("create table a as select generate_series(1, 100000) i");
        cluster.stop(Stop::Fast);
        cluster.append("standby.signal", "");
        cluster.start();
        let slow = BaseBackupOptions {
            max_rate_kib: Some(8192),
            ..options("standby")
        };
        let error = run(async {
            let mut stream = start(&cluster, slow).await.unwrap();
            stream.next().await.unwrap();
            cluster.sql("select pg_promote()");
            loop {
                match stream.next().await {
                    Ok(Event::End { .. }) => panic!("the backup ended well"),
                    Ok(_) => {}
                    Err(error) => return error,
                }
            }
        });
        assert!(error.to_string().contains("promoted"), "{error}");
    }
}
