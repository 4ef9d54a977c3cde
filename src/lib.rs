//! walship keeps a PostgreSQL cluster recoverable to any moment from an object store.
//!
//! The library exists for the binary and for its tests; `ARCHITECTURE.md` is the map.

pub mod agent;
pub mod archive;
pub mod commands;
pub mod config;
pub mod error;
pub mod pg;
pub mod store;

pub use error::{Error, ErrorKind, Result};
