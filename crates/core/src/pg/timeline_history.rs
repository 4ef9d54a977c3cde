//! Timeline history files: where a timeline comes from (`readTimeLineHistory` and
//! `writeTimeLineHistory`, `src/backend/access/transam/timeline.c`, the same in PostgreSQL 14 to 18).

use super::{Lsn, TimelineId};
use crate::error::{Error, Result};

/// One line of a history: a timeline that the file's own timeline descends from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// The ancestor.
    pub timeline: TimelineId,
    /// The position where the next timeline left it, as written in the file.
    pub end: Lsn,
    /// Why, in PostgreSQL's words; empty where the file says nothing.
    reason: String,
}

/// The content of a `.history` file: a timeline and all it descends from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: TimelineId,
    ancestors: Vec<Ancestor>,
}

impl TimelineHistory {
    /// The history of a timeline without ancestors, such as timeline 1: it has no file.
    #[must_use]
    pub fn root(timeline: TimelineId) -> Self {
        Self {
            timeline,
            ancestors: Vec::new(),
        }
    }

    /// Reads the content of the timeline's `.history` file. What PostgreSQL accepts is accepted, except
    /// a file without an ancestor: PostgreSQL never writes one, so it was cut short.
    ///
    /// # Errors
    /// `Corrupt` where a line is not `timeline`, white space, `LSN` and perhaps a reason, or where the
    /// timelines do not ascend.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<Self> {
        let refused = |why: String| {
            Error::corrupt(format!(
                "history file {:08X}.history {why}; do not use it",
                timeline.get()
            ))
        };
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for (index, line) in content.split(|byte| *byte == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let ancestor = parse_line(line)
                .ok_or_else(|| refused(format!("has no timeline and LSN in line {}: {line:?}", index + 1)))?;
            let ascends = ancestors
                .last()
                .is_none_or(|last| last.timeline < ancestor.timeline);
            if !ascends || ancestor.timeline >= timeline {
                return Err(refused(format!(
                    "names timeline {} out of order in line {}",
                    ancestor.timeline,
                    index + 1
                )));
            }
            ancestors.push(ancestor);
        }
        if ancestors.is_empty() {
            return Err(refused("names no parent timeline".to_owned()));
        }
        Ok(Self { timeline, ancestors })
    }

    /// The timeline whose history it is.
    #[must_use]
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// What the timeline descends from, oldest first; the last one is its parent.
    #[must_use]
    pub fn ancestors(&self) -> &[Ancestor] {
        &self.ancestors
    }

    /// The timeline that this one left, if any.
    #[must_use]
    pub fn parent(&self) -> Option<&Ancestor> {
        self.ancestors.last()
    }

    /// The history of a timeline that this one descends from, taken from this history.
    pub(crate) fn of_ancestor(&self, timeline: TimelineId) -> Option<Self> {
        let index = self
            .ancestors
            .iter()
            .position(|ancestor| ancestor.timeline == timeline)?;
        Some(Self {
            timeline,
            ancestors: self.ancestors.get(..index)?.to_vec(),
        })
    }

    /// Where this history leaves an ancestor: the ancestor's WAL from that position on does not belong to it. `None`
    /// for the timeline itself, which has no end, and for a timeline that it does not descend from.
    ///
    /// That is the lowest of the ends written from the ancestor's line on. If a recovery follows a timeline but its
    /// target lies before that timeline began, PostgreSQL writes a parent that ends before it starts.
    #[must_use]
    pub fn end_of(&self, timeline: TimelineId) -> Option<Lsn> {
        let from = self
            .ancestors
            .iter()
            .position(|ancestor| ancestor.timeline == timeline)?;
        self.ancestors
            .iter()
            .skip(from)
            .map(|ancestor| ancestor.end)
            .min()
    }

    /// Checks that this history starts with the whole history of an ancestor: PostgreSQL copies the parent's file into
    /// the child's.
    ///
    /// # Errors
    /// `Conflict` where it does not: one of the two is another cluster's, or two servers were promoted to the same
    /// timeline. `Invalid` where `ancestor` is not an ancestor.
    pub fn extends(&self, ancestor: &Self) -> Result<()> {
        let (child, parent) = (self.timeline, ancestor.timeline);
        let known = self
            .ancestors
            .iter()
            .position(|entry| entry.timeline == parent)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "timeline {child} does not descend from timeline {parent}"
                ))
            })?;
        let same_way = |(ours, theirs): (&Ancestor, &Ancestor)| {
            (ours.timeline, ours.end) == (theirs.timeline, theirs.end)
        };
        let agrees =
            known == ancestor.ancestors.len() && self.ancestors.iter().zip(&ancestor.ancestors).all(same_way);
        if !agrees {
            return Err(Error::conflict(format!(
                "the histories of timelines {child} and {parent} disagree about what came before timeline {parent}; \
                 two servers were promoted to timeline {parent}, or one of the files is another cluster's"
            )));
        }
        Ok(())
    }
}

/// One line without the white space around it: `1`, white space, `0/5000000`, and perhaps a reason.
fn parse_line(line: &str) -> Option<Ancestor> {
    let (timeline, rest) = line.split_once(|c: char| c.is_ascii_whitespace())?;
    let rest = rest.trim_start();
    let (end, reason) = rest
        .split_once(|c: char| c.is_ascii_whitespace())
        .unwrap_or((rest, ""));
    if !timeline.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Ancestor {
        timeline: timeline.parse().ok()?,
        end: end.parse().ok()?,
        reason: reason.trim_start().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorKind;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn parse(number: u32, content: &str) -> Result<TimelineHistory> {
        TimelineHistory::parse(timeline(number), content.as_bytes())
    }

    fn any_ancestors() -> impl Strategy<Value = Vec<(u32, u64)>> {
        prop::collection::btree_map(1_u32..1_000_000, any::<u64>(), 1..20)
            .prop_map(|m| m.into_iter().collect())
    }

    /// As `writeTimeLineHistory` writes it.
    fn written(ancestors: &[(u32, u64)]) -> String {
        let line = |(tli, end): &(u32, u64)| format!("{tli}\t{}\tno recovery target specified\n", Lsn(*end));
        ancestors.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(content: Vec<u8>, number in 1_u32..) {
            let _ = TimelineHistory::parse(timeline(number), &content);
        }

        #[test]
        fn what_postgresql_writes_is_read(ancestors in any_ancestors()) {
            let read = parse(2_000_000, &written(&ancestors)).unwrap();
            let pairs: Vec<_> = read.ancestors().iter().map(|a| (a.timeline.get(), a.end.0)).collect();
            prop_assert_eq!(pairs, ancestors);
        }

        #[test]
        fn a_child_extends_each_of_its_ancestors(ancestors in any_ancestors(), pick: prop::sample::Index) {
            let child = parse(2_000_000, &written(&ancestors)).unwrap();
            let at = pick.index(ancestors.len());
            let ancestor = timeline(ancestors[at].0);
            let history = match at {
                0 => TimelineHistory::root(ancestor),
                _ => parse(ancestor.get(), &written(&ancestors[..at])).unwrap(),
            };
            prop_assert!(child.extends(&history).is_ok());
        }

        #[test]
        fn a_history_never_leaves_an_ancestor_after_a_later_one(ancestors in any_ancestors()) {
            let read = parse(2_000_000, &written(&ancestors)).unwrap();
            let ends: Vec<_> = ancestors.iter().map(|(tli, _)| read.end_of(timeline(*tli)).unwrap()).collect();
            prop_assert!(ends.is_sorted());
        }
    }

    #[test]
    fn comments_blank_lines_and_missing_reasons_are_accepted() {
        let content = "# a comment\n\n  1 \t 0/5000060\n\n2\t1/A0\tbefore 2026-11-23 12:00:00.5+00\r\n";
        let read = parse(3, content).unwrap();
        assert_eq!(read.end_of(timeline(1)), Some(Lsn(0x0500_0060)));
        assert_eq!(read.end_of(timeline(2)), Some(Lsn(0x1_0000_00A0)));
        assert_eq!(read.end_of(timeline(3)), None);
        assert_eq!(read.end_of(timeline(4)), None);
        assert_eq!(read.parent().unwrap().reason, "before 2026-11-23 12:00:00.5+00");
    }

    /// Written by PostgreSQL 17 for a recovery with `recovery_target_timeline = 2` to a restore point
    /// that was older than timeline 2.
    #[test]
    fn a_recovery_to_before_its_timeline_began_leaves_every_ancestor_there() {
        let content = "1\t0/9834D8\tat restore point \"B\"\n\n2\t0/71F160\tat restore point \"A\"\n";
        let read = parse(3, content).unwrap();
        assert_eq!(read.end_of(timeline(1)), Some(Lsn(0x71_F160)));
        assert_eq!(read.end_of(timeline(2)), Some(Lsn(0x71_F160)));
    }

    #[test]
    fn the_history_of_an_ancestor_is_what_came_before_it() {
        let third = TimelineId::new(3).unwrap();
        let history = TimelineHistory::parse(third, b"1\t0/5000000\ta\n\n2\t0/9000000\tb\n").unwrap();
        let second = history.of_ancestor(TimelineId::new(2).unwrap()).unwrap();
        assert_eq!(second.timeline().get(), 2);
        assert_eq!(second.ancestors(), &history.ancestors()[..1]);
        assert!(history.of_ancestor(TimelineId::FIRST).unwrap().parent().is_none());
        assert_eq!(history.of_ancestor(third), None);
    }

    #[test]
    fn what_is_no_history_is_corrupt() {
        for content in [
            "",
            "# only a comment\n",
            "1\n",
            "x\t0/5\treason\n",
            "+1\t0/5\treason\n",
            "0\t0/5\treason\n",
            "1\t5\treason\n",
            "1\t0/5\ta\n1\t0/6\tb\n",
            "2\t0/5\ta\n1\t0/6\tb\n",
            "3\t0/5\treason\n",
            "99999999999\t0/5\treason\n",
        ] {
            assert_eq!(
                parse(3, content).unwrap_err().kind(),
                ErrorKind::Corrupt,
                "{content:?}"
            );
        }
    }

    #[test]
    fn histories_that_disagree_are_a_conflict() {
        let parent = parse(3, "1\t0/5000000\ta\n2\t0/6000000\tb\n").unwrap();
        for content in [
            "1\t0/5000001\ta\n2\t0/6000000\tb\n3\t0/7000000\tc\n",
            "2\t0/6000000\tb\n3\t0/7000000\tc\n",
            "1\t0/5000000\ta\n3\t0/7000000\tc\n",
        ] {
            let child = parse(4, content).unwrap();
            assert_eq!(
                child.extends(&parent).unwrap_err().kind(),
                ErrorKind::Conflict,
                "{content}"
            );
        }
        let forgetful = parse(3, "1\t0/5000000\ta\n").unwrap();
        let child = parse(4, "1\t0/5000000\ta\n2\t0/6000000\tb\n3\t0/7000000\tc\n").unwrap();
        assert!(child.extends(&parent).is_ok());
        assert_eq!(child.extends(&forgetful).unwrap_err().kind(), ErrorKind::Conflict);
        let stranger = parse(4, "1\t0/5000000\ta\n").unwrap();
        assert_eq!(stranger.extends(&parent).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
