//! What a copy may keep of its source's settings. `TABLE` judges, once, every setting of PostgreSQL 14 to 18 that names
//! a place or makes the server act outside; `HARMLESS` lists the others. [`page()`] writes
//! `docs/settings-of-a-copy.md`.
//!
//! Two tests hold it together: one asks each server for all its settings and fails if one was not judged, the other
//! compares the page. A server does not start with a setting that it does not know, so each row has its versions.

mod harmless;
mod libraries;
mod page;
mod table;

use std::collections::BTreeSet;

use self::harmless::HARMLESS;
pub(crate) use self::libraries::LIBRARIES;
use self::libraries::filter;
pub use self::page::page;
use self::table::TABLE;
use crate::pg::Major;

/// What a copy is to its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copy {
    /// It may run beside its source and must reach nothing of it: `recover` with archiving off.
    Rehearsal,
    /// It takes its source's place: `recover` with archiving on, the successor that Patroni bootstraps.
    Replacement,
    /// A cluster of its own that Patroni configures: the clone that `patroni-bootstrap` makes.
    Clone,
    /// It belongs to the cluster and follows its primary.
    Standby {
        /// Whether another server of the cluster runs on the same machine.
        beside_another: bool,
    },
    /// It has a configuration of its own, and nothing of its source's.
    Drill,
}

/// What becomes of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// It stays as the source has it.
    Kept,
    /// It stays, and the report names it.
    Said,
    /// It is overridden with this value.
    Set(&'static str),
    /// It is overridden with this value where another server of the cluster runs on the same machine.
    SetBeside(&'static str),
    /// Libraries that act by themselves are left out of the list.
    Filtered,
    /// walship writes it as the command was asked to; the text says how.
    Own(&'static str),
}

/// The judgement of one setting, or of several that are alike.
#[derive(Debug, Clone, Copy)]
struct Row {
    names: &'static [&'static str],
    /// The first of the supported major versions that has them.
    since: Major,
    /// The last one.
    until: Major,
    /// What they name, or make the server do.
    reaches: &'static str,
    rehearsal: Act,
    replacement: Act,
    standby: Act,
    /// The value that a drill's server has; `None` for PostgreSQL's default.
    drill: Option<&'static str>,
    why: &'static str,
}

impl Row {
    /// Whether servers of this version have the settings.
    fn is_of(&self, major: Major) -> bool {
        (self.since..=self.until).contains(&major)
    }

    /// What becomes of the settings in a copy.
    fn act(&self, copy: Copy) -> Act {
        match copy {
            // It archives into an archive of its own, as Patroni configures it.
            Copy::Clone if self.names.contains(&"archive_mode") => Act::Kept,
            Copy::Rehearsal | Copy::Clone => self.rehearsal,
            Copy::Replacement => self.replacement,
            Copy::Standby { .. } => self.standby,
            // Everything else stands in its own configuration file.
            Copy::Drill if self.names.contains(&"archive_mode") => Act::Set("off"),
            Copy::Drill => Act::Kept,
        }
    }
}

/// What a copy is told besides what recovery needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overrides {
    /// Settings and their values.
    pub settings: Vec<(&'static str, String)>,
    /// Libraries that are not loaded, though the source loads them.
    pub left_out: Vec<String>,
    /// What stays as it is and reaches outside: settings and their values, empty for PostgreSQL's default.
    pub said: Vec<(&'static str, String)>,
}

/// What a copy of a server of this version is told. `found` gives the effective value of a setting in the source's
/// configuration.
#[must_use]
pub fn overrides(copy: Copy, major: Major, found: impl Fn(&str) -> Option<String>) -> Overrides {
    let mut overrides = Overrides::default();
    let mut preloaded = Vec::new();
    for row in TABLE.iter().filter(|row| row.is_of(major)) {
        for name in row.names.iter().copied() {
            match row.act(copy) {
                Act::Said => overrides.said.extend(said(name, found(name))),
                Act::Set(value) => overrides.settings.push((name, value.to_owned())),
                Act::SetBeside(value) if beside_another(copy) => {
                    overrides.settings.push((name, value.to_owned()));
                }
                Act::Kept | Act::Own(_) | Act::SetBeside(_) => {}
                Act::Filtered => {
                    let filtered = filter(&found(name).unwrap_or_default());
                    overrides.settings.push((name, filtered.kept.join(", ")));
                    overrides.left_out.extend(filtered.left_out);
                    preloaded.extend(filtered.kept);
                }
            }
        }
    }
    // What a library that stays must not do.
    let settings = preloaded.iter().flat_map(|name| libraries::settings_of(name));
    overrides
        .settings
        .extend(settings.map(|(name, value)| (name, value.to_owned())));
    overrides
}

fn beside_another(copy: Copy) -> bool {
    copy == Copy::Standby { beside_another: true }
}

/// A setting that stays, if it does something.
fn said(name: &'static str, found: Option<String>) -> Option<(&'static str, String)> {
    // Subscriptions are followed unless this says otherwise.
    if name == "max_logical_replication_workers" {
        return (found.as_deref() != Some("0")).then(|| (name, found.unwrap_or_default()));
    }
    let value = found.filter(|value| !value.trim().is_empty())?;
    Some((name, value))
}

/// All settings that were judged, in the table or in the list, in lower case.
#[must_use]
pub fn judged() -> BTreeSet<String> {
    let rows = TABLE.iter().flat_map(|row| row.names.iter());
    rows.chain(HARMLESS.iter())
        .map(|name| name.to_ascii_lowercase())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(copy: Copy, major: Major, conf: &[(&str, &str)]) -> Overrides {
        overrides(copy, major, |name| {
            let found = conf.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn value<'a>(overrides: &'a Overrides, name: &str) -> Option<&'a str> {
        let found = overrides.settings.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str())
    }

    #[test]
    fn a_rehearsal_writes_nowhere_follows_nothing_and_waits_for_nobody() {
        let told = told(
            Copy::Rehearsal,
            Major::V17,
            &[(
                "shared_preload_libraries",
                "pg_stat_statements, 'pg_cron',timescaledb, $libdir/own",
            )],
        );
        for (name, expected) in [
            ("archive_mode", "off"),
            ("external_pid_file", "walship-copy.pid"),
            ("log_directory", "log"),
            ("log_destination", "stderr"),
            ("max_logical_replication_workers", "0"),
            ("synchronous_standby_names", ""),
            ("sync_replication_slots", "off"),
            ("shared_preload_libraries", "pg_stat_statements, timescaledb"),
            ("session_preload_libraries", ""),
            ("timescaledb.max_background_workers", "0"),
        ] {
            assert_eq!(value(&told, name), Some(expected), "{name}");
        }
        assert_eq!(told.left_out, ["pg_cron", "$libdir/own"]);
        assert!(told.said.is_empty());
    }

    #[test]
    fn a_replacement_keeps_what_reaches_outside_and_says_so() {
        let told = told(
            Copy::Replacement,
            Major::V17,
            &[
                ("synchronous_standby_names", "s1"),
                ("external_pid_file", ""),
                ("shared_preload_libraries", "pg_cron"),
            ],
        );
        let said: Vec<_> = told
            .said
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        assert!(said.contains(&("synchronous_standby_names", "s1")), "{said:?}");
        assert!(
            said.contains(&("shared_preload_libraries", "pg_cron")),
            "{said:?}"
        );
        assert!(
            said.contains(&("max_logical_replication_workers", "")),
            "{said:?}"
        );
        assert!(
            !said.iter().any(|(name, _)| *name == "external_pid_file"),
            "{said:?}"
        );
        assert_eq!(value(&told, "synchronous_standby_names"), None);
    }

    #[test]
    fn a_standby_gives_way_only_where_another_server_of_its_cluster_runs() {
        let alone = told(
            Copy::Standby {
                beside_another: false,
            },
            Major::V14,
            &[],
        );
        assert_eq!(value(&alone, "external_pid_file"), None);
        let beside = told(Copy::Standby { beside_another: true }, Major::V14, &[]);
        assert_eq!(value(&beside, "external_pid_file"), Some("walship-copy.pid"));
        assert_eq!(value(&beside, "stats_temp_directory"), Some("pg_stat_tmp"));
        assert_eq!(value(&beside, "max_logical_replication_workers"), None);
    }

    #[test]
    fn a_version_gets_only_the_settings_it_knows() {
        for (name, since, until) in [
            ("stats_temp_directory", Major::V14, Major::V14),
            ("promote_trigger_file", Major::V14, Major::V15),
            ("sync_replication_slots", Major::V17, Major::V18),
        ] {
            for major in Major::ALL {
                let has = value(&told(Copy::Rehearsal, major, &[]), name).is_some();
                assert_eq!(has, (since..=until).contains(&major), "{name} in {major}");
            }
        }
    }

    #[test]
    fn each_setting_is_judged_once() {
        let rows = TABLE.iter().flat_map(|row| row.names.iter());
        let mut all: Vec<_> = rows
            .chain(HARMLESS.iter())
            .map(|name| name.to_ascii_lowercase())
            .collect();
        all.sort();
        let twice: Vec<_> = all.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }
}
