//! What an S3 server's answers, and their absence, mean to walship.

use std::time::Duration;

use walship_core::{Error, ErrorKind};

/// Whether the same request may get another answer a moment later, whatever else an answer with this status says.
pub(super) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 409 | 425 | 429 | 500 | 502..=599)
}

/// Codes of refusals, which come with status 400 too, and with 200 for a key among many.
const DENIALS: [&str; 7] = [
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
];

/// Why a call failed, in plain values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server answered with an error.
    Answer(Answer),
    /// No answer, or one that could not be read.
    NoAnswer(String),
    /// The time for the call, with all its retries, is over.
    Deadline,
    NoCredentials,
    /// Credentials could not be fetched.
    BrokenCredentials(String),
    /// The request could not be made.
    Request(String),
}

/// An error as S3 answers it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Absent in answers to HEAD, and in those of something that is not S3.
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
    /// The bucket's region, where the server names it.
    pub(super) region: Option<String>,
}

/// The request, for the message.
#[derive(Debug)]
pub(super) struct RequestContext<'a> {
    pub(super) bucket: &'a str,
    /// None for AWS itself.
    pub(super) endpoint: Option<&'a str>,
    /// The permission it takes.
    pub(super) permission: &'static str,
    pub(super) attempts: u32,
    pub(super) elapsed: Duration,
    pub(super) last_failure: Option<String>,
}

impl Failure {
    pub(super) fn into_error(self, asked: &RequestContext<'_>) -> Error {
        match self {
            Self::Answer(answer) => answer.into_error(asked),
            Self::Deadline => {
                let last = asked.last_failure.as_deref();
                asked.gave_up(last.unwrap_or("there was no answer at all"))
            }
            Self::NoAnswer(why) => asked.gave_up(&why),
            Self::NoCredentials => Error::denied(
                "no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, \
                 or run where a role gives them",
            ),
            Self::BrokenCredentials(why) => Error::denied(format!(
                "the AWS credentials could not be loaded; correct their source, or set AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY ({why})"
            )),
            Self::Request(why) => Error::invalid(format!(
                "the request could not be made; check the settings ({why})"
            )),
        }
    }
}

impl Answer {
    fn into_error(self, asked: &RequestContext<'_>) -> Error {
        let kind = self.kind();
        let said = self.said();
        let server = asked.endpoint.unwrap_or("AWS");
        let bucket = asked.bucket;
        match kind {
            ErrorKind::NotFound => Error::not_found("there is no such object"),
            ErrorKind::Conflict => Error::conflict("an object of this name is there already"),
            ErrorKind::Unavailable => asked.gave_up(&said),
            ErrorKind::Denied => Error::denied(format!("{}; {}", said, self.denied_hint(asked))),
            ErrorKind::Corrupt => Error::corrupt(format!(
                "the bytes that arrived are not those that were sent; nothing was stored, try again ({said})"
            )),
            _ => Error::invalid(match self.code.as_deref() {
                Some("NoSuchBucket") => {
                    format!(
                        "the bucket {bucket} does not exist at {server}; create it, or correct the archive's URL"
                    )
                }
                Some("InvalidObjectState") => {
                    format!(
                        "the object is in a storage class that cannot be read at once; restore it in S3 first ({said})"
                    )
                }
                Some("NotImplemented") => format!("the server {server} lacks what walship needs ({said})"),
                _ if self.is_elsewhere() => match &self.region {
                    Some(region) => {
                        format!("the bucket {bucket} is in region {region}; set AWS_REGION={region}")
                    }
                    None => format!(
                        "the region or endpoint is not the bucket's; set AWS_REGION or the endpoint ({said})"
                    ),
                },
                None => format!(
                    "{server} answered {said}, which is not S3's form of an error; check the endpoint"
                ),
                Some(_) => format!(
                    "{server} refused the request; check the settings and the bucket {bucket} ({said})"
                ),
            }),
        }
    }

    /// The whole classification. A status without a code proves only what the status says.
    pub(super) fn kind(&self) -> ErrorKind {
        match (self.status, self.code.as_deref().unwrap_or_default()) {
            (_, "NoSuchKey") => ErrorKind::NotFound,
            (_, "PreconditionFailed") | (412, _) => ErrorKind::Conflict,
            (
                _,
                "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch",
            ) => ErrorKind::Corrupt,
            (_, "RequestTimeout" | "IncompleteBody" | "SlowDown" | "Throttling" | "ThrottlingException")
            | (408 | 409 | 425 | 429, _) => ErrorKind::Unavailable,
            (_, "NoSuchBucket" | "InvalidObjectState" | "NotImplemented") => ErrorKind::Invalid,
            _ if self.is_elsewhere() => ErrorKind::Invalid,
            (401 | 403, _) => ErrorKind::Denied,
            (_, code) if DENIALS.contains(&code) => ErrorKind::Denied,
            (status, _) if is_passing(status) => ErrorKind::Unavailable,
            _ => ErrorKind::Invalid,
        }
    }

    fn is_elsewhere(&self) -> bool {
        const CODES: [&str; 4] = [
            "PermanentRedirect",
            "TemporaryRedirect",
            "AuthorizationHeaderMalformed",
            "IllegalLocationConstraintException",
        ];
        let code = self.code.as_deref();
        code.is_some_and(|code| CODES.contains(&code)) || matches!(self.status, 301 | 302 | 307 | 308)
    }

    fn denied_hint(&self, asked: &RequestContext<'_>) -> String {
        match self.code.as_deref() {
            Some("SignatureDoesNotMatch") => {
                "the secret key is wrong; check AWS_SECRET_ACCESS_KEY or the profile".into()
            }
            Some("InvalidAccessKeyId") => {
                "the server does not know the access key; check AWS_ACCESS_KEY_ID or the profile".into()
            }
            Some("ExpiredToken" | "TokenRefreshRequired" | "InvalidToken") => {
                "the session token is not valid, or has expired; get a new one".into()
            }
            Some("RequestTimeTooSkewed") => {
                "this machine's clock is off, or the server's; set it right (see timedatectl)".into()
            }
            _ => {
                let bucket = asked.bucket;
                let missing = if asked.permission == "s3:GetObject" {
                    " and s3:ListBucket, without which AWS answers 403 for an object that does not exist"
                } else {
                    ""
                };
                format!(
                    "allow {}{missing} on the bucket {bucket}, or use other credentials",
                    asked.permission
                )
            }
        }
    }

    /// The answer in the server's words.
    fn said(&self) -> String {
        let code = self
            .code
            .as_deref()
            .map(|code| format!(" {code}"))
            .unwrap_or_default();
        let message = self.message.as_deref().filter(|message| !message.is_empty());
        let message = message
            .map(|message| format!(": {}", message.escape_debug()))
            .unwrap_or_default();
        format!("HTTP {}{code}{message}", self.status)
    }
}

impl RequestContext<'_> {
    fn gave_up(&self, why: &str) -> Error {
        let server = self.endpoint.unwrap_or("AWS");
        let attempts = if self.attempts == 1 {
            "1 attempt".into()
        } else {
            format!("{} attempts", self.attempts)
        };
        let hint = if why.contains("certificate") {
            "; set ca_file in [s3] if the server's certificate is your own"
        } else {
            ""
        };
        Error::unavailable(format!(
            "gave up on {server} after {attempts} in {:.1} s; the last one: {why}{hint}",
            self.elapsed.as_secs_f64()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> RequestContext<'static> {
        RequestContext {
            bucket: "vault",
            endpoint: None,
            permission: "s3:GetObject",
            attempts: 3,
            elapsed: Duration::from_millis(1500),
            last_failure: None,
        }
    }

    fn answer(status: u16, code: &str) -> Error {
        let code = (!code.is_empty()).then(|| code.to_owned());
        Failure::Answer(Answer {
            status,
            code,
            message: Some("words".into()),
            region: None,
        })
        .into_error(&asked())
    }

    #[test]
    fn only_a_missing_key_is_not_found() {
        assert_eq!(answer(404, "NoSuchKey").kind(), ErrorKind::NotFound);
        for (status, code) in [
            (404, ""),
            (404, "NotFound"),
            (404, "NoSuchBucket"),
            (410, ""),
            (400, ""),
        ] {
            assert_eq!(answer(status, code).kind(), ErrorKind::Invalid, "{status} {code}");
        }
    }

    #[test]
    fn every_answer_has_its_kind() {
        use ErrorKind::{Conflict, Corrupt, Denied, Invalid, Unavailable};
        for (status, code, kind) in [
            (412, "", Conflict),
            (412, "PreconditionFailed", Conflict),
            (409, "ConditionalRequestConflict", Unavailable),
            (400, "BadDigest", Corrupt),
            (400, "XAmzContentSHA256Mismatch", Corrupt),
            (403, "", Denied),
            (401, "", Denied),
            (400, "ExpiredToken", Denied),
            (200, "AccessDenied", Denied),
            (403, "InvalidObjectState", Invalid),
            (400, "RequestTimeout", Unavailable),
            (503, "SlowDown", Unavailable),
            (429, "", Unavailable),
            (599, "", Unavailable),
            (501, "NotImplemented", Invalid),
            (501, "", Invalid),
            (301, "PermanentRedirect", Invalid),
            (400, "AuthorizationHeaderMalformed", Invalid),
            (400, "InvalidStorageClass", Invalid),
        ] {
            assert_eq!(answer(status, code).kind(), kind, "{status} {code}");
        }
    }

    #[test]
    fn a_message_says_what_to_do() {
        for (status, code, hint) in [
            (404, "NoSuchBucket", "the bucket vault does not exist"),
            (403, "AccessDenied", "s3:ListBucket"),
            (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
            (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
            (403, "RequestTimeTooSkewed", "clock"),
            (400, "ExpiredToken", "get a new one"),
            (301, "PermanentRedirect", "AWS_REGION"),
            (404, "", "check the endpoint"),
            (
                503,
                "SlowDown",
                "gave up on AWS after 3 attempts in 1.5 s; the last one: HTTP 503 SlowDown: words",
            ),
        ] {
            let text = answer(status, code).to_string();
            assert!(text.contains(hint), "{text}");
        }
    }

    #[test]
    fn a_bucket_elsewhere_names_its_region() {
        let answer = Answer {
            status: 301,
            region: Some("eu-west-1".into()),
            ..Answer::default()
        };
        let error = Failure::Answer(answer).into_error(&asked());
        assert!(error.to_string().ends_with("set AWS_REGION=eu-west-1"), "{error}");
    }

    #[test]
    fn the_deadline_names_the_last_cause() {
        let failed = RequestContext {
            last_failure: Some("connection refused".into()),
            ..asked()
        };
        let text = Failure::Deadline.into_error(&failed).to_string();
        assert_eq!(
            text,
            "gave up on AWS after 3 attempts in 1.5 s; the last one: connection refused"
        );
        let text = Failure::Deadline.into_error(&asked()).to_string();
        assert!(text.contains("there was no answer at all"), "{text}");
    }
}
