//! Ends that come from outside: time that runs out for a whole command, and a machine that gives no
//! more threads.

use std::time::Duration;

use crate::sample::{DataDirectory, Sample};
use crate::server::failing_place;
use crate::support::process::Running;
use crate::support::proxy::{Fault, Proxy};
use crate::support::stores::Place;
use crate::support::walship::Walship;

fn archived() -> (DataDirectory, Place, Proxy, &'static [String]) {
    let (data, (place, proxy)) = (Sample::shared().copy(), failing_place());
    let segments = &Sample::shared().segments;
    data.walship(&place)
        .run(&["push", &format!("pg_wal/{}", segments[0])])
        .succeeded();
    (data, place, proxy, segments)
}

// Seen to fail: `edge/runtime.rs`: `within` does not end the command
#[test]
fn requests_that_are_slow_one_by_one_do_not_add_up_beyond_the_limit_of_the_command() {
    let (data, place, proxy, segments) = archived();
    // Each ends well within the limit of a request; two of them do not within the command's.
    proxy.set(Fault::Delay(Duration::from_secs(5)));
    let walship = ["PUSH", "RESTORE"]
        .iter()
        .fold(data.walship(&place), |walship, command| {
            walship.env(format!("WALSHIP_{command}_TIMEOUT"), "8s")
        });
    let push = walship.spawn(&["push", &format!("pg_wal/{}", segments[1])]);
    // Absent: after walship.json and the segment, which are asked for at once, comes a listing.
    let restore = walship.spawn(&["restore", &segments[1], "pg_wal/RECOVERYXLOG"]);
    for (running, code, setting) in [(push, 1, "push.timeout"), (restore, 200, "restore.timeout")] {
        let output = running.wait(Duration::from_mins(1)).exited(code);
        assert!(output.stderr.contains("gave up after 8 s"), "{}", output.stderr);
        assert!(output.stderr.contains(setting), "{}", output.stderr);
    }
}

/// With no thread left to this user, whose processes and threads are more than none already.
fn without_threads(walship: &Walship, args: &[&str]) -> crate::support::process::Output {
    let mut command = walship.command_under("prlimit", &["--nproc=0"], args);
    Running::start(&mut command).wait(walship.patience())
}

// Seen to fail: `src/main.rs`: no panic hook
#[test]
fn a_panic_in_restore_or_push_ends_with_their_own_exit_code() {
    // The runtime panics where a thread cannot be made: a real panic, in the middle of the work.
    let (data, place) = (Sample::shared().copy(), Place::directory());
    let segments = &Sample::shared().segments;
    let walship = data.walship(&place);
    let path = |segment: &str| format!("pg_wal/{segment}");
    walship.run(&["push", &path(&segments[0])]).succeeded();
    let restore = ["restore", segments[0].as_str(), "pg_wal/RECOVERYXLOG"];
    let output = without_threads(&walship, &restore).exited(200);
    assert!(output.stderr.contains("internal error"), "{}", output.stderr);
    assert!(output.stderr.contains("panicked"), "{}", output.stderr);
    assert!(!data.segment("RECOVERYXLOG").exists());
    without_threads(&walship, &["push", &path(&segments[1])]).exited(1);
    walship.run(&restore).succeeded();
}
