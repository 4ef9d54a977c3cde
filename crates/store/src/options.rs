//! How a store is reached: time limits, and what only S3 knows.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How to reach a store. Every field has a working default.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Time for one call of the store with all its retries. Default 60 s. A put's body adds a
    /// second for each MiB, so that a slow link is not taken for an outage. A get's body has the same limit of its own,
    /// which counts only the time spent waiting for bytes.
    pub operation_timeout: Duration,
    /// Time to open a connection. Default 5 s.
    pub connect_timeout: Duration,
    /// Time for a single attempt (a put's body adds a second for each MiB), and the longest silence
    /// in the middle of a body that is read. Default 20 s.
    pub request_timeout: Duration,
    /// Settings that only S3 knows.
    pub s3: S3Options,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            operation_timeout: Duration::from_mins(1),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(20),
            s3: S3Options::default(),
        }
    }
}

impl StoreOptions {
    /// A limit, plus the time that a body of this length needs on the slowest link that walship accepts, 1 MiB/s.
    pub(super) fn with_body(limit: Duration, length: u64) -> Duration {
        limit + Duration::from_secs(length >> 20)
    }
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
    pub ca_file: Option<PathBuf>,
    /// Where the `AWS_…` variables are looked up.
    pub environment: Environment,
}

impl S3Options {
    /// The base URL that is set, here or in the environment; a profile may hold another.
    pub(super) fn endpoint_set(&self) -> Option<String> {
        let from_environment = || self.environment.get("AWS_ENDPOINT_URL_S3");
        let endpoint = self.endpoint.clone().or_else(from_environment);
        endpoint.or_else(|| self.environment.get("AWS_ENDPOINT_URL"))
    }

    /// The settings that decide where a bucket's name leads: where two processes on one machine have the same, they
    /// mean the same bucket.
    #[must_use]
    pub fn route(&self) -> String {
        let profile = ["AWS_PROFILE", "AWS_CONFIG_FILE"].map(|name| self.environment.get(name));
        format!("{:?} {profile:?}", self.endpoint_set())
    }
}

/// Where environment variables come from: the process, unless a test gives others. Only the
/// variables that walship reads itself can be given; the AWS chain behind profiles reads the
/// process's.
#[derive(Clone, Default)]
pub struct Environment(Option<BTreeMap<String, String>>);

impl Environment {
    /// These variables and no others.
    pub fn of<N: Into<String>, V: Into<String>>(variables: impl IntoIterator<Item = (N, V)>) -> Self {
        let variables = variables.into_iter();
        Self(Some(
            variables
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        ))
    }

    /// A variable's value, if it is set and not empty.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        let value = match &self.0 {
            Some(given) => given.get(name).cloned(),
            None => std::env::var(name).ok(),
        };
        value.filter(|value| !value.is_empty())
    }
}

impl fmt::Debug for Environment {
    /// Names only: the values hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(given) => f.debug_set().entries(given.keys()).finish(),
            None => f.write_str("process"),
        }
    }
}
