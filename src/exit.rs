//! What each command's end means to whoever called it: `docs/exit-codes.md` is written from here.

use std::ffi::OsString;
use std::process::ExitCode;

use walship::ErrorKind;

/// Who interprets the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// PostgreSQL's archiver: 1 means "try again later"; above 125 it would restart itself for half a
    /// minute, unseen by `pg_stat_archiver`.
    ArchiveCommand,
    /// PostgreSQL's recovery: 1 to 125 mean "not in the archive", above 125 stops recovery safely.
    RestoreCommand,
    /// A person or a script.
    Shell,
}

/// `restore`: it is proven that the archive has no such file.
pub const ABSENT: u8 = 1;
/// `restore`: everything else that is no success.
const RESTORE_FAILED: u8 = 200;

impl Caller {
    /// Finds the command in arguments that may not parse.
    pub fn of(arguments: &[OsString]) -> Self {
        let command = arguments
            .iter()
            .skip(1)
            .find_map(|argument| match argument.to_str() {
                Some("push") => Some(Self::ArchiveCommand),
                Some("restore") => Some(Self::RestoreCommand),
                _ => None,
            });
        command.unwrap_or(Self::Shell)
    }

    /// The exit code for a failure of this kind.
    pub fn failure(self, kind: ErrorKind) -> ExitCode {
        self.failure_code(kind).into()
    }

    /// The exit code for a defect in walship.
    pub fn panic_code(self) -> i32 {
        self.failure_code(ErrorKind::Internal).into()
    }

    fn failure_code(self, kind: ErrorKind) -> u8 {
        match self {
            Self::ArchiveCommand => 1,
            Self::RestoreCommand => RESTORE_FAILED,
            Self::Shell => kind.exit_code(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(arguments: &[&str]) -> Caller {
        Caller::of(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_caller_is_known_even_where_the_arguments_are_wrong() {
        assert_eq!(caller(&["walship", "restore"]), Caller::RestoreCommand);
        assert_eq!(
            caller(&["walship", "--nonsense", "restore", "x"]),
            Caller::RestoreCommand
        );
        assert_eq!(caller(&["walship", "push", "restore"]), Caller::ArchiveCommand);
        assert_eq!(caller(&["walship", "list"]), Caller::Shell);
        assert_eq!(caller(&["restore"]), Caller::Shell);
    }

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
            assert!(Caller::RestoreCommand.failure_code(kind) > 125);
            assert_eq!(Caller::ArchiveCommand.failure_code(kind), 1);
            assert!((1..=125).contains(&Caller::Shell.failure_code(kind)));
        }
    }
}
