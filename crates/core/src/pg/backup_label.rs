//! `backup_label`, which a base backup carries, and the `.backup` history file, which PostgreSQL
//! archives when a backup ends (`read_backup_label` and `build_backup_content` in
//! `src/backend/access/transam/`, PostgreSQL 14 to 18).
//!
//! Both are lines of `KEY: value`. The label is the caller's free text and may hold newlines, so a line in it can look
//! like any key. So the keys that PostgreSQL writes before the label are searched from the start, and the first match
//! counts; the keys after it are searched from the end.

use super::{Lsn, SegmentName, SegmentSize, TimelineId, WalName};
use crate::error::{Error, Result};

/// What sort of server a backup was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelSource {
    /// A primary.
    Primary,
    /// A standby: recovery from it must reach the `minRecoveryPoint` of its `pg_control`.
    Standby,
}

/// The backup that an incremental one builds on, by its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IncrementalFrom {
    /// The start position of the backup before.
    start: Lsn,
    timeline: TimelineId,
}

/// The content of `backup_label`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay starts: the redo position of the backup's checkpoint.
    pub start: Lsn,
    start_segment: SegmentName,
    /// The position of the checkpoint's record.
    pub checkpoint: Lsn,
    /// How it was taken: `streamed`, or `pg_start_backup` for PostgreSQL 14's exclusive mode.
    method: String,
    /// What it was taken from.
    pub source: LabelSource,
    /// When it started, as PostgreSQL prints it in `log_timezone`.
    start_time: String,
    /// The label its taker gave it, up to the first newline.
    label: String,
    /// The backup it builds on, where it is incremental (from PostgreSQL 17).
    incremental_from: Option<IncrementalFrom>,
}

impl BackupLabel {
    /// Reads the content of `backup_label`.
    ///
    /// # Errors
    /// `Corrupt` where a line that PostgreSQL always writes is missing or makes no sense.
    pub fn parse(content: &[u8]) -> Result<Self> {
        Self::read(&Lines::new("backup_label", &String::from_utf8_lossy(content)))
    }

    /// The timeline the backup started on.
    #[must_use]
    pub fn start_timeline(&self) -> TimelineId {
        self.start_segment.timeline()
    }

    /// Checks that the start position lies in the segment that is named beside it.
    ///
    /// # Errors
    /// `Corrupt` where it does not, with this segment size.
    pub fn check(&self, size: SegmentSize) -> Result<()> {
        let holding = SegmentName::holding(self.start_timeline(), self.start, size)?;
        if holding != self.start_segment {
            return Err(Error::corrupt(format!(
                "the backup label says that position {} is in WAL segment {}, but with segments of {} MiB \
                 it is in {holding}; the label was edited, or is another cluster's",
                self.start,
                self.start_segment,
                size.bytes() >> 20
            )));
        }
        Ok(())
    }

    fn read(lines: &Lines<'_>) -> Result<Self> {
        let (start, start_segment) = lines.location("START WAL LOCATION")?;
        let label = Self {
            start,
            start_segment,
            checkpoint: lines.parsed("CHECKPOINT LOCATION")?,
            method: lines.required("BACKUP METHOD")?.to_owned(),
            source: match lines.required("BACKUP FROM")? {
                "primary" => LabelSource::Primary,
                "standby" => LabelSource::Standby,
                other => return Err(lines.refuse("BACKUP FROM", other)),
            },
            start_time: lines.required("START TIME")?.to_owned(),
            label: lines.label.to_owned(),
            incremental_from: match lines.find("INCREMENTAL FROM LSN") {
                None => None,
                Some(_) => Some(IncrementalFrom {
                    start: lines.parsed("INCREMENTAL FROM LSN")?,
                    timeline: lines.parsed("INCREMENTAL FROM TLI")?,
                }),
            },
        };
        let timeline: TimelineId = lines.parsed("START TIMELINE")?;
        if timeline != label.start_timeline() {
            return Err(lines.refuse("START TIMELINE", &timeline.to_string()));
        }
        Ok(label)
    }
}

/// The content of a `.backup` history file: the label, and where the backup ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupHistory {
    label: BackupLabel,
    /// The end of the WAL that the backup needs.
    stop: Lsn,
    /// The segment that holds the stop position, which is the next one's first byte where the backup
    /// ended at a boundary.
    stop_segment: SegmentName,
    /// When the backup ended, as PostgreSQL prints it in `log_timezone`.
    stop_time: String,
}

impl BackupHistory {
    /// Reads the content of a `.backup` file.
    ///
    /// # Errors
    /// As [`BackupLabel::parse`].
    pub fn parse(content: &[u8]) -> Result<Self> {
        let content = String::from_utf8_lossy(content);
        let lines = Lines::new("the .backup file", &content);
        let label = BackupLabel::read(&lines)?;
        let (stop, stop_segment) = lines.location("STOP WAL LOCATION")?;
        let timeline: TimelineId = lines.parsed("STOP TIMELINE")?;
        if timeline != stop_segment.timeline() {
            return Err(lines.refuse("STOP TIMELINE", &timeline.to_string()));
        }
        if stop < label.start {
            return Err(lines.refuse("STOP WAL LOCATION", &stop.to_string()));
        }
        Ok(Self {
            label,
            stop,
            stop_segment,
            stop_time: lines.required("STOP TIME")?.to_owned(),
        })
    }

    /// Checks that the content belongs to the file's name, which `BackupHistoryFileName` makes from the start position.
    ///
    /// # Errors
    /// `Corrupt` where it belongs to another name, `Invalid` where `name` is not that of a `.backup` file.
    pub fn check(&self, name: WalName, size: SegmentSize) -> Result<()> {
        if !matches!(name, WalName::Backup { .. }) {
            return Err(Error::invalid(format!(
                "{name} is not the name of a .backup file"
            )));
        }
        self.label.check(size)?;
        let expected = WalName::Backup {
            segment: self.label.start_segment,
            // Below the segment size, which fits in 32 bits.
            offset: (self.label.start.0 % size.bytes()) as u32,
        };
        if name != expected {
            return Err(Error::corrupt(format!(
                "{name} has the content of {expected}; it is a copy under the wrong name, do not use it"
            )));
        }
        Ok(())
    }
}

/// The file's lines, cut at the label.
struct Lines<'a> {
    file: &'static str,
    before_label: &'a str,
    label: &'a str,
    after_label: &'a str,
}

impl<'a> Lines<'a> {
    fn new(file: &'static str, content: &'a str) -> Self {
        let (before_label, rest) = content.split_once("\nLABEL: ").unwrap_or((content, ""));
        let (label, after_label) = rest.split_once('\n').unwrap_or((rest, ""));
        Self {
            file,
            before_label,
            label,
            after_label,
        }
    }

    fn find(&self, key: &str) -> Option<&'a str> {
        let value = |line: &'a str| line.strip_prefix(key)?.strip_prefix(": ");
        self.before_label
            .lines()
            .find_map(value)
            .or_else(|| self.after_label.lines().rev().find_map(value))
    }

    fn required(&self, key: &str) -> Result<&'a str> {
        self.find(key).ok_or_else(|| {
            Error::corrupt(format!(
                "{} has no line \"{key}\"; it was cut short or edited",
                self.file
            ))
        })
    }

    fn parsed<T: std::str::FromStr>(&self, key: &str) -> Result<T> {
        let value = self.required(key)?;
        value.parse().map_err(|_| self.refuse(key, value))
    }

    /// `16/B374D848 (file 000000010000001600000002)`.
    fn location(&self, key: &str) -> Result<(Lsn, SegmentName)> {
        let value = self.required(key)?;
        let parse = || {
            let (lsn, rest) = value.split_once(" (file ")?;
            Some((lsn.parse().ok()?, rest.strip_suffix(')')?.parse().ok()?))
        };
        parse().ok_or_else(|| self.refuse(key, value))
    }

    fn refuse(&self, key: &str, value: &str) -> Error {
        Error::corrupt(format!(
            "{} has {value:?} as \"{key}\", which PostgreSQL never writes there; it was damaged or edited",
            self.file
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorKind;

    const LABEL: &str = "\
START WAL LOCATION: 0/800028 (file 000000010000000000000008)
CHECKPOINT LOCATION: 0/800080
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-23 13:08:15 UTC
LABEL: nightly
START TIMELINE: 1
";
    const HISTORY: &str = "\
START WAL LOCATION: 0/800028 (file 000000010000000000000008)
STOP WAL LOCATION: 0/800120 (file 000000010000000000000008)
CHECKPOINT LOCATION: 0/800080
BACKUP METHOD: streamed
BACKUP FROM: standby
START TIME: 2026-11-23 13:08:15 UTC
LABEL: nightly
START TIMELINE: 1
STOP TIME: 2026-11-23 13:08:16 UTC
STOP TIMELINE: 1
";

    fn one_mib() -> SegmentSize {
        SegmentSize::new(1 << 20).unwrap()
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(content: Vec<u8>) {
            let _ = BackupLabel::parse(&content);
            let _ = BackupHistory::parse(&content);
        }

        #[test]
        fn a_file_cut_within_its_lines_is_refused(cut in 0..LABEL.len() - 3) {
            prop_assert!(BackupLabel::parse(&LABEL.as_bytes()[..cut]).is_err());
            prop_assert!(BackupHistory::parse(&HISTORY.as_bytes()[..cut]).is_err());
        }

        #[test]
        fn a_label_with_any_text_changes_nothing_else(text in "(\\PC|\n){0,40}") {
            let forged = format!("{text}\nSTART TIMELINE: 9\nSTART WAL LOCATION: 9/0 (file x)\nSTOP TIME: x");
            let content = HISTORY.replace("nightly", &forged);
            let mut read = BackupHistory::parse(content.as_bytes()).unwrap();
            read.label.label = "nightly".to_owned();
            prop_assert_eq!(read, BackupHistory::parse(HISTORY.as_bytes()).unwrap());
        }
    }

    #[test]
    fn a_label_is_read() {
        let label = BackupLabel::parse(LABEL.as_bytes()).unwrap();
        let expected = BackupLabel {
            start: Lsn(0x80_0028),
            start_segment: "000000010000000000000008".parse().unwrap(),
            checkpoint: Lsn(0x80_0080),
            method: "streamed".to_owned(),
            source: LabelSource::Primary,
            start_time: "2026-11-23 13:08:15 UTC".to_owned(),
            label: "nightly".to_owned(),
            incremental_from: None,
        };
        assert_eq!(label, expected);
        label.check(one_mib()).unwrap();
        assert!(label.check(SegmentSize::DEFAULT).is_err());
    }

    #[test]
    fn an_incremental_backup_names_the_one_before() {
        let content = format!("{LABEL}INCREMENTAL FROM LSN: 0/600028\nINCREMENTAL FROM TLI: 1\n");
        let from = BackupLabel::parse(content.as_bytes()).unwrap().incremental_from;
        let expected = IncrementalFrom {
            start: Lsn(0x60_0028),
            timeline: TimelineId::FIRST,
        };
        assert_eq!(from, Some(expected));
    }

    #[test]
    fn a_backup_history_is_read_and_belongs_to_one_name() {
        let history = BackupHistory::parse(HISTORY.as_bytes()).unwrap();
        assert_eq!(history.stop, Lsn(0x80_0120));
        assert_eq!(history.label.source, LabelSource::Standby);
        assert_eq!(history.stop_time, "2026-11-23 13:08:16 UTC");
        let kind = |name: &str| {
            history
                .check(name.parse().unwrap(), one_mib())
                .map_err(|e| e.kind())
        };
        assert_eq!(kind("000000010000000000000008.00000028.backup"), Ok(()));
        for other in [
            "000000010000000000000008.00000029.backup",
            "000000010000000000000009.00000028.backup",
            "000000020000000000000008.00000028.backup",
        ] {
            assert_eq!(kind(other), Err(ErrorKind::Corrupt), "{other}");
        }
        assert_eq!(kind("000000010000000000000008"), Err(ErrorKind::Invalid));
    }

    #[test]
    fn a_backup_may_end_where_it_began() {
        let content = HISTORY.replace("STOP WAL LOCATION: 0/800120", "STOP WAL LOCATION: 0/800028");
        let history = BackupHistory::parse(content.as_bytes()).unwrap();
        assert_eq!(history.stop, history.label.start);
    }

    #[test]
    fn what_contradicts_itself_is_corrupt() {
        for (from, to) in [
            ("START TIMELINE: 1", "START TIMELINE: 2"),
            ("STOP TIMELINE: 1", "STOP TIMELINE: 2"),
            ("STOP WAL LOCATION: 0/800120", "STOP WAL LOCATION: 0/700120"),
            ("BACKUP FROM: standby", "BACKUP FROM: elsewhere"),
            ("(file 000000010000000000000008)", "(file ../8)"),
        ] {
            let content = HISTORY.replace(from, to);
            let error = BackupHistory::parse(content.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{to}");
        }
    }
}
