//! The keywords of a connection string: which ones libpq knows (`PQconninfoOptions` in
//! `fe-connect.c`, PostgreSQL 18), which environment variable stands for each, and what walship
//! does with it.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, Result};

/// One keyword of a connection string.
struct Keyword {
    name: &'static str,
    environment: Option<&'static str>,
    support: Support,
}

/// What walship does with a keyword libpq knows.
enum Support {
    /// Acts on it.
    Used,
    /// Takes any value and does nothing.
    Ignored,
    /// Takes only the values that ask for what walship does anyway.
    Only(&'static [&'static str]),
}

use Support::{Ignored, Only, Used};

const fn keyword(name: &'static str, environment: &'static str, support: Support) -> Keyword {
    let environment = if environment.is_empty() {
        None
    } else {
        Some(environment)
    };
    Keyword {
        name,
        environment,
        support,
    }
}

const KEYWORDS: &[Keyword] = &[
    keyword("application_name", "PGAPPNAME", Used),
    keyword("channel_binding", "PGCHANNELBINDING", Used),
    keyword("client_encoding", "PGCLIENTENCODING", Ignored),
    keyword("connect_timeout", "PGCONNECT_TIMEOUT", Used),
    keyword("dbname", "PGDATABASE", Used),
    keyword("fallback_application_name", "", Used),
    keyword("gssdelegation", "PGGSSDELEGATION", Only(&["0"])),
    keyword("gssencmode", "PGGSSENCMODE", Only(&["disable", "prefer"])),
    keyword("gsslib", "PGGSSLIB", Ignored),
    keyword("host", "PGHOST", Used),
    keyword("hostaddr", "PGHOSTADDR", Used),
    keyword("keepalives", "", Used),
    keyword("keepalives_count", "", Used),
    keyword("keepalives_idle", "", Used),
    keyword("keepalives_interval", "", Used),
    keyword("krbsrvname", "PGKRBSRVNAME", Ignored),
    keyword("load_balance_hosts", "PGLOADBALANCEHOSTS", Only(&["disable"])),
    keyword(
        "max_protocol_version",
        "PGMAXPROTOCOLVERSION",
        Only(&["3.0", "3.2", "latest"]),
    ),
    keyword("min_protocol_version", "PGMINPROTOCOLVERSION", Only(&["3.0"])),
    keyword("oauth_client_id", "", Only(&[])),
    keyword("oauth_client_secret", "", Only(&[])),
    keyword("oauth_issuer", "", Only(&[])),
    keyword("oauth_scope", "", Only(&[])),
    keyword("options", "PGOPTIONS", Used),
    keyword("passfile", "PGPASSFILE", Used),
    keyword("password", "PGPASSWORD", Used),
    keyword("port", "PGPORT", Used),
    keyword("replication", "", Only(&["true", "on", "yes", "1"])),
    keyword("require_auth", "PGREQUIREAUTH", Only(&[])),
    keyword("requirepeer", "PGREQUIREPEER", Only(&[])),
    keyword("scram_client_key", "", Only(&[])),
    keyword("scram_server_key", "", Only(&[])),
    keyword("service", "PGSERVICE", Used),
    keyword("servicefile", "PGSERVICEFILE", Used),
    keyword(
        "ssl_max_protocol_version",
        "PGSSLMAXPROTOCOLVERSION",
        Only(&["TLSv1.3"]),
    ),
    keyword(
        "ssl_min_protocol_version",
        "PGSSLMINPROTOCOLVERSION",
        Only(&["TLSv1", "TLSv1.1", "TLSv1.2"]),
    ),
    keyword("sslcert", "PGSSLCERT", Used),
    keyword("sslcertmode", "PGSSLCERTMODE", Only(&["allow"])),
    keyword("sslcompression", "PGSSLCOMPRESSION", Ignored),
    keyword("sslcrl", "PGSSLCRL", Only(&[])),
    keyword("sslcrldir", "PGSSLCRLDIR", Only(&[])),
    keyword("sslkey", "PGSSLKEY", Used),
    keyword("sslkeylogfile", "", Only(&[])),
    keyword("sslmode", "PGSSLMODE", Used),
    keyword("sslnegotiation", "PGSSLNEGOTIATION", Only(&["postgres"])),
    keyword("sslpassword", "", Only(&[])),
    keyword("sslrootcert", "PGSSLROOTCERT", Used),
    keyword("sslsni", "PGSSLSNI", Only(&["1"])),
    keyword("target_session_attrs", "PGTARGETSESSIONATTRS", Used),
    keyword("tcp_user_timeout", "", Used),
    keyword("user", "PGUSER", Used),
];

/// Where a setting came from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server) enum Origin {
    /// The text the user gave.
    Given,
    Environment(&'static str),
    /// A service, in the file at this path.
    Service(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given => f.write_str("in the connection string"),
            Self::Environment(name) => write!(f, "in {name}"),
            Self::Service(path) => write!(f, "in the service file {path}"),
        }
    }
}

/// The settings collected so far. Prints nothing, because passwords are among them.
#[derive(Default)]
pub(in crate::server) struct Settings(BTreeMap<&'static str, (String, Origin)>);

impl Settings {
    /// Sets a keyword, over an earlier value.
    pub(in crate::server) fn set(&mut self, name: &str, value: String, origin: Origin) -> Result<()> {
        let known = self.known(name, &origin)?;
        self.0.insert(known, (value, origin));
        Ok(())
    }

    /// Sets a keyword unless it is set already, even to the empty string, as in libpq.
    pub(in crate::server) fn set_default(&mut self, name: &str, value: String, origin: Origin) -> Result<()> {
        let known = self.known(name, &origin)?;
        self.0.entry(known).or_insert((value, origin));
        Ok(())
    }

    /// Fills unset settings from the environment.
    pub(in crate::server) fn set_from_environment(&mut self, environment: impl Fn(&str) -> Option<String>) {
        for keyword in KEYWORDS {
            let Some(variable) = keyword.environment else {
                continue;
            };
            if let Some(value) = environment(variable) {
                let origin = Origin::Environment(variable);
                self.0.entry(keyword.name).or_insert((value, origin));
            }
        }
    }

    /// A keyword's value, unless it is unset or empty.
    pub(in crate::server) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(|(value, _)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// A keyword's value, where an empty one was set on purpose.
    pub(in crate::server) fn get_even_empty(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|(value, _)| value.as_str())
    }

    /// Reads a keyword's value. The error does not repeat it, because a wrongly quoted connection string may have part
    /// of a password there.
    pub(in crate::server) fn parse<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        read(text.trim()).map(Some).ok_or_else(|| {
            Error::invalid(format!(
                "{name} {} is not valid; write {expected}",
                self.origin(name)
            ))
        })
    }

    /// Where a keyword's value came from.
    pub(in crate::server) fn origin(&self, name: &str) -> &Origin {
        self.0.get(name).map_or(&Origin::Given, |(_, origin)| origin)
    }

    /// Refuses every setting that asks for something that walship does not do.
    pub(in crate::server) fn check_support(&self) -> Result<()> {
        for keyword in KEYWORDS {
            if let (Only(values), Some(value)) = (&keyword.support, self.get(keyword.name))
                && !values.contains(&value)
            {
                return Err(unsupported(keyword.name, values, self.origin(keyword.name)));
            }
        }
        Ok(())
    }

    fn known(&self, name: &str, origin: &Origin) -> Result<&'static str> {
        let found = KEYWORDS.iter().find(|keyword| keyword.name == name);
        found
            .map(|keyword| keyword.name)
            .ok_or_else(|| self.unknown(name, origin))
    }

    fn unknown(&self, name: &str, origin: &Origin) -> Error {
        // After a password with an unquoted space this may be the rest of the password.
        let shown = if self.0.contains_key("password") {
            "a keyword".to_owned()
        } else {
            format!("the keyword {name:?}")
        };
        let next = nearest(name).map_or_else(
            || "see PostgreSQL's manual, \"Parameter Key Words\"".to_owned(),
            |near| format!("did you mean {near}?"),
        );
        Error::invalid(format!("{shown} {origin} is not one libpq knows; {next}"))
    }
}

fn unsupported(name: &str, values: &[&str], origin: &Origin) -> Error {
    let next = match values {
        [] => "leave it out".to_owned(),
        values => format!("leave it out or set it to {}", values.join(" or ")),
    };
    Error::invalid(format!("{name} {origin} is not supported by walship; {next}"))
}

fn nearest(name: &str) -> Option<&'static str> {
    let scored = KEYWORDS
        .iter()
        .map(|keyword| (strsim::jaro_winkler(name, keyword.name), keyword.name));
    scored
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score >= 0.8)
        .map(|(_, near)| near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_without_duplicates() {
        assert!(KEYWORDS.is_sorted_by(|a, b| a.name < b.name));
    }

    #[test]
    fn an_unknown_keyword_is_answered_with_the_nearest_known_one() {
        let error = Settings::default()
            .set("hots", "db".into(), Origin::Given)
            .unwrap_err();
        assert!(error.to_string().contains("did you mean host?"), "{error}");
    }

    #[test]
    fn a_word_after_a_password_is_never_repeated() {
        let mut settings = Settings::default();
        settings.set("password", "my".into(), Origin::Given).unwrap();
        let error = settings.set("s3cret", "x".into(), Origin::Given).unwrap_err();
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }

    #[test]
    fn a_keyword_that_walship_does_not_support_is_named() {
        let mut settings = Settings::default();
        settings
            .set("require_auth", "scram-sha-256".into(), Origin::Given)
            .unwrap();
        let error = settings.check_support().unwrap_err().to_string();
        assert!(
            error.contains("require_auth") && error.contains("not supported"),
            "{error}"
        );
    }

    #[test]
    fn a_setting_that_asks_for_what_walship_does_anyway_is_accepted() {
        let mut settings = Settings::default();
        settings
            .set("gssencmode", "disable".into(), Origin::Given)
            .unwrap();
        settings.set_from_environment(|name| (name == "PGGSSENCMODE").then(|| "require".into()));
        settings.check_support().unwrap();
    }
}
