//! Connection URIs, as libpq's `conninfo_uri_parse` reads them (`fe-connect.c`, PostgreSQL 14 to 18).
//!
//! No message repeats a part of the URI, for the same reason as in `string`.

use super::settings::{Origin, Settings};
use super::string::null_byte;
use crate::error::{Error, Result};

/// Reads a URI after its scheme: `[user[:password]@][host[:port],…][/dbname][?name=value&…]`.
pub(super) fn parse(text: &str, settings: &mut Settings) -> Result<()> {
    let authority = text.split('/').next().unwrap_or_default();
    let hosts_and_rest = match authority.split_once('@') {
        Some((login, hosts)) => {
            if hosts.split('?').next().unwrap_or_default().contains('@') {
                return Err(Error::invalid(
                    "the connection URI has more than one \"@\" before the host; write %40 for one in a user or password",
                ));
            }
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            set_decoded(settings, "user", user)?;
            set_decoded(settings, "password", password)?;
            text.get(login.len() + 1..).unwrap_or_default()
        }
        None => text,
    };
    let rest = parse_hosts(hosts_and_rest, settings)?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    set_decoded(settings, "dbname", path.strip_prefix('/').unwrap_or(path))?;
    parse_query(query, settings)
}

/// Reads `host[:port],…` and returns what follows.
fn parse_hosts<'a>(text: &'a str, settings: &mut Settings) -> Result<&'a str> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    let mut rest = text;
    loop {
        let (host, after) = parse_host(rest)?;
        let (port, after) = match after.strip_prefix(':') {
            Some(port) => split_at_any(port, &['/', '?', ',']),
            None => ("", after),
        };
        if !port.bytes().all(|b| b.is_ascii_digit()) && !port.contains('%') {
            return Err(Error::invalid(
                "a port in the connection URI is not a number; percent-encode \":\", \"/\" and \"@\" in a user or password",
            ));
        }
        hosts.push(host);
        ports.push(port);
        rest = after;
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => break,
        }
    }
    set_decoded(settings, "host", &hosts.join(","))?;
    set_decoded(settings, "port", &ports.join(","))?;
    Ok(rest)
}

/// Reads one host, an IPv6 address in brackets among them.
fn parse_host(text: &str) -> Result<(&str, &str)> {
    let Some(bracketed) = text.strip_prefix('[') else {
        return Ok(split_at_any(text, &[':', '/', '?', ',']));
    };
    let (host, rest) = bracketed
        .split_once(']')
        .filter(|(host, _)| !host.is_empty())
        .ok_or_else(|| {
            Error::invalid("an IPv6 address in the connection URI is not complete; write it as [::1]")
        })?;
    if !rest.is_empty() && !rest.starts_with([':', '/', '?', ',']) {
        return Err(Error::invalid(
            "the IPv6 address in the connection URI is followed by something else than \":\", \"/\", \"?\" or \",\"",
        ));
    }
    Ok((host, rest))
}

fn split_at_any<'a>(text: &'a str, ends: &[char]) -> (&'a str, &'a str) {
    text.split_at(text.find(ends).unwrap_or(text.len()))
}

fn parse_query(query: &str, settings: &mut Settings) -> Result<()> {
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair
            .split_once('=')
            .filter(|(_, value)| !value.contains('='))
            .ok_or_else(|| {
                Error::invalid("a parameter of the connection URI is not written name=value; write %3D for \"=\" in a value")
            })?;
        // JDBC's spelling, which libpq takes too.
        if (name, value) == ("ssl", "true") {
            settings.set("sslmode", "require".to_owned(), Origin::Given)?;
        } else {
            settings.set(&decode(name)?, decode(value)?, Origin::Given)?;
        }
    }
    Ok(())
}

/// Sets a part of a URI if it is there; an absent one leaves the default.
fn set_decoded(settings: &mut Settings, name: &str, encoded: &str) -> Result<()> {
    if encoded.is_empty() {
        return Ok(());
    }
    settings.set(name, decode(encoded)?, Origin::Given)
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<String> {
    let wrong = || {
        Error::invalid(
            "the connection URI has a \"%\" that is not followed by two hexadecimal digits; write %25 for the character itself",
        )
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = if byte == b'%' {
            let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
            let (high, low) = digit(rest.next()).zip(digit(rest.next())).ok_or_else(wrong)?;
            // Two hexadecimal digits: at most 255.
            (high * 16 + low) as u8
        } else {
            byte
        };
        bytes.push(byte);
    }
    if bytes.contains(&0) {
        return Err(null_byte());
    }
    String::from_utf8(bytes)
        .map_err(|_| Error::invalid("the connection URI is not UTF-8 once its percent-encoding is undone"))
}
