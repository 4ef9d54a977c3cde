"""walship and its peers, each in its modes: the commands with which each does the same things.

Everyone compresses with zstd at the same level and uses as many threads for a backup as there are
cores. Commands are those of archive_command and restore_command: shell, with %p and %f.
"""

import os
import re
import shlex
import subprocess

import stores
from measure import Failure

NAMES = ["walship", "pgbackrest", "wal-g", "walrus"]
# walship's mode for a base backup over the replication protocol; by itself it reads the data directory, as the peers do.
STREAM = "stream"


class Contestant:
    """One program in one mode, on one store. `archive` names the archive that the next command works on."""

    version_arguments = ["--version"]
    # Its modes besides one process for each file.
    modes = [""]

    def __init__(self, program, mode, level, store, cluster, work):
        self.program, self.mode, self.level = str(program), mode, level
        self.store, self.cluster, self.work = store, cluster, work
        self.label = ", ".join(filter(None, [self.name, mode]))
        self.archive = None

    @property
    def codec(self):
        return f"zstd, level {self.level}"

    @property
    def home(self):
        """A folder for everything that belongs to this archive."""
        return self.work / "home" / self.archive

    def version(self):
        environment = plain_environment(self.work)
        output = subprocess.run([self.program, *self.version_arguments], capture_output=True, text=True, env=environment)
        found = re.search(r"v?\d+\.[\w.]+\S*", output.stdout + output.stderr)
        return found.group().lstrip("v") if found else "unknown"

    def environment(self, directory, ahead=True):
        """For work in a data directory; with `ahead`, segments may be fetched that were not asked for yet."""
        settings = self.settings(directory, ahead)
        return plain_environment(self.home) | self.cluster.connection | {key: str(value) for key, value in settings.items()}

    def begin(self, purpose):
        """Makes an empty archive and works on that one from now on."""
        self.archive = f"{self.store.name}-{self.label}-{purpose}".replace(", ", "-").replace(" ", "-")
        self.store.make(self.archive)
        self.home.mkdir(parents=True)

    def prepare(self):
        """A command that is needed before the first push or backup."""

    def daemon(self, directory):
        """A command that goes on running, and one that succeeds when that is ready."""

    def in_server(self, command):
        """The command for a server's environment, without the server's libraries."""
        return f"unset LD_LIBRARY_PATH; {command}"

    def script_to_push(self, folder):
        """A program for archive_command, with this contestant's environment."""
        path = folder / f"push-{self.archive}"
        exports = [f"export {key}={shlex.quote(value)}" for key, value in self.environment(self.cluster.data).items()]
        command = self.push().replace("%p", '"$1"').replace("%f", '"${1##*/}"')
        path.write_text("\n".join(["#!/bin/sh", "unset LD_LIBRARY_PATH", *exports, f"exec {command}", ""]))
        path.chmod(0o700)
        return f"{path} %p"


class Walship(Contestant):
    name = "walship"
    modes = ["", "agent", STREAM]

    def settings(self, directory, ahead):
        settings = {"WALSHIP_PUSH_COMPRESSION_LEVEL": self.level, "WALSHIP_BACKUP_COMPRESSION_LEVEL": self.level}
        if self.mode == STREAM:
            settings["WALSHIP_BACKUP_METHOD"] = "stream"
        if isinstance(self.store, stores.S3Store):
            return settings | s3_credentials(self.store) | {
                "WALSHIP_ARCHIVE": f"s3://{stores.BUCKET}/{self.archive}", "AWS_ENDPOINT_URL": self.store.endpoint,
                "WALSHIP_S3_CA_FILE": self.store.ca_file}  # fmt: skip
        return settings | {"WALSHIP_ARCHIVE": f"file://{self.store.path(self.archive)}"}

    def daemon(self, directory):
        if self.mode == "agent":
            agent = f"{self.program} agent --pgdata {directory}"
            return f"exec {agent}", f"{agent} --ping"
        return None

    def push(self):
        return f"{self.program} push %p"

    def restore(self):
        return f"{self.program} restore %f %p"

    def backup(self):
        # The same cluster has written to other contestants' archives.
        return f"{self.program} basebackup --new-archive"

    def recover(self, directory):
        return f"{self.program} recover --pgdata {directory} --archive-mode off --target-immediate"


class Pgbackrest(Contestant):
    name = "pgbackrest"
    version_arguments = ["version"]
    modes = ["", "async"]

    def settings(self, directory, ahead):
        settings = {
            "PG1_PATH": directory, "PG1_USER": "postgres",
            "PG1_SOCKET_PATH": self.cluster.folder, "PG1_PORT": 5432,
            "STANZA": "bench", "COMPRESS_TYPE": "zst", "COMPRESS_LEVEL": self.level, "PROCESS_MAX": os.cpu_count(),
            "START_FAST": "y", "LOG_LEVEL_FILE": "off", "LOG_LEVEL_CONSOLE": "error", "LOG_LEVEL_STDERR": "off",
            "LOCK_PATH": self.home / "lock", "SPOOL_PATH": self.home / "spool", "CONFIG": "/dev/null",
            "REPO1_RETENTION_FULL": 100, "ARCHIVE_ASYNC": "y" if self.mode else "n",
        }  # fmt: skip
        if isinstance(self.store, stores.S3Store):
            settings |= {
                "REPO1_TYPE": "s3", "REPO1_PATH": f"/{self.archive}", "REPO1_S3_BUCKET": stores.BUCKET,
                "REPO1_S3_ENDPOINT": self.store.endpoint, "REPO1_S3_REGION": self.store.server.region,
                "REPO1_S3_URI_STYLE": "path", "REPO1_STORAGE_CA_FILE": self.store.ca_file,
                "REPO1_S3_KEY": self.store.server.access_key, "REPO1_S3_KEY_SECRET": self.store.server.secret_key,
            }  # fmt: skip
        else:
            settings["REPO1_PATH"] = self.store.path(self.archive)
        return {f"PGBACKREST_{key}": value for key, value in settings.items()}

    def prepare(self):
        return f"{self.program} --no-online stanza-create"

    def push(self):
        return f"{self.program} archive-push %p"

    def restore(self):
        return f"{self.program} archive-get %f %p"

    def backup(self):
        return f"{self.program} --type=full backup"

    def recover(self, directory):
        return f"{self.program} --pg1-path={directory} --type=immediate --archive-mode=off restore"


class Walrus(Contestant):
    name = "walrus"
    modes = ["", "daemon"]

    def settings(self, directory, ahead):
        settings = {
            "PGDATA": directory, "WALG_COMPRESSION_METHOD": "zstd", "WALG_COMPRESSION_LEVEL": self.level,
            "WALG_UPLOAD_DISK_CONCURRENCY": os.cpu_count(),
        }  # fmt: skip
        if not ahead:
            settings["WALG_DOWNLOAD_CONCURRENCY"] = 1
        if isinstance(self.store, stores.S3Store):
            return settings | s3_credentials(self.store) | {
                "WALG_S3_PREFIX": f"s3://{stores.BUCKET}/{self.archive}", "AWS_ENDPOINT": self.store.endpoint,
                "AWS_S3_FORCE_PATH_STYLE": "true", "SSL_CERT_FILE": self.store.ca_file}  # fmt: skip
        return settings | {"WALG_FILE_PREFIX": self.store.path(self.archive)}

    @property
    def socket(self):
        return self.home / "socket"

    def daemon(self, directory):
        if self.mode:
            # The socket is there a moment before anyone listens.
            return f"rm -f {self.socket}; exec {self.program} daemon {self.socket}", f"test -S {self.socket} && sleep 0.2"
        return None

    @property
    def client(self):
        return f"{self.program} daemon-client --socket {self.socket}" if self.mode else self.program

    def push(self):
        return f"{self.client} wal-push %p"

    def restore(self):
        return f"{self.client} wal-fetch %f %p"

    def backup(self):
        return f"{self.program} backup-push {self.cluster.data}"

    def recover(self, directory):
        return f"{self.program} backup-fetch {directory} LATEST"


class Walg(Walrus):
    name = "wal-g"
    # Its zstd is another implementation, with four levels of its own.
    codec = "zstd in Go, fastest"

    def settings(self, directory, ahead):
        settings = super().settings(directory, ahead)
        del settings["WALG_COMPRESSION_LEVEL"]
        return settings | {"WALG_ZSTD_LEVEL": "fastest"}

    @property
    def client(self):
        # A program of its own, beside it.
        return f"{os.path.dirname(self.program)}/walg-daemon-client {self.socket}" if self.mode else self.program

    def push(self):
        # Its daemon wants the name alone.
        return f"{self.client} wal-push {'%f' if self.mode else '%p'}"


KINDS = {kind.name: kind for kind in (Walship, Pgbackrest, Walg, Walrus)}


def field(programs, modes, next_level, store, cluster, level, work):
    """All whose program was found, in those of their modes that are asked for.

    With `next_level` walship also runs at the next level, because wal-g stores less than the others at its fastest level.
    """
    entered = [
        KINDS[name](programs[name], mode, level, store, cluster, work)
        for name in NAMES if name in programs
        for mode in KINDS[name].modes if mode in modes
    ]  # fmt: skip
    if {"walship", "wal-g"} <= programs.keys() and next_level:
        again = Walship(programs["walship"], "", level + 1 or 1, store, cluster, work)
        again.label = f"walship at level {again.level}"
        entered.append(again)
    return entered


def known(names):
    if unknown := set(names) - set(NAMES):
        raise Failure(f"unknown contestant {unknown.pop()}; there are {', '.join(NAMES)}")
    return names


def plain_environment(home):
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C", "TZ": "UTC"}


def s3_credentials(store):
    return {
        "AWS_ACCESS_KEY_ID": store.server.access_key, "AWS_SECRET_ACCESS_KEY": store.server.secret_key,
        "AWS_REGION": store.server.region,
    }  # fmt: skip
