//! The servers that run on this machine, as far as this user may look at their processes.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::server::data_directory::{cluster_identity, postmaster_pid};

/// The data directories of a cluster's running servers, which are their working directories.
#[must_use]
pub fn of_cluster(system_identifier: u64) -> Vec<PathBuf> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let postmasters = processes.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
        let directory = std::fs::read_link(entry.path().join("cwd")).ok()?;
        (postmaster_pid(&directory) == Some(pid)).then_some(directory)
    });
    let directories: BTreeSet<PathBuf> = postmasters.collect();
    let is_its = |directory: &PathBuf| {
        cluster_identity(directory)
            .is_ok_and(|found| found.is_some_and(|it| it.system_identifier == system_identifier))
    };
    directories.into_iter().filter(is_its).collect()
}
