//! `walship restore`: delivers one verified file, or says why not.
//!
//! PostgreSQL takes an exit code of 1 to 125 as "this file is not in the archive" and ends recovery
//! there, so absence is reported only when it is proven, and everything else is an error. The file
//! appears under its final name only after its SHA-256, size, name and page header were checked. It
//! is not fsynced: PostgreSQL does that itself, and asks again after a crash
//! (`KeepFileRestoredFromArchive`, `xlogarchive.c`, 14 to 18).

mod args;
mod followed;
mod own_wal;
mod retired;

pub use self::args::RestoreArgs;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::archive::Archive;
use crate::archive::stored_wal::{self, LARGEST_SEGMENT, SMALL_FILE_LIMIT};
use crate::cluster::unnamed_file::UnnamedFile;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::identity::Identity;
use crate::format::keys::{Key, WAL_PREFIX, after_timeline, segment_siblings_prefix, timeline_prefix};
use crate::format::retired::Retired;
use crate::judge::forks::{Answer, Follower, Fork, Recovering, TargetTimeline};
use crate::pg::{LongPageHeader, Lsn, SegmentName, SegmentNumber, TimelineHistory, TimelineId, WalName};
use crate::server::data_directory::{
    RecoverySignal, cluster_identity, data_directory_of, is_starting, recovery_signal,
};
use crate::store::Store;

/// Pause before the next try, and between looks for a segment that should be on its way.
const PAUSE: Duration = Duration::from_secs(1);

/// Before a file is called absent, this many are looked at by their names: the file itself, and those that come next.
const LOOKS_BY_NAME: u64 = 4;

/// What to deliver, and where.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    pub name: String,
    pub destination: PathBuf,
    /// What the server that asks is doing, by [`asker`].
    pub signal: RecoverySignal,
    /// How long a broken transfer is tried again, and a missing segment is awaited while a later one is there.
    pub retry_timeout: Duration,
    /// The first segment of a gap at which recovery may end: `walship recover --end-at-gap` wrote it. It counts as
    /// absent although later ones are there.
    pub accepted_gap: Option<SegmentName>,
}

/// What came of it; failures are errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreReport {
    /// The file is at its destination, verified.
    Delivered,
    /// It is proven that the archive has no such file; the reason is for people.
    Absent(String),
    /// The archive has the file, but this server follows another timeline: PostgreSQL is told that it is absent, and
    /// people get a warning.
    Withheld(String),
}

/// Who asks for a file, by the destination's name. PostgreSQL's recovery asks for files under names of its own, in
/// its `pg_wal` (`RestoreArchivedFile`, `xlogarchive.c`, 14 to 18). Everybody else only reads: Patroni, a person, or
/// `pg_rewind --restore-target-wal`, which uses the file's own name (`fe_utils/archive.c`); its server does not run,
/// and the data directory may have a signal file.
///
/// # Errors
/// `Internal` where it cannot be found out whether there is a signal file.
pub fn asker(destination: &Path) -> Result<RecoverySignal> {
    let name = destination.file_name().unwrap_or_default();
    if name == "RECOVERYXLOG" || name == "RECOVERYHISTORY" {
        recovery_signal(&data_directory_of(destination))
    } else {
        Ok(RecoverySignal::None)
    }
}

/// Why a request is answered "not in the archive" without asking a store; `None` where the store must be asked.
///
/// When a recovery has ended, PostgreSQL reads the history of the timeline that it leaves once more
/// (`writeTimeLineHistory`, `timeline.c`, 14 to 18). The signal file is gone by then, and the new timeline's history is
/// not yet written. A failure would end the server, and its next start would open it for writing on the *old*
/// timeline, beside whoever else writes there. Timeline 1 has no history. Of a later timeline, which the server has
/// followed, `pg_wal` has a copy: PostgreSQL takes that when it is told that the archive has none.
///
/// # Errors
/// `Invalid` for a name that PostgreSQL does not use.
pub fn without_asking(options: &RestoreOptions) -> Result<Option<String>> {
    let name: WalName = options.name.parse()?;
    let WalName::History(timeline) = name else {
        return Ok(None);
    };
    if timeline == TimelineId::FIRST {
        return Ok(Some("timeline 1 has no history file".to_owned()));
    }
    // PostgreSQL asks for histories under this name. A person who asks for one names another file.
    let postgresql_asks = options.destination.file_name() == Some("RECOVERYHISTORY".as_ref());
    let has_ended = options.signal == RecoverySignal::None && postgresql_asks;
    let copy = data_directory_of(&options.destination)
        .join("pg_wal")
        .join(name.to_string());
    Ok((has_ended && copy.is_file())
        .then(|| format!("recovery has ended, and the server has {name} in pg_wal")))
}

/// Delivers one file.
///
/// # Errors
/// Any failure after which it is not known whether the archive has the file, or which shows that the archive is
/// damaged or another cluster's. Nothing is at the destination then.
pub async fn run(options: &RestoreOptions, store: &Store) -> Result<RestoreReport> {
    let folder = folder_of(&options.destination);
    match obtain(options, store, folder, None).await? {
        Obtained::File(file) => file
            .deliver(&options.destination)
            .map(|()| RestoreReport::Delivered),
        Obtained::Absent(reason) => Ok(RestoreReport::Absent(reason)),
        Obtained::Withheld(reason) => Ok(RestoreReport::Withheld(reason)),
    }
}

/// Obtains one file, proven to be what was asked for, in `folder`, which must be on the destination's file system.
/// With `ahead`, the file that was fetched before is checked against its archive; without it, the store is asked for
/// both.
pub async fn obtain(
    options: &RestoreOptions,
    store: &Store,
    folder: &Path,
    ahead: Option<(Fetched, Archive)>,
) -> Result<Obtained> {
    let name: WalName = options.name.parse()?;
    let request = Request {
        name,
        options,
        store,
        folder,
        started: Instant::now(),
    };
    request.run(ahead).await.context(|| format!("restore {name}"))
}

/// Fetches a segment into `folder` before anybody asks for it; `None` where the store has no such key.
/// Whether it may be delivered is decided by [`obtain`].
///
/// # Errors
/// As the store; `Corrupt` where the object is damaged.
pub async fn fetch_ahead(segment: SegmentName, archive: &Archive, folder: &Path) -> Result<Option<Fetched>> {
    fetch(archive.store(), Key::Segment(segment), LARGEST_SEGMENT, folder).await
}

/// What [`obtain`] found.
#[derive(Debug)]
pub enum Obtained {
    /// The file, verified.
    File(VerifiedFile),
    /// It is proven that the archive has no such file; the reason is for people.
    Absent(String),
    /// The archive has it, and it is not for this server.
    Withheld(String),
}

/// A verified file without its final name; dropping it removes it.
#[derive(Debug)]
pub struct VerifiedFile(UnnamedFile);

impl VerifiedFile {
    /// Gives it its name, in the folder where it was made. No file of that name may be there yet.
    ///
    /// # Errors
    /// `Internal` where that is not possible.
    pub fn deliver(self, path: &Path) -> Result<()> {
        self.0
            .persist_noclobber(path)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::AlreadyExists => Error::internal(format!(
                    "{} is there already, and nothing is written over it; remove it, or name another file",
                    path.display()
                )),
                _ => Error::io(format!("give the file the name {}", path.display()), error),
            })
    }
}

struct Request<'a> {
    name: WalName,
    options: &'a RestoreOptions,
    store: &'a Store,
    folder: &'a Path,
    started: Instant,
}

impl Request<'_> {
    async fn run(&self, ahead: Option<(Fetched, Archive)>) -> Result<Obtained> {
        if let Some((file, archive)) = ahead {
            self.check(&archive)?;
            return self.verify(file, &archive).await;
        }
        // Nothing is believed of the archive, least of all absence, before it is known whose it is.
        let (archive, fetched) = tokio::join!(Archive::open(self.store), self.fetch());
        let archive = archive?;
        self.check(&archive)?;
        let verified = match fetched {
            Ok(Some(file)) => self.verify(file, &archive).await,
            Ok(None) => return self.absent(&archive).await,
            Err(error) => Err(error),
        };
        match verified {
            // Recovery may end at this segment because it is damaged, which was known when the recovery was planned.
            Err(error)
                if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) && self.may_end_here() =>
            {
                Ok(Obtained::Absent(format!("recovery may end here: {error}")))
            }
            verified => verified,
        }
    }

    /// Checks that the archive belongs to the data directory that asks.
    fn check(&self, archive: &Archive) -> Result<()> {
        match cluster_identity(&data_directory_of(&self.options.destination))? {
            Some(cluster) => archive.check(cluster),
            None => Ok(()),
        }
    }

    fn has_time(&self) -> bool {
        self.started.elapsed() + PAUSE < self.options.retry_timeout
    }

    /// Fetches and decodes the object; `None` where the store says that there is no such key.
    async fn fetch(&self) -> Result<Option<Fetched>> {
        let key = match self.key().await {
            Ok(key) => key,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let limit = if matches!(self.name, WalName::Segment(_) | WalName::Partial(_)) {
            LARGEST_SEGMENT
        } else {
            SMALL_FILE_LIMIT
        };
        fetch(self.store, key, limit, self.folder).await
    }

    async fn key(&self) -> Result<Key> {
        let WalName::Partial(segment) = self.name else {
            return Key::of_wal(self.name);
        };
        // Its key has a hash, because two promotions may each have left one.
        let mut found = Vec::new();
        let mut listing = self.store.list(&segment_siblings_prefix(segment), None);
        while let Some(page) = listing.next().await? {
            found.extend(
                page.into_iter()
                    .filter_map(|object| object.key.parse().ok())
                    .filter(|key| matches!(key, Key::Partial { segment: stored, .. } if *stored == segment)),
            );
        }
        match found.len() {
            0 | 1 => found.pop().ok_or_else(|| Error::not_found("no such object")),
            _ => Err(Error::conflict(format!(
                "the archive holds {} versions of it: {}; choose one and read it with zstd -dc",
                found.len(),
                found.iter().map(Key::to_string).collect::<Vec<_>>().join(", ")
            ))),
        }
    }

    /// Proves that a decoded file is what was asked for.
    async fn verify(&self, mut fetched: Fetched, archive: &Archive) -> Result<Obtained> {
        let check = |fetched: &mut Fetched| {
            fetched
                .trailer
                .check(self.name, archive.identity().system_identifier)?;
            fetched.check_header(self.name, archive.identity())
        };
        check(&mut fetched).context(|| archive.url_of(&fetched.key))?;
        let reason = match self.name {
            WalName::Segment(segment) => self.beyond_a_fork(segment, archive).await?,
            WalName::History(timeline) => self.of_a_retired(timeline, &mut fetched, archive).await?,
            WalName::Partial(_) | WalName::Backup { .. } => None,
        };
        if let Some(reason) = reason {
            return Ok(Obtained::Withheld(reason));
        }
        Ok(Obtained::File(VerifiedFile(fetched.file)))
    }

    /// Why a stored segment is not for the server that asks; `None` where it is.
    async fn beyond_a_fork(&self, segment: SegmentName, archive: &Archive) -> Result<Option<String>> {
        let directory = data_directory_of(&self.options.destination);
        let Some(follower) = self.follower(&directory, archive).await? else {
            return Ok(None);
        };
        let (size, timeline) = (archive.identity().segment_bytes, segment.timeline());
        if let Some(reason) = retired::refuses(timeline, &follower, archive).await? {
            return Ok(Some(reason));
        }
        let start = segment.start(size)?;
        let forks = follower.forks_before(timeline, Lsn(start.0.saturating_add(size.bytes())));
        let Some(fork) = forks.first() else {
            return Ok(None);
        };
        let mut has_passed = forks.iter().any(|fork| follower.has_passed(fork, timeline));
        if follower.recovering == Recovering::Standby {
            for fork in &forks {
                has_passed = has_passed
                    || own_wal::reaches_beyond(&directory.join("pg_wal"), timeline, fork.at, size)?;
            }
        }
        let Fork { by, at, child } = *fork;
        let child = segment.on_timeline(child);
        let beyond = format!(
            "timeline {by}, which this server follows, left timeline {timeline} at {at}, and {segment} reaches beyond that"
        );
        let accepted = self.options.accepted_gap == Some(segment);
        match follower.answer(fork, start, has_passed) {
            Answer::Deliver => Ok(None),
            Answer::Withhold if follower.recovering == Recovering::Standby => Ok(Some(format!(
                "{segment} is in the archive and withheld: {beyond}; {child} comes next. If timeline {by} is the wrong \
                 one, set recovery_target_timeline = '{timeline}' and restart the server"
            ))),
            Answer::Withhold => Ok(Some(format!("{beyond}; recovery ends here"))),
            Answer::Refuse if accepted => Ok(Some(format!("{beyond}; recovery may end here"))),
            Answer::Refuse => Err(Error::unavailable(format!(
                "{beyond}, and {child}, which comes next, is not in the archive (yet); archive {child}, or recover to \
                 timeline {timeline} (recovery_target_timeline = '{timeline}') if that is what you want"
            ))),
        }
    }

    /// Why the history of a retired timeline is not for the server that asks; `None` where it is.
    async fn of_a_retired(
        &self,
        timeline: TimelineId,
        fetched: &mut Fetched,
        archive: &Archive,
    ) -> Result<Option<String>> {
        if self.options.signal == RecoverySignal::None {
            return Ok(None);
        }
        let Some(mark) = archive.find::<Retired>(&timeline).await? else {
            return Ok(None);
        };
        let mut content = Vec::new();
        let mut file = fetched.rewound()?;
        file.read_to_end(&mut content)
            .map_err(|error| Error::io("read the restored file", error))?;
        let history = TimelineHistory::parse(timeline, &content)?;
        let directory = data_directory_of(&self.options.destination);
        let follower = self.follower(&directory, archive).await?;
        let is_kept = directory.join("pg_wal").join(self.name.to_string()).is_file();
        let starting = is_starting(&directory)?;
        retired::hides(&mark, &history, follower.as_ref(), starting, is_kept, archive).await
    }

    /// The server that asks; `None` where it does not recover, or where it cannot be known which timeline it follows.
    async fn follower(&self, directory: &Path, archive: &Archive) -> Result<Option<Follower>> {
        let recovering = match self.options.signal {
            RecoverySignal::Standby => Recovering::Standby,
            RecoverySignal::Recovery => Recovering::ToTarget,
            RecoverySignal::None => return Ok(None),
        };
        followed::follower(recovering, directory, self.name.timeline(), archive).await
    }

    /// Whether this is the gap at which recovery may end.
    fn may_end_here(&self) -> bool {
        self.options.accepted_gap.map(WalName::Segment) == Some(self.name)
    }

    /// The key is missing. Calls the file absent only where that cannot be a gap in the archive.
    async fn absent(&self, archive: &Archive) -> Result<Obtained> {
        let absent = format!("{} is not in the archive {}", self.name, archive.url());
        let directory = data_directory_of(&self.options.destination);
        if cluster_identity(&directory)?.is_none() {
            return Err(Error::invalid(format!(
                "{absent}; whether it should be there cannot be known, because {} is not a data directory of its cluster",
                directory.display()
            )));
        }
        // A standby asks again.
        if self.options.signal == RecoverySignal::Standby || self.may_end_here() {
            return Ok(Obtained::Absent(absent));
        }
        if self
            .is_on_the_way_to_a_known_timeline(&directory, archive)
            .await?
        {
            archive.confirm().await?;
            return Ok(Obtained::Absent(absent));
        }
        loop {
            let mut witness = self.witness_of_a_gap(&directory, archive).await?;
            if witness.is_none() {
                witness = self.witness_by_name(archive).await?;
            }
            let Some(witness) = witness else {
                // An archive that was emptied or unmounted meanwhile has nothing either.
                archive.confirm().await?;
                return Ok(Obtained::Absent(absent));
            };
            if !self.has_time() {
                let way_out = match self.name {
                    WalName::Segment(_) => "`walship recover --end-at-gap` recovers up to the gap",
                    _ => "`walship recover --target-timeline` recovers to a timeline whose history is there",
                };
                return Err(Error::corrupt(format!(
                    "{} is missing in the archive {}, and {witness}: the archive has a gap \
                     (waited {} s for it to be filled). If it cannot be filled, {way_out}",
                    self.name,
                    archive.url(),
                    self.started.elapsed().as_secs()
                )));
            }
            // It may be on its way.
            tokio::time::sleep(PAUSE).await;
            if let Some(file) = self.fetch().await? {
                return self.verify(file, archive).await;
            }
        }
    }

    /// Whether the server asks for this history only to keep a copy. It recovers to a timeline by its number, and that
    /// timeline's own history is there and names all that come before it. PostgreSQL asks for the numbers between
    /// as well, and goes on without those that are missing (`restoreTimeLineHistoryFiles`, `timeline.c`, 14 to 18).
    async fn is_on_the_way_to_a_known_timeline(&self, directory: &Path, archive: &Archive) -> Result<bool> {
        let WalName::History(asked) = self.name else {
            return Ok(false);
        };
        let Some(follower) = self.follower(directory, archive).await? else {
            return Ok(false);
        };
        Ok(match follower.target {
            TargetTimeline::Number(number) => asked < number && follower.histories.contains_key(&number),
            TargetTimeline::Latest | TargetTimeline::Current => false,
        })
    }

    /// A witness that is found without a listing: the file itself, or one that comes next, looked at by its name.
    async fn witness_by_name(&self, archive: &Archive) -> Result<Option<String>> {
        for key in self.next_of_its_kind(archive.identity())? {
            if archive.head(&key).await?.is_some() {
                return Ok(Some(format!("{key} is there")));
            }
        }
        Ok(None)
    }

    fn next_of_its_kind(&self, identity: &Identity) -> Result<Vec<Key>> {
        let size = identity.segment_bytes;
        Ok(match self.name {
            WalName::Segment(segment) => {
                let first = segment.number(size)?.0;
                let numbers = (first..first.saturating_add(LOOKS_BY_NAME)).map(SegmentNumber);
                let names = numbers.map(|number| SegmentName::new(segment.timeline(), number, size));
                names.filter_map(Result::ok).map(Key::Segment).collect()
            }
            WalName::History(timeline) => {
                let first = timeline.get();
                let timelines = first..first.saturating_add(LOOKS_BY_NAME as u32);
                let timelines = timelines.map(TimelineId::new).filter_map(Result::ok);
                timelines.map(Key::History).collect()
            }
            WalName::Partial(_) | WalName::Backup { .. } => Vec::new(),
        })
    }

    /// What proves that this file must have existed. For a segment: a later one of its timeline, or a timeline that
    /// left its timeline only later. For a history: WAL of its timeline, or WAL or a history of a later one.
    async fn witness_of_a_gap(&self, directory: &Path, archive: &Archive) -> Result<Option<String>> {
        let timeline = self.name.timeline();
        match self.name {
            WalName::Segment(segment) => {
                let followed = self.follower(directory, archive).await?;
                if let Some(Fork { by, at, .. }) =
                    followed.and_then(|followed| followed.fork_of_recovery(timeline))
                    && segment.start(archive.identity().segment_bytes)? < at
                {
                    return Ok(Some(format!(
                        "timeline {by} left timeline {timeline} only later, at {at}"
                    )));
                }
                let after = Key::Segment(segment).to_string();
                self.find(
                    &timeline_prefix(timeline),
                    Some(&after),
                    |key| matches!(key, Key::Segment(stored) if *stored > segment),
                )
                .await
            }
            WalName::History(timeline) => {
                let own = self
                    .find(&timeline_prefix(timeline), None, |key| {
                        matches!(key, Key::Segment(_))
                    })
                    .await?;
                if own.is_some() {
                    return Ok(own);
                }
                let after = after_timeline(timeline);
                self.find(WAL_PREFIX, Some(&after), |key| {
                    matches!(key, Key::Segment(stored) if stored.timeline() > timeline)
                        || matches!(key, Key::History(stored) if *stored > timeline)
                })
                .await
            }
            WalName::Partial(_) | WalName::Backup { .. } => Ok(None),
        }
    }

    /// Looks for an object; "KEY is there" if there is one.
    async fn find(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        wanted: impl Fn(&Key) -> bool,
    ) -> Result<Option<String>> {
        let mut listing = self.store.list(prefix, start_after);
        while let Some(page) = listing.next().await? {
            let found = page
                .into_iter()
                .find(|object| object.key.parse().is_ok_and(|key| wanted(&key)));
            if let Some(object) = found {
                return Ok(Some(format!("{} is there", object.key)));
            }
        }
        Ok(None)
    }
}

/// Fetches and decodes an object into a temporary file in `folder`; `None` where the store says that
/// there is no such key.
async fn fetch(store: &Store, key: Key, limit: u64, folder: &Path) -> Result<Option<Fetched>> {
    let make = || file_in(folder).map(Output);
    match stored_wal::read(store, &key, limit, make).await {
        Ok((Output(file), trailer)) => Ok(Some(Fetched { file, trailer, key })),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == ErrorKind::Corrupt => Err(error.context(format!(
            "{} is damaged; recover from another copy of the archive, or to a target before it",
            store.url_of(&key.to_string())
        ))),
        Err(error) if error.kind() == ErrorKind::Internal => {
            Err(error.context(format!("write a file in {}", folder.display())))
        }
        Err(error) => Err(error),
    }
}

struct Output(UnnamedFile);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.file().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.file().flush()
    }
}

/// A decoded file that is not proven yet to be what is wanted; dropping it removes it.
#[derive(Debug)]
pub struct Fetched {
    file: UnnamedFile,
    trailer: crate::format::codec::Trailer,
    key: Key,
}

impl Fetched {
    fn check_header(&mut self, name: WalName, identity: &Identity) -> Result<()> {
        let (WalName::Segment(segment) | WalName::Partial(segment)) = name else {
            return Ok(());
        };
        if self.trailer.size != identity.segment_bytes.bytes() {
            return Err(Error::corrupt(format!(
                "it has {} bytes, a segment of this cluster has {}",
                self.trailer.size,
                identity.segment_bytes.bytes()
            )));
        }
        let mut first_page = Vec::new();
        self.rewound()?
            .take(512)
            .read_to_end(&mut first_page)
            .map_err(|error| Error::io("read the restored file", error))?;
        LongPageHeader::parse(&first_page)?.check(segment, identity.segment_bytes, identity.system_identifier)
    }

    fn rewound(&mut self) -> Result<&File> {
        let file = self.file.file();
        file.seek(SeekFrom::Start(0))
            .map_err(|error| Error::io("read the restored file", error))?;
        Ok(file)
    }
}

fn folder_of(destination: &Path) -> &Path {
    match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Creates a file with PostgreSQL's own permissions: 0600, or 0640 where the folder allows group access.
fn file_in(folder: &Path) -> Result<UnnamedFile> {
    let create = || -> std::io::Result<UnnamedFile> {
        let group_access = std::fs::metadata(folder)?.permissions().mode() & 0o050 == 0o050;
        let mode = if group_access { 0o640 } else { 0o600 };
        UnnamedFile::create_in(folder, mode)
    };
    create().map_err(|error| Error::io(format!("create a file in {}", folder.display()), error))
}
