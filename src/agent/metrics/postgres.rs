//! What PostgreSQL says of itself, under the names of postgres_exporter 0.20 (its `collector/`), where that has one.
//!
//! A role with `pg_monitor` may ask all of it. What has no name there begins with `walship_pg_`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::edge::exposition::{Family, Labels, truth};
use crate::error::{Error, Result};
use crate::pg::Major;
use crate::server::{ConnInfo, Connection};

/// How long all queries may take. Prometheus waits 10 s for a scrape (`scrape_timeout`).
const SCRAPE_TIME: Duration = Duration::from_secs(8);
/// How long one query may take.
const QUERY_TIME: Duration = Duration::from_secs(5);
/// The statements that took most time.
const STATEMENTS: u32 = 50;
/// Series of one metric; only `pg_stat_activity` has many.
const SERIES: usize = 500;

/// How far WAL is written, or replayed, as bytes.
const LSN: &str =
    "(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end)";

/// A server that is asked again and again, over one connection.
pub(super) struct Server {
    info: ConnInfo,
    slow_query: Duration,
    connection: Option<Connection>,
}

/// One query: its first columns are labels, the others are the metrics.
struct Query {
    sql: String,
    labels: &'static [&'static str],
    metrics: Vec<Family>,
}

impl Query {
    fn new(sql: impl Into<String>, labels: &'static [&'static str], metrics: Vec<Family>) -> Self {
        Self {
            sql: sql.into(),
            labels,
            metrics,
        }
    }

    /// The metrics with their samples. Of rows with the same labels the largest value counts.
    fn families(self, rows: &[Vec<Option<String>>]) -> Vec<Family> {
        let mut families = Vec::new();
        for (number, family) in self.metrics.into_iter().enumerate() {
            let mut samples = BTreeMap::<Labels, f64>::new();
            for row in rows.iter().take(SERIES) {
                let text = |column: usize| row.get(column).cloned().flatten();
                let Some(value) = text(self.labels.len() + number).and_then(|text| text.parse().ok()) else {
                    continue;
                };
                let labels = self.labels.iter().enumerate();
                let labels = labels.map(|(column, name)| (*name, text(column).unwrap_or_default()));
                let sample = samples.entry(labels.collect()).or_insert(value);
                *sample = sample.max(value);
            }
            families.push(family.with(samples));
        }
        families
    }
}

impl Server {
    pub(super) fn new(info: ConnInfo, slow_query: Duration) -> Self {
        Self {
            info,
            slow_query,
            connection: None,
        }
    }

    /// What changes from moment to moment, and is quickly told.
    pub(super) async fn now(&mut self) -> Vec<Family> {
        let asked = self.within(true, quick).await;
        let up = Family::gauge("pg_up", "Whether the server answers").of(Some(truth(asked.is_ok())));
        let mut families = asked.unwrap_or_else(|error| {
            tracing::info!("ask the server for its metrics: {error}");
            Vec::new()
        });
        families.push(up);
        families
    }

    /// What takes the server longer: it looks at every file of every database.
    pub(super) async fn sizes(&mut self) -> Vec<Family> {
        let asked = self.within(false, |_, _| slow()).await;
        asked.unwrap_or_else(|error| {
            left_out(&error);
            Vec::new()
        })
    }

    /// Asks for no longer than a scrape may take. A connection on which an answer is outstanding is given up.
    async fn within(
        &mut self,
        statements_too: bool,
        queries: impl FnOnce(Major, Duration) -> Vec<Query>,
    ) -> Result<Vec<Family>> {
        let info = self.info.to_string();
        let asking = tokio::time::timeout(SCRAPE_TIME, self.ask(statements_too, queries)).await;
        asking.unwrap_or_else(|_| Err(Error::unavailable(format!("{info} did not answer in time"))))
    }

    async fn ask(
        &mut self,
        statements_too: bool,
        queries: impl FnOnce(Major, Duration) -> Vec<Query>,
    ) -> Result<Vec<Family>> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let mut families = Vec::new();
        let mut queries = queries(connection.server_major(), self.slow_query);
        if statements_too {
            match statements(&mut connection).await {
                Err(error) if connection.is_ready() => left_out(&error),
                found => queries.extend(found?),
            }
        }
        for query in queries {
            // What one view does not tell, such as that of an extension that is half installed, is left out alone.
            match connection.sql("ask for metrics", &query.sql).await {
                Err(error) if connection.is_ready() => left_out(&error),
                rows => families.extend(query.families(&rows?)),
            }
        }
        // After an error it is not used again.
        self.connection = Some(connection);
        Ok(families)
    }

    async fn connect(&self) -> Result<Connection> {
        let mut connection = Connection::connect(&self.info).await?;
        connection.set_idle_timeout(QUERY_TIME);
        let set = format!(
            "select set_config('statement_timeout', '{}ms', false), set_config('search_path', 'pg_catalog', false), \
             set_config('application_name', 'walship metrics', false)",
            QUERY_TIME.as_millis()
        );
        connection.sql("set up the session", &set).await?;
        Ok(connection)
    }
}

fn left_out(error: &Error) {
    tracing::info!("a metric of the server is left out: {error}");
}

/// `pg_stat_statements`, where the database has it.
async fn statements(connection: &mut Connection) -> Result<Option<Query>> {
    let schema = "select quote_ident(nspname) from pg_extension join pg_namespace on pg_namespace.oid = extnamespace \
                  where extname = 'pg_stat_statements'";
    let rows = connection.sql("look for pg_stat_statements", schema).await?;
    let Some(schema) = rows.into_iter().flatten().flatten().next() else {
        return Ok(None);
    };
    Ok(Some(Query::new(
        format!(
            "select pg_get_userbyid(userid), datname, queryid, sum(calls), sum(total_exec_time) / 1000, sum(rows) \
             from {schema}.pg_stat_statements join pg_database on pg_database.oid = dbid where queryid is not null \
             group by 1, 2, 3 order by 5 desc limit {STATEMENTS}"
        ),
        &["user", "datname", "queryid"],
        vec![
            Family::counter("pg_stat_statements_calls", "How often the statement was executed"),
            Family::counter(
                "pg_stat_statements_seconds",
                "How long the statement was executed, in all",
            ),
            Family::counter("pg_stat_statements_rows", "Rows of the statement"),
        ],
    )))
}

fn quick(major: Major, slow_query: Duration) -> Vec<Query> {
    let mut queries = vec![server(), settings(), archiver()];
    queries.extend(replication());
    queries.extend(slots());
    queries.extend(activity(slow_query));
    queries.extend([databases(), locks(), checkpoints(major)]);
    queries
}

fn server() -> Query {
    Query::new(
        format!(
            "select pg_is_in_recovery()::int, \
             case when not pg_is_in_recovery() or pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() then 0 \
             else greatest(0, extract(epoch from now() - pg_last_xact_replay_timestamp())) end, \
             extract(epoch from now() - pg_last_xact_replay_timestamp()), \
             {LSN} - '0/0', extract(epoch from pg_postmaster_start_time())"
        ),
        &[],
        vec![
            Family::gauge("pg_replication_is_replica", "Whether the server is a standby"),
            Family::gauge(
                "pg_replication_lag_seconds",
                "How far a standby's replay is behind",
            ),
            Family::gauge(
                "pg_replication_last_replay_seconds",
                "Age of the transaction that was replayed last",
            ),
            Family::gauge(
                "walship_pg_wal_lsn_bytes",
                "Position up to which WAL is written, or replayed",
            ),
            Family::gauge("pg_postmaster_start_time_seconds", "When the server started"),
        ],
    )
}

fn settings() -> Query {
    Query::new(
        "select current_setting('max_connections'), current_setting('superuser_reserved_connections')",
        &[],
        vec![
            Family::gauge("pg_settings_max_connections", "max_connections"),
            Family::gauge(
                "pg_settings_superuser_reserved_connections",
                "superuser_reserved_connections",
            ),
        ],
    )
}

fn archiver() -> Query {
    Query::new(
        "select archived_count, failed_count, extract(epoch from now() - last_archived_time) from pg_stat_archiver",
        &[],
        vec![
            Family::untyped(
                "pg_stat_archiver_archived_count",
                "Files that the archiver archived",
            ),
            Family::untyped("pg_stat_archiver_failed_count", "Failures of the archiver"),
            Family::gauge(
                "pg_stat_archiver_last_archive_age",
                "Seconds since the archiver archived a file",
            ),
        ],
    )
}

fn replication() -> [Query; 2] {
    [
        Query::new(
            format!(
                "select application_name, client_addr, state, slot_name, {LSN} - '0/0', {LSN} - replay_lsn \
                 from pg_stat_replication left join pg_replication_slots on active_pid = pid"
            ),
            &["application_name", "client_addr", "state", "slot_name"],
            vec![
                Family::gauge(
                    "pg_stat_replication_pg_current_wal_lsn_bytes",
                    "Position of the sending server",
                ),
                Family::gauge(
                    "pg_stat_replication_pg_wal_lsn_diff",
                    "Bytes that the standby has not replayed",
                ),
            ],
        ),
        Query::new(
            "select application_name, client_addr, extract(epoch from coalesce(write_lag, '0')), \
             extract(epoch from coalesce(flush_lag, '0')), extract(epoch from coalesce(replay_lag, '0')) \
             from pg_stat_replication where state = 'streaming'",
            &["application_name", "client_addr"],
            vec![
                Family::gauge(
                    "walship_pg_replication_write_lag_seconds",
                    "Delay until the standby wrote WAL",
                ),
                Family::gauge(
                    "walship_pg_replication_flush_lag_seconds",
                    "Delay until the standby flushed WAL",
                ),
                Family::gauge(
                    "walship_pg_replication_replay_lag_seconds",
                    "Delay until the standby replayed WAL",
                ),
            ],
        ),
    ]
}

fn slots() -> [Query; 3] {
    [
        Query::new(
            format!("select slot_name, database, active::int, {LSN} - restart_lsn from pg_replication_slots"),
            &["slot_name", "database"],
            vec![
                Family::gauge("pg_replication_slots_active", "Whether the slot is in use"),
                Family::gauge(
                    "pg_replication_slots_pg_wal_lsn_diff",
                    "Bytes of WAL that the slot holds",
                ),
            ],
        ),
        Query::new(
            format!(
                "select slot_name, slot_type, active::int, {LSN} - '0/0', safe_wal_size from pg_replication_slots"
            ),
            &["slot_name", "slot_type"],
            vec![
                Family::gauge(
                    "pg_replication_slots_slot_is_active",
                    "Whether the slot is in use",
                ),
                Family::gauge(
                    "pg_replication_slots_slot_current_wal_lsn",
                    "Position of the server",
                ),
                Family::gauge(
                    "pg_replication_slots_safe_wal_size_bytes",
                    "WAL until the slot may be lost",
                ),
            ],
        ),
        Query::new(
            "select slot_name, slot_type, wal_status, 1 from pg_replication_slots where wal_status is not null",
            &["slot_name", "slot_type", "wal_status"],
            vec![Family::gauge(
                "pg_replication_slots_wal_status",
                "Whether the slot's WAL is there",
            )],
        ),
    ]
}

fn activity(slow_query: Duration) -> [Query; 3] {
    [
        Query::new(
            "select datname, state, usename, application_name, backend_type, wait_event_type, wait_event, count(*), \
             coalesce(max(extract(epoch from now() - xact_start)), 0) from pg_stat_activity \
             where pid <> pg_backend_pid() group by 1, 2, 3, 4, 5, 6, 7 order by 8 desc",
            &[
                "datname",
                "state",
                "usename",
                "application_name",
                "backend_type",
                "wait_event_type",
                "wait_event",
            ],
            vec![
                Family::gauge("pg_stat_activity_count", "Sessions in this state"),
                Family::gauge(
                    "pg_stat_activity_max_tx_duration",
                    "Seconds of the longest transaction",
                ),
            ],
        ),
        Query::new(
            "select count(*), coalesce(max(extract(epoch from clock_timestamp() - xact_start)), 0) \
             from pg_stat_activity where state is distinct from 'idle' and backend_type <> 'autovacuum worker' \
             and xact_start is not null and pid <> pg_backend_pid()",
            &[],
            vec![
                Family::gauge("pg_long_running_transactions", "Transactions that are open"),
                Family::gauge(
                    "pg_long_running_transactions_oldest_timestamp_seconds",
                    "Age of the oldest",
                ),
            ],
        ),
        Query::new(
            format!(
                "select d.datname, count(a.pid) filter (where now() - a.query_start > '{} ms'), \
                 coalesce(max(extract(epoch from now() - a.query_start)), 0) from pg_database d \
                 left join pg_stat_activity a on a.datid = d.oid and a.state = 'active' \
                 and a.backend_type = 'client backend' and a.pid <> pg_backend_pid() \
                 where d.datallowconn and not d.datistemplate group by 1",
                slow_query.as_millis()
            ),
            &["datname"],
            vec![
                Family::gauge(
                    "walship_pg_slow_queries",
                    "Queries that run longer than metrics.slow_query",
                ),
                Family::gauge(
                    "walship_pg_longest_query_seconds",
                    "How long the longest query has run",
                ),
            ],
        ),
    ]
}

fn databases() -> Query {
    macro_rules! counters {
        ($($name:literal),*) => {
            (
                concat!($(", ", $name),*),
                [$(Family::untyped(concat!("pg_stat_database_", $name), concat!("pg_stat_database.", $name))),*],
            )
        };
    }
    let (columns, counters) = counters!(
        "xact_commit",
        "xact_rollback",
        "blks_read",
        "blks_hit",
        "tup_returned",
        "tup_fetched",
        "tup_inserted",
        "tup_updated",
        "tup_deleted",
        "conflicts",
        "temp_files",
        "temp_bytes",
        "deadlocks"
    );
    let mut metrics = vec![Family::gauge(
        "pg_stat_database_numbackends",
        "Sessions in the database",
    )];
    metrics.extend(counters);
    Query::new(
        format!(
            "select datid, datname, numbackends{columns} from pg_stat_database where datname is not null"
        ),
        &["datid", "datname"],
        metrics,
    )
}

fn locks() -> Query {
    Query::new(
        "select datname, lower(mode), count(*) from pg_locks join pg_database on pg_database.oid = database \
         where pid <> pg_backend_pid() group by 1, 2",
        &["datname", "mode"],
        vec![Family::gauge("pg_locks_count", "Locks, held or awaited")],
    )
}

fn checkpoints(major: Major) -> Query {
    let sql = if major >= Major::V17 {
        "select num_timed, num_requested, write_time from pg_stat_checkpointer"
    } else {
        "select checkpoints_timed, checkpoints_req, checkpoint_write_time from pg_stat_bgwriter"
    };
    Query::new(
        sql,
        &[],
        vec![
            Family::counter("pg_stat_checkpointer_num_timed", "Checkpoints that were due"),
            Family::counter(
                "pg_stat_checkpointer_num_requested",
                "Checkpoints that were asked for",
            ),
            Family::counter(
                "pg_stat_checkpointer_write_time",
                "Milliseconds of writing in checkpoints",
            ),
        ],
    )
}

fn slow() -> Vec<Query> {
    vec![
        Query::new(
            "select datname, pg_database_size(oid) from pg_database where datallowconn",
            &["datname"],
            vec![Family::gauge(
                "pg_database_size_bytes",
                "Size of the database on disk",
            )],
        ),
        Query::new(
            "select count(*), coalesce(sum(size), 0) from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$'",
            &[],
            vec![
                Family::gauge("pg_wal_segments", "Segments in pg_wal"),
                Family::gauge("pg_wal_size_bytes", "Bytes of WAL in pg_wal"),
            ],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_with_the_same_labels_become_one_sample() {
        let query = Query::new(
            "",
            &["name"],
            vec![Family::gauge("a", ""), Family::gauge("b", "")],
        );
        let row = |values: [Option<&str>; 3]| values.map(|value| value.map(str::to_owned)).to_vec();
        let rows = [
            row([Some("x"), Some("1"), None]),
            row([Some("x"), Some("3"), Some("0.5")]),
        ];
        let text = format!("{:?}", query.families(&rows));
        assert!(text.contains(r#"samples: [([("name", "x")], 3.0)]"#), "{text}");
        assert!(text.contains(r#"samples: [([("name", "x")], 0.5)]"#), "{text}");
    }
}
