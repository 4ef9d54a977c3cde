//! Whether a recovered server archives, and what it remembers of archives.
//!
//! A copy that archives beside its running source forks the archive, and an idle source does not show that it runs. So
//! a copy archives only where somebody says that it takes its source's place.

use std::path::Path;

use clap::ValueEnum;

use super::alive::Signs;
use super::restore::Remembers;
use crate::archive::Archive;
use crate::format::remembered::{ArchiveMark, CloneMark, how_to_take_the_place};
use crate::judge::diagnosis::ArchiveCommand;
use crate::server::server_settings::{Setting, setting_of_server};

/// Whether the recovered server archives.
#[derive(Debug, Clone, PartialEq, Eq, Default, ValueEnum)]
pub enum ArchiveMode {
    /// Off, unless it is sure that the source is gone; nothing can show that.
    #[default]
    Auto,
    /// As the configuration has it, because it takes its source's place.
    #[value(alias = "keep")]
    On,
    /// The same, unless the source is seen to be alive.
    #[value(skip)]
    OnUnlessAlive,
    /// As its configuration says, and into this archive: it is a clone, which must not write to its source's.
    #[value(skip)]
    Own(ArchiveMark),
    /// Off.
    Off,
}

#[derive(Debug)]
pub(crate) struct Archiving {
    /// Why it does not archive, if it does not.
    pub(crate) off: Option<String>,
    pub(crate) remembers: Remembers,
    pub(crate) notes: Vec<String>,
}

/// Decides for the copy in `pgdata`, which comes from this archive.
pub(crate) fn decide(mode: &ArchiveMode, signs: &Signs, archive: &Archive, pgdata: &Path) -> Archiving {
    let url = archive.url();
    let source = CloneMark::of(url.clone(), archive.identity());
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
            Remembers::Own(ArchiveMark::of(url, archive.identity())),
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
        "to archive, recover with --archive-mode on instead. Later, {}; no archive has what it has written by then, so take a \
         base backup",
        how_to_take_the_place(&pgdata.display().to_string())
    )
}

/// The values of `archive_mode` with which a server archives (`archive_mode_options`, `guc_tables.c`).
const ARCHIVES: [&str; 5] = ["on", "always", "true", "yes", "1"];

/// Why a copy that may archive does not archive with walship by its own configuration, as far as that can be known.
pub(crate) fn not_configured(pgdata: &Path) -> Option<String> {
    let value = |name| match setting_of_server(pgdata, name) {
        Ok(Setting::Known(value)) => Some(String::from_utf8_lossy(&value.unwrap_or_default()).into_owned()),
        Ok(Setting::Unknown) => None,
        Err(error) => {
            tracing::debug!("{error}; what {name} is for the copy is not known");
            None
        }
    };
    let library = value("archive_library").filter(|library| !library.is_empty());
    match (value("archive_mode"), library, value("archive_command")) {
        (Some(mode), ..) if !ARCHIVES.contains(&&*mode.to_ascii_lowercase()) => Some(
            "archive_mode is not on in its configuration, so it archives nothing; set archive_mode and archive_command before \
             you start it, or the archive gets none of its WAL"
                .to_owned(),
        ),
        (_, Some(library), _) => Some(format!(
            "its configuration has archive_library = {library}, so it archives with that and not with walship"
        )),
        (_, None, Some(command)) => match ArchiveCommand::parse(&command).map(|command| command.flaw()) {
            Some(None) => None,
            Some(Some(flaw)) => Some(format!("its archive_command is {command:?}, which {flaw}")),
            None => Some(format!(
                "its archive_command is {command:?}, and walship cannot tell whether that runs walship"
            )),
        },
        _ => None,
    }
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

    // Seen to fail: `cluster/archiving.rs`: another tool's `archive_command` is accepted
    #[test]
    fn a_configuration_that_does_not_archive_with_walship_is_named() {
        let said = |settings: &str| {
            let data = tempfile::tempdir().unwrap();
            std::fs::write(data.path().join("postgresql.conf"), settings).unwrap();
            not_configured(data.path()).unwrap_or_default()
        };
        let command = "archive_mode = on\narchive_command = ";
        assert_eq!(said(&format!("{command}'/usr/bin/walship push %p'")), "");
        assert_eq!(said(&format!("{command}'nice walship push %p'")), "");
        assert_eq!(
            said("archive_mode = TRUE\narchive_command = 'walship push %p'"),
            ""
        );
        for (settings, says) in [
            ("archive_command = 'walship push %p'", "archive_mode is not on"),
            ("archive_mode = off", "archive_mode is not on"),
            ("archive_mode = on", "is \"\", and walship cannot tell"),
            (
                "archive_mode = on\narchive_command = 'walship push %p || true'",
                "goes on after walship",
            ),
            (
                "archive_mode = Always\narchive_command = 'cp %p /srv'",
                "cannot tell whether that runs walship",
            ),
            (
                "archive_mode = on\narchive_library = 'basic_archive'",
                "archive_library = basic_archive",
            ),
        ] {
            assert!(said(settings).contains(says), "{settings}: {}", said(settings));
        }
        // What cannot be read leaves it open.
        assert_eq!(said("include 'missing.conf'"), "");
        assert_eq!(said("include '.'"), "");
        let elsewhere = tempfile::tempdir().unwrap();
        assert_eq!(not_configured(elsewhere.path()), None);
    }

    // Seen to fail: `cluster/alive.rs`: `doubt` says nothing of WAL that arrived just before
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
        // The sign that was seen is in the reason.
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
