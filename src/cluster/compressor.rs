//! From a file of `pg_wal` to its stored object.
//!
//! Threads take the file's pieces in their order. Each reads a piece, hashes it, looks at its records and compresses it,
//! while the piece is in its core's cache; then the frames are put together in their order.

use std::convert::Infallible;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::wal_file::WalFile;
use crate::error::{Error, Result};
use crate::format::Sha256Sum;
use crate::format::codec::{Content, Trailer, frame_bytes};
use crate::format::frames::FrameCompressor;
use crate::format::segment_index::IndexBuilder;
use crate::store::{Body, BodyWriter};

/// Threads at the most, on any number of cores: each needs some 5 MiB, and 60 MiB at the highest level.
const MOST_THREADS: usize = 8;
/// Threads that work on one file at the most.
const MOST_THREADS_FOR_A_FILE: u64 = 4;
/// Memory that nobody used for this time, or up to twice as long, is let go.
const UNUSED: Duration = Duration::from_mins(1);

/// Compresses files, several at a time.
#[derive(Debug)]
pub struct Compressor {
    level: i32,
    memory_bytes: usize,
    threads: usize,
    turns: Arc<Semaphore>,
    /// Threads' memory that is used again: its pages are there already. At most one for each thread.
    workspaces: Mutex<Vec<Workspace>>,
    /// Buffers of bodies that were stored, to be used again. At most two for each thread: one is filled, one sent.
    buffers: Mutex<Vec<BytesMut>>,
    /// Whether a file was compressed since the last look.
    is_used: AtomicBool,
}

/// What a thread compresses with.
struct Workspace {
    zstd: FrameCompressor,
    content: Vec<u8>,
    frame: Vec<u8>,
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workspace").finish_non_exhaustive()
    }
}

impl Compressor {
    /// `level` is zstd's. At most `memory_bytes` of a compressed file are kept in memory; the rest goes to an
    /// unlinked temporary file. `threads` work at the same time, but not more than eight. Files have their turns first
    /// come, first served; threads for which no file waits help with one.
    #[must_use]
    pub fn new(level: i32, memory_bytes: usize, threads: usize) -> Arc<Self> {
        let threads = threads.clamp(1, MOST_THREADS);
        Arc::new(Self {
            level,
            memory_bytes,
            threads,
            turns: Arc::new(Semaphore::new(threads)),
            workspaces: Mutex::default(),
            buffers: Mutex::default(),
            is_used: AtomicBool::new(false),
        })
    }

    /// The stored object that the file becomes.
    ///
    /// # Errors
    /// `Internal` where the file cannot be read.
    pub(crate) async fn compress(self: &Arc<Self>, source: &Arc<WalFile>) -> Result<(Body, Trailer)> {
        self.is_used.store(true, Ordering::Relaxed);
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.map_err(|error| Error::defect("compress", error))?;
        let pieces = source.size.div_ceil(frame_bytes(self.level) as u64);
        let helpers = (1..pieces.min(MOST_THREADS_FOR_A_FILE))
            .map_while(|_| Arc::clone(&self.turns).try_acquire_owned().ok())
            .collect();
        let (compressor, source) = (Arc::clone(self), Arc::clone(source));
        let (sender, compressed) = oneshot::channel();
        let work = move || {
            let done = compressor.work(&source, helpers);
            // The turn stays taken where a file hangs, even if nobody waits for it any more.
            drop(turn);
            let _ = sender.send(done);
        };
        thread::Builder::new().spawn(work).map_err(no_thread)?;
        compressed
            .await
            .unwrap_or_else(|error| Err(Error::defect("compress", error)))
    }

    fn work(&self, source: &WalFile, helpers: Vec<OwnedSemaphorePermit>) -> Result<(Body, Trailer)> {
        let buffer = lock(&self.buffers).pop().unwrap_or_default();
        let body = BodyWriter::reusing(buffer, self.memory_bytes);
        let object = Object::new(source, frame_bytes(self.level), body)?;
        thread::scope(|scope| {
            for turn in helpers {
                let help = || {
                    self.add_frames(source, &object);
                    drop(turn);
                };
                // Without a helper the file only takes longer.
                let _ = thread::Builder::new().spawn_scoped(scope, help);
            }
            self.add_frames(source, &object);
        });
        object.finish(source)
    }

    /// Takes pieces, and adds their frames to the object, until there are no more.
    fn add_frames(&self, source: &WalFile, object: &Object) {
        let add = || {
            let mut workspace = self.workspace()?;
            while let Some(number) = object.read(source, &mut workspace.content)? {
                workspace
                    .zstd
                    .compress(&workspace.content, &mut workspace.frame)?;
                object.add(number, &workspace.frame)?;
            }
            let mut workspaces = lock(&self.workspaces);
            if workspaces.len() < self.threads {
                workspaces.push(workspace);
            }
            Ok(())
        };
        if let Err(error) = add() {
            object.fail(error);
        }
    }

    fn workspace(&self) -> Result<Workspace> {
        if let Some(workspace) = lock(&self.workspaces).pop() {
            return Ok(workspace);
        }
        Ok(Workspace {
            zstd: FrameCompressor::new(self.level)?,
            content: Vec::new(),
            frame: Vec::new(),
        })
    }

    /// Keeps the memory of a body that is not needed any more for the next one.
    pub(crate) fn take_back(&self, body: Body) {
        let mut buffers = lock(&self.buffers);
        if buffers.len() < 2 * self.threads {
            buffers.extend(body.into_buffer());
        }
    }

    /// Lets go of memory that is not used.
    pub(crate) async fn release_unused(&self) -> Infallible {
        loop {
            tokio::time::sleep(UNUSED).await;
            self.release_if_unused();
        }
    }

    fn release_if_unused(&self) {
        if !self.is_used.swap(false, Ordering::Relaxed) {
            drop(std::mem::take(&mut *lock(&self.workspaces)));
            drop(std::mem::take(&mut *lock(&self.buffers)));
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_thread(error: std::io::Error) -> Error {
    Error::io("start a thread", error)
}

/// A file on its way through the threads.
struct Object {
    reading: Mutex<Reading>,
    frames: Mutex<Frames>,
    /// A frame was added, or a thread failed.
    added: Condvar,
}

/// How far the file is read.
struct Reading {
    file: File,
    content: Content,
    /// A segment's.
    index: Option<IndexBuilder>,
    /// Bytes of each piece but the last.
    piece_bytes: usize,
    left: u64,
    next: u64,
}

/// The frames that are put together already.
struct Frames {
    body: BodyWriter,
    next: u64,
    failed: Option<Error>,
}

impl Object {
    fn new(source: &WalFile, piece_bytes: usize, body: BodyWriter) -> Result<Self> {
        Ok(Self {
            reading: Mutex::new(Reading {
                file: source.file()?,
                content: Content::default(),
                index: source.index_builder()?,
                piece_bytes,
                left: source.size,
                next: 0,
            }),
            frames: Mutex::new(Frames {
                body,
                next: 0,
                failed: None,
            }),
            added: Condvar::new(),
        })
    }

    /// Reads the next piece of the file, and returns its number; `None` where nothing is left. Another thread may read
    /// once this has returned.
    fn read(&self, source: &WalFile, piece: &mut Vec<u8>) -> Result<Option<u64>> {
        lock(&self.reading).next(source, piece)
    }

    /// Adds a frame after those before it.
    fn add(&self, number: u64, frame: &[u8]) -> Result<()> {
        let is_early = |frames: &mut Frames| frames.next != number && frames.failed.is_none();
        let frames = self.added.wait_while(lock(&self.frames), is_early);
        let mut frames = frames.unwrap_or_else(PoisonError::into_inner);
        if frames.failed.is_some() {
            return Ok(());
        }
        frames
            .body
            .write_all(frame)
            .map_err(|error| Error::io("write a temporary file (TMPDIR)", error))?;
        frames.next += 1;
        self.added.notify_all();
        Ok(())
    }

    /// Ends the work of all threads. The first error counts.
    fn fail(&self, error: Error) {
        lock(&self.frames).failed.get_or_insert(error);
        lock(&self.reading).left = 0;
        self.added.notify_all();
    }

    fn finish(self, source: &WalFile) -> Result<(Body, Trailer)> {
        let Frames { mut body, failed, .. } =
            self.frames.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = failed {
            return Err(error);
        }
        let reading = self.reading.into_inner().unwrap_or_else(PoisonError::into_inner);
        let index = reading.index.and_then(IndexBuilder::finish);
        let frames_sha256 = Sha256Sum(body.sha256());
        let trailer = reading
            .content
            .trailer(source.name, source.system_identifier, index, frames_sha256);
        trailer.write(&mut body)?;
        Ok((body.finish(), trailer))
    }
}

impl Reading {
    fn next(&mut self, source: &WalFile, piece: &mut Vec<u8>) -> Result<Option<u64>> {
        // An empty file has one frame, too.
        if self.left == 0 && (self.next > 0 || source.size > 0) {
            return Ok(None);
        }
        piece.resize(self.left.min(self.piece_bytes as u64) as usize, 0);
        self.file.read_exact(piece).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::internal(format!(
                "{} became shorter than {} bytes while it was read; push it again when nothing changes it",
                source.path.display(),
                source.size
            )),
            _ => Error::io(format!("read {}", source.path.display()), error),
        })?;
        self.content.update(piece);
        if let Some(index) = &mut self.index {
            index.feed(piece);
        }
        self.left -= piece.len() as u64;
        self.next += 1;
        Ok(Some(self.next - 1))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::future::poll_fn;
    use std::path::Path;
    use std::task::Poll;
    use std::time::{Duration, Instant};

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

    // Seen to fail: `cluster/compressor.rs`: what is used is let go; what is not used is kept
    #[tokio::test]
    async fn memory_that_nobody_used_for_a_while_is_let_go() {
        let top = tempfile::tempdir().unwrap();
        let compressor = Compressor::new(1, 64 << 20, 2);
        let file = source(&top.path().join("file"), &vec![7; 4 << 20]);
        let (body, _) = compressor.compress(&file).await.unwrap();
        compressor.take_back(body);
        let kept = || {
            (
                lock(&compressor.workspaces).len(),
                lock(&compressor.buffers).len(),
            )
        };
        compressor.release_if_unused();
        assert!(
            kept().0 > 0 && kept().1 == 1,
            "it was used just now: {:?}",
            kept()
        );
        compressor.release_if_unused();
        assert_eq!(kept(), (0, 0));
    }

    // Seen to fail: `crates/store/src/body_writer.rs`: the buffer is not cleared; `cluster/compressor.rs`: a frame does not
    // wait for those before it
    #[tokio::test]
    async fn what_is_stored_is_what_was_hashed_whatever_the_buffers_held_before_and_however_many_threads_work()
     {
        for threads in [1, 4] {
            round_trips(threads).await;
        }
    }

    async fn round_trips(threads: usize) {
        let top = tempfile::tempdir().unwrap();
        let compressor = Compressor::new(9, 64 << 20, threads);
        for length in [9 << 20, 1000, 0, 700_000, 8 << 20] {
            // The first frame takes much longer than those after it.
            let content: Vec<u8> = (0..length)
                .map(|at: u32| match at as usize / frame_bytes(9) {
                    0 => {
                        (at.wrapping_mul(0x9E37_79B1)
                            .rotate_left(13)
                            .wrapping_mul(0x85EB_CA6B)
                            >> 28) as u8
                    }
                    later => later as u8,
                })
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
            assert_eq!(lock(&compressor.buffers).len(), 1);
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

    // Seen to fail: `cluster/compressor.rs`: a failure wakes nobody
    #[test]
    fn a_thread_that_waits_for_its_turn_ends_when_another_fails() {
        let top = tempfile::tempdir().unwrap();
        let source = source(&top.path().join("file"), &[1; 2000]);
        let object = Arc::new(Object::new(&source, 1000, BodyWriter::new(1 << 20)).unwrap());
        let waiting = thread::spawn({
            let object = Arc::clone(&object);
            move || object.add(1, b"the second frame")
        });
        thread::sleep(Duration::from_millis(100));
        assert!(!waiting.is_finished());
        object.fail(Error::internal("the first frame failed"));
        let begun = Instant::now();
        while !waiting.is_finished() && begun.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(waiting.is_finished());
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
        assert_eq!((lock(&compressor.buffers).len(), held.len()), (0, 10));
    }
}
