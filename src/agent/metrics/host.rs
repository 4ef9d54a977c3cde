//! This process, under the names that every client library uses, and free space where walship needs it.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::edge::exposition::Family;

const ANSWER_TIME: Duration = Duration::from_secs(2);

pub(super) struct Host {
    directories: Vec<(&'static str, PathBuf)>,
    started: f64,
}

impl Host {
    pub(super) fn new(directories: Vec<(&'static str, PathBuf)>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            directories,
            started: now.map_or(0.0, |now| now.as_secs_f64()),
        }
    }

    pub(super) async fn now(&self) -> Vec<Family> {
        let mut families = process();
        families.push(
            Family::gauge("process_start_time_seconds", "When this process started").of(Some(self.started)),
        );
        // A file system whose server is gone never answers.
        let directories = self.directories.clone();
        let looking = tokio::task::spawn_blocking(move || space(&directories));
        if let Ok(Ok(space)) = tokio::time::timeout(ANSWER_TIME, looking).await {
            families.extend(space);
        }
        families
    }
}

fn space(directories: &[(&'static str, PathBuf)]) -> [Family; 2] {
    let mut size = Family::gauge(
        "walship_filesystem_size_bytes",
        "Size of the file system of a directory",
    );
    let mut free = Family::gauge("walship_filesystem_avail_bytes", "Space there that is free");
    for (what, path) in directories {
        if let Ok(found) = rustix::fs::statvfs(path) {
            let labels = vec![("directory", (*what).to_owned())];
            size.push(labels.clone(), (found.f_blocks * found.f_frsize) as f64);
            free.push(labels, (found.f_bavail * found.f_frsize) as f64);
        }
    }
    [size, free]
}

/// From `/proc/self` (proc_pid_stat(5), proc_pid_statm(5)).
fn process() -> Vec<Family> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let stat = read("stat");
    // The name of the program, in parentheses, may have spaces.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |number: usize| fields.get(number)?.parse::<f64>().ok();
    let cpu = ticks(11)
        .zip(ticks(12))
        .map(|(user, system)| (user + system) / rustix::param::clock_ticks_per_second() as f64);
    let pages = read("statm")
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<f64>().ok());
    let files = std::fs::read_dir("/proc/self/fd")
        .ok()
        .map(|files| files.count() as f64);
    vec![
        Family::counter("process_cpu_seconds", "CPU time of this process").of(cpu),
        Family::gauge("process_resident_memory_bytes", "Memory of this process")
            .of(pages.map(|pages| pages * rustix::param::page_size() as f64)),
        Family::gauge("process_open_fds", "Open files of this process").of(files),
    ]
}
