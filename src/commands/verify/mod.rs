//! `walship verify`: reads what is stored and checks it, and says what it is worth.

mod ledger;

pub use self::ledger::last_verification;
