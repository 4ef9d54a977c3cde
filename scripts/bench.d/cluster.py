"""The PostgreSQL cluster that is backed up, and the WAL segments that are pushed."""

import filecmp
import os
import pathlib
import shutil
import subprocess
import time

from measure import Failure

BYTES_PER_ORDER = 540
SEGMENT_BYTES = 16 << 20
TRANSACTIONS_PER_SEGMENT = 9000
CONFIGURATION = """
listen_addresses = ''
port = 5432
shared_buffers = 256MB
max_wal_size = 16GB
checkpoint_timeout = 1h
autovacuum = off
wal_level = replica
max_wal_senders = 4
archive_mode = on
archive_command = '/bin/true'
full_page_writes = on
wal_compression = off
log_min_messages = warning
"""
# What a running server changes though nobody writes, and what no base backup holds.
NOT_COMPARED = {
    "backup_label", "backup_label.old", "backup_manifest", "tablespace_map", "recovery.signal", "standby.signal",
    "postmaster.pid", "postmaster.opts", "pg_internal.init", "pg_control", "postgresql.auto.conf", "current_logfiles",
    "pg_wal", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_stat",
    "pg_subtrans", "log",
}  # fmt: skip


class Cluster:
    """A cluster under `folder`, made once for each size and kept for the next run."""

    def __init__(self, folder, program_folder, scripts, size):
        self.folder = pathlib.Path(folder)
        self.data = self.folder / "data"
        self.programs = pathlib.Path(program_folder)
        self.scripts = scripts
        self.orders = size // BYTES_PER_ORDER
        self.environment = {
            "PATH": f"{self.programs}/bin:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": f"{self.programs}/lib",
            "HOME": str(self.folder),
            "LC_ALL": "C",
            "TZ": "UTC",
            "PGHOST": str(self.folder),
            "PGPORT": "5432",
            "PGUSER": "postgres",
            "PGDATABASE": "postgres",
        }

    def start(self, segments):
        """Starts the server, after making the cluster with its data and its WAL where that is missing."""
        ready = self.folder / "ready"
        if not ready.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            self._create(segments)
            ready.touch()
        elif not self._running():
            self._start()
        self.sql("checkpoint")

    def stop(self):
        if self._running():
            self._run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")

    def segments(self):
        """Paths of the archived segments, in a folder that looks like a data directory to whoever asks."""
        return sorted(path for path in (self.folder / "source/pg_wal").iterdir() if len(path.name) == 24)

    def sql(self, statement):
        return self._run("psql", "-XAtqc", statement).strip()

    def archive_with(self, command):
        """Sets archive_command, in effect when this returns."""
        quoted = command.replace("'", "''")
        self.sql(f"alter system set archive_command = '{quoted}'")
        self.sql("select pg_reload_conf()")
        while self.sql("show archive_command") != command:
            time.sleep(0.05)
        time.sleep(0.2)  # the archiver hears of it in its own time

    def cpu_seconds(self):
        """CPU that the server and all it ever started have used."""
        postmaster = self._postmaster()
        children = pathlib.Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        ticks = 0
        for process in [postmaster, *children]:
            try:
                stat = pathlib.Path(f"/proc/{process}/stat").read_text()
            except FileNotFoundError:
                continue
            ticks += sum(map(int, stat.rpartition(")")[2].split()[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def settle(self):
        """Waits until no backup's backend is left, so that its CPU is accounted for."""
        while self.sql("select count(*) from pg_stat_activity where backend_type in ('walsender', 'client backend')"
                       " and pid <> pg_backend_pid()") != "0":  # fmt: skip
            time.sleep(0.02)

    def compare(self, restored):
        """Fails unless the restored directory holds the same files, byte for byte."""
        ours, theirs = file_set(self.data), file_set(restored)
        if ours != theirs:
            raise Failure(f"{restored} lacks {sorted(ours - theirs)[:3]} or has besides {sorted(theirs - ours)[:3]}")
        for name in ours:
            if not filecmp.cmp(self.data / name, pathlib.Path(restored) / name, shallow=False):
                raise Failure(f"{restored}/{name} differs from the source")
        if not (pathlib.Path(restored) / "global/pg_control").exists():
            raise Failure(f"{restored} has no pg_control")

    def _create(self, segments):
        source = self.folder / "source"
        for folder in ("global", "pg_wal/archive_status"):
            (source / folder).mkdir(parents=True)
        os.chmod(self.folder, 0o700)
        self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-k", "--no-sync")
        with open(self.data / "postgresql.conf", "a") as configuration:
            configuration.write(CONFIGURATION + f"unix_socket_directories = '{self.folder}'\n")
        self._start()
        self._run("psql", "-X", "-v", f"orders={self.orders}", "-f", self.scripts / "data.sql")
        # Segments from here on: full ones of ordinary traffic, right after a checkpoint.
        self.archive_with(f"cp %p {source}/pg_wal/%f")
        self.sql("select pg_switch_wal()")
        transactions = 0
        while transactions == 0 or len(self.segments()) < segments + 1:
            self._run("pgbench", "-n", "-M", "prepared", "-f", self.scripts / "traffic.sql", "-c", "1",
                      "-D", f"orders={self.orders}", "-t", TRANSACTIONS_PER_SEGMENT,
                      f"--random-seed={transactions + 1}")  # fmt: skip
            transactions += TRANSACTIONS_PER_SEGMENT
        self.archive_with("/bin/true")
        first, *rest = self.segments()
        for unwanted in [first, *rest[segments:]]:  # the first was filled by the loading
            unwanted.unlink()
        # So that nothing is left to do that would change a file while a backup is compared.
        self.sql("vacuum freeze")
        shutil.copy(self.data / "PG_VERSION", source)
        self.sql("checkpoint")
        shutil.copy(self.data / "global/pg_control", source / "global")

    def _start(self):
        # Not by pg_ctl's standard output: the server would hold it open.
        self._run("pg_ctl", "-D", self.data, "-w", "-t", "300", "-l", self.folder / "log", "start", capture=False)

    def _running(self):
        status = [f"{self.programs}/bin/pg_ctl", "-D", self.data, "status"]
        return subprocess.run(status, env=self.environment, capture_output=True).returncode == 0

    def _postmaster(self):
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def _run(self, program, *arguments, capture=True):
        result = subprocess.run(
            [f"{self.programs}/bin/{program}", *map(str, arguments)],
            env=self.environment,
            stdout=subprocess.PIPE if capture else subprocess.DEVNULL,
            stderr=subprocess.PIPE if capture else subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=self.folder,
        )
        if result.returncode:
            raise Failure(f"{program} failed: {(result.stderr or '').strip()[-500:]}")
        return result.stdout


def file_set(directory):
    """Relative paths of the regular files that a backup must hold."""
    found = set()
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if name not in NOT_COMPARED]
        relative = pathlib.Path(folder).relative_to(directory)
        found.update(str(relative / name) for name in files if name not in NOT_COMPARED)
    return found
