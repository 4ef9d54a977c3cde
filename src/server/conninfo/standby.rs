//! `primary_conninfo`: how a standby by itself reaches the server that these settings reach.
//!
//! No password is ever part of it. A standby does not have walship's environment, so the password must come from
//! a file that libpq finds there as well.

use std::path::PathBuf;

use super::{ConnInfo, Endpoint, passfile};
use crate::error::{Error, Result};

/// Keywords that a standby needs as they were set. Every supported version's libpq knows them.
pub(super) const PASSED_ON: [&str; 13] = [
    "channel_binding",
    "connect_timeout",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "options",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
];

/// Where the password came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server) enum PasswordSource {
    /// There is none.
    None,
    /// This password file.
    File(PathBuf),
    /// A service of this name, in a file that libpq finds without being told.
    Service(String),
    /// A place where a standby cannot look: the connection string, the environment, another service file.
    Elsewhere,
}

impl ConnInfo {
    /// The name that was given to this connection, which a standby gets as well.
    #[must_use]
    pub fn given_application_name(&self) -> Option<&str> {
        self.given_application_name.as_deref()
    }

    /// The `primary_conninfo` of a standby that follows the server reached with these settings, under this name in
    /// `pg_stat_replication`.
    ///
    /// # Errors
    /// `Invalid` where the server asked for a password (`used_password`) that the standby would not find again. The
    /// message has the line for its password file.
    pub fn standby_conninfo(&self, application_name: &str, used_password: bool) -> Result<String> {
        let mut pairs = self.servers();
        pairs.push(("user", self.user.clone()));
        match &self.password_source {
            PasswordSource::File(path) => pairs.push(("passfile", path.display().to_string())),
            PasswordSource::Service(name) => pairs.push(("service", name.clone())),
            PasswordSource::Elsewhere if used_password => return Err(self.no_password_for_a_standby()),
            PasswordSource::Elsewhere | PasswordSource::None => {}
        }
        pairs.push(("application_name", application_name.to_owned()));
        pairs.extend(self.passed_on.iter().cloned());
        let words: Vec<_> = pairs
            .iter()
            .map(|(name, value)| format!("{name}={}", quote(value)))
            .collect();
        Ok(words.join(" "))
    }

    /// `host`, `hostaddr` and `port`.
    fn servers(&self) -> Vec<(&'static str, String)> {
        let hosts = self.hosts.iter().map(|host| match &host.endpoint {
            Endpoint::Unix(directory) => directory.display().to_string(),
            Endpoint::Name(name) => name.clone(),
            Endpoint::Address(_) => host.name.clone().unwrap_or_default(),
        });
        let addresses = self.hosts.iter().map(|host| match &host.endpoint {
            Endpoint::Address(address) if host.name.as_deref() != Some(&address.to_string()) => {
                address.to_string()
            }
            _ => String::new(),
        });
        let ports = self.hosts.iter().map(|host| host.port.to_string());
        let lists = [
            ("host", hosts.collect::<Vec<_>>()),
            ("hostaddr", addresses.collect()),
            ("port", ports.collect()),
        ];
        lists
            .into_iter()
            .filter(|(_, values)| values.iter().any(|value| !value.is_empty()))
            .map(|(name, values)| (name, values.join(",")))
            .collect()
    }

    fn no_password_for_a_standby(&self) -> Error {
        let lines: Vec<_> = self
            .hosts
            .iter()
            .map(|host| {
                format!(
                    "\"{}:{}:replication:{}:<password>\"",
                    passfile::escape(&host.passfile_name()),
                    host.port,
                    passfile::escape(&self.user)
                )
            })
            .collect();
        Error::invalid(format!(
            "the standby logs in by itself, and no password is written into its settings; add {} to ~/.pgpass (mode \
             0600) of the user who runs it, and leave the password out here (PGPASSWORD, password=)",
            lines.join(" and ")
        ))
    }
}

/// A value as a connection string has it.
fn quote(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-,:".contains(&byte);
    if !value.is_empty() && value.bytes().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn resolve(given: &str, variables: &[(&str, &str)]) -> ConnInfo {
        let environment = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        ConnInfo::resolve(Some(given), environment).unwrap()
    }

    #[test]
    fn a_standby_reaches_the_same_servers_in_the_same_way() {
        for (given, expected) in [
            ("host=db1 user=u", "host=db1 port=5432 user=u application_name=r"),
            (
                "host=a,b port=1,2 user=u sslmode=verify-full sslrootcert='/a b' target_session_attrs=primary",
                "host=a,b port=1,2 user=u application_name=r sslmode=verify-full sslrootcert='/a b' \
                 target_session_attrs=primary",
            ),
            (
                "host=db hostaddr=10.0.0.1 user=u",
                "host=db hostaddr=10.0.0.1 port=5432 user=u application_name=r",
            ),
            (
                "hostaddr=::1 user='it''s'",
                r"hostaddr=::1 port=5432 user='it\'s' application_name=r",
            ),
            (
                "user=u",
                "host=/var/run/postgresql,/tmp port=5432,5432 user=u application_name=r",
            ),
        ] {
            let given = given.replace("''", r"\'");
            assert_eq!(
                resolve(&given, &[]).standby_conninfo("r", false).unwrap(),
                expected
            );
        }
    }

    #[test]
    fn a_password_is_never_written_and_one_that_is_lost_is_refused() {
        let variables: &[(&str, &str)] = &[("PGPASSWORD", "S3CRET")];
        for (given, variables) in [
            ("host=h user=u password=S3CRET", &[] as &[_]),
            ("host=h user=u", variables),
        ] {
            let info = resolve(given, variables);
            let unused = info.standby_conninfo("r", false).unwrap();
            assert!(!unused.contains("S3CRET"), "{unused}");
            let error = info.standby_conninfo("r", true).unwrap_err().to_string();
            assert!(error.contains("\"h:5432:replication:u:<password>\""), "{error}");
            assert!(!error.contains("S3CRET"), "{error}");
        }
    }

    #[test]
    fn a_password_file_is_named_and_a_service_too_where_a_standby_finds_it() {
        let home = tempfile::tempdir().unwrap();
        let passfile = home.path().join(".pgpass");
        std::fs::write(&passfile, "h:*:*:u:S3CRET\n").unwrap();
        std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o600)).unwrap();
        let services = home.path().join(".pg_service.conf");
        std::fs::write(&services, "[main]\nhost=h2\nuser=u\npassword=S3CRET\n").unwrap();
        let directory = home.path().to_str().unwrap();

        let info = resolve("host=h user=u", &[("HOME", directory)]);
        let text = info.standby_conninfo("r", true).unwrap();
        assert_eq!(
            text,
            format!("host=h port=5432 user=u passfile={directory}/.pgpass application_name=r")
        );
        let info = resolve("service=main", &[("HOME", directory)]);
        let text = info.standby_conninfo("r", true).unwrap();
        assert_eq!(text, "host=h2 port=5432 user=u service=main application_name=r");

        let named = [("PGSERVICEFILE", services.to_str().unwrap())];
        assert!(
            resolve("service=main", &named)
                .standby_conninfo("r", true)
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn every_value_reads_back(user in "[^\0]+", application in "[^\0]+") {
            let variables = [("PGUSER", user.as_str())];
            let text = resolve("host=h", &variables).standby_conninfo(&application, false).unwrap();
            let again = resolve(&text, &[]);
            prop_assert_eq!(again.user(), user);
            prop_assert_eq!(again.given_application_name(), Some(application.as_str()));
        }
    }
}
