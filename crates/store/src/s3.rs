//! The S3 store, and the only file that names `aws_sdk_s3`.
//!
//! - **One put, one request**: a known length, the SHA-256 in a header that the server checks,
//!   and `If-None-Match: *` for a create. No multipart upload, no trailer, no second checksum.
//! - **One retry loop**, the SDK's, without its budget: the call's deadline bounds it. It repeats every
//!   passing failure, 409 too, so that a create that met another one looks again.
//! - **Nothing waits for ever**: connecting, each attempt, the whole call, each piece of a body that
//!   is read and all of them together have a limit. The SDK's own watch over stalled streams is
//!   off, because it counts bytes handed to the socket.
//! - **Checksums of reads are not checked here**: what walship reads carries its own hash.

mod attempts;
mod bucket;
mod connect;
mod failure;
mod held_back;
mod listing;

use std::error::Error as StdError;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::{RetryConfig, RetryPartition, TokenBucket};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Builder, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{ByteStream, DateTime as AwsDateTime, Length};
use aws_sdk_s3::types::{Delete, ObjectIdentifier, ServerSideEncryption, StorageClass};
use aws_smithy_types::base64;
use bytes::{Buf, Bytes};
use chrono::DateTime;
use tokio::sync::watch;
use tokio::time::timeout;

use self::attempts::{Attempts, KnownHash, RetryPassing, chain};
use self::connect::connect;
use self::failure::{Answer, Failure, RequestContext};
use self::held_back::held_back;
use self::listing::{Entries, ListingCheck};
use crate::backend::{Backend, Depth, Incoming, Pages, Place, Turn};
use crate::object::Version;
use crate::options::StoreOptions;
use crate::{Body, BodyContent, ObjectInfo, Page, PutMode, Refused, replaced};
use walship_core::text::hex;
use walship_core::{Error, ErrorKind, Result};

/// More than fit into any time limit, so that the limit ends the attempts. Not the largest number: the SDK sums its
/// backoff over all of them at the start of each call.
const MAX_ATTEMPTS: u32 = 1000;

/// The first pause of the retry loop (times a random number), and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// At most this many objects share the link, each waiting for the one before it.
const IN_TURN: u64 = 8;

/// A store in a bucket. Clones share connections.
#[derive(Debug, Clone)]
pub(super) struct S3 {
    client: Client,
    settings: Arc<Settings>,
}

#[derive(Debug)]
struct Settings {
    bucket: String,
    /// Empty, or with a slash at its end.
    prefix: String,
    endpoint: Option<String>,
    options: StoreOptions,
}

/// One call of the store: what it is and how it goes.
#[derive(Debug)]
struct Call {
    permission: &'static str,
    limit: Duration,
    attempts: Attempts,
}

/// Where a listing goes on.
#[derive(Debug, Clone)]
struct Cursor {
    prefix: String,
    start_after: Option<String>,
    depth: Depth,
    token: Option<String>,
}

impl S3 {
    pub(super) async fn open(bucket: &str, prefix: &str, options: &StoreOptions) -> Result<Self> {
        let connection = connect(&options.s3, options.operation_timeout).await?;
        let unlimited = RetryPartition::custom("walship")
            .token_bucket(TokenBucket::unlimited())
            .build();
        let mut config = Builder::from(&connection.config)
            .http_client(connection.http_client)
            .force_path_style(options.s3.path_style.unwrap_or(connection.endpoint.is_some()))
            .timeout_config(timeouts(options, 0))
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(MAX_ATTEMPTS)
                    .with_initial_backoff(PAUSES.0)
                    .with_max_backoff(PAUSES.1),
            )
            .retry_partition(unlimited)
            .retry_classifier(RetryPassing)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        config.set_endpoint_url(connection.endpoint.clone());
        let settings = Settings {
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() {
                String::new()
            } else {
                format!("{prefix}/")
            },
            endpoint: connection.endpoint,
            options: options.clone(),
        };
        Ok(Self {
            client: Client::from_conf(config.build()),
            settings: Arc::new(settings),
        })
    }

    /// `bytes_before`: how many bytes may have to be sent before the object is stored.
    async fn put_stream(
        &self,
        key: &str,
        body: &Body,
        stream: ByteStream,
        mode: PutMode,
        bytes_before: u64,
    ) -> Result<()> {
        let settings = &self.settings;
        let length = body.length();
        let (must_be_new, expected) = match mode {
            PutMode::Create => (Some("*".to_owned()), None),
            PutMode::Replace => (None, None),
            PutMode::ReplaceIf(version) => (None, Some(known(version)?)),
        };
        let is_conditional = expected.is_some();
        let mut call = self.call("s3:PutObject");
        call.limit = StoreOptions::with_body(call.limit, bytes_before);
        let s3 = &settings.options.s3;
        let request = self
            .client
            .put_object()
            .bucket(&settings.bucket)
            .key(self.full_key(key))
            .body(stream)
            .content_length(length.cast_signed())
            .checksum_sha256(base64::encode(body.sha256))
            .set_if_none_match(must_be_new)
            .set_if_match(expected)
            .set_storage_class(s3.storage_class.as_deref().map(StorageClass::from))
            .set_server_side_encryption(
                s3.server_side_encryption
                    .as_deref()
                    .map(ServerSideEncryption::from),
            )
            .set_ssekms_key_id(s3.kms_key_id.clone());
        let request = request
            .customize()
            .interceptor(call.attempts.clone())
            .interceptor(KnownHash(hex(&body.sha256)))
            .config_override(Builder::new().timeout_config(timeouts(&settings.options, bytes_before)));
        match self.run(&call, request.send()).await {
            Ok(_) => Ok(()),
            // An object that is gone is answered with 412 or with 404.
            Err(error)
                if is_conditional && matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) =>
            {
                Err(Error::conflict(
                    "it is no longer the object that was to be replaced",
                ))
            }
            Err(error) => Err(error),
        }
    }

    /// Describes the whole object, tells how many bytes come, and begins to read them. A server that knows no ranges
    /// sends all of it.
    async fn get_range(
        &self,
        call: &Call,
        key: &str,
        range: Option<String>,
        expected: Option<String>,
    ) -> Result<(ObjectInfo, u64, S3Body)> {
        let request = self
            .client
            .get_object()
            .bucket(&self.settings.bucket)
            .key(self.full_key(key))
            .set_range(range)
            .set_if_match(expected);
        let request = request.customize().interceptor(call.attempts.clone());
        let answer = self.run(call, request.send()).await?;
        let mut info = object_info(
            key.to_owned(),
            answer.content_length,
            answer.last_modified.as_ref(),
            answer.e_tag,
        )?;
        let sent = info.size;
        if let Some(whole) = answer.content_range.as_deref().and_then(size_in_range) {
            info.size = whole;
        }
        let body = S3Body {
            stream: answer.body,
            idle_limit: self.settings.options.request_timeout,
            time_left: StoreOptions::with_body(self.settings.options.operation_timeout, sent),
            passed_over: 0,
        };
        Ok((info, sent, body))
    }

    /// A page. Nothing in a listing tells whether a bit of it flipped on its way. Without TLS, which would tell, the
    /// page is read twice and both must agree.
    async fn page(&self, cursor: Cursor) -> Result<(Page, Option<Cursor>)> {
        let endpoint = self.settings.endpoint.as_deref();
        if endpoint.is_none_or(|endpoint| endpoint.starts_with("https://")) {
            return self.look_at_page(cursor).await;
        }
        let (first, second) = tokio::try_join!(self.look_at_page(cursor.clone()), self.look_at_page(cursor))?;
        if first.0 == second.0 && first.1.is_some() == second.1.is_some() {
            return Ok(first);
        }
        Err(Error::unavailable(
            "two looks at it at the same time saw different objects: they are being changed, or an answer was altered on its \
             way; try again",
        ))
    }

    async fn look_at_page(&self, cursor: Cursor) -> Result<(Page, Option<Cursor>)> {
        let call = self.call("s3:ListBucket");
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.settings.bucket)
            .prefix(self.full_key(&cursor.prefix))
            .set_start_after(cursor.start_after.as_deref().map(|key| self.full_key(key)))
            .set_delimiter((cursor.depth == Depth::Folder).then(|| "/".to_owned()))
            .set_continuation_token(cursor.token.clone());
        let listing_check = ListingCheck::default();
        let request = request.customize().interceptor(call.attempts.clone());
        let request = request.interceptor(listing_check.clone());
        let answer = self.run(&call, request.send()).await;
        let not_whole = |why: &str| {
            Error::unavailable(format!(
                "the answer to a listing did not come whole: {why}; try again"
            ))
        };
        let entries = listing_check
            .entries()
            .transpose()
            .map_err(|why| not_whole(&why))?;
        let answer = match answer {
            Err(error) if entries.is_some() && error.kind() == ErrorKind::Invalid => {
                return Err(not_whole("something in it cannot be read"));
            }
            answer => answer?,
        };
        let contents = answer.contents.unwrap_or_default();
        let folders = answer.common_prefixes.unwrap_or_default();
        let read = Entries {
            keys: contents.len(),
            folders: folders.len(),
        };
        if entries.is_some_and(|entries| entries != read) {
            return Err(not_whole("a key in it cannot be read"));
        }
        let asked = self.full_key(&cursor.prefix);
        let relative = |key: Option<String>| {
            let key = key.ok_or_else(|| not_whole("a key in it cannot be read"))?;
            let is_asked = key.starts_with(&asked);
            let key = key.strip_prefix(&self.settings.prefix).filter(|_| is_asked);
            key.map(str::to_owned)
                .ok_or_else(|| not_whole("a key in it was not asked for"))
        };
        let mut page = Page::default();
        for object in contents {
            let key = relative(object.key)?;
            // An empty key is the mark that consoles make for a folder.
            if !key.is_empty() {
                let info = object_info(key, object.size, object.last_modified.as_ref(), object.e_tag);
                page.objects
                    .push(info.map_err(|error| not_whole(&error.to_string()))?);
            }
        }
        for folder in folders {
            let folder = relative(folder.prefix)?;
            // Else a listing of it would be asked for what was not told.
            if cursor.depth == Depth::All || !folder.ends_with('/') || folder.len() <= cursor.prefix.len() {
                return Err(not_whole("a folder in it was not asked for"));
            }
            page.folders.push(folder);
        }
        let next = match (answer.is_truncated, answer.next_continuation_token) {
            (Some(true), None) => {
                return Err(Error::invalid(
                    "the server broke off a listing without saying where it goes on",
                ));
            }
            (Some(true) | None, Some(token)) if cursor.token.as_ref() == Some(&token) => {
                return Err(Error::invalid("the server's listing goes in a circle"));
            }
            // Some servers say only where it goes on.
            (Some(true) | None, Some(token)) => Some(Cursor {
                token: Some(token),
                ..cursor
            }),
            (Some(false), _) | (None, None) => None,
        };
        Ok((page, next))
    }

    fn full_key(&self, key: &str) -> String {
        format!("{}{key}", self.settings.prefix)
    }

    fn call(&self, permission: &'static str) -> Call {
        Call {
            permission,
            limit: self.settings.options.operation_timeout,
            attempts: Attempts::default(),
        }
    }

    /// Sends a request, with retries, until the call's limit.
    async fn run<T, E>(&self, call: &Call, sending: impl Future<Output = Result<T, SdkError<E>>>) -> Result<T>
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let begun = Instant::now();
        let sent = within_limit(call, sending).await;
        sent.map_err(|failure| self.explain(failure, call, begun.elapsed()))
    }

    fn explain(&self, failure: Failure, call: &Call, elapsed: Duration) -> Error {
        failure.into_error(&RequestContext {
            bucket: &self.settings.bucket,
            endpoint: self.settings.endpoint.as_deref(),
            permission: call.permission,
            attempts: call.attempts.begun(),
            elapsed,
            last_failure: call.attempts.last_failure(),
        })
    }
}

#[async_trait]
impl Backend for S3 {
    fn reopened(&self) -> Arc<dyn Backend> {
        Arc::new(self.clone())
    }

    fn place(&self) -> &dyn Place {
        self
    }

    async fn put(&self, key: &str, body: &Body, mode: PutMode) -> Result<()> {
        let stream = stream_of(&body.content).await?;
        self.put_stream(key, body, stream, mode, body.length()).await
    }

    /// Sends everything but the last byte, which waits for its turn: no server stores an object before.
    async fn create_in_turn(&self, key: &str, body: &Body, turn: Turn<'_>) -> Result<()> {
        let BodyContent::Memory(bytes) = &body.content else {
            turn.await?;
            return self.put(key, body, PutMode::Create).await;
        };
        let (gate, is_open) = watch::channel(false);
        let stream = held_back(bytes.clone(), is_open);
        let bytes = body.length() * IN_TURN;
        let stored = async { Ok(self.put_stream(key, body, stream, PutMode::Create, bytes).await) };
        let turn = async {
            turn.await?;
            gate.send_replace(true);
            Ok(())
        };
        // If the turn fails, the request is dropped unfinished.
        let ((), stored) = tokio::try_join!(turn, stored)?;
        stored
    }

    async fn get(&self, key: &str) -> Result<(ObjectInfo, Box<dyn Incoming>)> {
        let call = self.call("s3:GetObject");
        let (info, _, body) = self.get_range(&call, key, None, None).await?;
        Ok((info, Box::new(body)))
    }

    /// The rest of an object that was opened before; `retry_time` limits the waiting for it.
    async fn get_rest(
        &self,
        object: &ObjectInfo,
        from: u64,
        retry_time: Duration,
    ) -> Result<Box<dyn Incoming>> {
        let known = object
            .version
            .is_known()
            .then(|| object.version.as_str().to_owned());
        let mut call = self.call("s3:GetObject");
        call.limit = call.limit.min(retry_time);
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let (now, sent, mut body) = match self.get_range(&call, &object.key, range, known).await {
            Err(error) if error.kind() == ErrorKind::Conflict => return Err(replaced()),
            answer => answer?,
        };
        if now != *object {
            return Err(replaced());
        }
        body.time_left = retry_time;
        if sent == now.size {
            body.passed_over = from;
        }
        Ok(Box::new(body))
    }

    /// An object's last bytes, and how many they are.
    async fn get_tail(&self, key: &str, length: u64) -> Result<(ObjectInfo, u64, Box<dyn Incoming>)> {
        let call = self.call("s3:GetObject");
        let last = Some(format!("bytes=-{length}"));
        let (info, sent, body) = match self.get_range(&call, key, last, None).await {
            Err(error) if error.is_retryable() => return Err(error),
            // An empty object has no last bytes, and S3 says so with an error.
            Err(_) => {
                self.get_range(&self.call("s3:GetObject"), key, None, None)
                    .await?
            }
            answer => answer?,
        };
        Ok((info, sent, Box::new(body)))
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        let call = self.call("s3:GetObject");
        let request = self
            .client
            .head_object()
            .bucket(&self.settings.bucket)
            .key(self.full_key(key));
        let request = request.customize().interceptor(call.attempts.clone());
        match self.run(&call, request.send()).await {
            Ok(answer) => object_info(
                key.to_owned(),
                answer.content_length,
                answer.last_modified.as_ref(),
                answer.e_tag,
            )
            .map(Some),
            Err(error) if error.is_retryable() => Err(error),
            // The answer to HEAD has no body, and so no code that tells a missing key from a missing
            // bucket; the answer to GET has.
            Err(_) => match self.get(key).await {
                Ok((info, _)) => Ok(Some(info)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    fn list(&self, prefix: &str, start_after: Option<&str>, depth: Depth) -> Box<dyn Pages> {
        Box::new(S3Pages {
            s3: self.clone(),
            next: Some(Cursor {
                prefix: prefix.to_owned(),
                start_after: start_after.map(str::to_owned),
                depth,
                token: None,
            }),
        })
    }

    async fn delete(&self, keys: &[String]) -> Result<Vec<Refused>> {
        let call = self.call("s3:DeleteObject");
        let name = |key: &String| ObjectIdentifier::builder().key(self.full_key(key)).build();
        let internal = |error| Error::internal(format!("a deletion's request could not be made: {error}"));
        let names = keys
            .iter()
            .map(name)
            .collect::<Result<Vec<_>, _>>()
            .map_err(internal)?;
        let what = Delete::builder()
            .set_objects(Some(names))
            .quiet(true)
            .build()
            .map_err(internal)?;
        let request = self
            .client
            .delete_objects()
            .bucket(&self.settings.bucket)
            .delete(what);
        let request = request.customize().interceptor(call.attempts.clone());
        let begun = Instant::now();
        let answer = self.run(&call, request.send()).await?;
        let missing = |code: &str| code == "NoSuchKey";
        let failed = answer
            .errors()
            .iter()
            .filter(|error| !error.code().is_some_and(missing));
        let mut refused = Vec::new();
        for failed in failed {
            let failure = Failure::Answer(Answer {
                // Each key's error comes as a code only, in an answer with status 200.
                status: if failed.code() == Some("InternalError") {
                    500
                } else {
                    200
                },
                code: failed.code().map(str::to_owned),
                message: failed.message().map(str::to_owned),
                region: None,
            });
            let key = failed.key().unwrap_or_default();
            let key = key.strip_prefix(&self.settings.prefix).unwrap_or(key).to_owned();
            let error = self.explain(failure, &call, begun.elapsed());
            if error.is_retryable() {
                return Err(error.context(key));
            }
            refused.push(Refused { key, error });
        }
        Ok(refused)
    }
}

/// A listing, and where it goes on.
#[derive(Debug)]
struct S3Pages {
    s3: S3,
    next: Option<Cursor>,
}

#[async_trait]
impl Pages for S3Pages {
    async fn next(&mut self) -> Result<Page> {
        let Some(cursor) = self.next.clone() else {
            return Ok(Page::default());
        };
        let (page, next) = self.s3.page(cursor).await?;
        self.next = next;
        Ok(page)
    }

    fn is_finished(&self) -> bool {
        self.next.is_none()
    }
}

/// Sends a request, and fails if it is not answered in time.
async fn within_limit<T, E>(
    call: &Call,
    sending: impl Future<Output = Result<T, SdkError<E>>>,
) -> Result<T, Failure>
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    // On the heap, because the SDK's futures have several kilobytes.
    match timeout(call.limit, Box::pin(sending)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failure_of(&error)),
        Err(_) => Err(Failure::Deadline),
    }
}

/// Limits of one attempt, for a body of this length.
fn timeouts(options: &StoreOptions, length: u64) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(options.connect_timeout)
        .operation_attempt_timeout(StoreOptions::with_body(options.request_timeout, length))
        .build()
}

/// A body that each attempt can read from its start. A file is opened again by its descriptor, because it may have no
/// name any more.
async fn stream_of(content: &BodyContent) -> Result<ByteStream> {
    match content {
        BodyContent::Memory(bytes) => Ok(ByteStream::from(bytes.clone())),
        BodyContent::File { file, length } => ByteStream::read_from()
            .path(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .length(Length::Exact(*length))
            .buffer_size(256 << 10)
            .build()
            .await
            .map_err(|error| Error::internal(format!("read the spooled object: {}", chain(&error)))),
    }
}

/// The `ETag` that a put with a condition names.
fn known(version: Version) -> Result<String> {
    if version.is_known() {
        return Ok(version.0);
    }
    Err(Error::invalid(
        "the server gives no ETag, without which an object cannot be replaced safely; check the endpoint",
    ))
}

fn object_info(
    key: String,
    size: Option<i64>,
    modified: Option<&AwsDateTime>,
    etag: Option<String>,
) -> Result<ObjectInfo> {
    let modified = modified.and_then(|time| DateTime::from_timestamp(time.secs(), time.subsec_nanos()));
    match (size.and_then(|size| u64::try_from(size).ok()), modified) {
        (Some(size), Some(modified)) => Ok(ObjectInfo {
            key,
            size,
            modified,
            version: Version(etag.unwrap_or_default()),
        }),
        _ => Err(Error::invalid(
            "the server's answer lacks the object's size or time; check the endpoint, it may not be S3",
        )),
    }
}

/// The whole object's size in an answer's `Content-Range`: `bytes 0-99/1234`.
fn size_in_range(range: &str) -> Option<u64> {
    range.rsplit_once('/')?.1.parse().ok()
}

/// What the SDK's error means, in plain values.
fn failure_of<E>(error: &SdkError<E>) -> Failure
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    if let Some(credentials) = find_credentials_error(error) {
        let why = chain(credentials);
        return match credentials {
            CredentialsError::CredentialsNotLoaded(_) => Failure::NoCredentials,
            CredentialsError::ProviderTimedOut(_) => {
                Failure::NoAnswer(format!("credentials came too late: {why}"))
            }
            _ => Failure::BrokenCredentials(why),
        };
    }
    match error {
        SdkError::ServiceError(answered) => {
            let (raw, said) = (answered.raw(), answered.err());
            Failure::Answer(Answer {
                status: raw.status().as_u16(),
                code: said.code().map(str::to_owned),
                message: said.message().map(str::to_owned),
                region: raw.headers().get("x-amz-bucket-region").map(str::to_owned),
            })
        }
        SdkError::ConstructionFailure(_) => Failure::Request(chain(error)),
        other => Failure::NoAnswer(chain(other)),
    }
}

fn find_credentials_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a CredentialsError> {
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    causes.find_map(|cause| cause.downcast_ref())
}

/// A body that is being read.
#[derive(Debug)]
struct S3Body {
    stream: ByteStream,
    idle_limit: Duration,
    /// What is left of the time for the whole body. Only waiting for the server counts: the reader may be slow.
    time_left: Duration,
    /// How many bytes have arrived already.
    passed_over: u64,
}

#[async_trait]
impl Incoming for S3Body {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(mut piece) = self.piece().await? else {
                return Ok(None);
            };
            let passed_over = self.passed_over.min(piece.len() as u64);
            self.passed_over -= passed_over;
            piece.advance(passed_over as usize);
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }
}

impl S3Body {
    async fn piece(&mut self) -> Result<Option<Bytes>> {
        let begun = Instant::now();
        let limit = self.idle_limit.min(self.time_left);
        let piece = timeout(limit, self.stream.next()).await;
        self.time_left = self.time_left.saturating_sub(begun.elapsed());
        match piece {
            Ok(piece) => piece.transpose().map_err(|error| {
                Error::unavailable(format!("the connection broke in the middle: {}", chain(&error)))
            }),
            Err(_) => Err(Error::unavailable(format!(
                "the server stopped sending in the middle, for {:.1} s",
                limit.as_secs_f64()
            ))),
        }
    }
}
