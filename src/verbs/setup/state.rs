//! Asks a server for the facts that [`super::plan()`] decides on.

use std::collections::BTreeMap;

use super::plan::{Access, NAMES, Role, Rule, ServerState, Setting, StoredPassword};
use crate::error::{Error, Result};
use crate::pg::Major;
use crate::pg::sql::quote_literal;
use crate::server::{ConnInfo, Connection};

/// A superuser's session on a primary.
pub(super) struct Primary {
    pub(super) connection: Connection,
    pub(super) major: Major,
    pub(super) system_identifier: u64,
    pub(super) data_directory: String,
    pub(super) port: String,
}

impl Primary {
    /// # Errors
    /// As [`Connection::connect`]; `Invalid` for a standby and an unknown version, `Denied` for a role that is not a
    /// superuser.
    pub(super) async fn connect(info: &ConnInfo) -> Result<Self> {
        let mut connection = Connection::connect(info).await?;
        let major = connection.server_major().supported()?;
        if connection.parameter("is_superuser") != Some("on") {
            return Err(Error::denied(format!(
                "{info} is not a superuser, and only a superuser can see and change these settings; log in as one, for \
                 example -d 'user=postgres dbname=postgres'"
            )));
        }
        if connection.parameter("in_hot_standby") == Some("on") {
            return Err(Error::invalid(format!(
                "{info} is a standby, and gets its roles from its primary; run this on the primary"
            )));
        }
        let row = connection
            .sql(
                "ask for the cluster",
                "SELECT system_identifier, current_setting('data_directory'), current_setting('port') \
                 FROM pg_control_system()",
            )
            .await?;
        let mut values = row.into_iter().flatten().map(Option::unwrap_or_default);
        let mut next = || values.next().unwrap_or_default();
        let system_identifier = next()
            .parse()
            .map_err(|_| Error::corrupt(format!("{info} does not say its system identifier")))?;
        Ok(Self {
            system_identifier,
            data_directory: next(),
            port: next(),
            major,
            connection,
        })
    }

    pub(super) async fn state(&mut self, role: &str, addresses: &[String]) -> Result<ServerState> {
        let mut access = Vec::new();
        for address in addresses {
            access.push(self.access(role, address).await?);
        }
        Ok(ServerState {
            major: self.major,
            settings: self.settings().await?,
            role: self.role(role).await?,
            access,
            hba_file: self.text("ask for hba_file", "SHOW hba_file").await?,
            hba_error: self.hba_error().await?,
        })
    }

    /// Settings that wait for a restart.
    pub(super) async fn pending_restart(&mut self) -> Result<Vec<String>> {
        let sql = format!(
            "SELECT name FROM pg_settings WHERE pending_restart AND name IN ({}) ORDER BY name",
            list(&NAMES)
        );
        let rows = self.connection.sql("ask for pending settings", &sql).await?;
        Ok(rows.into_iter().flatten().flatten().collect())
    }

    /// One value, as text; empty for NULL and for no row.
    pub(super) async fn text(&mut self, what: &str, sql: &str) -> Result<String> {
        let rows = self.connection.sql(what, sql).await?;
        Ok(rows.into_iter().flatten().flatten().next().unwrap_or_default())
    }

    /// What the files say counts, even if it waits for a restart. (With archiving off, the server itself does not show
    /// the command.) Not so for `max_wal_size`, which is calculated with: the server gives it in MB, a file in any
    /// unit.
    async fn settings(&mut self) -> Result<BTreeMap<String, Setting>> {
        let names = list(&NAMES);
        let sql = format!(
            "SELECT s.name, CASE WHEN s.source = 'command line' OR s.name = 'max_wal_size' THEN s.setting ELSE coalesce(f.setting, s.setting) END, \
             s.source = 'command line' FROM pg_settings s LEFT JOIN LATERAL (SELECT setting FROM pg_file_settings \
             WHERE lower(name) = s.name ORDER BY seqno DESC LIMIT 1) f ON true WHERE s.name IN ({names})"
        );
        let rows = self.connection.sql("read the server's settings", &sql).await?;
        let setting = |row: Vec<Option<String>>| {
            let mut values = row.into_iter().map(Option::unwrap_or_default);
            let mut next = || values.next().unwrap_or_default();
            let (name, value) = (next(), next());
            let on_command_line = next() == "t";
            let setting = Setting {
                value,
                on_command_line,
            };
            (name, setting)
        };
        Ok(rows.into_iter().map(setting).collect())
    }

    async fn role(&mut self, role: &str) -> Result<Role> {
        let sql = format!(
            "SELECT rolreplication AND rolcanlogin, CASE WHEN rolpassword IS NULL THEN 'none' WHEN rolpassword LIKE \
             'SCRAM-SHA-256$%' THEN 'scram' ELSE 'weak' END FROM pg_authid WHERE rolname = {}",
            quote_literal(role)
        );
        let rows = self.connection.sql("look for the role", &sql).await?;
        let Some(row) = rows.into_iter().next() else {
            return Ok(Role::Missing);
        };
        let mut values = row.into_iter().map(Option::unwrap_or_default);
        Ok(Role::Present {
            replicates: values.next().unwrap_or_default() == "t",
            password: match values.next().unwrap_or_default().as_str() {
                "scram" => StoredPassword::Scram,
                "weak" => StoredPassword::Weak,
                _ => StoredPassword::None,
            },
        })
    }

    /// What `pg_hba.conf` says to a replica from this network.
    pub(super) async fn access(&mut self, role: &str, network: &str) -> Result<Access> {
        let tls = self.rule(role, network, "hostssl").await?;
        let plain = self.rule(role, network, "hostnossl").await?;
        Ok(Access::of(network, tls, plain))
    }

    /// The first line of `pg_hba.conf` that fits some connection from this network: a line of `kind`, or one that fits
    /// both kinds. Hosts' names are not looked up. A line for a network within this one counts, because it decides for
    /// a part of it.
    async fn rule(&mut self, role: &str, network: &str, kind: &str) -> Result<Option<Rule>> {
        let order = if self.major >= Major::V16 {
            "rule_number"
        } else {
            "line_number"
        };
        let (role, address) = (quote_literal(role), quote_literal(network));
        let sql = format!(
            "SELECT type, auth_method, {role} = ANY (user_name) FROM pg_hba_file_rules WHERE error IS NULL \
             AND type IN ('host', 'hostnogssenc', {}) AND 'replication' = ANY (database) \
             AND user_name && ARRAY['all', {role}] \
             AND (address = 'all' OR CASE WHEN netmask IS NOT NULL AND family(address::inet) = family({address}::inet) \
             THEN (address::inet & netmask::inet & netmask({address}::inet)) \
             = (host({address}::inet)::inet & netmask::inet & netmask({address}::inet)) ELSE false END) \
             ORDER BY {order} LIMIT 1",
            quote_literal(kind)
        );
        let rows = self.connection.sql("read pg_hba.conf", &sql).await?;
        Ok(rows.into_iter().next().map(|row| {
            let mut values = row.into_iter().map(Option::unwrap_or_default);
            let mut next = || values.next().unwrap_or_default();
            Rule {
                kind: next(),
                method: next(),
                names_role: next() == "t",
            }
        }))
    }

    /// The first line of `pg_hba.conf` that the server cannot read.
    pub(super) async fn hba_error(&mut self) -> Result<Option<String>> {
        let sql = "SELECT 'line ' || line_number || ': ' || error FROM pg_hba_file_rules WHERE error IS NOT NULL \
                   ORDER BY line_number LIMIT 1";
        let error = self.text("read pg_hba.conf", sql).await?;
        Ok((!error.is_empty()).then_some(error))
    }
}

fn list(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| quote_literal(name)).collect();
    quoted.join(", ")
}
