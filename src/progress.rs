//! How far a long command has come. The command counts, and a progress bar reads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that a command moves forward and a progress bar reads.
#[derive(Debug, Default)]
pub struct Progress {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    phase: Mutex<String>,
}

/// What a [`Progress`] says at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// What is going on: "copy the cluster", "wait for WAL".
    pub phase: String,
    /// Bytes done in all phases so far.
    pub done_bytes: u64,
    /// Bytes expected in all, 0 while unknown. PostgreSQL's own estimate may fall short.
    pub total_bytes: u64,
}

impl Progress {
    /// Names the phase that begins.
    pub fn phase(&self, phase: impl Into<String>) {
        // A poisoned lock only means that a drawing thread died; the text is still a text.
        *self
            .phase
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = phase.into();
    }

    /// Sets how many bytes are expected in all.
    pub fn expect(&self, total_bytes: u64) {
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    /// Counts bytes as done.
    pub fn advance(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How far it has come.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            phase: self
                .phase
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .clone(),
            done_bytes: self.done_bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
        }
    }
}
