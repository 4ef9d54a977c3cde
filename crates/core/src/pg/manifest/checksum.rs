//! A file's checksum, computed while its bytes pass by: `pg_checksum_context`, `src/common/checksum_helper.c`.

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use super::ChecksumAlgorithm;

/// A checksum of the bytes seen so far.
#[derive(Debug, Clone)]
pub enum FileHash {
    /// CRC-32C. Only this one can be combined from the checksums of a file's pieces.
    Crc32c(u32),
    /// SHA-224.
    Sha224(Sha224),
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-384.
    Sha384(Sha384),
    /// SHA-512.
    Sha512(Sha512),
}

impl FileHash {
    /// The checksum of no bytes.
    #[must_use]
    pub fn new(algorithm: ChecksumAlgorithm) -> Self {
        match algorithm {
            ChecksumAlgorithm::Crc32c => Self::Crc32c(0),
            ChecksumAlgorithm::Sha224 => Self::Sha224(Sha224::new()),
            ChecksumAlgorithm::Sha256 => Self::Sha256(Sha256::new()),
            ChecksumAlgorithm::Sha384 => Self::Sha384(Sha384::new()),
            ChecksumAlgorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Adds these bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc32c(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
            Self::Sha224(hash) => hash.update(bytes),
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha384(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The checksum as a manifest holds it.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        match self {
            // The manifest shows the value's bytes as they lie in memory.
            Self::Crc32c(crc) => crc.to_le_bytes().to_vec(),
            Self::Sha224(hash) => hash.finalize().to_vec(),
            Self::Sha256(hash) => hash.finalize().to_vec(),
            Self::Sha384(hash) => hash.finalize().to_vec(),
            Self::Sha512(hash) => hash.finalize().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_algorithm_gives_what_its_length_says_whatever_the_pieces() {
        use ChecksumAlgorithm::{Crc32c, Sha224, Sha256, Sha384, Sha512};
        for algorithm in [Crc32c, Sha224, Sha256, Sha384, Sha512] {
            let of = |pieces: &[&[u8]]| {
                let mut hash = FileHash::new(algorithm);
                for piece in pieces {
                    hash.update(piece);
                }
                hash.finish()
            };
            let whole = of(&[b"123456789"]);
            assert_eq!(whole.len(), algorithm.length_bytes());
            assert_eq!(of(&[b"1234", b"", b"56789"]), whole);
            assert_ne!(of(&[b"123456788"]), whole);
        }
        let mut crc = FileHash::new(Crc32c);
        crc.update(b"123456789");
        assert_eq!(crc.finish(), 0xE306_9283_u32.to_le_bytes());
    }
}
