"""Runs all contestants in turn, and records what each run cost."""

import pathlib
import shutil

import contestants
from measure import Failure

FLOOR = "floor"
# A contestant that took this many times the best one's time in its first run is not measured any more.
HOPELESS = 1.5


class Bench:
    """What the workloads share: programs, the cluster, stores, and the rows of results."""

    def __init__(self, runner, cluster, programs, stores, options, work, say):
        self.runner, self.cluster, self.programs, self.stores = runner, cluster, programs, stores
        self.options, self.work, self.say = options, work, say
        self.segments = cluster.segments()
        self.missing = {name: "left out, or its program is not found" for name in contestants.NAMES if name not in programs}
        self.rows = {}
        self.plain = contestants.plain_environment(work)
        # Where `restore` delivers: the data directory of a standby, as far as anyone looks.
        self.target = work / "target"
        for folder in ("home", "scripts", "target/global", "target/pg_wal"):
            (work / folder).mkdir(parents=True)
        shutil.copy(cluster.data / "PG_VERSION", self.target)
        shutil.copy(cluster.data / "global/pg_control", self.target / "global")
        (self.target / "standby.signal").touch()

    def results(self):
        return [
            {"operation": operation, "store": store, "who": who, "codec": codec, "runs": [vars(cost) for cost in costs]}
            for (operation, store, who, codec), costs in self.rows.items()
        ]  # fmt: skip

    def versions(self):
        entered = contestants.field(self.programs, [""], False, self.stores[0], self.cluster, 1, self.work)
        return {contestant.name: contestant.version() for contestant in entered}

    def field(self, store, modes, next_level=False):
        return contestants.field(
            self.programs, modes, next_level, store, self.cluster, self.options.level, self.work
        )

    def rounds(self, store, entered, rounds, turn, floor, operations=()):
        """All take their turn once in each round; the one that began the last round is now last.

        A contestant that was hopelessly slow in all operations is left out after its first run.
        """
        for number in range(rounds):
            if number == 1 and operations:
                entered = self.hopeful(entered, operations)
            self.attempt(FLOOR, store, floor, number)
            for one in list(entered):
                if not self.attempt(one.label, store, turn, one, number):
                    entered.remove(one)
            entered = entered[1:] + entered[:1]

    def attempt(self, who, store, action, *arguments):
        try:
            action(*arguments)
            return True
        except Failure as failure:
            where = f"{who} on {store.name}"
            self.missing[where] = str(failure)
            self.say(f"NOT MEASURED from here on: {where}: {failure}")
            return False

    def record(self, operation, store, who, codec, cost):
        self.rows.setdefault((operation, store.name, who, codec), []).append(cost)
        self.say(f"{store.name}: {operation} by {who}: {cost.wall:.3f} s, {cost.cpu:.2f} s of CPU")

    def record_of(self, operation, contestant, cost):
        self.record(operation, contestant.store, contestant.label, contestant.codec, cost)

    def prepare(self, contestant, purpose):
        contestant.begin(purpose)
        if command := contestant.prepare():
            self.runner.command(command, contestant.environment(self.cluster.data), self.cluster.data)

    def minimal_client(self, arguments, lines=None):
        """Runs the minimal client, with lines for its input."""
        command = f"{self.programs['floor']} {arguments}"
        if lines is not None:
            listed = self.work / "lines"
            listed.write_text("".join(f"{place} {file}\n" for place, file in lines))
            command += f" < {listed}"
        return self.runner.command(command, self.plain, self.work)

    def check_stored(self, contestant, segments):
        """Fails unless the archive holds these segments, each with its content."""
        places = contestant.store.places(contestant.archive)
        lines = []
        for segment in segments:
            found = [place for name, place in places if name.startswith(segment.name)]
            if len(found) != 1:
                raise Failure(f"{len(found)} objects for {segment.name} in its archive")
            lines.append((found[0], segment))
        self.minimal_client("check 4", lines)

    def read_stored(self, store, archive):
        """Brings an archive into the caches, the S3 server's too."""
        self.minimal_client("read-all 4", [(place, "-") for _, place in store.places(archive)])

    def check_delivered(self, folder, segments):
        """Fails unless the folder holds these segments, each with its content."""
        self.minimal_client("check 4", [(pathlib.Path(folder) / segment.name, segment) for segment in segments])

    def hopeful(self, entered, operations):
        """walship, and those that were not hopelessly slow beside the best in at least one of the operations."""

        def first(one, operation):
            key = operation, one.store.name, one.label, one.codec
            return self.rows[key][0].wall if key in self.rows else float("inf")

        best = {operation: min(first(one, operation) for one in entered) for operation in operations if entered}
        return [
            one for one in entered
            if one.name == "walship" or any(first(one, each) <= HOPELESS * wall < float("inf") for each, wall in best.items())
        ]  # fmt: skip

    def rounds_on(self, store):
        """All of them on S3; the directory is there for orientation."""
        fewer = {"directory": 1, "s3-20ms": self.options.rounds - 1}
        return max(1, fewer.get(store.name, self.options.rounds))
