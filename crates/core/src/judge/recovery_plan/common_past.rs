//! The past that several chains share, if only a person can choose between them: a target that lies in it is the same
//! whichever of them is followed.

use super::timeline::{chain_of, judge_from};
use super::{FoundRecord, Request, Target, base};
use crate::error::Result;
use crate::format::wal_inventory::SegmentRange;
use crate::judge::branches::Ambiguity;
use crate::judge::catalogue::Catalogue;
use crate::pg::TimelineId;

/// The past that several chains share.
#[derive(Debug)]
pub struct CommonPast {
    /// The archive, cut after the segment in which they parted.
    pub catalogue: Catalogue,
    /// The last timeline of the common past.
    pub timeline: TimelineId,
    /// The oldest timeline between which a person must choose.
    pub oldest: TimelineId,
    /// The timelines between which a person must choose.
    pub ambiguity: Ambiguity,
}

impl CommonPast {
    /// Whether a record lies in the common past.
    #[must_use]
    pub fn holds(&self, record: &FoundRecord) -> bool {
        record.lsn < self.ambiguity.parted.lsn
    }
}

/// The common past, if the target must be looked up to know whether it lies there.
///
/// # Errors
/// `Invalid` for positions that no segment has; `NotFound`, `Corrupt` or `Unfinished` for a named backup that cannot be
/// used.
pub fn common_past(catalogue: &Catalogue, request: &Request) -> Result<Option<CommonPast>> {
    let is_looked_up = matches!(request.target, Target::Time(_) | Target::Xid(_) | Target::Name(_));
    if request.timeline.is_some() || !is_looked_up {
        return Ok(None);
    }
    let named = base::named(catalogue, request)?;
    let Err(ambiguity) = judge_from(catalogue, named).followed else {
        return Ok(None);
    };
    let (Some(timeline), Some(oldest)) = (ambiguity.parted.timeline, ambiguity.contenders.first()) else {
        return Ok(None);
    };
    let lsn = ambiguity.parted.lsn;
    let mut cut = catalogue.clone();
    let size = cut.wal.segment_size();
    let beyond = size.segment_of(lsn).next();
    if let Some(newest) = cut.wal.newest(timeline).filter(|newest| *newest >= beyond) {
        cut.wal
            .remove(SegmentRange::new(timeline, beyond, newest, size)?)?;
    }
    cut.retired.remove(&timeline);
    let chain = chain_of(catalogue, timeline)?;
    cut.backups
        .retain(|backup| chain.can_start_from(backup) && backup.stop_lsn <= lsn);
    Ok(Some(CommonPast {
        timeline,
        oldest: oldest.timeline,
        catalogue: cut,
        ambiguity,
    }))
}
