"""The targets for walship, and whether it met them in this run."""

import report
from operations import FLOOR

MEBIBYTE = 1 << 20
PEER, CP = "the best peer", "cp from a directory"
NO_AGENT, AGENT = ("walship",), ("walship, agent",)
STORES = ["directory", "s3", "s3-20ms"]
# Workload, operation, stores, walship's mode, and each figure with its limit as a multiple of a reference (or in MiB).
WORKLOADS = [
    ("W1 push", "push", STORES, NO_AGENT, [("wall", 0.75, PEER), ("cpu", 0.75, PEER)]),
    ("W1 push", "push", ["s3"], NO_AGENT, [("memory", 32, None)]),
    ("restore", "restore", STORES, NO_AGENT, [("wall", 0.8, PEER), ("cpu", 0.8, PEER)]),
    ("restore", "restore", ["s3"], NO_AGENT, [("memory", 24, None)]),
    *(
        (f"W2 {operation}", operation, stores, AGENT, [("wall", 0.9, PEER), ("cpu", 0.9, PEER), ("daemon_memory", 64, None)])
        for operation, stores in [("backlog", STORES[1:]), ("archiver", ["s3"])]
    ),
    ("W3 restores", "restores", STORES[1:], AGENT, [("wall", 0.65, PEER), ("cpu", 0.7, PEER), ("daemon_memory", 48, None)]),
    ("W4 recovery", "recovery", STORES[1:], AGENT, [("wall", 0.85, PEER), ("wall", 1.02, CP), ("daemon_memory", 48, None)]),
    ("W5 base backup", "backup", ["s3"], NO_AGENT, [("wall", 0.95, PEER), ("total_cpu", 1.0, PEER), ("memory", 128, None)]),
    ("W6 its restore, on the disk", "durable", ["s3"], NO_AGENT, [("wall", 0.7, PEER), ("cpu", 0.9, PEER), ("memory", 64, None)]),
]
TARGETS = [
    (f"{workload}, {store}", operation, store, mode, *figure)
    for workload, operation, stores, mode, figures in WORKLOADS
    for store in stores
    for figure in figures
]
# Where the floor allows no less than a target, the target is this multiple of the floor.
ABOVE_FLOOR = 1.05
WORDS = {
    "wall": "wall", "cpu": "CPU", "total_cpu": "CPU, with the server's", "memory": "peak memory",
    "daemon_memory": "the agent's peak memory",
}  # fmt: skip


def table(result):
    return "Targets", ["", "target", "measured", ""], [line for target in TARGETS if (line := judge(result["rows"], target))]


def judge(rows, target):
    """A line for people; None where walship was not measured."""
    workload, operation, store, (who,), what, limit, reference = target
    ours = pick(rows, operation, store, who)
    if not ours:
        return None
    if reference is None:
        value = value_of(ours, what) / MEBIBYTE
        return [workload, f"{WORDS[what]} at most {limit} MiB", f"{value:.1f} MiB", verdict(value, limit)]
    if reference == PEER:
        theirs, ours, name = best_peer(rows, ours, what)
        floor = pick(rows, operation, store, FLOOR)
        if theirs and floor and value_of(floor, what) > limit * value_of(theirs, what):
            ratio = value_of(ours, what) / value_of(floor, what)
            asked = f"{WORDS[what]} at most {limit}x {PEER}; the floor is above that, so {ABOVE_FLOOR}x floor"
            return [workload, asked, f"{ratio:.2f}x", verdict(ratio, ABOVE_FLOOR)]
    else:
        theirs, name = pick(rows, operation, store, reference), ""
    if not theirs:
        return [workload, f"{WORDS[what]} at most {limit}x {reference}", "not measured", ""]
    ratio = value_of(ours, what) / (value_of(theirs, what) or float("inf"))
    return [workload, f"{WORDS[what]} at most {limit}x {reference}", f"{ratio:.2f}x{name}", verdict(ratio, limit)]


def best_peer(rows, ours, what):
    """The peer's row, ours that compares with it, and a remark on them."""
    chosen = [row for row in rows if (row["operation"], row["store"]) == (ours["operation"], ours["store"])]
    peers = [row for row in chosen if not (report.is_floor(row) or report.is_walship(row))]
    if not peers:
        return None, ours, ""
    best = min(peers, key=lambda row: value_of(row, what))
    if report.compares(ours, best):
        return best, ours, f" ({best['who']})"
    for other in chosen:
        if report.is_walship(other) and report.compares(other, best):
            return best, other, f" ({best['who']}, to {other['who']})"
    return best, ours, f" ({best['who']}, which stores less)"


def pick(rows, operation, store, who):
    wanted = operation, store, who
    return next((row for row in rows if (row["operation"], row["store"], row["who"]) == wanted), None)


def value_of(row, what):
    return report.total_cpu(row) if what == "total_cpu" else report.median_of(row, what)


def verdict(value, limit):
    return "met" if value <= limit else "NOT MET"
