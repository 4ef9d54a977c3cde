//! Listing a directory store: a walk in the order of the keys' bytes, a page at a time.

use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::root::Root;
use super::{TEMPORARY, entries, is_directory, is_file, object_info};
use crate::backend::Depth;
use crate::{ObjectInfo, Page};
use walship_core::{Error, ErrorKind, Result};

/// As many objects and folders as an S3 server returns at once.
const PAGE_ENTRIES: usize = 1000;

/// An archive has four levels. A link from a directory to one above it ends in an error, not in a hang.
const DEEPEST: usize = 32;

/// A walk in progress. Its memory is the names of the directories it is in, and one page.
#[derive(Debug, Clone)]
pub(crate) struct Walk {
    root: Root,
    prefix: String,
    start_after: String,
    depth: Depth,
    begun: bool,
    /// One for each directory it is in: what is left there, in order.
    open: Vec<Folder>,
}

/// The entries of a directory, and how far the walk is in it. Cheap to clone, so that a page can be listed again.
#[derive(Debug, Clone)]
struct Folder {
    keys: Arc<[String]>,
    next: usize,
}

impl Folder {
    fn next(&mut self) -> Option<String> {
        let key = self.keys.get(self.next)?;
        self.next += 1;
        Some(key.clone())
    }
}

impl Walk {
    pub(super) fn new(root: Root, prefix: &str, start_after: Option<&str>, depth: Depth) -> Self {
        Self {
            root,
            prefix: prefix.to_owned(),
            start_after: start_after.unwrap_or_default().to_owned(),
            depth,
            begun: false,
            open: Vec::new(),
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.begun && self.open.is_empty()
    }

    /// What comes next; less than a page only at the end.
    pub(super) fn page(&mut self) -> Result<Page> {
        if !self.begun {
            self.begun = true;
            let folder = self
                .prefix
                .rsplit_once('/')
                .map_or(String::new(), |(folder, _)| format!("{folder}/"));
            self.enter(&folder)?;
        }
        let mut page = Page::default();
        while page.objects.len() + page.folders.len() < PAGE_ENTRIES {
            let Some(directory) = self.open.last_mut() else {
                break;
            };
            match directory.next() {
                None => drop(self.open.pop()),
                Some(key) if !key.ends_with('/') => page.objects.extend(self.look(&key)?),
                Some(key) if self.depth == Depth::Folder && key.len() > self.prefix.len() => {
                    page.folders.push(key);
                }
                Some(key) => self.enter(&key)?,
            }
        }
        // The path may lead to another directory by now, which may have what was not found here.
        self.root.check_in_place()?;
        Ok(page)
    }

    /// Opens a directory, `""` or `…/`: its entries as keys, those of directories with a slash, so
    /// that sorting them puts what is below in the right place ("a-b" before "a/b").
    fn enter(&mut self, folder: &str) -> Result<()> {
        let shown = || self.root.shown(folder);
        if self.open.len() == DEEPEST {
            return Err(Error::invalid(format!(
                "{} is nested too deeply; see whether a symbolic link leads back into the archive",
                shown()
            )));
        }
        let entries = match entries(&self.root, folder.trim_end_matches('/'))? {
            Ok(entries) => entries,
            Err(error) => {
                return self
                    .none_if_missing(error, folder.trim_end_matches('/'))
                    .map(drop);
            }
        };
        let mut keys = Vec::new();
        for (name, kind) in entries {
            if name.starts_with(TEMPORARY) {
                continue;
            }
            let mut is_folder = kind == FileType::Directory;
            if matches!(kind, FileType::Symlink | FileType::Unknown) {
                // A link that leads nowhere is reported when its turn comes.
                let there = self.root.look(&format!("{folder}{name}"))?;
                is_folder = there.is_ok_and(|there| is_directory(&there));
            }
            let key = format!("{folder}{name}{}", if is_folder { "/" } else { "" });
            if self.wants(&key) {
                keys.push(key);
            }
        }
        keys.sort_unstable();
        self.open.push(Folder {
            keys: keys.into(),
            next: 0,
        });
        Ok(())
    }

    /// Whether a key, or anything below a folder, can be part of the listing.
    fn wants(&self, key: &str) -> bool {
        let after =
            key > self.start_after.as_str() || (key.ends_with('/') && self.start_after.starts_with(key));
        after && (key.starts_with(&self.prefix) || (key.ends_with('/') && self.prefix.starts_with(key)))
    }

    /// Size and time of a file; nothing for one that was deleted meanwhile, or is not a file.
    fn look(&self, key: &str) -> Result<Option<ObjectInfo>> {
        match self.root.look(key)? {
            Ok(there) if is_file(&there) => object_info(key.to_owned(), &self.root, &there).map(Some),
            Ok(_) => Ok(None),
            Err(error) => self.none_if_missing(error, key).map(|()| None),
        }
    }

    /// Succeeds if what could not be opened is proven missing.
    fn none_if_missing(&self, error: Errno, key: &str) -> Result<()> {
        match self.root.explain(error, key) {
            error if error.kind() == ErrorKind::NotFound => Ok(()),
            error => Err(error.context(format!("list {}", self.root.shown(key)))),
        }
    }
}
