//! The commands, a module each: `args.rs` has the flags and prints, the rest takes values and returns a report.

pub mod basebackup;
pub mod doctor;
pub mod drill;
pub mod expire;
pub mod keep;
pub mod list;
pub mod patroni;
pub mod push;
pub mod recover;
pub mod repair;
pub mod restore;
pub mod schedule;
pub mod setup;
pub mod status;
pub mod timeline;
pub mod verify;
