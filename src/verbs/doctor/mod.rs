//! `walship doctor`: asks the server, the store and this machine at the same time. Each question has a deadline, and
//! `judge::diagnosis` judges the answers.

mod archive;
mod args;
mod before_promote;
mod host;
mod report;
#[cfg(test)]
mod tests;

pub use self::args::DoctorArgs;
use std::path::PathBuf;

use chrono::Utc;

use crate::error::{Error, Result};
use crate::format::keys::{self, Key};
use crate::judge::diagnosis::facts::{ArchiveFacts, Facts, ServerFacts};
use crate::judge::diagnosis::{Check, Fact, Limits, judge, judge_promotion};
use crate::pg::WalName;
use crate::server::{ConnInfo, facts};
use crate::store::Store;

pub use crate::server::deadline::Deadline;
use crate::server::session::Session;
pub use host::HostOptions;
pub use report::DoctorReport;

/// What to look at and how.
#[derive(Debug, Clone)]
pub struct DoctorOptions {
    /// The server's data directory on this machine, for when the server does not tell it or is down.
    pub pgdata: Option<PathBuf>,
    /// Where warnings begin.
    pub limits: Limits,
    /// Whether this host deletes from the archive.
    pub expires: bool,
    /// Warnings and problems of these checks are shown but do not count.
    pub ignore: Vec<Check>,
    pub host: HostOptions,
}

/// Makes the diagnosis before the deadline; `store` opens the store. What cannot be found out is a finding, not an
/// error.
pub async fn run(
    options: DoctorOptions,
    deadline: Deadline,
    connection: &ConnInfo,
    store: impl Future<Output = Result<Store>>,
) -> DoctorReport {
    let asking = async {
        let session = Session::open(connection, deadline.earlier()).await;
        let mut session = session.map_err(|error| error.to_string())?;
        let server = facts::gather(&mut session).await?;
        Ok((session, server))
    };
    let ((server, host), (store, mut archive)) = tokio::join!(
        async {
            let server: Fact<(Session, ServerFacts)> = asking.await;
            let facts = server
                .as_ref()
                .ok()
                .map(|(session, facts)| (session.local(), facts));
            let host = host::gather(options.pgdata.as_deref(), facts, &options.host, deadline).await;
            (server, host)
        },
        async {
            let store = deadline.within("open the store", store).await;
            let archive = match &store {
                Ok(store) => Ok(Box::pin(archive::gather(store, options.expires, deadline.earlier())).await),
                Err(why) => Err(why.clone()),
            };
            (store, archive)
        }
    );
    let (mut session, server) = match server {
        Ok((session, facts)) => (Some(session), Ok(facts)),
        Err(why) => (None, Err(why)),
    };
    if let (Ok(archive), Ok(store), Some(session), Ok(server)) = (&mut archive, &store, &mut session, &server)
    {
        compare(archive, store, session, server, deadline).await;
    }
    if let Some(session) = session {
        session.close().await;
    }
    let facts = Facts {
        now: Utc::now(),
        limits: options.limits,
        server,
        archive,
        host,
        expires: options.expires,
    };
    DoctorReport::new(judge(&facts), &options.ignore, facts.now)
}

/// Gathers what needs both the server and the archive. The archive was listed a moment ago and may have got more since.
async fn compare(
    archive: &mut ArchiveFacts,
    store: &Store,
    session: &mut Session,
    server: &ServerFacts,
    deadline: Deadline,
) {
    archive.server_lsn_after = facts::written_up_to(session).await.ok().flatten();
    archive.last_archived = match &server.archiver {
        Ok(archiver) => match &archiver.last_archived {
            None => Ok(None),
            Some(name) => {
                let looking = deadline.within("look for the last archived file", has(archive, store, name));
                looking.await.map(Some)
            }
        },
        Err(why) => Err(why.clone()),
    };
}

async fn has(archive: &ArchiveFacts, store: &Store, name: &str) -> Result<(WalName, bool)> {
    let name: WalName = name.parse()?;
    // If the archive could not be listed, it cannot be asked anything else.
    let catalogue = archive.catalogue.as_ref();
    let catalogue = catalogue.map_err(|why| Error::unavailable(why.clone()))?;
    if let WalName::Segment(segment) = name {
        let number = segment.number(catalogue.wal.segment_size());
        if number.is_ok_and(|number| catalogue.wal.contains(segment.timeline(), number)) {
            return Ok((name, true));
        }
    }
    // It may have arrived after the listing.
    let found = match name {
        WalName::Partial(segment) => {
            let prefix = keys::segment_siblings_prefix(segment);
            store.list(&prefix, None).next().await?.is_some()
        }
        _ => store.head(&Key::of_wal(name)?.to_string()).await?.is_some(),
    };
    Ok((name, found))
}

/// Says before the deadline whether the standby may be promoted. It may not while the archive cannot be asked, or has
/// WAL that the standby has not replayed. As long as there is time, this waits for the replay.
pub async fn before_promote(
    deadline: Deadline,
    connection: &ConnInfo,
    replication: Option<&ConnInfo>,
    store: impl Future<Output = Result<Store>>,
) -> DoctorReport {
    let facts = before_promote::gather(deadline, connection, replication, store).await;
    DoctorReport::new(judge_promotion(&facts), &[], Utc::now())
}
