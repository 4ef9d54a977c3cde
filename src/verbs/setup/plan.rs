//! What a primary lacks for archiving and replication, and why: values in, decisions out.
//!
//! What the administrator has set stays if it is enough: higher limits, another level, another walship command.
//! Where walship and something else want the same setting, that is a conflict, and a person decides it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::judge::diagnosis::ArchiveCommand;
use crate::pg::Major;
use crate::pg::hba::password_rule;
use crate::pg::sql::{quote_identifier, quote_literal};

/// A replica that streams, another that is seeded (two connections), and a base backup need this many.
const LEAST_SENDERS: u32 = 5;
/// Set where there are too few senders or slots: PostgreSQL's own default.
const DEFAULT_LIMIT: u32 = 10;
/// A replica, another that takes its place, and one to spare.
const LEAST_SLOTS: u32 = 3;
/// `max_slot_wal_keep_size` in units of `max_wal_size`: enough for a replica's restart, not for a night.
const SLOT_CHECKPOINTS: u64 = 4;
/// Commands that throw WAL away.
const DISCARDING: [&str; 8] = [
    "",
    "(disabled)",
    "true",
    "/bin/true",
    "/usr/bin/true",
    ":",
    "exit 0",
    "cd .",
];

/// The settings that matter here.
pub const NAMES: [&str; 13] = [
    "archive_command",
    "archive_library",
    "archive_mode",
    "archive_timeout",
    "listen_addresses",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "max_wal_size",
    "password_encryption",
    "summarize_wal",
    "wal_keep_size",
    "wal_level",
];

/// One setting of the server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Setting {
    /// The value that it has, or will have after a restart.
    pub value: String,
    /// It comes from the command line, which outranks every file.
    pub on_command_line: bool,
}

/// The role that replicas log in as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Missing,
    Present {
        /// It may log in for replication.
        replicates: bool,
        password: StoredPassword,
    },
}

/// How a role's password is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredPassword {
    Scram,
    /// As MD5.
    Weak,
    /// The role has no password.
    None,
}

/// A line of `pg_hba.conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// `host`, `hostssl` and so on.
    pub kind: String,
    pub method: String,
    /// It names the role, rather than all roles.
    pub names_role: bool,
}

/// What `pg_hba.conf` says to a replica at an address: its first line that fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The replica's network, such as `10.0.0.5/32`.
    pub address: String,
    /// The line that decides; `None` where no line fits.
    pub rule: Option<Rule>,
    /// Connections without TLS are refused, and stay so.
    pub tls_only: bool,
}

impl Access {
    /// Takes the first line that fits a connection with TLS, and the first that fits one without. If connections
    /// without TLS are refused on purpose, the line for those with TLS decides; if not, the weaker of the two.
    #[must_use]
    pub fn of(address: &str, tls: Option<Rule>, plain: Option<Rule>) -> Self {
        let tls_only = match &plain {
            None => tls.is_some(),
            Some(rule) => rule.kind == "hostnossl" && rule.method == "reject",
        };
        let rule = match plain {
            Some(plain) if !tls_only && plain.is_weak() => Some(plain),
            Some(plain) if !tls_only => tls.or(Some(plain)),
            _ => tls,
        };
        Self {
            address: address.to_owned(),
            rule,
            tls_only,
        }
    }

    /// Whether the replica is refused, or let in without a proof that nobody can steal.
    #[must_use]
    pub fn is_lacking(&self) -> bool {
        self.rule.as_ref().is_none_or(Rule::is_weak)
    }
}

impl Rule {
    fn is_weak(&self) -> bool {
        matches!(
            self.method.as_str(),
            "trust" | "password" | "md5" | "ident" | "peer" | "reject"
        )
    }
}

/// What is known of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerState {
    pub major: Major,
    /// Its settings, of [`NAMES`].
    pub settings: BTreeMap<String, Setting>,
    pub role: Role,
    /// What `pg_hba.conf` says to each of the replicas' addresses.
    pub access: Vec<Access>,
    /// The path of `pg_hba.conf`.
    pub hba_file: String,
    /// The first line of `pg_hba.conf` that cannot be read, if there is one.
    pub hba_error: Option<String>,
}

/// What is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The role that replicas log in as.
    pub role: String,
    pub password_given: bool,
    pub archive_command: String,
}

/// Something the server lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// The setting, or `role`, or `pg_hba.conf`.
    pub name: String,
    /// What was found, and why it is not enough.
    pub why: String,
    pub fix: Fix,
    /// It takes effect with the next restart.
    pub needs_restart: bool,
}

/// What helps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fix {
    /// A statement. The role's password is not part of it.
    Sql(String),
    /// Lines of `pg_hba.conf`, to stand before all others.
    HbaLines(Vec<String>),
    /// Something that a person does, in words.
    ByHand(String),
    /// Something that a person decides, in words: walship changes nothing before.
    Conflict(String),
}

/// Decides what the server lacks.
#[must_use]
pub fn plan(state: &ServerState, wanted: &Wanted) -> Vec<Item> {
    let mut items = settings(state, wanted);
    items.extend(role(state, wanted));
    items.extend(hba(state, wanted));
    items.extend(listening(state));
    items
}

impl ServerState {
    fn value(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", |setting| &setting.value)
    }

    /// The item for a setting that needs another value.
    fn set(&self, name: &str, value: &str, needs_restart: bool, why: String) -> Item {
        let fixed = self
            .settings
            .get(name)
            .is_some_and(|setting| setting.on_command_line);
        Item {
            name: name.to_owned(),
            why,
            fix: if fixed {
                Fix::ByHand(format!(
                    "it is set on the server's command line (by Patroni or a service, for example), which outranks ALTER \
                     SYSTEM: set {name} = {value} there"
                ))
            } else {
                Fix::Sql(format!("ALTER SYSTEM SET {name} = {}", quote_literal(value)))
            },
            needs_restart,
        }
    }
}

fn settings(state: &ServerState, wanted: &Wanted) -> Vec<Item> {
    let mut items = Vec::new();
    if state.value("wal_level") == "minimal" {
        let why = "wal_level is minimal, with which WAL is of no use to a replica or a backup".to_owned();
        items.push(state.set("wal_level", "replica", true, why));
    }
    for (name, least) in [
        ("max_wal_senders", LEAST_SENDERS),
        ("max_replication_slots", LEAST_SLOTS),
    ] {
        let found = state.value(name);
        if found.parse::<u32>().is_ok_and(|found| found < least) {
            let why = format!(
                "{name} is {found}; a replica, the seeding of another and a base backup need at least {least}"
            );
            items.push(state.set(name, &DEFAULT_LIMIT.to_string(), true, why));
        }
    }
    if state.value("max_slot_wal_keep_size") == "-1" {
        let megabytes = state.value("max_wal_size").parse().unwrap_or(1024_u64);
        let value = format!("{}MB", megabytes.saturating_mul(SLOT_CHECKPOINTS));
        let why = "max_slot_wal_keep_size is -1: the slot of a replica that stays away would fill the disk. With a limit, \
                   such a replica goes on from the archive, so wal_keep_size is not needed"
            .to_owned();
        items.push(state.set("max_slot_wal_keep_size", &value, false, why));
    }
    items.extend(archiving(state, wanted));
    if state.major.has_wal_summaries() && is_off(state.value("summarize_wal")) {
        let why = "summarize_wal is off; incremental backups need the summaries".to_owned();
        items.push(state.set("summarize_wal", "on", false, why));
    }
    if state.value("password_encryption") == "md5" {
        let why = "password_encryption is md5, and whoever sees a stored MD5 can log in with it".to_owned();
        items.push(state.set("password_encryption", "scram-sha-256", false, why));
    }
    items
}

fn archiving(state: &ServerState, wanted: &Wanted) -> Vec<Item> {
    let mut items = Vec::new();
    if is_off(state.value("archive_mode")) {
        let why = "archive_mode is off: no WAL leaves this server".to_owned();
        items.push(state.set("archive_mode", "on", true, why));
    }
    let command = state.value("archive_command").trim();
    let library = state.value("archive_library");
    let set = format!(
        "ALTER SYSTEM SET archive_command = {}",
        quote_literal(&wanted.archive_command)
    );
    let conflict = |name: &str, why: String, how: String| Item {
        name: name.to_owned(),
        why,
        fix: Fix::Conflict(how),
        needs_restart: false,
    };
    if !library.is_empty() {
        items.push(conflict(
            "archive_library",
            format!("archive_library is {library}, and PostgreSQL uses either a library or a command"),
            format!("if walship is to archive instead: ALTER SYSTEM RESET archive_library; {set}"),
        ));
    } else if DISCARDING.contains(&command) {
        let why = match command {
            "" | "(disabled)" => "archive_command is empty: WAL waits on this server".to_owned(),
            _ => format!("archive_command is {command}, which throws the WAL away"),
        };
        items.push(state.set("archive_command", &wanted.archive_command, false, why));
    } else {
        let found = format!("archive_command is {}", quote_literal(command));
        let name = "archive_command";
        match ArchiveCommand::parse(command).map(|command| command.flaw()) {
            Some(None) => {}
            Some(Some(flaw)) => items.push(conflict(
                name,
                format!("{found}, which {flaw}"),
                format!("correct it: {set}"),
            )),
            None => items.push(conflict(
                name,
                format!("{found}, which is another tool's"),
                format!(
                    "if walship is to archive instead: {set}. If both are to archive, put \"{} && \" before the other command",
                    wanted.archive_command
                ),
            )),
        }
    }
    if is_zero(state.value("archive_timeout")) {
        let why =
            "archive_timeout is 0: on a quiet server the last transactions would wait for a full segment";
        items.push(state.set("archive_timeout", "60s", false, why.to_owned()));
    }
    items
}

fn role(state: &ServerState, wanted: &Wanted) -> Option<Item> {
    let name = &wanted.role;
    let quoted = quote_identifier(name);
    let (why, fix) = match state.role {
        Role::Missing => (
            format!("the role {name}, which replicas log in as, does not exist"),
            Fix::Sql(format!("CREATE ROLE {quoted} LOGIN REPLICATION")),
        ),
        Role::Present {
            replicates: false, ..
        } => (
            format!("the role {name} may not log in for replication"),
            Fix::Sql(format!("ALTER ROLE {quoted} LOGIN REPLICATION")),
        ),
        Role::Present {
            password: StoredPassword::None,
            ..
        } => (
            format!("the role {name} has no password"),
            Fix::Sql(format!("ALTER ROLE {quoted} LOGIN REPLICATION")),
        ),
        Role::Present {
            password: StoredPassword::Weak,
            ..
        } if wanted.password_given => (
            format!("the password of the role {name} is stored as MD5"),
            Fix::Sql(format!("ALTER ROLE {quoted} LOGIN REPLICATION")),
        ),
        Role::Present {
            password: StoredPassword::Weak,
            ..
        } => (
            format!("the password of the role {name} is stored as MD5"),
            Fix::ByHand(format!(
                "set it again while password_encryption is scram-sha-256: \\password {name} in psql, or --password-file"
            )),
        ),
        Role::Present {
            password: StoredPassword::Scram,
            ..
        } => return None,
    };
    Some(Item {
        name: "role".to_owned(),
        why,
        fix,
        needs_restart: false,
    })
}

/// Whether a password is to be set for the role.
#[must_use]
pub fn needs_password(state: &ServerState, wanted: &Wanted) -> bool {
    match state.role {
        Role::Missing => true,
        Role::Present { password, .. } => match password {
            StoredPassword::Scram => false,
            StoredPassword::Weak => wanted.password_given,
            StoredPassword::None => true,
        },
    }
}

fn hba(state: &ServerState, wanted: &Wanted) -> Option<Item> {
    let item = |why: String, fix: Fix| Item {
        name: "pg_hba.conf".to_owned(),
        why,
        fix,
        needs_restart: false,
    };
    if let Some(error) = &state.hba_error {
        return Some(item(
            format!("{} cannot be read as a whole: {error}", state.hba_file),
            Fix::ByHand("correct that line, and run this again".to_owned()),
        ));
    }
    let lacking: Vec<_> = state.access.iter().filter(|access| access.is_lacking()).collect();
    let is_rejected = |rule: &Rule| rule.names_role && rule.method == "reject";
    if let Some(rejected) = lacking
        .iter()
        .find(|access| access.rule.as_ref().is_some_and(is_rejected))
    {
        return Some(item(
            format!(
                "{} rejects {} at {}",
                state.hba_file, wanted.role, rejected.address
            ),
            Fix::ByHand("remove that line if replicas are to log in from there".to_owned()),
        ));
    }
    let first = lacking.first()?;
    let found = match first.rule.as_ref().map(|rule| rule.method.as_str()) {
        None => "has no line for".to_owned(),
        Some("reject") => "rejects".to_owned(),
        Some("trust") => "accepts trust from".to_owned(),
        Some(method) => format!("asks only for {method} from"),
    };
    Some(item(
        format!(
            "{} {found} {} for replication from {}; it must ask for a password, by SCRAM",
            state.hba_file, wanted.role, first.address
        ),
        Fix::HbaLines(
            lacking
                .iter()
                .map(|access| password_rule(&wanted.role, &access.address, access.tls_only))
                .collect(),
        ),
    ))
}

/// Replicas elsewhere must be able to connect.
fn listening(state: &ServerState) -> Option<Item> {
    let listens = state.value("listen_addresses");
    let local_only = listens
        .split(',')
        .all(|address| matches!(address.trim(), "" | "localhost" | "127.0.0.1" | "::1"));
    let elsewhere = state.access.iter().find(|access| !is_loopback(&access.address))?;
    local_only.then(|| Item {
        name: "listen_addresses".to_owned(),
        why: format!(
            "listen_addresses is '{listens}': replicas at {} cannot connect",
            elsewhere.address
        ),
        fix: Fix::ByHand(
            "add the address at which they reach this server, for example: ALTER SYSTEM SET listen_addresses = \
             'localhost, 10.0.0.1'"
                .to_owned(),
        ),
        needs_restart: true,
    })
}

fn is_loopback(address: &str) -> bool {
    let host = address.split('/').next().unwrap_or_default();
    host.parse::<std::net::IpAddr>()
        .is_ok_and(|address| address.is_loopback())
}

fn is_off(value: &str) -> bool {
    matches!(
        value.to_ascii_lowercase().as_str(),
        "off" | "false" | "no" | "0" | ""
    )
}

/// `0`, `0s`, `0min`.
fn is_zero(value: &str) -> bool {
    let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
    digits.parse::<u64>().is_ok_and(|number| number == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(changes: &[(&str, &str)]) -> ServerState {
        let ready = [
            ("archive_command", "/usr/bin/walship push %p"),
            ("archive_library", ""),
            ("archive_mode", "on"),
            ("archive_timeout", "60"),
            ("listen_addresses", "localhost"),
            ("max_replication_slots", "10"),
            ("max_slot_wal_keep_size", "4096"),
            ("max_wal_senders", "10"),
            ("max_wal_size", "1024"),
            ("password_encryption", "scram-sha-256"),
            ("summarize_wal", "on"),
            ("wal_keep_size", "0"),
            ("wal_level", "replica"),
        ];
        let setting = |(name, value): &(&str, &str)| {
            let setting = Setting {
                value: (*value).to_owned(),
                on_command_line: false,
            };
            ((*name).to_owned(), setting)
        };
        ServerState {
            major: Major::V18,
            settings: ready.iter().chain(changes).map(setting).collect(),
            role: Role::Present {
                replicates: true,
                password: StoredPassword::Scram,
            },
            access: vec![access("127.0.0.1/32", Some("scram-sha-256"))],
            hba_file: "/pg_hba.conf".to_owned(),
            hba_error: None,
        }
    }

    fn rule(kind: &str, method: &str) -> Rule {
        Rule {
            kind: kind.to_owned(),
            method: method.to_owned(),
            names_role: false,
        }
    }

    fn access(address: &str, method: Option<&str>) -> Access {
        let line = method.map(|method| rule("host", method));
        Access::of(address, line.clone(), line)
    }

    fn wanted() -> Wanted {
        Wanted {
            role: "replicator".to_owned(),
            password_given: false,
            archive_command: "/opt/walship push %p".to_owned(),
        }
    }

    fn fixes(state: &ServerState) -> Vec<(String, Fix)> {
        let items = plan(state, &wanted());
        items.into_iter().map(|item| (item.name, item.fix)).collect()
    }

    #[track_caller]
    fn fixed_by(changes: &[(&str, &str)], sql: &[&str]) {
        let expected: Vec<_> = sql.iter().map(|sql| Fix::Sql((*sql).to_owned())).collect();
        let found: Vec<_> = fixes(&state(changes)).into_iter().map(|(_, fix)| fix).collect();
        assert_eq!(found, expected, "{changes:?}");
    }

    // Seen to fail: `setup/plan.rs`: every limit but its own is set; every level but `replica` is set
    #[test]
    fn a_server_that_has_everything_lacks_nothing() {
        fixed_by(&[], &[]);
        fixed_by(&[("wal_level", "logical"), ("archive_mode", "always")], &[]);
        fixed_by(
            &[("archive_command", "env A=b '/x y/walship' --config /c push %p")],
            &[],
        );
        fixed_by(&[("max_wal_senders", "100"), ("archive_timeout", "5min")], &[]);
    }

    // Seen to fail: `setup/plan.rs`: `password_encryption = md5` is accepted
    #[test]
    fn a_value_that_is_too_low_is_raised_and_a_higher_one_stays() {
        fixed_by(
            &[("wal_level", "minimal"), ("max_wal_senders", "0")],
            &[
                "ALTER SYSTEM SET wal_level = 'replica'",
                "ALTER SYSTEM SET max_wal_senders = '10'",
            ],
        );
        fixed_by(
            &[("max_slot_wal_keep_size", "-1"), ("max_wal_size", "2048")],
            &["ALTER SYSTEM SET max_slot_wal_keep_size = '8192MB'"],
        );
        fixed_by(
            &[("archive_timeout", "0"), ("summarize_wal", "off")],
            &[
                "ALTER SYSTEM SET archive_timeout = '60s'",
                "ALTER SYSTEM SET summarize_wal = 'on'",
            ],
        );
        fixed_by(
            &[("password_encryption", "md5"), ("max_replication_slots", "2")],
            &[
                "ALTER SYSTEM SET max_replication_slots = '10'",
                "ALTER SYSTEM SET password_encryption = 'scram-sha-256'",
            ],
        );
    }

    #[test]
    fn commands_that_throw_wal_away_are_replaced_and_other_tools_are_not() {
        for command in ["", "(disabled)", "/bin/true", " : "] {
            fixed_by(
                &[("archive_command", command)],
                &["ALTER SYSTEM SET archive_command = '/opt/walship push %p'"],
            );
        }
        for changes in [
            [("archive_command", "pgbackrest archive-push %p")],
            [("archive_command", "cp %p /walship/push")],
            [("archive_library", "basic_archive")],
        ] {
            let found = fixes(&state(&changes));
            let [(_, Fix::Conflict(how))] = found.as_slice() else {
                panic!("{changes:?}: {found:?}");
            };
            assert!(how.contains("'/opt/walship push %p'"), "{how}");
        }
    }

    // Seen to fail: `setup/plan.rs`: any command that runs walship is accepted
    #[test]
    fn a_walship_command_that_could_lose_wal_is_a_conflict() {
        for command in [
            "walship push %p || true",
            "walship push %p; true",
            "walship push %p | logger",
            "walship push",
            "walship push %f",
        ] {
            let found = fixes(&state(&[("archive_command", command)]));
            assert!(
                matches!(found.as_slice(), [(name, Fix::Conflict(how))]
                    if name == "archive_command" && how.contains("'/opt/walship push %p'")),
                "{command}: {found:?}"
            );
        }
        fixed_by(&[("archive_command", "walship push %p && other %p")], &[]);
        fixed_by(&[("archive_command", "walship push %p >> /tmp/log 2>&1")], &[]);
    }

    // Seen to fail: `setup/plan.rs`: the command line is not looked at
    #[test]
    fn a_setting_of_the_command_line_is_left_to_a_person() {
        let mut state = state(&[("archive_mode", "off")]);
        state.settings.get_mut("archive_mode").unwrap().on_command_line = true;
        let found = fixes(&state);
        assert!(
            matches!(found.as_slice(), [(name, Fix::ByHand(_))] if name == "archive_mode"),
            "{found:?}"
        );
    }

    // Seen to fail: `setup/plan.rs`: the role's password is always set
    #[test]
    fn a_role_is_created_or_corrected_and_its_password_changed_only_if_one_was_given() {
        let with = |role| {
            let state = ServerState { role, ..state(&[]) };
            (fixes(&state), needs_password(&state, &wanted()))
        };
        let present = |replicates, password| Role::Present { replicates, password };
        let (found, password) = with(Role::Missing);
        assert_eq!(
            found[0].1,
            Fix::Sql("CREATE ROLE \"replicator\" LOGIN REPLICATION".to_owned())
        );
        assert!(password);
        let (found, password) = with(present(false, StoredPassword::Scram));
        assert!(matches!(&found[0].1, Fix::Sql(sql) if sql.starts_with("ALTER ROLE")) && !password);
        let (found, password) = with(present(true, StoredPassword::Weak));
        assert!(matches!(&found[0].1, Fix::ByHand(_)) && !password, "{found:?}");
        assert!(with(present(true, StoredPassword::None)).1);
    }

    // Seen to fail: `setup/plan.rs`: a line with md5 is accepted
    #[test]
    fn only_replicas_that_are_not_asked_for_a_password_get_a_line() {
        let mut state = state(&[("listen_addresses", "*")]);
        state.access = vec![
            access("127.0.0.1/32", Some("trust")),
            access("10.0.0.0/24", None),
            access("10.1.0.1/32", Some("cert")),
            access("10.2.0.1/32", Some("md5")),
        ];
        let found = fixes(&state);
        let [(_, Fix::HbaLines(lines))] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(
            lines,
            &[
                "host replication replicator 127.0.0.1/32 scram-sha-256",
                "host replication replicator 10.0.0.0/24 scram-sha-256",
                "host replication replicator 10.2.0.1/32 scram-sha-256",
            ]
        );
        state.access[1].rule = Some(Rule {
            names_role: true,
            ..rule("host", "reject")
        });
        assert!(matches!(fixes(&state).as_slice(), [(_, Fix::ByHand(_))]));
    }

    // Seen to fail: `setup/plan.rs`: the line for connections without TLS decides; the new line is always `host`
    #[test]
    fn a_ban_on_connections_without_tls_stays() {
        let network = "10.0.0.0/24";
        let (tls, plain) = (
            format!("hostssl replication replicator {network} scram-sha-256"),
            format!("host replication replicator {network} scram-sha-256"),
        );
        let some = |kind, method| Some(rule(kind, method));
        let banned = some("hostnossl", "reject");
        for (with_tls, without, line) in [
            (some("hostssl", "scram-sha-256"), banned.clone(), None),
            (some("hostssl", "md5"), banned.clone(), Some(&tls)),
            (some("host", "trust"), banned.clone(), Some(&tls)),
            (None, banned, Some(&tls)),
            (some("hostssl", "cert"), None, None),
            (some("hostssl", "trust"), None, Some(&tls)),
            (None, None, Some(&plain)),
            (some("host", "reject"), some("host", "reject"), Some(&plain)),
            // A connection without TLS needs a password as well.
            (
                some("hostssl", "scram-sha-256"),
                some("host", "trust"),
                Some(&plain),
            ),
            (
                some("hostssl", "trust"),
                some("host", "scram-sha-256"),
                Some(&plain),
            ),
            (some("hostssl", "cert"), some("host", "scram-sha-256"), None),
        ] {
            let mut state = state(&[("listen_addresses", "*")]);
            state.access = vec![Access::of(network, with_tls, without)];
            let expected: Vec<_> = line
                .map(|line| Fix::HbaLines(vec![line.clone()]))
                .into_iter()
                .collect();
            let found: Vec<_> = fixes(&state).into_iter().map(|(_, fix)| fix).collect();
            assert_eq!(found, expected, "{:?}", state.access);
        }
    }

    #[test]
    fn replicas_elsewhere_need_a_server_that_listens_there() {
        let mut state = state(&[]);
        state.access = vec![access("10.0.0.0/24", Some("scram-sha-256"))];
        assert!(matches!(fixes(&state).as_slice(), [(name, _)] if name == "listen_addresses"));
    }
}
