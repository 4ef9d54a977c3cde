//! The servers to try: `host`, `hostaddr` and `port`, each a comma-separated list.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::passfile::Login;
use super::{Password, Settings, files, passfile};
use crate::error::{Error, Result};

/// Where packages let PostgreSQL put its socket: Debian's and Red Hat's, then upstream's.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server) struct Host {
    /// The name as given, which the certificate must have; none for an address or a socket.
    pub(in crate::server) name: Option<String>,
    pub(in crate::server) endpoint: Endpoint,
    pub(in crate::server) port: u16,
    pub(in crate::server) password: Option<Password>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server) enum Endpoint {
    /// The socket in this directory.
    Unix(PathBuf),
    /// A name to look up.
    Name(String),
    /// A numeric address.
    Address(IpAddr),
}

impl Host {
    /// The socket's path, for a Unix socket.
    pub(in crate::server) fn socket_path(&self) -> Option<PathBuf> {
        match &self.endpoint {
            Endpoint::Unix(directory) => Some(directory.join(format!(".s.PGSQL.{}", self.port))),
            _ => None,
        }
    }

    /// The name that a line of the password file has for this server.
    pub(in crate::server) fn passfile_name(&self) -> String {
        match &self.endpoint {
            Endpoint::Unix(directory) if is_default(directory) => "localhost".to_owned(),
            Endpoint::Unix(directory) => directory.display().to_string(),
            Endpoint::Name(name) => name.clone(),
            Endpoint::Address(address) => self.name.clone().unwrap_or_else(|| address.to_string()),
        }
    }
}

fn is_default(directory: &Path) -> bool {
    SOCKET_DIRECTORIES
        .iter()
        .any(|default| Path::new(default) == directory)
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.endpoint, &self.name) {
            (Endpoint::Unix(directory), _) => write!(f, "{}/.s.PGSQL.{}", directory.display(), self.port),
            (Endpoint::Name(name), _) => write!(f, "{name}:{}", self.port),
            (Endpoint::Address(address), Some(name)) if *name != address.to_string() => {
                write!(f, "{name}:{} ({address})", self.port)
            }
            (Endpoint::Address(IpAddr::V6(address)), _) => write!(f, "[{address}]:{}", self.port),
            (Endpoint::Address(address), _) => write!(f, "{address}:{}", self.port),
        }
    }
}

/// The servers that the settings name, in order, without passwords.
pub(super) fn read(settings: &Settings) -> Result<Vec<Host>> {
    let names = list(settings, "host");
    let addresses = list(settings, "hostaddr");
    let count = names.len().max(addresses.len()).max(1);
    let ports = list(settings, "port");
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(Error::invalid(format!(
            "host names {} servers and hostaddr {}; give one address for each name",
            names.len(),
            addresses.len()
        )));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(Error::invalid(format!(
            "there are {} ports for {count} hosts; give one for all or one for each",
            ports.len()
        )));
    }
    let mut hosts = Vec::new();
    for index in 0..count {
        let nth = |list: &[&str]| list.get(index).copied().unwrap_or_default().to_owned();
        let port = ports.get(index).or(ports.first()).copied().unwrap_or_default();
        let port = parse_port(port, settings)?;
        for (name, endpoint) in endpoints(&nth(&names), &nth(&addresses), settings)? {
            hosts.push(Host {
                name,
                endpoint,
                port,
                password: None,
            });
        }
    }
    Ok(hosts)
}

fn list<'a>(settings: &'a Settings, name: &str) -> Vec<&'a str> {
    settings
        .get(name)
        .map(|text| text.split(',').map(str::trim).collect())
        .unwrap_or_default()
}

/// One host of the list; an empty one stands for the default socket directories.
fn endpoints(name: &str, address: &str, settings: &Settings) -> Result<Vec<(Option<String>, Endpoint)>> {
    let name_or_none = (!name.is_empty()).then(|| name.to_owned());
    if !address.is_empty() {
        let parsed = address.parse().map_err(|_| {
            Error::invalid(format!(
                "hostaddr {} is not a numeric IP address; use host for a name",
                settings.origin("hostaddr")
            ))
        })?;
        return Ok(vec![(name_or_none, Endpoint::Address(parsed))]);
    }
    if name.starts_with('@') {
        return Err(Error::invalid(format!(
            "host {} is an abstract socket, which walship does not support; use a directory or a name",
            settings.origin("host")
        )));
    }
    Ok(if name.is_empty() {
        let unix = |directory: &&str| (None, Endpoint::Unix(PathBuf::from(directory)));
        SOCKET_DIRECTORIES.iter().map(unix).collect()
    } else if name.starts_with('/') {
        vec![(None, Endpoint::Unix(PathBuf::from(name)))]
    } else if let Ok(address) = name.parse() {
        vec![(name_or_none, Endpoint::Address(address))]
    } else {
        vec![(name_or_none, Endpoint::Name(name.to_owned()))]
    })
}

fn parse_port(text: &str, settings: &Settings) -> Result<u16> {
    if text.is_empty() {
        return Ok(5432);
    }
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
        Error::invalid(format!(
            "port {} is not valid; write a number from 1 to 65535",
            settings.origin("port")
        ))
    })
}

/// Gives each server its password: the one that was set, else the password file's. Returns the password file if one of
/// the passwords came from it.
pub(super) fn find_passwords(
    hosts: &mut [Host],
    database: &str,
    user: &str,
    settings: &Settings,
    home: Option<&Path>,
) -> Option<PathBuf> {
    if let Some(password) = settings.get("password") {
        for host in hosts {
            host.password = Some(Password::new(password));
        }
        return None;
    }
    let given = settings.get("passfile").map(PathBuf::from);
    let path = given.or_else(|| Some(home?.join(".pgpass")))?;
    let text = files::read_passfile(&path)?;
    for host in &mut *hosts {
        let login = Login {
            host: &host.passfile_name(),
            port: host.port,
            database,
            user,
        };
        host.password = passfile::find(&text, &login);
    }
    let found = hosts.iter().any(|host| host.password.is_some());
    found.then(|| std::path::absolute(&path).unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::super::Origin;
    use super::*;

    fn hosts(pairs: &[(&str, &str)]) -> Result<Vec<String>> {
        let mut settings = Settings::default();
        for (name, value) in pairs {
            settings.set(name, (*value).to_owned(), Origin::Given)?;
        }
        Ok(read(&settings)?.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn lists_pair_up_and_one_port_serves_all() {
        assert_eq!(
            hosts(&[("host", "a, b,::1"), ("port", "7")]).unwrap(),
            ["a:7", "b:7", "[::1]:7"]
        );
        assert_eq!(
            hosts(&[("host", "a,b"), ("port", "7,")]).unwrap(),
            ["a:7", "b:5432"]
        );
        assert_eq!(
            hosts(&[("host", "db"), ("hostaddr", "10.0.0.1")]).unwrap(),
            ["db:5432 (10.0.0.1)"]
        );
        assert_eq!(hosts(&[("host", "/run/pg")]).unwrap(), ["/run/pg/.s.PGSQL.5432"]);
        assert_eq!(
            hosts(&[("host", "a,")]).unwrap(),
            [
                "a:5432",
                "/var/run/postgresql/.s.PGSQL.5432",
                "/tmp/.s.PGSQL.5432"
            ]
        );
    }

    #[test]
    fn lists_that_do_not_match_are_refused() {
        for pairs in [
            [("host", "a,b"), ("hostaddr", "10.0.0.1")],
            [("host", "a,b,c"), ("port", "1,2")],
            [("host", "a"), ("port", "0")],
            [("host", "a"), ("port", "65536")],
            [("host", "@abstract"), ("port", "1")],
        ] {
            assert!(hosts(&pairs).is_err(), "{pairs:?}");
        }
    }
}
