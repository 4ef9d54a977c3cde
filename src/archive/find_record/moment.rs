//! Whether the archived WAL holds anything later than a moment, and which backups may be used for it.

use std::ops::Range;

use chrono::{DateTime, Utc};

use super::{Finder, FoundRecord, is_end_of_transaction, record_of};
use crate::error::Result;
use crate::format::segment_index::{Crossing, EndOfTransaction, MomentEnd, MomentIn};
use crate::judge::catalogue::{Backup, Unrestorable};
use crate::judge::recovery_plan::{self, Request, Search, Start};
use crate::judge::timeline_chain::Reach;
use crate::pg::{Lsn, SegmentName, SegmentNumber, WalCheck, WalEvent, WalReader};
use crate::text::time_text;

/// Indexes that are read at a time.
const AT_A_TIME: u64 = 256;

impl Finder<'_> {
    /// Whether the WAL holds anything later than a moment. Looks only at its end, where it matters.
    pub(crate) async fn anything_later(
        &self,
        time: DateTime<Utc>,
        request: &Request,
        now: DateTime<Utc>,
    ) -> Result<Search> {
        let start = recovery_plan::start(self.catalogue, request, now)?;
        let reach = start.reach(self.catalogue, start.backup)?;
        let size = self.catalogue.wal.segment_size();
        let first = size.segment_of(start.backup.start_lsn);
        let Some(last_segment) = reach.last_segment else {
            return Ok(Search::NotMade);
        };
        self.progress
            .phase(format!("look up the last commits, up to {last_segment}"));
        let last = last_segment.number(size)?;
        let Some(ends) = self
            .times
            .last_ends(&start.chain, first, last, reach.end_lsn)
            .await?
        else {
            return Ok(Search::NotMade);
        };
        let stops = |ended| stops(ended, time, request.inclusive);
        if let Some(found) = self.moment_end(&start, last, reach.end_lsn, stops).await?
            && let Some((lsn, time)) = found.later
        {
            return Ok(Search::Moment {
                later: self.later(&start, (lsn, time), &reach)?,
                last: found.last,
            });
        }
        let later = ends
            .map(|ends| ends.largest)
            .filter(|largest| largest.lsn >= start.backup.stop_lsn && stops(largest.time));
        Ok(match later {
            Some(record) => Search::Found(self.later(&start, (record.lsn, record.time), &reach)?),
            None => Search::NothingLater(ends),
        })
    }

    fn later(&self, start: &Start<'_>, record: (Lsn, DateTime<Utc>), reach: &Reach) -> Result<FoundRecord> {
        let number = self.catalogue.wal.segment_size().segment_of(record.0);
        Ok(FoundRecord {
            timeline: start.chain.segment(number)?.timeline(),
            lsn: record.0,
            end_lsn: reach.end_lsn,
            time: record.1,
        })
    }

    /// The position after the last record up to a moment, in the WAL from the backup's end to a last segment; `None`
    /// where an index on the way is unknown. Commit times are not in the order of the WAL, so each index is looked at.
    async fn moment_end(
        &self,
        start: &Start<'_>,
        last: SegmentNumber,
        until: Lsn,
        stops: impl Fn(DateTime<Utc>) -> bool + Copy,
    ) -> Result<Option<MomentEnd>> {
        let size = self.catalogue.wal.segment_size();
        let mut next = size.segment_of(start.backup.stop_lsn);
        let mut crossing = Crossing::new(self.times.major()?);
        let mut found = MomentEnd::default();
        let mut before: Option<SegmentName> = None;
        while next <= last {
            let end = next.0.saturating_add(AT_A_TIME).min(last.next().0);
            let names = (next.0..end).map(|number| start.chain.segment(SegmentNumber(number)));
            let names = names.collect::<Result<Vec<_>>>()?;
            for (index, segment) in self.times.of_all(&names).await?.iter().zip(&names) {
                let crossed = crossing.next(index.as_ref());
                let Some(index) = index else {
                    return Ok(None);
                };
                // Of the last segment only a part may count.
                let ends_within = until < size.start_of(segment.number(size)?.next());
                match index.with_crossing(crossed).moment(stops) {
                    MomentIn::GoesOn(here) if !ends_within => found.last = here.or(found.last),
                    _ => {
                        let begin = before.unwrap_or(*segment);
                        let within = start.backup.stop_lsn..until;
                        self.read_moment(begin, *segment, within, stops, &mut found)
                            .await?;
                    }
                }
                if found.later.is_some() {
                    return Ok(Some(found));
                }
                before = Some(*segment);
            }
            next = SegmentNumber(end);
        }
        Ok(Some(found))
    }

    /// Reads the records that end in a segment; they may begin in the segment before.
    async fn read_moment(
        &self,
        begin: SegmentName,
        segment: SegmentName,
        within: Range<Lsn>,
        stops: impl Fn(DateTime<Utc>) -> bool + Copy,
        found: &mut MomentEnd,
    ) -> Result<()> {
        let size = self.catalogue.wal.segment_size();
        let after = segment.start(size)?;
        let mut reader = WalReader::new(begin.start(size)?, WalCheck::Structure);
        let parts = if begin == segment {
            vec![segment]
        } else {
            vec![begin, segment]
        };
        for part in parts {
            let add = |found: &mut MomentEnd, event: &WalEvent| {
                if event.end > after && within.contains(&event.start) {
                    found.add(event, stops);
                }
            };
            *found = self.scan(part, &mut reader, *found, &add).await?;
        }
        Ok(())
    }

    /// The backup that would be used for a moment, if it cannot be used: a transaction that ended later lies within it,
    /// so that PostgreSQL would stop before the backup is consistent. This happens because a backup of a standby is
    /// dated by the standby's clock.
    pub(crate) async fn too_late(
        &self,
        time: DateTime<Utc>,
        request: &Request,
        now: DateTime<Utc>,
    ) -> Result<Option<Unrestorable>> {
        if request.backup.is_some() {
            return Ok(None);
        }
        let start = recovery_plan::start(self.catalogue, request, now)?;
        let backup = start.backup;
        let within = self.later_within(&start, backup, |record| stops(record, time, request.inclusive));
        Ok(within.await?.map(|record| Unrestorable {
            id: backup.id.clone(),
            reason: format!(
                "within it, at LSN {}, a transaction ended at {}, later than the target",
                record.lsn,
                time_text(record.time)
            ),
            backup: Some(backup.clone()),
        }))
    }

    /// An end of a transaction within a backup that is later than the target.
    async fn later_within(
        &self,
        start: &Start<'_>,
        backup: &Backup,
        too_late: impl Fn(DateTime<Utc>) -> bool,
    ) -> Result<Option<EndOfTransaction>> {
        let size = self.catalogue.wal.segment_size();
        let (first, last) = (
            size.segment_of(backup.start_lsn),
            size.segment_before(backup.stop_lsn),
        );
        let names = (first.0..=last.0).map(|number| start.chain.segment(SegmentNumber(number)));
        let names = names.collect::<Result<Vec<_>>>()?;
        let mut crossing = Crossing::new(self.times.major()?);
        for (index, segment) in self.times.of_all(&names).await?.iter().zip(&names) {
            let before = crossing.next(index.as_ref());
            let ends = index
                .as_ref()
                .and_then(|index| index.with_crossing(before).ends());
            let Some(largest) = ends.map(|ends| ends.largest).filter(|end| too_late(end.time)) else {
                continue;
            };
            let within = |end: &EndOfTransaction| backup.start_lsn <= end.lsn && end.lsn < backup.stop_lsn;
            if within(&largest) {
                return Ok(Some(largest));
            }
            // The later transaction may lie before the backup, or after it: only reading the segment tells.
            let found = self
                .ends_in(*segment)
                .await?
                .into_iter()
                .find(|end| within(end) && too_late(end.time));
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The ends of transactions in a segment.
    async fn ends_in(&self, segment: SegmentName) -> Result<Vec<EndOfTransaction>> {
        let start = segment.start(self.catalogue.wal.segment_size())?;
        let mut reader = WalReader::new(start, WalCheck::Structure);
        let add = |ends: &mut Vec<EndOfTransaction>, event: &WalEvent| {
            let record = is_end_of_transaction(&event.kind).then(|| record_of(segment, event));
            ends.extend(record.flatten().map(|record| EndOfTransaction {
                time: record.time,
                lsn: record.lsn,
            }));
        };
        self.scan(segment, &mut reader, Vec::new(), add).await
    }
}

/// Whether PostgreSQL stops before the end of a transaction (`recoveryStopsBefore`, `xlogrecovery.c`).
fn stops(ended: DateTime<Utc>, target: DateTime<Utc>, inclusive: bool) -> bool {
    if inclusive {
        ended > target
    } else {
        ended >= target
    }
}
