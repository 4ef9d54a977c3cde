//! The ledger in the store: read before a part of the archive is verified, written after it.
//!
//! Nothing but the summary is depended on: a shard that cannot be read counts as not there, and what cannot be written is
//! read again next time. Runs at the same time may overwrite each other's parts; each is true by itself.

use std::collections::BTreeSet;

use crate::archive::{identity, records};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::identity::Identity;
use crate::format::keys::{Key, LEDGER_PREFIX, LedgerObject};
use crate::format::ledger::{LedgerSummary, SHARD_LIMIT, SUMMARY_LIMIT, Shard};
use crate::store::{Body, PutMode, Store};

/// How the last verification that came to its end ended, for whoever reports on an archive; `None` where
/// there was none, or what it left cannot be read.
///
/// # Errors
/// As the store, and [`identity::require`].
pub async fn last_verification(store: &Store) -> Result<Option<LedgerSummary>> {
    let identity = identity::require(store).await?;
    let mut notes = Vec::new();
    let summary = read_summary(store, &identity, &mut notes).await?;
    for note in notes {
        tracing::warn!("{note}");
    }
    Ok(summary)
}

/// Reads the summary; what is wrong with it becomes a note.
pub(crate) async fn read_summary(
    store: &Store,
    identity: &Identity,
    notes: &mut Vec<String>,
) -> Result<Option<LedgerSummary>> {
    let key = Key::Ledger(LedgerObject::Summary).to_string();
    let parse = |bytes: &[u8], url: &str| LedgerSummary::parse(bytes, url, identity.system_identifier);
    match records::read(store, &key, SUMMARY_LIMIT, parse).await {
        Ok(summary) => Ok(summary),
        Err(error) => ignored(store, &key, error, notes).map(|()| None),
    }
}

/// What a failure to read a part of the ledger means: a part that is missing or useless is none.
fn ignored(store: &Store, key: &str, error: Error, notes: &mut Vec<String>) -> Result<()> {
    match error.kind() {
        ErrorKind::Corrupt | ErrorKind::Invalid | ErrorKind::Denied => {
            notes.push(format!(
                "{} is not used: {error}; what it tells of is read again",
                store.url_of(key)
            ));
            Ok(())
        }
        _ => Err(error),
    }
}

/// The ledger of one run.
pub(crate) struct Ledger {
    store: Store,
    system_identifier: u64,
    /// The parts there are.
    stored: BTreeSet<LedgerObject>,
    /// Whether what they tell counts.
    trusted: bool,
    /// Whether this run may write.
    writable: bool,
    pub(crate) notes: Vec<String>,
}

impl Ledger {
    /// Looks which parts there are. With `full` nothing in them counts.
    pub(crate) async fn open(store: &Store, identity: &Identity, full: bool) -> Result<Self> {
        let mut stored = BTreeSet::new();
        let mut listing = store.list(LEDGER_PREFIX, None);
        while let Some(page) = listing.next().await.context(|| "list the ledger")? {
            let objects = page.into_iter().filter_map(|info| match info.key.parse() {
                Ok(Key::Ledger(object)) => Some(object),
                _ => None,
            });
            stored.extend(objects);
        }
        Ok(Self {
            store: store.clone(),
            system_identifier: identity.system_identifier,
            stored,
            trusted: !full,
            writable: true,
            notes: Vec::new(),
        })
    }

    /// The parts there are.
    pub(crate) fn stored(&self) -> impl Iterator<Item = &LedgerObject> {
        self.stored.iter()
    }

    /// What is known of a part of the archive.
    pub(crate) async fn read(&mut self, object: LedgerObject) -> Result<Shard> {
        let nothing = Shard::new(object.clone(), self.system_identifier);
        if !self.trusted || !self.stored.contains(&object) {
            return Ok(nothing);
        }
        let key = Key::Ledger(object.clone()).to_string();
        let read = records::read(&self.store, &key, SHARD_LIMIT, |bytes, _| {
            Shard::parse(bytes, object.clone(), self.system_identifier)
        });
        match read.await {
            Ok(shard) => Ok(shard.unwrap_or(nothing)),
            Err(error) => ignored(&self.store, &key, error, &mut self.notes).map(|()| nothing),
        }
    }

    /// Notes what is known of a part of the archive now.
    pub(crate) async fn write(&mut self, shard: &Shard) -> Result<()> {
        let bytes = shard.to_bytes()?;
        self.put(Key::Ledger(shard.object.clone()), bytes).await
    }

    /// Notes how the run ended.
    pub(crate) async fn write_summary(&mut self, summary: &LedgerSummary) -> Result<()> {
        let bytes = summary.to_json()?;
        self.put(Key::Ledger(LedgerObject::Summary), bytes).await
    }

    async fn put(&mut self, key: Key, bytes: Vec<u8>) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        let key = key.to_string();
        match self
            .store
            .put(&key, &Body::from_bytes(bytes), PutMode::Replace)
            .await
        {
            Err(error) if error.kind() == ErrorKind::Denied => {
                // Whoever may only read can verify as well; it only costs more the next time.
                self.writable = false;
                self.notes.push(format!(
                    "the ledger cannot be written, so the next run reads everything again: {error}"
                ));
                Ok(())
            }
            other => other,
        }
    }

    /// Forgets parts that tell of nothing any more.
    pub(crate) async fn forget(&mut self, objects: &[LedgerObject]) -> Result<()> {
        if !self.writable || objects.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = objects
            .iter()
            .map(|object| Key::Ledger(object.clone()).to_string())
            .collect();
        match self.store.delete(&keys).await {
            Err(error) if error.kind() == ErrorKind::Denied => Ok(()),
            other => other,
        }
    }
}
