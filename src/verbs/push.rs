//! `walship push`: stores one file of `pg_wal`.
//!
//! What holds when it succeeds: the file is durable in the archive of its own cluster, under its
//! own name, and what stood there before, if anything, had the same content. A crash at any point
//! leaves either no object or the whole one; pushing again is safe.

mod args;
mod unfinished;

pub use self::args::PushArgs;
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use self::unfinished::run_unfinished;
use crate::archive::{Archive, Created, Same};
use crate::cluster::compressor::Compressor;
use crate::cluster::wal_file::{WalFile, key_of};
use crate::error::{Context, Error, Result};
use crate::pg::WalName;
use crate::store::{Store, Turn};

/// Stores one file of `pg_wal`; `path` is as PostgreSQL gives it.
///
/// # Errors
/// `Invalid` for a file that does not belong: a foreign name, another cluster, a truncated segment.
/// `Conflict` where the archive holds different content under this name. `Corrupt` where what it
/// holds there cannot be read. Otherwise as the store.
pub async fn run(
    path: &Path,
    compressor: &Arc<Compressor>,
    store: &Store,
    now: DateTime<Utc>,
) -> Result<Created> {
    let name = wal_name(path)?;
    let pushing = push(name, path, compressor, store, now, None, None);
    let pushed = async {
        let (report, archive) = pushing.await?;
        archive.confirm().await?;
        Ok(report)
    };
    Box::pin(pushed).await.context(|| format!("push {name}"))
}

/// As [`run`], for a process that stores many files. It may pass the archive that it knows, and gets the archive back:
/// it must confirm it before it calls the file stored. If there is a `turn`, nothing is stored before it has come.
///
/// # Errors
/// As [`run`]; what `turn` fails with.
pub async fn run_in_turn(
    path: &Path,
    compressor: &Arc<Compressor>,
    store: &Store,
    now: DateTime<Utc>,
    known: Option<Archive>,
    turn: Option<Turn<'_>>,
) -> Result<Archive> {
    let name = wal_name(path)?;
    let pushing = push(name, path, compressor, store, now, known, turn);
    let (_, archive) = pushing.await.context(|| format!("push {name}"))?;
    Ok(archive)
}

async fn push(
    name: WalName,
    path: &Path,
    compressor: &Arc<Compressor>,
    store: &Store,
    now: DateTime<Utc>,
    known: Option<Archive>,
    mut turn: Option<Turn<'_>>,
) -> Result<(Created, Archive)> {
    let source = Arc::new(WalFile::open(name, path)?);
    source.refuse_unannounced()?;
    let (compressed, archive) = tokio::join!(compressor.compress(&source), source.archive(store, now, known));
    let archive = archive?;
    let (body, trailer) = compressed?;
    source.refuse_incomplete(&trailer)?;
    source.refuse_unknown_timeline(&archive).await?;
    let key = key_of(name, &trailer)?;
    // Where the archive is looked at first, the files before this one must be stored already.
    let looks_first = matches!(name, WalName::History(_)) || !archive.identity().conditional_writes;
    if looks_first && let Some(turn) = turn.take() {
        turn.await?;
    }
    source.check_history(&archive).await?;
    archive.warn_if_unconditional();
    let created = archive
        .create(&key, &body, Same::Content(name, &trailer), turn)
        .await?;
    compressor.take_back(body);
    Ok((created, archive))
}

/// Stores a file that is known to be what it is opened as, and returns its key.
async fn push_source(
    source: &Arc<WalFile>,
    compressor: &Arc<Compressor>,
    store: &Store,
    now: DateTime<Utc>,
) -> Result<(Created, String)> {
    let archive = source.archive(store, now, None).await?;
    let (body, trailer) = compressor.compress(source).await?;
    source.refuse_unknown_timeline(&archive).await?;
    let key = key_of(source.name, &trailer)?;
    archive.warn_if_unconditional();
    let created = archive
        .create(&key, &body, Same::Content(source.name, &trailer), None)
        .await?;
    archive.confirm().await?;
    Ok((created, key.to_string()))
}

fn wal_name(path: &Path) -> Result<WalName> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    name.parse()
        .map_err(|error: Error| error.context(format!("push {}", path.display())))
}
