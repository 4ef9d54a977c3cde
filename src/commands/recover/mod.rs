//! `walship recover`: restores a backup into an empty directory, ready to recover to a target.

mod configuration;
mod decompress;
mod destination;
mod extract;
mod files;
#[cfg(test)]
mod fixture;
mod guc_file;
mod index;
mod layout;
mod restore;
mod schedule;
mod settings;
mod space;
mod start_command;
mod survey;
mod tablespace_map;
#[cfg(test)]
mod tests;

pub use layout::TablespaceMapping;
pub use settings::TargetAction;
