//! The pipeline from tar bytes to parts in the store.
//!
//! Tar is cut into frames, worker threads compress them, the frames are put together in order into parts, and each part
//! is one put. One task moves all of it, so the server is read only as fast as the slowest step allows. Memory is
//! bounded: a frame for each worker and one that is being filled, one part that is being put together, and
//! [`PartSettings::upload_bytes`] of parts on their way.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use super::objects;
use crate::archive::Archive;
use crate::error::{Context, Error, Result};
use crate::format::backup::StoredObject;
use crate::format::frames::FrameCompressor;
use crate::format::keys::{BackupId, BackupObject, Stream};
use crate::store::{Body, BodyContent};

/// Upload permits are counted in this unit, so that any part fits a semaphore's `u32`.
const PERMIT_BYTES: usize = 1 << 10;

/// How tar becomes parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartSettings {
    /// Of zstd.
    pub compression_level: i32,
    /// Threads that compress.
    pub workers: usize,
    /// Bytes of tar in a zstd frame.
    pub frame_bytes: usize,
    /// Bytes of tar in a part.
    pub part_bytes: u64,
    /// Bytes of compressed parts that may be on their way to the store.
    pub upload_bytes: usize,
}

/// Large enough that a frame of its own costs next to nothing in size (0.4 % at level 1), small enough
/// that one for each of many threads fits into memory.
const FRAME_BYTES: usize = 1 << 20;
/// About what zstd itself needs to compress a frame at a low level.
const COMPRESSOR_BYTES: u64 = 2 << 20;
/// What a backup's parts and frames may take in memory, if the part size allows it.
const MEMORY_BYTES: u64 = 112 << 20;

impl PartSettings {
    /// Settings for a part size and a number of threads. Up to twice the part size is on its way to
    /// the store, or less if many threads need the memory.
    #[must_use]
    pub fn new(compression_level: i32, workers: usize, part_bytes: u64) -> Self {
        let mut settings = Self {
            compression_level,
            workers,
            frame_bytes: FRAME_BYTES,
            part_bytes,
            upload_bytes: 0,
        };
        let left = MEMORY_BYTES.saturating_sub(settings.memory_bytes());
        settings.upload_bytes = left.clamp(part_bytes, 2 * part_bytes) as usize;
        settings
    }

    /// Peak memory of parts and frames in bytes in the worst case: nothing compresses, and the store is slow.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let frame = 2 * self.frame_bytes as u64 + COMPRESSOR_BYTES;
        // The part that is being put together, and the buffer kept for the next one.
        let parts = 2 * self.part_bytes + self.upload_bytes as u64;
        (self.workers as u64 + 1) * frame + parts
    }
}

/// Writes the tar streams of one backup.
pub(super) struct PartWriter {
    archive: Archive,
    id: BackupId,
    settings: PartSettings,
    stream: Stream,
    /// The frame that is being filled; `None` while it has no byte.
    filling: Option<Frame>,
    /// Bytes of tar until the present part is full.
    part_left: u64,
    /// Frames that are being compressed, in order.
    compressing: VecDeque<JoinHandle<Result<Frame>>>,
    /// Frames to be used again: their buffers and compression contexts are already in memory.
    free_frames: Vec<Frame>,
    part: PartBody,
    /// The buffer of a part that has arrived, to be used again: its pages are in memory already.
    free_buffer: Option<BytesMut>,
    /// The finished parts of the present stream.
    parts: Vec<StoredObject>,
    uploads: JoinSet<Result<Option<BytesMut>>>,
    permits: Arc<Semaphore>,
}

/// A piece of tar on its way through a worker.
struct Frame {
    /// Small pieces, put together.
    gathered: Vec<u8>,
    /// Instead of them, a large piece as it came.
    piece: Bytes,
    compressed: Vec<u8>,
    compressor: FrameCompressor,
    ends_part: bool,
}

/// The part that is being put together.
#[derive(Default)]
struct PartBody {
    bytes: BytesMut,
    sha256: Sha256,
}

impl PartWriter {
    pub(super) fn new(archive: Archive, id: BackupId, settings: PartSettings) -> Self {
        Self {
            archive,
            id,
            settings,
            stream: Stream::Base,
            filling: None,
            part_left: settings.part_bytes,
            compressing: VecDeque::new(),
            free_frames: Vec::new(),
            part: PartBody::default(),
            free_buffer: None,
            parts: Vec::new(),
            uploads: JoinSet::new(),
            permits: Arc::new(Semaphore::new(permits(settings.upload_bytes))),
        }
    }

    /// Bytes of tar in each part but a stream's last.
    pub(super) fn part_bytes(&self) -> u64 {
        self.settings.part_bytes
    }

    /// Begins a stream. The one before must have ended.
    pub(super) fn begin(&mut self, stream: Stream) {
        self.stream = stream;
        self.part_left = self.settings.part_bytes;
    }

    /// Adds bytes of tar to the stream. A piece that is large is compressed where it is, and a frame of its own.
    ///
    /// # Errors
    /// Compression or an earlier upload failed.
    pub(super) async fn write(&mut self, mut tar: Bytes) -> Result<()> {
        while !tar.is_empty() {
            let is_large = tar.len() >= self.settings.frame_bytes / 2;
            if is_large {
                self.end_frame().await?;
            }
            let mut frame = match self.filling.take() {
                Some(frame) => frame,
                None => self.empty_frame()?,
            };
            let room = (self.settings.frame_bytes - frame.gathered.len()) as u64;
            let piece = tar.split_to((tar.len() as u64).min(room).min(self.part_left) as usize);
            self.part_left -= piece.len() as u64;
            frame.ends_part = self.part_left == 0;
            if frame.ends_part {
                self.part_left = self.settings.part_bytes;
            }
            if is_large {
                frame.piece = piece;
            } else {
                frame.gathered.reserve_exact(room as usize);
                frame.gathered.extend_from_slice(&piece);
            }
            if is_large || frame.ends_part || frame.gathered.len() == self.settings.frame_bytes {
                self.compress(frame).await?;
            } else {
                self.filling = Some(frame);
            }
        }
        Ok(())
    }

    /// Ends the stream and returns its parts, which are all on their way.
    pub(super) async fn end(&mut self) -> Result<Vec<StoredObject>> {
        self.end_frame().await?;
        while !self.compressing.is_empty() {
            self.collect().await?;
        }
        if !self.part.bytes.is_empty() {
            self.upload().await?;
        }
        Ok(std::mem::take(&mut self.parts))
    }

    /// Waits until each upload has succeeded or failed. When this returns, no upload is under way.
    ///
    /// # Errors
    /// The first error of an upload.
    pub(super) async fn finish(mut self) -> Result<()> {
        let mut outcome = Ok(());
        while let Some(uploaded) = self.uploads.join_next().await {
            outcome = outcome.and(flatten(uploaded).map(drop));
        }
        outcome
    }

    /// Stops. When this returns, no upload is under way, so no part appears after a clean-up. Each upload ends within
    /// the store's own limits.
    pub(super) async fn abandon(mut self) {
        while self.uploads.join_next().await.is_some() {}
    }

    fn empty_frame(&mut self) -> Result<Frame> {
        self.free_frames
            .pop()
            .map_or_else(|| Frame::new(&self.settings), Ok)
    }

    async fn end_frame(&mut self) -> Result<()> {
        match self.filling.take() {
            Some(frame) => self.compress(frame).await,
            None => Ok(()),
        }
    }

    async fn compress(&mut self, frame: Frame) -> Result<()> {
        while self.compressing.len() >= self.settings.workers {
            self.collect().await?;
        }
        self.compressing
            .push_back(tokio::task::spawn_blocking(move || frame.compress()));
        Ok(())
    }

    /// Waits for the oldest frame and adds it to the part.
    async fn collect(&mut self) -> Result<()> {
        let Some(frame) = self.compressing.pop_front() else {
            return Ok(());
        };
        let mut frame = flatten(frame.await)?;
        self.part.sha256.update(&frame.compressed);
        self.part.bytes.extend_from_slice(&frame.compressed);
        frame.gathered.clear();
        let ends_part = frame.ends_part;
        self.free_frames.push(frame);
        if ends_part {
            self.upload().await?;
        }
        Ok(())
    }

    /// Sends the part on its way, as soon as there is room for it.
    async fn upload(&mut self) -> Result<()> {
        let part = std::mem::take(&mut self.part);
        let body = Body {
            sha256: part.sha256.finalize().into(),
            content: BodyContent::Memory(part.bytes.freeze()),
        };
        self.parts.push(objects::stored(&body));
        let number = u32::try_from(self.parts.len())
            .map_err(|_| Error::invalid("the backup has too many parts; raise backup.part_size"))?;
        let (id, object) = (self.id.clone(), BackupObject::Part(self.stream, number));
        let wanted = permits(body.length() as usize).min(permits(self.settings.upload_bytes));
        let permit = Arc::clone(&self.permits)
            .acquire_many_owned(wanted as u32)
            .await
            .map_err(|_| Error::defect("upload", "the semaphore was closed"))?;
        let archive = self.archive.clone();
        self.uploads.spawn(async move {
            let created = objects::create(&archive, &id, object, &body).await;
            let buffer = body.into_buffer();
            drop(permit);
            created.map(|()| buffer)
        });
        while let Some(uploaded) = self.uploads.try_join_next() {
            self.free_buffer = flatten(uploaded)?.or(self.free_buffer.take());
        }
        self.part.bytes = self.free_buffer.take().unwrap_or_default();
        self.part.bytes.clear();
        Ok(())
    }
}

impl Frame {
    fn new(settings: &PartSettings) -> Result<Self> {
        Ok(Self {
            gathered: Vec::new(),
            piece: Bytes::new(),
            compressed: Vec::new(),
            compressor: FrameCompressor::new(settings.compression_level)?,
            ends_part: false,
        })
    }

    fn compress(mut self) -> Result<Self> {
        let piece = std::mem::take(&mut self.piece);
        let tar = if piece.is_empty() { &self.gathered } else { &*piece };
        self.compressor.compress(tar, &mut self.compressed)?;
        Ok(self)
    }
}

fn permits(bytes: usize) -> usize {
    bytes
        .div_ceil(PERMIT_BYTES)
        .clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize))
}

fn flatten<T>(joined: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    joined
        .unwrap_or_else(|error| Err(Error::defect("take the backup", error)))
        .context(|| "copy the cluster")
}

#[cfg(test)]
mod tests;
