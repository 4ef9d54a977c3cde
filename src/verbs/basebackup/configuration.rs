//! Configuration files that a base backup lacks, although a recovered cluster does not start without them: files
//! outside the data directory, where Debian keeps them, all files that they include, and links in the data directory,
//! which PostgreSQL leaves out.
//!
//! They can only be read on the server's own machine. If they cannot be read, the backup is taken all the same, with a
//! warning, because the data matters most.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::objects;
use crate::archive::Archive;
use crate::error::{Context, Error, Result};
use crate::format::backup::Configuration;
use crate::format::keys::{BackupId, BackupObject};
use crate::pg::configuration_files::{ConfigurationFiles, Files, Grammar};
use crate::server::Connection;
use crate::server::data_directory::read_control_file;
use crate::store::BodyWriter;

/// A larger file cannot be configuration.
const FILE_LIMIT_BYTES: u64 = 1 << 20;
/// More files cannot be one cluster's configuration.
const FILES_LIMIT: usize = 256;
const LEVEL: i32 = 3;
const MEMORY_BYTES: usize = 1 << 20;
/// What PostgreSQL reads from a folder of configuration, and Debian's `environment`; no keys, no
/// certificates.
const EXTENSION: &str = "conf";
const ENVIRONMENT: &str = "environment";

/// Where the server's configuration begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    data_directory: PathBuf,
    config_file: PathBuf,
    hba_file: PathBuf,
    ident_file: PathBuf,
}

/// Asks the server where its configuration is; `None` where it cannot be read here.
pub(super) async fn find(connection: &mut Connection, system_identifier: u64) -> Option<Places> {
    match locate(connection, system_identifier).await {
        Ok(places) => places,
        Err(error) => {
            warn_left_out(&error);
            None
        }
    }
}

async fn locate(connection: &mut Connection, system_identifier: u64) -> Result<Option<Places>> {
    let places = Places {
        data_directory: show(connection, "data_directory").await?,
        config_file: show(connection, "config_file").await?,
        hba_file: show(connection, "hba_file").await?,
        ident_file: show(connection, "ident_file").await?,
    };
    // For a server on another machine only what is in the data directory is backed up, and that may be all.
    let local = read_control_file(&places.data_directory);
    if let Ok(Some(control)) = &local
        && control.system_identifier == system_identifier
    {
        return Ok(Some(places));
    }
    let outside = places
        .named()
        .find(|file| !file.starts_with(&places.data_directory));
    match outside {
        None => Ok(None),
        Some(file) => Err(Error::invalid(format!(
            "{} can be read only on the server's own machine, as the user who runs the server",
            file.display()
        ))),
    }
}

async fn show(connection: &mut Connection, setting: &str) -> Result<PathBuf> {
    let shown = connection.show(setting).await;
    shown
        .map(PathBuf::from)
        .context(|| "only members of pg_read_all_settings may ask where they are")
}

impl Places {
    fn named(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.config_file, &self.hba_file, &self.ident_file].into_iter()
    }

    /// Whether the backup of the data directory has the file at this path: neither it nor a directory on the path from
    /// the data directory to it is a link.
    fn in_backup(&self, path: &Path) -> bool {
        let (Ok(data), Ok(real)) = (self.data_directory.canonicalize(), path.canonicalize()) else {
            return false;
        };
        match path.strip_prefix(&self.data_directory) {
            Ok(within) => real == data.join(within),
            Err(_) => real.starts_with(data) && !path.is_symlink(),
        }
    }

    /// The files to store, and those that cannot be read, each with the reason.
    fn read(&self) -> Result<(BTreeMap<PathBuf, Member>, Vec<String>)> {
        let mut disk = Disk::default();
        let mut followed = ConfigurationFiles::default();
        followed.follow(&self.config_file, Grammar::Settings, &mut disk);
        let automatic = self.data_directory.join("postgresql.auto.conf");
        if automatic.exists() {
            followed.follow(&automatic, Grammar::Settings, &mut disk);
        }
        for file in [&self.hba_file, &self.ident_file] {
            followed.follow(file, Grammar::Rules, &mut disk);
        }
        for directory in followed.directories {
            disk.take_directory(directory);
        }
        if let Some(directory) = self.config_file.parent()
            && !self.in_backup(directory)
        {
            disk.take_folder(directory);
        }
        let Disk { mut members, failed } = disk;
        members.retain(|path, _| !self.in_backup(path));
        if members.len() > FILES_LIMIT {
            return Err(Error::invalid(format!(
                "{} and the files that it includes are {} files, more than a cluster's configuration has",
                self.config_file.display(),
                members.len()
            )));
        }
        // A file that the server does not need may be missing.
        let failed = failed
            .into_iter()
            .filter(|(path, _)| followed.missing.contains(path) || path.exists());
        let failed = failed.map(|(path, error)| format!("{} ({error})", path.display()));
        Ok((members, failed.collect()))
    }
}

/// A file or directory to store; no content for a directory.
#[derive(Debug)]
struct Member {
    metadata: Metadata,
    content: Vec<u8>,
}

/// What was read, and why the rest could not be.
#[derive(Debug, Default)]
struct Disk {
    members: BTreeMap<PathBuf, Member>,
    failed: BTreeMap<PathBuf, String>,
}

impl Files for Disk {
    fn read(&mut self, path: &Path) -> Option<Vec<u8>> {
        match read_file(path) {
            Ok(member) => {
                let content = member.content.clone();
                self.members.insert(path.to_owned(), member);
                Some(content)
            }
            Err(error) => {
                self.failed.insert(path.to_owned(), error);
                None
            }
        }
    }

    fn list(&mut self, directory: &Path) -> Option<Vec<PathBuf>> {
        let read = || -> std::io::Result<Vec<PathBuf>> {
            let entries = std::fs::read_dir(directory)?;
            let mut paths = entries
                .map(|entry| Ok(entry?.path()))
                .collect::<std::io::Result<Vec<_>>>()?;
            paths.retain(|path| path.is_file());
            Ok(paths)
        };
        match read() {
            Ok(paths) => Some(paths),
            Err(error) => {
                self.failed.insert(directory.to_owned(), error.to_string());
                None
            }
        }
    }
}

impl Disk {
    /// The server does not start without an `include_dir`, even an empty one.
    fn take_directory(&mut self, directory: PathBuf) {
        if let Ok(metadata) = directory.metadata() {
            let content = Vec::new();
            self.members.insert(directory, Member { metadata, content });
        }
    }

    /// The configuration in a folder, one level deep, whether the server reads it now or not.
    fn take_folder(&mut self, directory: &Path) {
        self.take_directory(directory.to_owned());
        let Ok(entries) = std::fs::read_dir(directory) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                let within = self.list(&path).unwrap_or_default();
                self.take_directory(path);
                for path in &within {
                    self.take_configuration(path);
                }
            } else {
                self.take_configuration(&path);
            }
        }
    }

    fn take_configuration(&mut self, path: &Path) {
        if is_configuration(path) {
            self.read(path);
        }
    }
}

fn read_file(path: &Path) -> std::result::Result<Member, String> {
    let read = || -> std::io::Result<Member> {
        let file = std::fs::File::open(path)?;
        let metadata = file.metadata()?;
        let mut content = Vec::new();
        file.take(FILE_LIMIT_BYTES + 1).read_to_end(&mut content)?;
        Ok(Member { metadata, content })
    };
    // Opening a pipe would wait until somebody writes to it.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return Err("it is not a regular file".to_owned());
    }
    let member = read().map_err(|error| error.to_string())?;
    if member.content.len() as u64 > FILE_LIMIT_BYTES {
        let limit = FILE_LIMIT_BYTES >> 10;
        return Err(format!(
            "it has more than {limit} KiB, which is too large for a configuration file"
        ));
    }
    Ok(member)
}

fn warn_left_out(error: &Error) {
    tracing::warn!(
        "the backup does not contain configuration files outside the data directory, if there are any: {error}; \
         keep a copy of them elsewhere"
    );
}

/// Stores the files with the backup; `None` where there are none, or where they cannot be read, after a warning.
pub(super) async fn store(places: Places, archive: &Archive, id: &BackupId) -> Result<Option<Configuration>> {
    let packed = places.read().and_then(|(members, failed)| {
        if !failed.is_empty() {
            tracing::warn!(
                "the backup does not contain these configuration files, which the server needs but walship cannot read: {}; \
                 keep a copy elsewhere, or let the user who takes the backup read them",
                failed.join(", ")
            );
        }
        (!members.is_empty()).then(|| pack(&members)).transpose()
    });
    let body = match packed {
        Ok(Some(frame)) => frame,
        Ok(None) => return Ok(None),
        Err(error) => {
            warn_left_out(&error);
            return Ok(None);
        }
    };
    objects::create(archive, id, BackupObject::Configuration, &body).await?;
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    Ok(Some(Configuration {
        object: objects::stored(&body),
        data_directory: text(places.data_directory),
        config_file: text(places.config_file),
        hba_file: text(places.hba_file),
        ident_file: text(places.ident_file),
    }))
}

fn pack(members: &BTreeMap<PathBuf, Member>) -> Result<crate::store::Body> {
    let pack = || -> std::io::Result<BodyWriter> {
        let mut frame = zstd::stream::write::Encoder::new(BodyWriter::new(MEMORY_BYTES), LEVEL)?;
        frame.include_checksum(true)?;
        let mut tar = tar::Builder::new(frame);
        for (path, member) in members {
            let mut header = tar::Header::new_gnu();
            header.set_metadata(&member.metadata);
            header.set_size(member.content.len() as u64);
            let name = path.strip_prefix("/").unwrap_or(path);
            tar.append_data(&mut header, name, member.content.as_slice())?;
        }
        tar.into_inner()?.finish()
    };
    let packed = pack().map_err(|error| Error::io("pack the configuration", error))?;
    Ok(packed.finish())
}

fn is_configuration(path: &Path) -> bool {
    let name_fits = path.extension().is_some_and(|extension| extension == EXTENSION)
        || path.file_name().is_some_and(|name| name == ENVIRONMENT);
    name_fits && path.is_file()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn places(data: &Path, folder: &Path) -> Places {
        Places {
            data_directory: data.to_owned(),
            config_file: folder.join("postgresql.conf"),
            hba_file: folder.join("pg_hba.conf"),
            ident_file: folder.join("pg_ident.conf"),
        }
    }

    /// What would be stored, relative to the top.
    fn stored(places: &Places, top: &Path) -> Vec<String> {
        let (members, failed) = places.read().unwrap();
        assert_eq!(failed, Vec::<String>::new());
        let paths = members.keys().map(|path| path.strip_prefix(top).unwrap());
        paths.map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn the_files_beside_the_configuration_are_stored_and_keys_are_not() {
        let top = tempfile::tempdir().unwrap();
        let data = top.path().join("data");
        let main = top.path().join("etc/17/main");
        fs::create_dir_all(main.join("conf.d/deeper")).unwrap();
        fs::create_dir(main.join("empty.d")).unwrap();
        fs::create_dir(&data).unwrap();
        for (path, content) in [
            ("postgresql.conf", "include_dir 'conf.d'"),
            ("pg_hba.conf", ""),
            ("pg_ident.conf", ""),
            ("environment", "b"),
            ("conf.d/10-memory.conf", "include_if_exists 'not/there'"),
            ("conf.d/deeper/no.conf", "no"),
            ("server.key", "secret"),
            ("server.pem", "secret"),
        ] {
            fs::write(main.join(path), content).unwrap();
        }
        let expected = [
            "",
            "/conf.d",
            "/conf.d/10-memory.conf",
            "/empty.d",
            "/environment",
            "/pg_hba.conf",
            "/pg_ident.conf",
            "/postgresql.conf",
        ];
        let expected = expected.map(|name| format!("etc/17/main{name}"));
        assert_eq!(stored(&places(&data, &main), top.path()), expected);
    }

    #[test]
    fn links_and_includes_are_stored_and_files_in_the_data_directory_are_not() {
        let top = tempfile::tempdir().unwrap();
        let (data, etc) = (top.path().join("data"), top.path().join("etc"));
        fs::create_dir_all(data.join("own.d")).unwrap();
        fs::create_dir_all(etc.join("more")).unwrap();
        fs::write(data.join("own.d/a.conf"), "").unwrap();
        fs::write(data.join("pg_hba.conf"), "local @lists/admins all trust").unwrap();
        fs::write(
            etc.join("main.conf"),
            "include_dir 'own.d'\ninclude_dir 'linked.d'",
        )
        .unwrap();
        fs::write(etc.join("more/settings.inc"), "").unwrap();
        fs::write(etc.join("more/x.conf"), "include 'settings.inc'").unwrap();
        fs::write(etc.join("ident"), "").unwrap();
        fs::create_dir(etc.join("lists")).unwrap();
        fs::write(etc.join("lists/admins"), "joe").unwrap();
        symlink(etc.join("main.conf"), data.join("postgresql.conf")).unwrap();
        symlink("../etc/ident", data.join("pg_ident.conf")).unwrap();
        symlink(etc.join("more"), data.join("linked.d")).unwrap();
        symlink(etc.join("lists"), data.join("lists")).unwrap();
        // A path is read as it is written: what is included beside a link counts from the link.
        let expected = [
            "data/linked.d",
            "data/linked.d/settings.inc",
            "data/linked.d/x.conf",
            "data/lists/admins",
            "data/pg_ident.conf",
            "data/postgresql.conf",
        ];
        assert_eq!(stored(&places(&data, &data), top.path()), expected);
    }

    #[test]
    fn what_cannot_be_stored_is_named_and_the_rest_is_stored() {
        let top = tempfile::tempdir().unwrap();
        let (data, etc) = (top.path().join("data"), top.path().join("etc"));
        fs::create_dir(&data).unwrap();
        fs::create_dir(&etc).unwrap();
        fs::write(
            etc.join("postgresql.conf"),
            "include 'huge'\ninclude 'gone'\ninclude_dir 'no.d'",
        )
        .unwrap();
        fs::write(etc.join("huge"), vec![b'#'; (1 << 20) + 1]).unwrap();
        fs::write(etc.join("pg_hba.conf"), "").unwrap();
        fs::write(etc.join("pg_ident.conf"), "").unwrap();
        let (members, failed) = places(&data, &etc).read().unwrap();
        assert_eq!(members.len(), 4);
        let failed = failed.concat();
        for name in ["huge", "gone", "no.d"] {
            assert!(failed.contains(&etc.join(name).display().to_string()), "{failed}");
        }
    }
}
