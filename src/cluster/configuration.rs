//! Configuration files that the tar streams of a backup lack: those outside the data directory, as Debian has them, and
//! the files that links in the data directory led to. They are put back where they are missing, never over a file that
//! is there. A file comes back in the place of a link.
//!
//! A file that cannot be put back (its directory is often root's) does not fail the recovery: the verified object is
//! kept in the data directory, and a note gives the command that unpacks it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::destination::Access;
use super::shell::shell_word;
use crate::archive::Archive;
use crate::archive::parts::index::damaged;
use crate::error::{Context, Error, Result};
use crate::format::Sha256Sum;
use crate::format::backup::{BackupRecord, Configuration};
use crate::format::keys::BackupObject;
use crate::pg::configuration_files::{ConfigurationFiles, Files, Grammar};

/// The largest `configuration.tar.zst`, and what it may hold, in bytes.
const LIMIT_BYTES: u64 = 64 << 20;
/// The files that the server reads where `ssl` is on, with their defaults.
const KEY_FILES: [(&str, &str); 6] = [
    ("ssl_cert_file", "server.crt"),
    ("ssl_key_file", "server.key"),
    ("ssl_ca_file", ""),
    ("ssl_crl_file", ""),
    ("ssl_crl_dir", ""),
    ("ssl_dh_params_file", ""),
];
/// Where the object is kept, in the data directory, if a file could not be put back.
const KEPT_OBJECT: &str = "walship-configuration.tar.zst";

/// What became of the configuration files outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ConfigurationReport {
    /// Files and directories that were missing and are back.
    pub restored: Vec<PathBuf>,
    /// Files that were there and are as they were.
    pub kept: Vec<PathBuf>,
    /// Files and directories that are missing and could not be put back.
    pub failed: Vec<PathBuf>,
    /// What to do about them.
    #[serde(skip)]
    pub note: Option<String>,
    /// What `config_file` will hold once it is put back, if it could not be.
    #[serde(skip)]
    pub pending: Option<Vec<u8>>,
    /// What the administrator must know of the settings that the copy has from its source.
    #[serde(skip)]
    pub notes: Vec<String>,
}

impl ConfigurationReport {
    pub(crate) fn add_note(&mut self, note: Option<String>) {
        let notes: Vec<_> = self.note.take().into_iter().chain(note).collect();
        self.note = (!notes.is_empty()).then(|| notes.join("; "));
    }

    /// The links of the source's data directory that nothing has replaced.
    pub(crate) fn links_left_out(&self, links: Vec<String>, data: &Path) -> Vec<String> {
        let mut links = links;
        links.retain(|link| !self.restored.contains(&data.join(link)));
        links
    }
}

/// A verified `configuration.tar.zst`.
#[derive(Debug)]
pub struct StoredConfiguration {
    object: bytes::Bytes,
    url: String,
    places: Places,
}

/// Where the configuration of a source was, and where that of the copy is.
#[derive(Debug, Clone)]
pub struct Places {
    data_before: PathBuf,
    data: PathBuf,
    config_file: PathBuf,
    /// As the source's server said; else as its configuration has it.
    hba_file: Option<PathBuf>,
    ident_file: Option<PathBuf>,
}

impl Places {
    /// The places that a backup names, for a copy in `data`.
    #[must_use]
    pub fn new(configuration: Option<&Configuration>, data: &Path) -> Self {
        Self {
            data_before: configuration
                .map_or_else(|| data.to_owned(), |it| PathBuf::from(&it.data_directory)),
            data: data.to_owned(),
            config_file: configuration.map_or_else(
                || data.join("postgresql.conf"),
                |it| PathBuf::from(&it.config_file),
            ),
            hba_file: configuration.map(|it| PathBuf::from(&it.hba_file)),
            ident_file: configuration.map(|it| PathBuf::from(&it.ident_file)),
        }
    }

    /// Where the copy has a file that its source had at `path`.
    #[must_use]
    pub fn of_copy(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.data_before) {
            Ok(within) => self.data.join(within),
            Err(_) => path.to_owned(),
        }
    }

    /// What the copy's server reads.
    pub(crate) fn follow(&self, files: &mut impl Files) -> ConfigurationFiles {
        let mut found = ConfigurationFiles::default();
        found.follow(&self.of_copy(&self.config_file), Grammar::Settings, files);
        let automatic = self.data.join("postgresql.auto.conf");
        if automatic.exists() {
            found.follow(&automatic, Grammar::Settings, files);
        }
        for (place, setting, usual) in [
            (&self.hba_file, "hba_file", "pg_hba.conf"),
            (&self.ident_file, "ident_file", "pg_ident.conf"),
        ] {
            let set = found
                .value(setting)
                .map(|value| String::from_utf8_lossy(value).into_owned());
            let file = match (place, set) {
                (Some(place), _) => self.of_copy(place),
                (None, set) => self.data.join(set.as_deref().unwrap_or(usual)),
            };
            found.follow(&file, Grammar::Rules, files);
        }
        found
    }

    /// The copy's `config_file`.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.of_copy(&self.config_file)
    }

    /// Files that the copy's server will not find; those in `failed` were named already.
    pub(crate) fn missing(&self, failed: &[PathBuf]) -> Option<String> {
        let found = self.follow(&mut Disk);
        let mut missing = found.missing.clone();
        missing.extend(self.missing_keys(&found));
        missing.retain(|path| !failed.contains(path));
        // A data directory without any configuration has a note of its own.
        missing.remove(&self.of_copy(&self.config_file));
        (!missing.is_empty()).then(|| {
            format!(
                "the server's configuration names files that are not there, and the backup has none of them: {}. The \
                 server may not start without them: put them there, or remove their lines",
                shown(&missing.into_iter().collect::<Vec<_>>())
            )
        })
    }

    /// Certificates and keys outside the data directory are in no backup.
    fn missing_keys(&self, found: &ConfigurationFiles) -> Vec<PathBuf> {
        if !found.value("ssl").is_some_and(is_true) {
            return Vec::new();
        }
        let named = KEY_FILES.iter().map(|(setting, default)| {
            let value = found.value(setting).unwrap_or(default.as_bytes());
            PathBuf::from(String::from_utf8_lossy(value).into_owned())
        });
        let named = named.filter(|path| !path.as_os_str().is_empty());
        named
            .map(|path| self.data.join(path))
            .filter(|path| !path.exists())
            .collect()
    }
}

/// Whether PostgreSQL reads it as true; any unambiguous beginning of the word is enough (`parse_bool`, `bool.c`).
fn is_true(value: &[u8]) -> bool {
    let value = value.to_ascii_lowercase();
    let begins = |word: &[u8]| !value.is_empty() && word.starts_with(&value);
    value == b"on" || value == b"1" || begins(b"true") || begins(b"yes")
}

/// One configuration file or directory.
#[derive(Debug, PartialEq, Eq)]
struct StoredFile {
    path: PathBuf,
    mode: u32,
    /// None for a directory.
    content: Option<Vec<u8>>,
}

impl StoredConfiguration {
    /// Fetches the backup's configuration files, if it has any.
    ///
    /// # Errors
    /// `Corrupt` where they are not what the record says, `NotFound` where they are missing; as the
    /// store says.
    pub async fn fetch(archive: &Archive, record: &BackupRecord, data: &Path) -> Result<Option<Self>> {
        let Some(configuration) = &record.configuration else {
            return Ok(None);
        };
        let key = record.id.key(BackupObject::Configuration);
        let url = archive.url_of(&key);
        let object = archive
            .store()
            .read(&key.to_string(), LIMIT_BYTES)
            .await
            .context(|| format!("read {url}"))?;
        let sum = Sha256Sum::of(&object);
        if sum != configuration.object.sha256 {
            let found = Error::corrupt(format!(
                "it has SHA-256 {sum}, backup.json says {}",
                configuration.object.sha256
            ));
            return Err(damaged(found, &url));
        }
        Ok(Some(Self {
            object,
            url,
            places: Places::new(Some(configuration), data),
        }))
    }

    /// Puts back what is missing. `made` is called for each file before it is made.
    ///
    /// # Errors
    /// `Corrupt` where it is not a tar of files with plain names; `Internal` where what could not be put
    /// back cannot be kept in the data directory either.
    pub fn put_back(&self, access: Access, made: &mut dyn FnMut(PathBuf)) -> Result<ConfigurationReport> {
        let files = unpack(&self.object).map_err(|error| damaged(error, &self.url))?;
        let files = files
            .into_iter()
            .map(|file| self.moved(file, access))
            .collect::<Vec<_>>();
        let config_file = self.places.of_copy(&self.places.config_file);
        let included = self.included(&files);
        let mut report = ConfigurationReport::default();
        let mut reasons = Vec::new();
        let mut unknown = Vec::new();
        for file in files {
            let usual = file.content.is_none() || is_configuration(&file.path, &config_file);
            let may_come_back = usual || (included.contains(&file.path) && self.is_plain(&file.path));
            if !may_come_back {
                unknown.push(file.path);
                continue;
            }
            match put_back(&file, made) {
                Ok(true) => report.restored.push(file.path),
                Ok(false) if file.content.is_none() => {}
                Ok(false) => report.kept.push(file.path),
                Err(error) => {
                    reasons.push(error.to_string());
                    if file.path == config_file {
                        report.pending.clone_from(&file.content);
                    }
                    // Root is asked to unpack only files with names of configuration files.
                    let group = if usual { &mut report.failed } else { &mut unknown };
                    group.push(file.path);
                }
            }
        }
        report.note = self.note(access, &report.failed, &unknown, &reasons)?;
        report.failed.extend(unknown);
        Ok(report)
    }

    /// The file where the copy has it. In the data directory it has PostgreSQL's own permissions.
    fn moved(&self, file: StoredFile, access: Access) -> StoredFile {
        let path = self.places.of_copy(&file.path);
        let mode = match (path.starts_with(&self.places.data), &file.content) {
            (true, Some(_)) => access.file_mode(),
            (true, None) => access.directory_mode(),
            (false, _) => file.mode,
        };
        StoredFile { path, mode, ..file }
    }

    /// Whether no part of a path outside the copy is hidden: write access to the archive must not be enough to
    /// write, say, keys for logging in.
    fn is_plain(&self, path: &Path) -> bool {
        let is_hidden = |part: std::path::Component| part.as_os_str().as_encoded_bytes().starts_with(b".");
        path.starts_with(&self.places.data) || !path.components().any(is_hidden)
    }

    /// What the configuration includes, as the backup has it.
    fn included(&self, files: &[StoredFile]) -> BTreeSet<PathBuf> {
        let stored = files
            .iter()
            .filter_map(|file| Some((file.path.as_path(), file.content.as_deref()?)));
        let found = self.places.follow(&mut StoredOrThere {
            stored: stored.collect(),
        });
        found.files
    }

    /// What the administrator must do by hand, if anything. What could not be put back is kept in the data directory.
    fn note(
        &self,
        access: Access,
        failed: &[PathBuf],
        unknown: &[PathBuf],
        reasons: &[String],
    ) -> Result<Option<String>> {
        let kept = self.places.data.join(KEPT_OBJECT);
        if !failed.is_empty() || !unknown.is_empty() {
            write_file(&kept, &self.object, access)?;
        }
        let mut notes = Vec::new();
        if !failed.is_empty() {
            notes.push(failure_note(&kept, failed, reasons));
        }
        if !unknown.is_empty() {
            notes.push(unknown_note(&kept, unknown));
        }
        Ok((!notes.is_empty()).then(|| notes.join("; ")))
    }
}

/// The backup's files, and those on disk for what the backup does not have.
struct StoredOrThere<'a> {
    stored: BTreeMap<&'a Path, &'a [u8]>,
}

impl Files for StoredOrThere<'_> {
    fn read(&mut self, path: &Path) -> Option<Vec<u8>> {
        match self.stored.get(path) {
            Some(content) => Some(content.to_vec()),
            None => Disk.read(path),
        }
    }

    fn list(&mut self, directory: &Path) -> Option<Vec<PathBuf>> {
        let stored = self.stored.keys().filter(|path| path.parent() == Some(directory));
        let stored = stored.map(|path| path.to_path_buf());
        Some(
            Disk.list(directory)
                .unwrap_or_default()
                .into_iter()
                .chain(stored)
                .collect(),
        )
    }
}

/// The files that are there.
pub(crate) struct Disk;

impl Files for Disk {
    fn read(&mut self, path: &Path) -> Option<Vec<u8>> {
        // Opening a pipe would wait for a writer.
        let file = path.metadata().is_ok_and(|metadata| metadata.is_file());
        let mut content = Vec::new();
        let mut limited = File::open(path).ok().filter(|_| file)?.take(LIMIT_BYTES);
        limited.read_to_end(&mut content).ok()?;
        Some(content)
    }

    fn list(&mut self, directory: &Path) -> Option<Vec<PathBuf>> {
        let entries = std::fs::read_dir(directory).ok()?.flatten();
        Some(
            entries
                .map(|entry| entry.path())
                .filter(|path| path.is_file())
                .collect(),
        )
    }
}

fn failure_note(kept: &Path, failed: &[PathBuf], reasons: &[String]) -> String {
    let words = failed
        .iter()
        .map(|path| shell_word(path.to_string_lossy().trim_start_matches('/')));
    // Only these names, and no directory's content: root must not unpack anything else in the object.
    format!(
        "configuration files are missing and could not be put back: {} ({}). Before you start the server put them \
         back, as root: zstd -dc {} | tar -x -C / --skip-old-files --no-recursion -- {}",
        shown(failed),
        reasons.first().map_or("", String::as_str),
        shell_word(&kept.to_string_lossy()),
        words.collect::<Vec<_>>().join(" ")
    )
}

fn unknown_note(kept: &Path, unknown: &[PathBuf]) -> String {
    format!(
        "these files of the backup's configuration were not put back, because walship cannot judge their names: {}. They \
         are in {}",
        shown(unknown),
        kept.display()
    )
}

fn shown(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    names.join(", ")
}

/// Whether a file is put back without asking: one with the name of a configuration file (`*.conf`, Debian's
/// `environment`) in the folder of `config_file`, and `hba_file` and `ident_file` by their usual names
/// anywhere. Write access to the archive must not be enough to write any file here.
fn is_configuration(path: &Path, config_file: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    if matches!(name, "pg_hba.conf" | "pg_ident.conf") {
        return true;
    }
    let folder = config_file.parent().filter(|folder| folder.parent().is_some());
    let in_folder = folder.is_some_and(|folder| path.starts_with(folder)) || path == config_file;
    let plain =
        !name.starts_with('.') && (path.extension().is_some_and(|it| it == "conf") || name == "environment");
    in_folder && plain
}

/// The files in the object. Names are absolute paths without the leading slash.
fn unpack(object: &[u8]) -> Result<Vec<StoredFile>> {
    let unreadable = |error: std::io::Error| Error::corrupt(format!("it cannot be read: {error}"));
    let tar = zstd::stream::read::Decoder::new(object).map_err(unreadable)?;
    let mut archive = tar::Archive::new(tar.take(LIMIT_BYTES));
    let mut files = Vec::new();
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let kind = entry.header().entry_type();
        if !kind.is_file() && !kind.is_dir() {
            continue;
        }
        let path = entry.path().map_err(unreadable)?.into_owned();
        let plain = path
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        if !plain {
            return Err(Error::corrupt(format!("it has the path {:?}", path.display())));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(unreadable)?;
        let content = kind.is_file().then_some(content);
        files.push(StoredFile {
            path: Path::new("/").join(path),
            mode: entry.header().mode().map_err(unreadable)? & 0o777,
            content,
        });
    }
    Ok(files)
}

/// Makes a file or directory that is missing, and the directories above it; whether it was missing.
fn put_back(file: &StoredFile, made: &mut dyn FnMut(PathBuf)) -> Result<bool> {
    let shown = file.path.display();
    let failed = |error| Error::io(format!("put back {shown}"), error);
    if file.path.symlink_metadata().is_ok() {
        return Ok(false);
    }
    let parent = file.path.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)
        .map_err(failed)?;
    let sync_parent = || File::open(parent).and_then(|directory| directory.sync_all());
    let Some(content) = &file.content else {
        match std::fs::create_dir(&file.path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
        made(file.path.clone());
        std::fs::set_permissions(&file.path, Permissions::from_mode(file.mode))
            .and_then(|()| sync_parent())
            .map_err(failed)?;
        return Ok(true);
    };
    // Linked into place: a reader sees all of it or nothing, and a file that appeared meanwhile stays.
    let mut temporary = tempfile::Builder::new()
        .prefix(".walship-")
        .tempfile_in(parent)
        .map_err(failed)?;
    temporary
        .as_file()
        .set_permissions(Permissions::from_mode(file.mode))
        .and_then(|()| temporary.write_all(content))
        .and_then(|()| temporary.as_file().sync_all())
        .map_err(failed)?;
    match temporary.persist_noclobber(&file.path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(failed(error.error)),
    }
    made(file.path.clone());
    sync_parent().map_err(failed)?;
    Ok(true)
}

/// Writes a whole file of the data directory, which `syncfs` makes durable later.
pub(crate) fn write_file(path: &Path, content: &[u8], access: Access) -> Result<()> {
    let write = || {
        // The mode of a restored file may keep even its owner from writing.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(access.file_mode())
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        file.set_permissions(Permissions::from_mode(access.file_mode()))?;
        file.write_all(content)
    };
    write().map_err(|error: std::io::Error| Error::io(format!("write {}", path.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    /// The content that stands for a directory.
    const DIRECTORY: &str = "(a directory)";

    fn stored(data: &Path, files: &[(&Path, &str)]) -> StoredConfiguration {
        let config_file = files.first().unwrap().0.to_owned();
        let object = crate::format::backup::StoredObject {
            stored_bytes: 0,
            sha256: Sha256Sum::of(b""),
        };
        let configuration = Configuration {
            object,
            data_directory: "/source".to_owned(),
            config_file: config_file.to_str().unwrap().to_owned(),
            hba_file: "/source/pg_hba.conf".to_owned(),
            ident_file: "/source/pg_ident.conf".to_owned(),
        };
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(if *content == DIRECTORY { 0o750 } else { 0o640 });
            let content = if *content == DIRECTORY {
                header.set_entry_type(tar::EntryType::Directory);
                ""
            } else {
                content
            };
            header.set_size(content.len() as u64);
            let name = path.to_str().unwrap().trim_start_matches('/');
            tar.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
        let tar = tar.into_inner().unwrap();
        StoredConfiguration {
            object: zstd::encode_all(tar.as_slice(), 1).unwrap().into(),
            url: "file:///a/configuration.tar.zst".to_owned(),
            places: Places::new(Some(&configuration), data),
        }
    }

    #[test]
    fn only_what_is_missing_is_put_back() {
        let top = tempfile::tempdir().unwrap();
        let (missing, there) = (
            top.path().join("etc/17/main/postgresql.conf"),
            top.path().join("pg_hba.conf"),
        );
        std::fs::write(&there, "mine").unwrap();
        let mut made = Vec::new();
        let report = stored(
            &top.path().join("data"),
            &[(&missing, "port = 5433"), (&there, "theirs")],
        )
        .put_back(Access::Owner, &mut |path| made.push(path))
        .unwrap();
        assert_eq!(report.restored, std::slice::from_ref(&missing));
        assert_eq!(report.kept, std::slice::from_ref(&there));
        assert_eq!(made, report.restored);
        assert_eq!(std::fs::read_to_string(&missing).unwrap(), "port = 5433");
        assert_eq!(missing.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_to_string(&there).unwrap(), "mine");
        assert_eq!(missing.parent().unwrap().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn only_configuration_is_put_back() {
        let top = tempfile::tempdir().unwrap();
        let at = |path: &str| top.path().join(path);
        let good = [
            "etc/postgresql.conf",
            "etc/conf.d/a.conf",
            "etc/environment",
            "b/pg_hba.conf",
        ];
        let bad = [
            "etc/.a.conf",
            "etc/authorized_keys",
            "b/a.conf",
            "b/environment",
            "b/x",
        ];
        let paths: Vec<_> = good.iter().chain(&bad).map(|path| at(path)).collect();
        let files: Vec<_> = paths.iter().map(|path| (path.as_path(), "x")).collect();
        let report = stored(top.path(), &files)
            .put_back(Access::Owner, &mut |_| {})
            .unwrap();
        assert_eq!(report.restored, good.map(at));
        assert_eq!(report.failed, bad.map(at));
        assert!(bad.iter().all(|path| !at(path).exists()));
        let note = report.note.unwrap();
        assert!(
            note.contains("authorized_keys") && !note.contains("as root"),
            "{note}"
        );
        assert!(!is_configuration(
            Path::new("/etc/cron.conf"),
            Path::new("/postgresql.conf")
        ));
    }

    #[test]
    fn directories_come_back_and_those_that_are_there_stay_as_they_are() {
        let top = tempfile::tempdir().unwrap();
        let (main, there) = (top.path().join("etc/17/main"), top.path().join("there.d"));
        std::fs::create_dir(&there).unwrap();
        std::fs::set_permissions(&there, Permissions::from_mode(0o711)).unwrap();
        let empty = main.join("conf.d");
        let report = stored(
            &top.path().join("data"),
            &[(&main, DIRECTORY), (&empty, DIRECTORY), (&there, DIRECTORY)],
        )
        .put_back(Access::Owner, &mut |_| {})
        .unwrap();
        assert_eq!(
            (report.restored, report.kept),
            (vec![main, empty.clone()], vec![])
        );
        assert_eq!(empty.metadata().unwrap().permissions().mode() & 0o777, 0o750);
        assert_eq!(there.metadata().unwrap().permissions().mode() & 0o777, 0o711);
    }

    #[test]
    fn included_files_come_back_under_any_name_but_no_hidden_ones() {
        let top = tempfile::Builder::new().prefix("plain").tempdir().unwrap();
        let at = |path: &str| top.path().join(path);
        let main = at("main/postgresql.conf");
        let content = format!(
            "include '{}'\ninclude '{}'\n",
            at("more/settings").display(),
            at(".ssh/keys").display()
        );
        let report = stored(
            &at("data"),
            &[
                (&main, &content),
                (&at("more/settings"), "include 'deeper'"),
                (&at("more/deeper"), ""),
                (&at("more/unasked"), ""),
                (&at(".ssh/keys"), ""),
            ],
        );
        std::fs::create_dir(at("data")).unwrap();
        let report = report.put_back(Access::Owner, &mut |_| {}).unwrap();
        assert_eq!(report.restored, [main, at("more/settings"), at("more/deeper")]);
        assert_eq!(report.failed, [at("more/unasked"), at(".ssh/keys")]);
    }

    #[test]
    fn what_a_link_of_the_data_directory_led_to_comes_back_in_the_copy() {
        let top = tempfile::tempdir().unwrap();
        let (data, elsewhere) = (top.path().join("copy"), top.path().join("etc/postgresql.conf"));
        std::fs::create_dir(&data).unwrap();
        let source = Path::new("/source");
        let report = stored(
            &data,
            &[
                (&elsewhere, "include_dir '/source/conf.d'"),
                (&source.join("pg_hba.conf"), "local all @admins trust"),
                (&source.join("admins"), "joe"),
                (&source.join("conf.d"), DIRECTORY),
            ],
        )
        .put_back(Access::Group, &mut |_| {})
        .unwrap();
        assert!(report.failed.is_empty(), "{report:?}");
        for (name, mode) in [("pg_hba.conf", 0o640), ("admins", 0o640), ("conf.d", 0o750)] {
            let found = data.join(name).metadata().unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode, "{name}");
        }
        assert_eq!(std::fs::read_to_string(data.join("admins")).unwrap(), "joe");
    }

    #[test]
    fn files_that_the_server_will_not_find_are_named() {
        let top = tempfile::tempdir().unwrap();
        let data = top.path();
        let places = Places::new(None, data);
        for file in ["pg_hba.conf", "pg_ident.conf"] {
            std::fs::write(data.join(file), "").unwrap();
        }
        let write = |text: &str| std::fs::write(data.join("postgresql.conf"), text).unwrap();
        write("include_if_exists 'x'\nssl = off\n");
        assert_eq!(places.missing(&[]), None);
        write("include '/no/where'\nssl = YES\nssl_ca_file = 'ca.pem'");
        let note = places.missing(&[]).unwrap();
        for name in ["/no/where", "server.key", "server.crt", "ca.pem"] {
            assert!(note.contains(name), "{note}");
        }
        assert!(
            !places
                .missing(&["/no/where".into()])
                .unwrap()
                .contains("/no/where")
        );
    }

    #[test]
    fn what_cannot_be_put_back_is_kept_beside_the_data_with_the_way_to_do_it() {
        let top = tempfile::tempdir().unwrap();
        let data = top.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(top.path().join("etc"), "a file in the way").unwrap();
        let stored = stored(&data, &[(&top.path().join("etc/postgresql.conf"), "x")]);
        let report = stored.put_back(Access::Owner, &mut |_| {}).unwrap();
        assert_eq!(report.failed.len(), 1);
        assert_eq!(std::fs::read(data.join(KEPT_OBJECT)).unwrap(), stored.object);
        assert_eq!(report.pending.as_deref(), Some(&b"x"[..]));
        let note = report.note.unwrap();
        assert!(
            note.contains(&data.join(KEPT_OBJECT).display().to_string()),
            "{note}"
        );
    }

    #[test]
    fn an_object_that_is_not_a_tar_of_plain_names_is_refused() {
        for object in [&b"not zstd"[..], &zstd::encode_all(&[1; 700][..], 1).unwrap()] {
            assert_eq!(unpack(object).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..8].copy_from_slice(b"../../up");
        header.set_size(0);
        header.set_cksum();
        let mut tar = tar::Builder::new(Vec::new());
        tar.append(&header, &b""[..]).unwrap();
        let object = zstd::encode_all(tar.into_inner().unwrap().as_slice(), 1).unwrap();
        assert_eq!(unpack(&object).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
