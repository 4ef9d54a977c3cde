//! The wish of the user, or of the system, that the seeding ends. It is heard once, and remembered.

use std::pin::Pin;

use crate::error::Error;

/// Resolves, with a name for it, when the seeding shall end.
pub(super) struct Interrupt<'a> {
    coming: Pin<Box<dyn Future<Output = &'static str> + 'a>>,
    heard: Option<&'static str>,
}

impl<'a> Interrupt<'a> {
    pub(super) fn new(coming: impl Future<Output = &'static str> + 'a) -> Self {
        Self {
            coming: Box::pin(coming),
            heard: None,
        }
    }

    /// Waits for it. May be dropped and called again.
    pub(super) async fn wait(&mut self) -> &'static str {
        if let Some(heard) = self.heard {
            return heard;
        }
        let heard = self.coming.as_mut().await;
        self.heard = Some(heard);
        heard
    }
}

pub(super) fn given_up(signal: &str) -> Error {
    Error::internal(format!("{signal}: the seeding is given up"))
}
