//! `walship expire`: deletes what the retention policy does not keep.
//!
//! # Order
//! The reverse of writing: what the ledger tells of a backup, its `backup.json`, then its other objects; when all backups are
//! done, what WAL is given up is noted in `retention.json`, and then WAL goes. So at any moment
//! everything that is listed can be restored, and what a kill leaves behind the next run deletes.
//!
//! # What can race
//! - *A base backup that begins.* Before each batch of WAL it is looked for; no WAL goes that it may
//!   need, and none at all while it does not know yet.
//! - *`basebackup --finish`.* It takes up its heartbeat first and looks at its objects again before it
//!   writes `backup.json`; here its heartbeat is looked for after `pending.json` is gone.
//! - *`walship keep`.* It writes the mark and then looks whether the backup is still there; here the
//!   mark is looked for after `backup.json` is gone, which is put back if there is one.
//! - *Another expiry.* Both delete what their plans say. Each adds to the version of `retention.json` that it
//!   read, or reads it again, so that neither takes back what the other noted.
//! - *A push.* What is stored after the plan was made is never deleted by it.

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

/// This machine's clock may differ from the store's by so much without a word.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::minutes(5);
/// So often `retention.json` is read and written anew where others write it at the same time.
const NOTE_ATTEMPTS: usize = 10;

/// What `walship expire` is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpireOptions {
    /// What is kept.
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
            "{why}. Nothing was deleted: which backups verify found damaged is not known, and the good ones might be those \
             that go; run walship verify (without --since), which looks again and writes it anew"
        )));
    }
    let known = catalogue::released(&archive).await;
    known.context(|| {
        "nothing was deleted, for what retention has given up so far cannot be read (deleted by hand, it is written anew, \
         and what is missing looks lost until then)"
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

/// The earlier of two clocks: at an earlier moment every rule keeps more.
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

/// Notes which WAL is given up, before any of it is deleted. Another expiry, with another plan perhaps,
/// may add to it at the same time: what it noted stays.
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
            // Somebody else wrote it, or this very put, if its first answer got lost: look again.
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            // A server that does not know `If-Match` may say so.
            Err(error) if error.kind() == ErrorKind::Invalid => return archive.replace(&size, &after).await,
            written => return written.context(|| format!("write {}", archive.url_of(&key))),
        }
    }
    Err(Error::conflict(format!(
        "{} was changed by somebody else {NOTE_ATTEMPTS} times while it was to be written; no WAL was deleted. Let the \
         other expiries end, and run walship expire again",
        archive.url_of(&key)
    )))
}
