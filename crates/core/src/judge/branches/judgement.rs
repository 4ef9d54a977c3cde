//! Which timeline lives: the one judgement of forks, for whoever follows a timeline or speaks of one.
//!
//! A *line* is a timeline that is not retired, with all it descends from. Two lines are the same up to where they part.
//! Of two, the later begun gives way where nothing of it is in the archive but its history. The older gives way where it
//! has no life beyond the parting: no whole segment beyond the one of the fork, no end of a transaction in that one, no
//! backup. A primary that was cut off leaves such a line, often with a whole last segment. It gives way too where a base
//! backup of the later line ended after all its life, for then somebody went on there; and where all its life lies in the
//! segment of the fork and is older than the later line's: what a primary had not replicated when its standby took over.
//! Lines that do not give way to each other are ambiguous, and only a person can know which one is the cluster's.
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

/// The ends of at most so many timelines are looked up.
const LOOKED_UP: usize = 16;

/// What the timelines of an archive are to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The timeline to follow, or the lines between which nobody but a person can choose.
    pub followed: std::result::Result<TimelineId, Ambiguity>,
    /// Timelines that have begun and of which nothing else is in the archive.
    pub(crate) begun: Vec<Begun>,
    /// What old primaries wrote and had not replicated.
    pub(crate) tails: Vec<Tail>,
}

/// Where two lines part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Parting {
    /// The last timeline that both have; none where they have nothing in common.
    pub(crate) timeline: Option<TimelineId>,
    /// All before this position is the same.
    pub(crate) lsn: Lsn,
}

/// Lines that live on after they parted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ambiguity {
    /// Where the first of them left the others.
    pub(crate) parted: Parting,
    /// They, oldest timeline first; at least two.
    pub contenders: Vec<Contender>,
}

/// One of several lines that live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contender {
    /// Its timeline.
    pub timeline: TimelineId,
    /// When the last transaction ended that only this line has; none where that is not known, or there is none.
    newest_commit: Option<DateTime<Utc>>,
    /// The last segment of its timeline.
    last_segment: Option<SegmentName>,
    /// The newest backup that only this line has.
    newest_backup: Option<BackupId>,
    backup_finished_at: Option<DateTime<Utc>>,
}

/// A timeline that has begun, and of which nothing but the history is in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Begun {
    pub(crate) timeline: TimelineId,
    /// Where it left the others.
    parted: Parting,
    /// Whether the line it left lives on beyond that.
    pub(crate) left_a_living_one: bool,
}

/// What an old primary wrote after its standby had taken over from an earlier position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Tail {
    /// The old timeline.
    pub(crate) timeline: TimelineId,
    /// The timeline that goes on without it.
    pub(crate) left_by: TimelineId,
    lsn: Lsn,
    newest_commit: DateTime<Utc>,
}

/// Judges the lines that fit: all, or those on which a certain backup lies.
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
            let line = Line {
                history,
                chain: TimelineChain::new(history, catalogue.wal.segment_size()),
            };
            if fits(&line.chain) {
                judge.add(line);
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

/// A timeline with all it descends from.
struct Line<'a> {
    history: &'a TimelineHistory,
    chain: TimelineChain<'a>,
}

impl Line<'_> {
    fn timeline(&self) -> TimelineId {
        self.history.timeline()
    }

    /// The backups that this line has and another one has not.
    fn own_backups<'b>(
        &self,
        other: &Self,
        backups: impl Iterator<Item = &'b Backup>,
    ) -> impl Iterator<Item = &'b Backup> {
        backups.filter(|backup| self.chain.can_start_from(backup) && !other.chain.can_start_from(backup))
    }
}

/// What a line has of one timeline beyond a parting.
struct Piece {
    timeline: TimelineId,
    from: Lsn,
    until: Option<Lsn>,
}

/// What there is of a line beyond a parting.
#[derive(Debug, Default)]
struct Life {
    /// Whether there is any.
    lives: bool,
    /// Whether all of it lies in the segment of the fork, on the timeline that was left there.
    in_the_fork: bool,
    /// When its signs were given; none for one of which that is not known.
    signs: Vec<Option<DateTime<Utc>>>,
}

impl Life {
    /// When the newest sign was given; none where that is not known of all.
    fn newest(&self) -> Option<DateTime<Utc>> {
        let signs: Option<Vec<_>> = self.signs.iter().copied().collect();
        signs?.into_iter().max()
    }
}

struct Judge<'a> {
    catalogue: &'a Catalogue,
    /// The lines that gave way to none, latest timeline first.
    kept: Vec<Line<'a>>,
    begun: Vec<Begun>,
    tails: Vec<Tail>,
}

impl<'a> Judge<'a> {
    /// Weighs a line against all later ones.
    fn add(&mut self, older: Line<'a>) {
        let mut gives_way = false;
        let mut kept = Vec::with_capacity(self.kept.len() + 1);
        for newer in std::mem::take(&mut self.kept) {
            let parted = parting(older.history, newer.history);
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

    fn life(&self, line: &Line<'_>, other: &Line<'_>, parted: Parting) -> Life {
        let (wal, size) = (&self.catalogue.wal, self.catalogue.wal.segment_size());
        let mut found = Life {
            in_the_fork: true,
            ..Life::default()
        };
        for piece in pieces(line.history, parted) {
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
        for backup in line.own_backups(other, self.catalogue.readable()) {
            found.lives = true;
            found.in_the_fork = false;
            found.signs.push(Some(backup.finished_at));
        }
        found
    }

    /// Whether a base backup of the newer line ended after all life of the older one.
    fn is_confirmed(&self, newer: &Line<'_>, older: &Line<'_>, life: &Life) -> bool {
        let Some(newest) = life.newest() else { return false };
        let mut own = newer.own_backups(older, self.catalogue.backups.iter());
        own.any(|backup| backup.finished_at > newest)
    }

    /// Whether the older line's life is no more than what was not replicated. A recovery from the archive finds the
    /// segment of its fork whole, or ends at the end of one; so what is written beside it afterwards lies further on.
    fn tail(&self, newer: &Line<'_>, parted: Parting, mine: &Life, theirs: &Life) -> Option<Tail> {
        let wal = &self.catalogue.wal;
        let timeline = parted.timeline?;
        let within = wal
            .segment_size()
            .start_of(wal.segment_size().segment_of(parted.lsn))
            < parted.lsn;
        let newest = self.catalogue.newest_ends.get(&timeline).copied().flatten()?.time;
        let began = pieces(newer.history, parted).find(|piece| piece.timeline != timeline)?;
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
            lines => self.ambiguity(lines),
        };
        Judgement {
            followed,
            begun: self.begun,
            tails: self.tails,
        }
    }

    fn ambiguity(&self, lines: &[Line<'_>]) -> std::result::Result<TimelineId, Ambiguity> {
        let [newer @ .., oldest] = lines else {
            return Ok(TimelineId::FIRST);
        };
        let partings = newer.iter().map(|line| parting(oldest.history, line.history));
        let Some(parted) = partings.min_by_key(|parted| parted.lsn) else {
            return Ok(oldest.timeline());
        };
        let contenders = lines.iter().rev().map(|line| {
            let others = || lines.iter().filter(|other| other.timeline() != line.timeline());
            self.contender(line, &others, parted)
        });
        Err(Ambiguity {
            parted,
            contenders: contenders.collect(),
        })
    }

    fn contender<'l, I: Iterator<Item = &'l Line<'l>>>(
        &self,
        line: &Line<'_>,
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
            .filter(|backup| line.chain.can_start_from(backup))
            .filter(|backup| others().all(|other| !other.chain.can_start_from(backup)))
            .max_by_key(|backup| backup.finished_at);
        Contender {
            timeline: line.timeline(),
            newest_commit: pieces(line.history, parted)
                .filter_map(end)
                .map(|end| end.time)
                .max(),
            last_segment: wal.span(line.timeline()).map(|span| span.last),
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

/// What a line has beyond a parting, oldest first.
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
