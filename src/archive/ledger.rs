//! The ledger in the store: read before a part of the archive is verified, written after it.
//!
//! Only the summary matters to others: a shard that cannot be read counts as absent, and if a shard cannot be written,
//! its objects are read again next time. Runs at the same time may overwrite each other's parts, because each part is
//! true by itself.

use std::collections::BTreeSet;

use crate::archive::Archive;
use crate::error::{Context, ErrorKind, Result};
use crate::format::Stored;
use crate::format::keys::{Key, LEDGER_PREFIX, LedgerObject};
use crate::format::ledger::{LedgerSummary, Shard};

/// The result of the last verification that ran to its end; `None` where there was none, or its summary cannot be read.
///
/// # Errors
/// As the store.
pub async fn last_verification(archive: &Archive) -> Result<Option<LedgerSummary>> {
    let mut notes = Vec::new();
    let summary = read_summary(archive, &mut notes).await?;
    for note in notes {
        tracing::warn!("{note}");
    }
    Ok(summary)
}

/// Reads the summary; a fault in it becomes a note.
pub(crate) async fn read_summary(
    archive: &Archive,
    notes: &mut Vec<String>,
) -> Result<Option<LedgerSummary>> {
    find(archive, &archive.identity().system_identifier, notes).await
}

/// Reads a part of the ledger. A damaged one counts as missing, and becomes a note.
async fn find<T: Stored>(archive: &Archive, of: &T::Of, notes: &mut Vec<String>) -> Result<Option<T>> {
    let error = match usable(archive, of).await? {
        Ok(found) => return Ok(found),
        Err(error) => error,
    };
    let url = archive.url_of(&T::key(of));
    notes.push(format!(
        "{url} is not used: {error}; the objects that it is about are read again"
    ));
    Ok(None)
}

/// Reads a part of the ledger; the inner error says why a part that is there cannot be used.
///
/// # Errors
/// As the store.
pub(crate) async fn usable<T: Stored>(archive: &Archive, of: &T::Of) -> Result<Result<Option<T>>> {
    match archive.find(of).await {
        Err(error) => match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Invalid | ErrorKind::Denied => Ok(Err(error)),
            _ => Err(error),
        },
        found => Ok(found),
    }
}

/// The ledger of one run.
pub(crate) struct Ledger {
    archive: Archive,
    stored: BTreeSet<LedgerObject>,
    /// Whether their content counts.
    trusted: bool,
    /// Whether this run may write.
    writable: bool,
    pub(crate) notes: Vec<String>,
}

impl Ledger {
    /// Lists the parts that there are. With `full` nothing in them counts.
    pub(crate) async fn open(archive: &Archive, full: bool) -> Result<Self> {
        let mut stored = BTreeSet::new();
        let mut listing = archive.store().list(LEDGER_PREFIX, None);
        while let Some(page) = listing.next().await.context(|| "list the ledger")? {
            let objects = page.into_iter().filter_map(|info| match info.key.parse() {
                Ok(Key::Ledger(object)) => Some(object),
                _ => None,
            });
            stored.extend(objects);
        }
        Ok(Self {
            archive: archive.clone(),
            stored,
            trusted: !full,
            writable: true,
            notes: Vec::new(),
        })
    }

    pub(crate) fn stored(&self) -> impl Iterator<Item = &LedgerObject> {
        self.stored.iter()
    }

    /// What is known of a part of the archive.
    pub(crate) async fn read(&mut self, object: LedgerObject) -> Result<Shard> {
        let of = (object, self.archive.identity().system_identifier);
        let found = if self.trusted && self.stored.contains(&of.0) {
            find(&self.archive, &of, &mut self.notes).await?
        } else {
            None
        };
        Ok(found.unwrap_or_else(|| Shard::new(of.0, of.1)))
    }

    /// Notes what is known of a part of the archive now.
    pub(crate) async fn write(&mut self, shard: &Shard) -> Result<()> {
        let of = (shard.object.clone(), shard.system_identifier);
        self.replace(&of, shard).await
    }

    /// Notes how the run ended.
    pub(crate) async fn write_summary(&mut self, summary: &LedgerSummary) -> Result<()> {
        self.replace(&summary.system_identifier, summary).await
    }

    async fn replace<T: Stored>(&mut self, of: &T::Of, part: &T) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        match self.archive.replace(of, part).await {
            Err(error) if error.kind() == ErrorKind::Denied => {
                // Without permission to write one can still verify; it only costs more the next time.
                self.writable = false;
                self.notes.push(format!(
                    "the ledger cannot be written, so the next run reads everything again: {error}"
                ));
                Ok(())
            }
            other => other,
        }
    }

    /// Deletes parts whose objects are all gone.
    pub(crate) async fn forget(&mut self, objects: &[LedgerObject]) -> Result<()> {
        if !self.writable || objects.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = objects.iter().map(|object| Key::Ledger(object.clone())).collect();
        match self.archive.delete(&keys).await {
            Err(error) if error.kind() == ErrorKind::Denied => Ok(()),
            other => other,
        }
    }
}
