//! The thread that reads a data directory and its tablespaces, in the order and by the rules of `basebackup.c`
//! (PostgreSQL 14 to 18), with two differences: the files that remember the archive are left out, and `backup_label`
//! and `tablespace_map` come at the end, before `global/pg_control`, because the server provides them last.

use std::fs::{File, Metadata};
use std::io::{ErrorKind as IoKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::names::Relation;
use super::page::PAGE_BYTES;
use super::tar_out::{Attributes, TarOut};
use super::{Event, Outlet, TablespaceHeader, not_seen, unreadable};
use crate::error::{Error, Result};
use crate::format::remembered::ARCHIVE_FILE;
use crate::pg::{ControlFile, Lsn, ManifestWalRange};
use crate::pg::{ManifestWriter, NewFile};
use crate::server::base_backup::local::{names, page};
use crate::server::data_directory::control_file;

const CONTROL_FILE: &str = "global/pg_control";
/// Bytes that are read at once: whole pages.
const READ_BYTES: u64 = 256 << 10;
/// Pages in a relation's file of 1 GiB (`RELSEG_SIZE`).
const SEGMENT_PAGES: u32 = 1 << 17;
/// Bytes of the manifest that are gathered before they are sent.
const MANIFEST_BYTES: usize = 64 << 10;
/// At most this many damaged pages are named.
const NAMED_PAGES: u64 = 5;
/// The permissions of a cluster whose group may read (`PG_DIR_MODE_GROUP`, `src/include/common/file_perm.h`).
const GROUP_READS: u32 = 0o050;

pub(super) struct Sender {
    data_directory: PathBuf,
    control: ControlFile,
    start_lsn: Lsn,
    tablespaces: Vec<TablespaceHeader>,
    tar: TarOut,
    manifest: ManifestWriter,
    /// What stands before a path in the manifest: nothing, or `pg_tblspc/<oid>/`.
    prefix: String,
    damaged_pages: u64,
}

impl Sender {
    pub(super) fn new(
        data_directory: PathBuf,
        control: ControlFile,
        start_lsn: Lsn,
        tablespaces: Vec<TablespaceHeader>,
        rate: Option<u64>,
        outlet: Outlet,
    ) -> Self {
        Self {
            data_directory,
            manifest: ManifestWriter::new(control.major, control.system_identifier),
            control,
            start_lsn,
            tablespaces,
            tar: TarOut::new(outlet, rate),
            prefix: String::new(),
            damaged_pages: 0,
        }
    }

    pub(super) fn send(mut self) -> Result<()> {
        let mut stopped = None;
        for (index, tablespace) in self.tablespaces.clone().into_iter().enumerate() {
            self.tar.send(Event::ArchiveStart(index))?;
            if let Some(oid) = tablespace.oid {
                self.prefix = format!("pg_tblspc/{oid}/");
                self.tablespace(oid)?;
            } else {
                self.prefix = String::new();
                stopped = Some(self.data_directory()?);
            }
            self.tar.end_archive()?;
        }
        let stop_lsn = stopped.ok_or_else(|| Error::defect("back up", "there is no data directory"))?;
        self.tar.send(Event::ManifestStart)?;
        let text = self.manifest.finish(ManifestWalRange {
            timeline: self.control.timeline,
            start: self.start_lsn,
            end: stop_lsn,
        });
        self.tar.send(Event::Manifest(Bytes::from(text)))?;
        self.tar.send(Event::End {
            stop_lsn,
            stop_timeline: self.control.timeline,
        })
    }

    /// `sendTablespace`: the directory of this version alone. It is read through its link, as the server does.
    fn tablespace(&mut self, oid: u32) -> Result<()> {
        let name = self.control.tablespace_directory();
        let link = self.data_directory.join("pg_tblspc").join(oid.to_string());
        let path = link.join(&name);
        match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == IoKind::NotFound => match link.symlink_metadata() {
                // It was dropped meanwhile, which removes the link last (destroy_tablespace_directories).
                Err(error) if error.kind() == IoKind::NotFound => Ok(()),
                _ => Err(not_seen(&path)),
            },
            Err(error) => Err(unreadable(&path, error)),
            Ok(metadata) => {
                self.tar.directory(&name, Attributes::of(&metadata))?;
                self.directory(&path, &name)
            }
        }
    }

    /// Everything in the data directory, and the end of the backup.
    fn data_directory(&mut self) -> Result<Lsn> {
        let root = self.data_directory.clone();
        self.directory(&root, "")?;
        // Before the server ends the backup.
        let control = control_file(&root)?;
        if self.damaged_pages > 0 {
            return Err(Error::corrupt(format!(
                "{} pages of the data directory do not match their checksums; the warnings name the first ones. The disk \
                 damaged them: restore them from an older backup, or, where they belong to an index, rebuild it",
                self.damaged_pages
            )));
        }
        let (control_bytes, _) = control.ok_or_else(|| {
            Error::invalid(format!(
                "{CONTROL_FILE} is gone; is the data directory still there?"
            ))
        })?;
        let stopped = self.tar.outlet().stop()?;
        let metadata = std::fs::metadata(&root).map_err(|error| unreadable(&root, error))?;
        let attributes = Attributes {
            mode: if metadata.mode() & GROUP_READS == GROUP_READS {
                0o640
            } else {
                0o600
            },
            modified: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs().cast_signed()),
            ..Attributes::of(&metadata)
        };
        self.made_file("backup_label", stopped.label.as_bytes(), attributes)?;
        self.made_file("tablespace_map", stopped.tablespace_map.as_bytes(), attributes)?;
        let path = root.join(CONTROL_FILE);
        let metadata = std::fs::metadata(&path).map_err(|error| unreadable(&path, error))?;
        self.made_file(CONTROL_FILE, &control_bytes, Attributes::of(&metadata))?;
        Ok(stopped.lsn)
    }

    /// `sendDir`. `name` is the path in the archive, empty for the data directory itself.
    fn directory(&mut self, path: &Path, name: &str) -> Result<()> {
        let in_data_directory = self.prefix.is_empty();
        let base = if in_data_directory {
            "base".to_owned()
        } else {
            self.control.tablespace_directory()
        };
        let is_database = names::is_database(name, &base);
        let entries = match std::fs::read_dir(path) {
            // It was dropped meanwhile.
            Err(error) if is_database && error.kind() == IoKind::NotFound => return Ok(()),
            entries => entries.map_err(|error| unreadable(path, error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(path, error))?;
            let file_name = entry.file_name();
            let Some(file_name) = file_name.to_str() else {
                return Err(Error::invalid(format!(
                    "the cluster has a file whose name is not UTF-8: {}; PostgreSQL makes no such files, rename it or \
                     move it out of the data directory",
                    entry.path().display()
                )));
            };
            let member = if name.is_empty() {
                file_name.to_owned()
            } else {
                format!("{name}/{file_name}")
            };
            let left_out = names::is_left_out(file_name, self.control.major)
                || is_database && is_lost_in_a_crash(path, file_name)
                || in_data_directory && [CONTROL_FILE, ARCHIVE_FILE].contains(&member.as_str());
            if left_out {
                continue;
            }
            match entry.metadata() {
                Ok(metadata) => {
                    let relation = if is_database || in_data_directory && name == "global" {
                        Relation::parse(file_name)
                    } else {
                        None
                    };
                    self.entry(&entry.path(), &member, &metadata, relation)?;
                }
                Err(error) if error.kind() == IoKind::NotFound => {}
                Err(error) => return Err(unreadable(&entry.path(), error)),
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &Path,
        member: &str,
        metadata: &Metadata,
        relation: Option<Relation<'_>>,
    ) -> Result<()> {
        let file_name = member.rsplit('/').next().unwrap_or(member);
        let in_data_directory = self.prefix.is_empty();
        let kind = metadata.file_type();
        if names::is_emptied(file_name) || in_data_directory && member == "pg_wal" {
            // A link to a directory becomes a directory, as with convert_link_to_directory.
            let attributes = Attributes {
                mode: if kind.is_symlink() {
                    self.directory_mode()?
                } else {
                    metadata.mode() & 0o7777
                },
                ..Attributes::of(metadata)
            };
            self.tar.directory(member, attributes)?;
            if member == "pg_wal" {
                self.tar.directory("pg_wal/archive_status", attributes)?;
                if self.control.major.has_wal_summaries() {
                    self.tar.directory("pg_wal/summaries", attributes)?;
                }
            }
            return Ok(());
        }
        if kind.is_dir() {
            self.tar.directory(member, Attributes::of(metadata))?;
            // Tablespaces have archives of their own, and their links are in tablespace_map.
            let elsewhere = in_data_directory && (member == "pg_tblspc" || self.is_tablespace(path));
            return if elsewhere {
                Ok(())
            } else {
                self.directory(path, member)
            };
        }
        if kind.is_file() {
            return self.file(path, member, relation);
        }
        // Files behind links that the server reads are stored with its configuration, which reports those that could
        // not be.
        let is_configuration = in_data_directory
            && kind.is_symlink()
            && path.extension().is_some_and(|extension| extension == "conf");
        if !is_configuration {
            tracing::warn!(
                "{} is neither a file nor a directory, and no backup has it",
                path.display()
            );
        }
        Ok(())
    }

    /// `pg_dir_create_mode`.
    fn directory_mode(&self) -> Result<u32> {
        let path = &self.data_directory;
        let metadata = std::fs::metadata(path).map_err(|error| unreadable(path, error))?;
        Ok(if metadata.mode() & GROUP_READS == GROUP_READS {
            0o750
        } else {
            0o700
        })
    }

    fn is_tablespace(&self, path: &Path) -> bool {
        let mut locations = self
            .tablespaces
            .iter()
            .filter_map(|header| header.location.as_deref());
        locations.any(|location| Path::new(location) == path)
    }

    /// `sendFile`: as many bytes as the file has now, filled up with zeros where it is truncated meanwhile.
    fn file(&mut self, path: &Path, member: &str, relation: Option<Relation<'_>>) -> Result<()> {
        let file = match File::open(path) {
            // It was dropped meanwhile.
            Err(error) if error.kind() == IoKind::NotFound => return Ok(()),
            file => file.map_err(|error| unreadable(path, error))?,
        };
        let metadata = file.metadata().map_err(|error| unreadable(path, error))?;
        let size = metadata.len();
        self.tar.file(member, size, Attributes::of(&metadata))?;
        let has_checksums = self.control.data_checksum_version != 0;
        let mut pages = relation.filter(|_| has_checksums).map(|relation| Pages {
            path,
            file: &file,
            first_block: relation.segment.wrapping_mul(SEGMENT_PAGES),
            start_lsn: self.start_lsn,
        });
        let (mut crc32c, mut at, mut is_cut) = (0, 0, false);
        while at < size {
            let wanted = READ_BYTES.min(size - at) as usize;
            let piece = self.tar.piece(wanted)?;
            let begin = piece.len();
            if !is_cut {
                (&file)
                    .take(wanted as u64)
                    .read_to_end(piece)
                    .map_err(|error| unreadable(path, error))?;
                if let Some(checked) = &pages {
                    match checked.check(piece, begin, at)? {
                        Some(damaged) => self.damaged_pages += damaged,
                        None => pages = None,
                    }
                }
                is_cut = piece.len() - begin < wanted;
            }
            piece.resize(begin + wanted, 0);
            crc32c = crc32c::crc32c_append(crc32c, piece.get(begin..).unwrap_or_default());
            at += wanted as u64;
        }
        self.tar.end_file(size)?;
        self.list(member, size, metadata.mtime(), crc32c)
    }

    /// `sendFileWithContent`.
    fn made_file(&mut self, member: &str, content: &[u8], attributes: Attributes) -> Result<()> {
        let size = content.len() as u64;
        self.tar.file(member, size, attributes)?;
        self.tar.piece(content.len())?.extend_from_slice(content);
        self.tar.end_file(size)?;
        self.list(member, size, attributes.modified, crc32c::crc32c(content))
    }

    fn list(&mut self, member: &str, size_bytes: u64, modified: i64, crc32c: u32) -> Result<()> {
        self.manifest.add(NewFile {
            path: &format!("{}{member}", self.prefix),
            size_bytes,
            modified,
            crc32c,
        })?;
        if self.manifest.waiting() >= MANIFEST_BYTES {
            self.tar
                .send(Event::Manifest(Bytes::from(self.manifest.take())))?;
        }
        Ok(())
    }
}

/// Whether a file in a database's directory is of a temporary relation, or of an unlogged one and not its init fork.
fn is_lost_in_a_crash(directory: &Path, file_name: &str) -> bool {
    let is_unlogged = |relation: Relation<'_>| {
        let init_fork = directory.join(format!("{}_init", relation.number));
        !relation.is_init_fork && init_fork.symlink_metadata().is_ok()
    };
    names::is_temporary_relation(file_name) || Relation::parse(file_name).is_some_and(is_unlogged)
}

/// The pages of a relation's file that are verified.
struct Pages<'a> {
    path: &'a Path,
    file: &'a File,
    first_block: u32,
    start_lsn: Lsn,
}

impl Pages<'_> {
    /// How many pages in `piece` from `begin` on are damaged; the file has them at `at`. `None` where the file does not
    /// end with a whole page. A page that is being written is read again, once; where it is gone by then, `piece` ends
    /// before it.
    fn check(&self, piece: &mut Vec<u8>, begin: usize, at: u64) -> Result<Option<u64>> {
        let mut damaged = 0;
        let mut end = piece.len();
        for (number, page) in piece
            .get_mut(begin..)
            .unwrap_or_default()
            .chunks_exact_mut(PAGE_BYTES)
            .enumerate()
        {
            let offset = at + (number * PAGE_BYTES) as u64;
            let block = self.first_block.wrapping_add((offset / PAGE_BYTES as u64) as u32);
            if !page::is_damaged(page, block, self.start_lsn) {
                continue;
            }
            match self.file.read_exact_at(page, offset) {
                Err(error) if error.kind() == IoKind::UnexpectedEof => {
                    end = begin + number * PAGE_BYTES;
                    break;
                }
                read => read.map_err(|error| unreadable(self.path, error))?,
            }
            if page::is_damaged(page, block, self.start_lsn) {
                damaged += 1;
                if damaged <= NAMED_PAGES {
                    tracing::warn!(
                        "{}: block {block} does not match its checksum",
                        self.path.display()
                    );
                }
            }
        }
        piece.truncate(end);
        if (piece.len() - begin).is_multiple_of(PAGE_BYTES) {
            return Ok(Some(damaged));
        }
        tracing::warn!(
            "{} does not end with a whole page, so the last one is not verified",
            self.path.display()
        );
        Ok((damaged > 0).then_some(damaged))
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::super::Step;
    use super::*;

    /// The tar that one file becomes, and its line in the manifest.
    fn sent(path: &str) -> (Vec<u8>, String) {
        let control =
            ControlFile::parse(include_bytes!("../../../../tests/fixtures/pg_control/18.bin")).unwrap();
        let (outlet, mut steps) = mpsc::channel(16);
        let mut sender = Sender::new(PathBuf::new(), control, Lsn(1), Vec::new(), None, Outlet(outlet));
        sender.file(Path::new(path), "x", None).unwrap();
        sender.tar.end_archive().unwrap();
        let mut tar = Vec::new();
        while let Ok(Ok(Step::Event(Event::Data(piece)))) = steps.try_recv() {
            tar.extend_from_slice(&piece);
        }
        (tar, sender.manifest.take())
    }

    /// The kernel's own files are shorter, or longer, than their metadata says.
    // Seen to fail: `local/sender.rs`: no zeros are added
    #[test]
    fn a_file_becomes_as_long_as_it_was_when_it_was_opened() {
        let shorter = "/sys/kernel/mm/transparent_hugepage/enabled";
        let (tar, line) = sent(shorter);
        let mut content = std::fs::read(shorter).unwrap();
        content.resize(4096, 0);
        assert_eq!(tar.len(), 512 + 4096 + 1024);
        assert!(tar[512..512 + 4096] == content[..], "zeros fill it up");
        let names = [&tar[265..273], &tar[297..305]];
        assert_eq!(names, [b"postgres", b"postgres"], "as PostgreSQL names the owner");
        let checksum = format!("{:08x}", crc32c::crc32c(&content).swap_bytes());
        assert!(
            line.contains("\"Size\": 4096") && line.contains(&checksum),
            "{line}"
        );

        let (tar, line) = sent("/proc/self/status");
        assert_eq!(tar.len(), 512 + 1024);
        assert!(line.contains("\"Size\": 0"), "{line}");
    }

    #[test]
    fn a_file_that_is_gone_is_left_out() {
        let (tar, line) = sent("/proc/self/nothing");
        assert_eq!(tar.len(), 1024);
        assert!(!line.contains("Size"), "{line}");
    }
}
