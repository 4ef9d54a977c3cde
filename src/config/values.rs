//! How values are written: durations, counts and words.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use chrono::TimeDelta;
use clap::ValueEnum;

use crate::judge::diagnosis::Check;
use crate::judge::schedule::Pattern;
use crate::store::Location;
use crate::text::{ByteSize, split_number};

/// A type whose values are always written in the same way.
pub(super) trait Value: Sized {
    /// Reads a value, or says in a sentence for the user what is wrong with it.
    fn read(text: &str) -> Result<Self, String>;
}

macro_rules! as_from_str_has_it {
    ($($Type:ty),*) => {
        $(impl Value for $Type {
            fn read(text: &str) -> Result<Self, String> {
                text.parse().map_err(|error: <$Type as std::str::FromStr>::Err| error.to_string())
            }
        })*
    };
}

as_from_str_has_it!(
    bool,
    i32,
    u32,
    usize,
    String,
    PathBuf,
    ByteSize,
    Check,
    Location,
    Pattern,
    tracing::Level
);

impl Value for Duration {
    fn read(text: &str) -> Result<Self, String> {
        parse_duration(text)
    }
}

/// Empty means none.
impl<T: Value> Value for Option<T> {
    fn read(text: &str) -> Result<Self, String> {
        (!text.is_empty()).then(|| T::read(text)).transpose()
    }
}

/// Separated by commas.
impl<T: Value> Value for Vec<T> {
    fn read(text: &str) -> Result<Self, String> {
        let values = text.split(',').map(str::trim);
        values.filter(|value| !value.is_empty()).map(T::read).collect()
    }
}

/// Format of what is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object on each line.
    Json,
}

/// How a base backup reads the server's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackupMethod {
    /// From the data directory where it is proven that this is the server's own, else over the replication protocol.
    Auto,
    /// Over the replication protocol.
    Stream,
    /// From the data directory on this machine.
    Local,
}

/// How a standby's failed restore ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StandbyFailure {
    /// Exit code 1: the standby streams, or asks again.
    Continue,
    /// Exit code 200: the standby shuts down.
    Stop,
}

/// A URL that is told to nobody: whoever knows it can write there.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl {
    is_tls: bool,
    /// Host and port, as they were written.
    authority: String,
    host: String,
    port: u16,
    /// Path and query.
    path: String,
}

impl std::fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a secret URL")
    }
}

impl Value for SecretUrl {
    fn read(text: &str) -> Result<Self, String> {
        let wrong =
            || "give a URL that begins with https:// or http://, without a user name or a blank".to_owned();
        let (is_tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(wrong()),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) || authority.contains('@') {
            return Err(wrong());
        }
        let default = if is_tls { 443 } else { 80 };
        // An address of IPv6 is in brackets.
        let after_host = authority.rfind(']').unwrap_or(0);
        let colon = authority.get(after_host..).and_then(|end| end.find(':'));
        let (host, port) = match colon.map(|colon| authority.split_at(after_host + colon)) {
            Some((host, port)) => (host, port.trim_start_matches(':').parse().map_err(|_| wrong())?),
            None => (authority, default),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(wrong());
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self {
            is_tls,
            authority: authority.to_owned(),
            host: host.to_owned(),
            port,
            path: format!("{slash}{path}"),
        })
    }
}

impl SecretUrl {
    /// Whether it is https.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Where to connect to.
    pub fn host_and_port(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// What the header Host says.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Path and query.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// With one more part of the path, and a run's id.
    #[must_use]
    pub fn with(&self, part: Option<&str>, run_id: &str) -> Self {
        let (path, query) = self.path.split_once('?').unwrap_or((&self.path, ""));
        let path = match part {
            Some(part) => format!("{}/{part}", path.trim_end_matches('/')),
            None => path.to_owned(),
        };
        let and = if query.is_empty() { "" } else { "&" };
        Self {
            path: format!("{path}?{query}{and}rid={run_id}"),
            ..self.clone()
        }
    }
}

/// By which clock a schedule goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TimeZoneChoice {
    /// The machine's zone, or that of the variable `TZ`.
    Local,
    /// UTC.
    Utc,
}

/// What an event leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnEvent {
    /// Nothing.
    None,
    /// A base backup, at once.
    Basebackup,
}

/// One of a few words.
pub(super) fn word<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let words = T::value_variants().iter().filter_map(T::to_possible_value);
        let words: Vec<_> = words.map(|word| word.get_name().to_owned()).collect();
        format!("choose {}", words.join(" or "))
    })
}

pub(super) fn zstd_level(text: &str) -> Result<i32, String> {
    let level = Value::read(text)?;
    if !(-7..=19).contains(&level) {
        return Err("zstd levels go from -7 (fastest) to 19 (smallest)".to_owned());
    }
    Ok(level)
}

pub(super) fn part_size(text: &str) -> Result<ByteSize, String> {
    let size = Value::read(text)?;
    if !(ByteSize(4 << 20)..=ByteSize(256 << 20)).contains(&size) {
        return Err("choose 4MiB to 256MiB".to_owned());
    }
    Ok(size)
}

/// At a lower rate the store's own time limits would end the reading.
pub(super) fn verify_rate(text: &str) -> Result<Option<ByteSize>, String> {
    let rate: Option<ByteSize> = Value::read(text)?;
    if rate.is_some_and(|rate| rate < ByteSize(64 << 10)) {
        return Err("choose at least 64KiB, or none".to_owned());
    }
    Ok(rate)
}

pub(super) fn absolute(text: &str) -> Result<Option<PathBuf>, String> {
    let path: Option<PathBuf> = Value::read(text)?;
    if path.as_ref().is_some_and(|path| !path.is_absolute()) {
        return Err("give an absolute path".to_owned());
    }
    Ok(path)
}

/// Where to listen.
pub(super) fn listen_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|_| "give an address and a port, such as 127.0.0.1:9987 or [::1]:9987".to_owned())
}

/// The window of retention.
pub(super) fn window(text: &str) -> Result<Option<TimeDelta>, String> {
    let Some(window) = Option::<Duration>::read(text)? else {
        return Ok(None);
    };
    let window = TimeDelta::from_std(window).map_err(|error| error.to_string())?;
    if window < TimeDelta::hours(1) {
        return Err("a window shorter than an hour would keep next to nothing; write 14d".to_owned());
    }
    Ok(Some(window))
}

/// How many of something to keep.
pub(super) fn count(text: &str) -> Result<Option<u32>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let count = text.parse().ok().filter(|count| *count <= 10_000);
    count
        .map(Some)
        .ok_or_else(|| format!("\"{text}\" is not a number to keep; write a whole number from 0 to 10000"))
}

/// `auto` leaves it to the store.
pub(super) fn path_style(text: &str) -> Result<Option<bool>, String> {
    match text {
        "auto" => Ok(None),
        text => bool::read(text).map(Some),
    }
}

pub(super) fn one_for_each_core(text: &str) -> Result<usize, String> {
    workers(1, text)
}

/// Two for each core: while one waits, the other works.
pub(super) fn two_for_each_core(text: &str) -> Result<usize, String> {
    workers(2, text)
}

/// Cores that this process may use, by its affinity and its cgroup. Looked up once: it takes a dozen system calls.
pub fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// At least one; 0 means `for_each_core` for each core.
fn workers(for_each_core: usize, text: &str) -> Result<usize, String> {
    Ok(match usize::read(text)? {
        0 => automatic_workers(for_each_core * cores()),
        number => number,
    })
}

/// Each takes memory, and walship takes at most 192 MiB on any number of cores.
const AUTOMATIC_WORKERS: usize = 8;

pub(super) fn automatic_workers(cores: usize) -> usize {
    cores.min(AUTOMATIC_WORKERS)
}

/// Reads a duration: a whole number and a unit, `ms`, `s`, `m`, `h` or `d`, such as `30s`. At most
/// 3650 days; zero is refused, because no wait here may be empty or endless.
///
/// # Errors
/// A sentence for the user.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_number(text);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    let milliseconds = number.and_then(|number| number.checked_mul(unit_ms)).unwrap_or(0);
    if milliseconds == 0 || milliseconds > 3650 * 86_400_000 {
        return Err(format!(
            "\"{text}\" is not a duration that walship can use; write 500ms, 30s, 5m, 2h or 14d"
        ));
    }
    Ok(Duration::from_millis(milliseconds))
}

/// A time span for people: `840 ms`, `12.3 s`, `4 min 5 s`, `3 h 20 min`, `12 d 4 h`.
#[must_use]
pub fn duration_text(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0 => format!("{milliseconds} ms"),
        1..60 => format!("{seconds}.{} s", milliseconds % 1000 / 100),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Seen to fail: `config/values.rs`: a part comes after the query
    #[test]
    fn a_ping_url_gets_its_part_before_the_query() {
        let url = |text: &str| SecretUrl::read(text).unwrap();
        for (text, part, path) in [
            ("https://hc-ping.com/uuid", None, "/uuid?rid=7"),
            ("https://hc-ping.com/uuid/", Some("start"), "/uuid/start?rid=7"),
            (
                "http://localhost:8000/a?create=1",
                Some("5"),
                "/a/5?create=1&rid=7",
            ),
            ("https://example.org", Some("fail"), "/fail?rid=7"),
        ] {
            assert_eq!(url(text).with(part, "7").path(), path);
        }
        assert_eq!(
            url("https://hc-ping.com/uuid").host_and_port(),
            ("hc-ping.com", 443)
        );
        assert_eq!(url("http://[::1]:8000/x").host_and_port(), ("::1", 8000));
        assert_eq!(url("http://[::1]").host_and_port(), ("::1", 80));
        assert!(
            url("https://example.org/key").is_tls() && !format!("{:?}", url("https://h/key")).contains("key")
        );
    }

    // Seen to fail: `config/values.rs`: a user is accepted
    #[test]
    fn what_is_no_url_is_refused_without_repeating_it() {
        for text in [
            "hc-ping.com/key",
            "ftp://h/key",
            "https:///key",
            "https://u:key@h/",
            "https://key@h/",
            "https://h:port/key",
            "https://h/a key",
        ] {
            let error = SecretUrl::read(text).unwrap_err();
            assert!(!error.contains("key"), "{error}");
        }
    }
}
