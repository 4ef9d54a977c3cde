//! `walship expire`: deletes what the retention policy does not keep.
//!
//! # Order
//! The reverse of writing. First each backup goes: its entry in the ledger, its `backup.json`, its other objects. Then
//! the WAL that is released is noted in `retention.json`, and then that WAL goes. So everything that is listed can be
//! restored at any moment, and the next run deletes what a kill leaves behind.
//!
//! # What can race
//! - *A base backup that begins.* Before each batch of WAL, expire looks for new ones. It deletes no WAL that one may
//!   need, and none at all while that one does not know yet what it needs. One that begins after this look starts at
//!   the server's position of then, and so after all WAL that was stored when the plan was made.
//! - *`basebackup --finish`.* It first begins its heartbeat, and looks at its objects again before it writes
//!   `backup.json`. Expire deletes `pending.json` and then looks for the heartbeat.
//! - *`walship keep`.* It writes the mark and then looks whether the backup is still there. Expire deletes
//!   `backup.json` and then looks for the mark; if there is one, it puts `backup.json` back.
//! - *Another expiry.* Both delete what their plans say. Each adds to the version of `retention.json` that it
//!   read, or reads it again, so that neither takes back what the other noted.
//! - *A push.* Expire never deletes what was stored after its plan was made.

mod args;
mod backups;
mod report;
#[cfg(test)]
mod tests;
mod unfinished;
mod wal;

pub use self::args::ExpireArgs;
use chrono::{DateTime, TimeDelta, Utc};

use self::report::ExpireReport;
use crate::archive::{Archive, body, catalogue};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::Stored;
use crate::format::released::{Retention, TimelineRanges};
use crate::judge::retention::{self, RetentionPolicy};
use crate::progress::Progress;
use crate::store::Store;

/// A larger difference between this machine's clock and the store's is reported.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::minutes(5);
/// If others write `retention.json` at the same time, it is read and written anew at most this often.
const NOTE_ATTEMPTS: usize = 10;

/// What `walship expire` is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpireOptions {
    pub policy: RetentionPolicy,
    /// Only say what would be deleted.
    pub dry_run: bool,
}

/// Plans, and deletes. `now` is this machine's time.
///
/// # Errors
/// As [`retention::plan`], before anything is deleted; `Conflict` where a backup is marked to be kept
/// meanwhile; otherwise as the store.
pub async fn run(
    options: &ExpireOptions,
    store: &Store,
    now: DateTime<Utc>,
    progress: &Progress,
) -> Result<ExpireReport> {
    options.policy.check()?;
    progress.phase("read the archive");
    let archive = Archive::open(store).await?;
    let mut notes = Vec::new();
    let now = earlier_clock(store, now, &mut notes).await?;
    let catalogue = catalogue::load(&archive).await?;
    if let Some(why) = &catalogue.damage.unknown {
        return Err(Error::corrupt(format!(
            "{why}. Nothing was deleted, because it is not known which backups are damaged, and the good ones might be \
             deleted; run walship verify (without --since), which looks again and writes the object anew"
        )));
    }
    let known = catalogue::released(&archive).await;
    known.context(|| {
        "nothing was deleted, because the note of the WAL that was released so far cannot be read (if you delete it, the \
         next run writes it anew; until then released WAL looks lost)"
    })?;
    let needs = unfinished::needs(&archive, &catalogue, now).await?;
    let plan = retention::plan(&catalogue, &needs, &options.policy, now)?;
    let mut report = ExpireReport::new(options.dry_run, plan, notes, store);
    let mut deletable = report.plan.deletable_wal.clone();
    if !options.dry_run {
        backups::delete(&mut report, &mut deletable, &catalogue, &archive, progress).await?;
        note_released(&archive, &deletable, now).await?;
    }
    wal::delete(&mut report, deletable, &catalogue, &archive, progress).await?;
    Ok(report)
}

/// The earlier of two clocks, because at an earlier moment every rule keeps more.
async fn earlier_clock(store: &Store, now: DateTime<Utc>, notes: &mut Vec<String>) -> Result<DateTime<Utc>> {
    let of_store = store.clock().await?;
    let ahead = now - of_store;
    if ahead.abs() > CLOCK_TOLERANCE {
        notes.push(format!(
            "this machine's clock is {} s {} the archive's; the earlier one counts. Set both by NTP",
            ahead.num_seconds().abs(),
            if ahead > TimeDelta::zero() {
                "ahead of"
            } else {
                "behind"
            }
        ));
    }
    Ok(now.min(of_store))
}

/// Notes which WAL is released, before any of it is deleted. Another expiry, perhaps with another plan, may add to the
/// note at the same time: what that one noted stays.
async fn note_released(archive: &Archive, deletable: &TimelineRanges, now: DateTime<Utc>) -> Result<()> {
    let size = archive.identity().segment_bytes;
    let key = Retention::key(&size);
    for _ in 0..NOTE_ATTEMPTS {
        let (before, version) = match archive.find_whole::<Retention>(&size).await? {
            Some(read) => (read.stored.released, Some(read.info.version)),
            None => (TimelineRanges::default(), None),
        };
        let mut released = before.clone();
        released.add(deletable);
        if released == before {
            return Ok(());
        }
        let after = Retention {
            segment_size: size,
            at: now,
            released,
        };
        match archive.replace_if(&key, &body(&after)?, version).await {
            // Somebody else wrote it, or this put did and its first answer got lost: look again.
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            // A server that does not know `If-Match` may say so.
            Err(error) if error.kind() == ErrorKind::Invalid => return archive.replace(&size, &after).await,
            written => return written.context(|| format!("write {}", archive.url_of(&key))),
        }
    }
    Err(Error::conflict(format!(
        "somebody else changed {} {NOTE_ATTEMPTS} times while walship was about to write it; no WAL was deleted. Let the \
         other expiries end, and run walship expire again",
        archive.url_of(&key)
    )))
}
