//! `walship verify`: reads and checks what is stored, and says what it is worth.
//!
//! Backups and WAL are listed first. Then an object is read if the ledger does not know it, if it has changed, or if it
//! is due again. After a pause, objects that seem wrong are looked at again with a fresh listing, because `expire` may
//! have deleted them, `push` may have been about to store them, and `repair` may have replaced them.
//!
//! A run that is killed leaves a ledger that is true as far as it goes. Only the ledger is written.

mod args;
mod backups;
mod contents;
mod lineage;
mod report;
mod scope;
mod tally;
mod wal;

pub use self::args::VerifyArgs;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

use self::backups::BackupPass;
use self::scope::Scope;
use self::tally::Tally;
use self::wal::WalPass;
use crate::archive::ledger::{Ledger, read_summary};
use crate::archive::wal_object::wal_name;
pub(super) use crate::archive::wal_object::{Found, WalContext};
use crate::archive::{Archive, catalogue, wal_changes};
use crate::error::{ErrorKind, Result};
use crate::format::Stored;
use crate::format::backup::BackupRecord;
use crate::format::barriers::Barriers;
use crate::format::drills::Drills;
use crate::format::keep::Keep;
use crate::format::keys::{BackupId, BackupObject, Key};
use crate::format::ledger::{LedgerFinding, LedgerRun, LedgerScope, LedgerSummary};
use crate::format::released::Retention;
use crate::format::retired::Retired;
use crate::format::wal_inventory::{SegmentRange, WalInventory};
use crate::judge::assessment::{Assessment, Evidence, assess};
use crate::judge::catalogue::Catalogue;
use crate::pg::WalName;
use crate::progress::Progress;
use crate::store::{Meter, Store};

pub use self::report::VerifyReport;
pub use self::tally::{Finding, FindingKind};

/// What `walship verify` is asked to do.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Read everything, even what is good by the ledger.
    pub full: bool,
    /// Read only what was written at this moment or later.
    pub since: Option<DateTime<Utc>>,
    /// Within this time every object is read again.
    pub recheck: Duration,
    /// Objects read at the same time, at least 1.
    pub concurrency: usize,
    /// Most bytes to read from the store in a second.
    pub max_rate: Option<u64>,
    /// Pause before objects that seem wrong are looked at again.
    pub second_look_after: Duration,
}

impl VerifyOptions {
    fn scope(&self) -> LedgerScope {
        match (self.since, self.full) {
            (Some(_), _) => LedgerScope::Since,
            (None, true) => LedgerScope::Full,
            (None, false) => LedgerScope::New,
        }
    }
}

/// A small object's key, and whether the object can be read.
async fn look_at<T: Stored>(archive: &Archive, of: &T::Of) -> (Key, Result<()>) {
    (T::key(of), archive.find::<T>(of).await.map(drop))
}

/// Verifies an archive.
///
/// # Errors
/// As the store, and [`catalogue::load`]. Damaged and missing objects are in the report; they are not errors.
pub async fn run(
    options: &VerifyOptions,
    store: &Store,
    now: DateTime<Utc>,
    progress: &Arc<Progress>,
) -> Result<VerifyReport> {
    let begun = Instant::now();
    let meter = Meter::new(options.max_rate);
    let mut run = Run::begin(options, store.with_meter(meter.clone()), now, progress).await?;
    run.read_everything().await?;
    let assessment = run.assess().await?;
    let finished_at = now + TimeDelta::from_std(begun.elapsed()).unwrap_or_default();
    let report = run.report(assessment, &meter, finished_at);
    run.note_the_end(&report).await?;
    Ok(VerifyReport {
        // Writing the ledger may have added notes.
        notes: report.notes.iter().chain(&run.ledger.notes).cloned().collect(),
        ..report
    })
}

/// A run in progress.
struct Run<'a> {
    options: &'a VerifyOptions,
    archive: Archive,
    now: DateTime<Utc>,
    progress: &'a Arc<Progress>,
    catalogue: Catalogue,
    context: Arc<WalContext>,
    summary: Option<LedgerSummary>,
    /// Then a run with `--since` must not replace it, because what it says about older objects would be lost.
    unreadable_summary: bool,
    ledger: Ledger,
    tally: Tally,
    notes: Vec<String>,
}

impl<'a> Run<'a> {
    async fn begin(
        options: &'a VerifyOptions,
        store: Store,
        now: DateTime<Utc>,
        progress: &'a Arc<Progress>,
    ) -> Result<Self> {
        progress.phase("list the archive");
        let archive = Archive::open(&store).await?;
        let mut catalogue = catalogue::load_as_listed(&archive).await?;
        let mut notes = Vec::new();
        let summary = read_summary(&archive, &mut notes).await?;
        let unreadable_summary = !notes.is_empty();
        if let Some(summary) = summary.as_ref().filter(|_| !options.full) {
            catalogue.wal.barriers_mut().clone_from(&summary.barriers);
        }
        wal_changes::note_barriers(&archive, &mut catalogue, wal_changes::LOOKED_AT_BY_VERIFY).await?;
        let backups: u64 = catalogue.readable().map(|backup| backup.stored_bytes).sum();
        progress.expect(catalogue.wal.stored_bytes() + backups);
        Ok(Self {
            ledger: Ledger::open(&archive, options.full).await?,
            context: Arc::new(WalContext {
                archive: archive.clone(),
                histories: catalogue.histories.clone(),
                wal: catalogue.wal.clone(),
            }),
            tally: Tally::new(catalogue.identity.segment_bytes),
            unreadable_summary,
            options,
            archive,
            now,
            progress,
            catalogue,
            summary,
            notes,
        })
    }

    async fn read_everything(&mut self) -> Result<()> {
        let scope = Scope {
            now: self.now,
            since: self.options.since,
            recheck: self.options.recheck,
        };
        self.read_records().await?;
        self.progress.phase("verify the WAL");
        WalPass {
            context: Arc::clone(&self.context),
            catalogue: &self.catalogue,
            scope,
            concurrency: self.options.concurrency,
            ledger: &mut self.ledger,
            tally: &mut self.tally,
            progress: self.progress,
        }
        .run()
        .await?;
        BackupPass {
            archive: &self.archive,
            catalogue: &self.catalogue,
            scope,
            concurrency: self.options.concurrency,
            ledger: &mut self.ledger,
            tally: &mut self.tally,
            progress: self.progress,
        }
        .run()
        .await
    }

    /// Reads the records that are not part of a backup or of the WAL: released WAL, marks, drills. A record that seemed
    /// damaged was read twice already.
    async fn read_records(&mut self) -> Result<()> {
        let (archive, retired) = (&self.archive, &self.catalogue.retired);
        let system_identifier = archive.identity().system_identifier;
        let mut read = vec![
            look_at::<Retention>(archive, &archive.identity().segment_bytes).await,
            look_at::<Drills>(archive, &system_identifier).await,
        ];
        for timeline in self
            .catalogue
            .wal
            .retired()
            .filter(|timeline| !retired.contains_key(timeline))
        {
            read.push(look_at::<Retired>(archive, &timeline).await);
        }
        for (key, read) in read {
            match read {
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
                    self.tally
                        .find(Finding::damaged(key.to_string(), error.to_string()));
                }
                // A user who may read only some objects verifies those.
                Err(error) if error.kind() == ErrorKind::Denied => {
                    self.notes.push(format!("{key} was not looked at: {error}"));
                }
                read => read?,
            }
        }
        for (id, why) in &self.catalogue.unreadable_keeps {
            let key = Keep::key(id).to_string();
            self.tally.find(Finding::damaged(key, why.clone()));
        }
        Ok(())
    }

    /// Judges what the archive is worth. If something seems wrong, a second look decides.
    async fn assess(&mut self) -> Result<Assessment> {
        self.miss_histories();
        let first = self.judge()?;
        if self.tally.count() == 0 && !self.tally.vanished && first.is_whole() {
            return Ok(first);
        }
        self.progress.phase("look again at what seems wrong");
        tokio::time::sleep(self.options.second_look_after).await;
        let barriers = self.catalogue.wal.barriers().clone();
        self.archive.confirm().await?;
        self.catalogue = catalogue::load_as_listed(&self.archive).await?;
        *self.catalogue.wal.barriers_mut() = barriers;
        wal_changes::note_barriers(
            &self.archive,
            &mut self.catalogue,
            wal_changes::LOOKED_AT_BY_VERIFY,
        )
        .await?;
        self.look_again().await?;
        self.miss_histories();
        let second = self.judge()?;
        self.miss_segments(&second);
        Ok(second)
    }

    fn judge(&self) -> Result<Assessment> {
        let mut bad_backups = self.tally.bad_backups.clone();
        for entry in &self.catalogue.unfinished {
            if entry.lost_record(self.now).is_some() {
                bad_backups.insert(entry.id.clone(), "backup.json is missing".to_owned());
            }
        }
        assess(
            &self.catalogue,
            &Evidence {
                bad_segments: &self.tally.bad_segments,
                bad_backups: &bad_backups,
                known: &self.tally.known,
            },
        )
    }

    /// Looks once more at every object that seemed wrong.
    async fn look_again(&mut self) -> Result<()> {
        let there: BTreeSet<BackupId> = self
            .catalogue
            .readable()
            .map(|backup| &backup.id)
            .chain(self.catalogue.unrestorable.iter().map(|entry| &entry.id))
            .cloned()
            .collect();
        self.tally.bad_backups.retain(|id, _| there.contains(id));
        let found = std::mem::take(&mut self.tally.findings);
        if self.tally.more_findings == 0 {
            self.tally.bad_segments = WalInventory::new(self.catalogue.identity.segment_bytes);
        }
        for finding in found {
            let Ok(key) = finding.key.parse::<Key>() else {
                continue;
            };
            match (&key, wal_name(&key)) {
                (Key::Backup(id, BackupObject::Record), _) if finding.kind == FindingKind::Missing => {
                    let mut unfinished = self.catalogue.unfinished.iter();
                    if unfinished.any(|entry| entry.id == *id && entry.lost_record(self.now).is_some()) {
                        self.tally.find(finding);
                    }
                }
                (Key::Backup(id, _), _) if !there.contains(id) => {}
                (Key::Backup(id, _), _) if finding.kind == FindingKind::OtherHistory => {
                    self.look_again_at_lineage(id, &finding).await?;
                }
                (_, Some(name)) if finding.kind == FindingKind::Damaged => {
                    if let Found::Bad(what) = self.context.look(&key).await? {
                        // Whether it existed was noted at the first look.
                        self.tally.bad_wal(&key, name, what, false, finding.seen.clone());
                    }
                }
                // The fresh listing has it.
                (Key::History(timeline), _) if self.catalogue.histories.contains_key(timeline) => {}
                _ => self.tally.find(finding),
            }
        }
        Ok(())
    }

    async fn look_again_at_lineage(&mut self, id: &BackupId, finding: &Finding) -> Result<()> {
        let record: Option<BackupRecord> = self.archive.find(id).await?;
        let again = match &record {
            Some(record) => lineage::other_history(record, &self.archive).await?,
            None => None,
        };
        if let Some(again) = again {
            self.tally
                .bad_backups
                .entry(id.clone())
                .or_insert_with(|| lineage::reason(&again));
            self.tally.find(Finding {
                seen: finding.seen.clone(),
                ..again
            });
        } else if self.tally.bad_backups.get(id) == Some(&lineage::reason(finding)) {
            // This was the only reason: other objects would have their own findings.
            self.tally.bad_backups.remove(id);
        }
        Ok(())
    }

    /// Finds histories that are missing: no recovery goes along a timeline that has WAL but no history.
    fn miss_histories(&mut self) {
        let catalogue = &self.catalogue;
        for timeline in catalogue.wal.timelines() {
            let is_known = catalogue.histories.contains_key(&timeline)
                || catalogue.unreadable_histories.contains_key(&timeline);
            let key = Key::History(timeline).to_string();
            let is_found = self.tally.findings.iter().any(|finding| finding.key == key);
            if !is_known && !is_found && catalogue.wal.newest(timeline).is_some() {
                let what = format!(
                    "timeline {timeline} has WAL, but without its history no recovery can go along it"
                );
                self.tally
                    .find(Finding::missing(key, what).named(WalName::History(timeline)));
            }
        }
    }

    /// Finds segments that are missing: they are lost, but not because an object is damaged.
    fn miss_segments(&mut self, assessment: &Assessment) {
        for lost in &assessment.lost {
            let SegmentRange { first, segments, .. } = lost.segments;
            if let Some(barrier) = lost.barrier {
                let finding = Finding::uncrossable(first.timeline(), barrier, &*lost.evidence);
                self.tally.find(finding);
                continue;
            }
            let bad = self.tally.bad_segments.count_within(&lost.segments);
            if bad.is_ok_and(|bad| bad < segments) {
                let what = format!("{} is missing: {}", lost.segments, lost.evidence);
                let key = Key::Segment(first).to_string();
                self.tally
                    .find(Finding::missing(key, what).named(WalName::Segment(first)));
            }
        }
    }

    fn report(&mut self, assessment: Assessment, meter: &Meter, finished_at: DateTime<Utc>) -> VerifyReport {
        self.notes.extend(assessment.notes.iter().cloned());
        if assessment.backups.is_empty() {
            self.notes.push(
                "there is no backup, and without a backup nothing can be recovered; take one with walship basebackup"
                    .to_owned(),
            );
        }
        let unfinished = self.catalogue.unfinished.iter();
        for entry in unfinished.filter(|entry| entry.lost_record(self.now).is_none()) {
            self.notes.push(format!(
                "backup {} is not finished, so it was not verified",
                entry.id
            ));
        }
        let mut findings = std::mem::take(&mut self.tally.findings);
        findings.sort_by(|one, other| one.key.cmp(&other.key));
        VerifyReport {
            url: self.archive.url(),
            is_clean: findings.is_empty() && assessment.is_whole() && self.tally.more_findings == 0,
            started_at: self.now,
            finished_at,
            scope: self.options.scope(),
            since: self.options.since,
            objects: self.tally.objects,
            read_objects: self.tally.read_objects,
            read_bytes: meter.read_bytes(),
            requests: meter.requests(),
            unread_objects: self.tally.unread,
            all_read_since: self.tally.oldest_read.filter(|_| self.tally.unread == 0),
            findings,
            more_findings: self.tally.more_findings,
            backups: assessment.backups,
            lost: assessment.lost,
            notes: std::mem::take(&mut self.notes),
        }
    }

    async fn note_the_end(&mut self, report: &VerifyReport) -> Result<()> {
        if self.unreadable_summary && self.options.since.is_some() {
            return Ok(());
        }
        let finding = |finding: &Finding| LedgerFinding {
            key: finding.key.clone(),
            what: finding.what.clone(),
            seen: finding.seen.clone(),
        };
        let unrestorable = report
            .backups
            .iter()
            .filter(|backup| backup.unrestorable.is_some());
        let run = LedgerRun {
            started_at: report.started_at,
            finished_at: report.finished_at,
            scope: report.scope,
            objects: report.objects,
            read_objects: report.read_objects,
            read_bytes: report.read_bytes,
            all_read_since: report.all_read_since,
            findings_count: report.findings.len() as u64 + report.more_findings,
            findings: report.findings.iter().map(finding).collect(),
            unrestorable: unrestorable.map(|backup| backup.id.clone()).collect(),
        };
        let identity = &self.catalogue.identity;
        let after = LedgerSummary::after(
            run,
            self.summary.as_ref(),
            self.options.since,
            identity.system_identifier,
        );
        let summary = LedgerSummary {
            barriers: self.barriers_of_sound_wal()?,
            ..after
        };
        self.ledger.write_summary(&summary).await
    }

    /// The barriers that are known, without those that a damaged segment tells of: that segment is asked again when it
    /// is repaired.
    fn barriers_of_sound_wal(&self) -> Result<Barriers> {
        let size = self.catalogue.identity.segment_bytes;
        let mut barriers = self.catalogue.wal.barriers().clone();
        for timeline in self.tally.bad_segments.timelines() {
            for range in self.tally.bad_segments.ranges(timeline) {
                barriers.forget_from(timeline, range.first.start(size)?);
            }
        }
        Ok(barriers)
    }
}
