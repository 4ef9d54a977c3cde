//! walship keeps a PostgreSQL cluster recoverable to any moment from an object store.
//!
//! The library exists for the binary and for its tests; `ARCHITECTURE.md` is the map.

pub mod agent;
pub mod commands;
pub mod config;
pub mod server;

pub use walship_core::{Error, ErrorKind, Result, error, format, judge, pg, text};
pub use walship_store as store;
