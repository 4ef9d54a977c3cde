//! The archive: its identity, its catalogue, its WAL, its backups' parts, and the small records beside them.

mod branch_ends;
pub mod catalogue;
pub mod drills;
pub mod find_record;
#[cfg(test)]
pub(crate) mod fixture;
pub mod identity;
pub mod ledger;
pub mod lineage;
pub mod parts;
pub(crate) mod records;
pub mod stored_wal;
pub mod time_index;
pub mod wal_changes;
