"""W2 to W4, many segments: archiving a backlog, restoring one after the other, a server's recovery."""

import os
import shutil

from measure import freshen
from operations import FLOOR

# Concurrent requests in the floors, so that neither cores nor the store are idle.
CONNECTIONS = 2 * os.cpu_count()
FROM_DIRECTORY, IN_PLACE = "cp from a directory", "all WAL in pg_wal"


def measure(bench, store, wanted):
    if not {"backlog", "archiver", "restores", "recovery"} & wanted:
        return
    bench.say(f"{store.name}: {len(bench.segments)} segments archived, restored and replayed by each")
    rounds = bench.rounds_on(store)
    turns = Turns(bench, store, wanted)
    entered = bench.field(store, ["", "agent", "async", "daemon"])
    bench.rounds(store, entered, rounds, turns.turn, turns.floor, ["backlog", "restores", "recovery"])
    if "archiver" in wanted and store.name == "s3":
        # A contestant that is hopeless there is hopeless here too.
        entered = bench.hopeful(entered, ["backlog"])
        bench.rounds(store, entered, rounds, turns.archiver, turns.floor_archiver)


class Turns:
    """What each does in one round: everything with one archive."""

    def __init__(self, bench, store, wanted):
        self.bench, self.store, self.wanted = bench, store, wanted
        self.runner, self.cluster, self.segments = bench.runner, bench.cluster, bench.segments
        # Without the segments after the recovery's target.
        self.replayed = self.segments[: bench.options.replayed]

    def turn(self, one, number):
        bench, data = self.bench, self.cluster.data
        self.cluster.pile_up(len(self.segments))
        bench.prepare(one, f"stream{number}")
        try:
            self._archive(one, data)
            self._warm(one)
            if "restores" in self.wanted:
                self._restore(one)
            if "recovery" in self.wanted:
                self._recover(one)
        finally:
            one.store.discard(one.archive)

    def _archive(self, one, data):
        environment = one.environment(data)
        freshen(*self.segments, one.program)
        arguments = one.push(), [segment.name for segment in self.segments]
        cost = self.runner.run("archive", arguments, environment, data, daemon=one.daemon(data))[0]
        cost.stored = one.store.bytes(one.archive)
        self.bench.record_of("backlog", one, cost)

    def archiver(self, one, number):
        """A backlog, by a real server."""
        bench, cluster, data = self.bench, self.cluster, self.cluster.data
        cluster.pile_up(len(self.segments))
        bench.prepare(one, f"archiver{number}")
        try:
            freshen(*self.segments, one.program)
            environment = one.environment(data) | {"LD_LIBRARY_PATH": cluster.libraries}
            setting = cluster.archive_setting(one.in_server(one.push()))
            arguments = cluster.server(data), str(cluster.archiving), setting
            cost = self.runner.run("archiver", arguments, environment, data, daemon=one.daemon(data))[0]
            cost.stored = one.store.bytes(one.archive)
            bench.check_stored(one, self.segments)
            bench.record_of("archiver", one, cost)
        finally:
            cluster.stop()
            one.store.discard(one.archive)

    def _restore(self, one):
        target = self.bench.target
        empty(target / "pg_wal")
        arguments = one.restore(), [segment.name for segment in self.segments]
        cost = self.runner.run("restore", arguments, one.environment(target), target, daemon=one.daemon(target))[0]
        self.bench.check_delivered(target / "pg_wal", self.segments)
        empty(target / "pg_wal")
        self.bench.record_of("restores", one, cost)

    def _recover(self, one):
        directory = self.bench.work / "recovering"
        self.cluster.recovering(directory, one.in_server(one.restore()), len(self.replayed))
        self._warm(one)
        cost = self._recovery(directory, one.environment(directory), one.daemon(directory))
        self.bench.record_of("recovery", one, cost)

    def _recovery(self, directory, environment, daemon=None):
        environment |= {"LD_LIBRARY_PATH": self.cluster.libraries}
        arguments = [self.cluster.server(directory)]
        cost = self.runner.run("recovery", arguments, environment, directory, daemon=daemon)[0]
        self.bench.check_delivered(directory / "pg_wal", self.replayed)
        shutil.rmtree(directory)
        return cost

    def _warm(self, one):
        """Brings the machine into a comparable state, in which the stored objects were just read."""
        freshen(one.program)
        self.bench.check_stored(one, self.segments)

    # --- floors ---

    def floor(self, number):
        bench, store, archive = self.bench, self.store, f"floor-stream{number}"
        self._floor_archive("backlog", archive)
        if "restores" in self.wanted:
            folder = bench.target / "pg_wal"
            empty(folder)
            freshen()
            bench.read_stored(store, archive)
            gets = [(store.target("GET", archive, segment.name), folder / segment.name) for segment in self.segments]
            cost = bench.minimal_client(f"get-all {CONNECTIONS}", gets)
            bench.check_delivered(folder, self.segments)
            empty(folder)
            bench.record("restores", store, FLOOR, "", cost)
        store.discard(archive)
        if "recovery" in self.wanted:
            self._floor_recovery()

    def floor_archiver(self, number):
        archive = f"floor-archiver{number}"
        self._floor_archive("archiver", archive)
        self.store.discard(archive)

    def _floor_archive(self, operation, archive):
        bench, store = self.bench, self.store
        store.make(archive)
        freshen(*self.segments)
        puts = [(store.target("PUT", archive, segment.name), segment) for segment in self.segments]
        cost = bench.minimal_client(f"put-all {CONNECTIONS} {bench.options.level}", puts)
        cost.stored = store.bytes(archive)
        bench.record(operation, store, FLOOR, "", cost)

    def _floor_recovery(self):
        """With a local directory as the archive, and without any archive."""
        directory, data = self.bench.work / "recovering", self.cluster.data
        for who, command in (FROM_DIRECTORY, f"cp {data}/pg_wal/%f %p"), (IN_PLACE, "false"):
            self.cluster.recovering(directory, command, len(self.replayed))
            if who == IN_PLACE:
                for segment in self.replayed:
                    (directory / "pg_wal" / segment.name).unlink(missing_ok=True)
                    os.link(segment, directory / "pg_wal" / segment.name)
            freshen(*self.replayed)
            cost = self._recovery(directory, dict(self.bench.plain))
            self.bench.record("recovery", self.store, who, "", cost)


def empty(folder):
    """Removes everything in the folder, also what restore commands left there."""
    shutil.rmtree(folder)
    folder.mkdir()
