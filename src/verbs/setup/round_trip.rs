//! From the server into the archive, once: the proof that archiving works.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::state::Primary;
use crate::archive::Archive;
use crate::error::{Error, Result};
use crate::format::keys::Key;
use crate::pg::sql::quote_literal;
use crate::pg::{ClusterIdentity, WalName};
use crate::store::Store;

const PAUSE: Duration = Duration::from_millis(300);

/// A segment that arrived.
#[derive(Debug, Clone, Serialize)]
pub struct RoundTrip {
    pub segment: String,
    /// From the switch until it was in the archive.
    pub seconds: f64,
}

/// Ends the current segment, and waits until the archive has it and this server's archiver has stored it. The archive
/// alone is no proof: the segment might be another server's.
///
/// # Errors
/// `Unavailable` where it does not arrive in time, with what the archiver says; `Invalid` for another cluster's
/// archive; as the server and the store say.
pub(super) async fn run(
    primary: &mut Primary,
    cluster: ClusterIdentity,
    store: &Store,
    limit: Duration,
) -> Result<RoundTrip> {
    // PostgreSQL switches only if something is in the segment.
    let segment = primary
        .text(
            "write a restore point",
            "SELECT pg_walfile_name(pg_create_restore_point('walship setup'))",
        )
        .await?;
    primary.text("switch WAL", "SELECT pg_switch_wal()").await?;
    let name: WalName = segment.parse()?;
    let key = Key::of_wal(name)?.to_string();
    let begun = Instant::now();
    loop {
        let looked = store.head(&key).await;
        if let Ok(Some(_)) = looked
            && is_archived(primary, &segment).await?
        {
            Archive::open_of(store, cluster, "this server has archived the segment somewhere").await?;
            return Ok(RoundTrip {
                segment,
                seconds: begun.elapsed().as_secs_f64(),
            });
        }
        if begun.elapsed() > limit {
            let why = match looked {
                Err(error) => error.to_string(),
                Ok(_) => archiver(primary).await?,
            };
            return Err(Error::unavailable(format!(
                "everything is set, but {segment} did not arrive in the archive {} within {} s: {why}",
                store.location(),
                limit.as_secs()
            )));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether the archiver has come as far as this segment. On one timeline it stores segments in the order of their
/// names.
async fn is_archived(primary: &mut Primary, segment: &str) -> Result<bool> {
    let sql = format!(
        "SELECT last_archived_wal COLLATE \"C\" >= {} FROM pg_stat_archiver",
        quote_literal(segment)
    );
    Ok(primary.text("ask the archiver", &sql).await? == "t")
}

/// Why the archiver has not stored the segment, as far as the server tells.
async fn archiver(primary: &mut Primary) -> Result<String> {
    let failed = primary
        .text(
            "ask the archiver",
            "SELECT last_failed_wal || ', ' || failed_count || ' times' FROM pg_stat_archiver WHERE last_failed_time > \
             coalesce(last_archived_time, '-infinity')",
        )
        .await?;
    Ok(if failed.is_empty() {
        "PostgreSQL counts no failure. Read its log (if the command is not found, the archiver ends without counting it), \
         and check that archive_command uses this archive"
            .to_owned()
    } else {
        format!(
            "the archiver failed at {failed}; the reason is in the server's log, in lines that begin with walship:"
        )
    })
}
