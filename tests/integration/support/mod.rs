//! What the integration tests stand on: real PostgreSQL servers, real object stores, the built
//! binary, and a network that fails on demand.
//!
//! Programs come from `scripts/tools`. `PostgreSQL` refuses to run as root: where the tests do, the
//! servers and walship run as `WALSHIP_TEST_USER` (default `postgres`), and everything they touch
//! lies in folders below `/tmp` made by [`scratch`]. Helpers panic with the whole story (command,
//! output, log), since a failing test has nothing else to show.

// Each test binary compiles this module for itself and uses a part of it. A helper that fails
// should end its test.
#![allow(
    dead_code,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::print_stderr,
    clippy::unwrap_used
)]

pub mod patroni;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod stores;
pub mod trace;
pub mod walship;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The project's folder.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `scripts/tools` and returns the last line of its output.
pub fn tools(args: &[&str]) -> String {
    let output = Command::new(project().join("scripts/tools"))
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("run scripts/tools");
    assert!(
        output.status.success(),
        "scripts/tools {args:?} failed: {}",
        output.status
    );
    let text = String::from_utf8(output.stdout).expect("a path in UTF-8");
    text.lines()
        .last()
        .expect("scripts/tools prints what it installed")
        .to_owned()
}

/// Who runs servers and walship.
#[derive(Debug)]
pub struct TestUser {
    pub name: String,
    /// Set when the tests run as root and so must change to this user.
    ids: Option<(u32, u32)>,
}

/// The user of this test run, looked up (and made, if missing) once.
pub fn user() -> &'static TestUser {
    static USER: OnceLock<TestUser> = OnceLock::new();
    USER.get_or_init(|| {
        let name = tools(&["user"]);
        let ids = rustix::process::geteuid().is_root().then(|| {
            let id = |which: &str| -> u32 {
                let output = Command::new("id").args([which, &name]).output().expect("run id");
                String::from_utf8_lossy(&output.stdout)
                    .trim()
                    .parse()
                    .expect("a number from id")
            };
            (id("-u"), id("-g"))
        });
        TestUser { name, ids }
    })
}

/// A command that will run as the test user, with an empty environment but for `PATH`.
pub fn command_as_user(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command
        .env_clear()
        .env(
            "PATH",
            std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()),
        )
        .current_dir("/")
        .stdin(Stdio::null());
    if let Some((uid, gid)) = user().ids {
        // With a new user id the standard library drops root's supplementary groups as well.
        command.uid(uid).gid(gid);
    }
    command
}

/// Gives a file or folder (not what is in it) to the test user.
pub fn give_to_user(path: &Path) {
    if let Some((uid, gid)) = user().ids {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))
            .unwrap_or_else(|e| panic!("chown {}: {e}", path.display()));
    }
}

/// A new folder below `/tmp` that belongs to the test user and that everybody may enter. Its path
/// is short enough for a Unix socket. Set `WALSHIP_TEST_KEEP` to keep these folders.
pub fn scratch() -> TempDir {
    let mut dir = tempfile::Builder::new()
        .prefix("wst-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir_in("/tmp")
        .expect("make a folder in /tmp");
    // The permissions above go through the umask.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    dir.disable_cleanup(std::env::var_os("WALSHIP_TEST_KEEP").is_some());
    give_to_user(dir.path());
    dir
}

/// Makes `parent/name`, owned by the test user, with this mode.
pub fn make_dir(parent: &Path, name: &str, mode: u32) -> PathBuf {
    let dir = parent.join(name);
    std::fs::create_dir(&dir).unwrap_or_else(|e| panic!("mkdir {}: {e}", dir.display()));
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(mode)).expect("chmod");
    give_to_user(&dir);
    dir
}

/// Calls `probe` until it gives a value; panics with `what` when the time is up.
pub fn wait_for<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {timeout:?} in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A record with this content, whatever hash that has had before.
pub fn sealed(json: impl AsRef<[u8]>) -> Vec<u8> {
    let mut record: serde_json::Value = serde_json::from_slice(json.as_ref()).unwrap();
    record.as_object_mut().unwrap().remove("sha256");
    ::walship_core::format::record::to_bytes(&record).unwrap()
}

/// Words for a person that the test harness does not capture.
pub fn announce(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
