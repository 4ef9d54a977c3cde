//! Flags that say what to recover to, and from which backup.

use chrono::{DateTime, Utc};
use clap::Args;

use crate::error::{Error, Result};
use crate::format::keys::BackupId;
use crate::judge::recovery_plan::{Request, Search, Target};
use crate::pg::{Lsn, TimelineId, parse_timestamp};

/// What to recover to, and from which backup.
#[derive(Debug, Args)]
pub struct RequestArgs {
    /// The backup to start from [default: the newest one that fits the target]
    #[arg(long, value_name = "ID")]
    pub backup: Option<BackupId>,
    /// Where recovery stops.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Timeline to recover along: a number, or latest
    #[arg(long, value_name = "TIMELINE", value_parser = timeline_or_latest)]
    pub target_timeline: Option<FollowedTimeline>,
}

/// Where recovery stops: at most one of these; the end of the archived WAL otherwise.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct TargetArgs {
    /// A moment, such as "2026-11-23 04:15:00+01" or 2026-11-23T03:15:00Z. PostgreSQL gets the position of the last
    /// transaction that ended, or was prepared, until then, because by itself it goes on up to the next commit
    #[arg(long, value_name = "TIME", value_parser = parse_timestamp)]
    pub target_time: Option<DateTime<Utc>>,
    /// A position in the WAL, such as 16/B374D848
    #[arg(long, value_name = "LSN")]
    pub target_lsn: Option<Lsn>,
    /// A transaction's number (xid), such as 743
    #[arg(long, value_name = "XID", value_parser = transaction_id)]
    pub target_xid: Option<u64>,
    /// A restore point made with pg_create_restore_point
    #[arg(long, value_name = "NAME")]
    pub target_name: Option<String>,
    /// The first consistent moment: the end of the backup
    #[arg(long)]
    pub target_immediate: bool,
}

/// The timeline to follow; `None` for the latest one.
#[derive(Debug, Clone, Copy)]
pub struct FollowedTimeline(Option<TimelineId>);

fn timeline_or_latest(text: &str) -> Result<FollowedTimeline> {
    let number = Some(text).filter(|text| *text != "latest");
    number.map(str::parse).transpose().map(FollowedTimeline)
}

fn transaction_id(text: &str) -> Result<u64> {
    let number = text.parse();
    number.map_err(|_| Error::invalid("not a transaction id; give its number in decimal"))
}

impl RequestArgs {
    /// The request; `inclusive` says whether the target itself is still replayed.
    pub fn request(self, inclusive: bool, end_at_gap: bool) -> Request {
        Request {
            target: self.target.target(),
            inclusive,
            timeline: self
                .target_timeline
                .and_then(|FollowedTimeline(followed)| followed),
            backup: self.backup,
            end_at_gap,
            search: Search::NotMade,
        }
    }
}

impl TargetArgs {
    fn target(self) -> Target {
        let time = self.target_time.map(Target::Time);
        let lsn = self.target_lsn.map(Target::Lsn);
        let xid = self.target_xid.map(|id| Target::Xid(lower_half(id)));
        let name = self.target_name.map(Target::Name);
        let otherwise = if self.target_immediate {
            Target::Immediate
        } else {
            Target::Latest
        };
        // clap lets through one of them.
        time.or(lsn).or(xid).or(name).unwrap_or(otherwise)
    }
}

/// The low half of a 64-bit id, such as `pg_current_xact_id()` returns. Only that counts for
/// `recovery_target_xid` (`check_recovery_target_xid`, `xlogrecovery.c`).
fn lower_half(id: u64) -> u32 {
    let low = id as u32;
    if u64::from(low) != id {
        tracing::warn!(
            "the WAL has only the lower 32 bits of a transaction's number: {low} for {id}, which an earlier transaction may have \
             had as well; see below when the one that was found ended"
        );
    }
    low
}
