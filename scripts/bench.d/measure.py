"""Runs a job and measures what it cost."""

import contextlib
import ctypes
import dataclasses
import marshal
import os
import pathlib
import statistics
import subprocess
import sys

PR_SET_CHILD_SUBREAPER = 36
LIMIT_SECONDS = 600
# Whether this is only a trial, which leaves the machine's caches alone because others use them.
quick = False


class Failure(Exception):
    """What went wrong, in one line for a person."""


@dataclasses.dataclass
class Cost:
    """What one run cost. CPU counts every process that the commands started, waited for or not."""

    wall: float
    cpu: float
    server_cpu: float = 0.0  # PostgreSQL's own, meanwhile
    memory: int = 0  # bytes, of the largest process
    daemon_memory: int = 0  # bytes, of the agent or daemon
    stored: int = 0  # bytes that the store grew by


class Runner:
    """Runs jobs, each in a small process of its own; see launch.py."""

    def __init__(self, launcher, user, work):
        self.output = pathlib.Path(work) / "output"
        self.launcher, self.user = launcher, user

    def command(self, command, environment, directory, **more):
        """Runs one command; returns its cost."""
        return self.run("commands", [command], environment, directory, **more)[0]

    def run(self, kind, arguments, environment, directory, daemon=None, before=()):
        """Runs a job; returns the costs of its parts, the first of which bears the CPU of all."""
        job = {
            "kind": kind, "arguments": list(arguments), "before": list(before),
            "environment": {key: str(value) for key, value in environment.items()}, "directory": str(directory),
            "output": str(self.output), "user": (self.user.pw_uid, self.user.pw_gid), "limit": LIMIT_SECONDS,
        }  # fmt: skip
        if daemon:
            job["daemon"] = daemon
        self.output.unlink(missing_ok=True)
        with as_root():
            launched = subprocess.run(
                [sys.executable, "-I", "-S", self.launcher],
                input=marshal.dumps(job),
                stdout=subprocess.PIPE,
                preexec_fn=adopt_orphans,
            )
        if launched.returncode:
            raise Failure("the launcher died")
        result = marshal.loads(launched.stdout)
        if result["failure"]:
            words = self.output.read_text(errors="replace").strip().splitlines()
            raise Failure(f"{result['failure']}: {' / '.join(words[-3:])}")
        costs = [Cost(wall, 0.0) for wall in result["walls"]]
        for key in ("cpu", "server_cpu", "memory", "daemon_memory"):
            setattr(costs[0], key, result[key])
        return costs


def adopt_orphans():
    """Whatever a command leaves behind becomes a child of the process that this one becomes."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextlib.contextmanager
def acting_as(user):
    """PostgreSQL does not run as root, so nothing that is measured does. Its processes cannot become root again; this one can."""
    if os.getuid() != 0:
        yield
        return
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, 0)
    os.setresuid(user.pw_uid, user.pw_uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


@contextlib.contextmanager
def as_root():
    """Within acting_as: root again, if this process was root, for steps that only root can do."""
    user, group = os.getresuid(), os.getresgid()
    if user[2] != 0:
        yield
        return
    os.setresuid(0, 0, 0)
    os.setresgid(0, 0, 0)
    try:
        yield
    finally:
        os.setresgid(*group)
        os.setresuid(*user)


def freshen(*files, drop=True):
    """Brings the machine into one state: everything written out, these files cached and, with `drop`, no others."""
    os.sync()
    if drop and not quick:
        with as_root(), contextlib.suppress(PermissionError):
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("1")
    for file in files:
        with open(file, "rb", buffering=0) as content:
            while content.read(4 << 20):
                pass


def median(values):
    return statistics.median(values)
