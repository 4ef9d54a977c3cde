//! When an agent ends: nobody asked for a while, what it serves is gone, or it is out of date.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::server::data_directory::postmaster_pid;
use walship_client::protocol::FileIdentity;

/// How often it looks.
const LOOK: Duration = Duration::from_secs(2);

/// When a client last needed the agent, and whether it runs jobs.
#[derive(Debug)]
pub(super) struct Activity {
    last: Mutex<Instant>,
    jobs: AtomicUsize,
    /// There is a reason to end, and only running jobs keep the agent.
    leaving: AtomicBool,
}

/// A job that runs; it keeps the agent alive.
pub(super) struct Busy(Arc<Activity>);

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            last: Mutex::new(Instant::now()),
            jobs: AtomicUsize::new(0),
            leaving: AtomicBool::new(false),
        })
    }

    pub(super) fn note(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// A job begins, and runs until what this returns is dropped.
    pub(super) fn hold(self: &Arc<Self>) -> Busy {
        self.jobs.fetch_add(1, Ordering::SeqCst);
        Busy(Arc::clone(self))
    }

    /// Whether the agent ends once its jobs have ended: no other job shall begin.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// Whether a job runs, or somebody is told of its end.
    pub(super) fn is_busy(&self) -> bool {
        self.jobs.load(Ordering::SeqCst) > 0
    }

    fn idle(&self) -> Duration {
        if self.is_busy() {
            return Duration::ZERO;
        }
        self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.note();
        self.0.jobs.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What an agent's life depends on.
#[derive(Debug)]
pub(super) struct Life {
    data_directory: PathBuf,
    /// The program and the configuration file, as they were when it started.
    files: Vec<(PathBuf, Option<FileIdentity>)>,
    idle_timeout: Option<Duration>,
}

impl Life {
    /// Without an `idle_timeout` an idle agent goes on, and outlives its server.
    pub(super) fn new(data_directory: &Path, files: Vec<PathBuf>, idle_timeout: Option<Duration>) -> Self {
        let files = files.into_iter().map(|path| {
            let file = identity_of(&path);
            (path, file)
        });
        Self {
            data_directory: data_directory.to_owned(),
            files: files.collect(),
            idle_timeout,
        }
    }

    /// Returns when there is a reason to end, with a text that says it.
    pub(super) async fn over(&self, activity: &Activity) -> String {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Some(reason) = self.reason_to_end_now(activity) {
                return reason;
            }
        }
    }

    /// An hour's backup is not thrown away because walship was updated.
    fn reason_to_end_now(&self, activity: &Activity) -> Option<String> {
        let reason = self.reason(activity.idle());
        activity.leaving.store(reason.is_some(), Ordering::SeqCst);
        reason.filter(|_| !activity.is_busy() || self.is_gone())
    }

    fn is_gone(&self) -> bool {
        !self.data_directory.join("global/pg_control").exists()
    }

    fn reason(&self, idle: Duration) -> Option<String> {
        if self.is_gone() {
            return Some(format!("{} is gone", self.data_directory.display()));
        }
        let changed = self.files.iter().find(|(path, file)| identity_of(path) != *file);
        if let Some((path, _)) = changed {
            return Some(format!("{} has changed", path.display()));
        }
        let limit = self.idle_timeout?;
        if idle >= limit {
            return Some(format!("nobody has asked for {} s", idle.as_secs()));
        }
        (!self.has_postmaster()).then(|| "its server has ended".to_owned())
    }

    fn has_postmaster(&self) -> bool {
        let pid = postmaster_pid(&self.data_directory).and_then(rustix::process::Pid::from_raw);
        pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
    }
}

fn identity_of(path: &Path) -> Option<FileIdentity> {
    std::fs::metadata(path).ok().as_ref().map(FileIdentity::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_directory() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("global")).unwrap();
        std::fs::write(root.path().join("global/pg_control"), "").unwrap();
        std::fs::write(
            root.path().join("postmaster.pid"),
            format!("{}\n", std::process::id()),
        )
        .unwrap();
        root
    }

    #[test]
    fn it_ends_when_idle_or_when_what_it_serves_is_gone_or_it_is_out_of_date() {
        let root = data_directory();
        let config = root.path().join("walship.toml");
        std::fs::write(&config, "").unwrap();
        let life = Life::new(root.path(), vec![config.clone()], Some(Duration::from_mins(1)));
        assert_eq!(life.reason(Duration::ZERO), None);
        assert!(life.reason(Duration::from_mins(2)).unwrap().contains("asked"));
        std::fs::remove_file(root.path().join("postmaster.pid")).unwrap();
        assert!(life.reason(Duration::ZERO).unwrap().contains("server"));
        std::fs::write(&config, "archive = \"file:///a\"").unwrap();
        assert!(life.reason(Duration::ZERO).unwrap().contains("walship.toml"));
        std::fs::remove_file(root.path().join("global/pg_control")).unwrap();
        assert!(life.reason(Duration::ZERO).unwrap().contains("gone"));
    }

    // Seen to fail: `agent/life.rs`: jobs do not count
    #[test]
    fn a_running_job_keeps_an_agent_that_is_out_of_date_and_no_other_job_begins() {
        let root = data_directory();
        let config = root.path().join("walship.toml");
        std::fs::write(&config, "").unwrap();
        let life = Life::new(root.path(), vec![config.clone()], Some(Duration::from_millis(1)));
        let activity = Activity::new();
        let job = activity.hold();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(life.reason_to_end_now(&activity), None);
        assert!(!activity.is_leaving(), "a job is no idleness");
        std::fs::write(&config, "archive = \"file:///a\"").unwrap();
        assert_eq!(life.reason_to_end_now(&activity), None);
        assert!(activity.is_leaving());
        drop(job);
        assert!(
            life.reason_to_end_now(&activity)
                .unwrap()
                .contains("walship.toml")
        );
        let _job = activity.hold();
        std::fs::remove_file(root.path().join("global/pg_control")).unwrap();
        assert!(life.reason_to_end_now(&activity).unwrap().contains("gone"));
    }

    #[test]
    fn without_an_idle_timeout_it_outlives_its_server() {
        let root = data_directory();
        std::fs::remove_file(root.path().join("postmaster.pid")).unwrap();
        let life = Life::new(root.path(), Vec::new(), None);
        assert_eq!(life.reason(Duration::from_hours(100)), None);
    }
}
