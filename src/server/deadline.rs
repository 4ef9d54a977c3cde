//! One deadline for a whole run of doctor or status, from the opening of the store on.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::error::Result;
use crate::judge::diagnosis::Fact;

/// When everything must be done.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Self {
            at: Instant::now() + limit,
            limit,
        }
    }

    pub(crate) fn at(self) -> Instant {
        self.at
    }

    /// The whole time, from the start.
    pub(crate) fn limit(self) -> Duration {
        self.limit
    }

    /// A little earlier: what comes after it needs some time of its own.
    pub(crate) fn earlier(self) -> Self {
        Self {
            at: self.at - self.limit / 10,
            ..self
        }
    }

    /// Does the work, or says that `doing` was not done in time.
    pub(crate) async fn within<T>(self, doing: &str, work: impl Future<Output = Result<T>>) -> Fact<T> {
        match timeout_at(self.at, work).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(self.too_slow(doing)),
        }
    }

    pub(crate) fn too_slow(self, doing: &str) -> String {
        format!(
            "{doing}: not done within {} s (doctor.timeout)",
            self.limit.as_secs_f64()
        )
    }
}
