//! What the agent shows to Prometheus, asked as Prometheus asks.

#![allow(clippy::float_cmp)] // counts and 0 or 1

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use walship_core::pg::Major;

use crate::agent::Agent;
use crate::recovery::take_backup;
use crate::sample::Sample;
use crate::server::{archiving_primary, majors, wait_archived};
use crate::support::ports::Port;
use crate::support::postgres::Cluster;
use crate::support::process::Running;
use crate::support::stores::Place;
use crate::support::walship::Walship;
use crate::support::{command_as_user, give_to_user, make_dir, scratch, tools, wait_for};

const PATIENCE: Duration = Duration::from_mins(1);

/// Status line, headers and body of an answer.
fn ask(port: &Port, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port.number)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn get(port: &Port, path: &str) -> (String, String) {
    ask(
        port,
        &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
    )
}

/// Samples by name and labels, as they are written.
#[track_caller]
fn scrape(port: &Port) -> BTreeMap<String, f64> {
    let (head, body) = get(port, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut samples = BTreeMap::new();
    for line in body.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let twice = samples.insert(name.to_owned(), value.parse().unwrap());
        assert!(twice.is_none(), "{line} comes twice");
    }
    samples
}

/// The only sample of this name whose labels contain all of these.
#[track_caller]
fn value(samples: &BTreeMap<String, f64>, name: &str, labels: &[&str]) -> Option<f64> {
    let fitting = |key: &&String| {
        let (found, rest) = key.split_once('{').unwrap_or((key, ""));
        found == name && labels.iter().all(|label| rest.contains(label))
    };
    let found: Vec<_> = samples.keys().filter(fitting).collect();
    assert!(found.len() <= 1, "{name}: {found:?}");
    found.first().map(|key| samples[*key])
}

fn showing(walship: &Walship, port: &Port) -> Walship {
    walship
        .clone()
        .env("WALSHIP_METRICS_LISTEN", format!("127.0.0.1:{}", port.number))
        .env("WALSHIP_METRICS_INTERVAL", "1s")
}

fn with_server(walship: Walship, cluster: &Cluster) -> Walship {
    walship
        .env("WALSHIP_METRICS_POSTGRES", "true")
        .env("PGHOST", cluster.socket_dir())
        .env("PGPORT", cluster.port().to_string())
        .env("PGUSER", "postgres")
        .env("PGDATABASE", "postgres")
}

#[test]
fn every_version_and_its_archive_are_shown() {
    for &major in majors() {
        let (place, port) = (Place::directory(), Port::take());
        let walship = Walship::at(&place);
        let primary = archiving_primary(major, &walship);
        primary.sql("create role watcher login in role pg_monitor");
        primary.sql("select pg_create_physical_replication_slot('spare', true)");
        // Without its library its view fails, and no other.
        primary.sql("create extension pg_stat_statements");
        take_backup(&walship, &primary);
        primary.wait_until("select archived_count >= 1 from pg_stat_archiver", "t", PATIENCE);
        let shown = with_server(showing(&walship, &port), &primary).env("PGUSER", "watcher");
        let agent = Agent::start(&shown, primary.data_dir());
        let samples = wait_for("the archive to be looked at", PATIENCE, || {
            let samples = scrape(&port);
            (value(&samples, "walship_status_success", &[]) == Some(1.0)).then_some(samples)
        });
        let archive = format!("archive=\"{}\"", place.url);
        let own = samples.keys().filter(|key| key.starts_with("walship_"));
        for key in
            own.filter(|key| !key.starts_with("walship_pg_") && !key.starts_with("walship_filesystem_"))
        {
            assert!(key.contains(&archive), "{key}");
        }
        let has = |name: &str, labels: &[&str]| {
            value(&samples, name, labels).unwrap_or_else(|| panic!("{major}: no {name}: {samples:#?}"))
        };
        assert_eq!(
            has("walship_info", &[&format!("postgres_major=\"{major}\"")]),
            1.0
        );
        assert_eq!(has("walship_backups", &["state=\"restorable\""]), 1.0);
        assert_eq!(has("walship_wal_gaps", &[]), 0.0);
        assert_eq!(has("walship_archive_ready_files", &[]), 0.0);
        assert!(has("walship_backup_last_success_timestamp_seconds", &[]) > 1.7e9);
        assert!(has("walship_filesystem_avail_bytes", &["pg_wal"]) > 0.0);
        assert!(has("process_resident_memory_bytes", &[]) < 64e6);
        assert_eq!(has("pg_up", &[]), 1.0);
        assert_eq!(has("pg_replication_is_replica", &[]), 0.0);
        assert!(has("pg_settings_max_connections", &[]) > 1.0);
        assert_eq!(has("pg_replication_slots_active", &["spare"]), 0.0);
        assert!(has("pg_stat_archiver_archived_count", &[]) >= 1.0);
        assert!(has("pg_database_size_bytes", &["postgres"]) > 1e6);
        assert!(has("pg_wal_segments", &[]) >= 1.0);
        assert!(has("pg_stat_checkpointer_num_requested_total", &[]) >= 1.0);
        assert!(has("pg_stat_database_xact_commit", &["datname=\"postgres\""]) > 0.0);
        assert_eq!(has("walship_pg_slow_queries", &["postgres"]), 0.0);
        agent.end();
    }
}

// Seen to fail: `metrics/postgres.rs`: `pg_up` is always 1
#[test]
fn a_server_that_is_down_is_shown_as_down_and_its_archive_still_is_there() {
    let (place, port) = (Place::directory(), Port::take());
    let walship = Walship::at(&place);
    let mut primary = archiving_primary(Major::V18, &walship);
    wait_archived(&primary, &primary.switch_wal());
    let agent = Agent::start(
        &with_server(showing(&walship, &port), &primary),
        primary.data_dir(),
    );
    wait_for("the server", PATIENCE, || {
        (value(&scrape(&port), "pg_up", &[]) == Some(1.0)).then_some(())
    });
    primary.stop(crate::support::postgres::Stop::Fast);
    let samples = wait_for("the end of the server", PATIENCE, || {
        let samples = scrape(&port);
        (value(&samples, "pg_up", &[]) == Some(0.0)).then_some(samples)
    });
    assert_eq!(value(&samples, "walship_status_success", &[]), Some(1.0));
    assert_eq!(
        value(&samples, "pg_stat_archiver_archived_count", &[]),
        None,
        "not a value of before"
    );
    primary.start();
    wait_for("the server again", PATIENCE, || {
        (value(&scrape(&port), "pg_up", &[]) == Some(1.0)).then_some(())
    });
    agent.end();
}

// Seen to fail: `metrics/mod.rs`: what was known is dropped
#[test]
fn an_archive_that_is_away_is_shown_as_such_and_not_as_empty() {
    let (data, place, port) = (Sample::shared().copy(), Place::directory(), Port::take());
    let walship = data.walship(&place);
    let segments = &Sample::shared().segments;
    walship
        .run(&["push", &format!("pg_wal/{}", segments[0])])
        .succeeded();
    let agent = Agent::start(&showing(&walship, &port), data.path());
    let looked = |success: f64| {
        wait_for("a look at the archive", PATIENCE, || {
            let samples = scrape(&port);
            (value(&samples, "walship_status_success", &[]) == Some(success)).then_some(samples)
        })
    };
    looked(1.0);
    assert!(get(&port, "/readyz").0.starts_with("HTTP/1.1 200"));
    let (here, away) = (
        place.path().unwrap(),
        place.path().unwrap().with_extension("away"),
    );
    std::fs::rename(here, &away).unwrap();
    let waiting =
        make_dir(&data.file("pg_wal"), "archive_status", 0o700).join(format!("{}.ready", segments[1]));
    std::fs::write(waiting, "").unwrap();
    let samples = wait_for("what waits for the archiver", PATIENCE, || {
        let samples = looked(0.0);
        (value(&samples, "walship_archive_ready_files", &[]) == Some(1.0)).then_some(samples)
    });
    assert!(
        value(&samples, "walship_info", &[]).is_some(),
        "what was known stays, with its time"
    );
    assert!(get(&port, "/readyz").0.starts_with("HTTP/1.1 503"));
    assert!(get(&port, "/healthz").0.starts_with("HTTP/1.1 200"));
    std::fs::rename(&away, here).unwrap();
    looked(1.0);
    agent.end();
}

// Seen to fail: `agent/server.rs`: what a client tells is not counted
#[test]
fn what_postgresql_called_is_counted_whoever_did_it() {
    let (data, place, port) = (Sample::shared().copy(), Place::directory(), Port::take());
    let walship = data.walship(&place);
    let segments = &Sample::shared().segments;
    let agent = Agent::start(&showing(&walship, &port), data.path());
    let count = |name: &str, labels: &[&str]| value(&scrape(&port), name, labels).unwrap_or(0.0);
    agent
        .ask()
        .run(&["push", &format!("pg_wal/{}", segments[0])])
        .succeeded();
    assert_eq!(count("walship_push_duration_seconds_count", &[]), 1.0);
    std::fs::write(data.file("pg_wal").join(&segments[1]), "not WAL").unwrap();
    agent
        .ask()
        .run(&["push", &format!("pg_wal/{}", segments[1])])
        .exited(1);
    assert_eq!(count("walship_push_failures_total", &["kind=\"corrupt\""]), 1.0);
    // With this one the agent has nothing to do.
    std::fs::write(data.file("pg_wal").join("nonsense"), "").unwrap();
    agent.ask().run(&["push", "pg_wal/nonsense"]).exited(1);
    wait_for("the failure to be told", PATIENCE, || {
        (count("walship_push_failures_total", &["kind=\"invalid\""]) == 1.0).then_some(())
    });
    let delivered = "pg_wal/RECOVERYXLOG".to_owned();
    agent
        .ask()
        .run(&["restore", segments[0].as_str(), delivered.as_str()])
        .succeeded();
    assert_eq!(count("walship_restore_duration_seconds_count", &[]), 1.0);
    assert!(
        count(
            "walship_store_requests_total",
            &["operation=\"put\"", "outcome=\"ok\""]
        ) >= 1.0
    );
    assert!(
        count(
            "walship_store_request_duration_seconds_count",
            &["operation=\"get\""]
        ) >= 1.0
    );
    agent.end();
}

// Seen to fail: `metrics/http.rs`: every name is ours
#[test]
fn only_questions_by_a_name_of_this_machine_are_answered_and_nothing_can_be_done() {
    let (data, place, port) = (Sample::shared().copy(), Place::directory(), Port::take());
    let shown = showing(&data.walship(&place), &port).env("WALSHIP_METRICS_HOSTS", "db1.example");
    let agent = Agent::start(&shown, data.path());
    let code = |method: &str, host: &str, path: &str| {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        ask(&port, &request).0[9..12].to_owned()
    };
    for host in ["localhost", "127.0.0.1:1", "[::1]", "db1.example:9987"] {
        assert_eq!(code("GET", host, "/healthz"), "200", "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", ""] {
        assert_eq!(code("GET", host, "/metrics"), "421", "{host}");
    }
    for method in ["POST", "DELETE", "PUT"] {
        assert_eq!(code(method, "localhost", "/metrics"), "405", "{method}");
    }
    assert_eq!(code("GET", "localhost", "/etc/passwd"), "404");
    agent.end();
}

// Seen to fail: `metrics/http.rs`: any number of connections, for ever
#[test]
fn a_thousand_idle_connections_and_a_storm_of_scrapes_keep_nobody_out() {
    let (data, place, port) = (Sample::shared().copy(), Place::directory(), Port::take());
    let walship = data.walship(&place);
    let agent = Agent::start(&showing(&walship, &port), data.path());
    let idle: Vec<_> = (0..1000)
        .map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, port.number)).unwrap())
        .collect();
    let begun = Instant::now();
    for _ in 0..200 {
        scrape(&port);
    }
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    let open = value(&scrape(&port), "process_open_fds", &[]).unwrap();
    assert!(open < 250.0, "the agent holds {open} files open");
    agent
        .ask()
        .run(&["push", &format!("pg_wal/{}", Sample::shared().segments[0])])
        .succeeded();
    drop(idle);
    agent.end();
}

#[test]
fn a_taken_port_does_not_keep_the_agent_from_archiving() {
    let (data, place, port) = (Sample::shared().copy(), Place::directory(), Port::take());
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port.number)).unwrap();
    let agent = Agent::start(&showing(&data.walship(&place), &port), data.path());
    agent
        .ask()
        .run(&["push", &format!("pg_wal/{}", Sample::shared().segments[0])])
        .succeeded();
    drop(taken);
    let said = agent.end();
    assert!(said.contains("metrics.listen"), "{said}");
}

#[test]
fn a_host_with_the_archive_alone_shows_it() {
    let (data, place, port) = (Sample::shared().copy(), Place::directory(), Port::take());
    data.walship(&place)
        .run(&["push", &format!("pg_wal/{}", Sample::shared().segments[0])])
        .succeeded();
    let agent = showing(&Walship::at(&place), &port).spawn(&["agent"]);
    let samples = wait_for("the archive to be looked at", PATIENCE, || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port.number)).ok()?;
        let samples = scrape(&port);
        (value(&samples, "walship_status_success", &[]) == Some(1.0)).then_some(samples)
    });
    assert_eq!(
        value(&samples, "walship_backups", &["state=\"restorable\""]),
        Some(0.0)
    );
    assert_eq!(
        value(&samples, "walship_archive_ready_files", &[]),
        None,
        "nobody was asked"
    );
    agent.terminate();
    agent.wait(PATIENCE).succeeded();
}

// Seen to fail: `status/metrics.rs`: a look always succeeds
#[test]
fn a_host_without_an_agent_gets_the_same_from_status() {
    let (data, place) = (Sample::shared().copy(), Place::directory());
    let walship = data.walship(&place);
    walship
        .run(&["push", &format!("pg_wal/{}", Sample::shared().segments[0])])
        .succeeded();
    let shown = walship.run(&["status", "--prometheus"]).succeeded().stdout;
    assert!(
        shown.contains(&format!(
            "walship_status_success{{archive=\"{}\"}} 1.0\n",
            place.url
        )),
        "{shown}"
    );
    assert!(shown.contains("walship_backups{archive="), "{shown}");
    let away = Walship::new("file:///nowhere/at/all").run(&["status", "--prometheus"]);
    let away = away.exited(2);
    assert!(
        away.stdout
            .contains("walship_status_success{archive=\"file:///nowhere/at/all\"} 0.0\n"),
        "{away:?}"
    );
}

// Seen to fail: `metrics/pgbouncer.rs`: every line with such words counts
#[test]
fn pgbouncer_and_the_errors_in_its_log_are_shown() {
    let (place, port, bouncer_port, root) = (Place::directory(), Port::take(), Port::take(), scratch());
    let walship = Walship::at(&place);
    let primary = archiving_primary(Major::V18, &walship);
    let dir = make_dir(root.path(), "b", 0o755);
    let here = dir.display();
    let ini = format!(
        "[databases]\npostgres = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
         unix_socket_dir = {here}\nauth_type = plain\nauth_file = {here}/users\nlogfile = {here}/log\n\
         stats_users = watcher\npool_mode = transaction\n",
        primary.socket_dir().display(),
        primary.port(),
        bouncer_port.number,
    );
    for (name, text) in [
        ("ini", ini.as_str()),
        (
            "users",
            "\"watcher\" \"not a secret\"\n\"postgres\" \"not a secret\"\n",
        ),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
        give_to_user(&dir.join(name));
    }
    let mut bouncer = command_as_user(tools(&["pgbouncer"]));
    let bouncer = Running::start(bouncer.arg(dir.join("ini")));
    let console = format!(
        "host=127.0.0.1 port={} user=watcher password='not a secret'",
        bouncer_port.number
    );
    wait_for("PgBouncer", PATIENCE, || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, bouncer_port.number)).ok()
    });
    let shown = showing(&walship, &port)
        .env("WALSHIP_METRICS_PGBOUNCER", &console)
        .env("WALSHIP_METRICS_PGBOUNCER_LOG", dir.join("log"));
    let agent = Agent::start(&shown, primary.data_dir());
    let pool = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres",
        bouncer_port.number
    );
    let psql = |password: &str| {
        let mut psql = primary.program("psql");
        psql.args(["-XAtq", "-d", &pool, "-c", "select 1"])
            .env("PGPASSWORD", password);
        Running::start(&mut psql).wait(PATIENCE)
    };
    psql("not a secret").succeeded();
    psql("wrong").exited(2);
    let samples = wait_for("the pool", PATIENCE, || {
        let samples = scrape(&port);
        let failed = value(
            &samples,
            "walship_pgbouncer_log_errors_total",
            &["authentication"],
        );
        (failed == Some(1.0)).then_some(samples)
    });
    let has = |name: &str, labels: &[&str]| {
        value(&samples, name, labels).unwrap_or_else(|| panic!("no {name}: {samples:#?}"))
    };
    assert_eq!(has("pgbouncer_up", &[]), 1.0);
    assert_eq!(has("pgbouncer_version_info", &["version=\"1."]), 1.0);
    assert_eq!(
        has(
            "pgbouncer_pools_client_waiting_connections",
            &["database=\"postgres\""]
        ),
        0.0
    );
    assert!(has("pgbouncer_stats_queries_pooled_total", &["database=\"postgres\""]) >= 1.0);
    assert!(has("pgbouncer_databases_pool_size", &["name=\"postgres\""]) > 0.0);
    assert!(has("pgbouncer_config_max_client_connections", &[]) > 0.0);
    assert!(has("pgbouncer_databases", &[]) >= 1.0);
    assert!(!agent.end().contains("not a secret"));
    bouncer.terminate();
    bouncer.wait(PATIENCE);
}
