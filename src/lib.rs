//! walship keeps a PostgreSQL cluster recoverable to any moment from an object store.
//!
//! `ARCHITECTURE.md` is the map.
#![allow(clippy::doc_markdown, rustdoc::bare_urls)] // what stands in a comment at a flag is shown by --help as it is
#![allow(rustdoc::private_intra_doc_links)] // nobody outside calls it

mod agent;
mod archive;
mod cluster;
mod command_line;
mod config;
mod edge;
#[cfg(test)]
mod flipped_bits;
mod progress;
mod server;
mod verbs;

pub use command_line::main;
use walship_core::{Error, ErrorKind, error, format, judge, pg, text};
use walship_store as store;

/// What `tests/integration` calls from within.
#[doc(hidden)]
pub mod inside {
    pub use crate::archive::Archive;
    pub use crate::archive::ledger::last_verification;
    pub use crate::archive::time_index::TimeIndex;
    pub use crate::progress::Progress;
    pub use crate::server::{BaseBackupOptions, BaseBackupStream, ConnInfo, Connection, Event};

    pub mod basebackup {
        pub use crate::verbs::basebackup::{BasebackupOptions, BasebackupReport, Method, PartSettings, run};
    }

    pub mod keep {
        pub use crate::verbs::keep::{Mark, run};
    }

    pub mod repair {
        pub use crate::verbs::repair::{RepairOptions, RepairReport, run};
    }

    pub mod verify {
        pub use crate::verbs::verify::{FindingKind, VerifyOptions, VerifyReport, run};
    }
}
