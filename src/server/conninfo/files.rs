//! The local files that connection settings come from, and the name of the user who runs walship.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Error, Result};

/// A file's text; none where there is no such file.
pub(super) fn read_optional(path: &Path) -> Result<Option<String>> {
    match std::fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| Error::invalid(format!("{} is not UTF-8 text; correct the file", path.display()))),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(Error::io(format!("read {}", path.display()), error)),
    }
}

/// The text of a password file. One that others can read is ignored with a warning, as libpq does,
/// and so is one that cannot be read at all.
pub(super) fn read_passfile(path: &Path) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() {
        tracing::warn!(path = %path.display(), "the password file is not a plain file and is ignored");
        return None;
    }
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(),
            "the password file can be read by group or others and is ignored; run chmod 0600 on it"
        );
        return None;
    }
    match read_optional(path) {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!("the password file is ignored: {error}");
            None
        }
    }
}

/// The name of the user who runs this process, libpq's default role.
pub fn os_user() -> Option<String> {
    user_name(rustix::process::geteuid().as_raw())
}

/// The name of a user of this machine.
pub fn user_name(uid: u32) -> Option<String> {
    user_in(&read_optional(Path::new("/etc/passwd")).ok()??, uid)
}

fn user_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_user_is_found_by_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbroken\npostgres:x:101:104::/:/bin/sh\n";
        assert_eq!(user_in(passwd, 101).as_deref(), Some("postgres"));
        assert_eq!(user_in(passwd, 104), None);
    }

    #[test]
    fn a_password_file_others_can_read_is_ignored() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "*:*:*:*:p").unwrap();
        for (mode, read) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_passfile(file.path()).is_some(), read, "{mode:o}");
        }
    }
}
