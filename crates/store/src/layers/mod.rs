//! Layers over a store, each a store itself.

#[cfg(feature = "faults")]
pub(crate) mod faults;
pub(crate) mod meter;
