//! What the server says of itself, query by query.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::ConnInfo;
use super::deadline::Deadline;
use super::session::{Row, Session};
use crate::judge::diagnosis::Fact;
use crate::judge::diagnosis::facts::{
    ArchiverFacts, ReadyFiles, ServerFacts, ServerSettings, Slot, StandbyFacts,
};
use crate::pg::{ClusterIdentity, Lsn, Major, SegmentSize, TimelineId};

/// The settings that the diagnosis looks at.
const SETTINGS: [&str; 14] = [
    "archive_command",
    "archive_library",
    "archive_mode",
    "archive_timeout",
    "data_checksums",
    "fsync",
    "full_page_writes",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "recovery_target_timeline",
    "restore_command",
    "summarize_wal",
    "synchronous_standby_names",
    "wal_level",
];

/// How far WAL is written, or replayed.
const LSN: &str = "case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end";

/// Asks everything.
///
/// # Errors
/// Only where the first query fails; every other failure becomes a part of the facts.
pub(crate) async fn gather(session: &mut Session) -> Fact<ServerFacts> {
    let (in_recovery, clock_ahead) = recovery_and_clock(session).await?;
    Ok(ServerFacts {
        major: session.major(),
        in_recovery,
        clock_ahead,
        cluster: cluster(session).await,
        timeline: timeline(session, in_recovery).await,
        lsn: lsn(session).await,
        settings: settings(session).await,
        archiver: archiver(session).await,
        archiver_runs: archiver_runs(session).await,
        ready: ready(session).await,
        slots: slots(session).await,
        standbys: standbys(session).await,
        streams: streams(session, in_recovery).await,
        replay_paused: replay_paused(session, in_recovery).await,
        wal_rate: wal_rate(session).await,
    })
}

async fn recovery_and_clock(session: &mut Session) -> Fact<(bool, TimeDelta)> {
    let what = "ask for the time";
    let before = Utc::now();
    let row = session
        .row(
            what,
            "select pg_is_in_recovery(), (extract(epoch from clock_timestamp()) * 1000000)::bigint",
        )
        .await?;
    let after = Utc::now();
    let theirs = row.parse(1).and_then(DateTime::from_timestamp_micros);
    let theirs = theirs.ok_or_else(|| format!("{what}: the answer is not a time"))?;
    let between = before + (after - before) / 2;
    // The round trip may hide as much of a difference.
    let ahead = theirs - between;
    let doubt = (after - before) / 2;
    let certain = if ahead.abs() > doubt {
        ahead
    } else {
        TimeDelta::zero()
    };
    Ok((row.is_true(0), certain))
}

pub(crate) async fn cluster(session: &mut Session) -> Fact<ClusterIdentity> {
    let what = "ask for the system identifier";
    let row = session
        .row(
            what,
            "select system_identifier, (select setting from pg_settings where name = 'wal_segment_size') \
             from pg_control_system()",
        )
        .await?;
    let identifier: Option<i64> = row.parse(0);
    let size = row.parse(1).and_then(|bytes: u32| SegmentSize::new(bytes).ok());
    let (Some(identifier), Some(segment_size)) = (identifier, size) else {
        return Err(format!("{what}: the answer cannot be understood"));
    };
    Ok(ClusterIdentity {
        // PostgreSQL shows its unsigned number as a signed one.
        system_identifier: identifier.cast_unsigned(),
        postgres_major: session.major(),
        segment_size,
    })
}

pub(crate) async fn timeline(session: &mut Session, in_recovery: bool) -> Fact<TimelineId> {
    let what = "ask for the timeline";
    let sql = if in_recovery {
        "select greatest((select timeline_id from pg_control_checkpoint()), \
         (select min_recovery_end_timeline from pg_control_recovery()), \
         (select received_tli from pg_stat_wal_receiver))"
    } else {
        "select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint"
    };
    let row = session.row(what, sql).await?;
    row.parse(0)
        .ok_or_else(|| format!("{what}: the answer cannot be understood"))
}

/// The newest timeline that the server knows of. A standby that has followed its primary to another timeline has the
/// history of that timeline in `pg_wal`, whether it streams or reads the archive (`readTimeLineHistory`, `timeline.c`).
/// Its control file may not have the timeline before the next restartpoint.
pub(crate) async fn newest_timeline(session: &mut Session, in_recovery: bool) -> Fact<TimelineId> {
    let timeline = timeline(session, in_recovery).await?;
    let sql = "select max(('x' || left(name, 8))::bit(32)::bigint) from pg_ls_waldir() \
               where name ~ '^[0-9A-F]{8}[.]history$'";
    let row = session.row("list the timeline histories in pg_wal", sql).await?;
    Ok(row
        .parse(0)
        .map_or(timeline, |newest: TimelineId| newest.max(timeline)))
}

pub(crate) async fn lsn(session: &mut Session) -> Fact<Lsn> {
    let what = "ask for the WAL position";
    let row = session.row(what, &format!("select {LSN}")).await?;
    row.parse(0).ok_or_else(|| format!("{what}: there is none yet"))
}

/// How far a primary has written by now; none on a standby.
pub(crate) async fn written_up_to(session: &mut Session) -> Fact<Option<Lsn>> {
    let sql = "select case when not pg_is_in_recovery() then pg_current_wal_lsn() end";
    let row = session.row("ask for the WAL position", sql).await?;
    Ok(row.parse(0))
}

async fn settings(session: &mut Session) -> Fact<ServerSettings> {
    let names = SETTINGS.map(|name| format!("'{name}'")).join(", ");
    let sql = format!(
        "select name, setting, pending_restart from pg_settings where name in ({names}) or pending_restart"
    );
    let mut settings = ServerSettings::default();
    for row in session.rows("ask for the settings", &sql).await? {
        let Some(name) = row.text(0) else { continue };
        if row.is_true(2) {
            settings.pending_restart.push(name.clone());
        }
        settings.values.insert(name, row.text(1).unwrap_or_default());
    }
    Ok(settings)
}

async fn archiver(session: &mut Session) -> Fact<ArchiverFacts> {
    let sql = "select last_archived_wal, extract(epoch from clock_timestamp() - last_archived_time), \
               last_failed_wal, extract(epoch from clock_timestamp() - last_failed_time), failed_count \
               from pg_stat_archiver";
    let row = session.row("ask for pg_stat_archiver", sql).await?;
    Ok(ArchiverFacts {
        last_archived: row.text(0),
        last_archived_age: row.seconds(1),
        last_failed: row.text(2),
        last_failed_age: row.seconds(3),
        failed_count: row.parse(4).unwrap_or(0),
    })
}

async fn archiver_runs(session: &mut Session) -> Fact<bool> {
    let sql = "select count(*) filter (where backend_type = 'archiver'), \
               count(*) filter (where backend_type is null) from pg_stat_activity";
    let row = session.row("look for the archiver's process", sql).await?;
    match (row.parse::<u32>(0), row.parse::<u32>(1)) {
        (Some(0), Some(hidden)) if hidden > 0 => {
            Err("permission denied to see the server's processes".to_owned())
        }
        (count, _) => Ok(count.is_some_and(|count| count > 0)),
    }
}

pub(crate) async fn ready(session: &mut Session) -> Fact<ReadyFiles> {
    let sql = "select count(*), min(name), extract(epoch from clock_timestamp() - min(modification)) \
               from pg_ls_archive_statusdir() where name like '%.ready'";
    let row = session.row("list archive_status", sql).await?;
    Ok(ReadyFiles {
        count: row.parse(0).unwrap_or(0),
        first: row.text(1).map(|name| name.trim_end_matches(".ready").to_owned()),
        oldest_age: row.seconds(2),
    })
}

async fn slots(session: &mut Session) -> Fact<Vec<Slot>> {
    let invalid = match session.major() {
        major if major < Major::V16 => "null",
        Major::V16 => "case when conflicting then 'conflict' end",
        _ => "invalidation_reason",
    };
    let sql = format!(
        "select slot_name, active, wal_status, pg_wal_lsn_diff({LSN}, restart_lsn)::bigint, {invalid} \
         from pg_replication_slots where not temporary order by 1"
    );
    let slot = |row: Row| Slot {
        name: row.text(0).unwrap_or_default(),
        active: row.is_true(1),
        wal_status: row.text(2),
        retained_bytes: row.parse::<i64>(3).map(|bytes| bytes.max(0).cast_unsigned()),
        invalidated: row.text(4),
    };
    let rows = session.rows("ask for pg_replication_slots", &sql).await?;
    Ok(rows.into_iter().map(slot).collect())
}

async fn standbys(session: &mut Session) -> Fact<Vec<StandbyFacts>> {
    let sql = format!(
        "select application_name, state, pg_wal_lsn_diff({LSN}, replay_lsn)::bigint, extract(epoch from replay_lag) \
         from pg_stat_replication order by 1"
    );
    let standby = |row: Row| StandbyFacts {
        name: row.text(0).unwrap_or_default(),
        state: row.text(1).unwrap_or_default(),
        lag_bytes: row.parse::<i64>(2).map(|bytes| bytes.max(0).cast_unsigned()),
        lag: row.seconds(3),
    };
    let rows = session.rows("ask for pg_stat_replication", &sql).await?;
    Ok(rows.into_iter().map(standby).collect())
}

async fn streams(session: &mut Session, in_recovery: bool) -> Fact<bool> {
    if !in_recovery {
        return Ok(false);
    }
    let sql = "select count(*) > 0 from pg_stat_wal_receiver where status = 'streaming'";
    let row = session.row("ask for pg_stat_wal_receiver", sql).await?;
    Ok(row.is_true(0))
}

async fn replay_paused(session: &mut Session, in_recovery: bool) -> Fact<bool> {
    if !in_recovery {
        return Ok(false);
    }
    let sql = "select pg_get_wal_replay_pause_state() <> 'not paused'";
    let row = session.row("ask whether replay is paused", sql).await?;
    Ok(row.is_true(0))
}

/// None for statistics younger than an hour, which say little about an average day.
async fn wal_rate(session: &mut Session) -> Fact<Option<f64>> {
    let sql = "select wal_bytes / extract(epoch from now() - stats_reset) from pg_stat_wal \
               where stats_reset < now() - interval '1 hour'";
    let rows = session.rows("ask for pg_stat_wal", sql).await?;
    Ok(rows.first().and_then(|row| row.parse(0)))
}

/// The finished WAL that waits for a server's archiver.
pub(crate) async fn ready_files(connection: &ConnInfo, limit: Duration) -> Fact<ReadyFiles> {
    let mut session = Session::open(connection, Deadline::after(limit))
        .await
        .map_err(|error| error.to_string())?;
    let ready = ready(&mut session).await;
    session.close().await;
    ready
}
