//! Where archives live: an S3 bucket and prefix, or a directory.
//!
//! One concrete [`Store`] outside, a small backend enum inside. Every backend, and the
//! fault-injecting wrapper, passes the same contract suite (`tests/store_contract.rs`).

mod body;
mod location;

pub use body::{Body, BodyContent, BodyWriter};
pub use location::Location;

use std::time::Duration;

use chrono::{DateTime, Utc};

/// How to reach a store. Every field has a working default.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Time for one call of the store with all its retries. Default 60 s.
    pub operation_timeout: Duration,
    /// Time to open a connection. Default 5 s.
    pub connect_timeout: Duration,
    /// Time for a single attempt, as long as bytes do not flow. Default 20 s.
    pub request_timeout: Duration,
    /// Settings that only S3 knows.
    pub s3: S3Options,
}

/// Settings of an S3 store beside the standard AWS environment and profiles.
#[derive(Debug, Clone, Default)]
pub struct S3Options {
    /// Base URL of an S3-compatible server. Default: `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, the
    /// profile's, else AWS itself.
    pub endpoint: Option<String>,
    /// Region. Default: the AWS environment's or profile's; `us-east-1` where an endpoint is given.
    pub region: Option<String>,
    /// Bucket in the path rather than in the host name. Default: yes where an endpoint is given.
    pub path_style: Option<bool>,
    /// Storage class of new objects, such as `STANDARD_IA`. Default: the bucket's.
    pub storage_class: Option<String>,
    /// Server-side encryption: `AES256` (SSE-S3) or `aws:kms` (SSE-KMS). Default: the bucket's.
    pub server_side_encryption: Option<String>,
    /// Key for SSE-KMS. Default: the account's.
    pub kms_key_id: Option<String>,
    /// PEM file of the certificate authorities to trust instead of the system's.
    pub ca_file: Option<std::path::PathBuf>,
}

/// What a put expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutMode {
    /// Nothing: the key is created, or the put fails with `Conflict` and changes nothing.
    Create,
    /// Anything: the object is replaced. Only for the objects `docs/format.md` names as mutable.
    Replace,
}

/// What a listing or a look at one object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The key, relative to the archive's URL.
    pub key: String,
    /// Stored size in bytes.
    pub size: u64,
    /// When the store says it was last written.
    pub modified: DateTime<Utc>,
}
