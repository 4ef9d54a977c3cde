//! Reading what an archive holds: listings of `backups/` and `wal/`, and the small objects that say
//! what the large ones are.
//!
//! Backups are listed before the WAL, so that for a backup that ends meanwhile its WAL is listed as well. A backup that
//! is deleted meanwhile is left out. Memory grows with the number of backups and of gaps in the WAL, not with that of
//! objects.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::task::JoinSet;

use super::wal_listing::WalListing;
use super::{Archive, branch_ends, ledger, stored_wal};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::Stored;
use crate::format::backup::{BackupRecord, WalRange};
use crate::format::barriers::Barrier;
use crate::format::identity::Identity;
use crate::format::keep::Keep;
use crate::format::keys::{BACKUPS_PREFIX, BackupId, BackupObject, Key, LedgerObject, backup_prefix};
use crate::format::ledger::{LedgerSummary, Shard};
use crate::format::proof::Proof;
use crate::format::released::{Retention, TimelineRanges};
use crate::format::retired::Retired;
use crate::format::wal_inventory::WalInventory;
use crate::judge::catalogue::{
    Backup, Catalogue, PartCheck, Unfinished, UnfinishedState, Unrestorable, missing_wal,
};
use crate::judge::damage::{Damage, Found};
use crate::judge::schedule::BegunBackup;
use crate::pg::{TimelineHistory, TimelineId};
use crate::store::{Listing, ObjectInfo, Store};

/// Backups, or histories, that are read at the same time.
const PARALLEL: usize = 8;

/// Reads what the archive holds, and what earlier verifications found damaged in it.
///
/// # Errors
/// As the store. A damaged backup or history is noted and is not an error; an outage is an error.
pub async fn load(archive: &Archive) -> Result<Catalogue> {
    load_with(
        archive,
        ledger::usable(archive, &archive.identity().system_identifier),
    )
    .await
}

/// As [`load`], without what earlier verifications found: for a command that verifies itself.
pub async fn load_as_listed(archive: &Archive) -> Result<Catalogue> {
    load_with(archive, std::future::ready(Ok(Ok(None)))).await
}

async fn load_with(
    archive: &Archive,
    summary: impl Future<Output = Result<Result<Option<LedgerSummary>>>>,
) -> Result<Catalogue> {
    // The answers do not depend on each other. An archive that went away since it was opened must not look empty.
    let (surveys, summary, confirmed) =
        tokio::join!(survey_backups(archive.store()), summary, archive.confirm());
    confirmed?;
    let (recorded, others) = surveys?;
    let (summary, unknown) = match summary? {
        Ok(summary) => (summary, None),
        Err(error) => {
            tracing::warn!("{error}; what verify found is not known");
            (None, Some(error.to_string()))
        }
    };
    let known = Arc::new(summary.as_ref().map(Found::in_summary).unwrap_or_default());
    let (unfinished, records, ((wal, damage), released, (histories, unreadable_histories), retired)) = tokio::try_join!(
        gather(
            others
                .into_iter()
                .map(|(id, survey)| read_unfinished(archive.clone(), id, survey))
        ),
        gather(recorded.into_iter().map(|(id, survey)| read_backup(
            archive.clone(),
            id,
            survey,
            Arc::clone(&known)
        ))),
        wal_and_what_it_means(archive, &known)
    )?;
    let mut catalogue = Catalogue {
        identity: archive.identity().clone(),
        backups: Vec::new(),
        unrestorable: Vec::new(),
        unfinished: Vec::new(),
        wal,
        histories,
        unreadable_histories,
        retired,
        newest_ends: BTreeMap::new(),
        unreadable_keeps: BTreeMap::new(),
        released,
        damage: Damage { unknown, ..damage },
    };
    if let Some(summary) = summary {
        *catalogue.wal.barriers_mut() = summary.barriers;
    }
    let sound = catalogue.sound_wal()?.into_owned();
    for (entry, unreadable_keep) in unfinished {
        if let Some(why) = unreadable_keep {
            catalogue.unreadable_keeps.insert(entry.id.clone(), why);
        }
        catalogue.unfinished.push(entry);
    }
    for found in records.into_iter().flatten() {
        judge(found, &sound, &mut catalogue)?;
    }
    catalogue.backups.sort_by(|one, other| one.id.cmp(&other.id));
    catalogue.unrestorable.sort_by(|one, other| one.id.cmp(&other.id));
    catalogue.unfinished.sort_by(|one, other| one.id.cmp(&other.id));
    catalogue.newest_ends = branch_ends::read(archive, &catalogue).await?;
    Ok(catalogue)
}

/// What the archive holds and says of its WAL.
type OfWal = (
    (WalInventory, Damage),
    TimelineRanges,
    Histories,
    BTreeMap<TimelineId, Retired>,
);

/// The archive's WAL and which of it is damaged, which WAL is released, the timelines' histories, and which timelines
/// are retired.
async fn wal_and_what_it_means(archive: &Archive, known: &Found) -> Result<OfWal> {
    let mut damage = Damage::default();
    let wal = list_wal(archive, |object| {
        if let Some(what) = known.of(&object.key, object.size, object.modified, object.version.as_str()) {
            damage.add_wal(&object.key, what);
        }
    })
    .await?;
    // Read after the WAL was listed, because it is written before WAL is deleted.
    let (released, histories, retired) = tokio::join!(
        released(archive),
        histories(archive, &wal),
        retired(archive, &wal)
    );
    let (mut histories, (retired, unreadable)) = (histories?, retired?);
    for (timeline, why) in unreadable {
        // It is not known whether the timeline may be followed, so it must not be.
        histories.0.remove(&timeline);
        histories.1.insert(timeline, why);
    }
    let released = match released {
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
            tracing::warn!("{error}; WAL that retention deleted looks lost");
            TimelineRanges::default()
        }
        read => read?,
    };
    Ok(((wal, damage), released, histories, retired))
}

/// Lists the archive's WAL.
pub async fn wal(archive: &Archive) -> Result<WalInventory> {
    list_wal(archive, |_| {}).await
}

async fn list_wal(archive: &Archive, mut each: impl FnMut(&ObjectInfo)) -> Result<WalInventory> {
    let mut wal = WalInventory::new(archive.identity().segment_bytes);
    let mut listing = WalListing::new(archive);
    while let Some(page) = listing.next().await? {
        for object in &page {
            wal.add_stored(&object.key, object.size, object.modified);
            each(object);
        }
    }
    Ok(wal)
}

/// Reads which WAL is released. Absence means none.
///
/// # Errors
/// As the store and [`Retention::parse`](crate::format::Stored::parse).
pub async fn released(archive: &Archive) -> Result<TimelineRanges> {
    let retention: Option<Retention> = archive.find(&archive.identity().segment_bytes).await?;
    Ok(retention.map(|retention| retention.released).unwrap_or_default())
}

/// The backups that anybody began, whether they run, are finished, or were given up.
///
/// # Errors
/// As the store.
pub async fn begun_backups(archive: &Archive) -> Result<Vec<BegunBackup>> {
    let (finished, others) = survey_backups(archive.store()).await?;
    let started = others
        .into_iter()
        .filter(|(_, survey)| survey.state() == UnfinishedState::Started);
    let begun = |is_finished| {
        move |(id, survey): (BackupId, Survey)| BegunBackup {
            id,
            is_finished,
            last_sign: survey.last_sign,
        }
    };
    Ok(finished
        .into_iter()
        .map(begun(true))
        .chain(started.map(begun(false)))
        .collect())
}

/// What a listing shows of one backup.
struct Survey {
    /// Its objects but for the parts.
    objects: Vec<BackupObject>,
    /// When its record was stored.
    recorded_at: Option<DateTime<Utc>>,
    last_sign: DateTime<Utc>,
}

impl Survey {
    fn has(&self, object: &BackupObject) -> bool {
        self.objects.contains(object)
    }

    fn state(&self) -> UnfinishedState {
        if self.has(&BackupObject::Pending) {
            UnfinishedState::WaitingForWal
        } else if self.has(&BackupObject::Started) {
            UnfinishedState::Started
        } else {
            UnfinishedState::Remains
        }
    }
}

type Surveys = Vec<(BackupId, Survey)>;

/// The backups with a record, and those without.
async fn survey_backups(store: &Store) -> Result<(Surveys, Surveys)> {
    let mut seen = BTreeMap::new();
    let mut listing = store.list(BACKUPS_PREFIX, None);
    while let Some(page) = listing.next().await.context(|| "list the backups")? {
        for object in page {
            let Ok(Key::Backup(id, kind)) = object.key.parse() else {
                continue;
            };
            let survey = seen.entry(id).or_insert(Survey {
                objects: Vec::new(),
                recorded_at: None,
                last_sign: object.modified,
            });
            survey.last_sign = survey.last_sign.max(object.modified);
            if kind == BackupObject::Record {
                survey.recorded_at = Some(object.modified);
            }
            if !matches!(kind, BackupObject::Part(..)) {
                survey.objects.push(kind);
            }
        }
    }
    Ok(seen
        .into_iter()
        .partition(|(_, survey)| survey.has(&BackupObject::Record)))
}

/// The entry of a backup without a record, and why its mark cannot be read, if so.
async fn read_unfinished(
    archive: Archive,
    id: BackupId,
    survey: Survey,
) -> Result<(Unfinished, Option<String>)> {
    let (keep, unreadable_keep) = mark(&archive, &id, &survey).await?;
    let entry = Unfinished {
        state: survey.state(),
        last_sign: survey.last_sign,
        keep,
        was_verified: was_verified(&archive, &id).await?,
        id,
    };
    Ok((entry, unreadable_keep))
}

/// The mark of `walship keep`, or why it cannot be read.
async fn mark(archive: &Archive, id: &BackupId, survey: &Survey) -> Result<(Option<Keep>, Option<String>)> {
    if !survey.has(&BackupObject::Keep) {
        return Ok((None, None));
    }
    match archive.find(id).await {
        Ok(keep) => Ok((keep, None)),
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
            Ok((None, Some(error.to_string())))
        }
        Err(error) => Err(error),
    }
}

/// Whether the ledger says that a whole backup was found good. A ledger that cannot be used says nothing.
async fn was_verified(archive: &Archive, id: &BackupId) -> Result<bool> {
    let of = (
        LedgerObject::Backup(id.clone()),
        archive.identity().system_identifier,
    );
    let shard: Result<Option<Shard>> = ledger::usable(archive, &of)
        .await
        .context(|| format!("read {}", archive.url_of(&Shard::key(&of))))?;
    Ok(shard.is_ok_and(|shard| shard.is_some_and(|shard| shard.compared.is_some())))
}

/// What a backup's record and a listing of its objects say.
struct FoundBackup {
    id: BackupId,
    backup: Option<Backup>,
    wrong: Option<String>,
    /// Why its `keep.json` cannot be read.
    unreadable_keep: Option<String>,
}

impl FoundBackup {
    fn unusable(id: BackupId, why: String) -> Self {
        Self {
            id,
            backup: None,
            wrong: Some(why),
            unreadable_keep: None,
        }
    }
}

/// Reads a backup's record and looks for its objects; `None` where it was deleted meanwhile.
async fn read_backup(
    archive: Archive,
    id: BackupId,
    survey: Survey,
    known: Arc<Found>,
) -> Result<Option<FoundBackup>> {
    let mut listing = archive.store().list(&backup_prefix(&id), None);
    let (record, first_page) = tokio::join!(archive.find(&id), listing.next());
    let record: BackupRecord = match record {
        Ok(Some(record)) => record,
        Ok(None) => return Ok(None),
        // Damaged, or written by a newer walship.
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
            return Ok(Some(FoundBackup::unusable(id, error.to_string())));
        }
        Err(error) => return Err(error),
    };
    if let Some(wrong) = misplaced(&record, archive.identity()) {
        return Ok(Some(FoundBackup::unusable(id, wrong)));
    }
    let proof = if survey.has(&BackupObject::Proof) {
        proof(&archive, &id).await?
    } else {
        None
    };
    let (keep, unreadable_keep) = mark(&archive, &id, &survey).await?;
    Ok(Some(FoundBackup {
        backup: Some(Backup {
            proof,
            keep,
            stored_at: survey.recorded_at,
            ..Backup::from(&record)
        }),
        wrong: missing_object(&record, first_page, listing, &known).await?,
        unreadable_keep,
        id,
    }))
}

/// The results of drills; none where they cannot be read, because nothing depends on them.
async fn proof(archive: &Archive, id: &BackupId) -> Result<Option<Proof>> {
    match archive.find(id).await {
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
            tracing::warn!("{error}; the next walship drill of the backup replaces it");
            Ok(None)
        }
        read => read,
    }
}

/// Why a record belongs to another cluster, if it does.
pub(crate) fn misplaced(record: &BackupRecord, identity: &Identity) -> Option<String> {
    if record.system_identifier != identity.system_identifier {
        return Some(format!(
            "it is of the cluster with system identifier {}, the archive of {}",
            record.system_identifier, identity.system_identifier
        ));
    }
    if record.postgres_major != identity.postgres_major {
        return Some(format!(
            "it is of PostgreSQL {}, the archive of PostgreSQL {}",
            record.postgres_major, identity.postgres_major
        ));
    }
    (record.segment_bytes != identity.segment_bytes).then(|| {
        format!(
            "its cluster has WAL segments of {} MiB, the archive's of {} MiB",
            record.segment_bytes.bytes() >> 20,
            identity.segment_bytes.bytes() >> 20
        )
    })
}

/// The object that is missing in a backup's listing or has another size there, if any. The first page is given.
async fn missing_object(
    record: &BackupRecord,
    first_page: Result<Option<Vec<ObjectInfo>>>,
    mut listing: Listing,
    known: &Found,
) -> Result<Option<String>> {
    let mut check = PartCheck::new(record)?;
    let mut damaged = None;
    let mut page = first_page;
    while let Some(objects) = page.context(|| format!("list backup {}", record.id))? {
        for object in &objects {
            if let Ok(Key::Backup(_, kind)) = object.key.parse() {
                check.saw(&kind, object.size);
                damaged = damaged.or_else(|| {
                    let version = object.version.as_str();
                    let what = known.of(&object.key, object.size, object.modified, version)?;
                    Some(format!("{kind}: {what}"))
                });
            }
        }
        page = listing.next().await;
    }
    Ok(check.finish().or(damaged))
}

/// The barrier, if any, before the backup's own end.
fn barrier_in(backup: &Backup, wal: &WalInventory) -> Option<Barrier> {
    let size = wal.segment_size();
    let of = |range: &WalRange| {
        let (first, last) = (
            size.segment_of(range.start_lsn),
            size.segment_before(range.end_lsn),
        );
        let barrier = wal.barrier(range.timeline, first, last, range.start_lsn)?;
        Some(barrier).filter(|barrier| barrier.lsn() < range.end_lsn)
    };
    backup.wal_ranges.iter().find_map(of)
}

/// Adds a backup to those that can be restored, or to those that cannot.
fn judge(found: FoundBackup, sound: &WalInventory, catalogue: &mut Catalogue) -> Result<()> {
    let FoundBackup {
        id,
        backup,
        wrong,
        unreadable_keep,
    } = found;
    if let Some(why) = unreadable_keep {
        catalogue.unreadable_keeps.insert(id.clone(), why);
    }
    let missing = match (&backup, &wrong) {
        (Some(backup), None) => missing_wal(backup, sound)?,
        _ => None,
    };
    let broken = backup.as_ref().and_then(|backup| barrier_in(backup, sound));
    let wrong =
        wrong.or_else(|| broken.map(|barrier| format!("WAL that it needs cannot be replayed: {barrier}")));
    let wrong = wrong.or_else(|| {
        missing.map(|range| match catalogue.damage.of_first(&range) {
            None => format!("WAL that it needs is missing in the archive: {range}"),
            Some(damage) => format!("WAL that it needs cannot be used: {range} ({damage})"),
        })
    });
    match (backup, wrong) {
        (Some(backup), None) => catalogue.backups.push(backup),
        (backup, reason) => catalogue.unrestorable.push(Unrestorable {
            id,
            reason: reason.unwrap_or_default(),
            backup,
        }),
    }
    Ok(())
}

type Histories = (
    BTreeMap<TimelineId, TimelineHistory>,
    BTreeMap<TimelineId, String>,
);

/// Reads the timelines' histories: those that can be read, and why others cannot.
///
/// # Errors
/// As the store.
pub async fn histories(archive: &Archive, wal: &WalInventory) -> Result<Histories> {
    let reads = wal.histories().map(|timeline| {
        let archive = archive.clone();
        async move {
            match stored_wal::read_history(&archive, timeline).await {
                Err(error) if error.kind() != ErrorKind::Corrupt => Err(error),
                read => Ok((timeline, read)),
            }
        }
    });
    let mut readable = BTreeMap::from([(TimelineId::FIRST, TimelineHistory::root(TimelineId::FIRST))]);
    let mut unreadable = BTreeMap::new();
    for (timeline, read) in gather(reads).await? {
        let reason = match read {
            Ok(Some(history)) => {
                readable.insert(timeline, history);
                continue;
            }
            // No command of walship deletes one.
            Ok(None) => "it vanished while the archive was read".to_owned(),
            Err(error) => error.to_string(),
        };
        unreadable.insert(timeline, reason);
    }
    Ok((readable, unreadable))
}

type Marks = (BTreeMap<TimelineId, Retired>, BTreeMap<TimelineId, String>);

/// Reads the marks of retired timelines: those that can be read, and why others cannot.
async fn retired(archive: &Archive, wal: &WalInventory) -> Result<Marks> {
    let reads = wal.retired().map(|timeline| {
        let archive = archive.clone();
        async move { Ok((timeline, archive.find(&timeline).await)) }
    });
    let (mut marks, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
    for (timeline, read) in gather(reads).await? {
        match read {
            Ok(Some(mark)) => {
                marks.insert(timeline, mark);
            }
            // It was removed meanwhile.
            Ok(None) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
                let why = format!(
                    "{error}; write the mark again (walship timeline retire {timeline} --reason …) or remove it \
                     (walship timeline reinstate {timeline})"
                );
                unreadable.insert(timeline, why);
            }
            Err(error) => return Err(error),
        }
    }
    Ok((marks, unreadable))
}

/// Runs the jobs, a few at a time; the results come in any order.
pub(crate) async fn gather<T, F>(jobs: impl Iterator<Item = F>) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut results = Vec::new();
    let mut jobs = jobs.fuse();
    loop {
        while running.len() < PARALLEL
            && let Some(job) = jobs.next()
        {
            running.spawn(job);
        }
        let Some(ended) = running.join_next().await else {
            return Ok(results);
        };
        results.push(ended.map_err(|error| Error::defect("read the archive", error))??);
    }
}
