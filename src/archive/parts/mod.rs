//! A backup's parts: what is in them, in which order they are read, and what comes out.

pub mod compare;
pub mod decompress;
pub mod index;
pub mod schedule;
