//! Reads a stored part in pieces: hashes it as it comes, and decompresses its zstd frames in memory that does not
//! depend on the part's size.

use sha2::{Digest, Sha256};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use crate::error::{Error, Result};
use crate::format::Sha256Sum;
use crate::format::backup::StoredObject;

/// Bytes decompressed, and written, at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Decompresses a sequence of zstd frames and checks the object's size and hash.
pub struct Decompressor {
    decoder: Decoder<'static>,
    piece: Vec<u8>,
    hash: Sha256,
    received: u64,
    /// Whether the last frame has come to its end.
    frame_ended: bool,
}

impl Decompressor {
    /// Ready for the first byte of an object.
    ///
    /// # Errors
    /// `Internal` where there is no memory for it.
    pub fn new() -> Result<Self> {
        Ok(Self {
            decoder: Decoder::new().map_err(|error| Error::io("start decompression", error))?,
            piece: vec![0; PIECE_BYTES],
            hash: Sha256::new(),
            received: 0,
            frame_ended: true,
        })
    }

    /// Takes the next stored bytes and passes their decompressed content on to `output`.
    ///
    /// # Errors
    /// `Corrupt` for bytes that are not zstd; what `output` returns.
    pub fn feed(&mut self, stored: &[u8], mut output: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if stored.is_empty() {
            return Ok(());
        }
        self.hash.update(stored);
        self.received += stored.len() as u64;
        let mut input = InBuffer::around(stored);
        loop {
            let mut piece = OutBuffer::around(self.piece.as_mut_slice());
            let hint = self
                .decoder
                .run(&mut input, &mut piece)
                .map_err(|error| Error::corrupt(format!("it cannot be decompressed: {error}")))?;
            self.frame_ended = hint == 0;
            let filled = piece.pos() == piece.capacity();
            output(piece.as_slice())?;
            // The input may be used up while the frame has more content than one piece holds. At a
            // frame's end nothing is left, and asking again would begin another.
            if input.pos() == stored.len() && (self.frame_ended || !filled) {
                return Ok(());
            }
        }
    }

    /// Ends the object, and checks that it is the one that the backup's record describes.
    ///
    /// # Errors
    /// `Corrupt` where it is not.
    pub fn finish(self, expected: &StoredObject) -> Result<()> {
        let sum = Sha256Sum(self.hash.finalize().into());
        if self.received != expected.stored_bytes || sum != expected.sha256 {
            return Err(Error::corrupt(format!(
                "it has {} bytes and SHA-256 {sum}, backup.json says {} bytes and {}",
                self.received, expected.stored_bytes, expected.sha256
            )));
        }
        if !self.frame_ended {
            return Err(Error::corrupt("it ends in the middle of a zstd frame"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(stored: &[u8]) -> StoredObject {
        StoredObject {
            stored_bytes: stored.len() as u64,
            sha256: Sha256Sum::of(stored),
        }
    }

    fn decompress(stored: &[u8], expected: &StoredObject, piece: usize) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        let mut decompressor = Decompressor::new()?;
        for bytes in stored.chunks(piece) {
            decompressor.feed(bytes, |found| {
                content.extend_from_slice(found);
                Ok(())
            })?;
        }
        decompressor.finish(expected)?;
        Ok(content)
    }

    fn frames(contents: &[Vec<u8>]) -> Vec<u8> {
        contents
            .iter()
            .flat_map(|content| zstd::encode_all(content.as_slice(), 1).unwrap())
            .collect()
    }

    proptest! {
        #[test]
        fn frames_one_after_another_come_back_whatever_the_pieces(
            contents in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..5),
            repeat in 1..200usize,
            piece in 1..5000usize,
        ) {
            let contents: Vec<_> = contents.iter().map(|content| content.repeat(repeat)).collect();
            let stored = frames(&contents);
            prop_assert_eq!(decompress(&stored, &object(&stored), piece).unwrap(), contents.concat());
        }

        #[test]
        fn no_damage_goes_unnoticed(content in proptest::collection::vec(any::<u8>(), 1..300), at: proptest::sample::Index, bit in 0..8) {
            let mut stored = frames(&[content]);
            let expected = object(&stored);
            let at = at.index(stored.len());
            prop_assert_eq!(decompress(&stored[..at], &expected, 64).unwrap_err().kind(), crate::ErrorKind::Corrupt);
            stored[at] ^= 1u8 << bit;
            prop_assert_eq!(decompress(&stored, &expected, 64).unwrap_err().kind(), crate::ErrorKind::Corrupt);
        }
    }

    #[test]
    fn a_frame_that_fills_whole_pieces_comes_back() {
        for pieces in 1..4 {
            let content = vec![3; pieces * PIECE_BYTES];
            let stored = frames(std::slice::from_ref(&content));
            let back = decompress(&stored, &object(&stored), stored.len()).unwrap();
            assert!(back == content);
        }
    }

    #[test]
    fn a_frame_that_was_stored_without_its_end_is_noticed() {
        let stored = frames(&[vec![7; 100_000]]);
        let half = &stored[..stored.len() - 1];
        assert!(decompress(half, &object(half), 64).is_err());
    }
}
