//! The checks, each with an id that programs may rely on. `docs/doctor.md` describes them all.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

macro_rules! checks {
    ($($(#[$doc:meta])* $name:ident = $id:literal,)*) => {
        /// What is looked at.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Check {
            $($(#[$doc])* $name,)*
        }

        impl Check {
            /// Every check, in the order of a report.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its id: the area, a dot, a name. Never changes.
            #[must_use]
            pub fn id(self) -> &'static str {
                match self {
                    $(Self::$name => $id,)*
                }
            }
        }
    };
}

checks! {
    /// Whether the server answers.
    ServerReachable = "server.reachable",
    /// `wal_level`.
    WalLevel = "settings.wal_level",
    /// `archive_mode`.
    ArchiveMode = "settings.archive_mode",
    /// `archive_command`, or `archive_library`.
    ArchiveCommand = "settings.archive_command",
    /// `archive_timeout`.
    ArchiveTimeout = "settings.archive_timeout",
    /// `max_wal_senders`.
    MaxWalSenders = "settings.max_wal_senders",
    /// `fsync`.
    Fsync = "settings.fsync",
    /// `full_page_writes`.
    FullPageWrites = "settings.full_page_writes",
    /// `data_checksums`.
    Checksums = "settings.data_checksums",
    /// `summarize_wal`.
    SummarizeWal = "settings.summarize_wal",
    /// Changed settings that wait for a restart.
    PendingRestart = "settings.pending_restart",
    /// The archiver process.
    ArchiverRunning = "archiver.running",
    /// Failures of `archive_command`.
    ArchiverFailing = "archiver.failing",
    /// Finished segments that wait for the archiver.
    ArchiverBacklog = "archiver.backlog",
    /// Whether what the server archived is in this archive.
    ArchiverArrives = "archiver.arrives",
    /// Slots that lost their WAL.
    SlotsLost = "slots.lost",
    /// Slots that nobody uses.
    SlotsInactive = "slots.inactive",
    /// `max_slot_wal_keep_size`.
    SlotsLimit = "slots.limit",
    /// How far standbys are behind.
    StandbysLag = "standbys.lag",
    /// `synchronous_standby_names`.
    StandbysSynchronous = "standbys.synchronous",
    /// On a standby: where its WAL comes from.
    StandbySource = "standby.source",
    /// On a standby: `restore_command`.
    StandbyRestoreCommand = "standby.restore_command",
    /// On a standby: whether it follows a promotion.
    StandbyTimeline = "standby.timeline",
    /// On a standby: whether it replays.
    StandbyReplay = "standby.replay",
    /// Whether the store answers and has an archive.
    ArchiveReachable = "archive.reachable",
    /// Whether it is this server's.
    ArchiveIdentity = "archive.identity",
    /// Permission to list.
    ArchiveList = "archive.list",
    /// Permission to write.
    ArchiveWrite = "archive.write",
    /// Permission to delete, where this host expires.
    ArchiveDelete = "archive.delete",
    /// Whether the store refuses to overwrite.
    ConditionalWrites = "archive.conditional_writes",
    /// Bucket versioning.
    Versioning = "archive.versioning",
    /// Object lock.
    ObjectLock = "archive.object_lock",
    /// Gaps in the archived WAL.
    WalGaps = "wal.gaps",
    /// Timeline histories.
    WalHistories = "wal.histories",
    /// The server's timeline and the archive's.
    WalTimeline = "wal.timeline",
    /// Which timeline lives, where several went on.
    WalBranches = "wal.branches",
    /// WAL in the archive that this server has not written.
    WalAhead = "wal.ahead",
    /// Age of the newest backup.
    BackupAge = "backups.age",
    /// Backups that cannot be restored.
    BackupsRestorable = "backups.restorable",
    /// Backups that were not finished.
    BackupsUnfinished = "backups.unfinished",
    /// The last verification of the archive.
    Verified = "proof.verified",
    /// The last drill.
    Drilled = "proof.drilled",
    /// The server's clock and this machine's.
    ClockServer = "clock.server",
    /// The store's clock and this machine's.
    ClockStore = "clock.store",
    /// Free space for `pg_wal`.
    PgWalSpace = "host.pg_wal_space",
    /// Files that others can read or change.
    Permissions = "host.permissions",
    /// Who runs the doctor.
    User = "host.user",
    /// `--before-promote`: whether there is anything to promote.
    PromoteStandby = "promote.standby",
    /// `--before-promote`: whether the archive can be asked.
    PromoteArchive = "promote.archive",
    /// `--before-promote`: whether the archive holds WAL that was not replayed.
    PromoteReplayed = "promote.replayed",
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

impl FromStr for Check {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let distance = |check: &&Self| strsim::damerau_levenshtein(check.id(), text);
        let nearest = Self::ALL.iter().min_by_key(distance);
        match nearest {
            Some(check) if check.id() == text => Ok(*check),
            _ => Err(format!(
                "there is no check \"{}\"; the nearest is \"{}\"",
                text.escape_debug(),
                nearest.map_or("", |check| check.id())
            )),
        }
    }
}

impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}
