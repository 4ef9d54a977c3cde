//! The protocol between client and agent: one JSON object on each line. The client sends a request; the agent sends any
//! number of signs of life and then one answer. Knows no sockets.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use walship_core::pg::SegmentName;
use walship_core::{Error, ErrorKind, Result};

/// How often the agent gives a sign of life while it works.
pub const SIGN_OF_LIFE: Duration = Duration::from_millis(300);

/// After this time without a sign of life the client does the work itself.
pub const SILENCE: Duration = Duration::from_secs(2);

/// The longest line.
pub const LINE_LIMIT: u64 = 64 << 10;

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`super::Address::fingerprint`]: whose agent it wants to speak with.
    pub fingerprint: String,
    /// What it wants.
    pub ask: Ask,
}

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// That this file is durable in the archive.
    Push {
        /// The file, absolute.
        path: PathBuf,
        /// Which file the client sees there.
        file: FileIdentity,
    },
    /// A verified file, ready to be renamed to its destination.
    Restore {
        /// The file's name.
        name: String,
        /// Where the client will put it, absolute.
        destination: PathBuf,
        /// As `restore --accept-gap`.
        accepted_gap: Option<SegmentName>,
        /// For how long the agent may try, in milliseconds.
        retry_millis: u64,
    },
    /// A sign of life.
    Ping,
    /// Nothing: the client did this by itself, and tells it for the agent's metrics.
    Done {
        /// What it did.
        what: What,
        /// How long it took, in milliseconds.
        millis: u64,
        /// How it failed, if it did.
        failure: Option<ErrorKind>,
    },
}

/// What PostgreSQL calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// `archive_command`.
    Push,
    /// `restore_command`.
    Restore,
}

/// Tells a file from another one of the same name, and from itself after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for FileIdentity {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What an agent sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// A sign of life: the agent is at work.
    Working,
    /// It is of another version, data directory or archive.
    Foreign,
    /// The file is durable in the archive.
    Stored,
    /// The file is verified, and is here.
    Ready {
        /// In the spool, on the destination's file system.
        file: PathBuf,
    },
    /// It is proven that the archive has no such file.
    Absent {
        /// For people.
        reason: String,
    },
    /// The archive has the segment, and it is not for this server.
    Withheld {
        /// For people.
        reason: String,
    },
    /// The answer to a ping.
    Alive,
    /// It failed.
    Failed {
        /// What sort of failure it is.
        kind: ErrorKind,
        /// The whole message.
        message: String,
    },
}

impl From<Error> for Reply {
    fn from(error: Error) -> Self {
        Self::Failed {
            kind: error.kind(),
            message: error.to_string(),
        }
    }
}

/// A message as a line.
pub fn line<T: Serialize>(message: &T) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message).map_err(|error| {
        Error::internal(format!(
            "write to the agent: {error}; this is a defect in walship"
        ))
    })?;
    line.push(b'\n');
    Ok(line)
}

/// A line as a message.
pub fn parse<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T> {
    serde_json::from_slice(line).map_err(|error| Error::invalid(format!("not the agent's protocol: {error}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_line_makes_it_panic(bytes: Vec<u8>) {
            let _ = parse::<Request>(&bytes);
            let _ = parse::<Reply>(&bytes);
        }
    }

    #[test]
    fn messages_lead_there_and_back_in_one_line() {
        let reply = Reply::Failed {
            kind: ErrorKind::Denied,
            message: "a\nb".to_owned(),
        };
        let text = line(&reply).unwrap();
        assert_eq!(text.iter().position(|byte| *byte == b'\n'), Some(text.len() - 1));
        assert_eq!(parse::<Reply>(&text).unwrap(), reply);
        let file = FileIdentity::from(&std::fs::metadata("/").unwrap());
        let ask = Ask::Push {
            path: "/data/pg_wal/000000010000000000000001".into(),
            file,
        };
        let request = Request {
            fingerprint: "f".to_owned(),
            ask,
        };
        assert_eq!(parse::<Request>(&line(&request).unwrap()).unwrap(), request);
    }

    #[test]
    fn a_file_that_was_written_again_is_another_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let before = FileIdentity::from(&file.path().metadata().unwrap());
        assert_eq!(before, FileIdentity::from(&file.path().metadata().unwrap()));
        std::fs::write(file.path(), "x").unwrap();
        assert_ne!(before, FileIdentity::from(&file.path().metadata().unwrap()));
    }
}
