//! The WAL. It is listed folder by folder, each folder is compared with its part of the ledger, and objects that are
//! new, changed or due are read.
//!
//! Memory holds one folder: at most 4096 segments and the objects beside them. If a server lists a folder in two
//! pieces, the next run reads some of it again, and nothing worse happens.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::scope::{Scope, Verdict};
use super::tally::{Finding, Tally, entry_of};
use crate::archive::ledger::Ledger;
use crate::archive::wal_listing::WalListing;
use crate::archive::wal_object::{Found, WalContext, twice, wal_name};
use crate::error::{Error, Result};
use crate::format::keys::{Key, LedgerObject, WalFolder};
use crate::format::ledger::Shard;
use crate::judge::catalogue::Catalogue;
use crate::pg::{TimelineId, WalName};
use crate::progress::Progress;
use crate::store::ObjectInfo;

/// The verification of the WAL.
pub(super) struct WalPass<'a> {
    pub(super) context: Arc<WalContext>,
    pub(super) catalogue: &'a Catalogue,
    pub(super) scope: Scope,
    /// Objects read at the same time, at least 1.
    pub(super) concurrency: usize,
    pub(super) ledger: &'a mut Ledger,
    pub(super) tally: &'a mut Tally,
    pub(super) progress: &'a Progress,
}

/// Objects that belong to one part of the ledger.
struct Group {
    object: LedgerObject,
    members: Vec<(Key, ObjectInfo)>,
}

impl WalPass<'_> {
    pub(super) async fn run(mut self) -> Result<()> {
        let mut visited = BTreeSet::new();
        let mut histories = Group {
            object: LedgerObject::Histories,
            members: Vec::new(),
        };
        let mut open: Option<Group> = None;
        let mut listing = WalListing::new(&self.context.archive);
        while let Some(page) = listing.next().await? {
            for info in page {
                // An object without a key of walship's is foreign, and left alone.
                let Ok(key) = info.key.parse::<Key>() else {
                    continue;
                };
                let folder = match &key {
                    Key::Segment(segment)
                    | Key::Partial { segment, .. }
                    | Key::BackupHistory { segment, .. } => WalFolder::of(*segment),
                    Key::History(_) => {
                        histories.members.push((key, info));
                        continue;
                    }
                    _ => continue,
                };
                let object = LedgerObject::Wal(folder);
                if open.as_ref().is_none_or(|group| group.object != object) {
                    visited.insert(object.clone());
                    let fresh = Group {
                        object,
                        members: Vec::new(),
                    };
                    if let Some(whole) = open.replace(fresh) {
                        self.verify(whole).await?;
                    }
                }
                if let Some(group) = &mut open {
                    group.members.push((key, info));
                }
            }
        }
        if let Some(last) = open {
            self.verify(last).await?;
        }
        self.verify(histories).await?;
        self.look_at_what_is_gone(&visited).await
    }

    /// Verifies the objects of one part of the ledger, and writes that part anew.
    async fn verify(&mut self, group: Group) -> Result<()> {
        let before = self.ledger.read(group.object.clone()).await?;
        let mut after = Shard::new(group.object, before.system_identifier);
        let listed: BTreeSet<&str> = group.members.iter().map(|(_, info)| info.key.as_str()).collect();
        for (key, entry) in &before.entries {
            if !listed.contains(key.as_str()) && self.is_missed(key) {
                after.entries.insert(key.clone(), entry.clone());
            }
        }
        let mut due = Vec::new();
        for (key, info) in group.members {
            self.tally.objects += 1;
            match self.scope.judge(&info, before.entries.get(&info.key)) {
                Verdict::Known(entry) => {
                    self.tally.good(&entry);
                    self.progress.advance(info.size);
                    after.entries.insert(info.key, entry);
                }
                Verdict::PassOver => self.tally.unread += 1,
                Verdict::Read => {
                    let was_good = before.entries.contains_key(&info.key);
                    due.push((key, info, was_good));
                }
            }
        }
        self.read(due, &mut after).await?;
        if after != before {
            self.ledger.write(&after).await?;
        }
        Ok(())
    }

    /// Reads objects. The flag of each says whether an earlier run found it good.
    async fn read(&mut self, due: Vec<(Key, ObjectInfo, bool)>, after: &mut Shard) -> Result<()> {
        let mut running = JoinSet::new();
        let mut due = due.into_iter();
        loop {
            while running.len() < self.concurrency.max(1)
                && let Some((key, info, was_good)) = due.next()
            {
                let context = Arc::clone(&self.context);
                running.spawn(async move {
                    let found = twice(|| context.look(&key)).await?;
                    let is_bad = matches!(found, Found::Bad(_));
                    let existed = was_good || is_bad && context.is_of_its_name(&key).await?;
                    Ok::<_, Error>((key, info, found, existed))
                });
            }
            let Some(ended) = running.join_next().await else {
                return Ok(());
            };
            let (key, info, found, existed) =
                ended.map_err(|error| Error::defect("verify the WAL", error))??;
            self.tally.read_objects += 1;
            self.progress.advance(info.size);
            match (found, wal_name(&key)) {
                (Found::Good, _) => {
                    let entry = entry_of(&info, self.scope.now);
                    self.tally.good(&entry);
                    after.entries.insert(info.key, entry);
                }
                (Found::Bad(what), Some(name)) => {
                    let seen = Finding::damaged("", "").seen(Some(&info)).seen;
                    self.tally.bad_wal(&key, name, what, existed, seen);
                }
                (Found::Gone | Found::Bad(_), _) => self.tally.vanished = true,
            }
        }
    }

    /// Whether an object that is not listed any more, but was verified once, should still be there. Retention deletes
    /// neither histories nor the newest WAL of a timeline that a backup is on.
    fn is_missed(&mut self, key: &str) -> bool {
        match key.parse() {
            Ok(Key::Segment(segment)) => {
                let timeline = segment.timeline();
                let number = segment.number(self.catalogue.wal.segment_size());
                let is_last = match (self.catalogue.wal.newest(timeline), number) {
                    (Some(newest), Ok(number)) => number > newest,
                    (None, Ok(_)) => self.has_backup(timeline),
                    (_, Err(_)) => false,
                };
                if is_last {
                    self.tally.knows(segment);
                }
                is_last
            }
            Ok(Key::History(timeline)) => {
                self.tally.find(
                    Finding::missing(
                        key,
                        "an earlier run has seen it, and walship never deletes a history",
                    )
                    .named(WalName::History(timeline)),
                );
                true
            }
            _ => false,
        }
    }

    fn has_backup(&self, timeline: TimelineId) -> bool {
        self.catalogue.readable().any(|backup| {
            backup.stop_timeline == timeline
                || backup.wal_ranges.iter().any(|range| range.timeline == timeline)
        })
    }

    /// Looks at folders that are in the ledger and not in the listing. A folder that should still have objects stays in
    /// the ledger; the others are removed from it.
    async fn look_at_what_is_gone(&mut self, visited: &BTreeSet<LedgerObject>) -> Result<()> {
        let unseen: Vec<_> = self
            .ledger
            .stored()
            .filter(|object| matches!(object, LedgerObject::Wal(_)) && !visited.contains(object))
            .cloned()
            .collect();
        let mut forgotten = Vec::new();
        for object in unseen {
            let before = self.ledger.read(object.clone()).await?;
            let mut is_missed = false;
            for key in before.entries.keys() {
                is_missed |= self.is_missed(key);
            }
            if !is_missed {
                forgotten.push(object);
            }
        }
        self.ledger.forget(&forgotten).await
    }
}
