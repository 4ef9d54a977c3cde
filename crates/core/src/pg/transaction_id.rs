//! Transaction ids.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A transaction's 32-bit id (xid), as it stands in the WAL, printed in decimal. Ids are used again
/// after about four thousand million transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransactionId(pub u32);

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TransactionId {
    type Err = Error;

    /// Reads a number in decimal. Of a 64-bit id, as `pg_current_xact_id()` gives it, the low half
    /// counts, as in `recovery_target_xid` (`check_recovery_target_xid`, `xlogrecovery.c` from PostgreSQL 16,
    /// `guc.c` before).
    fn from_str(text: &str) -> Result<Self> {
        text.parse::<u64>().map(|id| Self(id as u32)).map_err(|_| {
            Error::invalid(format!(
                "\"{text}\" is not a transaction id; give its number in decimal"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_id_reads_back_as_it_prints_in_any_epoch(id: u32, epoch: u32) {
            let full = (u64::from(epoch) << 32) | u64::from(id);
            prop_assert_eq!(TransactionId(id).to_string().parse::<TransactionId>().unwrap(), TransactionId(id));
            prop_assert_eq!(full.to_string().parse::<TransactionId>().unwrap(), TransactionId(id));
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", "-1", "0x10", "99999999999999999999", "1 2"] {
            assert!(text.parse::<TransactionId>().is_err(), "{text:?}");
        }
    }
}
