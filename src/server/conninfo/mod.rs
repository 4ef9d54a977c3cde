//! Where a server is and how to log in: libpq's connection settings, from libpq's sources in
//! libpq's order: the string given, the service it or `PGSERVICE` names, the environment, defaults.
//!
//! Parsing is pure; `files` reads the service file, the password file and `/etc/passwd`, and only
//! when a setting needs them. Passwords never show in a message or in `Debug`.

mod files;

pub(crate) use files::{os_user, user_name};
mod hosts;
pub(crate) mod passfile;
mod service;
mod settings;
mod standby;
mod string;
mod uri;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::tls::TlsSettings;
use crate::error::{Error, Result};

use self::standby::{PASSED_ON, PasswordSource};

pub(super) use self::hosts::{Endpoint, Host};
#[cfg(test)]
pub(super) use self::settings::Origin;
pub(super) use self::settings::Settings;

/// How long connecting to one address may take, authentication included, unless `connect_timeout` is set.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything needed to reach a server, from every source libpq knows.
#[derive(Debug, Clone)]
pub struct ConnInfo {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    pub(super) session: Session,
    /// Whether names are looked up in the search path of the database and the role, and not in the system's schema
    /// only.
    pub(super) own_search_path: bool,
    pub(super) application_name: String,
    pub(super) options: Option<String>,
    pub(super) connect_timeout: Duration,
    pub(super) target: TargetSession,
    pub(super) tls: TlsSettings,
    pub(super) channel_binding: ChannelBindingMode,
    pub(super) tcp: TcpSettings,
    pub(super) password_source: PasswordSource,
    given_application_name: Option<String>,
    /// Settings that a standby of this server needs as well.
    passed_on: Vec<(&'static str, String)>,
}

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Session {
    /// The commands of physical replication.
    Replication,
    /// SQL in the database of this name.
    Database(String),
    /// The commands of PgBouncer's console.
    PgbouncerConsole,
}

/// The database that PgBouncer makes up for its console.
pub(super) const PGBOUNCER_CONSOLE: &str = "pgbouncer";

impl Session {
    /// The name of its database in a line of the password file.
    pub(super) fn passfile_database(&self) -> &str {
        match self {
            Self::Replication => "replication",
            Self::Database(name) => name,
            Self::PgbouncerConsole => PGBOUNCER_CONSOLE,
        }
    }
}

/// A password, which prints as nothing.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Password(String);

impl Password {
    pub(super) fn new(password: impl Into<String>) -> Self {
        Self(password.into())
    }

    /// The password itself, for the authentication exchange only.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// `target_session_attrs`: which server of the list is good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TargetSession {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// `channel_binding`: whether SCRAM is tied to the TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChannelBindingMode {
    Disable,
    Prefer,
    Require,
}

/// Keep-alive settings of a TCP connection; what is unset is the system's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TcpSettings {
    pub(super) keepalives: bool,
    pub(super) idle: Option<Duration>,
    pub(super) interval: Option<Duration>,
    pub(super) count: Option<u32>,
    pub(super) user_timeout_millis: Option<u32>,
}

impl ConnInfo {
    /// Settings for physical replication, from `given` (a `keyword=value` string, a URI or a bare database name), then
    /// the service file, the environment and libpq's defaults. `connect_timeout` is 10 s unless set to one second or
    /// more.
    ///
    /// # Errors
    /// `Invalid` for text that libpq would refuse, and for settings walship does not support;
    /// `Internal` for a service file that cannot be read.
    pub fn resolve(given: Option<&str>, environment: impl Fn(&str) -> Option<String>) -> Result<Self> {
        Self::resolve_for(|_, _| Session::Replication, given, environment)
    }

    /// As [`ConnInfo::resolve`], for a session that runs SQL in a database: `dbname`, `PGDATABASE`, else, as in libpq,
    /// the one with the role's name.
    ///
    /// # Errors
    /// As [`ConnInfo::resolve`].
    pub fn resolve_database(
        given: Option<&str>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let session = |settings: &Settings, user: &str| {
            Session::Database(settings.get("dbname").unwrap_or(user).to_owned())
        };
        Self::resolve_for(session, given, environment)
    }

    /// As [`ConnInfo::resolve`], for PgBouncer's console.
    ///
    /// # Errors
    /// As [`ConnInfo::resolve`].
    pub fn resolve_pgbouncer_console(
        given: &str,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        Self::resolve_for(|_, _| Session::PgbouncerConsole, Some(given), environment)
    }

    fn resolve_for(
        session: impl Fn(&Settings, &str) -> Session,
        given: Option<&str>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let mut settings = Settings::default();
        if let Some(text) = given {
            string::parse(text, &mut settings)?;
        }
        let service = service::apply(&mut settings, &environment)?;
        settings.set_from_environment(&environment);
        settings.check_support()?;
        let home = home(&environment);
        let user = user(&settings, &environment)?;
        let session = session(&settings, &user);
        let mut hosts = hosts::read(&settings)?;
        let database = session.passfile_database();
        let password_file = hosts::find_passwords(&mut hosts, database, &user, &settings, home.as_deref());
        Ok(Self {
            hosts,
            user,
            session,
            own_search_path: false,
            application_name: application_name(&settings),
            options: settings.get("options").map(str::to_owned),
            connect_timeout: connect_timeout(&settings)?,
            target: target(&settings)?,
            tls: TlsSettings::read(&settings, home.as_deref())?,
            channel_binding: channel_binding(&settings)?,
            tcp: tcp(&settings)?,
            password_source: password_source(&settings, password_file, service),
            given_application_name: settings.get("application_name").map(str::to_owned),
            passed_on: passed_on(&settings),
        })
    }

    /// The same for a user's statements, which are written for the `search_path` of the database and the role.
    #[must_use]
    pub fn for_users_statements(mut self) -> Self {
        self.own_search_path = true;
        self
    }

    /// The role walship logs in as.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }
}

/// The hosts and the role, without any secret: `walship@db1:5432, db2:5432`.
impl fmt::Display for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.user)?;
        for (index, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// The user's home directory, where libpq's files are.
fn home(environment: &impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    environment("HOME")
        .filter(|home| !home.is_empty())
        .map(PathBuf::from)
}

fn user(settings: &Settings, environment: &impl Fn(&str) -> Option<String>) -> Result<String> {
    let known = settings.get("user").map(str::to_owned).or_else(files::os_user);
    known
        .or_else(|| environment("LOGNAME").or_else(|| environment("USER")))
        .ok_or_else(|| {
            Error::invalid("no role to log in as: this user has no name in /etc/passwd; set user or PGUSER")
        })
}

fn password_source(settings: &Settings, file: Option<PathBuf>, service: Option<String>) -> PasswordSource {
    if settings.get("password").is_none() {
        return file.map_or(PasswordSource::None, PasswordSource::File);
    }
    match (settings.origin("password"), service) {
        (settings::Origin::Service(_), Some(name)) => PasswordSource::Service(name),
        _ => PasswordSource::Elsewhere,
    }
}

fn passed_on(settings: &Settings) -> Vec<(&'static str, String)> {
    let found = PASSED_ON
        .iter()
        .filter_map(|name| Some((*name, settings.get(name)?.to_owned())));
    found.collect()
}

fn application_name(settings: &Settings) -> String {
    let name = settings
        .get("application_name")
        .or_else(|| settings.get("fallback_application_name"));
    name.unwrap_or("walship").to_owned()
}

fn connect_timeout(settings: &Settings) -> Result<Duration> {
    let seconds = settings.parse("connect_timeout", "a whole number of seconds", |text| {
        text.parse::<i32>().ok()
    })?;
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Ok(seconds
        .filter(|seconds| *seconds > 0)
        .map_or(DEFAULT_CONNECT_TIMEOUT, Duration::from_secs))
}

fn target(settings: &Settings) -> Result<TargetSession> {
    let expected = "any, read-write, read-only, primary, standby or prefer-standby";
    let target = settings.parse("target_session_attrs", expected, |text| {
        Some(match text {
            "any" => TargetSession::Any,
            "read-write" => TargetSession::ReadWrite,
            "read-only" => TargetSession::ReadOnly,
            "primary" => TargetSession::Primary,
            "standby" => TargetSession::Standby,
            "prefer-standby" => TargetSession::PreferStandby,
            _ => return None,
        })
    })?;
    Ok(target.unwrap_or(TargetSession::Any))
}

fn channel_binding(settings: &Settings) -> Result<ChannelBindingMode> {
    let mode = settings.parse("channel_binding", "disable, prefer or require", |text| {
        Some(match text {
            "disable" => ChannelBindingMode::Disable,
            "prefer" => ChannelBindingMode::Prefer,
            "require" => ChannelBindingMode::Require,
            _ => return None,
        })
    })?;
    Ok(mode.unwrap_or(ChannelBindingMode::Prefer))
}

fn tcp(settings: &Settings) -> Result<TcpSettings> {
    // As in libpq, zero and below mean the system's default.
    let number = |name| -> Result<Option<u32>> {
        let number = settings.parse(name, "a whole number", |text| text.parse::<i32>().ok())?;
        Ok(number
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| *number > 0))
    };
    let seconds =
        |name| -> Result<Option<Duration>> { Ok(number(name)?.map(|n| Duration::from_secs(u64::from(n)))) };
    let keepalives = settings.parse("keepalives", "0 or 1", |text| text.parse::<i32>().ok())?;
    Ok(TcpSettings {
        keepalives: keepalives != Some(0),
        idle: seconds("keepalives_idle")?,
        interval: seconds("keepalives_interval")?,
        count: number("keepalives_count")?,
        user_timeout_millis: number("tcp_user_timeout")?,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn resolve(given: Option<&str>, variables: &[(&str, &str)]) -> Result<ConnInfo> {
        ConnInfo::resolve(given, |name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_string_outranks_the_environment() {
        let info = resolve(
            Some("host=a user=b"),
            &[("PGHOST", "x"), ("PGUSER", "y"), ("PGPORT", "6000")],
        );
        assert_eq!(info.unwrap().to_string(), "b@a:6000");
    }

    #[test]
    fn without_a_host_debians_socket_directory_comes_before_upstreams() {
        let info = resolve(None, &[("PGUSER", "ship")]).unwrap();
        assert_eq!(
            info.to_string(),
            "ship@/var/run/postgresql/.s.PGSQL.5432, /tmp/.s.PGSQL.5432"
        );
    }

    #[test]
    fn the_defaults_are_libpqs_but_for_the_timeout_and_the_application_name() {
        let info = resolve(Some("mydb"), &[]).unwrap();
        assert_eq!(info.connect_timeout, Duration::from_secs(10));
        assert_eq!(info.application_name, "walship");
        assert_eq!(info.target, TargetSession::Any);
        assert!(!info.user().is_empty());
        let zero = resolve(None, &[("PGCONNECT_TIMEOUT", "0")]).unwrap();
        assert_eq!(zero.connect_timeout, Duration::from_secs(10));
    }

    #[test]
    fn a_bad_value_is_named_with_its_origin_and_not_repeated() {
        for (variable, keyword) in [
            ("PGPORT", "port"),
            ("PGSSLMODE", "sslmode"),
            ("PGCONNECT_TIMEOUT", "connect_timeout"),
            ("PGTARGETSESSIONATTRS", "target_session_attrs"),
            ("PGHOSTADDR", "hostaddr"),
        ] {
            let error = resolve(None, &[(variable, "S3CRET")]).unwrap_err().to_string();
            assert!(error.contains(variable) && error.contains(keyword), "{error}");
            assert!(!error.contains("S3CRET"), "{error}");
        }
    }

    #[test]
    fn the_password_file_is_asked_for_each_host_and_a_given_password_outranks_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(".pgpass");
        std::fs::write(&path, "a:5432:*:u:pa\nlocalhost:5432:*:u:pl\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let home = home.path().to_str().unwrap();
        let passwords = |given: &str| {
            let info = resolve(Some(given), &[("HOME", home), ("PGUSER", "u")]).unwrap();
            let expose = |host: &Host| host.password.as_ref().map(|p| p.expose().to_owned());
            info.hosts.iter().map(expose).collect::<Vec<_>>()
        };
        assert_eq!(passwords("host=a,b"), [Some("pa".into()), None]);
        assert_eq!(passwords("host=a password=given"), [Some("given".into())]);
        assert_eq!(passwords("dbname=x"), [Some("pl".into()), Some("pl".into())]);
        assert_eq!(passwords("host=/elsewhere"), [None]);
    }

    // Seen to fail: `conninfo/mod.rs`: the database is always `replication`
    #[test]
    fn the_password_file_is_matched_with_the_database_of_the_session() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(".pgpass");
        std::fs::write(&path, "a:*:replication:u:wal\na:*:db:u:sql\na:*:u:u:own\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let home = home.path().to_str().unwrap().to_owned();
        let environment = |database: Option<&'static str>| {
            let home = home.clone();
            move |name: &str| match name {
                "HOME" => Some(home.clone()),
                "PGUSER" => Some("u".to_owned()),
                "PGDATABASE" => database.map(str::to_owned),
                _ => None,
            }
        };
        let password = |info: Result<ConnInfo>| {
            let host = info.unwrap().hosts.swap_remove(0);
            host.password.map(|password| password.expose().to_owned())
        };
        let replication = ConnInfo::resolve(Some("host=a dbname=db"), environment(None));
        assert_eq!(password(replication).as_deref(), Some("wal"));
        for (given, variable, wanted) in [
            ("host=a dbname=db", Some("u"), Some("sql")),
            ("host=a", Some("db"), Some("sql")),
            ("host=a", None, Some("own")),
            ("host=a dbname=other", None, None),
        ] {
            let info = ConnInfo::resolve_database(Some(given), environment(variable));
            assert_eq!(password(info).as_deref(), wanted, "{given} {variable:?}");
        }
    }

    #[test]
    fn a_password_shows_neither_in_debug_nor_in_display() {
        let info = resolve(Some("password=S3CRET host=h"), &[]).unwrap();
        assert!(!format!("{info:?} {info}").contains("S3CRET"));
    }

    proptest! {
        #[test]
        fn no_setting_makes_resolve_panic(keyword in "(host|hostaddr|port|connect_timeout|sslmode|keepalives_idle)", value in "[^\0]{0,20}") {
            let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
            let _ = resolve(Some(&format!("{keyword}='{quoted}'")), &[]);
        }
    }
}
