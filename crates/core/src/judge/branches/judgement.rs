//! Which timeline lives. Whoever follows a timeline or speaks of one asks here.
//!
//! The chains that are compared are those of the timelines that are not retired. Two chains are the same up to where
//! they part. The one that began later gives way if the archive has nothing of it but its history. The older one gives
//! way in three cases:
//!
//! - It has no life beyond the parting: no whole segment beyond that of the fork, no end of a transaction in the
//!   segment of the fork, no backup. A primary that was cut off leaves such a chain, often with a whole last segment.
//! - A base backup of the later chain ended after all its life: somebody went on there.
//! - All its life lies in the segment of the fork and is older than the later chain's: a primary had not replicated it
//!   when its standby took over.
//!
//! Chains that do not give way to each other are ambiguous. Only a person can know which one is the cluster's.
//!
//! Where the ends of transactions are not known, WAL counts as life, until the moment in which it was stored.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::format::keys::BackupId;
use crate::format::segment_index::EndOfTransaction;
use crate::judge::catalogue::{Backup, Catalogue};
use crate::judge::timeline_chain::TimelineChain;
use crate::pg::{Lsn, SegmentName, SegmentNumber, TimelineHistory, TimelineId};
use crate::text::time_text;

/// The ends of at most this many timelines are looked up.
const LOOKED_UP: usize = 16;

/// What the timelines of an archive are to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The timeline to follow, or the chains between which only a person can choose.
    pub followed: std::result::Result<TimelineId, Ambiguity>,
    /// Timelines of which the archive has only the history.
    pub(crate) begun: Vec<Begun>,
    /// What old primaries wrote and did not replicate.
    pub(crate) tails: Vec<Tail>,
}

/// Where two chains part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Parting {
    /// The last timeline that both have; none where they have nothing in common.
    pub(crate) timeline: Option<TimelineId>,
    /// All before this position is the same.
    pub(crate) lsn: Lsn,
}

/// Chains that live on after they parted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ambiguity {
    /// Where the first of them left the others.
    pub(crate) parted: Parting,
    /// At least two, oldest timeline first.
    pub contenders: Vec<Contender>,
}

/// One of several chains that live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contender {
    /// The timeline that the chain ends with.
    pub timeline: TimelineId,
    /// When the last transaction ended that only this chain has. `None`: it has none, or that is not known.
    newest_commit: Option<DateTime<Utc>>,
    /// The last segment of its timeline.
    last_segment: Option<SegmentName>,
    /// The newest backup that only this chain has.
    newest_backup: Option<BackupId>,
    backup_finished_at: Option<DateTime<Utc>>,
}

/// A timeline of which the archive has only the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Begun {
    pub(crate) timeline: TimelineId,
    /// Where it left the others.
    parted: Parting,
    /// Whether the chain it left lives on beyond that.
    pub(crate) left_a_living_one: bool,
}

/// What an old primary wrote beyond the position at which its standby took over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Tail {
    pub(crate) timeline: TimelineId,
    /// The timeline that goes on without it.
    pub(crate) left_by: TimelineId,
    lsn: Lsn,
    newest_commit: DateTime<Utc>,
}

/// Judges the chains that fit: all, or those on which a certain backup lies.
#[must_use]
pub fn judge(catalogue: &Catalogue, fits: impl Fn(&TimelineChain<'_>) -> bool) -> Judgement {
    let mut judge = Judge {
        catalogue,
        kept: Vec::new(),
        begun: Vec::new(),
        tails: Vec::new(),
    };
    for timeline in catalogue.timelines().into_iter().rev() {
        let history = catalogue.histories.get(&timeline);
        if let Some(history) = history.filter(|_| !catalogue.retired.contains_key(&timeline)) {
            let chain = TimelineChain::new(history, catalogue.wal.segment_size());
            if fits(&chain) {
                judge.add(chain);
            }
        }
    }
    judge.finish()
}

/// The timelines whose newest end of a transaction would help to judge, with the first segment that matters. Empty
/// where the listing and the backups say enough, as they do in most archives.
#[must_use]
pub fn undecided(catalogue: &Catalogue) -> Vec<(TimelineId, SegmentNumber)> {
    let Err(ambiguity) = judge(catalogue, |_| true).followed else {
        return Vec::new();
    };
    let size = catalogue.wal.segment_size();
    let mut wanted: Vec<(TimelineId, SegmentNumber)> = Vec::new();
    for contender in &ambiguity.contenders {
        let Some(history) = catalogue.histories.get(&contender.timeline) else {
            continue;
        };
        for piece in pieces(history, ambiguity.parted) {
            let first = size.segment_of(piece.from);
            if catalogue.wal.first_from(piece.timeline, first).is_none() {
                continue;
            }
            match wanted
                .iter_mut()
                .find(|(timeline, _)| *timeline == piece.timeline)
            {
                Some((_, known)) => *known = first.min(*known),
                None => wanted.push((piece.timeline, first)),
            }
        }
    }
    wanted.sort_by_key(|(timeline, _)| std::cmp::Reverse(*timeline));
    wanted.truncate(LOOKED_UP);
    wanted
}

/// The backups that one chain has and the other has not.
fn own_backups<'b>(
    chain: &TimelineChain<'_>,
    other: &TimelineChain<'_>,
    backups: impl Iterator<Item = &'b Backup>,
) -> impl Iterator<Item = &'b Backup> {
    backups.filter(|backup| chain.can_start_from(backup) && !other.can_start_from(backup))
}

/// What a chain has of one timeline beyond a parting.
struct Piece {
    timeline: TimelineId,
    from: Lsn,
    until: Option<Lsn>,
}

/// What a chain has beyond a parting.
#[derive(Debug, Default)]
struct Life {
    lives: bool,
    /// Whether all of it lies in the segment of the fork, on the timeline that was left there.
    in_the_fork: bool,
    /// The time of each sign of life; `None` where it is not known.
    signs: Vec<Option<DateTime<Utc>>>,
}

impl Life {
    /// The time of the newest sign; `None` where one of the times is not known.
    fn newest(&self) -> Option<DateTime<Utc>> {
        let signs: Option<Vec<_>> = self.signs.iter().copied().collect();
        signs?.into_iter().max()
    }
}

struct Judge<'a> {
    catalogue: &'a Catalogue,
    /// The chains that gave way to none, latest timeline first.
    kept: Vec<TimelineChain<'a>>,
    begun: Vec<Begun>,
    tails: Vec<Tail>,
}

impl<'a> Judge<'a> {
    /// Weighs a chain against all later ones.
    fn add(&mut self, older: TimelineChain<'a>) {
        let mut gives_way = false;
        let mut kept = Vec::with_capacity(self.kept.len() + 1);
        for newer in std::mem::take(&mut self.kept) {
            let parted = parting(older.history(), newer.history());
            let mine = self.life(&older, &newer, parted);
            let theirs = self.life(&newer, &older, parted);
            if !theirs.lives {
                self.begun.push(Begun {
                    timeline: newer.timeline(),
                    parted,
                    left_a_living_one: mine.lives,
                });
                continue;
            }
            if !mine.lives || self.is_confirmed(&newer, &older, &mine) {
                gives_way = true;
            } else if let Some(tail) = self.tail(&newer, parted, &mine, &theirs) {
                self.tails.push(tail);
                gives_way = true;
            }
            kept.push(newer);
        }
        if !gives_way {
            kept.push(older);
        }
        self.kept = kept;
    }

    fn life(&self, chain: &TimelineChain<'_>, other: &TimelineChain<'_>, parted: Parting) -> Life {
        let (wal, size) = (&self.catalogue.wal, self.catalogue.wal.segment_size());
        let mut found = Life {
            in_the_fork: true,
            ..Life::default()
        };
        for piece in pieces(chain.history(), parted) {
            let timeline = piece.timeline;
            let first = size.segment_of(piece.from);
            let was_left_here = parted.timeline == Some(timeline);
            let whole_from = if was_left_here { first.next() } else { first };
            let is_mine =
                |number: &SegmentNumber| piece.until.is_none_or(|until| *number < size.segment_of(until));
            let whole = wal.first_from(timeline, whole_from).as_ref().is_some_and(is_mine);
            let ends = self.catalogue.newest_ends.get(&timeline);
            let end = ends.copied().flatten().filter(|end| end.lsn >= piece.from);
            let in_the_fork =
                was_left_here && wal.contains(timeline, first) && (ends.is_none() || end.is_some());
            if !whole && !in_the_fork {
                continue;
            }
            found.lives = true;
            found.in_the_fork &= !whole;
            found
                .signs
                .push(end.map(|end| end.time).or_else(|| wal.newest_stored(timeline)));
        }
        for backup in own_backups(chain, other, self.catalogue.readable()) {
            found.lives = true;
            found.in_the_fork = false;
            found.signs.push(Some(backup.finished_at));
        }
        found
    }

    /// Whether a base backup of the newer chain ended after all life of the older one.
    fn is_confirmed(&self, newer: &TimelineChain<'_>, older: &TimelineChain<'_>, life: &Life) -> bool {
        let Some(newest) = life.newest() else { return false };
        let mut own = own_backups(newer, older, self.catalogue.backups.iter());
        own.any(|backup| backup.finished_at > newest)
    }

    /// The older chain's life, if it is only what was not replicated. A recovery from the archive finds the segment of
    /// its fork whole, or ends at the end of one, so what the old primary writes beside it afterwards lies further on.
    fn tail(&self, newer: &TimelineChain<'_>, parted: Parting, mine: &Life, theirs: &Life) -> Option<Tail> {
        let wal = &self.catalogue.wal;
        let timeline = parted.timeline?;
        let within = wal
            .segment_size()
            .start_of(wal.segment_size().segment_of(parted.lsn))
            < parted.lsn;
        let newest = self.catalogue.newest_ends.get(&timeline).copied().flatten()?.time;
        let began = pieces(newer.history(), parted).find(|piece| piece.timeline != timeline)?;
        let began = wal.history_stored(began.timeline);
        let is_tail = mine.in_the_fork
            && within
            && theirs.newest().is_some_and(|theirs| newest < theirs)
            && began.is_none_or(|began| newest <= began);
        is_tail.then_some(Tail {
            timeline,
            left_by: newer.timeline(),
            lsn: parted.lsn,
            newest_commit: newest,
        })
    }

    fn finish(self) -> Judgement {
        let followed = match &self.kept[..] {
            [] => Ok(TimelineId::FIRST),
            [one] => Ok(one.timeline()),
            chains => self.ambiguity(chains),
        };
        Judgement {
            followed,
            begun: self.begun,
            tails: self.tails,
        }
    }

    fn ambiguity(&self, chains: &[TimelineChain<'_>]) -> std::result::Result<TimelineId, Ambiguity> {
        let [newer @ .., oldest] = chains else {
            return Ok(TimelineId::FIRST);
        };
        let partings = newer
            .iter()
            .map(|chain| parting(oldest.history(), chain.history()));
        let Some(parted) = partings.min_by_key(|parted| parted.lsn) else {
            return Ok(oldest.timeline());
        };
        let contenders = chains.iter().rev().map(|chain| {
            let others = || chains.iter().filter(|other| other.timeline() != chain.timeline());
            self.contender(chain, &others, parted)
        });
        Err(Ambiguity {
            parted,
            contenders: contenders.collect(),
        })
    }

    fn contender<'l, I: Iterator<Item = &'l TimelineChain<'l>>>(
        &self,
        chain: &TimelineChain<'_>,
        others: &impl Fn() -> I,
        parted: Parting,
    ) -> Contender {
        let wal = &self.catalogue.wal;
        let end = |piece: Piece| -> Option<EndOfTransaction> {
            let end = self.catalogue.newest_ends.get(&piece.timeline).copied().flatten();
            end.filter(|end| end.lsn >= piece.from && piece.until.is_none_or(|until| end.lsn < until))
        };
        let backup = self
            .catalogue
            .backups
            .iter()
            .filter(|backup| chain.can_start_from(backup))
            .filter(|backup| others().all(|other| !other.can_start_from(backup)))
            .max_by_key(|backup| backup.finished_at);
        Contender {
            timeline: chain.timeline(),
            newest_commit: pieces(chain.history(), parted)
                .filter_map(end)
                .map(|end| end.time)
                .max(),
            last_segment: wal.span(chain.timeline()).map(|span| span.last),
            newest_backup: backup.map(|backup| backup.id.clone()),
            backup_finished_at: backup.map(|backup| backup.finished_at),
        }
    }
}

/// The timelines of a history, each with its end; its own, which comes last, has none.
fn steps(history: &TimelineHistory) -> impl Iterator<Item = (TimelineId, Option<Lsn>)> {
    let ancestors = history.ancestors().iter().map(|ancestor| ancestor.timeline);
    let ancestors = ancestors.map(|timeline| (timeline, history.end_of(timeline)));
    ancestors.chain([(history.timeline(), None)])
}

fn parting(one: &TimelineHistory, other: &TimelineHistory) -> Parting {
    let mut parted = Parting {
        timeline: None,
        lsn: Lsn(0),
    };
    for ((timeline, end), (others, others_end)) in steps(one).zip(steps(other)) {
        if timeline != others {
            break;
        }
        let ends = [end, others_end].into_iter().flatten();
        parted = Parting {
            timeline: Some(timeline),
            lsn: ends.min().unwrap_or(Lsn(u64::MAX)),
        };
        if end != others_end {
            break;
        }
    }
    parted
}

/// What a chain has beyond a parting, oldest first.
fn pieces(history: &TimelineHistory, parted: Parting) -> impl Iterator<Item = Piece> {
    let begins = [Lsn(0)]
        .into_iter()
        .chain(steps(history).filter_map(|(_, end)| end));
    let all = steps(history)
        .zip(begins)
        .map(move |((timeline, until), begin)| Piece {
            timeline,
            from: if parted.timeline == Some(timeline) {
                parted.lsn
            } else {
                begin
            },
            until,
        });
    all.filter(move |piece| parted.timeline.is_none_or(|parted| piece.timeline >= parted))
        .filter(|piece| piece.until.is_none_or(|until| until > piece.from))
}

impl fmt::Display for Ambiguity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let timelines: Vec<_> = self
            .contenders
            .iter()
            .map(|one| one.timeline.to_string())
            .collect();
        write!(
            f,
            "timelines {} go on after LSN {}, where they parted: ",
            timelines.join(" and "),
            self.parted.lsn
        )?;
        let each: Vec<_> = self.contenders.iter().map(Contender::to_string).collect();
        f.write_str(&each.join("; "))
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timeline {} ", self.timeline)?;
        match (self.newest_commit, self.last_segment) {
            (Some(time), Some(last)) => write!(
                f,
                "to its newest commit at {}, in WAL up to {last}",
                time_text(time)
            )?,
            (Some(time), None) => write!(f, "to its newest commit at {}", time_text(time))?,
            (None, Some(last)) => write!(f, "in WAL up to {last}, without a commit that is known")?,
            (None, None) => f.write_str("without WAL")?,
        }
        match (&self.newest_backup, self.backup_finished_at) {
            (Some(id), Some(time)) => write!(f, ", newest backup {id}, which ended at {}", time_text(time)),
            _ => f.write_str(", no backup"),
        }
    }
}

impl fmt::Display for Begun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (timeline, lsn) = (self.timeline, self.parted.lsn);
        write!(
            f,
            "timeline {timeline} began at LSN {lsn}, and none of its segments is in the archive yet"
        )
    }
}

impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "timeline {} has transactions up to {} beyond LSN {}, where timeline {} went on without them: the old primary \
             had not replicated them",
            self.timeline,
            time_text(self.newest_commit),
            self.lsn,
            self.left_by
        )
    }
}
