//! Which archive the server belongs to, and so whether a backup of it may be stored in the given one.
//!
//! A backup joins the archive that is there. It begins one only if it was told to, or if nothing speaks for an earlier
//! one. On the server's own machine its data directory tells which archive it has had, and remembers the new one
//! afterwards. A server on another machine is asked over SQL; if it cannot be asked, an archive is begun only on
//! demand. If such a backup goes to the wrong archive, it is never listed: the server's own pushes go only to the
//! remembered archive, so the backup's WAL never arrives.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::BasebackupOptions;
use super::server::Server;
use crate::archive::Archive;
use crate::cluster::{apart, remembered};
use crate::error::{Context, Error, Result};
use crate::format::keys::{BACKUPS_PREFIX, Key, WAL_PREFIX, timeline_prefix};
use crate::format::remembered::{ARCHIVE_FILE, ArchiveMark, CLONE_FILE, Remembered, ServerPast};
use crate::pg::TimelineId;
use crate::server::data_directory::{has_archived, postmaster, read_control_file};
use crate::server::{ConnInfo, Connection};
use crate::store::Store;

/// The archive that the backup goes to.
///
/// # Errors
/// `Conflict` where the server writes to another archive, or must not write to this one; `Invalid` for another
/// cluster's archive, and where there is none and the backup may not begin one; otherwise as the store.
pub(super) async fn archive(
    options: &BasebackupOptions,
    server: &Server,
    store: &Store,
    now: DateTime<Utc>,
) -> Result<Archive> {
    let here = data_directory_here(server);
    if let Some(directory) = &here {
        apart::check(store.location(), directory)?;
    }
    let past = match &here {
        Some(directory) => past_here(server, directory)?,
        None => past_elsewhere(server, options.session.as_deref()).await?,
    };
    let url = store.location().to_string();
    if options.new_archive {
        let archive = begin(&past, here.as_deref(), server, store, now).await?;
        if let Some(directory) = &here {
            remembered::rejoin(directory, &ArchiveMark::of(url, archive.identity()))?;
        }
        return Ok(archive);
    }
    let archive = match past.sign_of_an_archive() {
        None => Archive::open_or_create(store, server.cluster, now).await?,
        Some(why) => Archive::open_of(store, server.cluster, &why).await?,
    };
    if let Ok(remembered) = &past.remembered {
        let place = here.as_deref().or(server.data_directory.as_deref());
        let place = place.map_or_else(
            || "the data directory".to_owned(),
            |place| place.display().to_string(),
        );
        remembered.check(archive.identity(), &url, &place)?;
    }
    known_timeline(server, &archive).await?;
    if let Some(directory) = &here {
        remembered::join(directory, archive.identity(), &url)?;
    }
    Ok(archive)
}

/// Begins an archive where there is none, or goes on with one that was begun and is still empty.
async fn begin(
    past: &ServerPast,
    here: Option<&Path>,
    server: &Server,
    store: &Store,
    now: DateTime<Utc>,
) -> Result<Archive> {
    let remembered = past.remembered.as_ref().ok();
    if here.is_none() && remembered.is_some_and(|remembered| remembered.archive.is_some()) {
        return Err(Error::conflict(format!(
            "the server's data directory remembers another archive (in its {ARCHIVE_FILE}), and only a walship on its own \
             machine can change that: run walship basebackup --new-archive there, or remove that file first"
        )));
    }
    // Before an archive in a directory is begun, there is not even the directory.
    store.create_root().await?;
    for prefix in [WAL_PREFIX, BACKUPS_PREFIX] {
        let page = store.list(prefix, None).next().await?;
        if let Some(object) = page.and_then(|page| page.into_iter().next()) {
            return Err(Error::conflict(format!(
                "{} cannot become a new archive, because it has {}; leave --new-archive out to use the archive that is \
                 there, or give a URL at which nothing is stored",
                store.location(),
                object.key
            )));
        }
    }
    let archive = Archive::open_or_create(store, server.cluster, now).await?;
    let url = store.location().to_string();
    if let Some(Remembered { clone, .. }) = remembered {
        let clone = Remembered {
            archive: None,
            clone: clone.clone(),
        };
        clone.check(archive.identity(), &url, "the data directory")?;
    }
    Ok(archive)
}

/// Refuses a server that does not archive and whose timeline nobody has archived. It is a copy that was promoted, and
/// its backup would wait for WAL that never comes.
async fn known_timeline(server: &Server, archive: &Archive) -> Result<()> {
    let timeline = server.timeline;
    if server.archives || timeline == TimelineId::FIRST {
        return Ok(());
    }
    let has_history = archive.head(&Key::History(timeline)).await?.is_some();
    if has_history
        || archive
            .store()
            .list(&timeline_prefix(timeline), None)
            .next()
            .await?
            .is_some()
    {
        return Ok(());
    }
    Err(Error::conflict(format!(
        "the server is on timeline {timeline}, the archive {} has nothing of that timeline, and the server's archive_mode is \
         off: it is a copy of the cluster that archives there, and no backup of it can be completed. Nothing was stored. \
         Connect to the primary (check the port); if this server takes its place for good, set archive_mode = on first",
        archive.url()
    )))
}

/// The server's data directory; `None` where it is not on this machine.
fn data_directory_here(server: &Server) -> Option<PathBuf> {
    let directory = server.data_directory.as_deref()?;
    let control = read_control_file(directory).ok()??;
    let is_its = control.system_identifier == server.cluster.system_identifier
        // A standby or a copy in a container may have the same path.
        && postmaster(directory)?.port == server.port;
    is_its.then(|| directory.to_owned())
}

fn past_here(server: &Server, directory: &Path) -> Result<ServerPast> {
    let done = has_archived(directory)?;
    let archived = done.then(|| "pg_wal/archive_status has a .done file".to_owned());
    Ok(ServerPast {
        remembered: Ok(remembered::read(directory)?),
        archived: archived.or_else(|| as_a_standby(server)),
        timeline: server.timeline,
    })
}

fn as_a_standby(server: &Server) -> Option<String> {
    server
        .is_standby
        .then(|| "it is a standby, and as a rule its primary has archived".to_owned())
}

/// Only a role that may read the server's files learns everything. Without statistics nothing is known, because a crash
/// loses them.
async fn past_elsewhere(server: &Server, session: Option<&ConnInfo>) -> Result<ServerPast> {
    let asked = match session {
        Some(info) => ask(info, server.cluster.system_identifier).await,
        None => Err(Error::invalid("it was not asked")),
    };
    let (remembered, archived) = match asked {
        Ok(Asked { files, archived }) => {
            let [archive, clone] = files;
            let place = "the server's data directory";
            let remembered = Remembered::parse(archive.as_deref(), clone.as_deref(), place)?;
            (Ok(remembered), archived)
        }
        Err(error) => {
            tracing::debug!("what the server remembers of its archive is not known: {error}");
            let why = format!(
                "its data directory is not on this machine, or not readable, and it does not say ({error})"
            );
            (Err(why), None)
        }
    };
    Ok(ServerPast {
        remembered,
        archived: archived.or_else(|| as_a_standby(server)),
        timeline: server.timeline,
    })
}

/// What a server says in SQL.
struct Asked {
    /// The contents of [`ARCHIVE_FILE`] and [`CLONE_FILE`].
    files: [Option<Vec<u8>>; 2],
    /// What it has archived, in words.
    archived: Option<String>,
}

async fn ask(info: &ConnInfo, system_identifier: u64) -> Result<Asked> {
    let mut connection = Connection::connect(info).await?;
    let what = "ask what the server remembers of its archive";
    let query = format!(
        "select pg_catalog.pg_read_file('{ARCHIVE_FILE}', 0, 65536, true), \
         pg_catalog.pg_read_file('{CLONE_FILE}', 0, 65536, true), \
         (select last_archived_wal from pg_catalog.pg_stat_archiver), \
         (select system_identifier from pg_catalog.pg_control_system())"
    );
    let rows = connection.sql(what, &query).await;
    connection.close().await;
    let mut row = rows.context(|| what)?.into_iter().flatten();
    let mut next = || row.next().flatten();
    let files = [next(), next()].map(|file| file.map(String::into_bytes));
    let archived = next().map(|name| format!("pg_stat_archiver says that {name} was archived"));
    // One name may lead to two servers.
    let found = next().and_then(|found| found.parse::<i64>().ok());
    if found.map(i64::cast_unsigned) != Some(system_identifier) {
        return Err(Error::invalid("another server answered"));
    }
    Ok(Asked { files, archived })
}
