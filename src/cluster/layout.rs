//! Which directory each tar stream of a backup is restored into: the data directory, and each
//! tablespace's place after `--tablespace-mapping`. Pure: `destination` looks at what the
//! directories hold.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::format::backup::BackupRecord;

/// `--tablespace-mapping OLD=NEW`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceMapping {
    /// Where the tablespace was when the backup was taken.
    pub old: PathBuf,
    /// Where it is to be.
    pub new: PathBuf,
}

impl FromStr for TablespaceMapping {
    type Err = Error;

    /// As `pg_basebackup` reads it: a `=` within a path is written `\=`.
    fn from_str(text: &str) -> Result<Self> {
        let mut paths = vec![String::new()];
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            match (character, paths.last_mut()) {
                ('\\', Some(path)) if characters.peek() == Some(&'=') => path.extend(characters.next()),
                ('=', _) => paths.push(String::new()),
                (other, Some(path)) => path.push(other),
                (_, None) => {}
            }
        }
        let [old, new] = paths.as_slice() else {
            return Err(Error::invalid(format!(
                "--tablespace-mapping {text:?} is not OLD=NEW; write a \"=\" within a path as \"\\=\""
            )));
        };
        Ok(Self {
            old: absolute(Path::new(old), "the old directory of --tablespace-mapping")?,
            new: absolute(Path::new(new), "the new directory of --tablespace-mapping")?,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub data: PathBuf,
    /// For each stream of the backup, in their order.
    pub roots: Vec<Root>,
}

/// Where one tar stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    pub directory: PathBuf,
    /// The tablespace; none for the data directory.
    pub tablespace: Option<RootTablespace>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootTablespace {
    pub oid: u32,
    pub old: PathBuf,
    /// Whether it lies inside the data directory, in `pg_tblspc` (`allow_in_place_tablespaces`): it
    /// moves with it and has no line in `tablespace_map`.
    pub in_place: bool,
}

impl Layout {
    /// The layout of a backup restored into `pgdata`.
    ///
    /// # Errors
    /// `Invalid` for a path that is not absolute, a mapping of an unknown tablespace, and directories
    /// that are the same or lie within each other.
    pub fn new(pgdata: &Path, record: &BackupRecord, mappings: &[TablespaceMapping]) -> Result<Self> {
        let data = absolute(pgdata, "--pgdata")?;
        check_mappings(record, mappings)?;
        let roots = record
            .streams
            .iter()
            .map(|stream| match &stream.tablespace {
                None => Ok(Root {
                    directory: data.clone(),
                    tablespace: None,
                }),
                Some(tablespace) => root_of(tablespace.oid, &tablespace.location, &data, mappings),
            })
            .collect::<Result<Vec<_>>>()?;
        let layout = Self { data, roots };
        check_apart(layout.outside().map(|root| root.directory.as_path()))?;
        Ok(layout)
    }

    /// The data directory and every tablespace outside it: the directories that must be empty.
    pub fn outside(&self) -> impl Iterator<Item = &Root> {
        self.roots.iter().filter(|root| {
            root.tablespace
                .as_ref()
                .is_none_or(|tablespace| !tablespace.in_place)
        })
    }

    /// The directories of tablespaces inside the data directory.
    pub fn in_place(&self) -> impl Iterator<Item = &Path> {
        self.roots.iter().filter_map(|root| {
            let tablespace = root.tablespace.as_ref()?;
            tablespace.in_place.then_some(root.directory.as_path())
        })
    }

    /// The tablespaces that `tablespace_map` lists.
    pub fn tablespaces(&self) -> impl Iterator<Item = (&RootTablespace, &Path)> {
        self.outside()
            .filter_map(|root| Some((root.tablespace.as_ref()?, root.directory.as_path())))
    }
}

fn root_of(oid: u32, location: &str, data: &Path, mappings: &[TablespaceMapping]) -> Result<Root> {
    let old = PathBuf::from(location);
    let in_place = old == Path::new("pg_tblspc").join(oid.to_string());
    let directory = if in_place {
        data.join(&old)
    } else {
        let old = absolute(&old, "a tablespace's directory in the backup")?;
        mappings
            .iter()
            .find(|mapping| mapping.old == old)
            .map_or(old, |mapping| mapping.new.clone())
    };
    Ok(Root {
        directory,
        tablespace: Some(RootTablespace { oid, old, in_place }),
    })
}

fn check_mappings(record: &BackupRecord, mappings: &[TablespaceMapping]) -> Result<()> {
    let known: Vec<&str> = record
        .streams
        .iter()
        .filter_map(|stream| Some(stream.tablespace.as_ref()?.location.as_str()))
        .collect();
    for (index, mapping) in mappings.iter().enumerate() {
        let old = mapping.old.display();
        if !known.iter().any(|location| Path::new(location) == mapping.old) {
            let those = match known.as_slice() {
                [] => "it has no tablespaces outside the data directory".to_owned(),
                _ => format!("its tablespaces are at {}", known.join(", ")),
            };
            return Err(Error::invalid(format!(
                "--tablespace-mapping: backup {} has no tablespace at {old}; {those}",
                record.id
            )));
        }
        if mappings
            .iter()
            .take(index)
            .any(|earlier| earlier.old == mapping.old)
        {
            return Err(Error::invalid(format!(
                "--tablespace-mapping maps {old} twice; give it once"
            )));
        }
    }
    Ok(())
}

/// Refuses directories that are the same or lie within each other. Called on the paths as given, and
/// once more with symbolic links resolved.
pub(crate) fn check_apart<'a>(directories: impl Iterator<Item = &'a Path>) -> Result<()> {
    let directories: Vec<_> = directories.collect();
    for (index, one) in directories.iter().enumerate() {
        for other in directories.iter().skip(index + 1) {
            if one.starts_with(other) || other.starts_with(one) {
                return Err(Error::invalid(format!(
                    "{} and {} would be restored into each other; the data directory and every tablespace \
                     need a directory of their own (--tablespace-mapping OLD=NEW moves a tablespace)",
                    one.display(),
                    other.display()
                )));
            }
        }
    }
    Ok(())
}

/// The path without `.` and without doubled or trailing slashes.
fn absolute(path: &Path, what: &str) -> Result<PathBuf> {
    let plain = path.components().all(|part| {
        matches!(
            part,
            Component::RootDir | Component::Normal(_) | Component::CurDir
        )
    });
    if !path.is_absolute() || !plain || path.parent().is_none() {
        return Err(Error::invalid(format!(
            "{what} is {:?}; give an absolute path without \"..\"",
            path.display().to_string()
        )));
    }
    Ok(path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::fixture;

    fn layout(pgdata: &str, locations: &[&str], mappings: &[&str]) -> Result<Layout> {
        let mappings = mappings
            .iter()
            .map(|text| text.parse())
            .collect::<Result<Vec<_>>>()?;
        Layout::new(Path::new(pgdata), &fixture::record(locations), &mappings)
    }

    fn directories(layout: &Layout) -> Vec<&str> {
        layout
            .roots
            .iter()
            .map(|root| root.directory.to_str().unwrap())
            .collect()
    }

    #[test]
    fn a_tablespace_stays_where_it_was_unless_it_is_mapped() {
        let layout = layout("/pg/", &["/a", "/b=c"], &["/b\\=c/=/new/b"]).unwrap();
        assert_eq!(directories(&layout), ["/a", "/new/b", "/pg"]);
        let map: Vec<_> = layout
            .tablespaces()
            .map(|(ts, directory)| (ts.oid, directory))
            .collect();
        assert_eq!(map, [(16384, Path::new("/a")), (16385, Path::new("/new/b"))]);
    }

    #[test]
    fn an_in_place_tablespace_moves_with_the_data_directory() {
        let layout = layout("/pg", &["pg_tblspc/16384"], &[]).unwrap();
        assert_eq!(directories(&layout), ["/pg/pg_tblspc/16384", "/pg"]);
        assert_eq!(layout.tablespaces().count(), 0);
    }

    #[test]
    fn a_mapping_of_an_unknown_tablespace_names_the_known_ones() {
        let error = layout("/pg", &["/a", "/b"], &["/c=/d"]).unwrap_err();
        assert!(error.to_string().contains("at /a, /b"), "{error}");
        assert!(layout("/pg", &["/a"], &["/a=/b", "/a=/c"]).is_err());
    }

    #[test]
    fn directories_within_each_other_are_refused() {
        for (pgdata, locations, mappings) in [
            ("/pg", &["/pg/ts"][..], &[][..]),
            ("/a/pg", &["/a"], &[]),
            ("/pg", &["/a", "/b"], &["/b=/a"]),
            ("/pg", &["/a", "/b"], &["/b=/a/b"]),
            ("/pg", &["/a"], &["/a=/pg"]),
        ] {
            let error = layout(pgdata, locations, mappings).unwrap_err();
            assert_eq!(
                error.kind(),
                crate::ErrorKind::Invalid,
                "{pgdata} {locations:?} {mappings:?}"
            );
        }
        assert!(layout("/pg", &["/pg2"], &[]).is_ok());
    }

    #[test]
    fn a_path_that_is_not_absolute_is_refused() {
        for pgdata in ["", "pg", "./pg", "/a/../pg", "/"] {
            assert!(layout(pgdata, &[], &[]).is_err(), "{pgdata:?}");
        }
        for mapping in ["", "/a", "/a=", "/a=b", "a=/b", "/a=/b=/c", "/a=/../b"] {
            assert!(mapping.parse::<TablespaceMapping>().is_err(), "{mapping:?}");
        }
    }
}
