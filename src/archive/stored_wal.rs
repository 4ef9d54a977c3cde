//! Reading WAL objects back, verified.

use std::io::Write;

use super::Archive;
use crate::error::{ErrorKind, Result};
use crate::format::codec::{Trailer, WalDecoder};
use crate::format::keys::Key;
use crate::pg::{TimelineHistory, TimelineId, WalName};
use crate::store::{Store, read_again_if_damaged};

/// The largest WAL segment PostgreSQL knows, in bytes.
pub const LARGEST_SEGMENT: u64 = 1 << 30;
/// The largest `.history` or `.backup` file that is read back.
pub const SMALL_FILE_LIMIT: u64 = 1 << 20;

/// Streams an object's content into `output`, which may be trusted only after this has returned the trailer.
///
/// # Errors
/// `NotFound` where the key is proven missing; `Corrupt` where the object is damaged or holds more
/// than `limit` bytes; otherwise as the store.
pub async fn decode(store: &Store, key: &Key, limit: u64, output: &mut impl Write) -> Result<Trailer> {
    let mut object = store.get(&key.to_string()).await?;
    let mut decoder = WalDecoder::new(limit)?;
    while let Some(chunk) = object.chunk().await? {
        decoder.write(&chunk, output)?;
    }
    decoder.finish()
}

/// As [`decode`], into an output that is made for each look, because an object that arrives damaged is read again.
///
/// # Errors
/// As [`decode`] and as `make`.
pub async fn read<W: Write>(
    store: &Store,
    key: &Key,
    limit: u64,
    make: impl Fn() -> Result<W>,
) -> Result<(W, Trailer)> {
    read_again_if_damaged(async || {
        let mut output = make()?;
        let trailer = decode(store, key, limit, &mut output).await?;
        Ok((output, trailer))
    })
    .await
}

/// Verifies an object without keeping its content.
pub async fn verify(store: &Store, key: &Key, limit: u64) -> Result<Trailer> {
    let (_, trailer) = read(store, key, limit, || Ok(std::io::sink())).await?;
    Ok(trailer)
}

/// Reads a timeline's history; `None` where it is proven that the archive has none.
///
/// # Errors
/// `Corrupt` where it is damaged or another cluster's; otherwise as the store.
pub async fn read_history(archive: &Archive, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
    let key = Key::History(timeline);
    let look = async || {
        let mut content = Vec::new();
        let trailer = decode(archive.store(), &key, SMALL_FILE_LIMIT, &mut content).await?;
        trailer.check(WalName::History(timeline), archive.identity().system_identifier)?;
        TimelineHistory::parse(timeline, &content)
    };
    match read_again_if_damaged(look).await {
        Ok(history) => Ok(Some(history)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.context(format!("read {}", archive.url_of(&key)))),
    }
}

/// A timeline's history must begin with its parent's, where the archive has that.
///
/// # Errors
/// `Conflict` where they disagree; otherwise as [`read_history`].
pub async fn check_parent(archive: &Archive, history: &TimelineHistory) -> Result<()> {
    let Some(parent) = history.parent().map(|ancestor| ancestor.timeline) else {
        return Ok(());
    };
    match read_history(archive, parent).await? {
        Some(parent) => history.extends(&parent),
        // Timeline 1 has none, and an archive may have begun on a later timeline.
        None => Ok(()),
    }
}
