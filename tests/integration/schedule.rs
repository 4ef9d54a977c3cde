//! The jobs that `walship agent` runs by itself, `walship schedule`, and who is told how they ended.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rustix::process::Signal;
use serde_json::Value;
use walship_core::pg::Major;

use crate::sample::Sample;
use crate::server::{archiving_primary, wait_archived};
use crate::support::postgres::Cluster;
use crate::support::process::{Running, signal, start_time};
use crate::support::stores::Place;
use crate::support::walship::Walship;
use crate::support::{give_to_user, make_dir, scratch, wait_for};

const PATIENCE: Duration = Duration::from_mins(2);
/// A slow backup would not have ended by itself.
const PROMPTLY: Duration = Duration::from_secs(15);
/// Each second second, so that a test need not wait for a minute.
const SOON: &str = "*/2 * * * * *";

/// A data directory, and how walship is run beside it with a schedule of its own.
struct Scheduled {
    walship: Walship,
    data: PathBuf,
    state: PathBuf,
    _root: tempfile::TempDir,
}

impl Scheduled {
    fn new(walship: &Walship, data: &Path) -> Self {
        let root = scratch();
        let state = make_dir(root.path(), "state", 0o700);
        let sockets = make_dir(root.path(), "a", 0o700);
        let walship = walship
            .clone()
            .env("WALSHIP_AGENT_SOCKET", sockets.join("agent.sock"))
            .env("WALSHIP_SCHEDULE_STATE_DIRECTORY", &state)
            .env("PGUSER", "postgres")
            .env("WALSHIP_LOG_LEVEL", "info");
        Self {
            walship,
            data: data.to_owned(),
            state,
            _root: root,
        }
    }

    fn with(mut self, settings: &[(&str, &str)]) -> Self {
        for (name, value) in settings {
            self.walship = self.walship.env(format!("WALSHIP_{name}"), value);
        }
        self
    }

    fn data(&self) -> &str {
        self.data.to_str().unwrap()
    }

    fn agent(&self) -> Running {
        let agent = self.walship.spawn(&["agent", "--pgdata", self.data()]);
        wait_for("the agent to answer", PATIENCE, || {
            let ping = ["agent", "--ping", "--pgdata", self.data()];
            (self.walship.run(&ping).code == Some(0)).then_some(())
        });
        agent
    }

    /// What the agent noted; null where there is nothing yet.
    fn state(&self) -> Value {
        let mut files = fs::read_dir(&self.state).unwrap().flatten();
        let state = files.find(|file| {
            file.path()
                .extension()
                .is_some_and(|extension| extension == "json")
        });
        // Replaced in one step: it is always whole.
        state.map_or(Value::Null, |state| {
            serde_json::from_slice(&fs::read(state.path()).unwrap()).unwrap()
        })
    }

    fn wait(&self, what: &str, probe: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, PATIENCE, || Some(self.state()).filter(|state| probe(state)))
    }

    fn report(&self) -> Value {
        let output = self.walship.run(&["schedule", "--json", "--pgdata", self.data()]);
        serde_json::from_str(&output.succeeded().stdout).unwrap()
    }

    fn text(&self) -> String {
        let output = self.walship.run(&["schedule", "--pgdata", self.data()]);
        let text = output.succeeded().stdout;
        let longest = text.lines().map(|line| line.chars().count()).max();
        assert!(longest <= Some(80), "{text}");
        text
    }
}

fn end(agent: Running) -> String {
    agent.terminate();
    agent.wait(PATIENCE).succeeded().stderr
}

fn moment(value: &Value) -> DateTime<Utc> {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value}"))
        .parse()
        .unwrap()
}

fn backups(walship: &Walship) -> Vec<Value> {
    let output = walship.run(&["list", "backups", "--json"]).succeeded();
    let list: Value = serde_json::from_str(&output.stdout).unwrap();
    list["backups"].as_array().unwrap().clone()
}

/// A server that takes a second or two to be backed up at all, and a minute at this rate.
fn slow(primary: &Cluster, walship: &Walship) -> Scheduled {
    Scheduled::new(walship, primary.data_dir()).with(&[
        ("SCHEDULE_BASEBACKUP", SOON),
        ("BACKUP_METHOD", "stream"),
        ("BACKUP_MAX_RATE", "128KiB"),
    ])
}

/// The process of a backup that runs.
fn running_backup(scheduled: &Scheduled) -> u32 {
    let state = scheduled.wait("a backup to run", |state| {
        state["jobs"]["basebackup"]["process_id"].is_number()
    });
    let process = state["jobs"]["basebackup"]["process_id"].as_u64().unwrap() as u32;
    // It has told the kernel with whom it ends, and begun.
    std::thread::sleep(Duration::from_secs(1));
    assert!(start_time(process).is_some(), "{state:#}");
    process
}

// Seen to fail: `agent/schedule.rs`: the end of a job is not noted
#[test]
fn the_agent_runs_its_jobs_and_notes_how_they_ended() {
    let archive = Place::directory();
    let walship = Walship::at(&archive);
    let primary = archiving_primary(Major::V18, &walship);
    let scheduled = Scheduled::new(&walship, primary.data_dir()).with(&[
        ("SCHEDULE_BASEBACKUP", SOON),
        ("SCHEDULE_VERIFY", SOON),
        ("SCHEDULE_EXPIRE", SOON),
        ("SCHEDULE_DOCTOR", "*/5 * * * * *"),
        ("SCHEDULE_DRILL", "30 2 * * SUN"),
        ("RETENTION_KEEP_BACKUPS", "2"),
        ("SCHEDULE_TIME_ZONE", "utc"),
    ]);
    let agent = scheduled.agent();
    scheduled.wait("each job to succeed", |state| {
        ["basebackup", "verify", "expire"]
            .iter()
            .all(|job| state["jobs"][job]["succeeded_at"].is_string())
            && state["jobs"]["doctor"]["exit_code"].is_number()
    });
    let report = scheduled.report();
    assert_eq!(report["agent_answers"], true);
    let jobs = report["jobs"].as_array().unwrap();
    let names: Vec<_> = jobs.iter().map(|job| job["job"].as_str().unwrap()).collect();
    assert_eq!(names, ["basebackup", "expire", "verify", "drill", "doctor"]);
    let drill = &jobs[3];
    assert!(
        drill["started_at"].is_null() && moment(&drill["next_at"]) > Utc::now(),
        "{drill:#}"
    );
    let text = scheduled.text();
    assert!(
        text.contains("30 2 * * SUN") && !text.contains("No agent"),
        "{text}"
    );
    let log = end(agent);
    assert!(log.contains("info: the scheduled basebackup is done"), "{log}");
    let backups = backups(&walship);
    assert!(
        backups
            .iter()
            .any(|backup| backup["label"] == "walship agent, scheduled"),
        "{backups:#?}"
    );
    assert!(scheduled.text().contains("No agent answers"));
    // What ran once is told of for good, even if it is planned no more.
    let later = scheduled.with(&[("SCHEDULE_VERIFY", "")]);
    assert!(later.text().contains("no more"), "{}", later.text());
}

// Seen to fail: `job.rs`: a signal counts as success
#[test]
fn a_job_that_is_killed_is_reported_and_tried_again() {
    let archive = Place::directory();
    let walship = Walship::at(&archive);
    let primary = archiving_primary(Major::V18, &walship);
    let scheduled = slow(&primary, &walship).with(&[("SCHEDULE_BASEBACKUP", "0 0 1 1 *")]);
    // As after a month without an agent.
    let agent = scheduled.agent();
    end(agent);
    let mut state = scheduled.state();
    state["jobs"]["basebackup"]["settled_slot"] = "2020-01-01T00:00:00Z".into();
    let file = fs::read_dir(&scheduled.state)
        .unwrap()
        .flatten()
        .map(|file| file.path());
    let file = file
        .into_iter()
        .find(|path| path.extension().unwrap() == "json")
        .unwrap();
    fs::write(&file, state.to_string()).unwrap();
    let agent = scheduled.agent();
    let process = running_backup(&scheduled);
    assert_eq!(scheduled.state()["jobs"]["basebackup"]["why"], "missed");
    signal(process, Signal::KILL);
    let state = scheduled.wait("the end to be noted", |state| {
        state["jobs"]["basebackup"]["ended_at"].is_string()
    });
    let past = &state["jobs"]["basebackup"];
    assert_eq!(
        (&past["exit_code"], &past["failed_tries"]),
        (&137.into(), &1.into()),
        "{past:#}"
    );
    let report = scheduled.report();
    let next = moment(&report["jobs"][0]["next_at"]) - moment(&past["ended_at"]);
    assert_eq!(
        (next, &report["jobs"][0]["next_why"]),
        (TimeDelta::minutes(1), &"retry".into())
    );
    assert!(scheduled.text().contains("signal 9"), "{}", scheduled.text());
    let log = end(agent);
    assert!(
        log.contains("the scheduled basebackup was ended by signal 9; it is tried again in 1 min"),
        "{log}"
    );
}

// Seen to fail: `edge/scheduled.rs`: the kernel is not told; `job.rs`: a job is left alone when the agent ends;
// `agent/schedule.rs`: nobody is told of a job that ended with its agent
#[test]
fn no_job_outlives_its_agent_however_that_ends() {
    let archive = Place::directory();
    let walship = Walship::at(&archive);
    let primary = archiving_primary(Major::V18, &walship);
    let listener = Listener::start("200 OK");
    let scheduled = slow(&primary, &walship).with(&[("NOTIFY_WEBHOOK", &listener.url("/hook"))]);
    let mut agent = scheduled.agent();
    let process = running_backup(&scheduled);
    agent.kill9();
    wait_for("the job of a killed agent to end", PROMPTLY, || {
        start_time(process).is_none().then_some(())
    });
    drop(agent);
    // Nobody noted its end. The next agent does, and says so.
    let agent = scheduled.agent();
    let second = running_backup(&scheduled);
    let log = end(agent);
    assert!(
        log.contains("the scheduled basebackup ended together with its agent"),
        "{log}"
    );
    assert!(
        start_time(second).is_none(),
        "an agent that is told to end ends its jobs"
    );
    let state = scheduled.state();
    assert!(state["jobs"]["basebackup"]["process_id"].is_null(), "{state:#}");
    assert_eq!(state["jobs"]["basebackup"]["exit_code"], 143);
    let told: Vec<Value> = listener
        .heard()
        .iter()
        .map(|heard| serde_json::from_str(&heard.body).unwrap())
        .collect();
    let codes: Vec<&Value> = told.iter().map(|told| &told["exit_code"]).collect();
    assert_eq!(codes, [&Value::Null, &143.into()], "{told:#?}");
    assert_eq!(told[0]["log"], "the agent ended while it ran\n");
    assert_eq!(told[0]["succeeded"], false);
}

// Seen to fail: `edge/notify.rs`: what a report says is wrong is not logged
#[test]
fn a_job_that_finds_something_says_what_in_the_log() {
    let (data, archive, walship) = small_archive();
    let segment = &Sample::shared().segments[0];
    let path = format!("wal/{}/{}/{segment}.zst", &segment[..8], &segment[..16]);
    fs::write(archive.path().unwrap().join(path), "no WAL").unwrap();
    let scheduled = Scheduled::new(&walship, data.path()).with(&[
        ("SCHEDULE_VERIFY", SOON),
        // No server runs.
        ("SCHEDULE_DOCTOR", SOON),
    ]);
    let agent = scheduled.agent();
    let state = scheduled.wait("both to find something", |state| {
        state["jobs"]["verify"]["exit_code"] == 7 && state["jobs"]["doctor"]["exit_code"] == 2
    });
    let log = end(agent);
    for (job, found) in [("verify", "wal/"), ("doctor", "server.reachable: ")] {
        let said = state["jobs"][job]["said"].as_str().unwrap_or_default();
        assert!(
            said.contains(found) && log.contains(said),
            "{job}: {said:?} in {log}"
        );
    }
}

// Seen to fail: `job.rs`: the agent's -d is left out
#[test]
fn the_server_that_the_agent_was_given_is_the_one_that_is_backed_up() {
    let archive = Place::directory();
    let walship = Walship::at(&archive);
    let primary = archiving_primary(Major::V18, &walship);
    let scheduled = Scheduled::new(&walship, primary.data_dir()).with(&[("SCHEDULE_BASEBACKUP", SOON)]);
    let elsewhere = scheduled.walship.clone().env("PGHOST", "/nonexistent");
    let agent = elsewhere.spawn(&["agent", "--pgdata", scheduled.data(), "-d", &primary.conninfo()]);
    let state = scheduled.wait("a backup to end", |state| {
        state["jobs"]["basebackup"]["ended_at"].is_string()
    });
    assert_eq!(state["jobs"]["basebackup"]["exit_code"], 0, "{state:#}");
    end(agent);
}

// Seen to fail: `agent/schedule.rs`: standbys run jobs
#[test]
fn a_standby_runs_no_job_unless_it_is_told_to() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    data.walship(&archive)
        .run(&["push", &format!("pg_wal/{}", Sample::shared().segments[0])])
        .succeeded();
    fs::write(data.file("standby.signal"), "").unwrap();
    let scheduled = Scheduled::new(&data.walship(&archive), data.path()).with(&[("SCHEDULE_VERIFY", SOON)]);
    let agent = scheduled.agent();
    let state = scheduled.wait("a slot to be left out", |state| {
        state["jobs"]["verify"]["left_out"].is_object()
    });
    assert!(state["jobs"]["verify"]["started_at"].is_null(), "{state:#}");
    let text = scheduled.text();
    assert!(
        text.contains("left out") && text.contains("schedule.on_standby"),
        "{text}"
    );
    end(agent);
    let told = scheduled.with(&[("SCHEDULE_ON_STANDBY", "true")]);
    let agent = told.agent();
    told.wait("a job to succeed", |state| {
        state["jobs"]["verify"]["succeeded_at"].is_string()
    });
    end(agent);
}

// Seen to fail: `agent/schedule.rs`: the archive is not looked at
#[test]
fn a_backup_that_another_host_takes_is_waited_for() {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    data.walship(&archive)
        .run(&["push", &format!("pg_wal/{}", Sample::shared().segments[0])])
        .succeeded();
    let id = Utc::now().format("%Y%m%dT%H%M%SZ").to_string();
    let folder = archive.path().unwrap().join("backups").join(id);
    fs::create_dir_all(&folder).unwrap();
    give_to_user(folder.parent().unwrap());
    give_to_user(&folder);
    for name in ["started.json", "alive.json"] {
        fs::write(folder.join(name), "").unwrap();
        give_to_user(&folder.join(name));
    }
    let scheduled =
        Scheduled::new(&data.walship(&archive), data.path()).with(&[("SCHEDULE_BASEBACKUP", SOON)]);
    let agent = scheduled.agent();
    std::thread::sleep(Duration::from_secs(6));
    let state = scheduled.state();
    assert!(state["jobs"]["basebackup"]["started_at"].is_null(), "{state:#}");
    let log = end(agent);
    assert!(log.contains("is being taken"), "{log}");
    assert_eq!(
        log.matches("waits:").count(),
        1,
        "it does not ask again and again: {log}"
    );
}

// Seen to fail: `agent/schedule/watch.rs`: no gap is looked for; `agent/schedule.rs`: the limit does not hold
#[test]
fn a_gap_leads_to_a_fresh_backup_and_to_no_more_than_are_allowed() {
    let archive = Place::directory();
    let walship = Walship::at(&archive);
    let primary = archiving_primary(Major::V18, &walship);
    let gap = || {
        let segments: Vec<String> = (0..3)
            .map(|_| {
                primary.sql(
                    "create table if not exists t (i int); insert into t select generate_series(1, 100)",
                );
                primary.switch_wal()
            })
            .collect();
        wait_archived(&primary, &segments[2]);
        let lost = &segments[1];
        let path = format!("wal/{}/{}/{lost}.zst", &lost[..8], &lost[..16]);
        fs::remove_file(archive.path().unwrap().join(path)).unwrap();
    };
    walship
        .run(&["basebackup", "-d", &primary.conninfo()])
        .succeeded();
    gap();
    let scheduled = Scheduled::new(&walship, primary.data_dir())
        .with(&[("SCHEDULE_ON_GAP", "basebackup"), ("SCHEDULE_MAX_EXTRA", "1")]);
    let agent = scheduled.agent();
    scheduled.wait("the extra backup", |state| {
        state["jobs"]["basebackup"]["succeeded_at"].is_string()
    });
    let state = scheduled.state();
    assert_eq!(state["jobs"]["basebackup"]["why"], "gap");
    assert_eq!(state["extra_at"].as_array().unwrap().len(), 1);
    let log = end(agent);
    assert!(
        log.contains("is missing") && log.contains("a base backup is taken"),
        "{log}"
    );
    let taken = backups(&walship);
    assert_eq!(taken.len(), 2);
    assert_eq!(taken[1]["label"], "walship agent, after a gap in the WAL");
    // Without a new gap there is no new backup, and with one today's are used up.
    let agent = scheduled.agent();
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(scheduled.state()["extra_at"].as_array().unwrap().len(), 1);
    let log = end(agent);
    assert!(!log.contains("used up"), "{log}");
    gap();
    let agent = scheduled.agent();
    std::thread::sleep(Duration::from_secs(8));
    let log = end(agent);
    assert!(log.contains("used up (schedule.max_extra = 1)"), "{log}");
    assert_eq!(backups(&walship).len(), 2);
}

// Seen to fail: `agent/schedule/watch.rs`: the first timeline counts as new; a backup of the timeline does not count
#[test]
fn a_promotion_leads_to_one_backup_of_the_new_timeline() {
    let archive = Place::directory();
    let walship = Walship::at(&archive);
    let mut primary = archiving_primary(Major::V18, &walship);
    walship
        .run(&["basebackup", "-d", &primary.conninfo()])
        .succeeded();
    let settings = [("SCHEDULE_ON_NEW_TIMELINE", "basebackup")];
    let scheduled = Scheduled::new(&walship, primary.data_dir()).with(&settings);
    let agent = scheduled.agent();
    std::thread::sleep(Duration::from_secs(3));
    assert!(
        scheduled.state()["jobs"]["basebackup"].is_null(),
        "timeline 1 is not new"
    );
    end(agent);
    primary.stop(crate::support::postgres::Stop::Fast);
    primary.append("postgresql.conf", "restore_command = 'false'\n");
    fs::write(primary.data_dir().join("standby.signal"), "").unwrap();
    primary.start();
    primary.sql("select pg_promote()");
    primary.wait_until("select not pg_is_in_recovery()", "t", PATIENCE);
    primary.sql("checkpoint");
    wait_archived(&primary, &primary.switch_wal());
    for round in 0..2 {
        let agent = scheduled.agent();
        scheduled.wait("the extra backup", |state| {
            state["jobs"]["basebackup"]["succeeded_at"].is_string()
        });
        std::thread::sleep(Duration::from_secs(3));
        end(agent);
        let taken = backups(&walship);
        assert_eq!(taken.len(), 2, "round {round}: {taken:#?}");
        assert_eq!(taken[1]["label"], "walship agent, on a new timeline");
    }
}

/// A server that takes what is told to it.
struct Listener {
    url: String,
    heard: Arc<Mutex<Vec<Heard>>>,
}

#[derive(Debug, Clone)]
struct Heard {
    path: String,
    body: String,
}

impl Listener {
    /// Answers each request with this status.
    fn start(status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Some(request) = hear(stream, status) {
                    noted.lock().unwrap().push(request);
                }
            }
        });
        Self { url, heard }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }
}

fn hear(mut stream: TcpStream, status: &str) -> Option<Heard> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.strip_prefix("POST ")?.split(' ').next()?.to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    Some(Heard {
        path,
        body: String::from_utf8(body).ok()?,
    })
}

/// An archive with a segment, and walship beside its data directory.
fn small_archive() -> (crate::sample::DataDirectory, Place, Walship) {
    let (data, archive) = (Sample::shared().copy(), Place::directory());
    let walship = data.walship(&archive);
    let segment = format!("pg_wal/{}", Sample::shared().segments[0]);
    walship.run(&["push", &segment]).succeeded();
    (data, archive, walship)
}

// Seen to fail: `edge/notify.rs`: the beginning is not told; the exit code is not
#[test]
fn a_command_by_hand_tells_when_it_begins_and_how_it_ended() {
    let (_data, archive, walship) = small_archive();
    let listener = Listener::start("200 OK");
    let root = scratch();
    let told = make_dir(root.path(), "told", 0o700);
    let command = format!(
        "cat > {0}/message; echo $WALSHIP_JOB $WALSHIP_RESULT $WALSHIP_EXIT_CODE > {0}/words",
        told.display()
    );
    let walship = walship
        .env("WALSHIP_NOTIFY_VERIFY_PING_URL", listener.url("/ping/key"))
        .env("WALSHIP_NOTIFY_WEBHOOK", listener.url("/hook?token=s3cret"))
        .env("WALSHIP_NOTIFY_COMMAND", command);
    let printed = walship.run(&["verify", "--json"]).succeeded().stdout;
    let heard = listener.heard();
    assert_eq!(heard.len(), 3, "{heard:#?}");
    let (start, run_id) = heard[0].path.split_once("?rid=").unwrap();
    assert_eq!(start, "/ping/key/start");
    let end = heard
        .iter()
        .find(|heard| heard.path == format!("/ping/key?rid={run_id}"))
        .unwrap();
    assert!(end.body.contains("\"is_clean\": true"), "{}", end.body);
    let hook = heard
        .iter()
        .find(|heard| heard.path == "/hook?token=s3cret")
        .unwrap();
    let message: Value = serde_json::from_str(&hook.body).unwrap();
    assert_eq!(
        (&message["job"], &message["succeeded"], &message["exit_code"]),
        (&"verify".into(), &true.into(), &0.into())
    );
    assert_eq!(message["run_id"], run_id);
    assert_eq!(
        message["report"],
        serde_json::from_str::<Value>(&printed).unwrap()
    );
    assert_eq!(fs::read_to_string(told.join("words")).unwrap(), "verify ok 0\n");
    assert_eq!(
        serde_json::from_str::<Value>(&fs::read_to_string(told.join("message")).unwrap()).unwrap(),
        message
    );
    // A failure is told with its exit code and its reason.
    let lost = archive.path().unwrap().join("walship.json");
    fs::rename(&lost, archive.path().unwrap().join("away")).unwrap();
    let failed = walship.run(&["verify"]);
    assert_eq!(failed.code, Some(2), "{failed:#?}");
    let heard = listener.heard();
    let end = heard
        .iter()
        .find(|heard| heard.path.starts_with("/ping/key/2?rid="))
        .unwrap();
    assert!(
        failed.stderr.contains(end.body.trim()) && !end.body.trim().is_empty(),
        "{}",
        end.body
    );
    assert_eq!(
        fs::read_to_string(told.join("words")).unwrap(),
        "verify failed 2\n"
    );
}

// Seen to fail: `edge/notify/http.rs`: an error has the URL; a refusal is tried again
#[test]
fn whoever_cannot_be_told_holds_up_nothing_and_no_secret_is_logged() {
    let (_data, _archive, walship) = small_archive();
    let refuses = Listener::start("404 Not Found");
    let dead = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead_url = format!("http://{}/s3cret-hook", dead.local_addr().unwrap());
    drop(dead);
    let walship = walship
        .env("WALSHIP_NOTIFY_VERIFY_PING_URL", refuses.url("/s3cret-ping"))
        .env("WALSHIP_NOTIFY_WEBHOOK", dead_url)
        .env("WALSHIP_NOTIFY_COMMAND", "exit 7 # s3cret-command")
        .env("WALSHIP_LOG_LEVEL", "trace");
    let output = walship.run(&["verify"]).succeeded();
    for said in [
        "notify.verify_ping_url: the server answered with 404",
        "notify.webhook: connect: connection refused",
        "notify.command: it failed: exit status: 7",
    ] {
        assert!(output.stderr.contains(said), "{said} in {}", output.stderr);
    }
    assert!(!output.stderr.contains("s3cret"), "{}", output.stderr);
    assert_eq!(refuses.heard().len(), 2, "a refusal is not tried again");
}

// Seen to fail: `edge/notify.rs`: there is no limit for all attempts together
#[test]
fn a_command_waits_no_longer_than_half_a_minute_for_somebody_who_does_not_answer() {
    let (_data, _archive, walship) = small_archive();
    // It is connected, and nothing more happens.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/ping", silent.local_addr().unwrap());
    let begun = std::time::Instant::now();
    let walship = walship.env("WALSHIP_NOTIFY_VERIFY_PING_URL", url);
    let output = walship.run(&["verify"]).succeeded();
    assert!(begun.elapsed() < Duration::from_secs(38), "{:?}", begun.elapsed());
    for said in ["no answer within 10 s", "no answer within 20 s"] {
        assert!(output.stderr.contains(said), "{}", output.stderr);
    }
}

// Seen to fail: `doctor/args.rs`: nobody is told
#[test]
fn doctor_by_hand_tells_what_it_found_and_the_look_before_a_promotion_does_not() {
    let (_data, _archive, walship) = small_archive();
    let listener = Listener::start("200 OK");
    let walship = walship
        .env("WALSHIP_NOTIFY_DOCTOR_PING_URL", listener.url("/ping"))
        .env("PGHOST", "/nonexistent");
    walship.run(&["doctor", "--before-promote"]);
    assert!(listener.heard().is_empty(), "{:#?}", listener.heard());
    let output = walship.run(&["doctor"]);
    assert_eq!(output.code, Some(2), "{output:#?}");
    let heard = listener.heard();
    assert_eq!(heard.len(), 2, "{heard:#?}");
    assert!(heard[1].path.starts_with("/ping/2?rid="), "{heard:#?}");
    assert!(heard[1].body.contains("server.reachable"), "{heard:#?}");
}

// Seen to fail: `command_line/mod.rs`: a job of an agent tells, too
#[test]
fn a_job_of_the_agent_is_told_once() {
    let (data, _archive, walship) = small_archive();
    let listener = Listener::start("200 OK");
    let scheduled = Scheduled::new(&walship, data.path()).with(&[
        ("SCHEDULE_VERIFY", "*/10 * * * * *"),
        ("NOTIFY_VERIFY_PING_URL", &listener.url("/ping")),
        ("NOTIFY_WEBHOOK", &listener.url("/hook")),
    ]);
    let agent = scheduled.agent();
    scheduled.wait("a job to succeed", |state| {
        state["jobs"]["verify"]["succeeded_at"].is_string()
    });
    wait_for("the end to be told", PATIENCE, || {
        (listener.heard().len() >= 3).then_some(())
    });
    std::thread::sleep(Duration::from_secs(1));
    let log = end(agent);
    let heard = listener.heard();
    let runs = heard.iter().filter(|heard| heard.path == "/hook").count();
    assert_eq!(heard.len(), 3 * runs, "{heard:#?}");
    assert_eq!(
        log.matches("the scheduled verify is done").count(),
        runs,
        "{log}\n{heard:#?}"
    );
    let hook = heard.iter().find(|heard| heard.path == "/hook").unwrap();
    let message: Value = serde_json::from_str(&hook.body).unwrap();
    assert_eq!(
        (&message["job"], &message["report"]["is_clean"]),
        (&"verify".into(), &true.into())
    );
    let run_id = message["run_id"].as_str().unwrap();
    for path in [format!("/ping/start?rid={run_id}"), format!("/ping?rid={run_id}")] {
        assert!(
            heard.iter().any(|heard| heard.path == path),
            "{path} in {heard:#?}"
        );
    }
}
