//! Whether a recovered server archives, and what it remembers of archives.
//!
//! A copy that archives beside its living source forks the archive, and an idle source shows nothing of its life. So a
//! copy archives only where somebody says that it takes its source's place.

use std::path::Path;

use super::alive::Signs;
use super::restore::Remembers;
use crate::archive::catalogue::Catalogue;
use crate::archive::diagnosis::ArchiveCommand;
use crate::archive::remembered::{ArchiveMark, CloneMark, how_to_take_the_place};
use crate::error::Result;
use crate::pg::server_settings::{Setting, setting_of_server};
use crate::store::Store;

/// Whether the recovered server archives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ArchiveMode {
    /// Not, unless it is sure that the source is gone; which nothing can show.
    #[default]
    Auto,
    /// As its configuration says, for it takes its source's place.
    On,
    /// The same, unless the source is seen to be alive.
    OnUnlessAlive,
    /// As its configuration says, and into this archive: it is a clone, which must not write to its source's.
    Own(ArchiveMark),
    /// Not.
    Off,
}

/// What was decided.
#[derive(Debug)]
pub(super) struct Archiving {
    /// Why it does not archive, if it does not.
    pub(super) off: Option<String>,
    pub(super) remembers: Remembers,
    pub(super) notes: Vec<String>,
}

/// Decides for the copy in `pgdata`, which comes from the archive that the catalogue describes.
pub(super) fn decide(
    mode: &ArchiveMode,
    signs: &Signs,
    catalogue: &Catalogue,
    store: &Store,
    pgdata: &Path,
) -> Archiving {
    let url = store.location().to_string();
    let source = CloneMark::of(url.clone(), &catalogue.identity);
    if let ArchiveMode::Own(own) = mode {
        return Archiving {
            off: None,
            remembers: Remembers::Source(source, Some(own.clone())),
            notes: Vec::new(),
        };
    }
    let off = why_off(mode, signs);
    let (remembers, note) = match &off {
        Some(_) => (Remembers::Source(source, None), Some(how_to_switch_on(pgdata))),
        None => (
            Remembers::Own(ArchiveMark::of(url, &catalogue.identity)),
            signs.warning(),
        ),
    };
    Archiving {
        off,
        remembers,
        notes: note.into_iter().collect(),
    }
}

fn why_off(mode: &ArchiveMode, signs: &Signs) -> Option<String> {
    match mode {
        ArchiveMode::On | ArchiveMode::Own(_) => None,
        ArchiveMode::Off => Some("as asked for with --archive-mode off".to_owned()),
        ArchiveMode::Auto => Some(signs.doubt()),
        ArchiveMode::OnUnlessAlive => signs.alive(),
    }
}

fn how_to_switch_on(pgdata: &Path) -> String {
    format!(
        "to archive, recover with --archive-mode on instead; or, {}. What it writes before that is in no archive: take a base \
         backup then",
        how_to_take_the_place(&pgdata.display().to_string())
    )
}

/// What keeps a copy that may archive from it by its own configuration, as far as that can be known.
///
/// # Errors
/// As [`setting_of_server`].
pub(super) fn not_configured(pgdata: &Path) -> Result<Option<String>> {
    let value = |name| {
        let setting = setting_of_server(pgdata, name)?;
        Ok(match setting {
            Setting::Known(value) => Some(String::from_utf8_lossy(&value.unwrap_or_default()).into_owned()),
            Setting::Unknown => None,
        })
    };
    let library = value("archive_library")?.filter(|library| !library.is_empty());
    Ok(match (value("archive_mode")?, library, value("archive_command")?) {
        (Some(mode), ..) if !matches!(&*mode.to_ascii_lowercase(), "on" | "always") => Some(
            "archive_mode is not on in its configuration, so it archives nothing; set archive_mode and archive_command before \
             it is started, or none of its WAL is in the archive"
                .to_owned(),
        ),
        (_, Some(library), _) => Some(format!(
            "its configuration has archive_library = {library}, so it archives with that and not with walship"
        )),
        (_, None, Some(command)) if ArchiveCommand::parse(&command).is_none() => Some(format!(
            "its archive_command is not seen to run walship: {command:?}; what that archives, if anything, is not in this \
             archive"
        )),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(alive: Result<Option<&str>, &str>, age_seconds: Option<i64>) -> Signs {
        Signs {
            alive: alive.map(|sign| sign.map(str::to_owned)).map_err(str::to_owned),
            age_seconds,
        }
    }

    #[test]
    fn what_a_copys_own_configuration_keeps_from_the_archive_is_said() {
        let said = |settings: &str| {
            let data = tempfile::tempdir().unwrap();
            std::fs::write(data.path().join("postgresql.conf"), settings).unwrap();
            not_configured(data.path()).unwrap().unwrap_or_default()
        };
        let command = "archive_mode = on\narchive_command = ";
        assert_eq!(said(&format!("{command}'/usr/bin/walship push %p'")), "");
        assert_eq!(said(&format!("{command}'nice walship push %p'")), "");
        for (settings, says) in [
            ("archive_command = 'walship push %p'", "archive_mode is not on"),
            ("archive_mode = off", "archive_mode is not on"),
            ("archive_mode = on", "not seen to run walship: \"\""),
            (
                "archive_mode = Always\narchive_command = 'cp %p /srv'",
                "not seen to run walship: \"cp",
            ),
            (
                "archive_mode = on\narchive_library = 'basic_archive'",
                "archive_library = basic_archive",
            ),
        ] {
            assert!(said(settings).contains(says), "{settings}: {}", said(settings));
        }
        // A file that is not there: nothing is known.
        assert_eq!(said("include 'missing.conf'"), "");
        let elsewhere = tempfile::tempdir().unwrap();
        assert_eq!(not_configured(elsewhere.path()).unwrap(), None);
    }

    #[test]
    fn a_copy_archives_only_where_somebody_says_that_it_takes_its_sources_place() {
        let all = [
            signs(Ok(None), None),
            signs(Ok(None), Some(0)),
            signs(Ok(Some("timeline 2 arrived")), Some(0)),
            signs(Err("no answer"), None),
        ];
        for signs in &all {
            assert!(why_off(&ArchiveMode::Auto, signs).is_some(), "{signs:?}");
            assert!(why_off(&ArchiveMode::Off, signs).is_some(), "{signs:?}");
            assert_eq!(why_off(&ArchiveMode::On, signs), None);
            let seen = why_off(&ArchiveMode::OnUnlessAlive, signs);
            assert_eq!(seen.is_none(), signs.alive == Ok(None), "{signs:?}");
        }
        // What is seen is said.
        assert!(
            why_off(&ArchiveMode::Auto, &all[1])
                .unwrap()
                .contains("0 s before")
        );
        assert!(
            why_off(&ArchiveMode::Auto, &all[2])
                .unwrap()
                .contains("timeline 2 arrived")
        );
        let silent: Vec<_> = all.iter().map(|signs| signs.warning().is_none()).collect();
        assert_eq!(silent, [true, false, false, true]);
    }
}
