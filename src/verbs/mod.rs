//! The commands, a module each. One takes values and returns a report; it prints nothing.

pub mod basebackup;
pub mod doctor;
pub mod drill;
pub mod expire;
pub mod keep;
pub mod list;
pub mod patroni_bootstrap;
pub mod push;
pub mod repair;
pub mod restore;
pub mod seed;
pub mod setup;
pub mod status;
pub mod timeline;
pub mod verify;
