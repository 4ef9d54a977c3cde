//! One file for each verb. A command takes values and returns a report; it prints nothing.

pub mod progress;
