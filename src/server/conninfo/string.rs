//! Connection strings: `keyword = value` pairs as libpq's `conninfo_parse` reads them
//! (`fe-connect.c`, PostgreSQL 14 to 18), or a URI.
//!
//! No message repeats a word of the string: if a quote was forgotten, it may be part of a password.

use super::settings::{Origin, Settings};
use super::uri;
use crate::error::{Error, Result};

/// Reads a connection string, a URI, or a bare database name into the settings.
pub(super) fn parse(text: &str, settings: &mut Settings) -> Result<()> {
    let uri = text
        .strip_prefix("postgresql://")
        .or_else(|| text.strip_prefix("postgres://"));
    if let Some(rest) = uri {
        return uri::parse(rest, settings);
    }
    if !text.contains('=') {
        return settings.set("dbname", text.trim().to_owned(), Origin::Given);
    }
    let mut rest = skip_blanks(text);
    while !rest.is_empty() {
        rest = skip_blanks(parse_pair(rest, settings)?);
    }
    Ok(())
}

/// Reads one `keyword = value` and returns what follows it.
fn parse_pair<'a>(text: &'a str, settings: &mut Settings) -> Result<&'a str> {
    let name_end = text.find(|c| c == '=' || is_blank(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(name_end);
    let value = skip_blanks(rest).strip_prefix('=').ok_or_else(|| {
        Error::invalid(
            "a word in the connection string has no \"=\" after it; put values with spaces in single quotes",
        )
    })?;
    let value = skip_blanks(value);
    let (value, rest) = match value.strip_prefix('\'') {
        Some(quoted) => unescape(quoted, |c| c == '\'').and_then(|(value, rest)| {
            let rest = rest.strip_prefix('\'').ok_or_else(|| {
                Error::invalid(
                    "a quoted value in the connection string does not end; close it with a single quote",
                )
            })?;
            Ok((value, rest))
        })?,
        None => unescape(value, is_blank)?,
    };
    settings.set(name, value, Origin::Given)?;
    Ok(rest)
}

/// Reads up to a terminator that no backslash precedes; a backslash at the very end is dropped.
fn unescape(text: &str, is_end: impl Fn(char) -> bool) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\0' => return Err(null_byte()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            end if is_end(end) => return Ok((value, text.get(at..).unwrap_or_default())),
            plain => value.push(plain),
        }
    }
    Ok((value, ""))
}

fn skip_blanks(text: &str) -> &str {
    text.trim_start_matches(is_blank)
}

/// C's `isspace` in the "C" locale.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

pub(super) fn null_byte() -> Error {
    Error::invalid("the connection string contains a zero byte; remove it")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Settings> {
        let mut settings = Settings::default();
        parse(text, &mut settings)?;
        Ok(settings)
    }

    #[track_caller]
    fn check(text: &str, expected: &[(&str, &str)]) {
        let settings = read(text).unwrap();
        for name in [
            "host",
            "port",
            "user",
            "password",
            "dbname",
            "sslmode",
            "connect_timeout",
        ] {
            let wanted = expected.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
            assert_eq!(settings.get_even_empty(name), wanted, "{name} of {text}");
        }
    }

    #[test]
    fn the_examples_of_postgresqls_manual_mean_what_it_says() {
        check(
            "host=localhost port=5432 dbname=mydb connect_timeout=10",
            &[
                ("host", "localhost"),
                ("port", "5432"),
                ("dbname", "mydb"),
                ("connect_timeout", "10"),
            ],
        );
        check("postgresql://", &[]);
        check("postgresql://localhost", &[("host", "localhost")]);
        check(
            "postgresql://localhost:5433",
            &[("host", "localhost"), ("port", "5433")],
        );
        check(
            "postgresql://localhost/mydb",
            &[("host", "localhost"), ("dbname", "mydb")],
        );
        check(
            "postgresql://user@localhost",
            &[("user", "user"), ("host", "localhost")],
        );
        check(
            "postgresql://user:secret@localhost",
            &[("user", "user"), ("password", "secret"), ("host", "localhost")],
        );
        check(
            "postgresql://other@localhost/otherdb?connect_timeout=10&application_name=myapp",
            &[
                ("user", "other"),
                ("host", "localhost"),
                ("dbname", "otherdb"),
                ("connect_timeout", "10"),
            ],
        );
        check(
            "postgresql://host1:123,host2:456/somedb?target_session_attrs=any&application_name=myapp",
            &[("host", "host1,host2"), ("port", "123,456"), ("dbname", "somedb")],
        );
        check(
            "postgresql://user@localhost:5433/mydb?options=-c%20synchronous_commit%3Doff",
            &[
                ("user", "user"),
                ("host", "localhost"),
                ("port", "5433"),
                ("dbname", "mydb"),
            ],
        );
        check(
            "postgresql:///mydb?host=localhost&port=5433",
            &[("host", "localhost"), ("port", "5433"), ("dbname", "mydb")],
        );
        check(
            "postgresql://[2001:db8::1234]/database",
            &[("host", "2001:db8::1234"), ("dbname", "database")],
        );
        check(
            "postgresql:///dbname?host=/var/lib/postgresql",
            &[("host", "/var/lib/postgresql"), ("dbname", "dbname")],
        );
        check(
            "postgresql://%2Fvar%2Flib%2Fpostgresql/dbname",
            &[("host", "/var/lib/postgresql"), ("dbname", "dbname")],
        );
    }

    #[test]
    fn quotes_and_backslashes_are_read_as_libpq_reads_them() {
        check(
            r"password = 'it\'s \\ fine'port=1",
            &[("password", r"it's \ fine"), ("port", "1")],
        );
        check(r"password=a\ b user=", &[("password", "a b"), ("user", "")]);
        check("host\n=\tdb", &[("host", "db")]);
        check("user=a user=b", &[("user", "b")]);
        check("mydb", &[("dbname", "mydb")]);
        check("postgres://h?ssl=true", &[("host", "h"), ("sslmode", "require")]);
        check(
            "postgres://u:p%40ss%3Aw@h",
            &[("user", "u"), ("password", "p@ss:w"), ("host", "h")],
        );
        check(
            "postgres://a:1,b,[::1]:3",
            &[("host", "a,b,::1"), ("port", "1,,3")],
        );
    }

    #[test]
    fn what_libpq_refuses_is_refused_without_repeating_it() {
        for text in [
            "host=a S3CRET",
            "password='S3CRET",
            "password=x S3CRET=1",
            "password=my S3CRET host=h",
            "postgres://u:S3CRET%zz@h",
            "postgres://u:p@S3CRET@h",
            "postgres://u:S3CRET/x@h",
            "postgres://[::1",
            "postgres://[]",
            "postgres://[::1]x",
            "postgres://h/?S3CRET",
            "postgres://h/?user=S3CRET=1",
            "postgres://h/%00",
        ] {
            let error = read(text).err().unwrap_or_else(|| panic!("{text} was accepted"));
            assert!(!error.to_string().contains("S3CRET"), "{error}");
        }
    }

    fn quoted(value: &str) -> String {
        format!("'{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
    }

    fn encoded(value: &str) -> String {
        value
            .bytes()
            .fold(String::new(), |text, byte| format!("{text}%{byte:02x}"))
    }

    proptest! {
        #[test]
        fn every_quoted_value_reads_back(user in "[^\0]*", password in "[^\0]*") {
            let text = format!("user={} password = {}", quoted(&user), quoted(&password));
            let settings = read(&text).unwrap();
            prop_assert_eq!(settings.get_even_empty("user"), Some(user.as_str()));
            prop_assert_eq!(settings.get_even_empty("password"), Some(password.as_str()));
        }

        #[test]
        fn every_encoded_value_reads_back(user in "[^\0]+", password in "[^\0]+", host in "[^\0,]+") {
            let uri = format!("postgres://{}:{}@{}", encoded(&user), encoded(&password), encoded(&host));
            let settings = read(&uri).unwrap();
            prop_assert_eq!(settings.get_even_empty("user"), Some(user.as_str()));
            prop_assert_eq!(settings.get_even_empty("password"), Some(password.as_str()));
            prop_assert_eq!(settings.get_even_empty("host"), Some(host.as_str()));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = read(&text);
            let _ = read(&format!("postgres://{text}"));
        }

        #[test]
        fn no_near_miss_makes_the_parser_panic(text in "(host|port|password|'|\\\\|=| |@|:|/|\\?|&|%|\\[|\\]|,|é){0,20}") {
            let _ = read(&text);
            let _ = read(&format!("postgresql://{text}"));
        }
    }
}
