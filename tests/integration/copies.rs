//! Copies reach nothing of their source: what becomes of its settings, in real servers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use walship_core::judge::copy_settings::judged;
use walship_core::pg::Major;

use crate::basebackup::json;
use crate::recovery::{PATIENCE, take_backup};
use crate::seed::{beside, seed};
use crate::server::{archiving_builder, archiving_primary, majors, wait_archived};
use crate::support::postgres::{Cluster, Stop};
use crate::support::process::Output;
use crate::support::stores::Place;
use crate::support::walship::Walship;
use crate::support::{make_dir, scratch};

/// Contrib modules whose settings are there only where the server loads them when it starts.
const PRELOADED: &str = "pg_stat_statements, pg_prewarm";

// Seen to fail: `copy_settings/harmless.rs`: one name less
#[test]
fn every_setting_of_every_server_was_judged() {
    let judged = judged();
    let mut of_no_server = judged.clone();
    for major in Major::ALL {
        let mut cluster = Cluster::builder(major)
            .option("shared_preload_libraries", PRELOADED)
            .initdb();
        cluster.start();
        let libraries = libraries_of(&cluster);
        assert!(libraries.contains(&"auto_explain".to_owned()), "{libraries:?}");
        let loads: String = libraries
            .iter()
            .map(|name| format!("do $$ begin load '{name}'; exception when others then null; end $$; "))
            .collect();
        let names = cluster.sql(&format!("{loads} select name from pg_settings"));
        let names: BTreeSet<String> = names.lines().map(str::to_ascii_lowercase).collect();
        let settings = names.iter().filter(|name| !name.is_empty());
        let nobody: Vec<_> = settings.filter(|name| !judged.contains(*name)).collect();
        assert!(
            nobody.is_empty(),
            "PostgreSQL {major} has settings that nobody judged: {nobody:?}; add each to the table or to the list in \
             crates/core/src/judge/copy_settings"
        );
        of_no_server.retain(|name| !names.contains(name));
    }
    assert!(of_no_server.is_empty(), "no server has {of_no_server:?}");
}

/// The libraries of the installation that a session can load.
fn libraries_of(cluster: &Cluster) -> Vec<String> {
    let directory = cluster
        .run_program("pg_config", &["--pkglibdir"])
        .succeeded()
        .stdout;
    let entries = std::fs::read_dir(directory.trim()).unwrap().flatten();
    let names = entries.filter_map(|entry| {
        entry
            .file_name()
            .into_string()
            .ok()?
            .strip_suffix(".so")
            .map(str::to_owned)
    });
    names
        .filter(|name| !name.starts_with("lib") && !name.contains("_and_"))
        .collect()
}

/// A primary whose configuration names places of its own, partly in an included file.
struct Source {
    _place: Place,
    walship: Walship,
    primary: Cluster,
    pid_file: PathBuf,
    logs: PathBuf,
}

impl Source {
    fn start(major: Major) -> Self {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let mut primary = archiving_builder(major, &walship).initdb();
        let places = primary.make_dir("places");
        let [pid_file, logs, statistics] = ["pid", "logs", "statistics"].map(|name| places.join(name));
        for directory in [&logs, &statistics] {
            make_dir(&places, directory.file_name().unwrap().to_str().unwrap(), 0o700);
        }
        let data = primary.data_dir().display().to_string();
        primary.append("postgresql.conf", "include_dir 'conf.d'\n");
        make_dir(primary.data_dir(), "conf.d", 0o700);
        primary.append(
            "conf.d/places.conf",
            &format!(
                "data_directory = '{data}'\nexternal_pid_file = '{}'\nlog_directory = '{}'\nlogging_collector = on\n\
                 log_filename = 'source.log'\nlog_truncate_on_rotation = on\n",
                pid_file.display(),
                logs.display()
            ),
        );
        primary.set("synchronous_standby_names", "nobody");
        primary.set("synchronous_commit", "local");
        primary.set("session_preload_libraries", "auto_explain");
        if major == Major::V14 {
            primary.set("stats_temp_directory", statistics.to_str().unwrap());
        }
        primary.start();
        Self {
            _place: place,
            walship,
            primary,
            pid_file,
            logs,
        }
    }

    fn with_a_backup_and_a_row(&self) {
        self.primary.sql("create table t (i int)");
        take_backup(&self.walship, &self.primary);
        self.primary.sql("insert into t values (1)");
        wait_archived(&self.primary, &self.primary.switch_wal());
    }

    fn recover(&self, data: &Path, arguments: &[&str]) -> Output {
        let mut all = vec!["recover", "--pgdata", data.to_str().unwrap()];
        all.extend(arguments);
        self.walship.run(&all).succeeded()
    }

    fn adopt(&self, data: &Path) -> Cluster {
        self.walship.adopt(self.primary.major(), data)
    }

    /// What lies in its places.
    fn places(&self) -> (String, Vec<String>) {
        let pid = std::fs::read_to_string(&self.pid_file).unwrap();
        let logs = std::fs::read_dir(&self.logs).unwrap().flatten();
        (
            pid,
            logs.map(|entry| entry.file_name().into_string().unwrap())
                .collect(),
        )
    }
}

// Seen to fail: `cluster/source_settings.rs`: `stay_at_home` does nothing; `copy_settings/mod.rs`: `overrides` are
// empty
#[test]
fn a_rehearsal_starts_on_its_own_data_and_writes_into_none_of_its_sources_places() {
    for &major in majors() {
        let source = Source::start(major);
        source.with_a_backup_and_a_row();
        let root = scratch();
        let data = root.path().join("copy");
        let said = source.recover(&data, &["--archive-mode", "off"]).stdout;
        assert!(
            said.contains("data_directory") && said.contains("rehearsal"),
            "{said}"
        );
        let before = source.places();
        let source_log = std::fs::read_to_string(source.logs.join("source.log")).unwrap();
        let mut copy = source.adopt(&data);
        copy.start();
        copy.wait_until("select not pg_is_in_recovery()", "t", PATIENCE);
        assert_eq!(copy.sql("show data_directory"), data.display().to_string());
        assert_eq!(copy.sql("select i from t"), "1");
        // It waits for no standby.
        copy.sql("set synchronous_commit = on; insert into t values (2)");
        assert_eq!(copy.sql("show max_logical_replication_workers"), "0");
        assert_eq!(copy.sql("show session_preload_libraries"), "auto_explain");
        assert_eq!(copy.sql("show shared_preload_libraries"), "");
        if major == Major::V14 {
            assert_eq!(copy.sql("show stats_temp_directory"), "pg_stat_tmp");
        }
        assert!(data.join("log").read_dir().unwrap().count() > 0);
        assert_eq!(source.places(), before, "PostgreSQL {major}");
        copy.stop(Stop::Fast);
        assert_eq!(source.places(), before, "PostgreSQL {major}");
        let log = std::fs::read_to_string(source.logs.join("source.log")).unwrap();
        assert!(log.starts_with(&source_log) && !log.contains("recovery"), "{log}");
        assert_eq!(source.primary.sql("select count(*) from t"), "1");
    }
}

// Seen to fail: `diagnosis/settings.rs`: a copy is treated like any other server
#[test]
fn a_replacement_keeps_what_reaches_outside_and_says_what_that_is() {
    let mut source = Source::start(Major::V18);
    source.with_a_backup_and_a_row();
    source.primary.stop(Stop::Fast);
    let old = source.primary.data_dir().with_extension("old");
    std::fs::rename(source.primary.data_dir(), &old).unwrap();
    let data = source.primary.data_dir().to_owned();
    let said = source.recover(&data, &["--archive-mode", "keep"]).stdout;
    for kept in [
        "subscriptions are followed",
        "synchronous_standby_names = 'nobody'",
        &format!("external_pid_file = '{}'", source.pid_file.display()),
    ] {
        assert!(said.contains(kept), "{kept}: {said}");
    }
    // The directory's own line stays: it names this very directory.
    let places = std::fs::read_to_string(data.join("conf.d/places.conf")).unwrap();
    assert!(places.starts_with("data_directory"), "{places}");
    let mut copy = source.adopt(&data);
    copy.start();
    copy.wait_until("select not pg_is_in_recovery()", "t", PATIENCE);
    assert_eq!(
        copy.sql("show external_pid_file"),
        source.pid_file.display().to_string()
    );
    assert_eq!(copy.sql("show synchronous_standby_names"), "nobody");
    assert_ne!(copy.sql("show max_logical_replication_workers"), "0");
}

#[test]
fn a_seeded_standby_beside_its_primary_runs_on_its_own_data() {
    for &major in majors() {
        let source = Source::start(major);
        source.with_a_backup_and_a_row();
        let walship = beside(&source.primary, &source.walship);
        let root = scratch();
        for (name, from) in [("copied", "primary"), ("restored", "archive")] {
            let before = source.places();
            let data = root.path().join(name);
            let output = seed(&walship, &source.primary, &data, &["--from", from, "--no-slot"]).succeeded();
            assert!(output.stdout.contains("data_directory"), "{}", output.stdout);
            let mut standby = source.adopt(&data);
            standby.start();
            standby.wait_until("select count(*) from t", "1", PATIENCE);
            assert_eq!(standby.sql("show data_directory"), data.display().to_string());
            standby.stop(Stop::Fast);
            assert_eq!(source.places(), before, "PostgreSQL {major}, from the {from}");
        }
    }
}

/// Where the setting comes from outside the copy, its own place is the last word.
#[test]
fn a_data_directory_that_a_file_elsewhere_names_does_not_win() {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let mut primary = archiving_builder(Major::V18, &walship).initdb();
    let elsewhere = primary.make_dir("elsewhere").join("site.conf");
    let named = format!("data_directory = '{}'\n", primary.data_dir().display());
    std::fs::write(&elsewhere, named).unwrap();
    primary.append("postgresql.conf", &format!("include '{}'\n", elsewhere.display()));
    primary.start();
    take_backup(&walship, &primary);
    let root = scratch();
    let data = root.path().join("copy");
    let arguments = [
        "recover",
        "--pgdata",
        data.to_str().unwrap(),
        "--archive-mode",
        "off",
    ];
    let said = walship.run(&arguments).succeeded().stdout;
    assert!(said.contains("change that line if you move the copy"), "{said}");
    let mut copy = walship.adopt(Major::V18, &data);
    copy.start();
    assert_eq!(copy.sql("show data_directory"), data.display().to_string());
}

#[test]
fn a_rehearsal_of_a_subscriber_takes_no_change_away_from_it() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let mut publisher = Cluster::builder(major).option("wal_level", "logical").initdb();
        publisher.start();
        publisher.sql("create table t (i int primary key); create publication p for table t");
        let mut subscriber = archiving_builder(major, &walship).initdb();
        subscriber.start();
        subscriber.sql("create table t (i int primary key)");
        publisher.sql("select pg_create_logical_replication_slot('s', 'pgoutput')");
        subscriber.sql(&format!(
            "create subscription s connection '{}' publication p with (create_slot = false, copy_data = false)",
            publisher.conninfo()
        ));
        publisher.sql("insert into t values (1)");
        subscriber.wait_until("select count(*) from t", "1", PATIENCE);
        take_backup(&walship, &subscriber);
        wait_archived(&subscriber, &subscriber.switch_wal());
        subscriber.stop(Stop::Fast);
        publisher.sql("insert into t values (2)");
        let root = scratch();
        let data = root.path().join("copy");
        walship
            .run(&[
                "recover",
                "--pgdata",
                data.to_str().unwrap(),
                "--archive-mode",
                "off",
            ])
            .succeeded();
        let mut copy = walship.opened(major, &data);
        std::thread::sleep(std::time::Duration::from_secs(2));
        assert_eq!(copy.sql("select count(*) from t"), "1", "PostgreSQL {major}");
        assert_eq!(publisher.sql("select active from pg_replication_slots"), "f");
        copy.stop(Stop::Fast);
        subscriber.start();
        subscriber.wait_until("select count(*) from t", "2", PATIENCE);
    }
}

/// A backup, and then a tablespace with a table and a database in it, archived; the primary runs on.
fn with_a_late_tablespace(major: Major) -> (Place, Walship, Cluster, PathBuf) {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let primary = archiving_builder(major, &walship).initdb_arg("--data-checksums");
    // Its files are compared, and change only when it is told to.
    let mut primary = primary.option("autovacuum", "off").initdb();
    primary.start();
    primary.sql("create table early (i int)");
    take_backup(&walship, &primary);
    let late = primary.make_dir("late");
    primary.sql(&format!("create tablespace late location '{}'", late.display()));
    primary.sql("create table t tablespace late as select g as i, repeat('x', 50) as s from generate_series(1, 5000) g");
    let copied = if major >= Major::V15 {
        "strategy file_copy"
    } else {
        ""
    };
    primary.sql(&format!("create database other tablespace late {copied}"));
    wait_archived(&primary, &primary.switch_wal());
    // What is in the primary's files alone.
    primary.sql("update t set s = 'new'; checkpoint");
    (place, walship, primary, late)
}

/// Every file below a directory, with its content.
fn files_below(directory: &Path) -> BTreeSet<(PathBuf, Vec<u8>)> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.insert((entry.path(), std::fs::read(entry.path()).unwrap()));
        }
    }
    found
}

// Seen to fail: `verbs/restore/args.rs`: `see_to` is not called
#[test]
fn no_copy_writes_into_a_tablespace_that_its_source_made_after_the_backup() {
    for &major in majors() {
        let (_place, walship, primary, late) = with_a_late_tablespace(major);
        let before = files_below(&late);
        let root = scratch();
        let drills = make_dir(root.path(), "drills", 0o700);
        beside(&primary, &walship)
            .env("WALSHIP_DRILL_DIRECTORY", &drills)
            .run(&["drill"])
            .succeeded();
        assert!(
            files_below(&late) == before,
            "PostgreSQL {major}: the drill wrote"
        );
        let data = root.path().join("copy");
        walship
            .run(&[
                "recover",
                "--pgdata",
                data.to_str().unwrap(),
                "--archive-mode",
                "off",
            ])
            .succeeded();
        let mut copy = walship.opened(major, &data);
        assert_eq!(copy.sql("select count(*) from t"), "5000", "PostgreSQL {major}");
        copy.sql("update t set s = 'rehearsed'; checkpoint");
        copy.sql("drop database other");
        copy.sql("drop table t");
        copy.sql("drop tablespace late");
        copy.stop(Stop::Fast);
        assert!(
            files_below(&late) == before,
            "PostgreSQL {major}: the rehearsal wrote"
        );
        assert_eq!(primary.sql("select count(*) from t where s = 'new'"), "5000");
    }
}

#[test]
fn a_replacement_does_not_replay_over_files_that_lie_where_a_tablespace_goes() {
    for &major in majors() {
        let (_place, walship, mut primary, late) = with_a_late_tablespace(major);
        primary.stop(Stop::Immediate);
        let before = files_below(&late);
        let root = scratch();
        let data = root.path().join("copy");
        let recover = [
            "recover",
            "--pgdata",
            data.to_str().unwrap(),
            "--archive-mode",
            "on",
        ];
        let refused = walship.run(&recover).exited(4).stderr;
        assert!(refused.contains("away and try again"), "{refused}");
        assert!(!data.exists(), "PostgreSQL {major}: something was restored");
        // As the message says.
        let away = late.with_extension("old");
        std::fs::rename(&late, &away).unwrap();
        let recovered = walship.run(&recover).succeeded().stdout;
        assert!(recovered.contains("mkdir -p -m 700"), "{recovered}");
        // They are back before it starts.
        std::fs::rename(&away, &late).unwrap();
        let mut copy = walship.adopt(major, &data);
        copy.launch();
        copy.wait_exit(PATIENCE);
        let log = copy.log_since_start();
        assert!(log.contains("away and start this server again"), "{log}");
        assert!(files_below(&late) == before, "PostgreSQL {major}");
        std::fs::rename(&late, &away).unwrap();
        copy.launch();
        copy.wait_exit(PATIENCE);
        let log = copy.log_since_start();
        assert!(log.contains("mkdir -p -m 700"), "{log}");
        make_dir(late.parent().unwrap(), "late", 0o700);
        copy.start();
        copy.wait_until("select not pg_is_in_recovery()", "t", PATIENCE);
        assert_eq!(copy.sql("select count(*) from t"), "5000", "PostgreSQL {major}");
    }
}

// Seen to fail: `cluster/tablespaces.rs`: `look_ahead` passes over what is taken; `verbs/restore/args.rs`: the refusal
// is a failure like any other
#[test]
fn a_standby_does_not_replay_over_the_tablespaces_of_a_primary_on_the_same_machine() {
    for &major in majors() {
        let (_place, walship, primary, late) = with_a_late_tablespace(major);
        let before = files_below(&late);
        let root = scratch();
        let data = root.path().join("standby");
        let refused = seed(&walship, &primary, &data, &["--from", "archive"])
            .exited(4)
            .stderr;
        assert!(refused.contains("take a base backup after"), "{refused}");
        assert!(!data.exists(), "PostgreSQL {major}: something was restored");
        // As the message says.
        take_backup(&walship, &primary);
        let mapping = format!("{}={}", late.display(), root.path().join("moved").display());
        let arguments = ["--from", "archive", "--tablespace-mapping", &mapping];
        seed(&walship, &primary, &data, &arguments).succeeded();
        let later = primary.make_dir("later");
        primary.sql(&format!("create tablespace later location '{}'", later.display()));
        primary.sql("create table u tablespace later as select generate_series(1, 10) as i");
        wait_archived(&primary, &primary.switch_wal());
        primary.sql("checkpoint");
        let files = files_below(&later);
        // From the archive alone.
        let mut standby = walship.adopt(major, &data);
        standby.append("postgresql.auto.conf", "primary_conninfo = ''\n");
        standby.launch();
        standby.wait_exit(PATIENCE);
        let log = standby.log_since_start();
        assert!(
            log.contains("for a standby beside it, take a base backup"),
            "{log}"
        );
        assert!(files_below(&later) == files, "PostgreSQL {major}");
        assert!(files_below(&late) == before, "PostgreSQL {major}");
    }
}

/// Makes a tablespace whose record begins so that the segment's end lies within it.
fn across_a_boundary(primary: &Cluster, directory: &Path) {
    let make = format!(
        "create tablespace across location '{}'; drop tablespace across;",
        directory.display()
    );
    // Without a noise of its own, and the pages that it changes are in the WAL already.
    primary.sql(&make);
    let from = primary.sql("select pg_current_wal_insert_lsn()");
    primary.sql(&make);
    let records = primary
        .run_program(
            "pg_waldump",
            &[
                "-r",
                "Tablespace",
                "-s",
                &from,
                "-p",
                primary.data_dir().join("pg_wal").to_str().unwrap(),
            ],
        )
        .stdout;
    let at = |text: &str| {
        let (high, low) = text.split_once('/').unwrap();
        (u64::from_str_radix(high, 16).unwrap() << 32) + u64::from_str_radix(low, 16).unwrap()
    };
    let first = records.lines().find(|line| line.contains("CREATE")).unwrap();
    let lsn = first.split("lsn: ").nth(1).unwrap().split(',').next().unwrap();
    let distance = at(lsn) - at(&from);
    primary.sql(&format!(
        "do $$ declare p bigint; boundary bigint; begin loop \
         p := pg_current_wal_insert_lsn() - '0/0'::pg_lsn; \
         boundary := (p / 1048576 + 1) * 1048576; \
         exit when boundary - p - {distance} - 40 between 300 and 7000; \
         perform pg_logical_emit_message(false, 'x', repeat('x', 1000)); end loop; \
         perform pg_logical_emit_message(false, 'x', repeat('x', (boundary - p - {distance} - 40 - 55)::int)); \
         end $$; {}",
        make.split_once(';').unwrap().0
    ));
}

// Seen to fail: `cluster/recovery.rs`: `refuse_shared` is not asked
#[test]
fn where_a_tablespaces_record_lies_in_two_segments_no_copy_is_made_and_no_drill_judges() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let primary = archiving_builder(major, &walship).option("autovacuum", "off");
        let mut primary = primary.initdb();
        primary.start();
        primary.sql("create table early (i int)");
        take_backup(&walship, &primary);
        let directory = primary.make_dir("across");
        across_a_boundary(&primary, &directory);
        wait_archived(&primary, &primary.switch_wal());
        let before = files_below(&directory);
        let root = scratch();
        let drills = make_dir(root.path(), "drills", 0o700);
        let drill = beside(&primary, &walship)
            .env("WALSHIP_DRILL_DIRECTORY", &drills)
            .run(&["drill"]);
        let copy = root.path().join("copy");
        let recover = walship.run(&[
            "recover",
            "--pgdata",
            copy.to_str().unwrap(),
            "--archive-mode",
            "off",
        ]);
        for refused in [drill.exited(4), recover.exited(4)] {
            assert!(
                refused.stderr.contains("lies in two segments"),
                "PostgreSQL {major}: {refused:?}"
            );
        }
        assert!(
            !copy.exists() && files_below(&directory) == before,
            "PostgreSQL {major}"
        );
        // It was not made, so it says nothing of the archive.
        assert!(
            json(&walship.run(&["status", "--json"]))["drill"].is_null(),
            "PostgreSQL {major}"
        );
        // A backup after it leads on.
        take_backup(&walship, &primary);
        beside(&primary, &walship)
            .env("WALSHIP_DRILL_DIRECTORY", &drills)
            .run(&["drill"])
            .succeeded();
    }
}

// Seen to fail: `cluster/wal_file.rs`: `refuse_unknown_timeline` does nothing; `refuse_unannounced` ignores the clone's
// mark
#[test]
fn a_rehearsals_wal_gets_into_no_archive_of_its_source_by_hand_either() {
    for &major in majors() {
        let place = Place::directory();
        let walship = Walship::at(&place);
        let primary = archiving_primary(major, &walship);
        primary.sql("create table t (i int)");
        take_backup(&walship, &primary);
        wait_archived(&primary, &primary.switch_wal());
        let root = scratch();
        let data = root.path().join("copy");
        walship
            .run(&["recover", "--pgdata", data.to_str().unwrap()])
            .succeeded();
        let mut copy = walship.opened(major, &data);
        copy.sql("insert into t values (1)");
        let segment = copy.switch_wal();
        copy.stop(Stop::Immediate);
        let path = data.join("pg_wal").join(&segment);
        let refused = walship.run(&["push", path.to_str().unwrap()]).exited(1).stderr;
        assert!(
            refused.contains("is a copy of another, made from the archive"),
            "{refused}"
        );
        assert!(!refused.contains("copy it out"), "{refused}");
        let copied_out = make_dir(root.path(), "out", 0o755).join(&segment);
        std::fs::copy(&path, &copied_out).unwrap();
        crate::support::give_to_user(&copied_out);
        let refused = walship
            .run(&["push", copied_out.to_str().unwrap()])
            .exited(1)
            .stderr;
        assert!(
            refused.contains("the archive has no history of timeline 2"),
            "{refused}"
        );
        let stored = crate::basebackup::keys(&place, "wal/00000002");
        assert!(stored.is_empty(), "{stored:?}");
    }
}
