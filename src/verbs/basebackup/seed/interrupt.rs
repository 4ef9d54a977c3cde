//! A signal by which the user or the system ends the seeding. It is received once, and remembered.

use std::pin::Pin;

use crate::error::Error;

/// Resolves with the signal's name when the seeding must end.
pub(super) struct Interrupt<'a> {
    signal: Pin<Box<dyn Future<Output = &'static str> + 'a>>,
    received: Option<&'static str>,
}

impl<'a> Interrupt<'a> {
    pub(super) fn new(signal: impl Future<Output = &'static str> + 'a) -> Self {
        Self {
            signal: Box::pin(signal),
            received: None,
        }
    }

    /// Waits for it. May be dropped and called again.
    pub(super) async fn wait(&mut self) -> &'static str {
        if let Some(received) = self.received {
            return received;
        }
        let received = self.signal.as_mut().await;
        self.received = Some(received);
        received
    }
}

pub(super) fn given_up(signal: &str) -> Error {
    Error::internal(format!("{signal}: the seeding was interrupted"))
}
