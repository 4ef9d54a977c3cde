"""The four operations, each of everyone in turn, and the floors beneath them."""

import filecmp
import json
import os
import shutil

import contestants
from measure import SEGMENT_LIMIT_SECONDS, Cost, Failure, timed_sync

FLOOR = "floor"
SPAWN = "/bin/true"


class Bench:
    def __init__(self, runner, cluster, programs, stores, options, work, say):
        self.runner, self.cluster, self.programs, self.stores = runner, cluster, programs, stores
        self.options, self.work, self.say = options, work, say
        self.segments = cluster.segments()
        self.missing = {name: "left out, or its program is not found" for name in contestants.NAMES if name not in programs}
        self.rows = {}
        for folder in ("home", "scripts", "target/global", "target/pg_wal"):
            (work / folder).mkdir(parents=True)
        # Where `restore` delivers: a data directory, as far as anyone looks.
        shutil.copy(cluster.folder / "source/PG_VERSION", work / "target")
        shutil.copy(cluster.folder / "source/global/pg_control", work / "target/global")

    def measure(self, wanted):
        """All rows: operation, store, who, codec, and the cost of each run."""
        for store in self.stores:
            if {"push", "restore"} & set(wanted):
                self.say(f"{store.name}: {self.options.runs} segments pushed and restored by each")
                self._rounds(store, self.options.runs, self._begin_segments, self._floor_segment, self._segment)
            if {"backup", "recover"} & set(wanted):
                self.say(f"{store.name}: {self.options.backup_runs} base backups taken and restored by each")
                self._rounds(store, self.options.backup_runs, lambda _: None, self._floor_backup, self._backup)
        return [
            {"operation": operation, "store": store, "who": who, "codec": codec, "runs": [vars(cost) for cost in costs]}
            for (operation, store, who, codec), costs in self.rows.items()
            if operation in wanted or who == SPAWN
        ]  # fmt: skip

    def versions(self):
        return {contestant.name: contestant.version() for contestant in self._field(self.stores[0])}

    def _rounds(self, store, rounds, begin, floor, operation):
        """Everyone once in each round, whoever began the last round now being last."""
        entered = [one for one in self._field(store) if self._attempt(one, begin, one)]
        for number in range(rounds):
            floor(store, number)
            for one in list(entered):
                if not self._attempt(one, operation, one, number):
                    entered.remove(one)
            entered = entered[1:] + entered[:1]

    def _field(self, store):
        return contestants.field(self.programs, store, self.cluster, self.options.level, self.work / "home")

    def _attempt(self, contestant, action, *arguments):
        try:
            action(*arguments)
            return True
        except Failure as failure:
            where = f"{contestant.label} on {contestant.store.name}"
            self.missing[where] = str(failure)
            self.say(f"NOT MEASURED from here on: {where}: {failure}")
            return False

    # --- one segment ---

    def _begin_segments(self, contestant):
        contestant.begin("wal")
        self._prepare(contestant, self.cluster.folder / "source")
        self._segment(contestant, -1)

    def _segment(self, contestant, number):
        """Pushes the round's segment, restores and compares it. Round -1 warms up and is not counted."""
        source = self.cluster.folder / "source"
        segment = self.segments[number + 1].name
        delivered = self.work / "target/pg_wal/RECOVERYXLOG"
        before = contestant.store.bytes(contestant.archive)
        os.sync()
        environment = contestant.environment("push", source)
        cost = self.runner.run(contestant.push(f"pg_wal/{segment}"), environment, source, SEGMENT_LIMIT_SECONDS)
        cost.stored = contestant.store.bytes(contestant.archive) - before
        os.sync()
        target = self.work / "target"
        environment = contestant.environment("restore", target)
        command = contestant.restore(segment, "pg_wal/RECOVERYXLOG")
        back = self.runner.run(command, environment, target, SEGMENT_LIMIT_SECONDS)
        back.stored = cost.stored
        compare(source / "pg_wal" / segment, delivered)
        delivered.unlink()
        if number >= 0:
            self._record("push", contestant.store, contestant.label, contestant.codec, cost)
            self._record("restore", contestant.store, contestant.label, contestant.codec, back)

    def _floor_segment(self, store, number):
        """Spawning nothing, and the work of a minimal client on a warm connection."""
        plain = contestants.plain_environment(self.work / "home")
        self._record("spawn", store, SPAWN, "", self.runner.run(["/bin/true"], plain, self.work))
        if number == 0:
            store.make("floor-wal")
        warm, segment = self.segments[0], self.segments[number + 1]
        names = f"{number}-warm.zst", f"{number}.zst"
        puts = [store.target("PUT", "floor-wal", name) for name in names]
        # `put` stores the same file twice; the second time counts.
        cost = self._client("put", *puts, self.options.level, segment)
        self._record("push", store, FLOOR, "", cost)
        gets = [store.target("GET", "floor-wal", name) for name in names]
        delivered = self.work / "target/pg_wal/RECOVERYXLOG"
        self._record("restore", store, FLOOR, "", self._client("get", *gets, delivered))
        compare(segment, delivered)
        delivered.unlink()

    def _client(self, *arguments):
        os.sync()
        environment = contestants.plain_environment(self.work / "home")
        whole = self.runner.run([self.programs["floor"], *arguments], environment, self.work)
        inside = json.loads(self.runner.output.read_text())
        return Cost(inside["wall_us"] / 1e6, inside["cpu_us"] / 1e6, memory=whole.memory, stored=inside["stored"])

    # --- a base backup ---

    def _backup(self, contestant, number):
        contestant.begin(f"backup{number}")
        try:
            self._prepare(contestant, self.cluster.data)
            self.cluster.archive_with(contestant.script_to_push(self.work / "scripts"))
            before = contestant.store.bytes(contestant.archive)
            environment = contestant.environment("backup", self.cluster.data)
            cost = self._observed(contestant.backup(), environment, self.cluster.data)
            cost.stored = contestant.store.bytes(contestant.archive) - before
        finally:
            self.cluster.archive_with("/bin/true")
        self._record("backup", contestant.store, contestant.label, contestant.codec, cost)
        environment = contestant.environment("recover", self.work / "restored")
        back = self._recover(contestant.recover(self.work / "restored"), environment)
        back.stored = cost.stored
        self._record("recover", contestant.store, contestant.label, contestant.codec, back)
        contestant.store.remove(contestant.archive)

    def _floor_backup(self, store, _number):
        server = self.cluster.environment
        plain = contestants.plain_environment(self.work / "home")
        connection = {key: value for key, value in server.items() if key.startswith("PG")}
        backup = self.work / "floor.tar.zst"
        level = self.options.level
        libraries, programs = server["LD_LIBRARY_PATH"], self.cluster.programs / "bin"
        pipe = (
            f"set -o pipefail; LD_LIBRARY_PATH={libraries} {programs}/pg_basebackup -Ft -D - -X none -c fast |"
            f" zstd -q {f'-{level}' if level > 0 else f'--fast={-level}'} > {backup}"
        )
        cost = self._observed(["bash", "-c", pipe], plain | connection, self.work)
        cost.stored = backup.stat().st_size
        self._record("backup", store, FLOOR, "", cost)
        restored = self.work / "restored"
        pipe = f"set -o pipefail; mkdir {restored}; zstd -dcq {backup} | tar -x -C {restored} && sync -f {restored}"
        back = self._recover(["bash", "-c", pipe], plain)
        back.stored = cost.stored
        self._record("recover", store, FLOOR, "", back)
        backup.unlink()

    def _observed(self, command, environment, directory):
        """Runs a backup, with what it costs the server."""
        self.cluster.sql("checkpoint")
        self.cluster.settle()
        os.sync()
        before = self.cluster.cpu_seconds()
        cost = self.runner.run(command, environment, directory)
        cost.sync = timed_sync()
        self.cluster.settle()
        cost.server_cpu = self.cluster.cpu_seconds() - before
        return cost

    def _recover(self, command, environment):
        os.sync()
        restored = self.work / "restored"
        shutil.rmtree(restored, ignore_errors=True)
        cost = self.runner.run(command, environment, self.work)
        cost.sync = timed_sync()
        self.cluster.compare(restored)
        shutil.rmtree(restored)
        return cost

    def _prepare(self, contestant, directory):
        environment = contestant.environment("prepare", self.cluster.data)
        contestant.prepare(lambda command: self.runner.run(command, environment, directory))

    def _record(self, operation, store, who, codec, cost):
        self.rows.setdefault((operation, store.name, who, codec), []).append(cost)


def compare(segment, delivered):
    if not filecmp.cmp(segment, delivered, shallow=False):
        raise Failure(f"{delivered} is not {segment.name}")
