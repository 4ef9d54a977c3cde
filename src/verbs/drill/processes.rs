//! Ends processes that work in a directory, and no others. A process is known by its working directory. A handle on the
//! process is taken before its directory is looked at, so that a later process of the same number is not hit.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{Error, Result};

/// A server that does not end within this time after SIGQUIT is killed.
const QUIT_LIMIT: Duration = Duration::from_secs(20);
/// A killed process should be gone within this time.
const KILL_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// A process that works in the directory.
struct Worker {
    pid: Pid,
    handle: OwnedFd,
}

/// Ends every process whose working directory is in `directory`. `first`, a server's postmaster, gets SIGQUIT and ends
/// its own children; processes that are left after a while get SIGKILL.
///
/// # Errors
/// `Internal` where a process outlives that, or where processes cannot be looked at.
pub async fn end_all_in(directory: &Path, first: Option<i32>) -> Result<()> {
    if let Some(postmaster) = first.and_then(|pid| worker(pid, directory)) {
        let _ = pidfd_send_signal(&postmaster.handle, Signal::QUIT);
        // It ends after its children.
        let left = || {
            Ok(worker(postmaster.pid.as_raw_nonzero().get(), directory)
                .into_iter()
                .collect())
        };
        gone(left, QUIT_LIMIT).await?;
    }
    for worker in workers_in(directory)? {
        let _ = pidfd_send_signal(&worker.handle, Signal::KILL);
    }
    let left = gone(|| workers_in(directory), KILL_LIMIT).await?;
    if left.is_empty() {
        return Ok(());
    }
    let pids: Vec<_> = left
        .iter()
        .map(|worker| worker.pid.as_raw_nonzero().to_string())
        .collect();
    Err(Error::internal(format!(
        "processes that work in {} did not end: {}; end them, then run walship drill --clean",
        directory.display(),
        pids.join(", ")
    )))
}

/// Waits at most `limit` until no process is left. Returns those that are.
async fn gone(mut left: impl FnMut() -> Result<Vec<Worker>>, limit: Duration) -> Result<Vec<Worker>> {
    let begun = Instant::now();
    loop {
        let left = left()?;
        if left.is_empty() || begun.elapsed() > limit {
            return Ok(left);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn workers_in(directory: &Path) -> Result<Vec<Worker>> {
    let processes = std::fs::read_dir("/proc").map_err(|error| Error::io("read /proc", error))?;
    let pids = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    Ok(pids.filter_map(|pid| worker(pid, directory)).collect())
}

/// The process with this number, if it works in the directory. Another user's process cannot be looked at, and is not
/// ours.
fn worker(pid: i32, directory: &Path) -> Option<Worker> {
    let id = Pid::from_raw(pid)?;
    let handle = pidfd_open(id, PidfdFlags::empty()).ok()?;
    // If the directory was removed meanwhile, " (deleted)" follows its name.
    let working = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    working
        .starts_with(directory)
        .then_some(Worker { pid: id, handle })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn sleeper(directory: &Path) -> Child {
        Command::new("sleep")
            .arg("60")
            .current_dir(directory)
            .spawn()
            .unwrap()
    }

    /// Waits in another thread, because a zombie still has a number.
    fn reaped(mut child: Child) -> std::thread::JoinHandle<bool> {
        std::thread::spawn(move || child.wait().unwrap().success())
    }

    #[tokio::test]
    async fn only_processes_that_work_in_the_directory_are_ended() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        let (ours, beside) = (top.join("a"), top.join("ab"));
        for directory in [&ours, &beside] {
            std::fs::create_dir(directory).unwrap();
        }
        let mut other = sleeper(&beside);
        let first = sleeper(&ours);
        let pid = i32::try_from(first.id()).unwrap();
        let ended = [reaped(first), reaped(sleeper(&ours))];
        end_all_in(&ours, Some(pid)).await.unwrap();
        assert!(ended.into_iter().all(|child| !child.join().unwrap()));
        assert!(other.try_wait().unwrap().is_none());
        // A number that belongs to somebody else now is left alone.
        end_all_in(&ours, Some(i32::try_from(other.id()).unwrap()))
            .await
            .unwrap();
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
