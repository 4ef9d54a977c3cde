//! libpq's service file: named groups of connection settings (`parseServiceFile` in
//! `fe-connect.c`, PostgreSQL 14 to 18). `ldap:` lines are not supported.

use std::path::{Path, PathBuf};

use super::settings::{Origin, Settings};
use super::{files, home};
use crate::error::{Error, Result};

/// Where packages compile libpq to look when `PGSYSCONFDIR` is not set: Debian's, Red Hat's, upstream's.
const SYSTEM_DIRECTORIES: [&str; 3] = [
    "/etc/postgresql-common",
    "/etc/sysconfig/pgsql",
    "/usr/local/pgsql/etc",
];

/// Fills unset settings from the service that was named, if one was. Returns its name where libpq finds it without
/// being told the file.
pub(super) fn apply(
    settings: &mut Settings,
    environment: &impl Fn(&str) -> Option<String>,
) -> Result<Option<String>> {
    let named = settings.get_even_empty("service").map(str::to_owned);
    let Some(service) = named
        .or_else(|| environment("PGSERVICE"))
        .filter(|name| !name.is_empty())
    else {
        return Ok(None);
    };
    let file_is_named = settings.get("servicefile").is_some()
        || ["PGSERVICEFILE", "PGSYSCONFDIR"]
            .iter()
            .any(|variable| environment(variable).is_some());
    let paths = candidates(settings, environment);
    for path in &paths {
        let Some(text) = files::read_optional(path)? else {
            continue;
        };
        if let Some(pairs) = find(&text, &service, path)? {
            for (name, value) in pairs {
                settings.set_default(
                    name,
                    value.to_owned(),
                    Origin::Service(path.display().to_string()),
                )?;
            }
            return Ok(Some(service).filter(|_| !file_is_named));
        }
    }
    let looked: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    Err(Error::invalid(format!(
        "the service {service:?} is not defined in {}; add a [{service}] section or correct the name",
        looked.join(", ")
    )))
}

/// The files to look in: the user's, then the system's.
fn candidates(settings: &Settings, environment: &impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let given = settings.get("servicefile").map(PathBuf::from);
    let user = given
        .or_else(|| environment("PGSERVICEFILE").map(PathBuf::from))
        .or_else(|| Some(home(environment)?.join(".pg_service.conf")));
    let system = match environment("PGSYSCONFDIR") {
        Some(directory) => vec![PathBuf::from(directory)],
        None => SYSTEM_DIRECTORIES.iter().map(PathBuf::from).collect(),
    };
    let system = system
        .into_iter()
        .map(|directory| directory.join("pg_service.conf"));
    user.into_iter().chain(system).collect()
}

/// The settings of the first section of this name; of two lines for a keyword the first counts.
fn find<'a>(text: &'a str, service: &str, path: &Path) -> Result<Option<Vec<(&'a str, &'a str)>>> {
    let mut found: Option<Vec<(&str, &str)>> = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            let ours = header
                .strip_prefix(service)
                .is_some_and(|rest| rest.starts_with(']'));
            found = ours.then(Vec::new);
        } else if let Some(pairs) = &mut found {
            let pair = line
                .split_once('=')
                .filter(|(name, _)| *name != "service" && *name != "servicefile");
            pairs.push(pair.ok_or_else(|| {
                Error::invalid(format!(
                    "line {} of the service file {} is not keyword=value; correct it",
                    number + 1,
                    path.display()
                ))
            })?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: &str = "# comment\n[other]\nhost=wrong\n\n[prod]  \n  host=db1 \nport=6543\noptions=-c a=b\nhost=db2\n[prod]\nuser=late\n";

    #[test]
    fn a_service_is_its_first_section_to_the_next() {
        let pairs = find(FILE, "prod", Path::new("f")).unwrap().unwrap();
        assert_eq!(
            pairs,
            [
                ("host", "db1"),
                ("port", "6543"),
                ("options", "-c a=b"),
                ("host", "db2")
            ]
        );
        assert_eq!(find(FILE, "pro", Path::new("f")).unwrap(), None);
    }

    #[test]
    fn the_string_outranks_the_service_and_the_first_line_of_a_keyword_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pg_service.conf");
        std::fs::write(&path, FILE).unwrap();
        let mut settings = Settings::default();
        settings.set("port", "1".into(), Origin::Given).unwrap();
        let environment = |name: &str| match name {
            "PGSERVICE" => Some("prod".to_owned()),
            "PGSERVICEFILE" => Some(path.display().to_string()),
            _ => None,
        };
        apply(&mut settings, &environment).unwrap();
        assert_eq!(
            (settings.get("host"), settings.get("port")),
            (Some("db1"), Some("1"))
        );
    }

    #[test]
    fn the_systems_file_is_read_when_the_users_lacks_the_service() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("pg_service.conf"), FILE).unwrap();
        let mut settings = Settings::default();
        settings.set("service", "prod".into(), Origin::Given).unwrap();
        let environment =
            |name: &str| (name == "PGSYSCONFDIR").then(|| directory.path().display().to_string());
        apply(&mut settings, &environment).unwrap();
        assert_eq!(settings.get("host"), Some("db1"));
    }

    #[test]
    fn a_service_that_is_nowhere_is_an_error_that_names_the_files() {
        let mut settings = Settings::default();
        settings.set("service", "prod".into(), Origin::Given).unwrap();
        let environment = |name: &str| (name == "PGSYSCONFDIR").then(|| "/nowhere".to_owned());
        let error = apply(&mut settings, &environment).unwrap_err().to_string();
        assert!(
            error.contains("\"prod\"") && error.contains("/nowhere/pg_service.conf"),
            "{error}"
        );
    }

    #[test]
    fn a_line_that_is_not_a_setting_is_refused_without_repeating_it() {
        for line in ["S3CRET", "service=S3CRET"] {
            let text = format!("[prod]\n{line}\n");
            let error = find(&text, "prod", Path::new("f")).unwrap_err().to_string();
            assert!(error.contains("line 2") && !error.contains("S3CRET"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_the_parser_panic(text: String, service: String) {
            let _ = find(&text, &service, Path::new("f"));
        }
    }
}
