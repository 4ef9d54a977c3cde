//! Logging in to real servers: ways to send a password, and what a refusal tells the user.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use walship::inside::{ConnInfo, Connection};
use walship_core::pg::{Major, TimelineId};
use walship_core::{Error, ErrorKind, Result};

use crate::server::majors;
use crate::support::postgres::{Cluster, Stop};
use crate::support::wait_for;

const PATIENCE: Duration = Duration::from_mins(1);

pub fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work)
}

pub async fn connect(conninfo: &str) -> Result<Connection> {
    connect_with(conninfo, &[]).await
}

async fn connect_with(conninfo: &str, environment: &[(&str, &str)]) -> Result<Connection> {
    let environment: BTreeMap<_, _> = environment.iter().copied().collect();
    let info = ConnInfo::resolve(Some(conninfo), |name| {
        environment.get(name).map(|value| (*value).to_owned())
    })?;
    Connection::connect(&info).await
}

pub fn refusal(conninfo: &str) -> Error {
    run(connect(conninfo)).expect_err(conninfo)
}

pub fn started(major: Major, options: &[(&str, &str)]) -> Cluster {
    let mut builder = Cluster::builder(major);
    for (name, value) in options {
        builder = builder.option(name, value);
    }
    let mut cluster = builder.initdb();
    cluster.start();
    cluster
}

/// Replaces `pg_hba.conf`; the superuser always gets in over the socket, for the test itself.
pub fn set_hba(cluster: &Cluster, lines: &str) {
    let text = format!("local all postgres trust\n{lines}\n");
    std::fs::write(cluster.data_dir().join("pg_hba.conf"), text).unwrap();
    reload(cluster);
}

pub fn reload(cluster: &Cluster) {
    let before = cluster.sql("select pg_conf_load_time()");
    cluster.reload();
    wait_for("the server to read its settings", PATIENCE, || {
        (cluster.sql("select pg_conf_load_time()") != before).then_some(())
    });
}

fn over_tcp(cluster: &Cluster, more: &str) -> String {
    format!("host=127.0.0.1 port={} sslmode=disable {more}", cluster.port())
}

#[test]
fn the_servers_identity_and_settings_are_read() {
    for &major in majors() {
        let cluster = started(major, &[]);
        let identifier = cluster.sql("select system_identifier from pg_control_system()");
        for conninfo in [cluster.conninfo(), cluster.tcp_conninfo()] {
            run(async {
                let mut connection = connect(&conninfo).await.unwrap();
                assert_eq!(connection.server_major(), major);
                assert_eq!(connection.parameter("in_hot_standby"), Some("off"));
                let system = connection.identify_system().await.unwrap();
                assert_eq!(system.system_identifier.to_string(), identifier);
                assert_eq!(system.timeline, TimelineId::FIRST);
                assert!(system.flush_lsn.0 > 0);
                // A command that fails leaves the connection usable.
                let error = connection.show("no_such_setting").await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
                assert!(connection.show("x; SHOW y").await.is_err());
                assert_eq!(connection.show("wal_segment_size").await.unwrap(), "1MB");
                connection.close().await;
            });
        }
        let seen = "select count(*) from pg_stat_activity where application_name = 'walship'";
        let held = run(connect(&cluster.conninfo())).unwrap();
        // The backends of the connections before it may take a moment to end.
        cluster.wait_until(seen, "1", PATIENCE);
        drop(held);
    }
}

#[test]
fn every_way_to_send_a_password_works_and_a_wrong_one_says_so() {
    for &major in majors() {
        let cluster = started(major, &[]);
        cluster.sql(
            "set password_encryption = 'md5'; create role m replication login password 'pä ss''w';
             set password_encryption = 'scram-sha-256'; create role s replication login password 'pä ss''w';",
        );
        set_hba(
            &cluster,
            "host replication m 127.0.0.1/32 md5\nhost replication s 127.0.0.1/32 scram-sha-256\n\
             local replication s password",
        );
        let socket = format!(
            "host={} port={} user=s",
            cluster.socket_dir().display(),
            cluster.port()
        );
        for conninfo in [over_tcp(&cluster, "user=m"), over_tcp(&cluster, "user=s"), socket] {
            run(connect(&format!("{conninfo} password='pä ss\\'w'"))).unwrap();
            run(connect_with(&conninfo, &[("PGPASSWORD", "pä ss'w")])).unwrap();

            let error = refusal(&format!("{conninfo} password=S3CRET"));
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            let text = error.to_string();
            assert!(
                text.contains("28P01") && text.contains("PGPASSWORD") && !text.contains("S3CRET"),
                "{text}"
            );

            let error = refusal(&conninfo);
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            assert!(error.to_string().contains(".pgpass"), "{error}");
        }
    }
}

#[test]
fn the_line_an_error_suggests_for_pgpass_lets_one_in() {
    let cluster = started(Major::V18, &[]);
    cluster.sql("create role s replication login password 'p:w'");
    set_hba(&cluster, "host replication s 127.0.0.1/32 scram-sha-256");
    let conninfo = over_tcp(&cluster, "user=s");
    let text = refusal(&conninfo).to_string();
    let line = text.split('"').nth(1).unwrap().replace("<password>", "p\\:w");
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(".pgpass");
    std::fs::write(&path, line).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    run(connect_with(
        &conninfo,
        &[("HOME", home.path().to_str().unwrap())],
    ))
    .unwrap();
}

#[test]
fn the_line_an_error_suggests_for_pg_hba_lets_one_in() {
    for &major in majors() {
        let cluster = started(major, &[]);
        cluster.sql("create role \"Ship\" replication login password 'p'");
        let socket = format!(
            "host={} port={} user=Ship",
            cluster.socket_dir().display(),
            cluster.port()
        );
        for conninfo in [over_tcp(&cluster, "user=Ship"), socket] {
            let conninfo = format!("{conninfo} password=p");
            set_hba(&cluster, "");
            let error = refusal(&conninfo);
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            let text = error.to_string();
            let after = text.split("add the line \"").nth(1).expect("a line to add");
            set_hba(&cluster, after.split("\" to pg_hba.conf").next().unwrap());
            run(connect(&conninfo)).unwrap_or_else(|error| panic!("{text}\n{error}"));
        }
    }
}

#[test]
fn a_role_without_replication_is_told_how_to_get_it() {
    for &major in majors() {
        let cluster = started(major, &[]);
        cluster.sql("create role plain login");
        let error = refusal(&over_tcp(&cluster, "user=plain"));
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        let text = error.to_string();
        cluster.sql(text.split("run: ").nth(1).expect("a command"));
        run(connect(&over_tcp(&cluster, "user=plain"))).unwrap();
    }
}

#[test]
fn a_server_without_a_free_walsender_is_worth_another_try() {
    for &major in majors() {
        let cluster = started(major, &[("max_wal_senders", "1")]);
        let held = run(connect(&cluster.conninfo())).unwrap();
        let error = refusal(&cluster.conninfo());
        assert!(
            error.is_retryable() && error.to_string().contains("max_wal_senders"),
            "{error}"
        );
        drop(held);
        let minimal = started(major, &[("max_wal_senders", "0"), ("wal_level", "minimal")]);
        let error = refusal(&minimal.conninfo());
        assert!(error.to_string().contains("wal_level = replica"), "{error}");
    }
}

#[test]
fn a_server_that_is_not_ready_is_worth_another_try() {
    let mut cluster = Cluster::builder(Major::V18).option("hot_standby", "off").initdb();
    cluster.append("standby.signal", "");
    cluster.launch();
    let error = wait_for("an answer", PATIENCE, || {
        let error = run(connect(&cluster.conninfo())).err()?;
        error.to_string().contains("57P03").then_some(error)
    });
    assert!(
        error.is_retryable() && error.to_string().contains("try again"),
        "{error}"
    );
}

#[test]
fn hosts_are_tried_in_order_until_one_answers() {
    let cluster = started(Major::V18, &[]);
    let port = cluster.port();
    let socket = cluster.socket_dir().display();
    run(connect(&format!(
        "host=/nowhere,127.0.0.1 port={port} user=postgres"
    )))
    .unwrap();
    run(connect(&format!(
        "host=no-such-host.invalid,{socket} port=1,{port} user=postgres"
    )))
    .unwrap();
    let primary = format!("host={socket} port={port} user=postgres");
    for (target, fits) in [
        ("any", true),
        ("primary", true),
        ("read-write", true),
        ("prefer-standby", true),
        ("standby", false),
        ("read-only", false),
    ] {
        let result = run(connect(&format!("{primary} target_session_attrs={target}")));
        assert_eq!(result.is_ok(), fits, "{target}");
    }
    let error = refusal("host=/nowhere,127.0.0.1 port=1 user=x");
    let text = error.to_string();
    assert!(
        error.is_retryable() && text.contains("/nowhere") && text.contains("127.0.0.1:1"),
        "{text}"
    );
}

#[test]
fn a_server_that_says_nothing_is_given_up_in_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for mode in ["disable", "require"] {
        let began = Instant::now();
        let error = refusal(&format!(
            "host=127.0.0.1 port={port} sslmode={mode} user=x connect_timeout=1"
        ));
        assert!(error.is_retryable(), "{error}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}

#[test]
fn a_timelines_history_is_fetched() {
    for &major in majors() {
        let mut cluster = started(major, &[]);
        cluster.stop(Stop::Fast);
        cluster.append("standby.signal", "");
        cluster.start();
        cluster.sql("select pg_promote()");
        run(async {
            let mut connection = connect(&cluster.conninfo()).await.unwrap();
            let second = TimelineId::new(2).unwrap();
            let history = connection.timeline_history(second).await.unwrap();
            assert_eq!(history.file_name, "00000002.history");
            let path = cluster.data_dir().join("pg_wal/00000002.history");
            assert_eq!(history.content, std::fs::read(path).unwrap());
            for missing in [1, 3] {
                let missing = TimelineId::new(missing).unwrap();
                let error = connection.timeline_history(missing).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            }
        });
    }
}
