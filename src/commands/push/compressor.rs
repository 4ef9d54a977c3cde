//! From a file of `pg_wal` to its stored object. One thread reads and hashes, another compresses: the two
//! take about a third and two thirds of the work.

use std::io::Read;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use bytes::BytesMut;
use tokio::sync::Semaphore;

use super::Source;
use crate::archive::codec::{Content, Trailer, WalEncoder};
use crate::archive::segment_index::IndexBuilder;
use crate::error::{Error, Result};
use crate::store::{Body, BodyWriter};

/// Bytes that go from one thread to the other at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Compresses files, several at a time where it is asked for more.
#[derive(Debug)]
pub struct Compressor {
    level: i32,
    memory_bytes: usize,
    at_once: usize,
    turns: Semaphore,
    /// Of bodies that were stored, for the next ones: pages that are in memory already. No more than `at_once`.
    buffers: Mutex<Vec<BytesMut>>,
}

impl Compressor {
    /// `level` is zstd's. Up to `memory_bytes` of a compressed file are kept in memory, more goes to an
    /// unlinked temporary file. No more than `at_once` files are compressed at the same time; the others wait,
    /// first come, first served.
    #[must_use]
    pub fn new(level: i32, memory_bytes: usize, at_once: usize) -> Arc<Self> {
        Arc::new(Self {
            level,
            memory_bytes,
            at_once,
            turns: Semaphore::new(at_once),
            buffers: Mutex::default(),
        })
    }

    /// The stored object that the file becomes.
    ///
    /// # Errors
    /// `Internal` where the file cannot be read.
    pub(in crate::commands) async fn compress(
        self: &Arc<Self>,
        source: &Arc<Source>,
    ) -> Result<(Body, Trailer)> {
        let _turn = self.turns.acquire().await;
        let (compressor, source) = (Arc::clone(self), Arc::clone(source));
        tokio::task::spawn_blocking(move || compressor.work(&source))
            .await
            .unwrap_or_else(|error| Err(Error::defect("compress", error)))
    }

    fn work(&self, source: &Source) -> Result<(Body, Trailer)> {
        let buffer = self.buffers().pop().unwrap_or_default();
        let output = BodyWriter::reusing(buffer, self.memory_bytes);
        let mut encoder = WalEncoder::new(output, self.level, source.size)?;
        let (read, pieces) = mpsc::sync_channel(1);
        let (used, spare) = mpsc::channel();
        thread::scope(move |scope| {
            let reading = thread::Builder::new()
                .spawn_scoped(scope, move || source.read(&read, &spare))
                .map_err(|error| Error::io("start a thread", error))?;
            for piece in pieces {
                encoder.write(&piece)?;
                // Once all is read nobody takes it any more.
                let _ = used.send(piece);
            }
            let trailer = reading
                .join()
                .unwrap_or_else(|_| Err(Error::internal("a thread that reads WAL panicked")))?;
            let output = encoder.finish(&trailer)?;
            Ok((output.finish(), trailer))
        })
    }

    /// Takes the memory of a body that is not needed any more.
    pub(super) fn take_back(&self, body: Body) {
        let mut buffers = self.buffers();
        if buffers.len() < self.at_once {
            buffers.extend(body.into_buffer());
        }
    }

    fn buffers(&self) -> MutexGuard<'_, Vec<BytesMut>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    /// Reads the file, piece by piece, into `pieces`; `spare` ones came back. What the file is, its trailer says.
    fn read(&self, pieces: &SyncSender<Vec<u8>>, spare: &Receiver<Vec<u8>>) -> Result<Trailer> {
        let mut file = self.file()?;
        let mut content = Content::default();
        let mut index = self.index_builder()?;
        let mut left = self.size;
        while left > 0 {
            let mut piece = spare.try_recv().unwrap_or_default();
            piece.resize(left.min(PIECE_BYTES as u64) as usize, 0);
            file.read_exact(&mut piece)
                .map_err(|error| Error::io(format!("read {}", self.path.display()), error))?;
            content.update(&piece);
            if let Some(index) = &mut index {
                index.feed(&piece);
            }
            left -= piece.len() as u64;
            // Who compresses may have failed, and says why.
            if pieces.send(piece).is_err() {
                return Err(Error::internal("nobody compresses what is read"));
            }
        }
        let index = index.and_then(IndexBuilder::finish);
        Ok(content.trailer(self.name, self.system_identifier, index))
    }
}
