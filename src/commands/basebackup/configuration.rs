//! Configuration files outside the data directory, where Debian keeps them. A base backup lacks them,
//! and a recovered cluster does not start without.
//!
//! They can only be read where the server runs on this machine. Where that fails the backup is
//! taken all the same, with a warning: the data is what matters.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::objects;
use crate::archive::backup::Configuration;
use crate::archive::keys::{BackupId, BackupObject};
use crate::error::{Context, Error, Result};
use crate::pg::Connection;
use crate::pg::data_directory::read_control_file;
use crate::store::{BodyWriter, Store};

/// A larger file is no configuration.
const FILE_LIMIT_BYTES: u64 = 1 << 20;
/// A folder with more is no folder of a cluster's configuration.
const FILES_LIMIT: usize = 256;
const LEVEL: i32 = 3;
const MEMORY_BYTES: usize = 1 << 20;
/// What PostgreSQL reads from a folder of configuration, and Debian's `environment`; no keys, no
/// certificates.
const EXTENSION: &str = "conf";
const ENVIRONMENT: &str = "environment";

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConfigurationFiles {
    data_directory: String,
    config_file: String,
    outside: Outside,
}

/// What the data directory does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Outside {
    /// Of `config_file`, `hba_file` and `ident_file`, those that lie outside.
    named: Vec<PathBuf>,
    /// The folder of `config_file`, where it is one of them.
    directory: Option<PathBuf>,
}

/// Asks the server where its configuration is; `None` where the backup holds it anyway, or where it
/// cannot be read here.
pub(super) async fn find(connection: &mut Connection, system_identifier: u64) -> Option<ConfigurationFiles> {
    match locate(connection, system_identifier).await {
        Ok(files) => files,
        Err(error) => {
            warn_left_out(&error);
            None
        }
    }
}

async fn locate(connection: &mut Connection, system_identifier: u64) -> Result<Option<ConfigurationFiles>> {
    let data_directory = show(connection, "data_directory").await?;
    let config_file = show(connection, "config_file").await?;
    let mut outside = Outside::default();
    for setting in ["config_file", "hba_file", "ident_file"] {
        let file = PathBuf::from(show(connection, setting).await?);
        if is_within(&file, Path::new(&data_directory)) {
            continue;
        }
        if setting == "config_file" {
            outside.directory = file.parent().map(Path::to_owned);
        }
        outside.named.push(file);
    }
    let Some(first) = outside.named.first() else {
        return Ok(None);
    };
    let local = read_control_file(Path::new(&data_directory))?;
    if local.is_none_or(|control| control.system_identifier != system_identifier) {
        return Err(Error::invalid(format!(
            "{} can be read only on the server's own machine, as the user who runs the server",
            first.display()
        )));
    }
    Ok(Some(ConfigurationFiles {
        data_directory,
        config_file,
        outside,
    }))
}

async fn show(connection: &mut Connection, setting: &str) -> Result<String> {
    let shown = connection.show(setting).await;
    shown.context(|| "where they are may be asked by members of pg_read_all_settings only")
}

/// By names as the server gives them, and by where they lead.
fn is_within(file: &Path, directory: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    file.starts_with(directory) || real(file).starts_with(real(directory))
}

fn warn_left_out(error: &Error) {
    tracing::warn!(
        "the backup goes without configuration files outside the data directory, if there are any: {error}; \
         keep a copy of them elsewhere"
    );
}

/// Stores the files with the backup; `None`, after a warning, where they cannot be read.
///
/// # Errors
/// As [`Store::put`].
pub(super) async fn store(
    files: ConfigurationFiles,
    store: &Store,
    id: &BackupId,
) -> Result<Option<Configuration>> {
    let packed = pack(&files.outside).and_then(|tar| {
        tar.finish()
            .map_err(|error| Error::io("compress the configuration", error))
    });
    let body = match packed {
        Ok(body) => body.finish(),
        Err(error) => {
            warn_left_out(&error);
            return Ok(None);
        }
    };
    let key = objects::key(id, BackupObject::Configuration);
    objects::create(store, &key, &body).await?;
    Ok(Some(Configuration {
        object: objects::stored(&body),
        data_directory: files.data_directory,
        config_file: files.config_file,
    }))
}

type Frame = zstd::stream::write::Encoder<'static, BodyWriter>;

fn pack(outside: &Outside) -> Result<Frame> {
    let failed = |error| Error::io("pack the configuration", error);
    let mut frame = Frame::new(BodyWriter::new(MEMORY_BYTES), LEVEL).map_err(failed)?;
    frame.include_checksum(true).map_err(failed)?;
    let mut tar = tar::Builder::new(frame);
    for path in files_of(outside)? {
        append(&mut tar, &path)?;
    }
    tar.into_inner().map_err(failed)
}

/// The named files, and the configuration beside `config_file`, one level deep; its directories too,
/// for the server does not start without an `include_dir`, even an empty one.
fn files_of(outside: &Outside) -> Result<BTreeSet<PathBuf>> {
    let mut files: BTreeSet<PathBuf> = outside.named.iter().cloned().collect();
    let Some(directory) = &outside.directory else {
        return Ok(files);
    };
    files.insert(directory.clone());
    for path in list(directory)? {
        if path.is_dir() {
            files.insert(path.clone());
            files.extend(list(&path)?.into_iter().filter(|path| is_configuration(path)));
        } else if is_configuration(&path) {
            files.insert(path);
        }
    }
    if files.len() > FILES_LIMIT {
        return Err(Error::invalid(format!(
            "{} holds {} files that look like configuration, more than a cluster has",
            directory.display(),
            files.len()
        )));
    }
    Ok(files)
}

fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let read = || {
        std::fs::read_dir(directory)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<Vec<_>>>()
    };
    read().map_err(|error| Error::io(format!("list {}", directory.display()), error))
}

fn is_configuration(path: &Path) -> bool {
    let name_fits = path.extension().is_some_and(|extension| extension == EXTENSION)
        || path.file_name().is_some_and(|name| name == ENVIRONMENT);
    name_fits && path.is_file()
}

fn append(tar: &mut tar::Builder<Frame>, path: &Path) -> Result<()> {
    let failed = |error| Error::io(format!("read {}", path.display()), error);
    let file = std::fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mut content = Vec::new();
    if metadata.is_file() {
        file.take(FILE_LIMIT_BYTES + 1)
            .read_to_end(&mut content)
            .map_err(failed)?;
    }
    if content.len() as u64 > FILE_LIMIT_BYTES {
        return Err(Error::invalid(format!(
            "{} is larger than {} KiB, too large for a configuration file",
            path.display(),
            FILE_LIMIT_BYTES >> 10
        )));
    }
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&metadata);
    header.set_size(content.len() as u64);
    let name = path.strip_prefix("/").unwrap_or(path);
    tar.append_data(&mut header, name, &content[..]).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::BodyContent;

    #[test]
    fn the_files_beside_the_configuration_are_packed_and_keys_are_not() {
        let root = tempfile::tempdir().unwrap();
        let main = root.path().join("etc/postgresql/17/main");
        fs::create_dir_all(main.join("conf.d/deeper")).unwrap();
        fs::create_dir(main.join("empty.d")).unwrap();
        let elsewhere = root.path().join("pg_hba.conf");
        for (path, content) in [
            ("postgresql.conf", "a"),
            ("environment", "b"),
            ("conf.d/10-memory.conf", "c"),
            ("conf.d/deeper/no.conf", "no"),
            ("server.key", "secret"),
            ("server.pem", "secret"),
        ] {
            fs::write(main.join(path), content).unwrap();
        }
        fs::write(&elsewhere, "d").unwrap();
        let outside = Outside {
            named: vec![main.join("postgresql.conf"), elsewhere],
            directory: Some(main),
        };
        let frame = pack(&outside).unwrap();
        let BodyContent::Memory(bytes) = frame.finish().unwrap().finish().content else {
            panic!("a small body")
        };
        let mut tar = tar::Archive::new(zstd::stream::read::Decoder::new(&bytes[..]).unwrap());
        let root = root.path().strip_prefix("/").unwrap().to_owned();
        let names: Vec<String> = tar
            .entries()
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path().unwrap().into_owned();
                path.strip_prefix(&root).unwrap().display().to_string()
            })
            .collect();
        let main = "etc/postgresql/17/main";
        assert_eq!(
            names,
            [
                main.to_owned(),
                format!("{main}/conf.d"),
                format!("{main}/conf.d/10-memory.conf"),
                format!("{main}/empty.d"),
                format!("{main}/environment"),
                format!("{main}/postgresql.conf"),
                "pg_hba.conf".to_owned(),
            ]
        );
    }

    #[test]
    fn a_huge_file_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("postgresql.conf");
        fs::write(&file, vec![b'#'; (1 << 20) + 1]).unwrap();
        let outside = Outside {
            named: vec![file],
            directory: None,
        };
        assert!(pack(&outside).is_err());
    }
}
