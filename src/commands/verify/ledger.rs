//! The ledger in the store: read before a part of the archive is verified, written after it.
//!
//! Nothing depends on it but cost: what cannot be read counts as not there, and what cannot be written is
//! read again next time. Runs at the same time may overwrite each other's parts; each is true by itself.

use crate::archive::identity::Identity;
use crate::archive::keys::{Key, LedgerObject};
use crate::archive::ledger::{LedgerSummary, SUMMARY_LIMIT};
use crate::commands::identity;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;

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
pub(super) async fn read_summary(
    store: &Store,
    identity: &Identity,
    notes: &mut Vec<String>,
) -> Result<Option<LedgerSummary>> {
    let key = Key::Ledger(LedgerObject::Summary).to_string();
    let read = match store.read(&key, SUMMARY_LIMIT).await {
        Ok(bytes) => LedgerSummary::parse(&bytes, identity.system_identifier),
        Err(error) => Err(error),
    };
    match read {
        Ok(summary) => Ok(Some(summary)),
        Err(error) => ignored(store, &key, error, notes).map(|()| None),
    }
}

/// What a failure to read a part of the ledger means: a part that is missing or useless is none.
fn ignored(store: &Store, key: &str, error: Error, notes: &mut Vec<String>) -> Result<()> {
    match error.kind() {
        ErrorKind::NotFound => Ok(()),
        ErrorKind::Corrupt | ErrorKind::Invalid => {
            notes.push(format!(
                "{} is not used: {error}; what it tells of is read again",
                store.url_of(key)
            ));
            Ok(())
        }
        _ => Err(error),
    }
}
