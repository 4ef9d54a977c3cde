//! The restoration itself, in the order that makes it safe to kill: first every refusal; then the directories with the
//! mark of an unfinished recovery; the files; configuration, `tablespace_map` and settings; a sync of everything; and
//! last `pg_control`, without which PostgreSQL does not start.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::SourceConfiguration;
use super::configuration::{ConfigurationReport, Places, StoredConfiguration, write_file};
use super::destination::{Access, CONTROL, SET_ASIDE_CONTROL};
use super::extract::{Extraction, Sync, extract};
use super::layout::Layout;
use super::made::{Destination, release_claims};
use super::settings::{ServerSettings, rewrite_auto_conf};
use super::source_settings::Outside;
use super::space::Need;
use super::tablespace_map;
use crate::archive::Archive;
use crate::archive::parts::index::Index;
use crate::cluster::survey::{Survey, survey};
use crate::cluster::{apart, destination, neighbours, remembered, source_settings, space};
use crate::error::{Error, Result};
use crate::format::backup::BackupRecord;
use crate::format::remembered::{ARCHIVE_FILE, ArchiveMark, CLONE_FILE, CloneMark};
use crate::judge::copy_settings::{Copy, Overrides};
use crate::judge::demands::Demands;
use crate::pg::ControlFile;
use crate::progress::Progress;

/// The server needs room for at least two segments: the one it restores and the one it writes.
const RESERVED_SEGMENTS: u64 = 2;
/// This part of the backup's size (one in 64) is kept free beside it for the file system's own records.
const RESERVED_SHARE: u64 = 64;

/// Signal files that a backup may hold, and that would make the server do something else than recover to the target.
const OTHER_SIGNALS: [&str; 2] = ["standby.signal", "recovery.signal"];

/// A restoration that was checked and has written nothing yet.
#[derive(Debug)]
pub struct Restoration {
    archive: Archive,
    record: Arc<BackupRecord>,
    layout: Layout,
    index: Index,
    survey: Survey,
    source_configuration: SourceConfiguration,
    configuration: Option<StoredConfiguration>,
}

impl Restoration {
    /// Looks at the destination, fetches what describes the backup, and checks that it fits.
    ///
    /// # Errors
    /// `Conflict` and `Invalid` for a destination that cannot be used, `Internal` where there is no
    /// room; `Corrupt` and `NotFound` for the backup's index or configuration; as the store says.
    pub async fn prepare(
        archive: &Archive,
        record: Arc<BackupRecord>,
        layout: Layout,
        source_configuration: SourceConfiguration,
    ) -> Result<Self> {
        destination::check(&layout)?;
        let places = layout.outside().map(|root| root.directory.as_path());
        apart::check_places(archive.store().location(), places)?;
        let stored_configuration = async {
            match source_configuration {
                SourceConfiguration::Kept => StoredConfiguration::fetch(archive, &record, &layout.data).await,
                SourceConfiguration::LeftOut => Ok(None),
            }
        };
        let (index, configuration) = tokio::join!(Index::fetch(archive, &record), stored_configuration);
        let index = index?;
        let survey = survey(&record, index.url(), index.entries()?)?;
        space::check(&needs(&layout, &survey, &record))?;
        Ok(Self {
            archive: archive.clone(),
            record,
            layout,
            index,
            survey,
            source_configuration,
            configuration: configuration?,
        })
    }

    /// Symbolic links of the source's data directory that are not restored.
    pub fn links(&self) -> &[String] {
        &self.survey.links
    }

    /// Makes the directories and restores every file into them. A failure leaves everything as it was.
    ///
    /// # Errors
    /// `Corrupt` and `NotFound`, naming the object; `Internal` where something cannot be written.
    pub async fn extract(self, concurrency: usize, progress: &Arc<Progress>) -> Result<Extracted> {
        progress.phase("restore the backup");
        progress.expect(self.record.size_bytes);
        let access = self.survey.access;
        let destination = Destination::create(&self.layout, access)?;
        let outcome = async {
            let sync = Arc::new(Sync::open(
                self.layout.outside().map(|root| root.directory.as_path()),
            )?);
            extract(Extraction {
                archive: self.archive,
                record: Arc::clone(&self.record),
                index: self.index,
                layout: self.layout.clone(),
                concurrency,
                progress: Arc::clone(progress),
                sync: Arc::clone(&sync),
            })
            .await?;
            Ok(sync)
        };
        match outcome.await {
            Ok(sync) => Ok(Extracted {
                places: Places::new(self.record.configuration.as_ref(), &self.layout.data),
                layout: self.layout,
                access,
                destination,
                sync,
                source_configuration: self.source_configuration,
                demands: Demands::default(),
                configuration: self.configuration,
            }),
            Err(error) => Err(destination.undo(error)),
        }
    }
}

/// How much room each directory needs; the data directory holds the first WAL as well.
fn needs(layout: &Layout, survey: &Survey, record: &BackupRecord) -> Vec<Need> {
    let roots = layout.roots.iter().zip(&survey.streams);
    let need = |(root, need): (&super::layout::Root, &crate::cluster::survey::StreamNeed)| {
        let wal = match root.tablespace {
            None => RESERVED_SEGMENTS * record.segment_bytes.bytes(),
            Some(_) => 0,
        };
        Need {
            directory: root.directory.clone(),
            bytes: need.bytes + need.bytes / RESERVED_SHARE + wal,
            files: need.files,
        }
    };
    roots.map(need).collect()
}

/// Restored files that no server can start on yet.
#[derive(Debug)]
pub struct Extracted {
    places: Places,
    layout: Layout,
    access: Access,
    destination: Destination,
    sync: Arc<Sync>,
    source_configuration: SourceConfiguration,
    configuration: Option<StoredConfiguration>,
    demands: Demands,
}

/// What a restored data directory remembers of archives, whatever its source remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remembers {
    /// It may write to the archive it comes from.
    Own(ArchiveMark),
    /// It must not write to the archive it comes from. It may have another one of its own.
    Source(CloneMark, Option<ArchiveMark>),
}

impl Remembers {
    fn own(&self) -> Option<&ArchiveMark> {
        match self {
            Self::Own(own) => Some(own),
            Self::Source(_, own) => own.as_ref(),
        }
    }

    fn forbidden(&self, before: Option<CloneMark>) -> Option<CloneMark> {
        match self {
            Self::Own(own) => before?.without(own.created_at),
            Self::Source(mark, _) => Some(mark.clone().after(before)),
        }
    }

    /// Writes it into a directory that no server can start on yet.
    fn write(&self, data: &Path, access: Access) -> Result<()> {
        // What the source remembered does not matter here, not even if it cannot be read.
        remove_if_there(&data.join(ARCHIVE_FILE))?;
        let before = remembered::read(data)?.clone;
        let own = self.own().map(ArchiveMark::to_bytes).transpose()?;
        let forbidden = self.forbidden(before).map(|mark| mark.to_bytes()).transpose()?;
        for (name, content) in [(ARCHIVE_FILE, own), (CLONE_FILE, forbidden)] {
            let path = data.join(name);
            match content {
                Some(content) => write_file(&path, &content, access)?,
                None => remove_if_there(&path)?,
            }
        }
        Ok(())
    }
}

impl Extracted {
    /// Adds settings that the WAL demands.
    pub fn demanding(self, demands: Demands) -> Self {
        Self { demands, ..self }
    }

    /// Writes the settings, makes everything durable, and only then lets a server start. A failure leaves everything as
    /// it was.
    ///
    /// # Errors
    /// `Internal` where something cannot be written, `Corrupt` for damaged configuration files.
    pub fn finish(mut self, settings: &ServerSettings, remembers: &Remembers) -> Result<ConfigurationReport> {
        match self.complete(settings, remembers) {
            Ok(report) => Ok(report),
            Err(error) => Err(self.destination.undo(error)),
        }
    }

    fn complete(&mut self, settings: &ServerSettings, remembers: &Remembers) -> Result<ConfigurationReport> {
        let data = &self.layout.data;
        let destination = &mut self.destination;
        let mut report = match &self.configuration {
            Some(stored) => stored.put_back(self.access, &mut |path| destination.add_file(path))?,
            None => ConfigurationReport::default(),
        };
        write_tablespace_map(&self.layout, self.access)?;
        let config_file = self.places.config_file();
        let outside = Outside {
            config_file: &config_file,
            pending: report.pending.as_deref(),
        };
        let notes = write_settings(
            data,
            self.access,
            self.source_configuration,
            Some(outside),
            settings,
        )?;
        report.notes = notes;
        report.add_note(self.write_demands()?);
        if self.source_configuration == SourceConfiguration::Kept {
            report.add_note(self.places.missing(&report.failed));
        }
        remembers.write(data, self.access)?;
        // The long sync comes while the claims still tell whose the directories are; the second one has little to
        // write.
        self.sync.finish()?;
        release_claims(&self.layout)?;
        self.sync.finish()?;
        release_control(data)?;
        Ok(report)
    }
}

impl Extracted {
    /// Writes settings that were raised after the backup, which its configuration does not have. Without them a
    /// readable server waits in the middle of its recovery, or ends it. Returns a note about them.
    fn write_demands(&self) -> Result<Option<String>> {
        let data = &self.layout.data;
        let readable = self.source_configuration == SourceConfiguration::Kept;
        let control = read_if_there(&data.join(SET_ASIDE_CONTROL))?;
        let raised = match ControlFile::parse(&control) {
            Ok(control) => self.demands.raised(&control, readable),
            Err(_) => Vec::new(),
        };
        if raised.is_empty() {
            return Ok(None);
        }
        let path = data.join("postgresql.auto.conf");
        let mut text = read_if_there(&path)?;
        text.extend_from_slice(b"# The WAL demands it: the source was started with it after the backup.\n");
        for (name, value) in &raised {
            text.extend_from_slice(format!("{name} = '{value}'\n").as_bytes());
        }
        write_file(&path, &text, self.access)?;
        let named: Vec<_> = raised
            .iter()
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        Ok(Some(format!(
            "set in postgresql.auto.conf, because the source was started with it after the backup and replay needs it: {}",
            named.join(", ")
        )))
    }
}

fn write_tablespace_map(layout: &Layout, access: Access) -> Result<()> {
    let map = tablespace_map::write(
        layout
            .tablespaces()
            .map(|(tablespace, directory)| (tablespace.oid, directory)),
    );
    let path = layout.data.join("tablespace_map");
    if map.is_empty() {
        return remove_if_there(&path);
    }
    write_file(&path, &map, access)
}

/// Writes the settings and the signal file, and removes other signal files. Returns what the administrator must know.
///
/// # Errors
/// `Internal` where a file cannot be read or written.
pub fn write_settings(
    data: &Path,
    access: Access,
    source: SourceConfiguration,
    outside: Option<Outside<'_>>,
    settings: &ServerSettings,
) -> Result<Vec<String>> {
    let path = data.join("postgresql.auto.conf");
    let before = match source {
        SourceConfiguration::Kept => read_if_there(&path)?,
        SourceConfiguration::LeftOut => Vec::new(),
    };
    let copy = settings.copy(|| beside_another(data));
    let judged = source_settings::judge(data, outside, &before, copy, settings.postgres_version());
    let mut notes = judged.notes;
    notes.extend(source_settings::stay_at_home(data, access)?);
    let mut overrides = judged.overrides;
    let own = data.join("postgresql.conf");
    if copy == Copy::Clone && own.is_file() {
        // Patroni makes it the base of its own configuration.
        source_settings::append(&own, &source_settings::block(copy, &overrides), access)?;
        overrides = Overrides::default();
    }
    write_file(
        &path,
        &rewrite_auto_conf(&before, settings, copy, &overrides),
        access,
    )?;
    write_file(&data.join(settings.signal()), b"", access)?;
    let others = OTHER_SIGNALS
        .iter()
        .filter(|signal| **signal != settings.signal());
    others
        .map(|signal| data.join(signal))
        .try_for_each(|signal| remove_if_there(&signal))?;
    Ok(notes)
}

/// Whether another server of the cluster runs on this machine, as far as this user can see.
fn beside_another(data: &Path) -> bool {
    let control = [CONTROL, SET_ASIDE_CONTROL]
        .iter()
        .find_map(|name| std::fs::read(data.join(name)).ok());
    let identifier = control
        .and_then(|bytes| ControlFile::parse(&bytes).ok())
        .map(|control| control.system_identifier);
    identifier.is_some_and(|identifier| !neighbours::of_cluster(identifier).is_empty())
}

fn read_if_there(path: &Path) -> Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|error| Error::io(format!("read {}", path.display()), error)),
    }
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// The last step: everything before it is durable, and after it PostgreSQL can start.
fn release_control(data: &Path) -> Result<()> {
    let release = || {
        std::fs::rename(data.join(SET_ASIDE_CONTROL), data.join(CONTROL))?;
        File::open(data.join("global"))?.sync_all()
    };
    release().map_err(|error: std::io::Error| {
        Error::io(format!("put {CONTROL} in place in {}", data.display()), error)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::settings::{RecoverySettings, StandbySettings, TargetAction};
    use super::*;
    use crate::judge::recovery_plan::Target;
    use crate::pg::TimelineId;

    fn settings() -> ServerSettings {
        ServerSettings::Recovery(RecoverySettings {
            restore_command: "walship restore %f %p".to_owned(),
            target: Target::Latest,
            inclusive: true,
            timeline: TimelineId::FIRST,
            action: TargetAction::Pause,
            copy: Copy::Replacement,
            postgres_version: "17.11".to_owned(),
        })
    }

    #[test]
    fn a_standbys_backup_is_recovered_and_not_followed() {
        let top = tempfile::tempdir().unwrap();
        let data = top.path();
        std::fs::write(data.join("standby.signal"), "").unwrap();
        std::fs::write(data.join("postgresql.auto.conf"), "primary_conninfo = 'x'\n").unwrap();
        write_settings(data, Access::Group, SourceConfiguration::Kept, None, &settings()).unwrap();
        assert!(!data.join("standby.signal").exists());
        for file in ["recovery.signal", "postgresql.auto.conf"] {
            let mode = data.join(file).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o640, "{file}");
        }
    }

    #[test]
    fn a_recovered_clusters_backup_becomes_a_standby() {
        let top = tempfile::tempdir().unwrap();
        let data = top.path();
        std::fs::write(data.join("recovery.signal"), "").unwrap();
        let settings = ServerSettings::Standby(StandbySettings::default());
        write_settings(data, Access::Owner, SourceConfiguration::Kept, None, &settings).unwrap();
        assert!(data.join("standby.signal").exists());
        assert!(!data.join("recovery.signal").exists());
    }

    #[test]
    fn a_copy_with_a_configuration_of_its_own_has_nothing_of_its_sources() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("postgresql.auto.conf");
        for (source, kept) in [
            (SourceConfiguration::Kept, true),
            (SourceConfiguration::LeftOut, false),
        ] {
            std::fs::write(&path, "archive_library = 'x'\n").unwrap();
            write_settings(top.path(), Access::Owner, source, None, &settings()).unwrap();
            let after = std::fs::read_to_string(&path).unwrap();
            assert_eq!(after.contains("archive_library"), kept, "{after}");
            assert!(
                after.contains("restore_command = 'walship restore %f %p'"),
                "{after}"
            );
        }
    }

    #[test]
    fn pg_control_appears_only_at_the_end() {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir(top.path().join("global")).unwrap();
        assert!(release_control(top.path()).is_err());
        std::fs::write(top.path().join(SET_ASIDE_CONTROL), "control").unwrap();
        release_control(top.path()).unwrap();
        assert_eq!(std::fs::read(top.path().join(CONTROL)).unwrap(), b"control");
    }
}
