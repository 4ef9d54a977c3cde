//! zstd frames of content that is in memory. Objects that hold much are a sequence of them, so that several threads can
//! compress at the same time, and memory does not depend on the object's size. zstd reads the sequence as one file.

use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, compress_bound};

use crate::error::{Error, Result};

/// Compresses one piece of content after the other into a frame of its own.
pub struct FrameCompressor(Compressor<'static>);

impl FrameCompressor {
    /// `level` is zstd's; negative ones are faster.
    ///
    /// # Errors
    /// `Internal` where zstd refuses the level, or there is no memory.
    pub fn new(level: i32) -> Result<Self> {
        let make = || {
            let mut compressor = Compressor::new(level)?;
            // For `zstd -t`.
            compressor.set_parameter(CParameter::ChecksumFlag(true))?;
            compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
            Ok(compressor)
        };
        make()
            .map(Self)
            .map_err(|error| Error::io("start compression", error))
    }

    /// Replaces what is in `frame` by the frame of `content`, with its size and zstd's checksum.
    ///
    /// # Errors
    /// `Internal` where there is no memory.
    pub fn compress(&mut self, content: &[u8], frame: &mut Vec<u8>) -> Result<()> {
        frame.clear();
        frame.reserve(compress_bound(content.len()));
        self.0
            .compress_to_buffer(content, frame)
            .map(drop)
            .map_err(|error| Error::io("compress", error))
    }
}
