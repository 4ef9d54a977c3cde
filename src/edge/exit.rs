//! What each command's exit code means to its caller. `docs/exit-codes.md` follows this file.

use std::ffi::OsString;

use crate::error::ErrorKind;

/// The program or person that interprets the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// PostgreSQL's archiver: 1 means "try again later"; above 125 the archiver would exit, and start again only after half a
    /// minute, without a trace in `pg_stat_archiver`.
    ArchiveCommand,
    /// PostgreSQL's recovery: 1 to 125 mean "not in the archive", above 125 stops recovery safely.
    RestoreCommand,
    /// Nagios, or another program that runs its plugins: 3 means that the check itself could not run.
    Monitor,
    /// A person or a script.
    Shell,
}

/// `restore`: it is proven that the archive has no such file.
pub const ABSENT: u8 = 1;
/// `doctor`: it could not run at all; 0, 1 and 2 say what it found.
const UNKNOWN: u8 = 3;
/// `drill`: it ran, and its result speaks against the backup or the archive.
pub const DRILL_FAILED: u8 = 9;
/// `status`: something is wrong.
pub const STATUS_WARNS: u8 = 10;
/// `restore`: every other failure.
pub const RESTORE_FAILED: u8 = 200;

impl Caller {
    /// Guesses from arguments that may not parse. A wrong guess of `restore` does no harm, but missing it could end a recovery.
    pub fn guess(arguments: &[OsString]) -> Self {
        let has = |word: &str| arguments.iter().skip(1).any(|argument| argument == word);
        if has("restore") {
            Self::RestoreCommand
        } else if has("push") {
            Self::ArchiveCommand
        } else if has("doctor") {
            Self::Monitor
        } else {
            Self::Shell
        }
    }

    /// The exit code for a failure of this kind. A standby (`on_standby`) survives every failure, because it streams, or asks
    /// again in a few seconds.
    pub fn failure(self, kind: ErrorKind, on_standby: bool) -> u8 {
        match self {
            Self::ArchiveCommand => 1,
            Self::RestoreCommand if on_standby => ABSENT,
            Self::RestoreCommand => RESTORE_FAILED,
            Self::Monitor => UNKNOWN,
            Self::Shell => kind.exit_code(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(arguments: &[&str]) -> Caller {
        Caller::guess(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_caller_is_known_even_where_the_arguments_are_wrong() {
        assert_eq!(caller(&["walship", "restore"]), Caller::RestoreCommand);
        assert_eq!(
            caller(&["walship", "--nonsense", "restore", "x"]),
            Caller::RestoreCommand
        );
        assert_eq!(
            caller(&["walship", "--config", "push", "restore"]),
            Caller::RestoreCommand
        );
        assert_eq!(caller(&["walship", "doctor", "--jsn"]), Caller::Monitor);
        assert_eq!(caller(&["walship", "list"]), Caller::Shell);
        assert_eq!(caller(&["restore"]), Caller::Shell);
    }

    // Seen to fail: `exit.rs`: a restore fails with 1
    #[test]
    fn no_failure_of_restore_looks_like_the_end_of_the_archive() {
        for kind in [
            ErrorKind::NotFound,
            ErrorKind::Conflict,
            ErrorKind::Unavailable,
            ErrorKind::Denied,
            ErrorKind::Corrupt,
            ErrorKind::Invalid,
            ErrorKind::Unfinished,
            ErrorKind::Internal,
        ] {
            assert!(Caller::RestoreCommand.failure(kind, false) > 125);
            assert_eq!(Caller::ArchiveCommand.failure(kind, true), 1);
            assert!((1..=125).contains(&Caller::Shell.failure(kind, false)));
            assert_eq!(Caller::Monitor.failure(kind, false), 3);
        }
    }
}
