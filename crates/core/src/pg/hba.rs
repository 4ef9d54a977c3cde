//! Lines of `pg_hba.conf` (`src/backend/libpq/hba.c`, PostgreSQL 14 to 18).

use std::net::IpAddr;

/// Words that are key words unless they are in quotes.
const KEY_WORDS: [&str; 5] = ["all", "replication", "sameuser", "samerole", "samegroup"];

/// A database or role as it stands in the file.
fn quote_name(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain && !KEY_WORDS.contains(&name) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// The line that lets a role log in with a password: to a database (`None`: for replication), from one address (`None`:
/// by the Unix socket).
#[must_use]
pub fn password_line(database: Option<&str>, user: &str, address: Option<IpAddr>) -> String {
    let database = database.map_or_else(|| "replication".to_owned(), quote_name);
    let user = quote_name(user);
    match address {
        None => format!("local {database} {user} scram-sha-256"),
        Some(address) => {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            format!("host {database} {user} {address}/{bits} scram-sha-256")
        }
    }
}

/// The line that lets a role log in for replication from a network, with a password, and only with TLS if `tls_only`.
#[must_use]
pub fn password_rule(user: &str, network: &str, tls_only: bool) -> String {
    let kind = if tls_only { "hostssl" } else { "host" };
    format!("{kind} replication {} {network} scram-sha-256", quote_name(user))
}

/// The file with lines put before its own rules and after the comments at its top: the first line that matches a
/// connection counts.
#[must_use]
pub fn with_lines_first(file: &str, lines: &[String]) -> String {
    let is_rule = |line: &str| !line.trim_start().is_empty() && !line.trim_start().starts_with('#');
    let top: usize = file
        .split_inclusive('\n')
        .take_while(|line| !is_rule(line))
        .map(str::len)
        .sum();
    let (before, after) = file.split_at(top);
    let mut text = before.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    text + after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_a_key_word_or_not_plain_is_quoted() {
        for (name, quoted) in [
            ("ship_2", "ship_2"),
            ("Ship", "\"Ship\""),
            ("all", "\"all\""),
            ("replication", "\"replication\""),
            ("a\"b", "\"a\"\"b\""),
            ("", "\"\""),
        ] {
            assert_eq!(quote_name(name), quoted);
        }
    }

    #[test]
    fn a_line_names_the_database_or_replication_and_one_address() {
        let address = Some("10.1.2.3".parse().unwrap());
        let line = password_line(None, "s", address);
        assert_eq!(line, "host replication s 10.1.2.3/32 scram-sha-256");
        let line = password_line(Some("replication"), "s", Some("::1".parse().unwrap()));
        assert_eq!(line, "host \"replication\" s ::1/128 scram-sha-256");
        assert_eq!(password_line(Some("db"), "s", None), "local db s scram-sha-256");
    }

    #[test]
    fn new_lines_come_before_every_rule() {
        let lines = ["host replication r ::1/128 scram-sha-256".to_owned()];
        for (file, expected) in [
            ("", "NEW\n"),
            (
                "# top\n\nlocal all all trust\n# end\n",
                "# top\n\nNEW\nlocal all all trust\n# end\n",
            ),
            ("local all all trust", "NEW\nlocal all all trust"),
            ("# no end", "# no end\nNEW\n"),
            (" \tinclude other", "NEW\n \tinclude other"),
        ] {
            let expected = expected.replace("NEW", &lines[0]);
            assert_eq!(with_lines_first(file, &lines), expected, "{file}");
        }
    }
}
