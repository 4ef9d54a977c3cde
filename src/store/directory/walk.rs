//! Listing a directory store: a walk in the order of the keys' bytes, a page at a time.

use std::fs;
use std::io::ErrorKind as IoKind;
use std::path::PathBuf;
use std::vec;

use super::{TEMPORARY, check_root_to_read, explain, failed, object_info};
use crate::error::{Error, Result};
use crate::store::ObjectInfo;

/// As many objects as an S3 server returns at once.
const PAGE: usize = 1000;

/// An archive has four levels; whoever links a directory into itself gets an error, not a hang.
const DEEPEST: usize = 32;

/// A walk in progress. Its memory is the names of the directories it is in, and one page.
#[derive(Debug)]
pub(in crate::store) struct Walk {
    root: PathBuf,
    prefix: String,
    start_after: String,
    begun: bool,
    /// One for each directory it is in: what is left there, in order.
    open: Vec<vec::IntoIter<String>>,
}

impl Walk {
    pub(super) fn new(root: PathBuf, prefix: &str, start_after: Option<&str>) -> Self {
        Self {
            root,
            prefix: prefix.to_owned(),
            start_after: start_after.unwrap_or_default().to_owned(),
            begun: false,
            open: Vec::new(),
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.begun && self.open.is_empty()
    }

    /// The next objects; fewer than a page only at the end.
    pub(super) fn page(&mut self) -> Result<Vec<ObjectInfo>> {
        if !self.begun {
            self.begun = true;
            check_root_to_read(&self.root)?;
            let folder = self
                .prefix
                .rsplit_once('/')
                .map_or(String::new(), |(folder, _)| format!("{folder}/"));
            self.enter(&folder)?;
        }
        let mut page = Vec::new();
        while page.len() < PAGE {
            let Some(directory) = self.open.last_mut() else {
                break;
            };
            match directory.next() {
                None => drop(self.open.pop()),
                Some(key) if key.ends_with('/') => self.enter(&key)?,
                Some(key) => page.extend(self.look(key)?),
            }
        }
        Ok(page)
    }

    /// Opens a directory, `""` or `…/`: its entries as keys, those of directories with a slash, so
    /// that sorting them puts what is below in the right place ("a-b" before "a/b").
    fn enter(&mut self, folder: &str) -> Result<()> {
        let path = self.root.join(folder);
        if self.open.len() == DEEPEST {
            return Err(Error::invalid(format!(
                "{} is nested too deeply; see whether a symbolic link leads back into the archive",
                path.display()
            )));
        }
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) => {
                let error = explain(error, &self.root, folder.trim_end_matches('/'));
                return if error.kind() == crate::ErrorKind::NotFound {
                    Ok(())
                } else {
                    Err(error)
                };
            }
        };
        let reading = |error| failed(format!("list {}", path.display()), error);
        let mut keys = Vec::new();
        for entry in entries {
            let entry = entry.map_err(reading)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(TEMPORARY) {
                continue;
            }
            let mut kind = entry.file_type().map_err(reading)?;
            if kind.is_symlink() {
                // A link that leads nowhere stays a link, and is complained about in its turn.
                kind = fs::metadata(entry.path()).map_or(kind, |target| target.file_type());
            }
            let key = format!("{folder}{name}{}", if kind.is_dir() { "/" } else { "" });
            if self.wants(&key) {
                keys.push(key);
            }
        }
        keys.sort_unstable();
        self.open.push(keys.into_iter());
        Ok(())
    }

    /// Whether a key, or anything below a folder, can be part of the listing.
    fn wants(&self, key: &str) -> bool {
        let after =
            key > self.start_after.as_str() || (key.ends_with('/') && self.start_after.starts_with(key));
        after && (key.starts_with(&self.prefix) || (key.ends_with('/') && self.prefix.starts_with(key)))
    }

    /// Size and time of a file; nothing for one that was deleted meanwhile, or is not a file.
    fn look(&self, key: String) -> Result<Option<ObjectInfo>> {
        let path = self.root.join(&key);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => object_info(key, &path, &metadata).map(Some),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == IoKind::NotFound => {
                let error = explain(error, &self.root, &key);
                if error.kind() == crate::ErrorKind::NotFound {
                    Ok(None)
                } else {
                    Err(error)
                }
            }
            Err(error) => Err(failed(format!("look at {}", path.display()), error)),
        }
    }
}
