//! Which preloaded libraries a rehearsal may load.
//!
//! A library may start workers that run jobs, send requests, or connect to the source's other servers. Only libraries
//! that are known not to do so are loaded. A copy that needs another one for replay or for its data says so when it
//! starts, and nothing is lost.

/// A library that a rehearsal loads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Library {
    /// Its name, as lists of libraries have it.
    pub(crate) name: &'static str,
    /// What keeps it from acting by itself.
    pub(crate) settings: &'static [(&'static str, &'static str)],
}

const fn quiet(name: &'static str) -> Library {
    Library { name, settings: &[] }
}

/// Contrib modules of PostgreSQL and common extensions that act only in the sessions of others, or only on the copy
/// itself.
pub(crate) const LIBRARIES: [Library; 25] = [
    quiet("anon"),
    quiet("auth_delay"),
    quiet("auto_explain"),
    quiet("credcheck"),
    quiet("passwordcheck"),
    quiet("pg_hint_plan"),
    quiet("pg_overexplain"),
    quiet("pg_prewarm"),
    quiet("pg_qualstats"),
    quiet("pg_stat_kcache"),
    quiet("pg_stat_monitor"),
    quiet("pg_stat_statements"),
    quiet("pg_tde"),
    quiet("pg_trgm"),
    quiet("pg_wait_sampling"),
    quiet("pgaudit"),
    quiet("pgcrypto"),
    quiet("pgextwlist"),
    quiet("plpgsql"),
    quiet("plprofiler"),
    quiet("repmgr"),
    quiet("sepgsql"),
    quiet("set_user"),
    quiet("supautils"),
    // Data cannot be read without it; its jobs run in its workers.
    Library {
        name: "timescaledb",
        settings: &[("timescaledb.max_background_workers", "0")],
    },
];

/// A list of libraries, divided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filtered {
    pub(crate) kept: Vec<String>,
    pub(crate) left_out: Vec<String>,
}

/// Divides a list of libraries as `load_libraries` splits it (`SplitDirectoriesString`, PostgreSQL 14 to 18): commas
/// part them, double quotes hold blanks and commas.
pub(crate) fn filter(list: &str) -> Filtered {
    let mut filtered = Filtered::default();
    for name in split(list) {
        let plain = name.rsplit('/').next().unwrap_or_default();
        let plain = plain.strip_suffix(".so").unwrap_or(plain);
        if LIBRARIES.iter().any(|library| library.name == plain) {
            filtered.kept.push(name);
        } else {
            filtered.left_out.push(name);
        }
    }
    filtered
}

/// What keeps a library from acting by itself.
pub(super) fn settings_of(name: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let plain = name.rsplit('/').next().unwrap_or_default().to_owned();
    let libraries = LIBRARIES
        .iter()
        .filter(move |library| library.name == plain.trim_end_matches(".so"));
    libraries.flat_map(|library| library.settings.iter().copied())
}

fn split(list: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut quoted = false;
    for character in list.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(String::new()),
            other => {
                if let Some(name) = names.last_mut() {
                    name.push(other);
                }
            }
        }
    }
    // Single quotes mean nothing here, but `ALTER SYSTEM` has made lists with them.
    let trimmed = names.iter().map(|name| name.trim().trim_matches('\'').to_owned());
    trimmed.filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_nobody_knows_is_left_out() {
        let filtered = filter("pg_stat_statements,\"pg_cron\" , $libdir/auto_explain.so,,unknown");
        assert_eq!(filtered.kept, ["pg_stat_statements", "$libdir/auto_explain.so"]);
        assert_eq!(filtered.left_out, ["pg_cron", "unknown"]);
        assert_eq!(filter(""), Filtered::default());
    }

    #[test]
    fn jobs_of_a_library_that_stays_are_switched_off() {
        let settings: Vec<_> = settings_of("timescaledb").collect();
        assert_eq!(settings, [("timescaledb.max_background_workers", "0")]);
        assert_eq!(settings_of("pg_stat_statements").count(), 0);
    }
}
