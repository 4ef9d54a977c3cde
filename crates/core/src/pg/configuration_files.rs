//! Which files a server reads as its configuration: what `postgresql.conf`, `pg_hba.conf` and `pg_ident.conf` include,
//! and what those include.
//!
//! Sources: `ProcessConfigFile`, `AbsoluteConfigLocation` and `GetConfFilesInDir` (`guc-file.l` in 14,
//! `guc-file.l` and `conffiles.c` from 15 on), `tokenize_auth_file` and `next_token` (`hba.c`). Included files of
//! `pg_hba.conf` and `pg_ident.conf` by directives came with 16; lists in `@file` have always been there.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::guc_file;

/// PostgreSQL refuses deeper nesting (`CONF_FILE_MAX_DEPTH`, `conffiles.h`).
const MAX_DEPTH: u32 = 10;
/// The limit for files that include one another in many ways.
const MAX_FILES_READ: u32 = 4096;

/// The grammar of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grammar {
    /// `postgresql.conf` and what it includes.
    Settings,
    /// `pg_hba.conf`, `pg_ident.conf` and what they include.
    Rules,
}

/// What a file includes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Include {
    File {
        path: PathBuf,
        required: bool,
    },
    /// Its files that end in `.conf`.
    Directory(PathBuf),
}

/// Where configuration files are read from: the file system, or a backup.
pub trait Files {
    /// The content of a file; `None` where it cannot be read.
    fn read(&mut self, path: &Path) -> Option<Vec<u8>>;

    /// The paths of the files in a directory; `None` where it cannot be read.
    fn list(&mut self, directory: &Path) -> Option<Vec<PathBuf>>;
}

/// What a server reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigurationFiles {
    /// Files that were read.
    pub files: BTreeSet<PathBuf>,
    /// Directories that are included.
    pub directories: BTreeSet<PathBuf>,
    /// Files and directories that the server needs but that could not be read.
    pub missing: BTreeSet<PathBuf>,
    /// Files that the server does without where they are missing.
    optional: BTreeSet<PathBuf>,
    /// Every value that the files give to a setting, by name in lower case, in the order in which the server
    /// reads them: the last one counts.
    pub settings: Vec<(String, Vec<u8>)>,
    files_read: u32,
}

impl ConfigurationFiles {
    /// Adds a file and all that it leads to.
    pub fn follow(&mut self, path: &Path, grammar: Grammar, files: &mut impl Files) {
        self.enter(path, true, grammar, files, 0);
    }

    /// The value that counts of a setting.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        let mut values = self.settings.iter().rev();
        values.find_map(|(found, value)| (found == name).then_some(value.as_slice()))
    }

    fn enter(&mut self, path: &Path, required: bool, grammar: Grammar, files: &mut impl Files, depth: u32) {
        if depth > MAX_DEPTH || self.files_read >= MAX_FILES_READ {
            return;
        }
        self.files_read += 1;
        let Some(content) = files.read(path) else {
            let absent = if required {
                &mut self.missing
            } else {
                &mut self.optional
            };
            absent.insert(path.to_owned());
            return;
        };
        self.files.insert(path.to_owned());
        match grammar {
            Grammar::Settings => self.enter_settings(path, &content, files, depth),
            Grammar::Rules => {
                for include in includes_of_rules(path, &content) {
                    self.include(include, grammar, files, depth);
                }
            }
        }
    }

    fn enter_settings(&mut self, path: &Path, content: &[u8], files: &mut impl Files, depth: u32) {
        for line in content.split(|byte| *byte == b'\n') {
            let Some((name, value)) = guc_file::setting(line) else {
                continue;
            };
            match include_of_setting(&name, &value, path) {
                Some(include) => self.include(include, Grammar::Settings, files, depth),
                None => self.settings.push((name, value)),
            }
        }
    }

    fn include(&mut self, include: Include, grammar: Grammar, files: &mut impl Files, depth: u32) {
        match include {
            Include::File { path, required } => self.enter(&path, required, grammar, files, depth + 1),
            Include::Directory(directory) => {
                let Some(mut listed) = files.list(&directory) else {
                    self.missing.insert(directory);
                    return;
                };
                self.directories.insert(directory);
                listed.retain(|path| is_included(path));
                listed.sort();
                for path in listed {
                    self.enter(&path, true, grammar, files, depth + 1);
                }
            }
        }
    }
}

/// Whether `include_dir` takes a file of this name.
fn is_included(path: &Path) -> bool {
    let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
    name.len() > b".conf".len() && !name.starts_with(b".") && name.ends_with(b".conf")
}

fn include_of_setting(name: &str, value: &[u8], file: &Path) -> Option<Include> {
    match name {
        "include" => Some(file_include(value, file, true)),
        "include_if_exists" => Some(file_include(value, file, false)),
        "include_dir" => Some(Include::Directory(beside(value, file))),
        _ => None,
    }
}

fn file_include(value: &[u8], file: &Path, required: bool) -> Include {
    Include::File {
        path: beside(value, file),
        required,
    }
}

/// A relative path counts from the folder of the file that names it.
fn beside(path: &[u8], file: &Path) -> PathBuf {
    let folder = file.parent().unwrap_or(Path::new("/"));
    let path = folder.join(PathBuf::from(std::ffi::OsString::from_vec(path.to_vec())));
    // As canonicalize_path (path.c): without `.` and `..`, and without looking at links.
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                plain.pop();
            }
            std::path::Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

/// `@file` in any field, and the directives, which are the first field of a line.
fn includes_of_rules(file: &Path, content: &[u8]) -> Vec<Include> {
    let mut found = Vec::new();
    for line in logical_lines(content) {
        let tokens = tokens(&line);
        match tokens.as_slice() {
            [directive, path] if !directive.quoted => match directive.text.as_slice() {
                b"include" => found.push(file_include(&path.text, file, true)),
                b"include_if_exists" => found.push(file_include(&path.text, file, false)),
                b"include_dir" => found.push(Include::Directory(beside(&path.text, file))),
                _ => found.extend(lists(&tokens, file)),
            },
            _ => found.extend(lists(&tokens, file)),
        }
    }
    found
}

/// A list that cannot be read makes its line match nothing; the server starts.
fn lists(tokens: &[Token], file: &Path) -> Vec<Include> {
    let at_file = |token: &Token| {
        let name = token.text.strip_prefix(b"@").filter(|_| !token.quoted)?;
        (!name.is_empty()).then(|| file_include(name, file, true))
    };
    tokens.iter().filter_map(at_file).collect()
}

/// Lines, each with those that go on after a backslash at its end.
fn logical_lines(content: &[u8]) -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = Vec::new();
    let mut goes_on = false;
    for line in content.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let rest = line.strip_suffix(b"\\");
        match lines.last_mut().filter(|_| goes_on) {
            Some(last) => last.extend_from_slice(rest.unwrap_or(line)),
            None => lines.push(rest.unwrap_or(line).to_vec()),
        }
        goes_on = rest.is_some();
    }
    lines
}

struct Token {
    text: Vec<u8>,
    /// Whether it begins with a quote: then an `@`, or a directive's name, is only text.
    quoted: bool,
}

/// The fields of a line; commas separate fields too.
fn tokens(line: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut token: Option<Token> = None;
    let mut in_quote = false;
    let mut bytes = line.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'#' if !in_quote => break,
            b' ' | b'\t' | b'\r' | b',' if !in_quote => tokens.extend(token.take()),
            b'"' if in_quote && bytes.peek() == Some(&b'"') => {
                bytes.next();
                if let Some(token) = &mut token {
                    token.text.push(b'"');
                }
            }
            b'"' => {
                in_quote = !in_quote;
                token.get_or_insert(Token {
                    text: Vec::new(),
                    quoted: true,
                });
            }
            other => {
                let token = token.get_or_insert(Token {
                    text: Vec::new(),
                    quoted: false,
                });
                token.text.push(other);
            }
        }
    }
    tokens.extend(token);
    tokens
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    struct Memory(BTreeMap<PathBuf, &'static str>);

    impl Files for Memory {
        fn read(&mut self, path: &Path) -> Option<Vec<u8>> {
            self.0.get(path).map(|text| text.as_bytes().to_vec())
        }

        fn list(&mut self, directory: &Path) -> Option<Vec<PathBuf>> {
            let within = self.0.keys().filter(|path| path.parent() == Some(directory));
            let within: Vec<_> = within.cloned().collect();
            (!within.is_empty()).then_some(within)
        }
    }

    fn walk(root: &str, grammar: Grammar, files: &[(&str, &'static str)]) -> ConfigurationFiles {
        let mut memory = Memory(
            files
                .iter()
                .map(|(path, text)| (PathBuf::from(path), *text))
                .collect(),
        );
        let mut found = ConfigurationFiles::default();
        found.follow(Path::new(root), grammar, &mut memory);
        found
    }

    fn paths<'a>(paths: impl IntoIterator<Item = &'a str>) -> BTreeSet<PathBuf> {
        paths.into_iter().map(PathBuf::from).collect()
    }

    #[test]
    fn what_settings_include_is_read_in_the_servers_order_and_the_last_value_counts() {
        let found = walk(
            "/etc/pg/postgresql.conf",
            Grammar::Settings,
            &[
                (
                    "/etc/pg/postgresql.conf",
                    "work_mem = 1\ninclude_dir 'conf.d' # more\nInclude = '../must'\ninclude_if_exists 'none.conf'\nport = 2\n",
                ),
                ("/etc/pg/conf.d/b.conf", "work_mem = 3\nport = 1"),
                ("/etc/pg/conf.d/a.conf", "WORK_MEM = 2"),
                ("/etc/pg/conf.d/.hidden.conf", "work_mem = 9"),
                ("/etc/pg/conf.d/readme", "work_mem = 9"),
                ("/etc/must", "include 'gone'\n"),
            ],
        );
        assert_eq!(
            found.files,
            paths([
                "/etc/must",
                "/etc/pg/conf.d/a.conf",
                "/etc/pg/conf.d/b.conf",
                "/etc/pg/postgresql.conf"
            ])
        );
        assert_eq!(found.directories, paths(["/etc/pg/conf.d"]));
        assert_eq!(found.missing, paths(["/etc/gone"]));
        assert_eq!(found.optional, paths(["/etc/pg/none.conf"]));
        assert_eq!(found.value("work_mem"), Some(&b"3"[..]));
        assert_eq!(found.value("port"), Some(&b"2"[..]));
        assert_eq!(found.value("wal_level"), None);
    }

    #[test]
    fn rules_name_lists_and_files() {
        let found = walk(
            "/d/pg_hba.conf",
            Grammar::Rules,
            &[
                (
                    "/d/pg_hba.conf",
                    "local @dbs,all @\"a b\" trust # @no\nlocal all \"@role\" trust\nhost all \\\n@deep all trust\n\
                     include_dir rules\ninclude_if_exists later\ninclude now\nlocal all @ trust\n",
                ),
                ("/d/dbs", "x @more y\n"),
                ("/d/more", "z"),
                ("/d/a b", "role"),
                ("/d/deep", "role"),
                ("/d/rules/1.conf", "local all all trust"),
            ],
        );
        let read = ["pg_hba.conf", "dbs", "more", "a b", "deep", "rules/1.conf"];
        let read = read.map(|name| PathBuf::from(format!("/d/{name}")));
        assert_eq!(found.files, read.into_iter().collect());
        assert_eq!(found.missing, paths(["/d/now"]));
        assert_eq!(found.optional, paths(["/d/later"]));
    }

    #[test]
    fn a_file_that_includes_itself_comes_to_an_end() {
        let found = walk("/a", Grammar::Settings, &[("/a", "include 'a'\ninclude 'a'")]);
        assert_eq!(found.files, paths(["/a"]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_walk_panic(content: Vec<u8>) {
            let file = Path::new("/d/f");
            let _ = includes_of_rules(file, &content);
            let mut found = ConfigurationFiles::default();
            found.enter_settings(file, &content, &mut Memory(BTreeMap::new()), 0);
        }
    }
}
