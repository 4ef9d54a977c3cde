//! From a file of `pg_wal` to its stored object. One thread reads and hashes, another compresses: the two
//! take about a third and two thirds of the work.

use std::io::Read;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use bytes::BytesMut;
use tokio::sync::{Semaphore, oneshot};

use super::wal_file::WalFile;
use crate::error::{Error, Result};
use crate::format::codec::{Content, Trailer, WalEncoder};
use crate::format::segment_index::IndexBuilder;
use crate::store::{Body, BodyWriter};

/// Bytes that the reading thread passes to the compressing one at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Compresses files, several at a time.
#[derive(Debug)]
pub struct Compressor {
    level: i32,
    memory_bytes: usize,
    at_once: usize,
    turns: Arc<Semaphore>,
    /// Buffers of bodies that were stored, to be used again: their pages are in memory already. At most `at_once`.
    buffers: Mutex<Vec<BytesMut>>,
}

impl Compressor {
    /// `level` is zstd's. At most `memory_bytes` of a compressed file are kept in memory; the rest goes to an
    /// unlinked temporary file. At most `at_once` files are compressed at the same time; the others wait,
    /// first come, first served.
    #[must_use]
    pub fn new(level: i32, memory_bytes: usize, at_once: usize) -> Arc<Self> {
        Arc::new(Self {
            level,
            memory_bytes,
            at_once,
            turns: Arc::new(Semaphore::new(at_once)),
            buffers: Mutex::default(),
        })
    }

    /// The stored object that the file becomes.
    ///
    /// # Errors
    /// `Internal` where the file cannot be read.
    pub(crate) async fn compress(self: &Arc<Self>, source: &Arc<WalFile>) -> Result<(Body, Trailer)> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let (compressor, source) = (Arc::clone(self), Arc::clone(source));
        let (sender, compressed) = oneshot::channel();
        let work = move || {
            let done = compressor.work(&source);
            // The turn stays taken where a file hangs, even if nobody waits for it any more.
            drop(turn);
            let _ = sender.send(done);
        };
        thread::Builder::new().spawn(work).map_err(no_thread)?;
        compressed
            .await
            .unwrap_or_else(|error| Err(Error::defect("compress", error)))
    }

    fn work(&self, source: &WalFile) -> Result<(Body, Trailer)> {
        let buffer = self.buffers().pop().unwrap_or_default();
        let output = BodyWriter::reusing(buffer, self.memory_bytes);
        let mut encoder = WalEncoder::new(output, self.level, source.size)?;
        let (read, pieces) = mpsc::sync_channel(1);
        let (used, returned) = mpsc::channel();
        thread::scope(move |scope| {
            let reading = thread::Builder::new()
                .spawn_scoped(scope, move || source.read(&read, &returned))
                .map_err(no_thread)?;
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

    /// Keeps the memory of a body that is not needed any more for the next one.
    pub(crate) fn take_back(&self, body: Body) {
        let mut buffers = self.buffers();
        if buffers.len() < self.at_once {
            buffers.extend(body.into_buffer());
        }
    }

    fn buffers(&self) -> MutexGuard<'_, Vec<BytesMut>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_thread(error: std::io::Error) -> Error {
    Error::io("start a thread", error)
}

impl WalFile {
    /// Sends the file, piece by piece, into `pieces`; used buffers come back through `returned`. The trailer describes
    /// the file.
    fn read(&self, pieces: &SyncSender<Vec<u8>>, returned: &Receiver<Vec<u8>>) -> Result<Trailer> {
        let mut file = self.file()?;
        let mut content = Content::default();
        let mut index = self.index_builder()?;
        let mut left = self.size;
        while left > 0 {
            let mut piece = returned.try_recv().unwrap_or_default();
            piece.resize(left.min(PIECE_BYTES as u64) as usize, 0);
            file.read_exact(&mut piece)
                .map_err(|error| Error::io(format!("read {}", self.path.display()), error))?;
            content.update(&piece);
            if let Some(index) = &mut index {
                index.feed(&piece);
            }
            left -= piece.len() as u64;
            // The compressing thread may have failed; it reports why.
            if pieces.send(piece).is_err() {
                return Err(Error::internal("nobody compresses what is read"));
            }
        }
        let index = index.and_then(IndexBuilder::finish);
        Ok(content.trailer(self.name, self.system_identifier, index))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::future::poll_fn;
    use std::path::Path;
    use std::task::Poll;

    use super::*;
    use crate::format::codec::WalDecoder;
    use crate::pg::WalName;

    const NAME: &str = "00000002.history";

    fn source(path: &Path, content: &[u8]) -> Arc<WalFile> {
        std::fs::write(path, content).unwrap();
        Arc::new(WalFile {
            name: NAME.parse::<WalName>().unwrap(),
            path: path.to_owned(),
            size: content.len() as u64,
            cluster: None,
            system_identifier: 7,
        })
    }

    // Seen to fail: `crates/store/src/body_writer.rs`: the buffer is not cleared
    #[tokio::test]
    async fn what_is_stored_is_what_was_hashed_whatever_the_buffer_held_before() {
        let top = tempfile::tempdir().unwrap();
        let compressor = Compressor::new(1, 64 << 20, 1);
        for length in [3 << 20, 1000, 0, 700_000] {
            let content: Vec<u8> = (0..length)
                .map(|at: u32| (at.wrapping_mul(at) >> 7) as u8)
                .collect();
            let source = source(&top.path().join("file"), &content);
            let (body, trailer) = compressor.compress(&source).await.unwrap();
            let mut object = Vec::new();
            body.reader().read_to_end(&mut object).unwrap();
            let (mut decoder, mut back) = (WalDecoder::new(64 << 20).unwrap(), Vec::new());
            decoder.write(&object, &mut back).unwrap();
            assert_eq!(decoder.finish().unwrap(), trailer);
            assert_eq!(back, content);
            compressor.take_back(body);
            assert_eq!(compressor.buffers().len(), 1);
        }
    }

    #[tokio::test]
    async fn a_file_that_shrinks_while_it_is_read_is_an_error_that_names_it() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("file");
        let compressor = Compressor::new(1, 64 << 20, 1);
        let source = source(&path, &vec![1; 3 << 20]);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(2 << 20).unwrap();
        let error = compressor.compress(&source).await.unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }

    // Seen to fail: `cluster/compressor.rs`: the turn ends when nobody waits any more
    #[tokio::test]
    async fn no_more_files_than_allowed_are_compressed_although_nobody_waits_for_them() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let top = tempfile::tempdir().unwrap();
        let compressor = Compressor::new(1, 64 << 20, 1);
        let hanging = source(&top.path().join("hanging"), &[1; 1000]);
        // Opening a pipe that nobody writes into hangs.
        std::fs::remove_file(&hanging.path).unwrap();
        mknodat(CWD, &hanging.path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let mut given_up = Box::pin(compressor.compress(&hanging));
        let look = poll_fn(|context| Poll::Ready(given_up.as_mut().poll(context).is_pending()));
        assert!(look.await);
        drop(given_up);
        assert_eq!(compressor.turns.available_permits(), 0);
        drop(OpenOptions::new().write(true).open(&hanging.path).unwrap());
        let other = source(&top.path().join("file"), &[1; 1000]);
        compressor.compress(&other).await.unwrap();
    }

    #[test]
    fn a_buffer_that_somebody_still_holds_is_not_used_again() {
        let compressor = Compressor::new(1, 64 << 20, 1);
        let body = Body::from_bytes(vec![1; 10]);
        let crate::store::BodyContent::Memory(held) = &body.content else {
            panic!("a small body is in memory")
        };
        let held = held.clone();
        compressor.take_back(body);
        assert_eq!((compressor.buffers().len(), held.len()), (0, 10));
    }
}
