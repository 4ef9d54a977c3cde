//! One PostgreSQL server: how it is reached, what it is asked, its data directory, and base
//! backups of it.

pub mod archive_status;
mod base_backup;
mod connection;
mod conninfo;
pub mod data_directory;
pub mod deadline;
pub mod facts;
pub mod server_settings;
pub mod session;
mod tls;
mod tls_verifier;
mod x509;

pub use base_backup::{
    BaseBackupOptions, BaseBackupStream, Event, LocalBackup, OwnDirectory, TablespaceHeader,
};
pub use connection::{Connection, ScriptEvent, SlotState};
pub use conninfo::ConnInfo;
pub(crate) use conninfo::{os_user, passfile, user_name};
