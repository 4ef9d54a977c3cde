//! What a server says in an `ErrorResponse` or `NoticeResponse`, and what to do about it.
//!
//! Decisions depend on SQLSTATE and on the name of the server's function, which no `lc_messages` translates.
//! The codes are in `src/backend/utils/errcodes.txt`, the same in PostgreSQL 14 to 18.

use std::net::IpAddr;

use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::ErrorFields;

use crate::error::{Error, ErrorKind};
use crate::pg::hba;
use crate::pg::sql::quote_identifier;
use crate::server::conninfo::{PGBOUNCER_CONSOLE, Session};

/// The fields of an error or a notice that walship shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ServerError {
    severity: String,
    code: String,
    message: String,
    detail: String,
    hint: String,
    routine: String,
}

/// Who was logging in, and from where.
pub(super) struct Login<'a> {
    pub(super) peer: &'a str,
    pub(super) user: &'a str,
    pub(super) session: &'a Session,
    /// The address the server sees, as far as this end knows; none on a Unix socket.
    pub(super) address: Option<IpAddr>,
}

impl ServerError {
    /// Reads the fields; those that are not UTF-8 are shown as well as they can be.
    pub(super) fn read(mut fields: ErrorFields<'_>) -> Self {
        let mut error = Self::default();
        while let Ok(Some(field)) = fields.next() {
            let text = printable(field.value_bytes());
            match field.type_() {
                // Never translated; `S` is.
                b'V' => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = text,
                b'H' => error.hint = text,
                b'R' => error.routine = text,
                _ => {}
            }
        }
        error
    }

    pub(super) fn code(&self) -> &str {
        &self.code
    }

    /// Passes a notice on to the log.
    pub(super) fn log(&self, peer: &str) {
        if self.severity == "WARNING" {
            tracing::warn!(server = peer, "{}", self.text());
        } else {
            tracing::info!(server = peer, "{}", self.text());
        }
    }

    /// Whether `pg_hba.conf` refused this login. Another host, role or encryption may be let in.
    pub(super) fn is_refused_by_hba(&self) -> bool {
        self.code == "28000" && self.routine == "ClientAuthentication"
    }

    /// The error of a login that failed.
    pub(super) fn of_login(&self, login: &Login<'_>) -> Error {
        let (kind, next) = self.login_advice(login);
        let next = next.map(|next| format!("; {next}")).unwrap_or_default();
        Error::new(
            kind,
            format!(
                "{} refused the login of {}: {}{next}",
                login.peer,
                login.user,
                self.text()
            ),
        )
    }

    fn login_advice(&self, login: &Login<'_>) -> (ErrorKind, Option<String>) {
        let user = login.user;
        match self.code.as_str() {
            "28000" if self.is_refused_by_hba() => (ErrorKind::Denied, Some(self.hba_line(login))),
            // Peer authentication, where only the system's user counts; root rarely has a role.
            "28000"
                if login.address.is_none()
                    && (self.routine == "auth_failed"
                        || self.routine == "InitializeSessionUserId" && user == "root") =>
            {
                let owner = if user == "root" { "postgres" } else { user };
                let next = format!("run it as the user {owner}: sudo -u {owner} walship …");
                (ErrorKind::Denied, Some(next))
            }
            "28P01" => {
                let next = format!("check the password of {user} in PGPASSWORD or the password file");
                (ErrorKind::Denied, Some(next))
            }
            // "admin access needed", whatever the code (src/admin.c).
            _ if *login.session == Session::PgbouncerConsole => {
                let next =
                    format!("name {user} in stats_users of pgbouncer.ini, and its password in auth_file");
                (ErrorKind::Denied, Some(next))
            }
            "42501" => {
                let user = quote_identifier(user);
                let statement = match login.session {
                    Session::Replication | Session::PgbouncerConsole => {
                        format!("ALTER ROLE {user} REPLICATION")
                    }
                    Session::Database(name) => {
                        format!("GRANT CONNECT ON DATABASE {} TO {user}", quote_identifier(name))
                    }
                };
                (
                    ErrorKind::Denied,
                    Some(format!("as a superuser run: {statement}")),
                )
            }
            "3D000" | "55000" => {
                let next = "name a database that is there and takes connections, such as dbname=postgres";
                (ErrorKind::Invalid, Some(next.to_owned()))
            }
            "08P01" if matches!(login.session, Session::Database(_)) => {
                let next = "connect to PostgreSQL itself, not through a connection pooler";
                (ErrorKind::Invalid, Some(next.to_owned()))
            }
            // A walsender takes its slot in InitProcess, from a pool that only max_wal_senders bounds.
            "53300" if self.routine == "InitProcess" && *login.session == Session::Replication => {
                (ErrorKind::Unavailable, Some(walsenders()))
            }
            "53300" if self.routine == "InitializeSessionUserId" => {
                let next =
                    format!("raise the connection limit of {user}, or try again when fewer are connected");
                (ErrorKind::Unavailable, Some(next))
            }
            "53300" => {
                let next =
                    "raise max_connections on the server, or try again when fewer clients are connected";
                (ErrorKind::Unavailable, Some(next.to_owned()))
            }
            "57P03" => (ErrorKind::Unavailable, Some("try again in a moment".to_owned())),
            "42704" | "22023" => (ErrorKind::Invalid, Some("check the options setting".to_owned())),
            code => (kind_of(code), None),
        }
    }

    fn hba_line(&self, login: &Login<'_>) -> String {
        let database = match login.session {
            Session::Replication => None,
            Session::Database(name) => Some(name.as_str()),
            Session::PgbouncerConsole => Some(PGBOUNCER_CONSOLE),
        };
        let line = hba::password_line(database, login.user, self.client_address().or(login.address));
        format!(
            "add the line \"{line}\" to pg_hba.conf on the server (above any that rejects it) and run SELECT pg_reload_conf()"
        )
    }

    /// The address in the server's message, in whatever quotes its language uses.
    fn client_address(&self) -> Option<IpAddr> {
        let is_address = |c: char| c.is_ascii_hexdigit() || matches!(c, '.' | ':');
        self.message
            .split(|c| !is_address(c))
            .filter(|word| word.contains(['.', ':']))
            .find_map(|word| word.parse().ok())
    }

    /// The error of a command that failed.
    pub(super) fn of_command(&self, peer: &str, session: &Session, command: &str) -> Error {
        let next = match self.code.as_str() {
            // Only few roles may see the setting, and the server names them.
            "42501" if self.message.contains("to examine") => "",
            "42501" if matches!(session, Session::Database(_)) => "; run it as a superuser",
            "42501" if *session == Session::PgbouncerConsole => "",
            "42501" => "; the role needs REPLICATION: ALTER ROLE … REPLICATION as a superuser",
            "55000" if self.message.contains("WAL level") => {
                "; set wal_level = replica on the server and restart it"
            }
            "55000" if self.message.contains("promoted") => "; the backup cannot be used: take a new one",
            "55000" => "; correct what it says and run it again",
            "XX001" => {
                "; the cluster's files are damaged: look into the server's log for the pages, restore them from an older backup, and keep that backup"
            }
            "57P01" | "57P02" | "57P03" => "; run it again when the server is up",
            _ => "",
        };
        Error::new(
            kind_of(&self.code),
            format!("{peer} failed at {command}: {}{next}", self.text()),
        )
    }

    pub(super) fn text(&self) -> String {
        let mut text = self.message.clone();
        for more in [&self.detail, &self.hint] {
            if !more.is_empty() {
                text.push_str(if text.ends_with('.') { " " } else { ". " });
                text.push_str(more);
            }
        }
        if self.code.is_empty() || self.code == "00000" {
            return text;
        }
        format!("{} (SQLSTATE {})", text.trim_end_matches('.'), self.code)
    }
}

fn walsenders() -> String {
    "raise max_wal_senders on the server and restart it (with wal_level = minimal it is 0: set wal_level = replica too), \
     or try again when another replication connection ends"
        .to_owned()
}

fn kind_of(code: &str) -> ErrorKind {
    match code {
        "XX001" | "XX002" => ErrorKind::Corrupt,
        "58P01" => ErrorKind::NotFound,
        "57014" => ErrorKind::Unavailable,
        code => match code.get(..2) {
            Some("08" | "53" | "57") => ErrorKind::Unavailable,
            Some("28") => ErrorKind::Denied,
            Some("42") if code == "42501" => ErrorKind::Denied,
            Some("0A" | "22" | "42" | "55") => ErrorKind::Invalid,
            _ => ErrorKind::Internal,
        },
    }
}

/// Text for a terminal: what is not UTF-8 is replaced, and so are control characters.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut as _, BytesMut};
    use postgres_protocol::message::backend::Message;
    use proptest::prelude::*;

    use super::*;

    fn error(code: &str, routine: &str, message: &str) -> ServerError {
        ServerError {
            code: code.into(),
            routine: routine.into(),
            message: message.into(),
            ..ServerError::default()
        }
    }

    fn login(address: Option<&str>) -> Login<'static> {
        Login {
            peer: "db:5432",
            user: "Ship",
            session: &Session::Replication,
            address: address.map(|address| address.parse().unwrap()),
        }
    }

    #[test]
    fn a_missing_hba_line_is_spelled_out_in_any_language() {
        let said = "kein pg_hba.conf-Eintrag für Replikationsverbindung von Host »10.1.2.3«, Benutzer »Ship«";
        let refused = error("28000", "ClientAuthentication", said);
        let text = refused.of_login(&login(Some("192.168.0.9"))).to_string();
        assert!(
            text.contains("\"host replication \"Ship\" 10.1.2.3/32 scram-sha-256\""),
            "{text}"
        );
        let silent = error("28000", "ClientAuthentication", "no");
        let text = silent.of_login(&login(Some("fe80::1"))).to_string();
        assert!(text.contains("fe80::1/128"), "{text}");
        let text = silent.of_login(&login(None)).to_string();
        assert!(text.contains("local replication"), "{text}");
    }

    #[test]
    fn logins_that_fail_say_what_to_do() {
        for (code, routine, kind, wanted) in [
            ("28P01", "auth_failed", ErrorKind::Denied, "PGPASSWORD"),
            ("28000", "auth_failed", ErrorKind::Denied, "sudo -u Ship walship"),
            (
                "42501",
                "InitPostgres",
                ErrorKind::Denied,
                "ALTER ROLE \"Ship\" REPLICATION",
            ),
            ("53300", "InitProcess", ErrorKind::Unavailable, "max_wal_senders"),
            (
                "53300",
                "InitializeSessionUserId",
                ErrorKind::Unavailable,
                "connection limit of Ship",
            ),
            (
                "53300",
                "ProcessStartupPacket",
                ErrorKind::Unavailable,
                "max_connections",
            ),
            ("57P03", "ProcessStartupPacket", ErrorKind::Unavailable, "moment"),
            (
                "28000",
                "InitializeSessionUserId",
                ErrorKind::Denied,
                "refused the login of Ship",
            ),
        ] {
            let error = error(code, routine, "x").of_login(&login(None));
            assert_eq!(error.kind(), kind, "{code}");
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }

    #[test]
    fn checksum_failures_are_corruption() {
        let failed = error(
            "XX001",
            "perform_base_backup",
            "checksum verification failure during base backup",
        );
        assert_eq!(
            failed
                .of_command("db", &Session::Replication, "BASE_BACKUP")
                .kind(),
            ErrorKind::Corrupt
        );
    }

    proptest! {
        #[test]
        fn no_fields_make_the_reader_panic(fields: Vec<u8>) {
            let mut message = BytesMut::new();
            message.put_u8(b'E');
            message.put_u32(u32::try_from(fields.len()).unwrap() + 4);
            message.put_slice(&fields);
            if let Ok(Some(Message::ErrorResponse(body))) = Message::parse(&mut message) {
                let error = ServerError::read(body.fields());
                let text = error.of_login(&login(None)).to_string();
                prop_assert!(!text.contains('\x1b'));
            }
        }
    }
}
