//! A data directory on this machine: which archive it remembers, how a file of its `pg_wal` gets into the archive, and
//! how a new one is made from an archive or a primary, filled, configured and started.

mod alive;
pub mod apart;
mod archiving;
pub mod compressor;
mod configuration;
mod destination;
mod extract;
mod files;
mod layout;
mod made;
pub mod neighbours;
pub mod part_writer;
pub(crate) mod primary;
pub mod programs;
mod recovery;
pub mod remembered;
mod report;
mod restore;
mod restore_command;
pub mod seed_source;
mod settings;
mod shell;
mod source_settings;
mod space;
mod standby;
mod start_command;
pub mod survey;
mod tablespace_map;
pub mod tablespaces;
#[cfg(test)]
mod tests;
pub mod unnamed_file;
pub mod wal_file;

pub use self::archiving::ArchiveMode;
pub use self::configuration::ConfigurationReport;
pub use self::layout::TablespaceMapping;
pub(crate) use self::made::remove;
pub(crate) use self::recovery::restore;
pub use self::recovery::{RecoverOptions, SourceConfiguration, recover, refuse_root, refuse_root_for};
pub use self::report::RecoverReport;
pub use self::restore_command::{restore_command, server_command};
pub use self::settings::{StandbySettings, TargetAction};
pub(crate) use self::shell::shell_word;
pub(crate) use self::source_settings::has_in_place_tablespaces;
pub(crate) use self::space::free_bytes;
pub use self::standby::{
    RestoredStandby, StandbyOptions, check_empty, check_room, make_standby, newest_as_standby, plan_standby,
    restore_standby, standby_start_command,
};
