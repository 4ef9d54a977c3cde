//! Passes the manifest's bytes on to the JSON parser, hashes them, and limits the length of a line.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

use super::MAX_LINE_BYTES;
use crate::error::{Error, Result};

/// Passes a reader's bytes on and computes the checksum of all but the last line, as
/// `verify_manifest_checksum` does: up to and including the last newline but one.
///
/// Which newline that is shows only at the end, so the hash's state at the last two newlines is kept.
pub(super) struct Source<R> {
    reader: R,
    running: Sha256,
    at_last_newline: Option<Sha256>,
    at_newline_before: Option<Sha256>,
    line_bytes: usize,
}

impl<R> Source<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            running: Sha256::new(),
            at_last_newline: None,
            at_newline_before: None,
            line_bytes: 0,
        }
    }

    /// The checksum, once everything was read.
    pub(super) fn checksum(self) -> Result<[u8; 32]> {
        match self.at_newline_before {
            Some(hash) if self.line_bytes == 0 => Ok(hash.finalize().into()),
            _ => Err(Error::corrupt(
                "backup_manifest does not end with its checksum on a line of its own; it was cut short or edited, \
                 do not use the backup",
            )),
        }
    }

    /// Takes the rest of a line with its newline, or a part of the rest.
    fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        self.running.update(piece);
        self.line_bytes += piece.len();
        if self.line_bytes > MAX_LINE_BYTES {
            return Err(io::Error::other(Error::corrupt(format!(
                "backup_manifest has a line longer than {MAX_LINE_BYTES} bytes, which PostgreSQL never writes; \
                 do not use the backup"
            ))));
        }
        if piece.ends_with(b"\n") {
            self.at_newline_before = self.at_last_newline.replace(self.running.clone());
            self.line_bytes = 0;
        }
        Ok(())
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        for piece in buffer
            .get(..length)
            .unwrap_or_default()
            .split_inclusive(|byte| *byte == b'\n')
        {
            self.take(piece)?;
        }
        Ok(length)
    }
}
