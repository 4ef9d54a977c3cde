//! Where a server is and how to log in: libpq's connection settings.

use crate::error::{Error, Result};

/// Everything needed to reach a server, from every source libpq knows.
#[derive(Debug, Clone)]
pub struct ConnInfo {}

impl ConnInfo {
    /// Settings from `given` (a `keyword=value` string, a URI or a bare database name), then the
    /// service file, the environment and libpq's defaults.
    ///
    /// # Errors
    /// `Invalid` for text that libpq would refuse, and for settings walship does not support.
    pub fn resolve(_given: Option<&str>, _environment: impl Fn(&str) -> Option<String>) -> Result<Self> {
        Err(Error::internal("connection settings are not read yet"))
    }
}
