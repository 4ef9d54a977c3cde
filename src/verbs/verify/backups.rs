//! The base backups, one after another. Every object is checked against `backup.json`; the files in them are checked
//! against PostgreSQL's manifest once for each record.
//!
//! If `expire` deletes a backup meanwhile, the record goes first. So a missing object counts only if the record is
//! still there at the second look.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::contents::Contents;
use super::lineage;
use super::scope::{Scope, Verdict};
use super::tally::{Finding, Tally, entry_of};
use crate::archive::Archive;
use crate::archive::ledger::Ledger;
use crate::archive::wal_object::Found;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::Sha256Sum;
use crate::format::backup::{BackupRecord, StoredObject};
use crate::format::keys::{BackupId, BackupObject, LedgerObject, backup_prefix};
use crate::format::ledger::Shard;
use crate::judge::catalogue::Catalogue;
use crate::progress::Progress;
use crate::store::{ObjectInfo, Store};

/// The verification of the backups.
pub(super) struct BackupPass<'a> {
    pub(super) archive: &'a Archive,
    pub(super) catalogue: &'a Catalogue,
    pub(super) scope: Scope,
    /// Parts read at the same time, at least 1.
    pub(super) concurrency: usize,
    pub(super) ledger: &'a mut Ledger,
    pub(super) tally: &'a mut Tally,
    pub(super) progress: &'a Arc<Progress>,
}

/// A record is written once. If another one has a hash that fits, it was not damaged by accident, but it is not the
/// backup's.
const CHANGED: &str = "it is not the record that an earlier run found good, although a record is written only once; \
                       if you changed it on purpose, run verify --full";

type Objects = BTreeMap<String, ObjectInfo>;

impl BackupPass<'_> {
    pub(super) async fn run(mut self) -> Result<()> {
        for entry in &self.catalogue.unrestorable {
            if entry.backup.is_none() {
                let key = entry.id.key(BackupObject::Record);
                self.tally.objects += 1;
                self.tally.read_objects += 1;
                self.tally.find(Finding::damaged(key.to_string(), &entry.reason));
                self.tally
                    .bad_backups
                    .insert(entry.id.clone(), entry.reason.clone());
            }
        }
        for entry in &self.catalogue.unfinished {
            if let Some(why) = entry.lost_record(self.scope.now) {
                let key = entry.id.key(BackupObject::Record).to_string();
                self.tally
                    .find(Finding::missing(key, lost_record(&entry.id, &why)));
            }
        }
        let ids: Vec<_> = self
            .catalogue
            .readable()
            .map(|backup| backup.id.clone())
            .collect();
        for id in &ids {
            self.verify(id).await?;
        }
        let known: Vec<_> = self
            .ledger
            .stored()
            .filter(|object| match object {
                LedgerObject::Backup(id) => {
                    !ids.contains(id)
                        && !self.catalogue.unrestorable.iter().any(|entry| entry.id == *id)
                        && !self.catalogue.unfinished.iter().any(|entry| entry.id == *id)
                }
                _ => false,
            })
            .cloned()
            .collect();
        self.ledger.forget(&known).await
    }

    async fn verify(&mut self, id: &BackupId) -> Result<()> {
        self.progress.phase(format!("verify backup {id}"));
        let objects = list(self.archive.store(), id).await?;
        let Some((record, sum)) = self.record(id).await? else {
            return Ok(());
        };
        let mut before = self.ledger.read(LedgerObject::Backup(id.clone())).await?;
        let is_another = before.compared.is_some_and(|compared| compared != sum);
        if before.compared != Some(sum) {
            // Objects were good by another record.
            before.entries.clear();
        }
        let mut after = Shard::new(before.object.clone(), before.system_identifier);
        after.compared = before.compared.filter(|compared| *compared == sum);
        let contents = Contents {
            archive: self.archive.clone(),
            record: Arc::new(record),
            concurrency: self.concurrency,
            progress: Arc::clone(self.progress),
        };
        let mut findings = self
            .verify_objects(&contents, &objects, &before, &mut after, sum)
            .await?;
        if is_another {
            let key = id.key(BackupObject::Record).to_string();
            findings.insert(0, Finding::damaged(&key, CHANGED).seen(objects.get(&key)));
        }
        let mut reason = reason(&findings);
        if let Some(foreign) = self.verify_lineage(&contents.record, &before, &mut after).await? {
            reason.get_or_insert_with(|| lineage::reason(&foreign));
            let info = objects.get(&foreign.key);
            findings.push(foreign.seen(info));
        }
        self.tally.objects += 1 + contents.record.objects().count() as u64;
        for finding in findings {
            self.tally.find(finding);
        }
        if let Some(reason) = reason {
            self.tally.bad_backups.insert(id.clone(), reason);
        }
        // The ledger keeps what it has about the record that was good.
        if after == before || is_another {
            return Ok(());
        }
        // Retention removes a backup from the ledger before it deletes the backup; that must not be undone.
        if self.archive.head(&id.key(BackupObject::Record)).await?.is_none() {
            self.tally.vanished = true;
            return Ok(());
        }
        self.ledger.write(&after).await
    }

    /// The record, with the SHA-256 of its bytes; `None` where the backup was deleted meanwhile.
    async fn record(&mut self, id: &BackupId) -> Result<Option<(BackupRecord, Sha256Sum)>> {
        let read = self.archive.find_whole::<BackupRecord>(id).await;
        self.tally.read_objects += 1;
        match read {
            Ok(Some(read)) => Ok(Some((read.stored, Sha256Sum::of(&read.bytes)))),
            Ok(None) => {
                self.tally.vanished = true;
                Ok(None)
            }
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
                let key = id.key(BackupObject::Record).to_string();
                self.tally.find(Finding::damaged(key, error.to_string()));
                self.tally.bad_backups.insert(id.clone(), error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What is wrong with the backup's objects.
    async fn verify_objects(
        &mut self,
        contents: &Contents,
        objects: &Objects,
        before: &Shard,
        after: &mut Shard,
        sum: Sha256Sum,
    ) -> Result<Vec<Finding>> {
        let record = &contents.record;
        let is_new = after.compared.is_none()
            && self.scope.since.is_none_or(|since| {
                let key = record.id.key(BackupObject::Record).to_string();
                objects.get(&key).is_none_or(|info| info.modified >= since)
            });
        let mut due = Vec::new();
        for (object, expected) in record.objects() {
            let key = record.id.key(object.clone()).to_string();
            let is_read_with_all = is_new && object != BackupObject::Configuration;
            match objects
                .get(&key)
                .map(|info| self.scope.judge(info, before.entries.get(&key)))
            {
                _ if is_read_with_all => {}
                Some(Verdict::Known(entry)) => {
                    self.tally.good(&entry);
                    self.progress.advance(entry.size);
                    after.entries.insert(key, entry);
                }
                Some(Verdict::PassOver) => self.tally.unread += 1,
                // Objects that were not listed are looked for as well.
                Some(Verdict::Read) | None => due.push((object, expected)),
            }
        }
        let mut contradiction = None;
        let mut judged = read(contents, due, self.concurrency).await?;
        if is_new {
            let judgement = contents.check().await?;
            judged.extend(judgement.objects);
            contradiction = judgement.contradiction;
        }
        self.tally.read_objects += judged.len() as u64;
        let mut findings = Vec::new();
        for (object, found) in judged {
            let key = record.id.key(object).to_string();
            match found {
                Found::Good => {
                    if let Some(info) = objects.get(&key) {
                        let entry = entry_of(info, self.scope.now);
                        self.tally.good(&entry);
                        after.entries.insert(key, entry);
                    }
                }
                Found::Bad(what) => findings.push(Finding::damaged(&key, what).seen(objects.get(&key))),
                Found::Gone => findings.push(Finding::missing(key, "the backup's record names it")),
            }
        }
        if let Some(what) = contradiction {
            let key = record.id.key(BackupObject::Manifest).to_string();
            findings.push(Finding::damaged(&key, what).seen(objects.get(&key)));
        }
        findings.sort_by(|one, other| one.key.cmp(&other.key));
        if is_new && findings.is_empty() {
            after.compared = Some(sum);
        }
        Ok(findings)
    }
}

/// What is wrong where the record of a backup is lost.
pub(super) fn lost_record(id: &BackupId, why: &str) -> String {
    format!(
        "{why}, but its record is missing, and without it the backup cannot be restored: bring backup.json back from \
         a copy of the archive, or delete what is left in backups/{id}/ by hand"
    )
}

/// Why a backup with these findings cannot be restored, in short.
fn reason(findings: &[Finding]) -> Option<String> {
    let first = findings.first()?;
    let name = first.key.splitn(3, '/').nth(2).unwrap_or(&first.key);
    Some(match findings.len() - 1 {
        0 => format!("{name} is {}", first.kind),
        others => format!(
            "{name} is {}, and {others} more of its objects are damaged or missing",
            first.kind
        ),
    })
}

async fn list(store: &Store, id: &BackupId) -> Result<Objects> {
    let mut objects = BTreeMap::new();
    let mut listing = store.list(&backup_prefix(id), None);
    while let Some(page) = listing.next().await.context(|| format!("list backup {id}"))? {
        objects.extend(page.into_iter().map(|info| (info.key.clone(), info)));
    }
    Ok(objects)
}

/// Reads objects, `concurrency` at a time.
async fn read(
    contents: &Contents,
    due: Vec<(BackupObject, StoredObject)>,
    concurrency: usize,
) -> Result<Vec<(BackupObject, Found)>> {
    let mut running = JoinSet::new();
    let mut judged = Vec::new();
    let mut due = due.into_iter();
    loop {
        while running.len() < concurrency.max(1)
            && let Some((object, expected)) = due.next()
        {
            let contents = contents.clone();
            running.spawn(async move {
                let found = contents.check_object(&object, &expected).await?;
                Ok::<_, Error>((object, found))
            });
        }
        let Some(ended) = running.join_next().await else {
            return Ok(judged);
        };
        judged.push(ended.map_err(|error| Error::defect("verify a backup", error))??);
    }
}
