//! What retention promises: the settings of `[retention]`.

use chrono::TimeDelta;

use crate::error::{Error, Result};

/// What retention keeps. The default keeps nothing, which [`RetentionPolicy::check`] refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetentionPolicy {
    /// `keep_window`: every moment of this last period stays reachable.
    pub window: Option<TimeDelta>,
    /// `keep_backups`: this many of the newest backups stay, with all WAL after them.
    pub backups: Option<u32>,
    /// `keep_daily`: the newest backup of each of this many last days that have a backup.
    pub daily: Option<u32>,
    /// `keep_weekly`.
    pub weekly: Option<u32>,
    /// `keep_monthly`.
    pub monthly: Option<u32>,
    /// `keep_yearly`.
    pub yearly: Option<u32>,
}

impl RetentionPolicy {
    /// Refuses a policy that is empty or keeps nothing.
    ///
    /// # Errors
    /// `Invalid`, with what to set.
    pub fn check(&self) -> Result<()> {
        let counts = [self.backups, self.daily, self.weekly, self.monthly, self.yearly];
        if self.window.is_some() || counts.iter().flatten().any(|count| *count > 0) {
            return Ok(());
        }
        Err(Error::invalid(if counts.iter().any(Option::is_some) {
            "the retention policy would keep nothing: every number in [retention] is 0; nothing was deleted. Set \
             retention.keep_window, such as \"14d\", or retention.keep_backups, such as 3"
        } else {
            "no retention policy is set, so nothing was deleted; set retention.keep_window, such as \"14d\", or \
             retention.keep_backups, such as 3 (docs/retention.md)"
        }))
    }

    /// How many of the newest backups stay. The newest one always does: without it the WAL that
    /// still arrives would be worth nothing.
    pub(super) fn newest(&self) -> usize {
        self.backups.unwrap_or(0).max(1) as usize
    }
}
