//! Running programs: their output, their end, and the processes below them.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How a program ended, and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit code; none when a signal ended the program.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Panics with everything known unless the program ended with 0; returns it otherwise.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert!(self.code == Some(0), "the program failed: {self:#?}");
        self
    }

    /// Panics with everything known unless the program ended with this code; returns it otherwise.
    #[track_caller]
    pub fn exited(self, code: i32) -> Self {
        assert!(
            self.code == Some(code),
            "the program should have ended with {code}: {self:#?}"
        );
        self
    }
}

/// A program under way, with both outputs being read. Killed when dropped.
pub struct Running {
    child: Child,
    what: String,
    stdout: Option<thread::JoinHandle<String>>,
    stderr: Option<thread::JoinHandle<String>>,
}

impl Running {
    /// Starts the command; its outputs are read by threads, so that it never blocks on them.
    pub fn start(command: &mut Command) -> Self {
        let what = format!("{command:?}");
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("start {what}: {e}"));
        let stdout = read_all(child.stdout.take().expect("a piped stdout"));
        let stderr = read_all(child.stderr.take().expect("a piped stderr"));
        Self {
            child,
            what,
            stdout: Some(stdout),
            stderr: Some(stderr),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it ended?
    pub fn has_ended(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("ask for the child's state")
            .is_some()
    }

    /// Sends SIGKILL; [`Running::wait`] then tells what was left behind on its outputs.
    pub fn kill9(&mut self) {
        self.child.kill().expect("kill the child");
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        signal(self.child.id(), rustix::process::Signal::TERM);
    }

    /// Waits for the end; kills the program and panics when the time is up.
    #[track_caller]
    pub fn wait(mut self, timeout: Duration) -> Output {
        let deadline = Instant::now() + timeout;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("ask for the child's state") {
                break status;
            }
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                let stderr = self.stderr.take().expect("read once").join().expect("reader");
                panic!("killed after {timeout:?}: {}\n{stderr}", self.what);
            }
            thread::sleep(Duration::from_millis(2));
        };
        self.finish(status)
    }

    fn finish(&mut self, status: ExitStatus) -> Output {
        let text = |reader: Option<thread::JoinHandle<String>>| {
            reader
                .expect("read once")
                .join()
                .expect("the reader does not panic")
        };
        Output {
            code: status.code(),
            signal: status.signal(),
            stdout: text(self.stdout.take()),
            stderr: text(self.stderr.take()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_all(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Sends a signal to a process this test started; one that has ended already is no error.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .expect("a pid");
    let _ = rustix::process::kill_process(pid, signal);
}

/// Every process below `root`, each with its start time, which tells it from a later one of the
/// same number.
pub fn descendants(root: u32) -> Vec<(u32, u64)> {
    let all: Vec<(u32, u32, u64)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| stat(pid).map(|(parent, started)| (pid, parent, started)))
        .collect();
    let mut found = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for &(pid, _, started) in all.iter().filter(|(_, of, _)| *of == parent) {
            found.push((pid, started));
            parents.push(pid);
        }
    }
    found
}

/// When a living process was started; none when it has ended.
pub fn start_time(pid: u32) -> Option<u64> {
    stat(pid).map(|(_, started)| started)
}

/// Parent and start time of a living process (a zombie has ended).
fn stat(pid: u32) -> Option<(u32, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    match fields.first()? {
        &"Z" | &"X" => None,
        _ => Some((fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?)),
    }
}
