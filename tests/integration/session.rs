//! SQL sessions in a database of a real server: where they go, and what a refusal tells the user.

use std::os::unix::fs::PermissionsExt;

use walship::inside::{ConnInfo, Connection};
use walship_core::pg::Major;
use walship_core::pg::sql::{quote_identifier, quote_literal};
use walship_core::{Error, ErrorKind, Result};

use crate::connection::{run, set_hba, started};
use crate::server::majors;
use crate::support::postgres::Cluster;

async fn connect_with(conninfo: &str, environment: &[(&str, &str)]) -> Result<Connection> {
    let info = ConnInfo::resolve_database(Some(conninfo), |name| {
        let found = environment.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| (*value).to_owned())
    })?;
    Connection::connect(&info).await
}

fn answer(conninfo: &str, environment: &[(&str, &str)], sql: &str) -> Result<Vec<Vec<Option<String>>>> {
    run(async { connect_with(conninfo, environment).await?.simple_query(sql).await })
}

fn refusal(conninfo: &str) -> Error {
    answer(conninfo, &[], "SELECT 1").expect_err(conninfo)
}

fn over_tcp(cluster: &Cluster, more: &str) -> String {
    format!("host=127.0.0.1 port={} sslmode=disable {more}", cluster.port())
}

fn one(value: &str) -> Vec<Vec<Option<String>>> {
    vec![vec![Some(value.to_owned())]]
}

#[test]
fn sql_runs_in_the_database_that_libpq_would_choose() {
    for &major in majors() {
        let cluster = started(major, &[]);
        cluster.sql("create database db");
        let server = over_tcp(&cluster, "user=postgres");
        for (dbname, variable, database) in [
            (" dbname=db", "postgres", "db"),
            ("", "db", "db"),
            ("", "", "postgres"),
        ] {
            let conninfo = format!("{server}{dbname}");
            let found = answer(
                &conninfo,
                &[("PGDATABASE", variable)],
                "SELECT current_database()",
            );
            assert_eq!(found.unwrap(), one(database), "{conninfo} {variable}");
        }
    }
}

// Seen to fail: `pg/sql.rs`: a backslash is left as it is
#[test]
fn any_string_comes_back_from_a_literal_and_any_name_from_an_identifier() {
    let cluster = started(Major::V18, &[("standard_conforming_strings", "off")]);
    for text in ["plain", "it's", r"\'; DROP TABLE x; --", "\"", "a\nb", "ünï"] {
        let sql = format!("SELECT {} AS {}", quote_literal(text), quote_identifier(text));
        assert_eq!(answer(&cluster.conninfo(), &[], &sql).unwrap(), one(text));
    }
}

// Seen to fail: `connection/login.rs`: no empty `search_path`
#[test]
fn what_a_user_made_does_not_stand_in_for_what_postgresql_has() {
    let cluster = started(Major::V18, &[]);
    cluster.sql("create function public.lower(int) returns text language sql as $$select 'mine'$$");
    assert_eq!(cluster.sql("select lower(1)"), "mine");
    let error = answer(&cluster.conninfo(), &[], "SELECT lower(1)").unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
}

// Seen to fail: `connection/mod.rs`: shows the command instead of its phrase
#[test]
fn a_statement_that_fails_shows_the_phrase_and_not_the_text() {
    for &major in majors() {
        let cluster = started(major, &[]);
        cluster.sql("create role plain login");
        run(async {
            let mut connection = connect_with(&over_tcp(&cluster, "user=plain dbname=postgres"), &[])
                .await
                .unwrap();
            let error = connection
                .sql("create the role", "CREATE ROLE x PASSWORD 'S3CRET'")
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            let text = error.to_string();
            assert!(text.contains("failed at create the role"), "{text}");
            assert!(
                text.contains("as a superuser") && !text.contains("S3CRET"),
                "{text}"
            );
            // The session goes on.
            assert_eq!(connection.simple_query("SELECT 1").await.unwrap(), one("1"));
        });
    }
}

#[test]
fn the_lines_an_error_suggests_for_a_database_let_one_in() {
    for &major in majors() {
        let cluster = started(major, &[]);
        cluster.sql("create role s login password 'p:w'");
        // Its name is a key word of pg_hba.conf.
        cluster.sql("create database replication");
        let conninfo = over_tcp(&cluster, "user=s dbname=replication");
        set_hba(&cluster, "host replication s 127.0.0.1/32 trust");
        let error = refusal(&format!("{conninfo} password='p:w'"));
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        let text = error.to_string();
        let after = text.split("add the line \"").nth(1).expect("a line to add");
        set_hba(&cluster, after.split("\" to pg_hba.conf").next().unwrap());

        let text = refusal(&conninfo).to_string();
        let line = text.split('"').nth(1).unwrap().replace("<password>", "p\\:w");
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(".pgpass");
        std::fs::write(&path, line).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let home = home.path().to_str().unwrap();
        let found = answer(&conninfo, &[("HOME", home)], "SELECT current_user");
        assert_eq!(found.unwrap(), one("s"));
    }
}

// Seen to fail: `connection/server_error.rs`: no advice for it
#[test]
fn a_database_that_is_missing_or_closed_says_what_to_do() {
    for &major in majors() {
        let cluster = started(major, &[]);
        cluster.sql("create role s login");
        cluster.sql("create database closed");
        cluster.sql("revoke connect on database closed from public");
        cluster.sql("create database shut allow_connections false");
        for missing in ["s", "shut"] {
            let error = refusal(&over_tcp(&cluster, &format!("user=s dbname={missing}")));
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            assert!(error.to_string().contains("dbname=postgres"), "{error}");
        }
        let conninfo = over_tcp(&cluster, "user=s dbname=closed");
        let error = refusal(&conninfo);
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        let text = error.to_string();
        cluster.sql(text.split("run: ").nth(1).expect("a command"));
        answer(&conninfo, &[], "SELECT 1").unwrap();
    }
}

#[test]
fn a_server_without_a_free_connection_names_the_limit_of_sessions() {
    let cluster = started(
        Major::V18,
        &[("max_connections", "4"), ("superuser_reserved_connections", "0")],
    );
    let conninfo = over_tcp(&cluster, "user=postgres");
    run(async {
        let mut held = Vec::new();
        let error = loop {
            match connect_with(&conninfo, &[]).await {
                Ok(connection) => held.push(connection),
                Err(error) => break error,
            }
            assert!(held.len() < 20, "no limit");
        };
        assert!(error.is_retryable(), "{error}");
        assert!(error.to_string().contains("max_connections"), "{error}");
    });
}
