//! The error type, and the only place where its kinds become exit codes.
//!
//! A kind exists only where a caller acts differently. Every message says what
//! happened, to what, and what to do next; context is added as a present-tense
//! phrase that names the object.

use std::fmt;

/// The result of everything in walship that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is, as far as a caller or an exit code cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The thing asked for does not exist: a key, a bucket, a backup's id.
    NotFound,
    /// Something different is already there: a create-once key, a data directory that is not empty.
    Conflict,
    /// The store or the server cannot be reached, or did not answer in time. Trying again may help.
    Unavailable,
    /// Credentials or permissions do not allow it.
    Denied,
    /// Stored or delivered bytes are not what they should be.
    Corrupt,
    /// What the user gave is wrong: a flag, a setting, a file name, a target that cannot be reached,
    /// another cluster's data.
    Invalid,
    /// A backup is in the archive but the WAL it needs is not, yet.
    Unfinished,
    /// This machine refused: no space, no permission on a local file, or a defect in walship.
    Internal,
}

impl ErrorKind {
    /// The exit code of every command except `push` and `restore`, whose codes PostgreSQL
    /// interprets (see `docs/exit-codes.md`).
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unavailable => 5,
            Self::Denied => 6,
            Self::Corrupt => 7,
            Self::Unfinished => 8,
        }
    }
}

/// What happened, to what, and what to do next.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of this kind with a whole sentence for the user.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// A name or key that is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// Something different is already there.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// No answer in time, or no connection.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// Refused by the store or the server.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Denied, message)
    }

    /// Bytes that are not what they should be.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// Bad input.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// A backup whose WAL has not arrived.
    pub fn unfinished(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unfinished, message)
    }

    /// A local failure or a defect.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Something that cannot happen, in the middle of `doing` something.
    pub fn defect(doing: impl fmt::Display, what: impl fmt::Display) -> Self {
        Self::internal(format!("{doing}: {what}; this is a defect in walship"))
    }

    /// A local file operation that failed; `doing` names the file ("open `pg_wal/0000…`").
    /// The kind is [`ErrorKind::Internal`] whatever the operating system said, so that a missing
    /// local file is never mistaken for an object missing from the archive.
    pub fn io(doing: impl Into<String>, error: std::io::Error) -> Self {
        let doing = doing.into();
        let message = match error.kind() {
            std::io::ErrorKind::StorageFull => {
                format!("{doing}: no space left on the device; free some and run it again")
            }
            std::io::ErrorKind::PermissionDenied => {
                format!("{doing}: permission denied; run walship as the user that owns the file")
            }
            _ => format!("{doing}: {error}"),
        };
        Self {
            kind: ErrorKind::Internal,
            message,
            source: Some(Box::new(error)),
        }
    }

    /// What sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may succeed a moment later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.kind == ErrorKind::Unavailable
    }

    /// Puts a present-tense phrase that names the object in front: "upload segment 0000…2A".
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Adds context to a failed result.
pub trait Context<T> {
    /// Puts a present-tense phrase that names the object in front of the message.
    ///
    /// # Errors
    /// The same error, with the phrase.
    fn context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| error.context(doing()))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::io;

    use super::*;

    const KINDS: [ErrorKind; 8] = [
        ErrorKind::NotFound,
        ErrorKind::Conflict,
        ErrorKind::Unavailable,
        ErrorKind::Denied,
        ErrorKind::Corrupt,
        ErrorKind::Invalid,
        ErrorKind::Unfinished,
        ErrorKind::Internal,
    ];

    #[test]
    fn each_kind_has_its_own_exit_code_and_only_one_kind_is_retryable() {
        assert_eq!(KINDS.map(ErrorKind::exit_code), [3, 4, 5, 6, 7, 2, 8, 1]);
        for kind in KINDS {
            let error = Error::new(kind, "x");
            assert_eq!(error.is_retryable(), kind == ErrorKind::Unavailable, "{kind:?}");
            assert!(error.source().is_none());
        }
    }

    #[test]
    fn a_file_operation_says_what_to_do_and_keeps_its_cause() {
        for (cause, says) in [
            (io::ErrorKind::StorageFull, "free some"),
            (
                io::ErrorKind::PermissionDenied,
                "run walship as the user that owns",
            ),
            (io::ErrorKind::NotFound, "entity not found"),
        ] {
            let error = Error::io("open a/file", cause.into());
            assert_eq!(error.kind(), ErrorKind::Internal);
            assert!(error.to_string().contains(says), "{error}");
            assert!(error.to_string().starts_with("open a/file: "), "{error}");
            assert!(error.source().is_some());
        }
    }
}
