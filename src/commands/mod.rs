//! One file for each verb. A command takes values and returns a report; it prints nothing.

pub mod basebackup;
pub mod catalogue;
pub mod clone_mark;
mod counted;
pub mod doctor;
pub mod drill;
pub mod expire;
pub mod identity;
pub mod keep;
pub mod list;
pub mod patroni_bootstrap;
pub mod programs;
pub mod progress;
pub mod push;
mod records;
pub mod recover;
pub mod repair;
pub mod restore;
pub mod seed;
pub mod setup;
pub mod status;
pub mod stored_wal;
mod table;
pub mod time_index;
mod unnamed_file;
pub mod verify;
pub mod wal_changes;
