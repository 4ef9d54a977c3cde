"""The targets for walship, and whether it met them in this run."""

import report
from operations import FLOOR

MEBIBYTE = 1 << 20
PEER, CP = "the best peer", "cp from a directory"
NO_AGENT, AGENT, LOCAL = ("walship",), ("walship, agent",), ("walship, local",)
# Workload, operation, store, walship's mode, the figure, and its limit as a multiple of a reference (or in MiB).
TARGETS = [
    ("W1 push, no agent", "push", "s3", NO_AGENT, "wall", 0.8, PEER),
    ("W1 push, no agent", "push", "s3", NO_AGENT, "wall", 1.3, FLOOR),
    ("W1 push, no agent", "push", "s3", NO_AGENT, "cpu", 1.0, PEER),
    ("W1 push, no agent", "push", "s3", NO_AGENT, "memory", 24, None),
    ("W1 push, the agent has stored it", "ahead", "s3", AGENT, "wall", 2.0, FLOOR),
    ("W2 backlog", "backlog", "s3", AGENT, "wall", 0.8, PEER),
    ("W2 backlog", "backlog", "s3", AGENT, "wall", 1.15, FLOOR),
    ("W2 backlog", "backlog", "s3", AGENT, "cpu", 1.0, PEER),
    ("W2 backlog", "backlog", "s3", AGENT, "daemon_memory", 64, None),
    ("W2 backlog, real archiver", "archiver", "s3", AGENT, "wall", 0.8, PEER),
    ("W2 backlog, real archiver", "archiver", "s3", AGENT, "wall", 1.15, FLOOR),
    ("W2 backlog, real archiver", "archiver", "s3", AGENT, "cpu", 1.0, PEER),
    ("W2 backlog at 20 ms", "backlog", "s3-20ms", AGENT, "wall", 0.8, PEER),
    ("W2 backlog at 20 ms", "backlog", "s3-20ms", AGENT, "cpu", 1.0, PEER),
    ("W3 restores", "restores", "s3", AGENT, "wall", 0.8, PEER),
    ("W3 restores", "restores", "s3", AGENT, "cpu", 1.0, PEER),
    ("W3 restores", "restores", "s3", AGENT, "daemon_memory", 64, None),
    ("W3 restores at 20 ms", "restores", "s3-20ms", AGENT, "wall", 0.8, PEER),
    ("W3 restores at 20 ms", "restores", "s3-20ms", AGENT, "cpu", 1.0, PEER),
    ("W4 recovery", "recovery", "s3", AGENT, "wall", 0.9, PEER),
    ("W4 recovery", "recovery", "s3", AGENT, "wall", 1.1, CP),
    ("W4 recovery", "recovery", "s3", AGENT, "cpu", 1.0, PEER),
    ("W4 recovery", "recovery", "s3", AGENT, "daemon_memory", 64, None),
    ("W4 recovery at 20 ms", "recovery", "s3-20ms", AGENT, "wall", 1.1, "the same without latency"),
    ("W5 base backup", "backup", "s3", NO_AGENT, "wall", 0.75, PEER),
    ("W5 base backup", "backup", "s3", NO_AGENT, "wall", 1.15, FLOOR),
    ("W5 base backup", "backup", "s3", NO_AGENT, "total_cpu", 1.2, PEER),
    ("W5 base backup", "backup", "s3", NO_AGENT, "memory", 192, None),
    ("W5 base backup, local", "backup", "s3", LOCAL, "wall", 0.75, PEER),
    ("W5 base backup, local", "backup", "s3", LOCAL, "wall", 1.15, FLOOR),
    ("W5 base backup, local", "backup", "s3", LOCAL, "total_cpu", 1.2, PEER),
    ("W5 base backup, local", "backup", "s3", LOCAL, "memory", 192, None),
    ("W6 its restore", "recover", "s3", NO_AGENT, "wall", 0.9, PEER),
    ("W6 its restore", "recover", "s3", NO_AGENT, "wall", 1.0, FLOOR),
    ("W6 its restore", "recover", "s3", NO_AGENT, "cpu", 1.0, PEER),
    ("W6 its restore", "recover", "s3", NO_AGENT, "memory", 192, None),
]
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
    else:
        # The store without latency, for "the same".
        theirs = pick(rows, operation, store, reference) if reference in (FLOOR, CP) else pick(rows, operation, "s3", who)
        name = ""
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
