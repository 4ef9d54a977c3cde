//! An archive's URL: `s3://bucket/prefix` or `file:///path`.

/// Where an archive lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A bucket and a prefix without slashes at its ends; the prefix may be empty.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// The prefix.
        prefix: String,
    },
    /// An absolute directory.
    Directory(std::path::PathBuf),
}
