//! A request body whose last byte waits, so that the transfer is done when the object's turn comes.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, ready};

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::watch;

/// A body that holds its last byte back until the gate is open, at every attempt that reads it.
pub(super) fn held_back(bytes: Bytes, is_open: watch::Receiver<bool>) -> ByteStream {
    let body =
        SdkBody::retryable(move || SdkBody::from_body_1_x(HeldBack::new(bytes.clone(), is_open.clone())));
    ByteStream::new(body)
}

struct HeldBack {
    first: Bytes,
    last: Bytes,
    /// A body must be shareable between threads, and a future is not. There is never another holder of this lock.
    gate: Mutex<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl HeldBack {
    fn new(mut bytes: Bytes, mut is_open: watch::Receiver<bool>) -> Self {
        let last = bytes.split_off(bytes.len().saturating_sub(1));
        let gate = Box::pin(async move {
            if is_open.wait_for(|open| *open).await.is_err() {
                // The gate was dropped, and the request with it.
                std::future::pending::<()>().await;
            }
        });
        Self {
            first: bytes,
            last,
            gate: Mutex::new(gate),
        }
    }
}

impl Body for HeldBack {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.first.is_empty() {
            let first = std::mem::take(&mut self.first);
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if self.last.is_empty() {
            return Poll::Ready(None);
        }
        let gate = self.gate.get_mut();
        ready!(
            gate.unwrap_or_else(std::sync::PoisonError::into_inner)
                .as_mut()
                .poll(context)
        );
        let last = std::mem::take(&mut self.last);
        Poll::Ready(Some(Ok(Frame::data(last))))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.last.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.first.len() + self.last.len()) as u64)
    }
}
