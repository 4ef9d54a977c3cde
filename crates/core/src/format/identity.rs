//! `walship.json`: whose archive this is. Written once, checked on every push and restore.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::keys::Key;
use super::{FORMAT_VERSION, Stored, record};
use crate::error::{Error, ErrorKind, Result};
use crate::pg::{ClusterIdentity, Major, SegmentSize};

/// The content of `walship.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub(crate) format_version: u32,
    /// The cluster's system identifier, in decimal: a string, for JSON readers that round numbers.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// PostgreSQL's major version.
    pub postgres_major: Major,
    /// The cluster's WAL segment size in bytes.
    pub segment_bytes: SegmentSize,
    /// Whether the store honoured a conditional PUT when the archive was created. Where it did not,
    /// every push looks before it writes, and two racing writers are not kept apart.
    pub conditional_writes: bool,
    /// When the archive was created, by the creator's clock.
    pub created_at: DateTime<Utc>,
    /// The walship version that created it.
    pub(crate) created_by: String,
}

impl Identity {
    /// The identity of a new archive for this cluster.
    #[must_use]
    pub fn new(cluster: ClusterIdentity, conditional_writes: bool, now: DateTime<Utc>) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            system_identifier: cluster.system_identifier,
            postgres_major: cluster.postgres_major,
            segment_bytes: cluster.segment_size,
            conditional_writes,
            created_at: now,
            created_by: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// The cluster this archive belongs to.
    #[must_use]
    pub fn cluster(&self) -> ClusterIdentity {
        ClusterIdentity {
            system_identifier: self.system_identifier,
            postgres_major: self.postgres_major,
            segment_size: self.segment_bytes,
        }
    }

    /// Whether `cluster` is the one this archive belongs to; `url` names the archive in messages.
    ///
    /// # Errors
    /// `Invalid`, with what to do, where it is not.
    pub fn check(&self, cluster: ClusterIdentity, url: &str) -> Result<()> {
        self.check_system_identifier(cluster.system_identifier, url)?;
        if self.postgres_major != cluster.postgres_major {
            return Err(Error::invalid(format!(
                "archive {url} belongs to PostgreSQL {}, this cluster runs {}; \
                 use a new archive URL for it",
                self.postgres_major, cluster.postgres_major
            )));
        }
        if self.segment_bytes != cluster.segment_size {
            return Err(Error::invalid(format!(
                "archive {url} holds WAL segments of {} MiB, this cluster writes {} MiB; \
                 use a new archive URL after changing the segment size",
                self.segment_bytes.bytes() >> 20,
                cluster.segment_size.bytes() >> 20
            )));
        }
        Ok(())
    }

    /// The part of [`Identity::check`] that a WAL segment alone can answer.
    ///
    /// # Errors
    /// `Invalid`, with what to do, where it is another cluster's.
    pub fn check_system_identifier(&self, system_identifier: u64, url: &str) -> Result<()> {
        if self.system_identifier == system_identifier {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "archive {url} belongs to the cluster with system identifier {}, this one has {system_identifier}; \
             check the archive's URL. After pg_upgrade or initdb the identifier is new: \
             give that cluster a new archive URL and take a base backup, the old archive stays as it is",
            self.system_identifier
        )))
    }
}

impl Stored for Identity {
    type Of = ();
    const LIMIT_BYTES: u64 = 64 << 10;

    fn key((): &()) -> Key {
        Key::Identity
    }

    fn parse(bytes: &[u8], url: &str, (): &()) -> Result<Self> {
        record::parse(bytes, url).map_err(|error| match error.kind() {
            ErrorKind::Corrupt => Error::corrupt(format!(
                "{error}; restore it from a copy of the archive, do not let it be created anew"
            )),
            _ => error,
        })
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        record::to_bytes(self)
    }
}

/// A `u64` as a decimal string.
pub(crate) mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
    pub(crate) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterIdentity {
        ClusterIdentity {
            system_identifier: 7_642_135_790_246_813_579,
            postgres_major: Major::V17,
            segment_size: SegmentSize::DEFAULT,
        }
    }

    #[test]
    fn an_identity_reads_back_as_it_was_written() {
        let identity = Identity::new(cluster(), true, DateTime::UNIX_EPOCH);
        let bytes = identity.to_bytes().unwrap();
        assert_eq!(Identity::parse(&bytes, "u", &()).unwrap(), identity);
        assert!((bytes.len() as u64) < Identity::LIMIT_BYTES);
        assert!(
            String::from_utf8(bytes)
                .unwrap()
                .contains("\"7642135790246813579\"")
        );
    }

    #[test]
    fn a_newer_format_is_refused_even_if_the_rest_is_unknown() {
        let newer = serde_json::json!({"format_version": 2, "whatever": []});
        let newer = record::to_bytes(&newer).unwrap();
        let error = Identity::parse(&newer, "s3://b/p/walship.json", &()).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Invalid);
        assert!(error.to_string().contains("format version 2"), "{error}");
    }

    #[test]
    fn damage_is_never_taken_for_another_cluster() {
        for bytes in [&b""[..], b"{", b"[]", b"{\"format_version\":1}", b"\0\0"] {
            assert_eq!(
                Identity::parse(bytes, "u", &()).unwrap_err().kind(),
                crate::ErrorKind::Corrupt
            );
        }
    }

    #[test]
    fn each_field_that_tells_clusters_apart_is_checked() {
        let identity = Identity::new(cluster(), true, DateTime::UNIX_EPOCH);
        assert!(identity.check(cluster(), "u").is_ok());
        for other in [
            ClusterIdentity {
                system_identifier: 1,
                ..cluster()
            },
            ClusterIdentity {
                postgres_major: Major::V16,
                ..cluster()
            },
            ClusterIdentity {
                segment_size: SegmentSize::new(1 << 20).unwrap(),
                ..cluster()
            },
        ] {
            assert!(identity.check(other, "u").is_err());
        }
    }
}
