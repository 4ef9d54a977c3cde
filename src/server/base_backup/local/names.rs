//! Which files of a data directory a base backup holds, by their names: the rules of `sendDir`, `excludeFiles` and
//! `excludeDirContents` in `basebackup.c` (`src/backend/backup/`, before 16 `src/backend/replication/`), PostgreSQL 14
//! to 18.

use crate::pg::Major;

/// Files that no backup holds, wherever they are (`excludeFiles`).
const LEFT_OUT: [&str; 7] = [
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
];
/// Files whose names begin so are left out as well: `PG_TEMP_FILE_PREFIX`, and `RELCACHE_INIT_FILENAME` of
/// `excludeFiles`.
const LEFT_OUT_PREFIXES: [&str; 2] = ["pgsql_tmp", "pg_internal.init"];
/// Directories that are kept without their content (`excludeDirContents`).
const EMPTIED: [&str; 7] = [
    "pg_stat_tmp",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
];

pub(super) fn is_left_out(name: &str, major: Major) -> bool {
    // macOS's own; 14 keeps it.
    let is_finders = name == ".DS_Store" && major > Major::V14;
    is_finders || LEFT_OUT.contains(&name) || LEFT_OUT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

pub(super) fn is_emptied(name: &str) -> bool {
    EMPTIED.contains(&name)
}

/// Whether a directory is a database's, where relations may be temporary or unlogged. `name` is its path from the data
/// directory, or from a tablespace's, where `base` is the directory of this version.
pub(super) fn is_database(name: &str, base: &str) -> bool {
    name.strip_prefix(base)
        .and_then(|rest| rest.strip_prefix('/'))
        .is_some_and(is_number)
}

/// `looks_like_temp_rel_name`, `src/backend/storage/file/reinit.c` and `fd.c`: `t3_16384`, `t3_16384_fsm.1`.
pub(super) fn is_temporary_relation(name: &str) -> bool {
    let Some((backend, relation)) = name.strip_prefix('t').and_then(|rest| rest.split_once('_')) else {
        return false;
    };
    is_number(backend) && Relation::parse(relation).is_some()
}

/// A file of a relation that is not temporary (`parse_filename_for_nontemp_relation`, `reinit.c`): `16384`, `16384_vm`,
/// `16384.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Relation<'a> {
    pub(super) number: &'a str,
    /// Whether the file is the init fork, from which an unlogged relation begins after a crash.
    pub(super) is_init_fork: bool,
    /// Which of the files of 1 GiB.
    pub(super) segment: u32,
}

impl<'a> Relation<'a> {
    pub(super) fn parse(name: &'a str) -> Option<Self> {
        let (fork, segment) = match name.split_once('.') {
            Some((fork, segment)) if is_number(segment) => (fork, segment.parse().ok()?),
            Some(_) => return None,
            None => (name, 0),
        };
        let (number, fork) = fork.split_once('_').unwrap_or((fork, "main"));
        let known = matches!(fork, "main" | "fsm" | "vm" | "init");
        (known && is_number(number)).then_some(Self {
            number,
            is_init_fork: fork == "init",
            segment,
        })
    }
}

pub(super) fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_told_from_other_files() {
        let relation = |number, is_init_fork, segment| {
            Some(Relation {
                number,
                is_init_fork,
                segment,
            })
        };
        assert_eq!(Relation::parse("16384"), relation("16384", false, 0));
        assert_eq!(Relation::parse("16384_vm.2"), relation("16384", false, 2));
        assert_eq!(Relation::parse("16384_init"), relation("16384", true, 0));
        for name in [
            "",
            "PG_VERSION",
            "16384_other",
            "16384.x",
            "16384.",
            "t3_16384",
            "_vm",
            "1a",
        ] {
            assert_eq!(Relation::parse(name), None, "{name}");
        }
    }

    #[test]
    fn temporary_relations_are_told_from_lasting_ones() {
        for name in ["t3_16384", "t12_16384_fsm", "t3_16384.1", "t3_16384_vm.7"] {
            assert!(is_temporary_relation(name), "{name}");
        }
        for name in [
            "16384",
            "t3",
            "t_16384",
            "t3_",
            "t3_16384_other",
            "table_1",
            "tx_1",
        ] {
            assert!(!is_temporary_relation(name), "{name}");
        }
    }

    #[test]
    fn only_the_names_that_postgresql_leaves_out_are_left_out() {
        for name in [
            "postmaster.pid",
            "pgsql_tmp",
            "pgsql_tmp12.3",
            "pg_internal.init.7",
            "backup_manifest",
        ] {
            assert!(is_left_out(name, Major::V18), "{name}");
        }
        for name in [
            "postmaster.pid.bak",
            "backup_label.old",
            "current_logfiles",
            "pg_internal.ini",
            "log",
        ] {
            assert!(!is_left_out(name, Major::V18), "{name}");
        }
        assert!(is_database("base/5", "base") && is_database("PG_18_202506291/5", "PG_18_202506291"));
        assert!(!is_database("base", "base") && !is_database("base/pgsql_tmp", "base"));
    }
}
