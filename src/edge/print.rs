//! What a command prints.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::error::{Error, Result};

/// Prints a report as JSON, or as a person reads it.
pub fn print<T: Serialize>(report: &T, json: bool, text: impl FnOnce(&T) -> String) -> Result<ExitCode> {
    let text = if json {
        serde_json::to_string_pretty(report).map_err(|error| Error::defect("write JSON", error))?
    } else {
        text(report)
    };
    write_out(format!("{}\n", text.trim_end()).as_bytes())
}

/// Writes to the standard output.
pub fn write_out(bytes: &[u8]) -> Result<ExitCode> {
    let mut out = std::io::stdout();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // The reader has read enough: `walship list | head`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Error::io("write to the standard output", error)),
    }
}

/// Reports an error as one line. Errors in the settings are reported before logging starts, and always as text.
pub fn report(error: &Error) {
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{error}");
    } else {
        say(&format!("walship: {error}"));
    }
}

/// Writes a line to stderr if it can be written. Where it cannot, as on a full disk, `eprintln!` would panic. A panic
/// in a panic ends with a signal, which PostgreSQL's archiver does not survive.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
