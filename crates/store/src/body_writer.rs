//! Bytes on their way into the store: hashed as they come, kept in memory up to a limit, and in an
//! unlinked temporary file beyond it.

use std::fs::File;
use std::io::Write;

use bytes::BytesMut;
use sha2::{Digest, Sha256};

use super::{Body, BodyContent};

/// Collects a [`Body`].
#[derive(Debug)]
pub struct BodyWriter {
    memory: BytesMut,
    spilled: Option<File>,
    length: u64,
    memory_limit: usize,
    hash: Sha256,
}

impl BodyWriter {
    /// A body that is kept in memory up to `memory_limit` bytes, and in a temporary file (in
    /// `TMPDIR`, else `/tmp`) beyond.
    #[must_use]
    pub fn new(memory_limit: usize) -> Self {
        Self {
            memory: BytesMut::new(),
            spilled: None,
            length: 0,
            memory_limit,
            hash: Sha256::new(),
        }
    }

    /// The same in a buffer that was used before, whose content is dropped. It gets its whole size at once: one that
    /// grows leaves holes in the heap.
    #[must_use]
    pub fn reusing(mut memory: BytesMut, memory_limit: usize) -> Self {
        memory.clear();
        memory.reserve(memory_limit);
        Self {
            memory,
            ..Self::new(memory_limit)
        }
    }

    /// SHA-256 of what was written so far.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }

    /// The whole body.
    #[must_use]
    pub fn finish(self) -> Body {
        let content = match self.spilled {
            Some(file) => BodyContent::File {
                file,
                length: self.length,
            },
            None => BodyContent::Memory(self.memory.freeze()),
        };
        Body {
            content,
            sha256: self.hash.finalize().into(),
        }
    }
}

impl Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.spilled.is_none() && self.memory.len() + bytes.len() > self.memory_limit {
            let mut file = tempfile::tempfile()?;
            file.write_all(&self.memory)?;
            self.memory = BytesMut::new();
            self.spilled = Some(file);
        }
        match &mut self.spilled {
            Some(file) => file.write_all(bytes)?,
            None => self.memory.extend_from_slice(bytes),
        }
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_body_beyond_the_limit_spills_and_keeps_every_byte() {
        for (limit, spills) in [(1000, false), (999, true), (0, true)] {
            let mut writer = BodyWriter::reusing(BytesMut::from("of another body"), limit);
            for piece in [&[1u8; 400][..], &[2; 400], &[3; 200]] {
                writer.write_all(piece).unwrap();
            }
            let body = writer.finish();
            let expected = [vec![1u8; 400], vec![2; 400], vec![3; 200]].concat();
            assert_eq!(body.length(), 1000);
            assert_eq!(body.sha256, <[u8; 32]>::from(Sha256::digest(&expected)));
            match body.content {
                BodyContent::Memory(bytes) => assert!(!spills && bytes == expected),
                BodyContent::File { file, .. } => {
                    let mut bytes = vec![0; 1000];
                    file.read_exact_at(&mut bytes, 0).unwrap();
                    assert!(spills && bytes == expected);
                }
            }
        }
    }
}
