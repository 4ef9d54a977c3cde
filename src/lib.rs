//! walship keeps a PostgreSQL cluster recoverable to any moment from an object store.
//!
//! The library exists for the binary and for its tests; `ARCHITECTURE.md` is the map.

pub mod agent;
pub mod archive;
pub mod cluster;
pub mod config;
#[cfg(test)]
mod flipped_bits;
pub mod progress;
pub mod server;
pub mod verbs;

pub use walship_core::{Error, ErrorKind, Result, error, format, judge, pg, text};
pub use walship_store as store;
