//! Makes this a process of its own, for an agent that a command of PostgreSQL's started.
#![allow(unsafe_code)] // closing descriptors that this process inherited and nothing in it owns

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::server::data_directory::postmaster_pid;

/// How long the starter may take to end.
const STARTER: Duration = Duration::from_secs(10);

/// Leaves the session and the files of `starter`, the process that started this one, and waits until it
/// has ended. To be called before anything else, while there is no other thread.
///
/// # Errors
/// `Invalid` where this process would become the postmaster's child, as in a container where the postmaster is process
/// 1: PostgreSQL treats the end of a child that it does not know as a crash and restarts (`CleanupBackend`,
/// `postmaster.c`, 14 to 17).
pub fn detach(data_directory: &Path, starter: i32) -> Result<()> {
    // Fails only for the leader of a process group, which then leads its own session anyway.
    let _ = rustix::process::setsid();
    close_inherited();
    let parent = || rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get());
    let begun = Instant::now();
    while parent() == Some(starter) && begun.elapsed() < STARTER {
        std::thread::sleep(Duration::from_millis(5));
    }
    match (parent(), postmaster_pid(data_directory)) {
        (Some(parent), Some(postmaster)) if parent == postmaster => Err(Error::invalid(
            "the postmaster would have to reap this agent; start it outside: walship agent --pgdata DIR",
        )),
        _ => Ok(()),
    }
}

/// Closes all descriptors but the standard ones: PostgreSQL's may be among them, and before version 15 those of its
/// files too.
fn close_inherited() {
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > 2)
        .collect();
    for descriptor in open {
        // SAFETY: called before anything in this process opens a file that it keeps, so that nothing
        // else owns the descriptor. The one that listed the folder is closed already, which does no harm.
        let is_open =
            rustix::io::fcntl_getfd(unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) }).is_ok();
        if is_open {
            // SAFETY: as above.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
}
