//! Faults of a standby, and of a primary that has one.

use tempfile::TempDir;

use super::{PATIENCE, Ward, beside, healthy_primary};
use crate::server::majors;
use crate::support::postgres::{Cluster, Stop};
use crate::support::scratch;
use crate::support::stores::Place;
use crate::support::walship::{Walship, binary};

/// A standby of this primary that streams and can restore; not started.
pub fn standby_of(primary: &Cluster, walship: &Walship) -> (Cluster, TempDir) {
    let root = scratch();
    let data = root.path().join("data");
    primary.copy_to(&data);
    let standby = walship.adopt(primary.major(), &data);
    standby.set("restore_command", &restore_command());
    standby.set("wal_retrieve_retry_interval", "500ms");
    (standby, root)
}

pub fn restore_command() -> String {
    format!("{} restore %f %p", binary().display())
}

#[test]
fn each_planted_fault_of_a_standby_is_found_with_its_fix() {
    for &major in majors() {
        let place = Place::directory();
        let (primary, walship) = healthy_primary(major, &place);
        let (mut standby, _root) = standby_of(&primary, &Walship::at(&place));
        standby.start();
        standby.wait_until(
            "select count(*) from pg_stat_wal_receiver where status = 'streaming'",
            "1",
            PATIENCE,
        );
        let mut ward = Ward::default();
        let on_standby = beside(&standby, &walship);
        ward.healed(&on_standby);
        ward.healed(&walship);
        let with = |name: &str, value: &str, back: &str, look: &mut dyn FnMut()| {
            standby.set(name, value);
            standby.reload();
            look();
            standby.set(name, back);
            standby.reload();
        };
        let restore = restore_command();
        with("restore_command", "", &restore, &mut || {
            ward.expect(
                "no restore_command",
                &on_standby,
                ("standby.restore_command", "warning", "walship restore"),
            );
        });
        with("recovery_target_timeline", "current", "latest", &mut || {
            ward.expect(
                "timeline",
                &on_standby,
                ("settings.pending_restart", "warning", "restart"),
            );
        });
        standby.sql("select pg_wal_replay_pause()");
        ward.expect(
            "paused",
            &on_standby,
            ("standby.replay", "warning", "pg_wal_replay_resume"),
        );
        let impatient = walship.clone().env("WALSHIP_DOCTOR_MAX_STANDBY_LAG", "1ms");
        primary.sql("insert into t select generate_series(1, 1000)");
        ward.expect(
            "lag",
            &impatient,
            ("standbys.lag", "warning", "pg_wal_replay_resume"),
        );
        standby.sql("select pg_wal_replay_resume()");
        let own = primary.data_dir().join("postgresql.auto.conf");
        assert!(own.exists());
        standby.append("postgresql.auto.conf", "primary_conninfo = 'host=/nowhere'\n");
        standby.reload();
        ward.expect(
            "no stream",
            &on_standby,
            ("standby.source", "warning", "primary_conninfo"),
        );
        standby.stop(Stop::Fast);
        ward.discharge(5);
    }
}
