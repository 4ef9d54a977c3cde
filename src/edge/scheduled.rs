//! A command that an agent runs as a job of its schedule: how it is started, and what it does first.

use std::process::Command;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::absolute;
use crate::config::Settings;
use crate::error::{Error, Result};

/// The flag that says which agent runs a command.
const FLAG: &str = "--scheduled-by";

/// This program with the same settings, as a job of this process. Settings from elsewhere than the file go into its
/// environment, which is this process's own otherwise.
///
/// # Errors
/// `Internal` where this program cannot be found.
pub fn command(settings: &Settings, words: &[&str]) -> Result<Command> {
    let program = std::env::current_exe().map_err(|error| Error::io("find this program", error))?;
    let mut command = Command::new(program);
    let (file, variables) = settings.to_reproduce();
    command.args(words);
    if let Some(file) = file {
        command.arg("--config").arg(absolute(file)?);
    }
    command.envs(variables);
    command.arg(FLAG).arg(std::process::id().to_string());
    Ok(command)
}

/// Ends this process with the agent that started it, however that ends. To be called first.
///
/// # Errors
/// `Unavailable` where that agent is gone already; `Internal` where the kernel refuses.
pub fn end_with(agent: i32) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| Error::io("end together with the agent", error.into()))?;
    // It may have ended before.
    if getppid().map(Pid::as_raw_pid) == Some(agent) {
        return Ok(());
    }
    Err(Error::unavailable(format!(
        "the agent that started this job, process {agent}, is gone"
    )))
}
