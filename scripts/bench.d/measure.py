"""Running a command and knowing what it cost."""

import contextlib
import ctypes
import dataclasses
import os
import pathlib
import select
import shutil
import statistics
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
LIMIT_SECONDS = 900
SEGMENT_LIMIT_SECONDS = 120


class Failure(Exception):
    """What went wrong, in one line for a person."""


@dataclasses.dataclass
class Cost:
    """What one run cost. CPU counts every process that the command started, waited for or not."""

    wall: float
    cpu: float
    server_cpu: float = 0.0  # PostgreSQL's own, while the command ran
    memory: int = 0  # bytes, of the largest process
    stored: int = 0  # bytes that the store grew by
    sync: float = 0.0  # seconds that a sync took afterwards: what the command left to the kernel


class Runner:
    """Starts commands in a small process of their own; see launch.py."""

    def __init__(self, launcher, user, work):
        # What a command leaves behind becomes a child of this process, which can then account for it.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.output = pathlib.Path(work) / "output"
        self.launcher = subprocess.Popen(
            [sys.executable, "-I", "-S", launcher, str(user.pw_uid), str(user.pw_gid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def run(self, arguments, environment, directory, limit=LIMIT_SECONDS):
        """Runs one command; returns its cost. Fails with the command's own last words, or after `limit` seconds."""
        program = shutil.which(str(arguments[0]), path=environment["PATH"])
        if program is None:
            raise Failure(f"{arguments[0]} is not found")
        fields = [
            str(directory),
            str(program),
            "\1".join(map(str, arguments)),
            "\1".join(f"{key}={value}" for key, value in environment.items()),
            str(self.output),
        ]
        self.launcher.stdin.write(("\0".join(fields) + "\n").encode())
        process = int(self._answer(LIMIT_SECONDS))
        try:
            answer = self._answer(limit)
        except BaseException:
            # Nothing that was started here stays; its answer is not the next one's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, 9)
            self._answer(LIMIT_SECONDS)
            raise
        status, wall, user, system, memory = map(float, answer.split())
        cost = Cost(wall=wall, cpu=user + system, memory=int(memory) << 10)
        for usage in self._left_behind(process):
            cost.cpu += usage.ru_utime + usage.ru_stime
            cost.memory = max(cost.memory, usage.ru_maxrss << 10)
        if status:
            words = self.output.read_text(errors="replace").strip().splitlines()
            command = " ".join([pathlib.Path(program).name, *map(str, arguments[1:])])
            raise Failure(f"{command} ended with {int(status)}: {' / '.join(words[-3:])}")
        return cost

    def _answer(self, seconds):
        if not select.select([self.launcher.stdout], [], [], seconds)[0]:
            raise Failure(f"no end after {seconds} seconds")
        line = self.launcher.stdout.readline()
        if not line:
            raise Failure("the launcher died")
        return line

    @staticmethod
    def _left_behind(group):
        """Waits for what the command did not wait for."""
        try:
            while True:
                yield os.wait4(-group, 0)[2]
        except ChildProcessError:
            return


def timed_sync():
    """Seconds a sync takes."""
    started = time.monotonic()
    os.sync()
    return time.monotonic() - started


def median(values):
    return statistics.median(values)
