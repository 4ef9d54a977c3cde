//! The properties of a bucket: versioning, object lock, and the time. The first two take permissions that walship does
//! not need otherwise.

use std::time::Instant;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::failure::Failure;
use super::{ProvideErrorMetadata, S3, SdkError, StdError, within_limit};
use crate::backend::{Backend, Place};
use crate::properties::StoreProperties;
use walship_core::{Error, Result};

/// The bucket was made without object lock.
const NO_LOCK: &str = "ObjectLockConfigurationNotFoundError";

#[async_trait]
impl Place for S3 {
    /// Buckets are never created.
    async fn create(&self) -> Result<()> {
        Ok(())
    }

    async fn properties(&self) -> StoreProperties {
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

    async fn probe_delete(&self, missing_key: &str) -> Result<()> {
        let refused = self.delete(&[missing_key.to_owned()]).await?;
        refused
            .into_iter()
            .next()
            .map_or(Ok(()), |refused| Err(refused.error))
    }

    /// Every answer is dated, so the smallest listing is asked for.
    async fn clock(&self) -> Result<DateTime<Utc>> {
        let call = self.call("s3:ListBucket");
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.settings.bucket)
            .prefix(&self.settings.prefix)
            .max_keys(1);
        let request = request.customize().interceptor(call.attempts.clone());
        self.run(&call, request.send()).await?;
        let clock = call.attempts.clock();
        clock.map(|clock| clock.told).ok_or_else(|| {
            Error::invalid(
                "the server's answer has no Date, so its clock is not known; check the endpoint, it may not be S3",
            )
        })
    }
}

impl S3 {
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
