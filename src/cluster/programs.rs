//! PostgreSQL's own programs on this machine: `pg_ctl`, `pg_basebackup`, of the right major version.

use std::ffi::OsStr;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::pg::Major;

/// `--version` takes no time; a program that hangs is skipped.
const VERSION_TIMEOUT: Duration = Duration::from_secs(3);

/// The program that Debian puts into `PATH` in place of PostgreSQL's: it chooses a version at each start.
const DEBIANS_WRAPPER: &str = "pg_wrapper";

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Search {
    /// The program of the right major version.
    pub found: Option<PathBuf>,
    /// Every directory that was looked into.
    pub looked_in: Vec<PathBuf>,
    /// Programs of other versions, with the version that they print.
    pub others: Vec<(PathBuf, Option<Major>)>,
}

/// Looks for a program of a major version in `search_path` (`PATH`), then where packages put it.
#[must_use]
pub fn find(name: &str, major: Major, search_path: Option<&OsStr>) -> Search {
    let in_path = search_path.map(std::env::split_paths).into_iter().flatten();
    // Nobody chose what lies in the current directory.
    let in_path = in_path.filter(|directory| directory.is_absolute());
    let packaged = [
        // Debian, Red Hat, SUSE, Alpine, Gentoo, a build from source.
        format!("/usr/lib/postgresql/{major}/bin"),
        format!("/usr/pgsql-{major}/bin"),
        format!("/usr/lib/postgresql{major}/bin"),
        format!("/usr/libexec/postgresql{major}"),
        format!("/usr/lib64/postgresql-{major}/bin"),
        "/usr/local/pgsql/bin".to_owned(),
    ];
    let mut search = Search::default();
    for directory in in_path.chain(packaged.map(PathBuf::from)) {
        let program = directory.join(name);
        if !search.looked_in.contains(&directory) {
            search.looked_in.push(directory);
        }
        if !program.is_file() || is_wrapper(&program) {
            continue;
        }
        let says = major_of(&program);
        if says == Some(major) {
            search.found = Some(program);
            return search;
        }
        search.others.push((program, says));
    }
    search
}

fn is_wrapper(program: &Path) -> bool {
    let resolved = program.canonicalize().unwrap_or_default();
    resolved.file_name() == Some(OsStr::new(DEBIANS_WRAPPER))
}

/// A program's major version; none where it does not print it in time.
fn major_of(program: &Path) -> Option<Major> {
    Major::of_version(&version_of(program)?)
}

/// A program's version, such as `17.2`; none where it does not print it in time.
#[must_use]
pub fn version_of(program: &Path) -> Option<String> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let begun = Instant::now();
    while !matches!(child.try_wait(), Ok(Some(_))) {
        if begun.elapsed() > VERSION_TIMEOUT {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut said = String::new();
    let output = child.stdout.take()?.take(256);
    std::io::BufReader::new(output).read_line(&mut said).ok()?;
    version_in(&said).map(str::to_owned)
}

/// `17.2` in `pg_ctl (PostgreSQL) 17.2 (Debian 17.2-1)`, and `18beta1` in `pg_ctl (PostgreSQL) 18beta1`.
fn version_in(said: &str) -> Option<&str> {
    let version = said.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
    version
        .starts_with(|c: char| c.is_ascii_digit())
        .then_some(version)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_says_its_version() {
        for (said, version) in [
            (
                "pg_ctl (PostgreSQL) 17.2 (Debian 17.2-1.pgdg120+1)\n",
                Some("17.2"),
            ),
            ("pg_ctl (PostgreSQL) 18beta1\n", Some("18beta1")),
            ("pg_ctl (PostgreSQL) \n", None),
            ("", None),
        ] {
            assert_eq!(version_in(said), version, "{said}");
        }
        assert_eq!(major_of(Path::new("/bin/true")), None);
    }

    // Seen to fail: `cluster/programs.rs`: any version is accepted
    #[test]
    fn the_right_version_is_found_in_any_order_and_debians_wrapper_is_skipped() {
        let top = tempfile::tempdir().unwrap();
        let make = |directory: &str, name: &str, version: &str| {
            let directory = top.path().join(directory);
            std::fs::create_dir_all(&directory).unwrap();
            let path = directory.join(name);
            std::fs::write(&path, format!("#!/bin/sh\necho 'pg_x (PostgreSQL) {version}'\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let old = make("old", "pg_x", "96.5");
        let right = make("right", "pg_x", "97.1");
        let wrapper = make("share", DEBIANS_WRAPPER, "97.0");
        std::fs::create_dir(top.path().join("bin")).unwrap();
        std::os::unix::fs::symlink(wrapper, top.path().join("bin/pg_x")).unwrap();
        let path =
            std::env::join_paths(["bin", "none", "old", "right"].map(|name| top.path().join(name))).unwrap();
        let search = find("pg_x", "97".parse().unwrap(), Some(&path));
        assert_eq!(search.found, Some(right));
        assert_eq!(search.others, [(old, Some("96".parse().unwrap()))]);
        let nothing = find("pg_x", "95".parse().unwrap(), Some(&path));
        assert_eq!(nothing.found, None);
        assert!(
            nothing
                .looked_in
                .contains(&PathBuf::from("/usr/lib/postgresql/95/bin"))
        );
    }
}
