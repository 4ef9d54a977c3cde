//! Reading what an archive holds: listings of `backups/` and `wal/`, and the small objects that say
//! what the large ones are.
//!
//! Backups are listed before the WAL, so that what a backup needs that ends meanwhile is listed as
//! well. A backup that is deleted meanwhile is left out. Memory grows with the number of backups
//! and of gaps in the WAL, not with that of objects.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::task::JoinSet;

use super::{branch_ends, identity, records, stored_wal};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::backup::{BackupRecord, WalRange};
use crate::format::barriers::Barrier;
use crate::format::identity::Identity;
use crate::format::keep::{KEEP_LIMIT, Keep};
use crate::format::keys::{
    BACKUPS_PREFIX, BackupId, BackupObject, Key, LedgerObject, WAL_PREFIX, backup_prefix,
};
use crate::format::ledger::{LedgerSummary, SHARD_LIMIT, SUMMARY_LIMIT, Shard};
use crate::format::proof::{PROOF_LIMIT, Proof};
use crate::format::record;
use crate::format::released::{self, RELEASED_LIMIT, TimelineRanges};
use crate::format::retired::{RETIRED_LIMIT, Retired};
use crate::format::wal_inventory::WalInventory;
use crate::judge::catalogue::{
    Backup, Catalogue, PartCheck, Unfinished, UnfinishedState, Unrestorable, missing_wal,
};
use crate::judge::damage::{Damage, Found};
use crate::pg::{TimelineHistory, TimelineId};
use crate::store::{Listing, ObjectInfo, Store, Version};

/// The largest `backup.json` that is read, in bytes: some 150 for each part.
pub const RECORD_LIMIT: u64 = 256 << 20;

/// Backups, or histories, that are looked at the same time.
const PARALLEL: usize = 8;

/// Reads what the archive holds, and what earlier verifications found damaged in it.
///
/// # Errors
/// As [`identity::require`] and the store. A damaged backup or history is no error but noted; one
/// that cannot be read because of an outage is.
pub async fn load(store: &Store) -> Result<Catalogue> {
    read(store, read_summary(store)).await
}

/// As [`load`], without what earlier verifications found: for one that looks itself.
///
/// # Errors
/// As [`load`].
pub async fn load_as_listed(store: &Store) -> Result<Catalogue> {
    read(store, std::future::ready(Ok(None))).await
}

async fn read(
    store: &Store,
    summary: impl Future<Output = Result<Option<LedgerSummary>>>,
) -> Result<Catalogue> {
    // The answers do not depend on each other; what is wrong with the identity says more.
    let (identity, surveys, summary) = tokio::join!(identity::require(store), survey_backups(store), summary);
    let identity = identity?;
    let (recorded, others) = surveys?;
    let url = store.url_of(&Key::Ledger(LedgerObject::Summary).to_string());
    let checked = |summary: LedgerSummary| summary.check(&url, identity.system_identifier).map(|()| summary);
    let (summary, unknown) = match summary.and_then(|found| found.map(checked).transpose()) {
        Ok(summary) => (summary, None),
        Err(error) => match error.kind() {
            ErrorKind::Denied | ErrorKind::Corrupt | ErrorKind::Invalid => {
                tracing::warn!("{error}; what verify found is not known");
                (None, Some(error.to_string()))
            }
            _ => return Err(error),
        },
    };
    let known = Arc::new(summary.as_ref().map(Found::in_summary).unwrap_or_default());
    let (unfinished, records, ((wal, damage), released, (histories, unreadable_histories), retired)) = tokio::try_join!(
        gather(others.into_iter().map(|(id, survey)| read_unfinished(
            store.clone(),
            id,
            survey,
            identity.clone()
        ))),
        gather(recorded.into_iter().map(|(id, survey)| read_backup(
            store.clone(),
            id,
            survey,
            identity.clone(),
            Arc::clone(&known)
        ))),
        wal_and_what_it_means(store, &identity, &known)
    )?;
    let mut catalogue = Catalogue {
        identity,
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
    catalogue.newest_ends = branch_ends::read(store, &catalogue).await?;
    Ok(catalogue)
}

/// What is said of the WAL.
type OfWal = (
    (WalInventory, Damage),
    TimelineRanges,
    Histories,
    BTreeMap<TimelineId, Retired>,
);

/// The archive's WAL and what of it is damaged, what retention gave up, the timelines' histories, and which of them are retired.
async fn wal_and_what_it_means(store: &Store, identity: &Identity, known: &Found) -> Result<OfWal> {
    let mut damage = Damage::default();
    let wal = list_wal(store, identity, |object| {
        if let Some(what) = known.of(&object.key, object.size, object.modified, object.version.as_str()) {
            damage.add_wal(&object.key, what);
        }
    })
    .await?;
    // Read after the WAL was listed, as it is written before WAL is deleted.
    let (released, histories, retired) = tokio::join!(
        released(store, identity),
        histories(store, &wal, identity),
        retired(store, &wal)
    );
    let (mut histories, (retired, unreadable)) = (histories?, retired?);
    for (timeline, why) in unreadable {
        // Whether it may be followed is not known, so it is no timeline to follow.
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
///
/// # Errors
/// As [`Store::list`].
pub async fn wal(store: &Store, identity: &Identity) -> Result<WalInventory> {
    list_wal(store, identity, |_| {}).await
}

async fn list_wal(
    store: &Store,
    identity: &Identity,
    mut each: impl FnMut(&ObjectInfo),
) -> Result<WalInventory> {
    let mut wal = WalInventory::new(identity.segment_bytes);
    let mut listing = store.list(WAL_PREFIX, None);
    while let Some(page) = listing.next().await.context(|| "list the archived WAL")? {
        for object in &page {
            wal.add_stored(&object.key, object.size, object.modified);
            each(object);
        }
    }
    Ok(wal)
}

/// Reads which WAL retention has given up. Absence means none.
///
/// # Errors
/// As the store and [`released::parse`].
pub async fn released(store: &Store, identity: &Identity) -> Result<TimelineRanges> {
    released_version(store, identity)
        .await
        .map(|(released, _)| released)
}

/// As [`released()`]; tells also which version of the object was read, where there is one.
pub(crate) async fn released_version(
    store: &Store,
    identity: &Identity,
) -> Result<(TimelineRanges, Option<Version>)> {
    let key = Key::Retention.to_string();
    let parse = |bytes: &[u8], url: &str| released::parse(bytes, identity.segment_bytes, url);
    let found = records::read_version(store, &key, RELEASED_LIMIT, parse).await?;
    Ok(found.map_or_else(Default::default, |(released, info)| {
        (released, Some(info.version))
    }))
}

/// Reads a backup's mark of `walship keep`; `None` where it has none.
///
/// # Errors
/// As the store and [`Keep::parse`].
pub async fn read_keep(store: &Store, id: &BackupId) -> Result<Option<Keep>> {
    let key = Key::Backup(id.clone(), BackupObject::Keep).to_string();
    let parse = |bytes: &[u8], url: &str| Keep::parse(bytes, url, id);
    records::read(store, &key, KEEP_LIMIT, parse).await
}

/// Reads a backup's record.
///
/// # Errors
/// `NotFound` where there is none; otherwise as [`find_record`].
pub async fn read_record(store: &Store, id: &BackupId) -> Result<BackupRecord> {
    let record = find_record(store, id, BackupObject::Record).await?;
    record.ok_or_else(|| {
        let key = Key::Backup(id.clone(), BackupObject::Record).to_string();
        Error::not_found(format!("read {}: there is no such object", store.url_of(&key)))
    })
}

/// Reads the record of a backup, finished (`backup.json`) or pending; `None` where it is proven that
/// there is none.
///
/// # Errors
/// `Corrupt` where it is another backup's; otherwise as the store and [`BackupRecord::parse`].
pub async fn find_record(store: &Store, id: &BackupId, object: BackupObject) -> Result<Option<BackupRecord>> {
    let key = Key::Backup(id.clone(), object).to_string();
    records::read(store, &key, RECORD_LIMIT, |bytes, url| {
        BackupRecord::parse(bytes, url, id)
    })
    .await
}

/// Reads what drills showed of a backup.
///
/// # Errors
/// As the store and [`Proof::parse`].
pub async fn read_proof(store: &Store, id: &BackupId) -> Result<Option<Proof>> {
    let key = Key::Backup(id.clone(), BackupObject::Proof).to_string();
    let parse = |bytes: &[u8], url: &str| Proof::parse(bytes, url, id);
    records::read(store, &key, PROOF_LIMIT, parse).await
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

/// What else is known of a backup without a record, and why its mark cannot be read.
async fn read_unfinished(
    store: Store,
    id: BackupId,
    survey: Survey,
    identity: Identity,
) -> Result<(Unfinished, Option<String>)> {
    let (keep, unreadable_keep) = mark(&store, &id, &survey).await?;
    let entry = Unfinished {
        state: survey.state(),
        last_sign: survey.last_sign,
        keep,
        was_verified: was_verified(&store, &id, &identity).await?,
        id,
    };
    Ok((entry, unreadable_keep))
}

/// The mark of `walship keep`, or why it cannot be read.
async fn mark(store: &Store, id: &BackupId, survey: &Survey) -> Result<(Option<Keep>, Option<String>)> {
    if !survey.has(&BackupObject::Keep) {
        return Ok((None, None));
    }
    match read_keep(store, id).await {
        Ok(keep) => Ok((keep, None)),
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
            Ok((None, Some(error.to_string())))
        }
        Err(error) => Err(error),
    }
}

/// Reads the summary of the ledger, whichever archive's it is.
async fn read_summary(store: &Store) -> Result<Option<LedgerSummary>> {
    let key = Key::Ledger(LedgerObject::Summary).to_string();
    records::read(store, &key, SUMMARY_LIMIT, record::parse).await
}

/// Whether the ledger tells that all of a backup was found good. A ledger that cannot be used tells nothing.
async fn was_verified(store: &Store, id: &BackupId, identity: &Identity) -> Result<bool> {
    let object = LedgerObject::Backup(id.clone());
    let key = Key::Ledger(object.clone()).to_string();
    let shard = records::read(store, &key, SHARD_LIMIT, |bytes, _| {
        Shard::parse(bytes, object.clone(), identity.system_identifier)
    });
    match shard.await {
        Ok(shard) => Ok(shard.is_some_and(|shard| shard.compared.is_some())),
        Err(error) => match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Invalid | ErrorKind::Denied => Ok(false),
            _ => Err(error).context(|| format!("read {}", store.url_of(&key))),
        },
    }
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
    store: Store,
    id: BackupId,
    survey: Survey,
    identity: Identity,
    known: Arc<Found>,
) -> Result<Option<FoundBackup>> {
    let mut listing = store.list(&backup_prefix(&id), None);
    let (record, first_page) = tokio::join!(find_record(&store, &id, BackupObject::Record), listing.next());
    let record = match record {
        Ok(Some(record)) => record,
        Ok(None) => return Ok(None),
        // Damaged, or written by a newer walship.
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
            return Ok(Some(FoundBackup::unusable(id, error.to_string())));
        }
        Err(error) => return Err(error),
    };
    if let Some(wrong) = misplaced(&record, &identity) {
        return Ok(Some(FoundBackup::unusable(id, wrong)));
    }
    let proof = if survey.has(&BackupObject::Proof) {
        proof(&store, &id).await?
    } else {
        None
    };
    let (keep, unreadable_keep) = mark(&store, &id, &survey).await?;
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

/// What drills showed; nothing where that cannot be understood, for nothing depends on it.
async fn proof(store: &Store, id: &BackupId) -> Result<Option<Proof>> {
    match read_proof(store, id).await {
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
            tracing::warn!("{error}; the next walship drill of the backup replaces it");
            Ok(None)
        }
        read => read,
    }
}

/// Whether a record is another cluster's.
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

/// What the listing of a backup, whose first page is there, lacks or has in another size.
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

/// What no recovery from a backup crosses before its own end.
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

/// Files a backup under those that can be restored, or not.
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
pub async fn histories(store: &Store, wal: &WalInventory, identity: &Identity) -> Result<Histories> {
    let system_identifier = identity.system_identifier;
    let reads = wal.histories().map(|timeline| {
        let store = store.clone();
        async move {
            match stored_wal::read_history(&store, timeline, system_identifier).await {
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
            // Nothing of walship deletes one.
            Ok(None) => "it vanished while the archive was read".to_owned(),
            Err(error) => error.to_string(),
        };
        unreadable.insert(timeline, reason);
    }
    Ok((readable, unreadable))
}

type Marks = (BTreeMap<TimelineId, Retired>, BTreeMap<TimelineId, String>);

/// Reads the marks of retired timelines: those that can be read, and why others cannot.
async fn retired(store: &Store, wal: &WalInventory) -> Result<Marks> {
    let reads = wal.retired().map(|timeline| {
        let store = store.clone();
        async move { Ok((timeline, read_retired(&store, timeline).await)) }
    });
    let (mut marks, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
    for (timeline, read) in gather(reads).await? {
        match read {
            Ok(Some(mark)) => {
                marks.insert(timeline, mark);
            }
            // It was taken away meanwhile.
            Ok(None) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
                let why = format!(
                    "{error}; write the mark again (walship timeline retire {timeline} --reason …) or take it away \
                     (walship timeline reinstate {timeline})"
                );
                unreadable.insert(timeline, why);
            }
            Err(error) => return Err(error),
        }
    }
    Ok((marks, unreadable))
}

/// Reads the mark of a retired timeline; `None` where it has none.
///
/// # Errors
/// As the store and [`Retired::parse`].
pub async fn read_retired(store: &Store, timeline: TimelineId) -> Result<Option<Retired>> {
    let key = Key::Retired(timeline).to_string();
    records::read(store, &key, RETIRED_LIMIT, |bytes, url| {
        Retired::parse(bytes, timeline, url)
    })
    .await
}

/// Runs the jobs, a few at a time; their results come in any order.
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
