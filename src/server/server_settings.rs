//! The value of a setting for the server of a data directory, without asking the server. Its command line, which it
//! notes in `postmaster.opts`, wins over its files, and `postgresql.auto.conf` wins over the other files.
//!
//! Sources: `CreateOptsFile` and the options of `PostmasterMain` (`postmaster.c`), `SelectConfigFiles` and
//! `ParseLongOption` (`guc.c`), the same in PostgreSQL 14 to 18. A file that was changed since the server started
//! counts as it is now.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::pg::configuration_files::{ConfigurationFiles, Files, Grammar};

/// What was found out about a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setting {
    /// Its value, or that nothing sets it.
    Known(Option<Vec<u8>>),
    /// The server reads a file that was not found.
    Unknown,
}

/// The value of a setting for the server of a data directory. The name is in lower case.
///
/// # Errors
/// `Internal` where a file of its configuration cannot be read.
pub fn setting_of_server(data_directory: &Path, name: &str) -> Result<Setting> {
    let unreadable = |path: &Path, error| Error::io(format!("read {}", path.display()), error);
    let directory =
        std::fs::canonicalize(data_directory).map_err(|error| unreadable(data_directory, error))?;
    let options = directory.join("postmaster.opts");
    let command_line = match std::fs::read(&options) {
        Ok(line) => CommandLine::parse(&line),
        Err(error) if error.kind() == ErrorKind::NotFound => CommandLine::default(),
        Err(error) => return Err(unreadable(&options, error)),
    };
    if let Some(value) = command_line.value(name) {
        return Ok(Setting::Known(Some(value.to_vec())));
    }
    let Some(main) = command_line.configuration_file(&directory) else {
        return Ok(Setting::Unknown);
    };
    let mut disk = Disk(None);
    let mut found = ConfigurationFiles::default();
    found.follow(&main, Grammar::Settings, &mut disk);
    let auto = directory.join("postgresql.auto.conf");
    if auto.exists() {
        found.follow(&auto, Grammar::Settings, &mut disk);
    }
    if let Some(error) = disk.0 {
        return Err(error);
    }
    if found.missing.is_empty() {
        Ok(Setting::Known(found.value(name).map(<[u8]>::to_vec)))
    } else {
        Ok(Setting::Unknown)
    }
}

/// The command line of a server, as far as it matters.
#[derive(Debug, Default, PartialEq, Eq)]
struct CommandLine {
    settings: Vec<(String, Vec<u8>)>,
    /// The value of `-D`: where the configuration file is, as a rule the data directory itself.
    directory: Option<PathBuf>,
}

impl CommandLine {
    /// The program's path, and then each argument in quotes.
    fn parse(line: &[u8]) -> Self {
        let mut found = Self::default();
        let mut arguments = quoted(line).into_iter();
        while let Some(argument) = arguments.next() {
            if let Some(long) = argument.strip_prefix(b"--") {
                found.set(long);
            } else if let Some(rest) = argument.strip_prefix(b"-c") {
                found.set(&value_of_flag(rest, &mut arguments));
            } else if let Some(rest) = argument.strip_prefix(b"-D") {
                let directory = value_of_flag(rest, &mut arguments);
                found.directory = Some(PathBuf::from(OsStr::from_bytes(&directory)));
            }
        }
        found
    }

    /// Takes `name=value`; dashes in a name stand for underscores.
    fn set(&mut self, setting: &[u8]) {
        let Some(at) = setting.iter().position(|byte| *byte == b'=') else {
            return;
        };
        let (name, value) = setting.split_at(at);
        let name = String::from_utf8_lossy(name)
            .to_ascii_lowercase()
            .replace('-', "_");
        self.settings
            .push((name, value.get(1..).unwrap_or_default().to_vec()));
    }

    fn value(&self, name: &str) -> Option<&[u8]> {
        let mut values = self.settings.iter().rev();
        values.find_map(|(found, value)| (found == name).then_some(value.as_slice()))
    }

    /// The main configuration file. A relative path counts from where the server was started, which nobody knows.
    fn configuration_file(&self, data_directory: &Path) -> Option<PathBuf> {
        if let Some(named) = self.value("config_file") {
            let named = PathBuf::from(OsStr::from_bytes(named));
            return named.is_absolute().then_some(named);
        }
        let of_flag = self.directory.as_deref().filter(|path| path.is_absolute());
        [of_flag, Some(data_directory)]
            .into_iter()
            .flatten()
            .map(|directory| directory.join("postgresql.conf"))
            .find(|file| file.exists())
    }
}

/// The arguments in quotes. A quote within an argument looks like its end; the rest of the argument then sets nothing.
fn quoted(line: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = line;
    let mut found = Vec::new();
    while let Some(start) = find(rest, b" \"") {
        rest = rest.get(start + 2..).unwrap_or_default();
        let end = find(rest, b"\" \"").or_else(|| rest.iter().rposition(|byte| *byte == b'"'));
        let (argument, after) = rest.split_at(end.unwrap_or(rest.len()));
        found.push(argument.to_vec());
        rest = after.get(1..).unwrap_or_default();
    }
    found
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|found| found == wanted)
}

/// The value of a flag: what is attached to it, or the next argument.
fn value_of_flag(attached: &[u8], arguments: &mut impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    if attached.is_empty() {
        arguments.next().unwrap_or_default()
    } else {
        attached.to_vec()
    }
}

/// The file system. A file that is there and cannot be read is an error, unlike one that is missing.
struct Disk(Option<Error>);

impl Disk {
    fn keep<T>(&mut self, path: &Path, result: std::io::Result<T>) -> Option<T> {
        result
            .map_err(|error| {
                if error.kind() != ErrorKind::NotFound {
                    self.0 = Some(Error::io(format!("read {}", path.display()), error));
                }
            })
            .ok()
    }
}

impl Files for Disk {
    fn read(&mut self, path: &Path) -> Option<Vec<u8>> {
        self.keep(path, std::fs::read(path))
    }

    fn list(&mut self, directory: &Path) -> Option<Vec<PathBuf>> {
        let entries = std::fs::read_dir(directory).and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.path()))
                .collect::<std::io::Result<_>>()
        });
        self.keep(directory, entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(value: &str) -> Setting {
        Setting::Known(Some(value.as_bytes().to_vec()))
    }

    #[test]
    fn the_command_line_wins_over_automatic_settings_and_those_over_included_files() {
        let top = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(top.path().join(file), text).unwrap();
        let found = || setting_of_server(top.path(), "recovery_target_timeline").unwrap();
        assert_eq!(found(), Setting::Unknown, "its configuration is elsewhere");
        write("postgresql.conf", "include_dir = 'more'\n");
        assert_eq!(found(), Setting::Unknown, "a server does not start like that");
        std::fs::create_dir(top.path().join("more")).unwrap();
        assert_eq!(found(), Setting::Known(None));
        write("more/1.conf", "Recovery_Target_Timeline = 3");
        assert_eq!(found(), known("3"));
        write("postgresql.auto.conf", "recovery_target_timeline = 'current'\n");
        assert_eq!(found(), known("current"));
        write(
            "postmaster.opts",
            "/usr/bin/postgres \"-D\" \"data\" \"-c\" \"recovery_target_timeline=7\"\n",
        );
        assert_eq!(found(), known("7"));
        write(
            "postmaster.opts",
            "/usr/bin/postgres \"--recovery-target-timeline=8\" \"-cport=5\"\n",
        );
        assert_eq!(found(), known("8"));
        // Debian keeps it elsewhere.
        let elsewhere = tempfile::tempdir().unwrap();
        let main = elsewhere.path().join("main.conf");
        std::fs::write(&main, "recovery_target_timeline = 9\n").unwrap();
        write("postgresql.auto.conf", "");
        write(
            "postmaster.opts",
            &format!(
                "/usr/bin/postgres \"-D\" \"x\" \"-c\" \"config_file={}\"\n",
                main.display()
            ),
        );
        assert_eq!(found(), known("9"));
        std::fs::remove_file(&main).unwrap();
        assert_eq!(found(), Setting::Unknown);
        std::fs::create_dir(&main).unwrap();
        assert!(setting_of_server(top.path(), "recovery_target_timeline").is_err());
    }

    #[test]
    fn a_command_line_is_read_argument_by_argument() {
        let line = b"/bin/postgres \"-D\" \"/a b\" \"-c\" \"x.y='1 \"2\" 3'\" \"-ca=b\" \"-i\" \"--c-d=\"\n";
        let found = CommandLine::parse(line);
        assert_eq!(found.directory.as_deref(), Some(Path::new("/a b")));
        assert_eq!(found.value("a"), Some(&b"b"[..]));
        assert_eq!(found.value("c_d"), Some(&b""[..]));
        assert_eq!(CommandLine::parse(b""), CommandLine::default());
        assert_eq!(CommandLine::parse(b"/bin/postgres \"-c"), CommandLine::default());
    }
}
