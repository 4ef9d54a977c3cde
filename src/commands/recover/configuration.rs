//! Configuration files that lived outside the data directory, as Debian has them: put back where they
//! are missing, never over one that is there.
//!
//! A file that cannot be put back (their directory is often root's) does not fail the recovery: the
//! verified object is kept in the data directory, and a note gives the command that unpacks it.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::destination::Access;
use super::extract::damaged;
use super::guc_file::values_of;
use super::shell::shell_word;
use crate::archive::Sha256Sum;
use crate::archive::backup::BackupRecord;
use crate::archive::keys::{BackupObject, Key};
use crate::error::{Context, Error, Result};
use crate::store::Store;

/// The largest `configuration.tar.zst`, and what it may hold, in bytes.
const LIMIT_BYTES: u64 = 64 << 20;
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
}

/// A verified `configuration.tar.zst`.
#[derive(Debug)]
pub struct StoredConfiguration {
    object: bytes::Bytes,
    url: String,
    /// The source's `config_file`.
    config_file: PathBuf,
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
    pub async fn fetch(store: &Store, record: &BackupRecord) -> Result<Option<Self>> {
        let Some(configuration) = &record.configuration else {
            return Ok(None);
        };
        let key = Key::Backup(record.id.clone(), BackupObject::Configuration).to_string();
        let url = store.url_of(&key);
        let object = store
            .read(&key, LIMIT_BYTES)
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
            config_file: PathBuf::from(&configuration.config_file),
        }))
    }

    /// Puts back what is missing. `made` hears of each file before it is made.
    ///
    /// # Errors
    /// `Corrupt` where it is no tar of files with plain names; `Internal` where what could not be put
    /// back cannot be kept in the data directory either.
    pub fn put_back(
        &self,
        data: &Path,
        access: Access,
        made: &mut dyn FnMut(PathBuf),
    ) -> Result<ConfigurationReport> {
        let files = unpack(&self.object).map_err(|error| damaged(error, &self.url))?;
        let mut report = ConfigurationReport::default();
        let mut reasons = Vec::new();
        let mut unknown = Vec::new();
        // Archives of older versions lack the directories, without which the server does not start.
        let mut included = BTreeSet::new();
        for file in files {
            if file.content.is_some() && !is_configuration(&file.path, &self.config_file) {
                unknown.push(file.path);
                continue;
            }
            let outcome = put_back(&file, made);
            if !matches!(outcome, Ok(false)) {
                included.extend(included_directories(&file));
            }
            match outcome {
                Ok(true) => report.restored.push(file.path),
                Ok(false) if file.content.is_none() => {}
                Ok(false) => report.kept.push(file.path),
                Err(error) => {
                    reasons.push(error.to_string());
                    if file.path == self.config_file {
                        report.pending = file.content;
                    }
                    report.failed.push(file.path);
                }
            }
        }
        let mut to_make = Vec::new();
        for path in included {
            if report.failed.contains(&path) {
                continue;
            }
            let directory = StoredFile {
                path,
                mode: 0o755,
                content: None,
            };
            match put_back(&directory, made) {
                Ok(true) => report.restored.push(directory.path),
                Ok(false) => {}
                Err(error) => {
                    reasons.push(error.to_string());
                    to_make.push(directory.path);
                }
            }
        }
        report.note = self.note(data, access, &report.failed, &to_make, &unknown, &reasons)?;
        report.failed.extend(to_make);
        report.failed.extend(unknown);
        Ok(report)
    }

    /// What somebody has to do by hand, if anything; what could not be put back is kept in the data
    /// directory.
    fn note(
        &self,
        data: &Path,
        access: Access,
        failed: &[PathBuf],
        to_make: &[PathBuf],
        unknown: &[PathBuf],
        reasons: &[String],
    ) -> Result<Option<String>> {
        let kept = data.join(KEPT_OBJECT);
        if !failed.is_empty() || !unknown.is_empty() {
            write_file(&kept, &self.object, access)?;
        }
        let mut notes = Vec::new();
        if !failed.is_empty() || !to_make.is_empty() {
            notes.push(failure_note(&kept, failed, to_make, reasons));
        }
        if !unknown.is_empty() {
            notes.push(unknown_note(&kept, unknown));
        }
        Ok((!notes.is_empty()).then(|| notes.join("; ")))
    }
}

fn failure_note(kept: &Path, failed: &[PathBuf], to_make: &[PathBuf], reasons: &[String]) -> String {
    let words = |paths: &[PathBuf], skip: &str| {
        let words = paths
            .iter()
            .map(|path| path.to_string_lossy().trim_start_matches(skip).to_owned());
        words.map(|word| shell_word(&word)).collect::<Vec<_>>().join(" ")
    };
    let mut commands = Vec::new();
    if !failed.is_empty() {
        // Only these: root must not unpack whatever else is there.
        let kept = shell_word(&kept.to_string_lossy());
        commands.push(format!(
            "zstd -dc {kept} | tar -x -C / --skip-old-files -- {}",
            words(failed, "/")
        ));
    }
    if !to_make.is_empty() {
        commands.push(format!("mkdir -p {}", words(to_make, "")));
    }
    format!(
        "configuration files are missing and could not be put back: {} ({}). Before you start the server put them \
         back, as root: {}",
        shown(&[failed, to_make].concat()),
        reasons.first().map_or("", String::as_str),
        commands.join(" && ")
    )
}

fn unknown_note(kept: &Path, unknown: &[PathBuf]) -> String {
    format!(
        "files of the backup's configuration have names that only you can judge, and were not put back: {}. They \
         are in {}",
        shown(unknown),
        kept.display()
    )
}

fn shown(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    names.join(", ")
}

/// Whether a file is put back without asking: what has a name of configuration (`*.conf`, Debian's
/// `environment`) in the folder of `config_file`, and `hba_file` and `ident_file` by their usual names
/// anywhere. Whoever can write to the archive must not be able to write any file here.
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

/// The directories whose files a configuration file includes, each as PostgreSQL finds it.
fn included_directories(file: &StoredFile) -> Vec<PathBuf> {
    let content = file.content.as_deref().unwrap_or_default();
    let parent = file.path.parent().unwrap_or(Path::new("/"));
    values_of(content, "include_dir")
        .filter_map(|value| String::from_utf8(value).ok())
        .filter(|value| !value.is_empty())
        .map(|value| parent.join(value))
        .collect()
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
    // Linked into place: a reader sees all of it or nothing, and a file that came up meanwhile stays.
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
pub(super) fn write_file(path: &Path, content: &[u8], access: Access) -> Result<()> {
    let write = || {
        // One that was restored may be closed to its owner.
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

    fn stored(files: &[(&Path, &str)]) -> StoredConfiguration {
        let config_file = files.first().unwrap().0.to_owned();
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
            config_file,
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
        let report = stored(&[(&missing, "port = 5433"), (&there, "theirs")])
            .put_back(top.path(), Access::Owner, &mut |path| made.push(path))
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
        let report = stored(&files)
            .put_back(top.path(), Access::Owner, &mut |_| {})
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
        let report = stored(&[(&main, DIRECTORY), (&empty, DIRECTORY), (&there, DIRECTORY)])
            .put_back(top.path(), Access::Owner, &mut |_| {})
            .unwrap();
        assert_eq!(
            (report.restored, report.kept),
            (vec![main, empty.clone()], vec![])
        );
        assert_eq!(empty.metadata().unwrap().permissions().mode() & 0o777, 0o750);
        assert_eq!(there.metadata().unwrap().permissions().mode() & 0o777, 0o711);
    }

    #[test]
    fn the_directories_that_restored_files_include_are_made() {
        let top = tempfile::tempdir().unwrap();
        let file = top.path().join("main/postgresql.conf");
        let elsewhere = top.path().join("else/where");
        let content = format!("include_dir = 'conf.d'\nInclude_Dir '{}'\n", elsewhere.display());
        let report = stored(&[(&file, &content)])
            .put_back(top.path(), Access::Owner, &mut |_| {})
            .unwrap();
        assert!(top.path().join("main/conf.d").is_dir() && elsewhere.is_dir());
        assert_eq!(report.restored.len(), 3);
    }

    #[test]
    fn what_cannot_be_put_back_is_kept_beside_the_data_with_the_way_to_do_it() {
        let top = tempfile::tempdir().unwrap();
        let data = top.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(top.path().join("etc"), "a file in the way").unwrap();
        let stored = stored(&[(&top.path().join("etc/postgresql.conf"), "x")]);
        let report = stored.put_back(&data, Access::Owner, &mut |_| {}).unwrap();
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
    fn an_object_that_is_no_tar_of_plain_names_is_refused() {
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
