"""Runs one job for measure.py and reports what it cost.

Each job has a small process of its own. Linux counts the memory of a forking process into the peak of
its child, so no measured process can show less than this interpreter's 9 MiB. Processes that a command
leaves behind become children of this process, which waits for them and accounts for them.

Job and result are dictionaries by `marshal`, on standard input and output. A job names the user and
group to run as, the directory, environment and output of its commands, and what to do: "commands",
"archive", "restore", "archiver" or "recovery", the methods below. A "daemon" runs beside that. Commands
are run by `sh`, as PostgreSQL runs them.
"""

import marshal
import os
import resource  # noqa: F401: what os.wait4 needs, while its folder can be read
import signal
import sys
import time

TICK = os.sysconf("SC_CLK_TCK")
# How long processes that a command left behind may go on.
PATIENCE_SECONDS = 20


class Trouble(Exception):
    """Ends the job; the text is the result's "failure"."""


class Job:
    def __init__(self, job):
        self.job = job
        self.cpu = self.server_cpu = 0.0
        self.memory = self.daemon_memory = 0
        self.daemon = self.server = None

    def run(self):
        """The job's result."""
        failure = walls = None
        signal.signal(signal.SIGALRM, self.too_long)
        signal.alarm(self.job["limit"])
        try:
            self.start_daemon()
            for command in self.job.get("before", []):
                self.command(command)
            self.cpu = -self.daemon_cpu()
            walls = getattr(self, self.job["kind"])(*self.job["arguments"])
        except Trouble as trouble:
            failure = str(trouble)
        signal.alarm(0)
        self.end()
        return {
            "failure": failure, "walls": walls, "cpu": self.cpu, "server_cpu": self.server_cpu,
            "memory": self.memory, "daemon_memory": self.daemon_memory,
        }  # fmt: skip

    def too_long(self, *_):
        raise Trouble(f"no end after {self.job['limit']} seconds")

    # --- the kinds of jobs; each returns the wall seconds of what it did ---

    def commands(self, *commands):
        """One command after the other."""
        return [self.command(command) for command in commands]

    def archive(self, command, names):
        """What PostgreSQL's archiver does with files that are ready (pgarch.c)."""
        started = time.monotonic()
        for name in names:
            status = f"pg_wal/archive_status/{name}"
            # Some mark what they stored ahead by themselves.
            if os.path.exists(f"{status}.ready"):
                self.command(command.replace("%p", f"pg_wal/{name}").replace("%f", name))
            if os.path.exists(f"{status}.ready"):
                os.rename(f"{status}.ready", f"{status}.done")
        return [time.monotonic() - started]

    def restore(self, command, names):
        """What a standby does to obtain segments (xlogarchive.c), without replaying them."""
        started = time.monotonic()
        for name in names:
            self.command(command.replace("%p", "pg_wal/RECOVERYXLOG").replace("%f", name))
            os.rename("pg_wal/RECOVERYXLOG", f"pg_wal/{name}")
        return [time.monotonic() - started]

    def archiver(self, server, configuration, setting):
        """A real server's archiver, from when it hears of its command until all files are archived."""
        self.start_server(server)
        self.until(lambda: b"ready" in read("postmaster.pid"), "the server did not start")
        with open(configuration, "w") as file:
            file.write(setting)
        started = time.monotonic()
        os.kill(self.server, signal.SIGHUP)
        self.until(lambda: not waiting(), "not everything was archived")
        wall = time.monotonic() - started
        self.stop_server(signal.SIGINT)
        return [wall]

    def recovery(self, server):
        """A real server's recovery, from its start until it has reached its target."""
        started = time.time()
        self.start_server(server)
        reached = self.until(lambda: self.logged(b"recovery stopping before"), "the target was not reached")
        self.stop_server(signal.SIGQUIT)
        return [float(reached) - started]

    # --- processes ---

    def spawn(self, *arguments):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        streams = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, self.job["output"], flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        return os.posix_spawn(arguments[0], arguments, self.job["environment"], file_actions=streams)

    def command(self, command):
        started = time.monotonic()
        process = self.spawn("/bin/sh", "-c", command)
        code = self.reap(process)
        wall = time.monotonic() - started
        if code:
            raise Trouble(f"{command} ended with {code}")
        return wall

    def reap(self, process):
        """Waits for a process and accounts for it; returns its exit code."""
        _, status, usage = os.wait4(process, 0)
        self.cpu += usage.ru_utime + usage.ru_stime
        self.memory = max(self.memory, usage.ru_maxrss << 10)
        return os.waitstatus_to_exitcode(status)

    def start_daemon(self):
        if "daemon" not in self.job:
            return
        command, is_ready = self.job["daemon"]
        self.daemon = self.spawn("/bin/sh", "-c", command)
        probe = ("/bin/sh", "-c", f"{is_ready} 2>/dev/null")
        self.until(lambda: os.waitpid(self.spawn(*probe), 0)[1] == 0, "the daemon did not start")

    def daemon_cpu(self):
        return sum(cpu_of(self.daemon)) if self.daemon else 0

    def start_server(self, server):
        self.server = self.spawn(*server)

    def stop_server(self, how):
        """Ends the server; before that its own CPU and that of its commands are counted separately."""
        # Every process that a child of the postmaster has started is one of our commands.
        for process in [self.server, *children(self.server)]:
            own, started = cpu_of(process)
            self.server_cpu += own
            self.cpu += started if process != self.server else 0
        os.kill(self.server, how)
        os.wait4(self.server, 0)
        self.server = None

    def end(self):
        """Ends the server, waits for what was left behind, and ends the daemon."""
        if self.server:
            os.kill(self.server, signal.SIGQUIT)
            os.wait4(self.server, 0)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left := [process for process in children(os.getpid()) if process != self.daemon]:
            if time.monotonic() > deadline:
                for process in left:
                    os.kill(process, signal.SIGKILL)
            for process in left:
                if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    self.reap(process)
            time.sleep(0.01)
        if self.daemon:
            self.daemon_memory = peak_of(self.daemon)
            os.kill(self.daemon, signal.SIGTERM)
            self.reap(self.daemon)

    def until(self, condition, failure):
        while not (answer := condition()):
            if os.waitid(os.P_PID, self.server or self.daemon, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise Trouble(failure)
            time.sleep(0.004)
        return answer

    def logged(self, words):
        """The first word of the line of the server's log that holds these words."""
        for line in read(self.job["output"]).splitlines():
            if words in line:
                return line.split()[0]
        return None


def cpu_of(process):
    """CPU seconds of a process, and of those it has waited for."""
    fields = read(f"/proc/{process}/stat").rpartition(b")")[2].split()[11:15]
    user, system, children_user, children_system = map(int, fields or (0, 0, 0, 0))
    return (user + system) / TICK, (children_user + children_system) / TICK


def peak_of(process):
    """The most bytes that a process had in memory."""
    for line in read(f"/proc/{process}/status").splitlines():
        if line.startswith(b"VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def waiting():
    """What the archiver has not done yet."""
    return [name for name in os.listdir("pg_wal/archive_status") if name.endswith(".ready")]


def children(process):
    return [int(child) for child in read(f"/proc/{process}/task/{process}/children").split()]


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def main():
    job = marshal.load(sys.stdin.buffer)
    if os.getuid() == 0:
        user, group = job["user"]
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    os.chdir(job["directory"])
    result = Job(job).run()
    marshal.dump(result, sys.stdout.buffer)


main()
