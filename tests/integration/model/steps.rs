//! What happens in a life, and what must be so afterwards.

use std::process::Command;

use super::world::{Backup, PATIENCE, Rows, Server, Snapshot, World};
use crate::support::postgres::Stop;
use crate::support::walship::binary;
use crate::support::{give_to_user, make_dir, scratch};

type Step = fn(&mut World);

/// Each with its name and its weight.
const STEPS: [(&str, u64, Step); 14] = [
    ("write", 4, write),
    ("back-up", 4, back_up),
    ("tablespace", 2, tablespace),
    ("rehearse", 2, rehearse),
    ("back-up-rehearsal", 1, back_up_a_rehearsal),
    ("drill", 2, drill),
    ("forget-rehearsal", 2, forget_a_rehearsal),
    ("switch-over", 2, switch_over),
    ("former", 2, former_goes_on),
    ("snapshot", 1, take_snapshot),
    ("go-back", 1, go_back),
    ("unmount", 2, unmount),
    ("follow", 2, follow),
    ("expire", 1, expire),
];

/// Takes one of the chosen steps, or of all.
pub(super) fn one(world: &mut World, chosen: &str) {
    let steps = STEPS
        .iter()
        .filter(|(name, ..)| chosen.is_empty() || chosen.split(',').any(|it| it == *name));
    let weights = steps.clone().map(|(_, weight, _)| weight).sum();
    let mut place = world.below(weights);
    for (_, weight, step) in steps {
        if place < *weight {
            return step(world);
        }
        place -= weight;
    }
}

/// What must be so in the end: production's history comes back, and what is listed can be restored.
pub(super) fn end(world: &mut World) {
    world.tell("end");
    if !world.set_back {
        world.write();
    }
    check_recovery(world);
    check_listed(world);
}

fn write(world: &mut World) {
    world.tell("write");
    world.write();
}

fn back_up(world: &mut World) {
    let method = if world.below(2) == 0 { "stream" } else { "local" };
    world.tell(format!("back up, {method}"));
    let rows = world.production.rows.clone();
    let arguments = ["basebackup", "--json", "--wal-timeout", "10s", "--method", method];
    let before = listed(world);
    let mut all = arguments.to_vec();
    let conninfo = world.production.cluster.conninfo();
    all.extend(["-d", &conninfo]);
    let output = world.walship.run(&all);
    if world.set_back {
        world.must(
            output.code != Some(0),
            "no backup succeeds of a server that was set back behind its archive",
        );
        world.must(
            listed(world) == before,
            "a backup whose WAL is another history's is not listed",
        );
        return;
    }
    let report: serde_json::Value = serde_json::from_str(&output.succeeded().stdout).unwrap();
    world.backups.push(Backup {
        id: report["id"].as_str().unwrap().to_owned(),
        rows,
        tablespaces: world.production.tablespaces.clone(),
    });
    world.acknowledged.clone_from(&world.production.rows);
}

/// A tablespace that no backup has, and whose files are ahead of all archived WAL.
fn tablespace(world: &mut World) {
    if world.production.tablespaces.len() > 1 || world.set_back {
        return write(world);
    }
    world.tell("make a tablespace");
    let number = world.new_row();
    let directory = world.production.cluster.make_dir(&format!("space{number}"));
    world.production.cluster.sql(&format!(
        "create tablespace space{number} location '{}';
         create table late{number} tablespace space{number} as select generate_series(1, 1000) n",
        directory.display()
    ));
    world.production.tablespaces.push(directory);
    world.write();
}

/// Production's tablespaces, with something in them that was not archived.
fn settle(world: &World) -> std::collections::BTreeMap<std::path::PathBuf, u64> {
    let cluster = &world.production.cluster;
    let tables = cluster.sql("select relname from pg_class where relname like 'late%' and relkind = 'r'");
    for table in tables.lines() {
        cluster.sql(&format!("update {table} set n = n + 1"));
    }
    cluster.sql("checkpoint");
    world.production.fingerprint()
}

/// A copy that is recovered beside its living source, with what recover does by itself, and opened.
fn rehearse(world: &mut World) {
    rehearsal(world, "rehearse", |_, _| {});
}

fn back_up_a_rehearsal(world: &mut World) {
    rehearsal(world, "back up a rehearsal", |world, copy| {
        copy.cluster.sql("checkpoint");
        let arguments = [
            "basebackup",
            "--wal-timeout",
            "3s",
            "-d",
            &copy.cluster.conninfo(),
        ];
        let output = world.walship.run(&arguments);
        world.must(
            output.code != Some(0),
            "a backup of a copy does not succeed in its source's archive",
        );
    });
}

fn rehearsal(world: &mut World, name: &str, then: impl Fn(&World, &Server)) {
    let Some(newest) = restorable(world) else {
        return write(world);
    };
    world.tell(name);
    let (files, objects) = (settle(world), world.objects());
    if let Ok(mut copy) = world.copy(&newest.tablespaces, &[]) {
        copy.cluster.start();
        copy.cluster
            .wait_until("select pg_is_in_recovery()", "f", PATIENCE);
        let row = world.new_row();
        copy.insert(row);
        copy.cluster.sql("update rows set n = n");
        drop_late(&copy);
        copy.cluster.switch_wal();
        then(world, &copy);
        // The archiver works beside us.
        std::thread::sleep(std::time::Duration::from_secs(1));
        copy.cluster.stop(Stop::Fast);
    }
    unchanged(world, &files, &objects);
}

fn drop_late(copy: &Server) {
    let tables = copy
        .cluster
        .sql("select relname from pg_class where relname like 'late%' and relkind = 'r'");
    for table in tables.lines() {
        // Whether it is there is not the question.
        let _ = copy.cluster.try_sql(&format!("drop table {table}; checkpoint"));
    }
}

fn unchanged(
    world: &World,
    files: &std::collections::BTreeMap<std::path::PathBuf, u64>,
    objects: &std::collections::BTreeMap<std::path::PathBuf, u64>,
) {
    world.must(
        &world.production.fingerprint() == files,
        "no file outside a copy changes",
    );
    world.must(
        &world.objects() == objects,
        "a copy stores nothing in its source's archive",
    );
}

fn drill(world: &mut World) {
    if restorable(world).is_none() {
        return write(world);
    }
    world.tell("drill");
    let (files, mut objects) = (settle(world), world.objects());
    let root = scratch();
    let place = make_dir(root.path(), "drill", 0o700);
    let path = format!("{}:/usr/bin:/bin", world.production.cluster.bin_dir().display());
    let walship = world
        .walship
        .clone()
        .env("WALSHIP_DRILL_DIRECTORY", &place)
        .env("PATH", path);
    let output = walship.run(&["drill", "--json"]);
    let mut after = world.objects();
    for found in [&mut objects, &mut after] {
        found.retain(|path, _| path.file_name().is_none_or(|name| name != "proof.json"));
    }
    world.must(
        world.production.fingerprint() == files,
        "no file outside a drill changes",
    );
    world.must(after == objects, "a drill stores nothing but its result");
    let late = world.production.tablespaces.len();
    let known = restorable(world).map_or(0, |backup| backup.tablespaces.len());
    if late == known && !world.ambiguous {
        world.must(
            output.code == Some(0),
            &format!("a drill of what can be restored passes: {output:?}"),
        );
    }
}

/// A copy at an earlier moment whose operator lets it archive, once, and goes away.
fn forget_a_rehearsal(world: &mut World) {
    let first = world.backups.first().cloned();
    let Some(first) =
        first.filter(|_| restorable(world).is_some() && world.production.tablespaces.is_empty())
    else {
        return write(world);
    };
    world.tell("forget a rehearsal");
    // What follows the archive is past the fork by then.
    world.write();
    follower_keeps_up(world);
    let arguments = [
        "--backup",
        &first.id,
        "--target-immediate",
        "--target-action",
        "promote",
        "--archive-mode",
        "on",
    ];
    let Ok(mut copy) = world.copy(&first.tablespaces, &arguments) else {
        return;
    };
    copy.cluster.start();
    copy.cluster
        .wait_until("select pg_is_in_recovery()", "f", PATIENCE);
    let row = world.new_row();
    copy.insert(row);
    let segment = copy.cluster.switch_wal();
    world.ambiguous |= copy.is_done(&segment, PATIENCE);
    copy.cluster.stop(Stop::Fast);
    world.write();
    follower_keeps_up(world);
    check_recovery(world);
}

/// A standby takes over; the former primary is stopped, or goes on.
fn switch_over(world: &mut World) {
    if world.set_back || world.unmounted.is_some() || world.former.is_some() {
        return write(world);
    }
    let stops = world.below(2) == 0;
    world.tell(if stops {
        "switch over"
    } else {
        "fail over, the old primary lives"
    });
    let mut standby = standby_of(world);
    standby.cluster.start();
    let lsn = world.production.cluster.sql("select pg_current_wal_flush_lsn()");
    let reached = format!("select pg_last_wal_replay_lsn() >= '{lsn}'");
    standby.cluster.wait_until(&reached, "t", PATIENCE);
    if stops {
        world.production.cluster.stop(Stop::Fast);
    }
    standby.cluster.sql("select pg_promote()");
    standby
        .cluster
        .wait_until("select pg_is_in_recovery()", "f", PATIENCE);
    let former = std::mem::replace(&mut world.production, standby);
    world.former = (!stops).then_some(former);
    world.snapshot = None;
    world.write();
}

fn standby_of(world: &World) -> Server {
    let production = &world.production;
    let root = scratch();
    let data = root.path().join("data");
    let mut arguments = vec!["-D".to_owned(), data.to_str().unwrap().to_owned()];
    arguments.extend(["-R", "-X", "stream", "-c", "fast"].map(str::to_owned));
    let mut tablespaces = Vec::new();
    for (number, old) in production.tablespaces.iter().enumerate() {
        let new = root.path().join(format!("ts{number}"));
        arguments.extend(["-T".to_owned(), format!("{}={}", old.display(), new.display())]);
        tablespaces.push(new);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    production
        .cluster
        .run_program("pg_basebackup", &arguments)
        .succeeded();
    let cluster = world.walship.adopt(world.major, &data);
    // Promoted, it takes a timeline that nobody has; until then it follows none of somebody else's.
    cluster.set(
        "restore_command",
        &format!("{} restore %f %p", binary().display()),
    );
    cluster.set("recovery_target_timeline", "current");
    Server::new(cluster, production.rows.clone(), tablespaces, Some(root))
}

/// Nobody stopped the former primary, and somebody still writes to it.
fn former_goes_on(world: &mut World) {
    let Some(mut former) = world.former.take() else {
        return write(world);
    };
    world.tell("the former primary writes");
    let row = world.new_row();
    former.insert(row);
    let segment = former.cluster.switch_wal();
    world.ambiguous |= former.is_done(&segment, PATIENCE);
    world.former = Some(former);
    check_recovery(world);
}

fn take_snapshot(world: &mut World) {
    if world.set_back || !world.production.tablespaces.is_empty() {
        return write(world);
    }
    world.tell("take a snapshot of the storage");
    world.production.cluster.stop(Stop::Fast);
    let root = scratch();
    copy_directory(world.production.cluster.data_dir(), &root.path().join("data"));
    world.production.cluster.start();
    world.snapshot = Some(Snapshot {
        root,
        rows: world.production.rows.clone(),
        acknowledged: world.acknowledged.clone(),
    });
    world.write();
}

/// Production is set back to the snapshot, and knows nothing of it.
fn go_back(world: &mut World) {
    let Some(snapshot) = world.snapshot.take() else {
        return write(world);
    };
    world.tell("set production back to the snapshot");
    // The archive is ahead of it by more than a backup takes.
    if !world.set_back && world.unmounted.is_none() {
        for _ in 0..6 {
            world.write();
        }
    }
    let data = world.production.cluster.data_dir().to_owned();
    world.production.cluster.stop(Stop::Immediate);
    std::fs::remove_dir_all(&data).unwrap();
    copy_directory(&snapshot.root.path().join("data"), &data);
    world.set_back = world.acknowledged != snapshot.acknowledged;
    world.production.rows = snapshot.rows;
    if !world.set_back {
        world.history.clone_from(&world.production.rows);
    }
    world.production.cluster.start();
    world.write();
    back_up(world);
}

fn copy_directory(from: &std::path::Path, to: &std::path::Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
    give_to_user(to);
}

/// For some checkpoints the archive's file system is not there, and its mount point is an empty directory.
fn unmount(world: &mut World) {
    if world.set_back {
        return write(world);
    }
    world.tell("unmount the archive");
    let (mounted, aside) = (world.mount_point(), world.mount_point().with_extension("aside"));
    std::fs::rename(&mounted, &aside).unwrap();
    make_dir(
        mounted.parent().unwrap(),
        mounted.file_name().unwrap().to_str().unwrap(),
        0o700,
    );
    world.unmounted = Some(aside.clone());
    for _ in 0..3 {
        world.write();
        world.production.cluster.sql("checkpoint");
    }
    let arguments = [
        "basebackup",
        "--wal-timeout",
        "2s",
        "-d",
        &world.production.cluster.conninfo(),
    ];
    let output = world.walship.run(&arguments);
    world.must(output.code != Some(0), "no backup succeeds into a mount point");
    std::fs::remove_dir_all(&mounted).unwrap();
    std::fs::rename(&aside, &mounted).unwrap();
    world.unmounted = None;
    world.tell("mount it again");
    world.write();
}

/// A standby that knows nothing but the archive.
fn follow(world: &mut World) {
    let Some(newest) = restorable(world).filter(|_| world.follower.is_none() && !world.ambiguous) else {
        return follower_keeps_up(world);
    };
    if world.production.tablespaces != newest.tablespaces {
        return write(world);
    }
    world.tell("make a standby from the archive alone");
    let Ok(mut standby) = world.copy(&newest.tablespaces, &["--archive-mode", "off"]) else {
        return world.must(false, "a standby can be made from the archive");
    };
    let data = standby.cluster.data_dir().to_owned();
    std::fs::rename(data.join("recovery.signal"), data.join("standby.signal")).unwrap();
    standby
        .cluster
        .append("postgresql.auto.conf", "recovery_target_timeline = 'latest'\n");
    standby.cluster.start();
    world.follower = Some(standby);
    follower_keeps_up(world);
}

/// It has what was acknowledged, soon.
fn follower_keeps_up(world: &mut World) {
    let (Some(follower), false) = (&world.follower, world.set_back) else {
        return write(world);
    };
    let expected = world.acknowledged.len().to_string();
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut rows = String::new();
    while rows != expected && std::time::Instant::now() < deadline {
        rows = follower
            .cluster
            .try_sql("select count(*) from rows")
            .unwrap_or_default();
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let found = follower.read();
    world.must(
        found.is_superset(&world.acknowledged),
        "a standby gets what was acknowledged",
    );
}

fn expire(world: &mut World) {
    world.tell("expire, one backup stays");
    let walship = world.walship.clone().env("WALSHIP_RETENTION_KEEP_BACKUPS", "1");
    // It may refuse where something is in doubt; what it leaves is looked at.
    walship.run(&["expire"]);
    let left = listed(world);
    world.backups.retain(|backup| left.contains(&backup.id));
    check_recovery(world);
}

/// Where the newest backup is a way back to production's history.
fn restorable(world: &World) -> Option<Backup> {
    world.backups.last().cloned().filter(|_| !world.set_back)
}

fn listed(world: &World) -> Vec<String> {
    let backups = std::fs::read_dir(world.archive().join("backups"))
        .into_iter()
        .flatten()
        .flatten();
    let listed = backups.filter(|entry| entry.path().join("backup.json").exists());
    let mut ids: Vec<String> = listed
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    ids.sort();
    ids
}

/// Recovery without a target brings production's history back, or is refused where that is in doubt.
fn check_recovery(world: &mut World) {
    let Some(newest) = world.backups.last().cloned() else {
        return;
    };
    let files = settle_unless_set_back(world);
    match world.recovered(&newest, &["--archive-mode", "off"]) {
        Ok(rows) => {
            let text = format!(
                "recovery brings back what was acknowledged: {rows:?} of {:?}",
                world.acknowledged
            );
            world.must(rows.is_superset(&world.acknowledged), &text);
            let text = format!(
                "recovery follows production's history alone: {rows:?} of {:?}",
                world.history
            );
            world.must(rows.is_subset(&world.history), &text);
        }
        Err(output) => {
            let late = world.production.tablespaces.len() > newest.tablespaces.len();
            let text = format!("recovery is refused only where something is in doubt: {output:?}");
            world.must(world.ambiguous || late, &text);
            if world.ambiguous && !late && !world.set_back {
                recover_by_timeline(world, &newest);
            }
        }
    }
    world.must(
        world.production.fingerprint() == files,
        "no file outside a recovered copy changes",
    );
}

fn settle_unless_set_back(world: &World) -> std::collections::BTreeMap<std::path::PathBuf, u64> {
    if world.set_back {
        world.production.fingerprint()
    } else {
        settle(world)
    }
}

/// Whoever says which timeline is meant gets it.
fn recover_by_timeline(world: &World, newest: &Backup) {
    let timeline = world
        .production
        .cluster
        .sql("select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int");
    let arguments = ["--archive-mode", "off", "--target-timeline", &timeline];
    let rows = world.recovered(newest, &arguments);
    let rows: Rows = rows.unwrap_or_else(|output| panic!("{}: {output:?}", world.told()));
    let text = format!(
        "recovery on production's timeline has its rows: {rows:?} of {:?}",
        world.acknowledged
    );
    world.must(
        rows.is_superset(&world.acknowledged) && rows.is_subset(&world.history),
        &text,
    );
}

/// A backup that is listed can be restored, and holds what its server had.
fn check_listed(world: &mut World) {
    let left = listed(world);
    for backup in world.backups.clone() {
        if !left.contains(&backup.id) {
            continue;
        }
        let arguments = [
            "--archive-mode",
            "off",
            "--backup",
            &backup.id,
            "--target-immediate",
            "--target-action",
            "promote",
        ];
        match world.recovered(&backup, &arguments) {
            Ok(rows) => world.must(
                rows == backup.rows,
                &format!("backup {} holds what its server had", backup.id),
            ),
            Err(output) => world.must(
                false,
                &format!("backup {} can be restored: {output:?}", backup.id),
            ),
        }
    }
}
