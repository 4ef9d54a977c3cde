//! How another process starts this very program with the same settings.

use std::path::Path;

use crate::config::{DEFAULT_FILE, Settings};
use crate::error::{Error, Result};
use crate::store::Location;

use super::absolute;

/// Variables that tell the AWS SDK where and with which profile to work. None of them is a secret.
const AWS_VARIABLES: [&str; 7] = [
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
];

/// The words that start this program with the same settings, for the recovered server's
/// `restore_command`. Settings from elsewhere than the file become environment variables. None of them
/// is a secret; credentials are not passed on.
pub fn this_walship(settings: &Settings) -> Result<Vec<String>> {
    let (file, mut variables) = settings.to_reproduce();
    let aws: Vec<_> = AWS_VARIABLES
        .iter()
        .filter_map(|name| Some((*name, std::env::var(name).ok()?)))
        .collect();
    match settings.archive()? {
        Location::S3 { .. } => variables.extend(
            aws.iter()
                .map(|(name, value)| ((*name).to_owned(), value.as_str())),
        ),
        Location::Directory(_) => {}
    }
    let mut words = Vec::new();
    if !variables.is_empty() {
        words.push("env".to_owned());
        words.extend(variables.iter().map(|(name, value)| format!("{name}={value}")));
    }
    let program = std::env::current_exe().map_err(|error| Error::io("find this program", error))?;
    words.push(text_of(&program)?);
    if let Some(file) = file.filter(|file| *file != Path::new(DEFAULT_FILE)) {
        words.extend(["--config".to_owned(), text_of(&absolute(file)?)?]);
    }
    Ok(words)
}

fn text_of(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Error::invalid(format!("the path {} is not UTF-8", path.display())))
}
