//! `walship recover`: restores a backup into an empty directory, ready to recover to a target. `cluster/recovery.rs`
//! does it.

mod args;

pub use self::args::RecoverArgs;
