//! Looks up recovery targets in the archived WAL, where the plan needs to know where they lie.
//!
//! The search for a transaction's end or a restore point begins at the newest backup, then at the backup before it up
//! to there, and so on: a recovery from a backup stops at the first match after it. For a moment it is enough to know
//! that something later was archived, so the end is looked at first. Restore points and times are in the segments'
//! indexes. A segment without an index is read, and for transactions each segment is.
//!
//! Segments are read one at a time, in pieces; a segment's records count only when the whole segment proved to be what
//! was archived.

mod moment;
mod restore_point;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;

use chrono::{DateTime, Utc};

use self::restore_point::{IndexedPoints, NextSegment};

use crate::archive::time_index::TimeIndex;
use crate::archive::wal_changes::WalChanges;
use crate::archive::{Archive, stored_wal};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::keys::Key;
use crate::judge::catalogue::{Backup, Catalogue};
use crate::judge::recovery_plan::{self, CommonPast, FoundRecord, Plan, Request, Search, Start, Target};
use crate::pg::{Lsn, SegmentName, SegmentNumber, WalCheck, WalEvent, WalEventKind, WalReader, WalTime};
use crate::progress::Progress;
use crate::store::read_again_if_damaged;

/// At most this many segments that an older walship stored are read whole for the times in them.
const WHOLE_READS: u64 = 16;

/// Plans a recovery, and looks its target up first where that is needed.
///
/// # Errors
/// As [`recovery_plan::plan`]; `Invalid` where the record is not in the archived WAL; `Corrupt` for a
/// damaged segment on the way; otherwise as the store.
pub(crate) async fn plan(
    archive: &Archive,
    catalogue: &Catalogue,
    request: &Request,
    now: DateTime<Utc>,
    progress: &Progress,
) -> Result<Plan> {
    if let Some(past) = recovery_plan::common_past(catalogue, request)? {
        return before_the_parting(archive, catalogue, request, &past, now, progress).await;
    }
    let (plan, _) = plan_along(archive, catalogue, request, now, progress).await?;
    Ok(plan)
}

/// A plan for a target that lies before the timelines part, where all of them are the same. For a later target nobody
/// can choose between them.
async fn before_the_parting(
    archive: &Archive,
    catalogue: &Catalogue,
    request: &Request,
    past: &CommonPast,
    now: DateTime<Utc>,
    progress: &Progress,
) -> Result<Plan> {
    let along = |timeline| Request {
        timeline: Some(timeline),
        ..request.clone()
    };
    match plan_along(archive, &past.catalogue, &along(past.timeline), now, progress).await {
        Ok((_, Search::Found(record) | Search::Moment { later: record, .. })) if past.holds(&record) => {}
        Err(error) if error.is_retryable() || error.kind() == ErrorKind::Denied => return Err(error),
        _ => return Err(recovery_plan::ambiguous(&past.ambiguity)),
    }
    let (mut plan, _) = plan_along(archive, catalogue, &along(past.oldest), now, progress).await?;
    plan.notes.push(format!(
        "{}; {} lies before that, where they are the same",
        past.ambiguity, request.target
    ));
    Ok(plan)
}

/// A plan, and what the search for its target found.
async fn plan_along(
    archive: &Archive,
    catalogue: &Catalogue,
    request: &Request,
    now: DateTime<Utc>,
    progress: &Progress,
) -> Result<(Plan, Search)> {
    let mut catalogue = Cow::Borrowed(catalogue);
    loop {
        let finder = Finder {
            archive,
            catalogue: &catalogue,
            progress,
            times: TimeIndex::new(archive, WHOLE_READS).noting_damage(),
        };
        let unfit = match &request.target {
            Target::Time(time) => finder.too_late(*time, request, now).await?,
            _ => None,
        };
        let Some(unfit) = unfit else {
            // Damage that is met counts as if verify had found it: the plan is made anew with it.
            let is_new = |met: &BTreeMap<SegmentName, String>| {
                met.keys()
                    .any(|segment| !catalogue.damage.wal.contains_key(segment))
            };
            let search = finder.search(request, now).await;
            let met = finder.times.damage();
            if is_new(&met) {
                catalogue.to_mut().damage.wal.extend(met);
                continue;
            }
            let search = search?;
            let request = Request {
                search,
                ..request.clone()
            };
            let mut plan = recovery_plan::plan(&catalogue, &request, now)?;
            let (changes, met) = finder.replayed(&plan).await?;
            if is_new(&met) {
                catalogue.to_mut().damage.wal.extend(met);
                continue;
            }
            let Some(barrier) = changes.barrier() else {
                plan.demands = changes.demands();
                plan.new_tablespaces = changes.new_tablespaces();
                if changes.ends_early && plan.target == Target::Latest {
                    plan.notes.push(format!(
                        "the records break off within the last archived segment, {}: it was archived before it was complete, \
                         or is damaged, and recovery ends there",
                        plan.last_segment
                    ));
                }
                return Ok((plan, search));
            };
            let lsn = barrier.lsn();
            let number = catalogue.wal.segment_size().segment_of(lsn);
            let chain = recovery_plan::chain_of(&catalogue, plan.timeline)?;
            let timeline = chain.segment(number)?.timeline();
            if catalogue.wal.barrier(timeline, number, number, lsn) == Some(barrier) {
                return Err(Error::internal(format!(
                    "the plan crosses the barrier at LSN {lsn} although it must not"
                )));
            }
            catalogue.to_mut().wal.add_barrier(timeline, barrier);
            continue;
        };
        let catalogue = catalogue.to_mut();
        catalogue.backups.retain(|backup| backup.id != unfit.id);
        catalogue.unrestorable.push(unfit);
    }
}

struct Finder<'a> {
    archive: &'a Archive,
    catalogue: &'a Catalogue,
    progress: &'a Progress,
    times: TimeIndex,
}

/// The record that ends a recovery.
#[derive(Debug, Clone, Copy)]
enum Wanted<'a> {
    Transaction(u32),
    RestorePoint(&'a str),
}

impl Wanted<'_> {
    /// As `recoveryStopsBefore` and `recoveryStopsAfter` in `xlogrecovery.c`: a prepared transaction
    /// counts by its own id, a subtransaction never.
    fn is(self, kind: &WalEventKind) -> bool {
        match (self, kind) {
            (
                Self::Transaction(xid),
                WalEventKind::Commit(ended)
                | WalEventKind::Abort(ended)
                | WalEventKind::CommitPrepared(ended)
                | WalEventKind::AbortPrepared(ended),
            ) => ended.id.0 == xid,
            (Self::RestorePoint(wanted), WalEventKind::RestorePoint { name, .. }) => name == wanted,
            _ => false,
        }
    }
}

impl Finder<'_> {
    /// The changes in the WAL that a plan replays, and which of it is damaged.
    async fn replayed(&self, plan: &Plan) -> Result<(WalChanges, BTreeMap<SegmentName, String>)> {
        let until = match plan.target {
            Target::Lsn(lsn) => Lsn(lsn.0.saturating_add(1)),
            Target::Immediate => plan.backup.stop_lsn,
            _ => plan.end_lsn,
        };
        self.progress
            .phase(format!("look up what the WAL up to LSN {until} changes"));
        let chain = recovery_plan::chain_of(self.catalogue, plan.timeline)?;
        let times = TimeIndex::new(self.archive, WHOLE_READS).noting_damage();
        let changes = times.changes(&chain, plan.backup.start_lsn, until).await?;
        Ok((changes, times.damage()))
    }

    async fn search(&self, request: &Request, now: DateTime<Utc>) -> Result<Search> {
        let wanted = match &request.target {
            Target::Latest | Target::Lsn(_) | Target::Immediate => return Ok(Search::NotMade),
            Target::Time(time) => return self.anything_later(*time, request, now).await,
            Target::Xid(xid) => Wanted::Transaction(*xid),
            Target::Name(name) => Wanted::RestorePoint(name),
        };
        // The timelines that lead to the record are chosen as for the end of the WAL.
        let to_the_end = Request {
            target: Target::Latest,
            ..request.clone()
        };
        let start = recovery_plan::start(self.catalogue, &to_the_end, now)?;
        let whole = start.reach(self.catalogue, start.backup)?.gap.is_none();
        if request.backup.is_some() {
            // If the user named a backup, the search is needed only where the WAL has a gap.
            if whole {
                return Ok(Search::NotMade);
            }
            return self.record_after(&start, &[start.backup], wanted).await;
        }
        let mut backups: Vec<&Backup> = self.catalogue.backups.iter().collect();
        backups.retain(|backup| start.chain.can_start_from(backup));
        backups.sort_by_key(|backup| std::cmp::Reverse(backup.stop_lsn));
        match self.record_after(&start, &backups, wanted).await? {
            Search::Absent if whole => Err(self.absent(request, &start, &backups)?),
            search => Ok(search),
        }
    }

    fn absent(&self, request: &Request, start: &Start<'_>, backups: &[&Backup]) -> Result<Error> {
        let first = backups.last().map_or(Lsn(0), |backup| backup.start_lsn);
        let end = start.reach(self.catalogue, start.backup)?.end_lsn;
        Ok(Error::invalid(format!(
            "{} is not in the archived WAL, from the first backup's start at LSN {first} to the last contiguous position \
             on timeline {}, {end}; if it happened only just now, wait until its segment is archived (SELECT pg_switch_wal()){}",
            request.target,
            start.chain.timeline(),
            match request.target {
                Target::Xid(_) =>
                    "; PostgreSQL does not stop at a subtransaction, so name its top-level transaction",
                _ => "",
            }
        )))
    }

    /// Looks for a record from each backup on to the start of the one after it; the newest backup
    /// comes first.
    async fn record_after(
        &self,
        start: &Start<'_>,
        backups: &[&Backup],
        wanted: Wanted<'_>,
    ) -> Result<Search> {
        let size = self.catalogue.wal.segment_size();
        let mut before: Option<Lsn> = None;
        let mut within_a_backup = None;
        for backup in backups {
            let mut end = size.segment_of(start.reach(self.catalogue, backup)?.end_lsn);
            if let Some(before) = before {
                end = end.min(size.segment_of(before).next());
            }
            match self.first_match(start, backup.start_lsn, end, wanted).await? {
                Some(record) if record.lsn >= backup.stop_lsn => return Ok(Search::Found(record)),
                // Such a record can only be reached from an older backup, where an earlier match would
                // end the recovery earlier.
                Some(record) => within_a_backup = Some(record),
                None => {}
            }
            before = Some(backup.start_lsn);
        }
        Ok(within_a_backup.map_or(Search::Absent, Search::Found))
    }

    /// The first match from a position on, in the segments before `end`.
    async fn first_match(
        &self,
        start: &Start<'_>,
        from: Lsn,
        end: SegmentNumber,
        wanted: Wanted<'_>,
    ) -> Result<Option<FoundRecord>> {
        let size = self.catalogue.wal.segment_size();
        let first = size.segment_of(from);
        let mut reader = WalReader::new(size.start_of(first), WalCheck::Structure);
        let mut known = IndexedPoints::new(self, &start.chain, first, end)?;
        for number in (first.0..end.0).map(SegmentNumber) {
            let segment = start.chain.segment(number)?;
            if let Wanted::RestorePoint(name) = wanted {
                match known.next(from, name).await? {
                    NextSegment::Here(record) => return Ok(Some(record)),
                    NextSegment::NotHere => continue,
                    NextSegment::ReadFrom(before) => {
                        reader = WalReader::new(size.start_of(before), WalCheck::Structure);
                        if before < number {
                            let nothing = |(): &mut (), _: &WalEvent| {};
                            self.scan(start.chain.segment(before)?, &mut reader, (), nothing)
                                .await?;
                        }
                    }
                    NextSegment::ReadOn => {}
                }
            }
            let first = |found: &mut Option<FoundRecord>, event: &WalEvent| {
                if found.is_none() && event.start >= from && wanted.is(&event.kind) {
                    *found = record_of(segment, event);
                }
            };
            let found = self.scan(segment, &mut reader, None, first).await?;
            if found.is_some() || reader.has_ended() {
                // PostgreSQL replays nothing beyond an invalid record either.
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Reads one whole segment. Returns `told` after `tell` got every event of it. Each look begins with `told` anew.
    async fn scan<T: Clone>(
        &self,
        segment: SegmentName,
        reader: &mut WalReader,
        told: T,
        tell: impl Fn(&mut T, &WalEvent) + Copy,
    ) -> Result<T> {
        self.progress.phase(format!("look up the target in {segment}"));
        let key = Key::Segment(segment);
        let identity = &self.catalogue.identity;
        let read = read_again_if_damaged(async || {
            let mut feed = Feed {
                reader: reader.clone(),
                told: told.clone(),
                tell,
            };
            let trailer = stored_wal::decode(
                self.archive.store(),
                &key,
                identity.segment_bytes.bytes(),
                &mut feed,
            )
            .await?;
            trailer.check(segment.into(), identity.system_identifier)?;
            Ok((feed.reader, feed.told))
        });
        let read = read.await;
        let (read_on, told) =
            read.context(|| format!("look up the target in {}", self.archive.url_of(&key)))?;
        *reader = read_on;
        Ok(told)
    }
}

fn record_of(segment: SegmentName, event: &WalEvent) -> Option<FoundRecord> {
    Some(FoundRecord {
        timeline: segment.timeline(),
        lsn: event.start,
        end_lsn: event.end,
        time: time_of(&event.kind)?.to_utc()?,
    })
}

/// Whether PostgreSQL compares the record's time with a target (`recoveryStopsBefore`,
/// `xlogrecovery.c`): a restore point has a time too, but does not end a recovery to a time.
fn is_end_of_transaction(kind: &WalEventKind) -> bool {
    match kind {
        WalEventKind::Commit(_)
        | WalEventKind::Abort(_)
        | WalEventKind::CommitPrepared(_)
        | WalEventKind::AbortPrepared(_) => true,
        WalEventKind::RestorePoint { .. }
        | WalEventKind::Prepare(_)
        | WalEventKind::Change(_)
        | WalEventKind::End { .. } => false,
    }
}

fn time_of(kind: &WalEventKind) -> Option<WalTime> {
    match kind {
        WalEventKind::RestorePoint { time, .. } => Some(*time),
        WalEventKind::Commit(ended)
        | WalEventKind::Abort(ended)
        | WalEventKind::CommitPrepared(ended)
        | WalEventKind::AbortPrepared(ended)
        | WalEventKind::Prepare(ended) => Some(ended.time),
        WalEventKind::Change(_) | WalEventKind::End { .. } => None,
    }
}

/// Passes decompressed bytes on to the reader.
struct Feed<T, F> {
    reader: WalReader,
    told: T,
    tell: F,
}

impl<T, F: Fn(&mut T, &WalEvent)> Write for Feed<T, F> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let (told, tell) = (&mut self.told, &self.tell);
        self.reader.feed(bytes, |event| tell(told, &event));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
