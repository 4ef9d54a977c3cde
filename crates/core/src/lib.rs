//! The pure part of walship: values in, values out. No I/O, no clock, no environment; `Cargo.toml` holds it to that.

pub mod error;
pub mod format;
pub mod judge;
pub mod pg;
pub mod text;

pub use error::{Error, ErrorKind, Result};
