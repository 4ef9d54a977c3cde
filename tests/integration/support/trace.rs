//! What the built binary asks of the kernel, call by call, as `strace` sees it; and a kernel that
//! refuses or takes its time, for what no other fault reaches.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::process::{Output, Running};
use super::scratch;
use super::walship::Walship;

/// One system call of the program, with its place in the order of all of them.
#[derive(Debug, Clone)]
pub struct Call {
    pub name: String,
    /// The paths it names, those of its open files too.
    pub paths: Vec<PathBuf>,
    /// Everything between its brackets.
    pub arguments: String,
    pub failed: bool,
    /// When it began and when it was over.
    pub begun: usize,
    pub ended: usize,
}

impl Call {
    /// The path that it works on or, where there are two, that it comes from.
    pub fn path(&self) -> &Path {
        self.paths.first().map_or(Path::new(""), PathBuf::as_path)
    }

    /// The last path it names: the new name, of a rename or link.
    pub fn target(&self) -> &Path {
        self.paths.last().map_or(Path::new(""), PathBuf::as_path)
    }

    pub fn is_one_of(&self, names: &[&str]) -> bool {
        names.contains(&self.name.as_str())
    }
}

/// The calls that change or secure files, in the order in which they began.
#[derive(Debug)]
pub struct Trace(pub Vec<Call>);

const TRACED: &str = "creat,openat,write,writev,pwrite64,pwritev,pwritev2,copy_file_range,ftruncate,fsync,fdatasync,\
                      syncfs,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,\
                      rmdir,exit_group";

impl Trace {
    /// Runs walship to its end and tells what it did.
    #[track_caller]
    pub fn of<S: AsRef<OsStr>>(walship: &Walship, args: &[S]) -> (Output, Self) {
        let folder = scratch();
        let file = folder.path().join("trace");
        let file_text = file.to_str().expect("a path in UTF-8");
        let trace = format!("trace={TRACED}");
        let options = [
            "-f",
            "-y",
            "-qq",
            "-s",
            "0",
            "-e",
            "signal=none",
            "-e",
            &trace,
            "-o",
            file_text,
        ];
        let output = under_strace(walship, &options, args);
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("no trace ({e}): {output:#?}"));
        (output, Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut calls: Vec<Call> = Vec::new();
        let mut unfinished: HashMap<String, usize> = HashMap::new();
        for (now, line) in text.lines().enumerate() {
            let Some((thread, rest)) = line.split_once(' ') else {
                continue;
            };
            let rest = rest.trim_start();
            if let Some((_, end)) = rest
                .strip_prefix("<... ")
                .and_then(|rest| rest.split_once(" resumed>"))
            {
                let call = unfinished.remove(thread).and_then(|index| calls.get_mut(index));
                if let Some(call) = call {
                    call.ended = now;
                    call.failed = end.contains(" = -1 ");
                }
                continue;
            }
            let Some((name, arguments)) = rest.split_once('(') else {
                continue;
            };
            let cut = arguments.strip_suffix(" <unfinished ...>");
            if cut.is_some() {
                unfinished.insert(thread.to_owned(), calls.len());
            }
            let arguments = cut.unwrap_or(arguments);
            calls.push(Call {
                name: name.to_owned(),
                paths: paths(arguments),
                arguments: arguments.to_owned(),
                failed: cut.is_none() && arguments.contains(" = -1 "),
                begun: now,
                // Never, for the one during which the program ended.
                ended: if cut.is_some() { usize::MAX } else { now },
            });
        }
        Self(calls)
    }

    /// The calls of these names that succeeded.
    pub fn calls<'a>(&'a self, names: &'a [&str]) -> impl Iterator<Item = &'a Call> {
        self.0.iter().filter(|call| call.is_one_of(names) && !call.failed)
    }

    /// The moment at which the program said that it is done.
    pub fn end(&self) -> usize {
        self.calls(&["exit_group"])
            .next()
            .expect("the program ended by itself")
            .begun
    }

    /// Whether this was fsynced, begun and over in this span of time.
    pub fn is_synced(&self, path: &Path, after: usize, before: usize) -> bool {
        self.calls(&["fsync"])
            .any(|call| call.path() == path && call.begun > after && call.ended < before)
    }
}

/// The paths in `AT_FDCWD</a/folder>, "name"`, or in `3</a/file>` where the call has no other.
fn paths(arguments: &str) -> Vec<PathBuf> {
    let (mut named, mut open) = (Vec::new(), Vec::new());
    let mut rest = arguments;
    while let Some(start) = rest.find(['"', '<']) {
        let is_name = rest.as_bytes()[start] == b'"';
        rest = &rest[start + 1..];
        let Some(end) = rest.find(if is_name { '"' } else { '>' }) else {
            break;
        };
        let path = Path::new(&rest[..end]);
        if is_name {
            named.push(
                open.last()
                    .map_or(path.to_owned(), |folder: &PathBuf| folder.join(path)),
            );
        } else {
            open.push(path.to_owned());
        }
        rest = &rest[end + 1..];
    }
    if named.is_empty() { open } else { named }
}

/// Runs walship with a kernel that does `fault` to its calls, as `strace --inject` has it
/// (`fsync:error=EIO`), where they concern one of these paths.
#[track_caller]
pub fn with_fault<S: AsRef<OsStr>>(walship: &Walship, fault: &str, at: &[&Path], args: &[S]) -> Output {
    faulted(walship, fault, at, args).0
}

/// As [`with_fault`]; tells also which files had it done to them. A fault's `when` counts the calls of
/// each thread by itself.
#[track_caller]
pub fn faulted<S: AsRef<OsStr>>(
    walship: &Walship,
    fault: &str,
    at: &[&Path],
    args: &[S],
) -> (Output, Vec<PathBuf>) {
    let folder = scratch();
    let file = folder.path().join("trace");
    let inject = format!("inject={fault}");
    let file_text = file.to_str().expect("a path in UTF-8");
    let mut options = vec![
        "-f",
        "-y",
        "-qq",
        "-e",
        "signal=none",
        "-e",
        &inject,
        "-o",
        file_text,
    ];
    // A call may name it relative to the directory of its archive, or to its own.
    let named = at.iter().flat_map(|path| {
        let path = path.to_str().expect("a path in UTF-8");
        let shorter = path.match_indices('/').map(|(slash, _)| &path[slash + 1..]);
        std::iter::once(path).chain(shorter)
    });
    for path in named {
        options.extend(["-P", path]);
    }
    let output = under_strace(walship, &options, args);
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("no trace ({e}): {output:#?}"));
    let injected = text.lines().filter(|line| line.contains("(INJECTED)"));
    (output, injected.flat_map(paths).collect())
}

/// How often walship makes this system call. It must succeed.
#[track_caller]
pub fn count<S: AsRef<OsStr>>(walship: &Walship, call: &str, args: &[S]) -> usize {
    let folder = scratch();
    let file = folder.path().join("trace");
    let trace = format!("trace={call}");
    let file_text = file.to_str().expect("a path in UTF-8");
    let options = ["-f", "-qq", "-e", "signal=none", "-e", &trace, "-o", file_text];
    let output = under_strace(walship, &options, args).succeeded();
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("no trace ({e}): {output:#?}"));
    text.matches(&format!("{call}(")).count()
}

#[track_caller]
fn under_strace<S: AsRef<OsStr>>(walship: &Walship, options: &[&str], args: &[S]) -> Output {
    let mut command = walship.command_under("strace", options, args);
    Running::start(&mut command).wait(walship.patience())
}
