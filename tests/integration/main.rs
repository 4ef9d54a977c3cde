//! What crosses a process: real PostgreSQL, real object stores, the built binary.
//!
//! One binary, so that its tests share the store servers they start.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::must_use_candidate,
    clippy::case_sensitive_file_extension_comparisons,
    clippy::large_stack_arrays
)]

mod agent;
mod agent_chaos;
mod allegiance;
mod archive_moved;
mod bad_input;
mod base_backup_stream;
mod basebackup;
mod broken_reads;
mod broken_wal;
mod connection;
mod copies;
mod damage;
mod doctor;
mod drill;
mod durability;
mod expire;
mod false_server;
mod forks;
mod format;
mod known_damage;
mod limits;
mod lineage;
mod local_backup;
mod metrics;
mod model;
mod patroni;
mod pgbouncer;
mod push;
mod recover;
mod recovery;
mod repair;
mod replica;
mod replicas_page;
mod restore;
mod s3_settings;
mod sample;
mod schedule;
mod seed;
mod server;
mod session;
mod setup;
mod status;
mod store_contract;
mod store_directory;
mod store_faults;
mod support;
mod timelines;
mod tls;
mod unfinished;
mod verify;
mod verify_many;
mod wal_boundaries;
mod wal_changes;
mod window;
