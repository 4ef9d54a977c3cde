//! The properties of a bucket: versioning, object lock, and the time. The first two take permissions that walship does
//! not need otherwise.

use std::time::Instant;

use super::failure::Failure;
use super::{ProvideErrorMetadata, S3, SdkError, StdError, within_limit};
use crate::properties::StoreProperties;
use walship_core::Result;

/// The bucket was made without object lock.
const NO_LOCK: &str = "ObjectLockConfigurationNotFoundError";

impl S3 {
    /// The bucket's properties.
    pub(crate) async fn ask_properties(&self) -> StoreProperties {
        let versioning = self.call("s3:GetBucketVersioning");
        let request = self
            .client
            .get_bucket_versioning()
            .bucket(&self.settings.bucket)
            .customize()
            .interceptor(versioning.attempts.clone());
        let lock = self.call("s3:GetBucketObjectLockConfiguration");
        let lock_request = self
            .client
            .get_object_lock_configuration()
            .bucket(&self.settings.bucket)
            .customize()
            .interceptor(lock.attempts.clone());
        let (versions, locks) = tokio::join!(
            self.ask(&versioning, None, request.send()),
            self.ask(&lock, Some(NO_LOCK), lock_request.send())
        );
        StoreProperties {
            versioning: versions.map(|answer| {
                let status = answer.and_then(|answer| answer.status);
                Some(status.is_some_and(|status| status.as_str() == "Enabled"))
            }),
            object_lock: locks.map(|answer| {
                let configuration = answer?.object_lock_configuration?;
                configuration.object_lock_enabled.as_ref()?;
                let retention = configuration.rule.and_then(|rule| rule.default_retention);
                let rule = retention.map(|retention| {
                    let mode = retention.mode.as_ref().map_or("", |mode| mode.as_str());
                    match (retention.days, retention.years) {
                        (Some(days), _) => format!("{mode}, {days} days"),
                        (_, Some(years)) => format!("{mode}, {years} years"),
                        _ => mode.to_owned(),
                    }
                });
                Some(rule.unwrap_or_else(|| "no default retention".to_owned()))
            }),
            clock: versioning.attempts.clock().or_else(|| lock.attempts.clock()),
        }
    }

    /// Sends a request; an answer with the code `none` does not count as a failure.
    async fn ask<T, E>(
        &self,
        call: &super::Call,
        none: Option<&str>,
        sending: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<Option<T>>
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let begun = Instant::now();
        match within_limit(call, sending).await {
            Ok(answer) => Ok(Some(answer)),
            Err(Failure::Answer(answer)) if none.is_some() && answer.code.as_deref() == none => Ok(None),
            Err(failure) => Err(self.explain(failure, call, begun.elapsed())),
        }
    }
}
