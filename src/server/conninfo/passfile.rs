//! libpq's password file, `~/.pgpass` (`passwordFromFile` in `fe-connect.c`, PostgreSQL 14 to 18).

use super::Password;

/// The login that a line of the file is matched with.
pub(super) struct Login<'a> {
    /// Host name, address or socket directory; `localhost` for the default socket directory.
    pub(super) host: &'a str,
    pub(super) port: u16,
    /// Database; `replication` for physical replication.
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// The password of the first line that matches.
pub(super) fn find(text: &str, login: &Login<'_>) -> Option<Password> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| password_in(line.trim_end_matches('\r'), login))
}

/// The password in a line `host:port:database:user:password`, if the line matches.
fn password_in(line: &str, login: &Login<'_>) -> Option<Password> {
    let port = login.port.to_string();
    let mut rest = line;
    for wanted in [login.host, &port, login.database, login.user] {
        let field;
        (field, rest) = split_field(rest)?;
        if field != "*" && unescape(field) != wanted {
            return None;
        }
    }
    let password = split_field(rest).map_or(rest, |(field, _)| field);
    (!password.is_empty()).then(|| Password::new(unescape(password)))
}

/// A field as a line of the file has it.
pub fn escape(field: &str) -> String {
    field.replace('\\', "\\\\").replace(':', "\\:")
}

/// Splits at the first colon that no backslash precedes.
fn split_field(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            ':' if !escaped => return Some((text.get(..at)?, text.get(at + 1..)?)),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

fn unescape(field: &str) -> String {
    let mut value = String::with_capacity(field.len());
    let mut characters = field.chars();
    while let Some(c) = characters.next() {
        if c == '\\' {
            value.extend(characters.next());
        } else {
            value.push(c);
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn password(text: &str) -> Option<String> {
        let login = Login {
            host: "db:1",
            port: 5432,
            database: "replication",
            user: "ship",
        };
        find(text, &login).map(|password| password.expose().to_owned())
    }

    #[test]
    fn the_first_line_that_matches_counts() {
        let text = "# db\\:1:5432:replication:ship:comment\n\
                    db:1:wrong\n\
                    db\\:1:5433:*:ship:wrong\n\
                    db\\:1:5432:postgres:ship:wrong\n\
                    db\\:1:5432:replication:ship:right\\:\\\\one\r\n\
                    *:*:*:*:late\n";
        assert_eq!(password(text).as_deref(), Some("right:\\one"));
    }

    #[test]
    fn wildcards_match_everything_and_no_line_means_no_password() {
        assert_eq!(password("*:*:*:*:p").as_deref(), Some("p"));
        for text in ["", "*", "*:*:*:*", "*:*:*:*:", "*:*:*:other:p"] {
            assert_eq!(password(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_star_that_is_escaped_is_not_a_wildcard() {
        assert_eq!(password("\\*:*:*:*:p"), None);
    }

    proptest! {
        #[test]
        fn every_escaped_line_reads_back(host in "[^\0\r\n]+", user in "[^\0\r\n]+", secret in "[^\0\r\n]+") {
            let line = format!("{}:5432:replication:{}:{}", escape(&host), escape(&user), escape(&secret));
            prop_assume!(!line.starts_with('#'));
            let login = Login { host: &host, port: 5432, database: "replication", user: &user };
            let found = find(&line, &login).map(|password| password.expose().to_owned());
            prop_assert_eq!(found, Some(secret));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = password(&text);
        }
    }
}
