//! An agent that is killed, stopped and started again at any moment, under a server with work to do:
//! nothing is lost, nothing is acknowledged before it was stored, no recovery ends early.
//!
//! `WALSHIP_CHAOS_ROUNDS` sets how often (default 12).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use walship_core::pg::Major;

use crate::server::wait_archived;
use crate::support::postgres::{Cluster, Stop};
use crate::support::process::{Running, signal};
use crate::support::stores::{Kind, Place, StoreServer};
use crate::support::walship::{Walship, binary};
use crate::support::{command_as_user, make_dir, scratch, wait_for};

const PATIENCE: Duration = Duration::from_mins(3);

fn rounds() -> u32 {
    let given = std::env::var("WALSHIP_CHAOS_ROUNDS").ok();
    given.map_or(12, |text| text.parse().expect("a number of rounds"))
}

/// A number from 0 to `below`, from the clock: each run tries other moments.
fn any(below: u64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::from(now.subsec_micros()) % below
}

/// A primary that keeps a copy of every segment, as it was when it was acknowledged, in `kept`.
fn primary(walship: &Walship, kept: &Path) -> Cluster {
    // The copy comes first: what is acknowledged was there to be copied.
    let command = format!("cp %p {}/%f && {} push %p", kept.display(), binary().display());
    let mut builder = Cluster::builder(Major::V18)
        .option("archive_mode", "on")
        .option("archive_command", &command);
    for (name, value) in walship.environment() {
        builder = builder.env(name, value);
    }
    builder.initdb()
}

/// Makes WAL until it is told to stop; as much as is archived, once some dozens of segments wait.
fn load(cluster: &Cluster, stop: &AtomicBool) {
    let status = cluster.data_dir().join("pg_wal/archive_status");
    let ready = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|ending| ending == "ready");
    while !stop.load(Ordering::Relaxed) {
        if fs::read_dir(&status).unwrap().flatten().filter(ready).count() > 32 {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        cluster.sql(
            "insert into t select g, md5(random()::text) from generate_series(1, 20000) g; select pg_switch_wal()",
        );
    }
}

fn agent(walship: &Walship, data: &Path) -> Running {
    walship
        .clone()
        .in_dir("/")
        .spawn(&["agent", "--pgdata", data.to_str().unwrap()])
}

/// Kills, stops, or lets live an agent, some hundred times faster than life does.
fn torment(walship: &Walship, data: &Path, rounds: u32) -> u32 {
    let mut kills = 0;
    for round in 0..rounds {
        let mut running = agent(walship, data);
        std::thread::sleep(Duration::from_millis(20 + any(250)));
        if round % 4 == 3 {
            signal(running.pid(), Signal::STOP);
            std::thread::sleep(Duration::from_millis(500 + any(2500)));
            signal(running.pid(), Signal::CONT);
            std::thread::sleep(Duration::from_millis(any(200)));
            running.terminate();
            running.wait(PATIENCE);
        } else {
            running.kill9();
            kills += 1;
        }
    }
    kills
}

/// Every stored segment by its name, as `zstd` reads it.
fn stored(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut stored = BTreeMap::new();
    for timeline in fs::read_dir(archive.join("wal")).unwrap() {
        let timeline = timeline.unwrap().path();
        for folder in fs::read_dir(&timeline).into_iter().flatten() {
            for file in fs::read_dir(folder.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                if let Some(name) = name.strip_suffix(".zst").filter(|name| name.len() == 24) {
                    let decoded = Command::new("zstd").arg("-dcq").arg(&path).output().unwrap();
                    assert!(decoded.status.success(), "{name}");
                    stored.insert(name.to_owned(), decoded.stdout);
                }
            }
        }
    }
    stored
}

/// The segments in a folder: the copies that were kept, or `pg_wal`.
fn read_kept(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let segments = entries.filter(|path| path.file_name().unwrap().len() == 24);
    segments
        .map(|path| {
            (
                path.file_name().unwrap().to_str().unwrap().to_owned(),
                fs::read(&path).unwrap(),
            )
        })
        .collect()
}

fn sockets(root: &Path) -> PathBuf {
    make_dir(root, "agent", 0o700)
}

// Seen to fail: `agent/archiver.rs`: `push` answers before the outcome is known
#[test]
fn nothing_is_lost_whatever_becomes_of_the_agent_and_recovery_finds_it_all() {
    let root = scratch();
    let kept = make_dir(root.path(), "kept", 0o755);
    let archive = Place::directory();
    let socket = sockets(root.path()).join("s");
    let walship = Walship::at(&archive).env("WALSHIP_AGENT_SOCKET", socket.to_str().unwrap());
    let mut cluster = primary(&walship, &kept);
    cluster.start();
    cluster.sql("create table t (i int, x text)");
    let base = root.path().join("base");
    cluster
        .run_program(
            "pg_basebackup",
            &["-D", base.to_str().unwrap(), "-X", "none", "-c", "fast"],
        )
        .succeeded();
    let stop = AtomicBool::new(false);
    let kills = std::thread::scope(|scope| {
        scope.spawn(|| load(&cluster, &stop));
        let kills = torment(&walship, cluster.data_dir(), rounds());
        stop.store(true, Ordering::Relaxed);
        kills
    });
    // PostgreSQL keeps a failure for a minute, unless there is something new.
    let last = cluster.switch_wal();
    wait_archived(&cluster, &last);
    let rows = cluster.sql("select count(*) from t");
    let failed = cluster.sql("select failed_count from pg_stat_archiver");
    cluster.stop(Stop::Fast);
    let (kept, stored) = (read_kept(&kept), stored(archive.path().unwrap()));
    for (name, content) in &kept {
        assert!(
            stored.get(name) == Some(content),
            "{name} was acknowledged and is not in the archive as it was"
        );
    }
    eprintln!(
        "{kills} kills, {} segments, {failed} failures counted, {rows} rows",
        kept.len()
    );
    assert_eq!(failed, "0", "an agent that dies is no failure of archiving");

    // And back again, with an agent that has no better life.
    let mut copy = walship.adopt(Major::V18, &base);
    copy.set("archive_mode", "off");
    copy.set(
        "restore_command",
        &format!("{} restore %f %p", binary().display()),
    );
    copy.append("recovery.signal", "");
    copy.launch();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                torment(&walship, &base, 1);
            }
        });
        let started = copy.wait_ready(PATIENCE);
        copy.wait_until("select pg_is_in_recovery()", "f", PATIENCE);
        ended.store(true, Ordering::Relaxed);
        started.unwrap();
    });
    assert_eq!(copy.sql("select count(*) from t"), rows);
}

#[test]
fn two_live_clones_with_an_agent_each_never_interleave_their_histories() {
    for round in 0..(rounds() / 4).max(2) {
        let root = scratch();
        let server = StoreServer::shared(Kind::SeaweedFs);
        let place = server.new_place();
        let sockets = sockets(root.path());
        let walships = ["a", "b"].map(|name| {
            Walship::at(&place).env("WALSHIP_AGENT_SOCKET", sockets.join(name).to_str().unwrap())
        });
        let kept = ["kept-a", "kept-b"].map(|name| make_dir(root.path(), name, 0o755));
        let mut first = primary(&walships[0], &kept[0]);
        // A backlog that both clones have, and then a history of its own for each.
        first.set("archive_command", "false");
        first.start();
        first.sql("create table t (i int, x text)");
        for _ in 0..4 {
            first.switch_wal();
        }
        first.stop(Stop::Fast);
        let copy = root.path().join("clone");
        let copied = command_as_user("/bin/cp")
            .args(["-a", first.data_dir().to_str().unwrap(), copy.to_str().unwrap()])
            .status()
            .unwrap();
        assert!(copied.success());
        let mut second = walships[1].adopt(Major::V18, &copy);
        let agents = [agent(&walships[0], first.data_dir()), agent(&walships[1], &copy)];
        for (cluster, kept) in [(&mut first, &kept[0]), (&mut second, &kept[1])] {
            let command = format!("cp %p {}/%f && {} push %p", kept.display(), binary().display());
            cluster.set("archive_command", &command);
            cluster.start();
        }
        std::thread::scope(|scope| {
            for cluster in [&first, &second] {
                scope.spawn(|| {
                    for _ in 0..6 {
                        cluster.sql(
                            "insert into t select g, md5(random()::text) from generate_series(1, 8000) g; select pg_switch_wal()",
                        );
                    }
                });
            }
        });
        wait_for("one of the two to be refused", PATIENCE, || {
            let failed =
                |cluster: &Cluster| cluster.sql("select failed_count > 0 from pg_stat_archiver") == "t";
            (failed(&first) || failed(&second)).then_some(())
        });
        std::thread::sleep(Duration::from_secs(2));
        drop(agents);
        first.stop(Stop::Immediate);
        second.stop(Stop::Immediate);
        // What was stored ahead and not asked for yet stands in pg_wal only.
        let versions = [(&first, &kept[0]), (&second, &kept[1])].map(|(cluster, kept)| {
            let mut segments = read_kept(&cluster.data_dir().join("pg_wal"));
            segments.extend(read_kept(kept));
            segments
        });
        let owners = owners(&walships[0], &versions[0], &versions[1], root.path(), &first);
        let text: String = owners.values().collect();
        eprintln!("round {round}: {text}");
        let after_the_fork = text.trim_start_matches('=');
        assert!(
            after_the_fork.chars().all(|owner| owner == 'a')
                || after_the_fork.chars().all(|owner| owner == 'b'),
            "interleaved: {owners:?}"
        );
    }
}

/// Whose version of each stored segment is in the archive: `a`, `b`, or `=` where both are the same.
fn owners(
    walship: &Walship,
    a: &BTreeMap<String, Vec<u8>>,
    b: &BTreeMap<String, Vec<u8>>,
    root: &Path,
    cluster: &Cluster,
) -> BTreeMap<String, char> {
    let target = make_dir(root, "out", 0o700);
    let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let mut owners = BTreeMap::new();
    for name in names {
        let destination = cluster.data_dir().join("pg_wal/FETCHED");
        let _ = fs::remove_file(&destination);
        let output = walship
            .clone()
            .env("WALSHIP_AGENT_SOCKET", target.join("none").to_str().unwrap())
            .env("WALSHIP_RESTORE_TIMEOUT", "2s")
            .in_dir(cluster.data_dir())
            .run(&["restore", name, "pg_wal/FETCHED"]);
        let Ok(content) = fs::read(&destination) else {
            assert_ne!(output.code, Some(0));
            continue;
        };
        let owner = match (a.get(name) == Some(&content), b.get(name) == Some(&content)) {
            (true, true) => '=',
            (true, false) => 'a',
            (false, true) => 'b',
            (false, false) => '?',
        };
        owners.insert(name.clone(), owner);
    }
    owners
}

/// The agents of a data directory, found by their command lines.
fn agents_of(data: &Path) -> Vec<u32> {
    let wanted = format!("--pgdata\0{}", data.display());
    let entries = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_agent = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&words).into_owned();
        text.contains("agent\0--started-by\0") && text.contains(&wanted)
    };
    entries.filter(is_agent).collect()
}

// Seen to fail: `agent/detach.rs`: no `setsid`
#[test]
fn a_backlog_starts_an_agent_that_keeps_nothing_of_postgresqls_and_ends_with_it() {
    let root = scratch();
    let archive = Place::directory();
    let socket = sockets(root.path()).join("s");
    let walship = Walship::at(&archive)
        .env("WALSHIP_AGENT_SOCKET", socket.to_str().unwrap())
        .env("WALSHIP_AGENT_AUTOSTART", "true")
        .env("WALSHIP_LOG_LEVEL", "info");
    // 14 hands its open files down to archive_command.
    let mut builder = Cluster::builder(Major::V14)
        .option("archive_mode", "on")
        .option("archive_command", "false")
        .option("logging_collector", "on");
    for (name, value) in walship.environment() {
        builder = builder.env(name, value);
    }
    let mut cluster = builder.initdb();
    cluster.start();
    for _ in 0..8 {
        cluster.switch_wal();
    }
    cluster.set("archive_command", &format!("{} push %p", binary().display()));
    cluster.reload();
    let last = cluster.switch_wal();
    wait_archived(&cluster, &last);
    let pid = wait_for("an agent", PATIENCE, || {
        agents_of(cluster.data_dir()).first().copied()
    });
    wait_for("the agent to have settled", PATIENCE, || {
        socket.exists().then_some(())
    });
    assert_eq!(agents_of(cluster.data_dir()), [pid], "one is enough");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session: u32 = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(3)
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(session, pid, "it leads a session of its own");
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = fs::read_link(descriptor.unwrap().path()).unwrap_or_default();
        let text = target.to_string_lossy();
        assert!(
            !text.starts_with("pipe:"),
            "it holds a pipe of PostgreSQL's: {text}"
        );
        assert!(!target.starts_with(cluster.data_dir()), "it holds {text}");
    }
    cluster.stop(Stop::Fast);
    wait_for("the agent to end with its server", PATIENCE, || {
        agents_of(cluster.data_dir()).is_empty().then_some(())
    });
    let log = fs::read_to_string(socket.with_extension("log")).unwrap();
    assert!(log.contains("the agent ends: its server has ended"), "{log}");
}

#[test]
fn where_the_postmaster_is_process_1_no_agent_is_started() {
    let root = scratch();
    let archive = Place::directory();
    let data = crate::sample::Sample::shared().copy();
    let status = make_dir(&data.file("pg_wal"), "archive_status", 0o700);
    for name in &crate::sample::Sample::shared().segments {
        fs::write(status.join(format!("{name}.ready")), "").unwrap();
    }
    fs::write(data.file("postmaster.pid"), "1\n").unwrap();
    let socket = sockets(root.path()).join("s");
    let name = &crate::sample::Sample::shared().segments[0];
    let output = data
        .walship(&archive)
        .env("WALSHIP_AGENT_SOCKET", socket.to_str().unwrap())
        .env("WALSHIP_AGENT_AUTOSTART", "true")
        .run(&["push", &format!("pg_wal/{name}")])
        .succeeded();
    assert!(
        output.stderr.contains("would have to reap the agent"),
        "{}",
        output.stderr
    );
    assert!(!socket.exists());
}
