//! The `BASE_BACKUP` command in both dialects (`repl_gram.y`), from checked options.

use std::time::Duration;

use super::BaseBackupOptions;
use crate::error::{Error, Result};
use crate::pg::Major;

/// The longest label (`MAXPGPATH`, `do_pg_backup_start` in `xlog.c`).
const LABEL_BYTES: usize = 1024;
/// What `MAX_RATE` accepts (`MAX_RATE_LOWER`, `MAX_RATE_UPPER` in `basebackup.c`).
const RATES_KIB: std::ops::RangeInclusive<u32> = 32..=1_048_576;

/// The command for a server of this major version.
pub(super) fn command(options: &BaseBackupOptions, server_major: Major) -> Result<String> {
    check(options)?;
    Ok(if server_major.has_new_base_backup() {
        format!("BASE_BACKUP ({})", since_15(options).join(", "))
    } else {
        format!("BASE_BACKUP {}", before_15(options).join(" "))
    })
}

/// Refuses options that PostgreSQL would refuse, and labels that would break `backup_label`.
pub(super) fn check(options: &BaseBackupOptions) -> Result<()> {
    if options.label.len() > LABEL_BYTES {
        return Err(Error::invalid(format!(
            "the backup label has {} bytes and PostgreSQL takes {LABEL_BYTES}; shorten it",
            options.label.len()
        )));
    }
    if options.label.chars().any(char::is_control) {
        return Err(Error::invalid(
            "the backup label has a line break or another control character, which would break backup_label; remove it",
        ));
    }
    match options.max_rate_kib {
        Some(rate) if !RATES_KIB.contains(&rate) => Err(Error::invalid(format!(
            "a rate of {rate} KiB/s is out of PostgreSQL's range; choose 32 KiB/s to 1 GiB/s"
        ))),
        _ => Ok(()),
    }
}

fn before_15(options: &BaseBackupOptions) -> Vec<String> {
    let mut words = vec![format!("LABEL {}", quote(&options.label)), "PROGRESS".to_owned()];
    if options.fast_checkpoint {
        words.push("FAST".to_owned());
    }
    words.push("NOWAIT".to_owned());
    if let Some(rate) = options.max_rate_kib {
        words.push(format!("MAX_RATE {rate}"));
    }
    words.push("TABLESPACE_MAP".to_owned());
    if options.manifest {
        words.push("MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'".to_owned());
    }
    words
}

fn since_15(options: &BaseBackupOptions) -> Vec<String> {
    let checkpoint = if options.fast_checkpoint { "fast" } else { "spread" };
    let mut words = vec![
        format!("LABEL {}", quote(&options.label)),
        "PROGRESS".to_owned(),
        format!("CHECKPOINT '{checkpoint}'"),
        "WAIT false".to_owned(),
        "TABLESPACE_MAP".to_owned(),
    ];
    if let Some(rate) = options.max_rate_kib {
        words.push(format!("MAX_RATE {rate}"));
    }
    if options.manifest {
        words.push("MANIFEST 'yes'".to_owned());
        words.push("MANIFEST_CHECKSUMS 'CRC32C'".to_owned());
    }
    words
}

/// A string of the replication grammar: only the quote itself is special, a backslash is not
/// (`repl_scanner.l`).
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A time setting as `SHOW` prints it: `5min`, `30s`, `1h`, `1d`.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let seconds = match unit {
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    Some(Duration::from_secs(number.checked_mul(seconds)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_is_spelled_as_its_server_reads_it() {
        let mut options = BaseBackupOptions::new("it's \\ here");
        options.fast_checkpoint = true;
        options.max_rate_kib = Some(1024);
        assert_eq!(
            command(&options, Major::V14).unwrap(),
            "BASE_BACKUP LABEL 'it''s \\ here' PROGRESS FAST NOWAIT MAX_RATE 1024 TABLESPACE_MAP \
             MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
        );
        assert_eq!(
            command(&options, Major::V15).unwrap(),
            "BASE_BACKUP (LABEL 'it''s \\ here', PROGRESS, CHECKPOINT 'fast', WAIT false, TABLESPACE_MAP, \
             MAX_RATE 1024, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')"
        );
    }

    #[test]
    fn options_that_postgresql_would_refuse_or_misread_are_refused() {
        for label in ["x".repeat(1025).as_str(), "a\nb", "a\rb", "a\0b"] {
            assert!(
                command(&BaseBackupOptions::new(label), Major::V18).is_err(),
                "{label:?}"
            );
        }
        for rate in [0, 31, 1_048_577] {
            let mut options = BaseBackupOptions::new("x");
            options.max_rate_kib = Some(rate);
            assert!(command(&options, Major::V18).is_err(), "{rate}");
        }
        assert!(command(&BaseBackupOptions::new("x".repeat(1024)), Major::V14).is_ok());
    }

    #[test]
    fn times_read_as_show_prints_them() {
        assert_eq!(parse_duration("5min"), Some(Duration::from_mins(5)));
        assert_eq!(parse_duration("30s"), Some(Duration::from_secs(30)));
        assert_eq!(parse_duration("1d"), Some(Duration::from_hours(24)));
        for text in ["", "5", "min", "5ms", "99999999999999999999d"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
