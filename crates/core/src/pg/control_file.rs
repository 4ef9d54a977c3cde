//! `global/pg_control`: a cluster's identity, version and last checkpoint (`ControlFileData`,
//! `src/include/catalog/pg_control.h`, PostgreSQL 14 to 18). The offsets were compiled from each
//! version's header and compared with `pg_controldata`.
//!
//! PostgreSQL rewrites the file in place while it runs. A reader can see it half-written; the CRC
//! shows that, and reading again helps.

use std::fmt;

use super::fields::{u32_at, u64_at};
use super::{CheckpointCopy, Lsn, Major, SegmentSize, TimelineId};
use crate::error::{Error, Result};

/// What the cluster was doing when the file was written (`DBState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// Starting up.
    StartingUp,
    /// Shut down cleanly.
    ShutDown,
    /// A standby that was shut down cleanly.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// Replaying WAL after a crash.
    InCrashRecovery,
    /// Replaying WAL from an archive or a primary: a standby, or a restore under way.
    InArchiveRecovery,
    /// In production, or killed while it was.
    InProduction,
}

impl ClusterState {
    fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::StartingUp,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }
}

impl fmt::Display for ClusterState {
    /// As `pg_controldata` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StartingUp => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        })
    }
}

/// The part of `global/pg_control` that walship uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's system identifier, chosen by `initdb`.
    pub system_identifier: u64,
    /// PostgreSQL's major version, told by the catalogue version.
    pub major: Major,
    /// The number of its system catalogues (`CATALOG_VERSION_NO`).
    pub catalog_version: u32,
    /// What the cluster was doing.
    pub state: ClusterState,
    /// The position of the last checkpoint's record.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint starts.
    pub redo: Lsn,
    /// The timeline of that checkpoint.
    pub timeline: TimelineId,
    /// How far a standby must replay before it is consistent (`minRecoveryPoint`); 0/0 outside recovery.
    pub min_recovery_point: Lsn,
    /// The timeline of that point; `None` outside recovery.
    pub min_recovery_timeline: Option<TimelineId>,
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`: a server with fewer cannot recover the prepared ones.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
    /// The cluster's WAL segment size.
    pub segment_size: SegmentSize,
    /// The version of the data checksums (`data_checksum_version`): 0 means there are none.
    pub data_checksum_version: u32,
}

impl ControlFile {
    /// Reads the file's first 512 bytes or more: PostgreSQL keeps everything within one disk sector
    /// (`PG_CONTROL_MAX_SAFE_SIZE`); the rest is zeros.
    ///
    /// # Errors
    /// `Corrupt` where the CRC does not match or the bytes make no sense: read it again, because a running server may
    /// have been writing it. `Invalid` for a version walship does not support.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let version = u32_at(bytes, 8).ok_or_else(|| too_short(bytes))?;
        verify_crc(bytes, crc_offset(version)?)?;
        let catalog_version = u32_at(bytes, 12).ok_or_else(|| too_short(bytes))?;
        let major = Major::of_catalog_version(catalog_version).ok_or_else(|| {
            Error::invalid(format!(
                "global/pg_control has catalogue version {catalog_version}, which no release of PostgreSQL 14 to 18 \
                 has; this walship does not support beta releases and forks"
            ))
        })?;
        Self::read(bytes, major, catalog_version).ok_or_else(|| {
            Error::corrupt(
                "global/pg_control has a valid CRC but values PostgreSQL never writes; check the disk",
            )
        })
    }

    /// The directory that a tablespace has for this cluster's version: `PG_17_202406281`
    /// (`TABLESPACE_VERSION_DIRECTORY`, `src/include/common/relpath.h`).
    #[must_use]
    pub fn tablespace_directory(&self) -> String {
        format!("PG_{}_{}", self.major, self.catalog_version)
    }

    /// The content of the last checkpoint's record, which the file repeats (`checkPointCopy`).
    #[must_use]
    pub fn checkpoint_copy(bytes: &[u8]) -> Option<CheckpointCopy> {
        CheckpointCopy::new(bytes.get(40..40 + CheckpointCopy::SIZE_BYTES)?)
    }

    fn read(bytes: &[u8], major: Major, catalog_version: u32) -> Option<Self> {
        Some(Self {
            system_identifier: u64_at(bytes, 0)?,
            major,
            catalog_version,
            state: ClusterState::of(u32_at(bytes, 16)?)?,
            checkpoint: Lsn(u64_at(bytes, 32)?),
            redo: Lsn(u64_at(bytes, 40)?),
            timeline: TimelineId::new(u32_at(bytes, 48)?).ok()?,
            min_recovery_point: Lsn(u64_at(bytes, 136)?),
            min_recovery_timeline: TimelineId::new(u32_at(bytes, 144)?).ok(),
            max_connections: u32_at(bytes, 180)?,
            max_worker_processes: u32_at(bytes, 184)?,
            max_wal_senders: u32_at(bytes, 188)?,
            max_prepared_transactions: u32_at(bytes, 192)?,
            max_locks_per_transaction: u32_at(bytes, 196)?,
            segment_size: SegmentSize::new(u32_at(bytes, 228)?).ok()?,
            data_checksum_version: u32_at(bytes, 252)?,
        })
    }
}

/// The offset of the CRC, which covers everything before it. 18 put a byte in front of the nonce.
fn crc_offset(version: u32) -> Result<usize> {
    match version {
        1300 | 1700 => Ok(288),
        1800 => Ok(292),
        0 => Err(Error::corrupt(
            "global/pg_control has zeros where its version should be; it was damaged, or is not a control file",
        )),
        _ => Err(Error::invalid(format!(
            "global/pg_control has version {version}, which PostgreSQL 14 to 18 do not write; \
             this walship works with those, on little-endian machines"
        ))),
    }
}

fn verify_crc(bytes: &[u8], crc_offset: usize) -> Result<()> {
    let covered = bytes.get(..crc_offset).ok_or_else(|| too_short(bytes))?;
    let stored = u32_at(bytes, crc_offset).ok_or_else(|| too_short(bytes))?;
    if crc32c::crc32c(covered) != stored {
        return Err(Error::corrupt(
            "global/pg_control does not match its CRC; if the server was writing it, reading it again helps, \
             otherwise it was damaged",
        ));
    }
    Ok(())
}

fn too_short(bytes: &[u8]) -> Error {
    Error::corrupt(format!(
        "global/pg_control ends after {} bytes; it was cut short",
        bytes.len()
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorKind;

    /// Taken from real servers after a clean shutdown; what `pg_controldata` said of each is below.
    const FILES: [(Major, &[u8]); 5] = [
        (
            Major::V14,
            include_bytes!("../../../../tests/fixtures/pg_control/14.bin"),
        ),
        (
            Major::V15,
            include_bytes!("../../../../tests/fixtures/pg_control/15.bin"),
        ),
        (
            Major::V16,
            include_bytes!("../../../../tests/fixtures/pg_control/16.bin"),
        ),
        (
            Major::V17,
            include_bytes!("../../../../tests/fixtures/pg_control/17.bin"),
        ),
        (
            Major::V18,
            include_bytes!("../../../../tests/fixtures/pg_control/18.bin"),
        ),
    ];

    fn with_crc(mut bytes: Vec<u8>, crc_offset: usize) -> Vec<u8> {
        let crc = crc32c::crc32c(&bytes[..crc_offset]);
        bytes[crc_offset..crc_offset + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = ControlFile::parse(&bytes);
        }

        #[test]
        fn damage_is_never_taken_for_a_control_file(which in 0_usize..5, at in 0_usize..288, flip in 1_u8..) {
            let mut bytes = FILES[which].1.to_vec();
            bytes[at] ^= flip;
            prop_assert!(ControlFile::parse(&bytes).is_err());
        }

        #[test]
        fn valid_crcs_over_hostile_values_do_not_panic(noise in prop::collection::vec(any::<u8>(), 288)) {
            let mut bytes = FILES[3].1.to_vec();
            bytes[..8].copy_from_slice(&noise[..8]);
            bytes[16..288].copy_from_slice(&noise[16..]);
            let _ = ControlFile::parse(&with_crc(bytes, 288));
        }
    }

    #[test]
    fn the_file_of_each_version_reads_as_pg_controldata_prints_it() {
        let identifiers_and_checkpoints = [
            (7_711_352_547_858_837_901, 0x90_0028),
            (7_711_352_549_649_805_737, 0x70_0028),
            (7_711_352_551_095_079_353, 0x70_0028),
            (7_711_352_552_754_115_017, 0x90_0028),
            (7_711_352_554_232_050_139, 0x90_0028),
        ];
        for ((major, bytes), (system_identifier, checkpoint)) in
            FILES.into_iter().zip(identifiers_and_checkpoints)
        {
            let expected = ControlFile {
                system_identifier,
                major,
                catalog_version: u32_at(bytes, 12).unwrap(),
                state: ClusterState::ShutDown,
                checkpoint: Lsn(checkpoint),
                redo: Lsn(checkpoint),
                timeline: TimelineId::FIRST,
                min_recovery_point: Lsn(0),
                min_recovery_timeline: None,
                max_connections: 100,
                max_worker_processes: 8,
                max_wal_senders: 10,
                max_prepared_transactions: 10,
                max_locks_per_transaction: 64,
                segment_size: SegmentSize::new(1 << 20).unwrap(),
                // 17 was made with initdb -k, and 18 has checksums by default.
                data_checksum_version: u32::from(major >= Major::V17),
            };
            assert_eq!(ControlFile::parse(bytes).unwrap(), expected);
        }
    }

    #[test]
    fn each_state_reads_as_pg_controldata_prints_it() {
        let texts = [
            "starting up",
            "shut down",
            "shut down in recovery",
            "shutting down",
            "in crash recovery",
            "in archive recovery",
            "in production",
        ];
        for (number, text) in (0..).zip(texts) {
            assert_eq!(ClusterState::of(number).unwrap().to_string(), text);
        }
        assert_eq!(ClusterState::of(7), None);
    }

    #[test]
    fn a_torn_read_is_corrupt_and_another_version_is_invalid() {
        let kind = |bytes: &[u8]| ControlFile::parse(bytes).unwrap_err().kind();
        for (major, bytes) in FILES {
            let mut torn = bytes.to_vec();
            torn[32] ^= 1;
            assert_eq!(kind(&torn), ErrorKind::Corrupt, "{major}");
            assert_eq!(kind(&bytes[..200]), ErrorKind::Corrupt, "{major}");
        }
        assert_eq!(kind(&[]), ErrorKind::Corrupt);
        assert_eq!(kind(&[0; 512]), ErrorKind::Corrupt);
        let mut future = FILES[4].1.to_vec();
        future[8..12].copy_from_slice(&1900_u32.to_le_bytes());
        assert_eq!(kind(&future), ErrorKind::Invalid);
        let mut beta = FILES[4].1.to_vec();
        beta[12] += 1;
        assert_eq!(kind(&with_crc(beta, 292)), ErrorKind::Invalid);
    }
}
