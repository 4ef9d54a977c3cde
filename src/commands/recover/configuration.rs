//! Configuration files that lived outside the data directory, as Debian has them: put back where they
//! are missing, never over one that is there.
//!
//! A file that cannot be put back (their directory is often root's) does not fail the recovery: the
//! verified object is kept in the data directory, and a note gives the command that unpacks it.

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::destination::Access;
use super::extract::damaged;
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
    /// Files that were missing and are back.
    pub restored: Vec<PathBuf>,
    /// Files that were there and are as they were.
    pub kept: Vec<PathBuf>,
    /// Files that are missing and could not be put back.
    pub failed: Vec<PathBuf>,
    /// What to do about them.
    #[serde(skip)]
    pub note: Option<String>,
}

/// A verified `configuration.tar.zst`.
#[derive(Debug)]
pub struct StoredConfiguration {
    object: bytes::Bytes,
    url: String,
}

/// One configuration file.
#[derive(Debug, PartialEq, Eq)]
struct StoredFile {
    path: PathBuf,
    mode: u32,
    content: Vec<u8>,
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
        Ok(Some(Self { object, url }))
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
        for file in files {
            match put_back(&file, made) {
                Ok(true) => report.restored.push(file.path),
                Ok(false) => report.kept.push(file.path),
                Err(error) => {
                    reasons.push(error.to_string());
                    report.failed.push(file.path);
                }
            }
        }
        if !report.failed.is_empty() {
            let kept = data.join(KEPT_OBJECT);
            write_file(&kept, &self.object, access)?;
            report.note = Some(failure_note(&kept, &report.failed, &reasons));
        }
        Ok(report)
    }
}

fn failure_note(kept: &Path, failed: &[PathBuf], reasons: &[String]) -> String {
    let names: Vec<_> = failed.iter().map(|path| path.display().to_string()).collect();
    format!(
        "configuration files are missing and could not be put back: {} ({}). To put them back, as root: zstd -dc \
         {} | tar -x -C / --skip-old-files",
        names.join(", "),
        reasons.first().map_or("", String::as_str),
        shell_word(&kept.to_string_lossy())
    )
}

/// The files in the object. Names are absolute paths without the leading slash.
fn unpack(object: &[u8]) -> Result<Vec<StoredFile>> {
    let unreadable = |error: std::io::Error| Error::corrupt(format!("it cannot be read: {error}"));
    let tar = zstd::stream::read::Decoder::new(object).map_err(unreadable)?;
    let mut archive = tar::Archive::new(tar.take(LIMIT_BYTES));
    let mut files = Vec::new();
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        if !entry.header().entry_type().is_file() {
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
        files.push(StoredFile {
            path: Path::new("/").join(path),
            mode: entry.header().mode().map_err(unreadable)? & 0o777,
            content,
        });
    }
    Ok(files)
}

/// Makes a file that is missing, and the directories above it; whether it was missing.
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
    // Linked into place: a reader sees all of it or nothing, and a file that came up meanwhile stays.
    let mut temporary = tempfile::Builder::new()
        .prefix(".walship-")
        .tempfile_in(parent)
        .map_err(failed)?;
    temporary
        .as_file()
        .set_permissions(Permissions::from_mode(file.mode))
        .and_then(|()| temporary.write_all(&file.content))
        .and_then(|()| temporary.as_file().sync_all())
        .map_err(failed)?;
    match temporary.persist_noclobber(&file.path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(failed(error.error)),
    }
    made(file.path.clone());
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(failed)?;
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

    fn stored(files: &[(&Path, &str)]) -> StoredConfiguration {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o640);
            header.set_size(content.len() as u64);
            let name = path.to_str().unwrap().trim_start_matches('/');
            tar.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
        let tar = tar.into_inner().unwrap();
        StoredConfiguration {
            object: zstd::encode_all(tar.as_slice(), 1).unwrap().into(),
            url: "file:///a/configuration.tar.zst".to_owned(),
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
    fn what_cannot_be_put_back_is_kept_beside_the_data_with_the_way_to_do_it() {
        let top = tempfile::tempdir().unwrap();
        let data = top.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(top.path().join("etc"), "a file in the way").unwrap();
        let stored = stored(&[(&top.path().join("etc/postgresql.conf"), "x")]);
        let report = stored.put_back(&data, Access::Owner, &mut |_| {}).unwrap();
        assert_eq!(report.failed.len(), 1);
        assert_eq!(std::fs::read(data.join(KEPT_OBJECT)).unwrap(), stored.object);
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
