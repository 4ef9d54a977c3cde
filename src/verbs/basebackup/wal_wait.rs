//! Waits until the WAL that a backup needs is in the archive.
//!
//! PostgreSQL's archiver stores segments in their order, so each look lists the archive from the first missing segment
//! on. That takes one listing, and one more for each folder that is complete.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::history;
use crate::archive::{Archive, catalogue};
use crate::error::{Error, Result};
use crate::format::backup::{BackupRecord, BackupSource, WalRange};
use crate::format::keys::{Key, before_segment, log_prefix};
use crate::format::retired::Retired;
use crate::judge::catalogue::{NeededWal, needed_wal};
use crate::pg::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId, WalName};
use crate::progress::Progress;
use crate::store::Store;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Waits at most `timeout` for the record's WAL.
///
/// # Errors
/// `Unfinished` when the time is up; otherwise as [`Store::list`].
pub(super) async fn wait(
    record: &BackupRecord,
    timeout: Duration,
    archive: &Archive,
    progress: &Progress,
) -> Result<()> {
    let mut needed = Needed::new(&record.wal_ranges, record.stop_timeline, record.segment_bytes)?;
    let deadline = Instant::now() + timeout;
    let mut pause = FIRST_PAUSE;
    loop {
        // An outage is waited for like the WAL, because what was copied is safe.
        let looked = match look(&mut needed, archive.store()).await {
            Ok(()) => bring_history(&mut needed, record, archive).await,
            error => error,
        };
        let outage = match looked {
            Ok(()) => None,
            Err(error) if error.is_retryable() => Some(error),
            Err(error) => return Err(error.context(format!("look for the WAL of backup {}", record.id))),
        };
        let missing = match needed.first_missing()? {
            Some(segment) => WalName::Segment(segment),
            None if needed.history_arrived => return Ok(()),
            None => WalName::History(record.stop_timeline),
        };
        progress.phase(format!("wait for {missing} to be archived"));
        if Instant::now() + pause > deadline {
            let left = match outage {
                None => left_within(missing, archive).await,
                Some(_) => None,
            };
            return Err(out_of_time(record, missing, timeout, outage, left));
        }
        tokio::time::sleep(pause).await;
        pause = pause.mul_f64(1.5).min(LONGEST_PAUSE);
    }
}

/// The timeline that forked off within the segment, so that perhaps nobody completes the segment any more; `None` where
/// there is none, or where it is not known.
async fn left_within(missing: WalName, archive: &Archive) -> Option<TimelineId> {
    let WalName::Segment(segment) = missing else {
        return None;
    };
    let size = archive.identity().segment_bytes;
    let start = segment.start(size).ok()?;
    let within = start..Lsn(start.0.saturating_add(size.bytes()));
    let wal = catalogue::wal(archive).await.ok()?;
    let (histories, _) = catalogue::histories(archive, &wal).await.ok()?;
    let left = |history: &TimelineHistory| {
        history
            .end_of(segment.timeline())
            .is_some_and(|fork| within.contains(&fork))
    };
    for history in histories.into_values().filter(left) {
        if let Ok(None) = archive.find::<Retired>(&history.timeline()).await {
            return Some(history.timeline());
        }
    }
    None
}

fn out_of_time(
    record: &BackupRecord,
    missing: WalName,
    timeout: Duration,
    outage: Option<Error>,
    left: Option<TimelineId>,
) -> Error {
    let id = &record.id;
    if let (Some(timeline), None) = (left, &outage) {
        return Error::unfinished(format!(
            "backup {id} is stored but not listed, because {missing} did not arrive in the archive within {} s. Timeline \
             {timeline} forked off within that segment. If the old primary is gone, nobody archives the segment any more: take \
             another backup, and retention removes this one. If the old primary still runs, run walship basebackup --finish \
             {id} when the segment is archived",
            timeout.as_secs()
        ));
    }
    let reason = match (outage, record.source) {
        (Some(error), _) => format!("The archive could not be asked at the end: {error}"),
        (None, BackupSource::Primary) => {
            "Look at pg_stat_archiver and the server's log to see why the file is not archived".to_owned()
        }
        (None, BackupSource::Standby) => "The standby's primary archives the segment when it is full: \
             run SELECT pg_switch_wal() there, and look at its pg_stat_archiver"
            .to_owned(),
    };
    Error::unfinished(format!(
        "backup {id} is stored but not listed, because {missing} did not arrive in the archive within {} s. \
         {reason}; then run walship basebackup --finish {id}",
        timeout.as_secs()
    ))
}

/// Removes from `needed` what has arrived.
async fn look(needed: &mut Needed, store: &Store) -> Result<()> {
    while let Some(first) = needed.first_missing()? {
        let mut arrived = HashSet::new();
        let mut listing = store.list(&log_prefix(first), Some(&before_segment(first)));
        while let Some(page) = listing.next().await? {
            arrived.extend(page.iter().filter_map(|object| match object.key.parse() {
                // An empty object is not a WAL file, whatever its name.
                Ok(Key::Segment(name)) if object.size > 0 => Some(name),
                _ => None,
            }));
        }
        // If something of this folder is missing, later folders need not be listed yet.
        if needed
            .remove(&arrived)?
            .is_some_and(|missing| in_same_folder(missing, first))
        {
            return Ok(());
        }
    }
    if !needed.history_arrived {
        let key = Key::History(needed.stop_timeline).to_string();
        needed.history_arrived = store.head(&key).await?.is_some();
    }
    Ok(())
}

/// Stores the history that nobody has archived. It does so when all segments are there, so that the archive never has a
/// history of a timeline without WAL.
async fn bring_history(needed: &mut Needed, record: &BackupRecord, archive: &Archive) -> Result<()> {
    if needed.first_missing()?.is_none() && !needed.history_arrived {
        needed.history_arrived = history::store(record, archive).await?;
    }
    Ok(())
}

fn in_same_folder(one: SegmentName, other: SegmentName) -> bool {
    (one.timeline(), one.log()) == (other.timeline(), other.log())
}

/// The segments that are still missing, in order, and then the history of the timeline on which the backup ends.
/// Without its history PostgreSQL does not recover to a timeline, except the first.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Needed {
    size: SegmentSize,
    /// What is missing on each timeline. The next one to look at comes last.
    ranges: Vec<NeededWal>,
    stop_timeline: TimelineId,
    history_arrived: bool,
}

impl Needed {
    fn new(ranges: &[WalRange], stop_timeline: TimelineId, size: SegmentSize) -> Result<Self> {
        if ranges.is_empty() {
            return Err(Error::corrupt("the backup's manifest names no WAL"));
        }
        Ok(Self {
            size,
            ranges: needed_wal(ranges, size).into_iter().rev().collect(),
            stop_timeline,
            history_arrived: stop_timeline == TimelineId::FIRST,
        })
    }

    fn first_missing(&self) -> Result<Option<SegmentName>> {
        self.ranges
            .last()
            .map(|needed| SegmentName::new(needed.timeline, needed.first, self.size))
            .transpose()
    }

    /// Removes segments from the front as long as they are in `arrived`. Returns the first that is not.
    fn remove(&mut self, arrived: &HashSet<SegmentName>) -> Result<Option<SegmentName>> {
        while let Some(missing) = self.first_missing()? {
            if !arrived.contains(&missing) {
                return Ok(Some(missing));
            }
            if let Some(mut needed) = self.ranges.pop() {
                needed.first = needed.first.next();
                if needed.first < needed.end {
                    self.ranges.push(needed);
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Body, PutMode, StoreOptions};

    fn range(timeline: u32, start: u64, end: u64) -> WalRange {
        WalRange {
            timeline: TimelineId::new(timeline).unwrap(),
            start_lsn: Lsn(start),
            end_lsn: Lsn(end),
        }
    }

    fn names(names: &[&str]) -> HashSet<SegmentName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn missing(needed: &Needed) -> Option<String> {
        needed.first_missing().unwrap().map(|name| name.to_string())
    }

    #[test]
    fn every_segment_of_every_range_is_needed_and_none_beyond_the_end() {
        let ranges = [range(1, 0x2F0_0028, 0x400_0000), range(2, 0x400_0000, 0x400_0028)];
        let mut needed = Needed::new(&ranges, TimelineId::FIRST, SegmentSize::DEFAULT).unwrap();
        assert_eq!(missing(&needed).unwrap(), "000000010000000000000002");
        needed.remove(&names(&["000000010000000000000003"])).unwrap();
        assert_eq!(missing(&needed).unwrap(), "000000010000000000000002");
        let two = names(&["000000010000000000000002", "000000010000000000000003"]);
        needed.remove(&two).unwrap();
        assert_eq!(missing(&needed).unwrap(), "000000020000000000000004");
        needed.remove(&names(&["000000020000000000000004"])).unwrap();
        assert_eq!(missing(&needed), None);
    }

    #[test]
    fn the_segment_of_a_fork_is_needed_on_the_new_timeline_only() {
        let ranges = [range(1, 0x200_0028, 0x450_0000), range(2, 0x450_0000, 0x500_0028)];
        let mut needed = Needed::new(&ranges, TimelineId::FIRST, SegmentSize::DEFAULT).unwrap();
        let first = names(&["000000010000000000000002", "000000010000000000000003"]);
        needed.remove(&first).unwrap();
        assert_eq!(missing(&needed).unwrap(), "000000020000000000000004");
    }

    // Seen to fail: `basebackup/wal_wait.rs`: the object's size is ignored
    #[tokio::test]
    async fn an_empty_object_does_not_count_as_a_segment() {
        let directory = tempfile::tempdir().unwrap();
        let location = format!("file://{}", directory.path().display());
        let location = location.parse().unwrap();
        let store = Store::open(&location, &StoreOptions::default()).await.unwrap();
        let first = "000000010000000000000003";
        let mut needed = Needed::new(
            &[range(1, 0x300_0028, 0x300_0100)],
            TimelineId::FIRST,
            SegmentSize::DEFAULT,
        )
        .unwrap();
        let key = Key::Segment(first.parse().unwrap()).to_string();
        for (content, left) in [("", Some(first)), ("x", None)] {
            let body = Body::from_bytes(content);
            store.put(&key, &body, PutMode::Replace).await.unwrap();
            look(&mut needed, &store).await.unwrap();
            assert_eq!(missing(&needed).as_deref(), left);
        }
    }

    #[test]
    fn a_range_without_length_needs_the_segment_it_lies_in() {
        let needed = Needed::new(
            &[range(1, 0x300_0000, 0x300_0000)],
            TimelineId::FIRST,
            SegmentSize::DEFAULT,
        )
        .unwrap();
        assert_eq!(missing(&needed).unwrap(), "000000010000000000000003");
    }

    #[test]
    fn a_backup_that_names_no_wal_is_never_complete() {
        assert!(Needed::new(&[], TimelineId::FIRST, SegmentSize::DEFAULT).is_err());
    }
}
