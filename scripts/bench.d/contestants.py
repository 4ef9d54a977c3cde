"""walship and its peers: how each is told to do the same four things.

Everyone compresses with zstd at the same level, uses as many threads for a backup as there are
cores, and looks ahead no further than the segment it was asked for.
"""

import os
import re
import subprocess

import stores
from measure import Failure

NAMES = ["walship", "pgbackrest", "wal-g", "walrus"]


class Contestant:
    """One program on one store. `archive` names the archive that the next command works on."""

    implementation = "zstd"
    version_arguments = ["--version"]

    def __init__(self, program, store, cluster, level, work):
        self.program, self.store, self.cluster, self.level = str(program), store, cluster, level
        self.home = work
        self.label = self.name
        self.archive = None

    @property
    def codec(self):
        return f"{self.implementation}, level {self.level}"

    def version(self):
        environment = plain_environment(self.home)
        output = subprocess.run([self.program, *self.version_arguments], capture_output=True, text=True, env=environment)
        found = re.search(r"v?\d+\.[\w.]+\S*", output.stdout + output.stderr)
        return found.group().lstrip("v") if found else "unknown"

    def environment(self, operation, directory):
        """For an operation in a data directory."""
        server = {key: self.cluster.environment[key] for key in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE")}
        return plain_environment(self.home) | server | self.settings(operation, directory)

    def begin(self, purpose):
        """Makes an empty archive and works on that one from now on."""
        self.archive = f"{self.label}-{purpose}".replace(" ", "-")
        self.store.make(self.archive)

    def prepare(self, run):
        """What this program needs before its first push or backup."""

    def script_to_push(self, folder):
        """A program for archive_command. The server's environment, with its libraries, is not for others."""
        path = folder / f"push-{self.archive}"
        lines = [f"export {key}={quote(value)}" for key, value in self.environment("push", self.cluster.data).items()]
        words = " ".join(map(quote, self.push("")[:-1]))
        path.write_text("#!/bin/sh\nunset LD_LIBRARY_PATH\n" + "\n".join(lines) + f'\nexec {words} "$1"\n')
        path.chmod(0o700)
        return f"{path} %p"


class Walship(Contestant):
    name = "walship"

    def settings(self, operation, directory):
        level = str(self.level)
        settings = {"WALSHIP_PUSH_COMPRESSION_LEVEL": level, "WALSHIP_BACKUP_COMPRESSION_LEVEL": level}
        if isinstance(self.store, stores.S3Store):
            url = f"s3://{stores.BUCKET}/{self.archive}"
            return settings | s3_credentials(self.store) | {
                "WALSHIP_ARCHIVE": url, "AWS_ENDPOINT_URL": self.store.endpoint}  # fmt: skip
        return settings | {"WALSHIP_ARCHIVE": f"file://{self.store.path(self.archive)}"}

    def push(self, segment):
        return [self.program, "push", segment]

    def restore(self, segment, destination):
        return [self.program, "restore", segment, destination]

    def backup(self):
        return [self.program, "basebackup"]

    def recover(self, directory):
        return [self.program, "recover", "--pgdata", directory, "--archive-mode", "off", "--target-immediate"]


class Pgbackrest(Contestant):
    name = "pgbackrest"
    version_arguments = ["version"]

    def settings(self, operation, directory):
        settings = {
            "PG1_PATH": directory, "PG1_USER": "postgres",
            "PG1_SOCKET_PATH": self.cluster.folder, "PG1_PORT": 5432,
            "STANZA": "bench", "COMPRESS_TYPE": "zst", "COMPRESS_LEVEL": self.level, "PROCESS_MAX": os.cpu_count(),
            "START_FAST": "y", "LOG_LEVEL_FILE": "off", "LOG_LEVEL_CONSOLE": "error", "LOG_LEVEL_STDERR": "off",
            "LOCK_PATH": self.home / "lock", "SPOOL_PATH": self.home / "spool", "CONFIG": "/dev/null",
            "REPO1_RETENTION_FULL": 100,
        }  # fmt: skip
        if isinstance(self.store, stores.S3Store):
            settings |= {
                "REPO1_TYPE": "s3", "REPO1_PATH": f"/{self.archive}", "REPO1_S3_BUCKET": stores.BUCKET,
                "REPO1_S3_ENDPOINT": self.store.endpoint, "REPO1_S3_REGION": self.store.region,
                "REPO1_S3_URI_STYLE": "path",
                "REPO1_S3_KEY": self.store.access_key, "REPO1_S3_KEY_SECRET": self.store.secret_key,
            }  # fmt: skip
        else:
            settings["REPO1_PATH"] = self.store.path(self.archive)
        return {f"PGBACKREST_{key}": str(value) for key, value in settings.items()}

    def prepare(self, run):
        run([self.program, "stanza-create"])

    def push(self, segment):
        return [self.program, "archive-push", segment]

    def restore(self, segment, destination):
        return [self.program, "archive-get", segment, destination]

    def backup(self):
        return [self.program, "--type=full", "backup"]

    def recover(self, directory):
        return [self.program, f"--pg1-path={directory}", "--type=immediate", "--archive-mode=off", "restore"]


class Walrus(Contestant):
    name = "walrus"

    def settings(self, operation, directory):
        settings = {
            "WALG_COMPRESSION_METHOD": "zstd", "WALG_COMPRESSION_LEVEL": str(self.level),
            "WALG_UPLOAD_DISK_CONCURRENCY": str(os.cpu_count()),
        }  # fmt: skip
        if operation == "restore":
            # Else it leaves a process behind that fetches the next segments.
            settings["WALG_DOWNLOAD_CONCURRENCY"] = "1"
        if isinstance(self.store, stores.S3Store):
            return settings | s3_credentials(self.store) | {
                "WALG_S3_PREFIX": f"s3://{stores.BUCKET}/{self.archive}", "AWS_ENDPOINT": self.store.endpoint,
                "AWS_S3_FORCE_PATH_STYLE": "true"}  # fmt: skip
        return settings | {"WALG_FILE_PREFIX": str(self.store.path(self.archive))}

    def push(self, segment):
        return [self.program, "wal-push", segment]

    def restore(self, segment, destination):
        return [self.program, "wal-fetch", segment, destination]

    def backup(self):
        return [self.program, "backup-push", self.cluster.data]

    def recover(self, directory):
        return [self.program, "backup-fetch", directory, "LATEST"]


class Walg(Walrus):
    name = "wal-g"
    # Its zstd is another implementation, with four levels of its own.
    codec = "zstd in Go, fastest"

    def settings(self, operation, directory):
        settings = super().settings(operation, directory)
        del settings["WALG_COMPRESSION_LEVEL"]
        return settings | {"WALG_ZSTD_LEVEL": "fastest"}


def enter(name, *arguments):
    kinds = {kind.name: kind for kind in (Walship, Pgbackrest, Walg, Walrus)}
    if name not in kinds:
        raise Failure(f"unknown contestant {name}; there are {', '.join(NAMES)}")
    return kinds[name](*arguments)


def field(programs, store, cluster, level, home):
    """Everyone whose program was found. Against wal-g, which stores less than others at its fastest,
    walship runs at the next level too."""
    entered = [enter(name, programs[name], store, cluster, level, home) for name in NAMES if name in programs]
    if {"walship", "wal-g"} <= programs.keys():
        entered.append(enter("walship", programs["walship"], store, cluster, level + 1 or 1, home))
        entered[-1].label = f"walship at level {entered[-1].level}"
    return entered


def plain_environment(home):
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C", "TZ": "UTC"}


def s3_credentials(store):
    return {
        "AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key, "AWS_REGION": store.region,
    }  # fmt: skip


def quote(text):
    return "'" + str(text).replace("'", "'\\''") + "'"
