//! `walship patroni-replica` and `walship patroni-bootstrap`, as Patroni calls them.

mod args;
mod bootstrap;
mod replica;

pub use self::args::{PatroniBootstrapArgs, PatroniReplicaArgs};
