//! A session on the server in which every query has a deadline.

use std::time::Duration;

use tokio::time::timeout_at;

use super::deadline::Deadline;
use crate::error::{Error, Result};
use crate::judge::diagnosis::Fact;
use crate::pg::Major;
use crate::server::{ConnInfo, Connection};

/// One query may take the whole time divided by this.
const SHARE: u32 = 2;

pub(crate) struct Session {
    connection: Connection,
    deadline: Deadline,
    data_directory: Option<String>,
    started_at: Option<i64>,
}

/// What tells whether a data directory on this machine is the server's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Local {
    /// Where the server says that its data is.
    pub data_directory: Option<String>,
    /// When the server was started, in seconds since 1970.
    pub started_at: Option<i64>,
}

impl Session {
    pub(crate) async fn open(info: &ConnInfo, deadline: Deadline) -> Result<Self> {
        let limit = deadline.limit();
        let connecting = timeout_at(deadline.at(), Connection::connect(info)).await;
        let connection = connecting.unwrap_or_else(|_| {
            Err(Error::unavailable(format!(
                "connect to {info}: no answer within {} s (doctor.timeout)",
                limit.as_secs_f64()
            )))
        })?;
        let mut session = Self {
            connection,
            deadline,
            data_directory: None,
            started_at: None,
        };
        // One slow query must not use up the time of the others; only the system's schema is searched.
        let set = format!(
            "select set_config('statement_timeout', '{}ms', false), set_config('search_path', 'pg_catalog', false)",
            (limit / SHARE).as_millis()
        );
        session
            .rows("set up the session", &set)
            .await
            .map_err(Error::unavailable)?;
        session.locate().await;
        Ok(session)
    }

    async fn locate(&mut self) {
        let asked = self
            .row(
                "ask for the data directory",
                "select current_setting('data_directory', true), floor(extract(epoch from pg_postmaster_start_time()))::bigint",
            )
            .await;
        if let Ok(row) = asked {
            self.data_directory = row.text(0);
            self.started_at = row.parse(1);
        }
    }

    pub(crate) fn local(&self) -> Local {
        Local {
            data_directory: self.data_directory.clone(),
            started_at: self.started_at,
        }
    }

    pub(crate) fn major(&self) -> Major {
        self.connection.server_major()
    }

    /// Runs one query. `what` names it in messages.
    pub(crate) async fn rows(&mut self, what: &str, sql: &str) -> Fact<Vec<Row>> {
        match timeout_at(self.deadline.at(), self.connection.sql(what, sql)).await {
            Ok(Ok(rows)) => Ok(rows.into_iter().map(Row).collect()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!(
                "{what}: no answer within {} s (doctor.timeout)",
                self.deadline.limit().as_secs_f64()
            )),
        }
    }

    /// As [`Session::rows`], for a query with one row.
    pub(crate) async fn row(&mut self, what: &str, sql: &str) -> Fact<Row> {
        let rows = self.rows(what, sql).await?;
        rows.into_iter()
            .next()
            .ok_or_else(|| format!("{what}: the server answered nothing"))
    }

    pub(crate) async fn close(self) {
        self.connection.close().await;
    }
}

#[derive(Debug)]
pub(crate) struct Row(Vec<Option<String>>);

impl Row {
    /// A value; `None` for NULL.
    pub(crate) fn text(&self, column: usize) -> Option<String> {
        self.0.get(column).cloned().flatten()
    }

    pub(crate) fn parse<T: std::str::FromStr>(&self, column: usize) -> Option<T> {
        self.0.get(column)?.as_deref()?.parse().ok()
    }

    pub(crate) fn is_true(&self, column: usize) -> bool {
        self.0
            .get(column)
            .is_some_and(|value| value.as_deref() == Some("t"))
    }

    /// A span in seconds; zero for a negative one, which appears where clocks were set.
    pub(crate) fn seconds(&self, column: usize) -> Option<Duration> {
        let seconds: f64 = self.parse(column)?;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or_default())
    }
}
