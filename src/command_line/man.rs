//! `walship man`.

use std::io::Write;
use std::process::ExitCode;

use clap::CommandFactory;

use super::Cli;
use crate::edge::print::write_out;
use crate::error::{Error, Result};

pub(super) fn run() -> Result<ExitCode> {
    let mut page = Vec::new();
    manual(&mut page).map_err(|error| Error::io("make the manual page", error))?;
    write_out(&page)
}

/// One page: walship itself, and then each command with its options.
fn manual(page: &mut Vec<u8>) -> std::io::Result<()> {
    clap_mangen::Man::new(Cli::command()).render(page)?;
    for command in Cli::command().get_subcommands() {
        let name = format!("walship {}", command.get_name());
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let command = command.clone().bin_name(&name).disable_help_flag(true);
        let has_options = command.get_arguments().next().is_some();
        let section = clap_mangen::Man::new(command.disable_version_flag(true));
        let mut text = Vec::new();
        section.render_synopsis_section(&mut text)?;
        if has_options {
            section.render_options_section(&mut text)?;
        }
        let text = String::from_utf8_lossy(&text).replace(".SH ", ".SS ");
        // A line must not begin with a dot or an apostrophe, which roff would take for a request.
        write!(page, ".SH {}\n\\&{about}.\n{text}", name.to_uppercase())?;
    }
    Ok(())
}
