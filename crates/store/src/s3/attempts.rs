//! Hooks around each attempt of the SDK's retry loop: they keep the last failure, retry more failures than the SDK
//! does, and give it the body's hash, so that it need not be computed again.

use std::error::Error as StdError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_runtime::auth::PayloadSigningOverride;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeTransmitInterceptorContextMut, BeforeTransmitInterceptorContextRef, FinalizerInterceptorContextRef,
    InterceptorContext,
};
use aws_smithy_runtime_api::client::interceptors::{Intercept, dyn_dispatch_hint};
use aws_smithy_runtime_api::client::retries::classifiers::{ClassifyRetry, RetryAction};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::http::Response;
use aws_smithy_types::config_bag::ConfigBag;
use chrono::{DateTime, Utc};

use super::failure::is_passing;
use crate::properties::StoreClock;

/// What happened in one call so far. When the deadline ends a call from outside, only this tells why.
#[derive(Debug, Clone, Default)]
pub(super) struct Attempts(Arc<Mutex<Log>>);

#[derive(Debug, Default)]
struct Log {
    begun: u32,
    last_failure: Option<String>,
    clock: Option<StoreClock>,
}

impl Attempts {
    pub(super) fn begun(&self) -> u32 {
        self.lock().begun
    }

    pub(super) fn last_failure(&self) -> Option<String> {
        self.lock().last_failure.clone()
    }

    /// The time that the last answer told.
    pub(super) fn clock(&self) -> Option<StoreClock> {
        self.lock().clock
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[dyn_dispatch_hint]
impl Intercept for Attempts {
    fn name(&self) -> &'static str {
        "walship attempts"
    }

    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.lock().begun += 1;
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context
            .response()
            .and_then(|response| response.headers().get("date"));
        if let Some(told) = date.and_then(|date| DateTime::parse_from_rfc2822(date).ok()) {
            self.lock().clock = Some(StoreClock {
                told: told.to_utc(),
                received: Utc::now(),
            });
        }
        if let Some(Err(error)) = context.output_or_error() {
            let reason = match context.response().map(Response::status) {
                Some(status) if !status.is_success() => {
                    let cause = chain(error);
                    format!(
                        "HTTP {}{}{cause}",
                        status.as_u16(),
                        if cause.is_empty() { "" } else { " " }
                    )
                }
                _ => chain(error),
            };
            self.lock().last_failure = Some(reason);
        }
        Ok(())
    }
}

/// Signs with the known SHA-256 instead of reading the body once more. The server checks it as the payload's and as the
/// object's.
#[derive(Debug)]
pub(super) struct KnownHash(pub(super) String);

#[dyn_dispatch_hint]
impl Intercept for KnownHash {
    fn name(&self) -> &'static str {
        "walship known hash"
    }

    fn modify_before_signing(
        &self,
        _: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        config
            .interceptor_state()
            .store_put(PayloadSigningOverride::Precomputed(self.0.clone()));
        Ok(())
    }
}

/// Tries again after every answer that walship takes for a passing failure, not only after those
/// that the SDK knows. After 409 (two conditional puts met) the next attempt either wins or finds
/// the other's object.
#[derive(Debug)]
pub(super) struct RetryPassing;

impl ClassifyRetry for RetryPassing {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        match context.response().map(|response| response.status().as_u16()) {
            Some(status) if is_passing(status) => RetryAction::transient_error(),
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "walship passing failures"
    }
}

/// The SDK's wrappings of errors, which say nothing about the cause.
const WRAPPINGS: [&str; 10] = [
    "dispatch failure",
    "service error",
    "request has timed out",
    "operation error",
    "connector error",
    "unhandled error",
    "timeout",
    "other",
    "io error",
    "Error",
];

/// An error with what caused it on one line, without the SDK's wrappings and without saying a thing
/// twice.
pub(super) fn chain(error: &dyn StdError) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let part = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if !WRAPPINGS.contains(&part.as_str()) && !parts.iter().any(|said| said.contains(&part)) {
            parts.push(part);
        }
        next = cause.source();
    }
    parts.join(": ")
}
