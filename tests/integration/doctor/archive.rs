//! Faults of an archive in a directory, and of files that others can read or change.

use std::path::Path;

use walship_core::pg::Major;

use super::{Ward, chmod, healthy_primary, made_old};
use crate::server::{majors, wait_archived};
use crate::support::give_to_user;
use crate::support::stores::Place;
use crate::support::walship::Walship;

/// Takes a file away while the fault is looked for.
fn without(path: &Path, look: impl FnOnce()) {
    let aside = path.with_extension("aside");
    std::fs::rename(path, &aside).unwrap();
    look();
    std::fs::rename(&aside, path).unwrap();
}

#[test]
fn each_planted_fault_of_the_archive_is_found_with_its_fix() {
    for &major in majors() {
        let place = Place::directory();
        let archive = place.path().unwrap();
        let (cluster, walship) = healthy_primary(major, &place);
        let mut ward = Ward::default();
        let mut segments = Vec::new();
        for _ in 0..4 {
            segments.push(cluster.switch_wal());
        }
        wait_archived(&cluster, &segments[3]);
        let folder = archive.join("wal/00000001/0000000100000000");
        let object = |name: &str| folder.join(format!("{name}.zst"));

        without(&object(&segments[1]), || {
            ward.expect(
                "a gap",
                &walship,
                (
                    "wal.gaps",
                    "problem",
                    &format!("walship push pg_wal/{}", segments[1]),
                ),
            );
        });
        let ahead = object("0000000100000000000000FE");
        std::fs::copy(object(&segments[0]), &ahead).unwrap();
        give_to_user(&ahead);
        ward.expect(
            "WAL of another server",
            &walship,
            ("wal.ahead", "problem", "stop one of them"),
        );
        std::fs::remove_file(&ahead).unwrap();
        let child = archive.join("wal/00000002/0000000200000000/000000020000000000000003.zst");
        std::fs::create_dir_all(child.parent().unwrap()).unwrap();
        std::fs::copy(object(&segments[0]), &child).unwrap();
        ward.expect(
            "another timeline",
            &walship,
            ("wal.timeline", "warning", "pg_rewind"),
        );
        std::fs::write(archive.join("wal/00000002.history.zst"), b"damaged").unwrap();
        ward.expect(
            "damaged history",
            &walship,
            ("wal.histories", "problem", "walship push pg_wal/00000002.history"),
        );
        std::fs::remove_dir_all(archive.join("wal/00000002")).unwrap();
        std::fs::remove_file(archive.join("wal/00000002.history.zst")).unwrap();

        faults_of_backups(archive, &walship, &mut ward);
        chmod(archive, 0o777);
        ward.expect(
            "everybody may write",
            &walship,
            ("host.permissions", "problem", "chmod go-w"),
        );
        chmod(archive, 0o700);
        ward.healed(&walship);

        let nowhere = walship
            .clone()
            .env("WALSHIP_ARCHIVE", format!("file://{}/no", archive.display()));
        ward.expect(
            "no archive there",
            &nowhere,
            ("archive.reachable", "problem", "archive's URL"),
        );
        other_clusters_archive(major, &walship, &mut ward);
        ward.discharge(11);
    }
}

fn faults_of_backups(archive: &Path, walship: &Walship, ward: &mut Ward) {
    let backups = archive.join("backups");
    let id = std::fs::read_dir(&backups)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    without(&id.join("base/000001.tar.zst"), || {
        ward.expect(
            "a part is missing",
            walship,
            ("backups.restorable", "problem", "walship basebackup"),
        );
        ward.expect(
            "no backup is left",
            walship,
            ("backups.age", "problem", "walship basebackup"),
        );
    });
    let old = walship.clone().env("WALSHIP_DOCTOR_MAX_BACKUP_AGE", "1ms");
    ward.expect(
        "an old backup",
        &old,
        ("backups.age", "problem", "walship basebackup"),
    );
    let begun = backups.join("20200101T000000Z/started.json");
    std::fs::create_dir_all(begun.parent().unwrap()).unwrap();
    std::fs::write(&begun, b"{}").unwrap();
    made_old(&begun);
    ward.expect(
        "a backup left behind",
        walship,
        ("backups.unfinished", "warning", "walship basebackup"),
    );
    std::fs::remove_dir_all(begun.parent().unwrap()).unwrap();
}

fn other_clusters_archive(major: Major, walship: &Walship, ward: &mut Ward) {
    let theirs = Place::directory();
    let (_other, _) = healthy_primary(major, &theirs);
    let foreign = walship.clone().env("WALSHIP_ARCHIVE", &theirs.url);
    ward.expect(
        "another cluster's archive",
        &foreign,
        ("archive.identity", "problem", "correct the archive's URL"),
    );
}

#[test]
fn files_with_secrets_and_configuration_are_for_their_owner_only() {
    let place = Place::directory();
    let (cluster, walship) = healthy_primary(Major::V18, &place);
    let mut ward = Ward::default();
    let home = cluster.make_dir("home");
    let config = home.join("walship.toml");
    std::fs::write(&config, "[push]\ntimeout = \"30s\"\n").unwrap();
    let keys = home.join("credentials");
    std::fs::write(&keys, "[default]\n").unwrap();
    for path in [&config, &keys] {
        give_to_user(path);
        chmod(path, 0o644);
    }
    let walship = walship.env("WALSHIP_CONFIG", &config);
    ward.healed(&walship);
    chmod(&config, 0o646);
    ward.expect(
        "configuration",
        &walship,
        ("host.permissions", "problem", "chmod go-w"),
    );
    chmod(&config, 0o644);
    let walship = walship.env("AWS_SHARED_CREDENTIALS_FILE", &keys);
    ward.expect(
        "credentials",
        &walship,
        ("host.permissions", "warning", "chmod 0600"),
    );
    chmod(&keys, 0o600);
    ward.healed(&walship);
    ward.discharge(2);
}
