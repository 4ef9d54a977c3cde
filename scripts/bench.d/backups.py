"""W5 and W6: a base backup, and its restore."""

import dataclasses
import os
import shutil
import subprocess
import time

from contestants import STREAM
from measure import freshen
from operations import FLOOR


def measure(bench, store, wanted):
    if not {"backup", "recover"} & wanted:
        return
    bench.say(f"{store.name}: {bench.rounds_on(store)} base backups taken and restored by each")
    bench.cluster.pile_up(0)
    bench.cluster.start()
    turns = Turns(bench, store)
    try:
        bench.cluster.archive_with("/bin/true")
        entered = bench.field(store, ["", STREAM], next_level=True)
        bench.rounds(store, entered, bench.rounds_on(store), turns.turn, turns.floor, ["backup", "recover", "durable"])
    finally:
        bench.cluster.stop()


class Turns:
    """What each does in one round."""

    def __init__(self, bench, store):
        self.bench, self.store = bench, store
        self.runner, self.cluster = bench.runner, bench.cluster
        self.restored = bench.work / "restored"

    def turn(self, one, number):
        bench, cluster = self.bench, self.cluster
        bench.prepare(one, f"backup{number}")
        try:
            cluster.archive_with(one.script_to_push(bench.work / "scripts"))
            before = one.store.bytes(one.archive)
            cost = self._backup(one.backup(), one.environment(cluster.data), cluster.data, one.program)
            cost.stored = one.store.bytes(one.archive) - before
            cluster.archive_with("/bin/true")
            freshen(one.program)
            bench.read_stored(one.store, one.archive)
            back, durable = self._recover(one.recover(self.restored), one.environment(self.restored))
        finally:
            cluster.archive_with("/bin/true")
            one.store.discard(one.archive)
        back.stored = durable.stored = cost.stored
        bench.record_of("backup", one, cost)
        # What is restored is the same, wherever the backup came from.
        if one.mode != STREAM:
            bench.record_of("recover", one, back)
            bench.record_of("durable", one, durable)

    def floor(self, _number):
        bench, backup = self.bench, self.bench.work / "floor.tar.zst"
        level = bench.options.level
        programs = f"LD_LIBRARY_PATH={self.cluster.libraries} {self.cluster.programs}/bin"
        pipe = (
            f"{programs}/pg_basebackup -Ft -D - -X none -c fast |"
            f" zstd -q -T{os.cpu_count()} {f'-{level}' if level > 0 else f'--fast={-level}'} > {backup}"
        )
        cost = self._backup(pipe, bench.plain | self.cluster.connection, bench.work)
        cost.stored = backup.stat().st_size
        pipe = f"mkdir {self.restored} && zstd -dcq {backup} | tar -x -C {self.restored}"
        freshen(backup)
        back, durable = self._recover(pipe, bench.plain)
        back.stored = durable.stored = cost.stored
        backup.unlink()
        bench.record("backup", self.store, FLOOR, "", cost)
        bench.record("recover", self.store, FLOOR, "", back)
        bench.record("durable", self.store, FLOOR, "", durable)

    def _backup(self, command, environment, directory, *programs):
        """Runs a backup, with what it costs the server."""
        self.cluster.sql("checkpoint")
        self.cluster.settle()
        freshen(*self.cluster.files(), *programs)
        before = self.cluster.cpu_seconds()
        cost = self.runner.command(command, environment, directory)
        self.cluster.settle()
        cost.server_cpu = self.cluster.cpu_seconds() - before
        return cost

    def _recover(self, command, environment):
        """Runs a restore; returns its cost, and its cost until everything is on the disk."""
        shutil.rmtree(self.restored, ignore_errors=True)
        cost = self.runner.command(command, environment, self.bench.work)
        ended = time.perf_counter()
        subprocess.run(["sync", "-f", self.restored], check=True)
        synced = time.perf_counter() - ended
        self.cluster.compare(self.restored)
        shutil.rmtree(self.restored)
        return cost, dataclasses.replace(cost, wall=cost.wall + synced)
