//! Which keys a store takes: those that every S3 server and file system understands alike.

use super::directory::TEMPORARY;
use walship_core::{Error, Result};

/// Bytes of a key; S3 allows 1024 with the archive's prefix, and file names have 255.
const LONGEST: usize = 768;

/// Refuses a key that could leave the archive, or that some store cannot hold.
pub(super) fn check(key: &str) -> Result<()> {
    let refuse = |why: &str| {
        Err(Error::invalid(format!(
            "the key \"{}\" {why}",
            key.escape_debug()
        )))
    };
    if key.len() > LONGEST || key.split('/').any(|part| part.len() > 255) {
        return refuse("is too long");
    }
    if key.chars().any(char::is_control) {
        return refuse("has a control character");
    }
    if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return refuse("has an empty part, \".\" or \"..\"");
    }
    if key.split('/').any(|part| part.starts_with(TEMPORARY)) {
        return refuse("has the name of a temporary file");
    }
    Ok(())
}

/// Refuses the prefix of a listing unless keys could begin with it.
pub(super) fn check_prefix(prefix: &str) -> Result<()> {
    match prefix.rsplit_once('/') {
        Some((folder, _)) => check(folder),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_cannot_leave_the_archive() {
        for key in [
            "",
            "/",
            "/etc",
            "a/../b",
            "..",
            ".",
            "a//b",
            "a/",
            "a\0b",
            "a\nb",
            "x/.walship-1",
        ] {
            assert!(check(key).is_err(), "{key:?}");
        }
    }

    #[test]
    fn odd_but_harmless_keys_are_taken() {
        for key in [
            "a",
            "a b",
            "...",
            "a/b+c&d=e%41",
            "walship.probe",
            "~!@$^*()'\",;:?#[]{}|<>\\`",
        ] {
            check(key).unwrap();
        }
    }

    proptest! {
        #[test]
        fn a_key_that_is_taken_stays_below_its_root(key in "[a-c./]{0,12}") {
            if check(&key).is_ok() {
                let path = std::path::Path::new(&key);
                prop_assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))));
                prop_assert_eq!(path.to_str(), Some(key.as_str()));
            }
        }
    }
}
