"""W1, one segment: pushed, restored, and pushed when the agent has it in the archive already."""

import json

from measure import Cost, freshen
from operations import FLOOR

SPAWN = "/bin/true"
DELIVERED = "pg_wal/RECOVERYXLOG"


def measure(bench, store, wanted):
    runs = bench.options.runs
    if {"push", "restore"} & wanted:
        bench.say(f"{store.name}: {runs} segments pushed and restored by each")
        store.make("floor-wal")
        entered = bench.field(store, ["", "agent", "daemon"], next_level=True)
        entered = [one for one in entered if bench.attempt(one.label, store, begin, bench, one)]
        bench.rounds(
            store, entered, runs, lambda one, number: turn(bench, one, number), lambda number: floor(bench, store, number)
        )
    if "ahead" in wanted:
        for one in bench.field(store, ["agent"]):
            bench.attempt(one.label, store, ahead, bench, one)


def begin(bench, one):
    """The first push and restore warm up and are not counted."""
    bench.cluster.pile_up(0)
    bench.prepare(one, "wal")
    turn(bench, one, -1)


def turn(bench, one, number):
    """Pushes the round's segment, restores and compares it."""
    data, target, segment = bench.cluster.data, bench.target, bench.segments[number + 1]
    before = one.store.bytes(one.archive)
    freshen(segment, drop=False)
    command = one.push().replace("%p", f"pg_wal/{segment.name}").replace("%f", segment.name)
    with bench.cluster.waiting(segment, one.home):
        cost = bench.runner.command(command, one.environment(data, ahead=False), data, daemon=one.daemon(data))
    cost.stored = one.store.bytes(one.archive) - before
    freshen(segment, drop=False)
    command = one.restore().replace("%p", DELIVERED).replace("%f", segment.name)
    back = bench.runner.command(command, one.environment(target, ahead=False), target, daemon=one.daemon(target))
    back.stored = cost.stored
    check(bench, segment)
    if number >= 0:
        bench.record_of("push", one, cost)
        bench.record_of("restore", one, back)


def floor(bench, store, number):
    """Spawning a program that does nothing, and the work of a minimal client on a warm connection."""
    spawned = bench.runner.command(SPAWN, bench.plain, bench.work)
    warm, segment = bench.segments[0], bench.segments[number + 1]
    names = f"{number}-warm.zst", f"{number}.zst"
    # The client stores the same file twice; the second time counts.
    puts = [f"'{store.target('PUT', 'floor-wal', name)}'" for name in names]
    cost = inside(bench, "put", *puts, bench.options.level, segment)
    gets = [f"'{store.target('GET', 'floor-wal', name)}'" for name in names]
    back = inside(bench, "get", *gets, bench.target / DELIVERED)
    check(bench, segment)
    for operation, cost in ("push", cost), ("restore", back):
        cost.wall += spawned.wall
        cost.cpu += spawned.cpu
        bench.record(operation, store, FLOOR, "", cost)


def inside(bench, *arguments):
    """Cost of the minimal client as it measures itself: without its start."""
    freshen(drop=False)
    whole = bench.minimal_client(" ".join(map(str, arguments)))
    told = json.loads(bench.runner.output.read_text())
    return Cost(told["wall_us"] / 1e6, told["cpu_us"] / 1e6, memory=whole.memory, stored=told["stored"])


def ahead(bench, one):
    """Pushes of segments that the agent has stored already, in turn with /bin/true."""
    ready = bench.cluster.pile_up(bench.options.runs + 2)
    bench.prepare(one, "ahead")
    pushes = [one.push().replace("%p", f"pg_wal/{name}") for name in ready]
    # Asked for the first segment, the agent begins with all of them. Asked for the last, it answers when all are stored.
    before = [pushes[0], pushes[-1]]
    timed = [command for push in pushes[1:-1] for command in (SPAWN, push)]
    data = bench.cluster.data
    environment = one.environment(data) | {"WALSHIP_AGENT_LOOKAHEAD": str(len(ready))}
    costs = bench.runner.run("commands", timed, environment, data, daemon=one.daemon(data), before=before)
    bench.check_stored(one, bench.segments[: len(ready)])
    for spawned, pushed in zip(costs[::2], costs[1::2]):
        pushed.daemon_memory = costs[0].daemon_memory
        bench.record("ahead", one.store, FLOOR, "", Cost(spawned.wall, 0))
        bench.record_of("ahead", one, pushed)
    one.store.discard(one.archive)


def check(bench, segment):
    """Fails unless the segment was delivered."""
    delivered = bench.target / DELIVERED
    bench.minimal_client("check 1", [(delivered, segment)])
    delivered.unlink()
