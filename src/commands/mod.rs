//! One file for each verb. A command takes values and returns a report; it prints nothing.

pub mod apart;
pub mod basebackup;
mod branch_ends;
pub mod catalogue;
pub mod doctor;
pub mod drill;
pub mod expire;
#[cfg(test)]
mod flipped_bits;
pub mod identity;
pub mod keep;
mod lineage;
pub mod list;
pub mod neighbours;
pub mod patroni_bootstrap;
pub mod programs;
pub mod progress;
pub mod push;
mod records;
pub mod recover;
pub mod remembered;
pub mod repair;
pub mod restore;
pub mod seed;
pub mod setup;
pub mod status;
pub mod stored_wal;
pub mod time_index;
pub mod timeline;
mod unnamed_file;
pub mod verify;
pub mod wal_changes;
