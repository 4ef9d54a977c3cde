//! An archive's URL: `s3://bucket/prefix` or `file:///path`.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use walship_core::{Error, Result};

/// Where an archive lives. Built by [`FromStr`], which checks it; prints as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A bucket and a prefix without slashes at its ends; the prefix may be empty.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// The prefix.
        prefix: String,
    },
    /// An absolute directory.
    Directory(PathBuf),
}

const FORMS: &str = "write s3://bucket/prefix or file:///absolute/path";

impl FromStr for Location {
    type Err = Error;

    /// Reads an archive's URL. One slash at its end is allowed and dropped.
    fn from_str(text: &str) -> Result<Self> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(Error::invalid(format!(
                "the archive's URL has no scheme; {FORMS}"
            )));
        };
        let rest = rest
            .strip_suffix('/')
            .filter(|rest| !rest.is_empty())
            .unwrap_or(rest);
        match scheme {
            "s3" => parse_s3(rest),
            "file" => parse_directory(rest),
            _ => Err(Error::invalid(format!(
                "an archive's URL cannot begin with \"{}://\"; {FORMS}",
                scheme.escape_debug()
            ))),
        }
    }
}

/// `bucket` or `bucket/prefix`. Text is echoed only after credentials were ruled out.
fn parse_s3(rest: &str) -> Result<Location> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if rest.contains('@') {
        return Err(Error::invalid(
            "an archive's URL takes no user name or password (\"@\"); set AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY, or a profile",
        ));
    }
    if bucket.is_empty() {
        return Err(Error::invalid(
            "the archive's URL names no bucket; write s3://bucket/prefix",
        ));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if !bucket.bytes().all(allowed) {
        return Err(Error::invalid(format!(
            "\"{}\" is not a bucket's name; a bucket has letters, digits, \".\", \"-\" and \"_\", and the server's \
             address is set as the endpoint, not in the URL",
            bucket.escape_debug()
        )));
    }
    if !prefix.is_empty() {
        check_path(prefix)?;
    }
    Ok(Location::S3 {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
    })
}

/// `/absolute/path`: a host between the slashes is refused.
fn parse_directory(rest: &str) -> Result<Location> {
    if rest == "/" {
        return Err(Error::invalid(
            "the root directory cannot be an archive; write file:///absolute/path",
        ));
    }
    let Some(path) = rest.strip_prefix('/') else {
        return Err(Error::invalid(
            "the archive's directory must be absolute, after three slashes; write file:///absolute/path",
        ));
    };
    check_path(path)?;
    Ok(Location::Directory(PathBuf::from(rest)))
}

/// Refuses paths that an S3 server, a file system and a reader of a log could understand differently.
fn check_path(path: &str) -> Result<()> {
    let refuse = |why: &str| Err(Error::invalid(format!("the archive's URL {why}; {FORMS}")));
    if path.contains(['?', '#']) {
        return refuse("has a query or a fragment (\"?\", \"#\"); settings belong in the configuration file");
    }
    if path.chars().any(char::is_control) {
        return refuse("has a control character");
    }
    if path.split('/').any(str::is_empty) {
        return refuse("has an empty part (\"//\")");
    }
    if path.split('/').any(|part| part == "." || part == "..") {
        return refuse("has a part \".\" or \"..\"");
    }
    Ok(())
}

impl Location {
    /// The directory at an absolute path, as a relative `--archive` never is.
    ///
    /// # Errors
    /// `Invalid` for a path that is not absolute, not UTF-8, or has a part `..`.
    pub fn directory(path: &Path) -> Result<Self> {
        let plain = path
            .components()
            .all(|part| !matches!(part, Component::ParentDir));
        match path.to_str() {
            Some(text) if plain => format!("file://{text}").parse(),
            _ => Err(Error::invalid(format!(
                "{} cannot hold an archive; its path must be plain UTF-8 without \"..\"",
                path.display()
            ))),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Directory(path) => write!(f, "file://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_location_prints_as_it_is_read(text in "(s3://[a-z.]{1,4}|file://)(/[ a-c.%é-]{1,4}){0,4}/?") {
            if let Ok(location) = text.parse::<Location>() {
                let printed = location.to_string();
                prop_assert_eq!(&printed, text.strip_suffix('/').unwrap_or(&text));
                prop_assert_eq!(printed.parse::<Location>().unwrap(), location);
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String, scheme in "(s3|file)://") {
            let _ = text.parse::<Location>();
            let _ = format!("{scheme}{text}").parse::<Location>();
        }
    }

    #[test]
    fn urls_are_read() {
        let s3 = |bucket: &str, prefix: &str| Location::S3 {
            bucket: bucket.into(),
            prefix: prefix.into(),
        };
        assert_eq!("s3://b".parse::<Location>().unwrap(), s3("b", ""));
        assert_eq!("s3://b/".parse::<Location>().unwrap(), s3("b", ""));
        assert_eq!(
            "s3://my.bucket-1/a/b c/".parse::<Location>().unwrap(),
            s3("my.bucket-1", "a/b c")
        );
        let directory = Location::Directory("/srv/archive".into());
        assert_eq!("file:///srv/archive".parse::<Location>().unwrap(), directory);
        assert_eq!(Location::directory(Path::new("/srv/archive")).unwrap(), directory);
    }

    #[test]
    fn what_is_not_an_archives_url_is_refused_with_a_reason() {
        for (url, reason) in [
            ("", "scheme"),
            ("/srv/archive", "scheme"),
            ("s3:bucket", "scheme"),
            ("https://host/bucket", "cannot begin with \"https://\""),
            ("S3://bucket", "cannot begin"),
            ("s3://", "names no bucket"),
            ("s3:///prefix", "names no bucket"),
            ("s3://host:9000/bucket", "is not a bucket's name"),
            ("s3://b/a//c", "empty part"),
            ("s3://b/a//", "empty part"),
            ("s3://b/../c", "\"..\""),
            ("s3://b/a/./c", "\"..\""),
            ("s3://b/a?region=x", "query"),
            ("s3://b/a#x", "fragment"),
            ("s3://b/a\n", "control"),
            ("file://", "must be absolute"),
            ("file:///", "root directory"),
            ("file://srv/archive", "must be absolute"),
            ("file://./archive", "must be absolute"),
            ("file:///srv/../archive", "\"..\""),
            ("file:///srv//archive", "empty part"),
        ] {
            let error = url.parse::<Location>().expect_err(url).to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
        assert!(Location::directory(Path::new("srv/archive")).is_err());
        assert!(Location::directory(Path::new("/srv/../archive")).is_err());
    }

    #[test]
    fn a_password_in_a_url_is_not_repeated() {
        for url in [
            "s3://key:hunter2@bucket/prefix",
            "https://key:hunter2@host/bucket",
            "s3://bucket/key:hunter2@x",
            "hunter2",
            "file://key:hunter2@host/path",
        ] {
            let error = url.parse::<Location>().expect_err(url);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }
}
