//! What PgBouncer says of itself, under the names of the community's exporter 0.12 (its `collector.go`), and the errors
//! that it only writes to its log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::edge::exposition::{Family, Labels, truth};
use crate::error::{Error, Result};
use crate::server::{ConnInfo, Connection};

const ANSWER_TIME: Duration = Duration::from_secs(5);
/// At most this much of the log is read for one scrape.
const LOG_BYTES: u64 = 4 << 20;

const MICROSECONDS: f64 = 1_000_000.0;

/// A row, by the names of its columns, which differ between versions.
type Row = BTreeMap<String, String>;

/// PgBouncer's console, over one connection.
pub(super) struct Console {
    info: ConnInfo,
    connection: Option<Connection>,
}

impl Console {
    pub(super) fn new(info: ConnInfo) -> Self {
        Self {
            info,
            connection: None,
        }
    }

    pub(super) async fn now(&mut self) -> Vec<Family> {
        let info = self.info.to_string();
        let asking = tokio::time::timeout(ANSWER_TIME, self.ask()).await;
        let asked =
            asking.unwrap_or_else(|_| Err(Error::unavailable(format!("{info} did not answer in time"))));
        let up = Family::gauge("pgbouncer_up", "Whether PgBouncer answers");
        let up = up.of(Some(truth(asked.is_ok())));
        let mut families = asked.unwrap_or_else(|error| {
            tracing::info!("ask PgBouncer for its metrics: {error}");
            Vec::new()
        });
        families.push(up);
        families
    }

    async fn ask(&mut self) -> Result<Vec<Family>> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::connect(&self.info).await?,
        };
        connection.set_idle_timeout(ANSWER_TIME);
        let mut families = version(&connection);
        families.extend(pools(&connection.table("ask PgBouncer", "SHOW POOLS").await?));
        families.extend(stats(&connection.table("ask PgBouncer", "SHOW STATS").await?));
        families.extend(databases(
            &connection.table("ask PgBouncer", "SHOW DATABASES").await?,
        ));
        families.extend(lists(&connection.table("ask PgBouncer", "SHOW LISTS").await?));
        families.extend(config(&connection.table("ask PgBouncer", "SHOW CONFIG").await?));
        // After an error it is not used again.
        self.connection = Some(connection);
        Ok(families)
    }
}

/// A metric, the names that its column has had, and how many of the column's units are one of the metric's.
type Column = (Family, &'static [&'static str], f64);

fn columns(rows: &[Row], labels: &[&'static str], metrics: impl IntoIterator<Item = Column>) -> Vec<Family> {
    let labels_of = |row: &Row| -> Labels {
        let value = |name: &&'static str| (*name, row.get(*name).cloned().unwrap_or_default());
        labels.iter().map(value).collect()
    };
    let value = |row: &Row, names: &[&str]| names.iter().find_map(|name| row.get(*name)?.parse::<f64>().ok());
    let of = |(family, names, unit): Column| {
        let samples = rows
            .iter()
            .filter_map(|row| Some((labels_of(row), value(row, names)? / unit)));
        family.with(samples)
    };
    metrics.into_iter().map(of).collect()
}

fn version(connection: &Connection) -> Vec<Family> {
    let version = connection.parameter("server_version").unwrap_or_default();
    let version = version.split('/').next().unwrap_or_default().to_owned();
    vec![
        Family::gauge("pgbouncer_version_info", "PgBouncer's version")
            .with([(vec![("version", version)], 1.0)]),
    ]
}

fn gauge(name: &'static str, help: &'static str, columns: &'static [&'static str]) -> Column {
    (Family::gauge(name, help), columns, 1.0)
}

/// `unit` is how many of the column's are one of the metric's.
fn counter(name: &'static str, help: &'static str, columns: &'static [&'static str], unit: f64) -> Column {
    (Family::counter(name, help), columns, unit)
}

fn pools(rows: &[Row]) -> Vec<Family> {
    let mut families = columns(
        rows,
        &["database", "user"],
        [
            gauge(
                "pgbouncer_pools_client_active_connections",
                "Clients with a server, or that need none",
                &["cl_active"],
            ),
            gauge(
                "pgbouncer_pools_client_waiting_connections",
                "Clients that wait for a server",
                &["cl_waiting"],
            ),
            gauge(
                "pgbouncer_pools_server_active_connections",
                "Servers that work for a client",
                &["sv_active"],
            ),
            gauge(
                "pgbouncer_pools_server_idle_connections",
                "Servers that are free",
                &["sv_idle"],
            ),
            gauge(
                "pgbouncer_pools_server_used_connections",
                "Servers to be tested before the next use",
                &["sv_used"],
            ),
            gauge(
                "pgbouncer_pools_server_testing_connections",
                "Servers that are tested or reset",
                &["sv_tested"],
            ),
            gauge(
                "pgbouncer_pools_server_login_connections",
                "Servers that are logging in",
                &["sv_login"],
            ),
        ],
    );
    let waits = rows.iter().filter_map(|row| {
        let number = |name: &str| row.get(name)?.parse::<f64>().ok();
        let labels = ["database", "user"].map(|name| (name, row.get(name).cloned().unwrap_or_default()));
        Some((
            labels.to_vec(),
            number("maxwait")? + number("maxwait_us").unwrap_or(0.0) / MICROSECONDS,
        ))
    });
    families.push(
        Family::gauge(
            "pgbouncer_pools_client_maxwait_seconds",
            "How long the first client has waited",
        )
        .with(waits),
    );
    families
}

fn stats(rows: &[Row]) -> Vec<Family> {
    columns(
        rows,
        &["database"],
        [
            counter(
                "pgbouncer_stats_queries_pooled",
                "Queries",
                &["total_query_count"],
                1.0,
            ),
            counter(
                "pgbouncer_stats_sql_transactions_pooled",
                "Transactions",
                &["total_xact_count"],
                1.0,
            ),
            counter(
                "pgbouncer_stats_queries_duration_seconds",
                "Time of queries",
                &["total_query_time"],
                MICROSECONDS,
            ),
            counter(
                "pgbouncer_stats_client_wait_seconds",
                "Time that clients waited",
                &["total_wait_time"],
                MICROSECONDS,
            ),
            counter(
                "pgbouncer_stats_server_in_transaction_seconds",
                "Time in transactions",
                &["total_xact_time"],
                MICROSECONDS,
            ),
            counter(
                "pgbouncer_stats_received_bytes",
                "Bytes from clients",
                &["total_received"],
                1.0,
            ),
            counter(
                "pgbouncer_stats_sent_bytes",
                "Bytes to clients",
                &["total_sent"],
                1.0,
            ),
        ],
    )
}

fn databases(rows: &[Row]) -> Vec<Family> {
    columns(
        rows,
        &["name", "host", "port", "database", "force_user", "pool_mode"],
        [
            gauge(
                "pgbouncer_databases_pool_size",
                "Most servers of a pool",
                &["pool_size"],
            ),
            gauge(
                "pgbouncer_databases_reserve_pool",
                "Servers in reserve",
                &["reserve_pool", "reserve_pool_size"],
            ),
            gauge(
                "pgbouncer_databases_max_connections",
                "Most servers; 0 is no limit",
                &["max_connections", "max_server_connections"],
            ),
            gauge(
                "pgbouncer_databases_current_connections",
                "Servers now",
                &["current_connections"],
            ),
            gauge("pgbouncer_databases_paused", "Whether it is paused", &["paused"]),
            gauge(
                "pgbouncer_databases_disabled",
                "Whether it is disabled",
                &["disabled"],
            ),
        ],
    )
}

fn lists(rows: &[Row]) -> Vec<Family> {
    let item = |list: &str| {
        let row = rows
            .iter()
            .find(|row| row.get("list").is_some_and(|name| name == list))?;
        row.get("items")?.parse::<f64>().ok()
    };
    vec![
        Family::gauge("pgbouncer_databases", "Databases").of(item("databases")),
        Family::gauge("pgbouncer_users", "Users").of(item("users")),
        Family::gauge("pgbouncer_pools", "Pools").of(item("pools")),
        Family::gauge("pgbouncer_free_clients", "Clients that are free").of(item("free_clients")),
        Family::gauge("pgbouncer_used_clients", "Clients that are in use").of(item("used_clients")),
        Family::gauge("pgbouncer_login_clients", "Clients that are logging in").of(item("login_clients")),
        Family::gauge("pgbouncer_free_servers", "Servers that are free").of(item("free_servers")),
        Family::gauge("pgbouncer_used_servers", "Servers that are in use").of(item("used_servers")),
    ]
}

fn config(rows: &[Row]) -> Vec<Family> {
    let setting = |key: &str| {
        let row = rows
            .iter()
            .find(|row| row.get("key").is_some_and(|name| name == key))?;
        row.get("value")?.parse::<f64>().ok()
    };
    vec![
        Family::gauge("pgbouncer_config_max_client_connections", "max_client_conn")
            .of(setting("max_client_conn")),
        Family::gauge(
            "pgbouncer_config_max_user_connections",
            "max_user_connections; 0 is no limit",
        )
        .of(setting("max_user_connections")),
    ]
}

/// Errors in PgBouncer's log since the agent began to read it. Rotation is noticed: another file, or a shorter one.
pub(super) struct Log {
    path: PathBuf,
    /// The file that was read last, and up to where.
    read: Option<(u64, u64)>,
    counts: BTreeMap<&'static str, u64>,
}

/// What a line of the log is about, by words of PgBouncer 1.18 to 1.25 (`src/client.c`, `src/server.c`,
/// `src/objects.c`, `src/janitor.c`). Why a connection ends stands in several lines, and in one of this form.
fn kind_of(line: &str) -> Option<&'static str> {
    const AUTHENTICATION: [&str; 6] = [
        "authentication failed",
        "login failed: FATAL: password",
        "no such user",
        "auth failed",
        "no authentication",
        "unacceptable auth",
    ];
    const SERVER: [&str; 7] = [
        "login failed",
        "connect failed",
        "server DNS lookup failed",
        "server conn crashed",
        "connect timeout",
        "server closed connection",
        "cannot connect",
    ];
    const CLIENT: [&str; 5] = [
        "query_wait_timeout",
        "no more connections allowed",
        "client_login_timeout",
        "query_timeout",
        "no such database",
    ];
    let Some((_, reason)) = line.split_once("closing because: ") else {
        return (line.contains(" ERROR ") || line.contains(" FATAL ")).then_some("other");
    };
    let has = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if has(&AUTHENTICATION) {
        Some("authentication")
    } else if has(&SERVER) {
        Some("server_connection")
    } else if has(&CLIENT) {
        Some("client")
    } else {
        None
    }
}

impl Log {
    pub(super) fn new(path: PathBuf) -> Self {
        let read = std::fs::metadata(&path)
            .ok()
            .map(|found| (found.ino(), found.len()));
        Self {
            path,
            read,
            counts: ["authentication", "client", "other", "server_connection"]
                .map(|kind| (kind, 0))
                .into(),
        }
    }

    pub(super) fn now(&mut self) -> Vec<Family> {
        if let Err(error) = self.read_on() {
            tracing::info!("read PgBouncer's log {}: {error}", self.path.display());
        }
        let counts = self.counts.iter();
        let samples = counts.map(|(kind, count)| (vec![("kind", (*kind).to_owned())], *count as f64));
        vec![Family::counter("walship_pgbouncer_log_errors", "Errors in PgBouncer's log").with(samples)]
    }

    fn read_on(&mut self) -> std::io::Result<()> {
        let mut file = File::open(&self.path)?;
        let found = file.metadata()?;
        let from = match self.read {
            Some((inode, position)) if inode == found.ino() && position <= found.len() => position,
            _ => 0,
        };
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(LOG_BYTES).read_to_end(&mut bytes)?;
        // A line that is not whole yet is read the next time.
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        bytes.truncate(whole);
        for line in String::from_utf8_lossy(&bytes).lines() {
            if let Some(kind) = kind_of(line) {
                *self.counts.entry(kind).or_default() += 1;
            }
        }
        self.read = Some((found.ino(), from + whole as u64));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn errors_in_the_log_are_counted_once_and_across_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pgbouncer.log");
        std::fs::write(
            &path,
            "LOG C-0x0: closing because: password authentication failed\n",
        )
        .unwrap();
        let mut log = Log::new(path.clone());
        let count = |log: &mut Log, kind: &str| {
            log.now();
            log.counts.get(kind).copied()
        };
        assert_eq!(
            count(&mut log, "authentication"),
            Some(0),
            "what was there before"
        );
        let mut file = File::options().append(true).open(&path).unwrap();
        let twice = "LOG C-0x1: shop/web@unix closing because: password authentication failed (age=0s)\n\
                     WARNING C-0x1: shop/web@unix pooler error: password authentication failed\n";
        write!(file, "{twice}LOG S-0x2: shop/web@unix closing because: lo").unwrap();
        assert_eq!(count(&mut log, "authentication"), Some(1));
        file.write_all(b"gin failed\n").unwrap();
        assert_eq!(count(&mut log, "server_connection"), Some(1));
        assert_eq!(count(&mut log, "authentication"), Some(1));
        std::fs::rename(&path, folder.path().join("pgbouncer.log.1")).unwrap();
        std::fs::write(&path, "LOG closing because: query_wait_timeout\n").unwrap();
        assert_eq!(count(&mut log, "client"), Some(1));
    }
}
