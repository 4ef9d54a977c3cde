//! Switches of segments that begin anywhere near the end of a page or a segment, on real servers: what they
//! archive is whole, and recovery passes it.

use std::thread;

use walship_core::pg::Major;

use crate::recovery::{PATIENCE, take_backup};
use crate::server::{archiving_primary, majors, wait_archived};
use crate::support::postgres::{Cluster, Stop};
use crate::support::scratch;
use crate::support::stores::Place;
use crate::support::walship::Walship;

/// How far before the end of a segment the record of the switch begins: within its last bytes, and within those
/// of a page. Not 24: a record that fills the segment to its last byte makes PostgreSQL itself panic ("request to
/// flush past end of generated WAL").
const BEFORE_THE_END: [u32; 7] = [8, 16, 32, 48, 8192 + 8, 8192 + 16, 8192 + 24];

/// Switches where the next record begins so far before the segment's end. A message's record is 50 bytes longer
/// than its text, and 3 more where its data is longer than 255 bytes.
fn switch_at(cluster: &Cluster, before_end: u32) -> String {
    let within = before_end % 8192;
    let pages = before_end / 8192 * 8192;
    let script = format!(
        "do $$ declare p bigint; boundary bigint; n int; begin loop \
         p := pg_current_wal_insert_lsn() - '0/0'::pg_lsn; \
         boundary := (p / 1048576 + 1) * 1048576 - {pages}; \
         exit when boundary - p between {within} + 400 and 8000; \
         perform pg_logical_emit_message(false, 'x', repeat('x', 1000)); end loop; \
         n := boundary - p - {within} - 52 - 3; \
         perform pg_logical_emit_message(false, 'x', repeat('x', n)); \
         p := pg_current_wal_insert_lsn() - '0/0'::pg_lsn; \
         perform set_config('walship.at', (boundary - p)::text, false); \
         perform pg_switch_wal(); end $$; \
         select current_setting('walship.at')"
    );
    let at = cluster.sql(&script);
    assert_eq!(
        at.trim(),
        within.to_string(),
        "the record does not begin where it should"
    );
    let next = cluster.sql("select pg_walfile_name(pg_current_wal_insert_lsn())");
    next.trim().to_owned()
}

fn check(major: Major) {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let cluster = archiving_primary(major, &walship);
    cluster.sql("create table rows (n int)");
    take_backup(&walship, &cluster);
    for (number, before_end) in BEFORE_THE_END.into_iter().enumerate() {
        cluster.sql(&format!("insert into rows values ({number})"));
        switch_at(&cluster, before_end);
    }
    cluster.sql("insert into rows values (99)");
    let last = cluster.switch_wal();
    wait_archived(&cluster, &last);
    let verified = walship.run(&["verify"]).succeeded();
    assert!(
        !verified.stdout.contains("its WAL ends at"),
        "PostgreSQL {major}: {}",
        verified.stdout
    );

    let root = scratch();
    let data = root.path().join("data");
    walship
        .run(&[
            "recover",
            "--pgdata",
            data.to_str().unwrap(),
            "--archive-mode",
            "off",
        ])
        .succeeded();
    let copy = walship.opened(major, &data);
    assert_eq!(
        copy.sql("select count(*) from rows").trim(),
        "8",
        "PostgreSQL {major}"
    );
}

// Seen to fail: `segment_index/switch.rs`: nothing is settled
#[test]
fn wal_with_a_switch_at_any_boundary_is_whole_for_verify_and_for_recovery() {
    thread::scope(|scope| {
        for &major in majors() {
            scope.spawn(move || check(major));
        }
    });
}

/// A moment of the server's clock, with nothing that happens around it.
fn quiet_moment(cluster: &Cluster) -> String {
    let moment = cluster.sql("select pg_sleep(0.2); select clock_timestamp(); select pg_sleep(0.2)");
    moment.trim().to_owned()
}

fn recovered_to(walship: &Walship, major: Major, moment: &str) -> (tempfile::TempDir, Cluster) {
    let root = scratch();
    let data = root.path().join("data");
    let arguments = [
        "recover",
        "--pgdata",
        data.to_str().unwrap(),
        "--archive-mode",
        "off",
        "--target-time",
        moment,
    ];
    walship
        .run(&[&arguments[..], &["--target-action", "promote"]].concat())
        .succeeded();
    let mut copy = walship.adopt(major, &data);
    copy.set("max_prepared_transactions", "5");
    copy.start();
    copy.wait_until("select not pg_is_in_recovery()", "t", PATIENCE);
    (root, copy)
}

fn check_moments(major: Major) {
    let place = Place::directory();
    let walship = Walship::at(&place);
    let mut cluster = archiving_primary(major, &walship);
    cluster.set("max_prepared_transactions", "5");
    cluster.stop(Stop::Fast);
    cluster.start();
    cluster.sql("create table rows (n int)");
    cluster.sql("create database shop");
    take_backup(&walship, &cluster);
    let after_the_backup = quiet_moment(&cluster);
    cluster.sql("begin; insert into rows values (1); prepare transaction 'p'");
    let prepared = quiet_moment(&cluster);
    // What came before must be known from the index alone.
    cluster.switch_wal();
    cluster.sql("commit prepared 'p'");
    let committed = quiet_moment(&cluster);
    cluster.switch_wal();
    cluster.sql("drop database shop");
    cluster.sql("drop table rows");
    let last = cluster.switch_wal();
    wait_archived(&cluster, &last);
    for (moment, gids, rows) in [
        (&after_the_backup, "0", "0"),
        (&prepared, "1", "0"),
        (&committed, "0", "1"),
    ] {
        let (_root, copy) = recovered_to(&walship, major, moment);
        let shop = copy
            .program("psql")
            .args(["-XAtc", "select count(*) > 0 from pg_class", "-d"])
            .arg(copy.conninfo().replace("dbname=postgres", "dbname=shop"))
            .output()
            .unwrap();
        let shop = String::from_utf8_lossy(&shop.stdout).trim().to_owned();
        let found = (
            shop,
            copy.sql("select count(*) from pg_prepared_xacts"),
            copy.sql("select count(*) from rows"),
        );
        let expected = ("t".to_owned(), gids.to_owned(), rows.to_owned());
        assert_eq!(found, expected, "PostgreSQL {major}, {moment}");
    }
}

// Seen to fail: `recovery_plan/end.rs`: PostgreSQL is given the time; `segment_index/moment.rs`: prepared transactions
// do not count
#[test]
fn a_moment_before_a_database_is_dropped_has_the_database_and_prepared_transactions_whole() {
    thread::scope(|scope| {
        for &major in majors() {
            scope.spawn(move || check_moments(major));
        }
    });
}
