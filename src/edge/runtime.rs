//! Runs a command's work: on how many threads, within which time, until which signal.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Settings, cores};
use crate::error::{Error, Result};
use crate::store::{Store, StoreOptions};

/// Calls into file systems at the same time. tokio wakes the threads for them in turn, so that none of them is ever idle
/// for long, and their number only grows (`tokio/src/runtime/blocking/pool.rs`, 1.x).
const FILE_THREADS: usize = 64;

/// Opens the archive's store.
pub async fn open(settings: &Settings) -> Result<Store> {
    Store::open(&settings.archive()?, &settings.store).await
}

/// Opens the archive's store for a command that must end within `limit`.
pub async fn open_within(limit: Duration, settings: &Settings) -> Result<Store> {
    let timeouts = &settings.store;
    let limit = most_of(limit);
    let options = StoreOptions {
        operation_timeout: limit,
        connect_timeout: timeouts.connect_timeout.min(limit),
        request_timeout: timeouts.request_timeout.min(limit),
        ..timeouts.clone()
    };
    Store::open(&settings.archive()?, &options).await
}

/// The store's share of a command's time: the store gives up a little earlier, because its message says more.
pub fn most_of(limit: Duration) -> Duration {
    limit.mul_f64(0.9)
}

/// Ends the work when its time is over; `setting` says how long that is.
pub async fn within<T>(limit: Duration, setting: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Error::unavailable(format!(
            "gave up after {} s; the store is too slow, or {setting} too low",
            limit.as_secs_f64()
        )))
    })
}

/// For a process that lives for one file or one screen.
pub fn on_one_thread<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    finish(&mut Builder::new_current_thread(), work)
}

/// For commands that move whole clusters.
pub fn on_many_threads<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    finish(&mut Builder::new_multi_thread(), work)
}

/// Runs the work to its end. A system call that hangs, as on a dead network file system, is not waited for beyond the
/// work's own time limits.
fn finish<T>(threads: &mut Builder, work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime: Runtime = threads
        .enable_all()
        .max_blocking_threads(FILE_THREADS.max(2 * cores()))
        .build()
        .map_err(|error| Error::io("start the runtime", error))?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// Resolves when the user, or the system, wants the command to end.
pub fn interrupted() -> Result<impl Future<Output = &'static str>> {
    let listen = |kind| signal(kind).map_err(|error| Error::io("listen for signals", error));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => "interrupted",
            _ = terminate.recv() => "told to end (SIGTERM)",
            _ = hangup.recv() => "the terminal is gone (SIGHUP)",
        }
    })
}
