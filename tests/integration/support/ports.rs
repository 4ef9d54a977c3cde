//! Free TCP ports that parallel tests, test binaries and `localstack/start-server` do not fight over.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

const LOCKS: &str = "/tmp/walship-ports";
// Below the range from which the kernel gives ports to outgoing connections.
const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;

/// A loopback port, held by a lock on `/tmp/walship-ports/PORT` until this is dropped.
#[derive(Debug)]
pub struct Port {
    pub number: u16,
    _lock: File,
}

impl Port {
    /// Takes a port on which nobody listens.
    pub fn take() -> Self {
        let _ = std::fs::create_dir(LOCKS);
        let _ = std::fs::set_permissions(LOCKS, std::fs::Permissions::from_mode(0o1777));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start = now
            .subsec_nanos()
            .wrapping_add(std::process::id().wrapping_mul(7919));
        (0..COUNT)
            // 7919 is prime to COUNT: every port comes up once, neighbours in time lie far apart.
            .map(|i| FIRST + (start % COUNT + i * 7919) % COUNT)
            .find_map(|port| Self::try_take(u16::try_from(port).ok()?))
            .expect("a free port on 127.0.0.1")
    }

    fn try_take(number: u16) -> Option<Self> {
        let path = format!("{LOCKS}/{number}");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .ok()?;
        lock.try_lock().ok()?;
        TcpListener::bind(("127.0.0.1", number)).ok()?;
        Some(Self { number, _lock: lock })
    }
}
