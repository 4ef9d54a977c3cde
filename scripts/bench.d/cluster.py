"""The PostgreSQL cluster that is backed up, and the WAL that piled up in it while nothing was archived."""

import contextlib
import filecmp
import os
import pathlib
import shutil
import subprocess
import time

from measure import Failure

BYTES_PER_ORDER = 540
TRANSACTIONS_BETWEEN_CHECKPOINTS = 9000
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
full_page_writes = on
wal_compression = off
log_min_messages = warning
# Archived WAL stays, so that the next program can archive it.
wal_keep_size = 64GB
"""
# While the data are loaded.
LOADING = "-c archive_mode=off -c wal_keep_size=0 -c wal_recycle=off -c max_wal_size=1GB"
# Where walship remembers to which archive a cluster writes. Here each contestant has one of its own.
ARCHIVE_FILE = "walship.archive"
# Files that a running server changes although nobody writes, and files that no base backup holds.
NOT_COMPARED = {
    "backup_label", "backup_label.old", "backup_manifest", "tablespace_map", "recovery.signal", "standby.signal",
    "postmaster.pid", "postmaster.opts", "pg_internal.init", "pg_control", "postgresql.auto.conf", "current_logfiles",
    "pg_wal", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_stat",
    "pg_subtrans", "log", ARCHIVE_FILE, "walship.clone",
}  # fmt: skip


class Cluster:
    """A cluster under `folder`, made once for each size and number of segments and kept for the next run.

    `data` is its data directory, with the WAL in `pg_wal`; `base` a copy from before that WAL.
    """

    def __init__(self, folder, program_folder, scripts, size, segments):
        self.folder = pathlib.Path(folder)
        self.data, self.base = self.folder / "data", self.folder / "base"
        self.archiving = self.folder / "archiving.conf"
        self.programs = pathlib.Path(program_folder)
        self.scripts, self.count = scripts, segments
        self.orders = size // BYTES_PER_ORDER
        self.libraries = f"{self.programs}/lib"
        self.connection = {
            "PGHOST": str(self.folder), "PGPORT": "5432", "PGUSER": "postgres", "PGDATABASE": "postgres",
        }  # fmt: skip
        self.environment = self.connection | {
            "PATH": f"{self.programs}/bin:{os.environ['PATH']}", "LD_LIBRARY_PATH": self.libraries,
            "HOME": str(self.folder), "LC_ALL": "C", "TZ": "UTC",
        }  # fmt: skip

    def make(self):
        """Makes the cluster with its data and its WAL where that is missing. It is not running then."""
        ready = self.folder / "ready"
        if not ready.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            self._create()
            names = sorted(path.stem for path in self._waiting())[: self.count]
            ready.write_text("".join(f"{name}\n" for name in names))
        self.stop()

    def start(self, options=""):
        self.archiving.touch()
        # Not by pg_ctl's standard output: the server would hold it open.
        log = self.folder / "log"
        self._run("pg_ctl", "-D", self.data, "-w", "-t", "300", "-l", log, "-o", options, "start", capture=False)

    def stop(self):
        if self._running():
            self._run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "-t", "300", "stop")
        if self.archiving.exists():
            self.archiving.write_text("")

    def segments(self):
        """Paths of the segments that piled up, in order."""
        return [self.data / "pg_wal" / name for name in (self.folder / "ready").read_text().split()]

    def pile_up(self, number):
        """Makes the first `number` segments wait for the archiver, and removes what archivers left behind.

        Nothing is marked as archived, because walship begins an archive only for a server that never archived.
        """
        for path in self.data.glob("*walg_data*"):
            shutil.rmtree(path)
        (self.data / ARCHIVE_FILE).unlink(missing_ok=True)
        for path in (self.data / "pg_wal").iterdir():
            if path.name.startswith("."):
                shutil.rmtree(path)
        folder = self.data / "pg_wal/archive_status"
        for path in folder.iterdir():
            path.unlink()
        ready = [path.name for path in self.segments()[:number]]
        for name in ready:
            (folder / f"{name}.ready").touch(0o600)
        return ready

    @contextlib.contextmanager
    def waiting(self, segment, home):
        """A finished segment waits for the archiver of the archive that was begun from `home`."""
        remembered, ready = self.data / ARCHIVE_FILE, self.data / f"pg_wal/archive_status/{segment.name}.ready"
        ready.touch(0o600)
        if (home / ARCHIVE_FILE).exists():
            shutil.copy(home / ARCHIVE_FILE, remembered)
        try:
            yield
        finally:
            if remembered.exists():
                shutil.move(remembered, home / ARCHIVE_FILE)
            # A peer may have renamed it, as PostgreSQL does.
            for status in ready, ready.with_suffix(".done"):
                status.unlink(missing_ok=True)

    def sql(self, statement):
        return self._run("psql", "-XAtqc", statement).strip()

    def archive_with(self, command):
        """Sets archive_command, in effect when this returns."""
        self.archiving.write_text(self.archive_setting(command))
        self.sql("select pg_reload_conf()")
        while self.sql("show archive_command") != command:
            time.sleep(0.05)
        time.sleep(0.2)  # the archiver hears of it in its own time

    @staticmethod
    def archive_setting(command):
        quoted = command.replace("'", "''")
        return f"archive_command = '{quoted}'\n"

    def cpu_seconds(self):
        """CPU that the server and all its children have used."""
        postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
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

    def files(self):
        """Paths of the files that a backup must hold."""
        return [self.data / name for name in file_set(self.data)]

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

    def recovering(self, directory, restore_command, segments):
        """Makes a copy of `base` that, when started, recovers nearly to the end of this many segments."""
        shutil.rmtree(directory, ignore_errors=True)
        subprocess.run(["cp", "-a", self.base, directory], check=True)
        end = int(self.segments()[segments - 1].name[8:16], 16) << 32
        end += (int(self.segments()[segments - 1].name[16:], 16) + 1 << 24) - (64 << 10)
        quoted = restore_command.replace("'", "''")
        with open(directory / "postgresql.conf", "a") as configuration:
            configuration.write(
                f"archive_mode = off\nunix_socket_directories = '{directory}'\nlog_min_messages = info\n"
                f"log_line_prefix = '%n '\nrestore_command = '{quoted}'\nrecovery_target_inclusive = off\n"
                f"recovery_target_lsn = '{end >> 32:X}/{end & 0xFFFFFFFF:X}'\nrecovery_target_action = pause\n"
            )
        (directory / "recovery.signal").touch()

    def server(self, directory):
        """The server's own program and arguments."""
        return [f"{self.programs}/bin/postgres", "-D", str(directory)]

    def _create(self):
        self.folder.mkdir(parents=True, mode=0o700)
        self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-k", "--no-sync")
        with open(self.data / "postgresql.conf", "a") as configuration:
            configuration.write(f"{CONFIGURATION}unix_socket_directories = '{self.folder}'\n")
            configuration.write(f"include_if_exists = '{self.archiving}'\n")
        self.start(LOADING)
        self._run("psql", "-X", "-v", f"orders={self.orders}", "-f", self.scripts / "data.sql")
        self.sql("checkpoint")
        self.stop()
        subprocess.run(["cp", "-a", self.data, self.base], check=True)
        # Archiving is on without a command, so the WAL of ordinary traffic between checkpoints piles up.
        self.start()
        seed = 0
        while len(self._waiting()) < self.count:
            seed += 1
            self._run("pgbench", "-n", "-M", "prepared", "-f", self.scripts / "traffic.sql", "-c", "1",
                      "-D", f"orders={self.orders}", "-t", TRANSACTIONS_BETWEEN_CHECKPOINTS,
                      f"--random-seed={seed}", PGOPTIONS="-c synchronous_commit=off")  # fmt: skip
            self.sql("checkpoint")
        # Nothing must be left that would change a file while a backup is compared.
        self.sql("vacuum freeze")

    def _waiting(self):
        return list((self.data / "pg_wal/archive_status").glob("????????????????????????.ready"))

    def _running(self):
        status = [f"{self.programs}/bin/pg_ctl", "-D", self.data, "status"]
        return subprocess.run(status, env=self.environment, capture_output=True).returncode == 0

    def _run(self, program, *arguments, capture=True, **environment):
        result = subprocess.run(
            [f"{self.programs}/bin/{program}", *map(str, arguments)],
            env=self.environment | environment,
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
