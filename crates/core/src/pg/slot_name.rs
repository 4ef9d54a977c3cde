//! Names of replication slots (`ReplicationSlotValidateName`, `slot.c`, PostgreSQL 14 to 18).

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Longest name in bytes (`NAMEDATALEN` - 1).
const LONGEST: usize = 63;

/// A slot's name: lower-case letters, digits and underscores, so that it needs no quotes anywhere.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SlotName(String);

impl SlotName {
    /// The default slot of a replica: `walship_` and the name of its machine.
    #[must_use]
    pub fn of_machine(name: &str) -> Self {
        let first = name.split('.').next().unwrap_or_default();
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '_'
            }
        };
        let name = "walship_".chars().chain(first.chars().map(plain));
        Self(name.take(LONGEST).collect())
    }
}

impl FromStr for SlotName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if text.is_empty() || text.len() > LONGEST || !text.bytes().all(plain) {
            return Err(Error::invalid(format!(
                "\"{}\" is not the name of a replication slot; PostgreSQL's have lower-case letters, digits and \
                 underscores, {LONGEST} at most",
                text.escape_debug()
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_postgresql_takes_is_a_name() {
        for name in ["a", "replica_1", &"x".repeat(63)] {
            assert_eq!(name.parse::<SlotName>().unwrap().to_string(), name);
        }
        for name in ["", "A", "a-b", "a b", "é", "a\"", &"x".repeat(64)] {
            assert!(name.parse::<SlotName>().is_err(), "{name}");
        }
    }

    #[test]
    fn every_machine_has_a_slot_name() {
        for (machine, slot) in [
            ("db2.example.com", "walship_db2"),
            ("DB-2", "walship_db_2"),
            ("", "walship_"),
            (
                &"é".repeat(100),
                "walship________________________________________________________",
            ),
        ] {
            let name = SlotName::of_machine(machine);
            assert!(name.0.starts_with(slot), "{name}");
            assert!(name.0.parse::<SlotName>().is_ok(), "{name}");
        }
    }
}
