"""What was measured, for people: on the terminal and in docs/benchmarks.md."""

import datetime
import os
import pathlib
import platform
import re
import shlex
import subprocess

from measure import Failure, median
from operations import FLOOR, SPAWN

TITLES = {
    "push": "Push of one 16 MiB segment",
    "restore": "Restore of one 16 MiB segment",
    "backup": "Base backup",
    "recover": "Restore of the base backup",
}
HEAD = ["", "wall, median", "range", "CPU", "server's CPU", "peak memory", "stored", "to the floor", "walship is"]


def machine(options, postgres, arguments):
    """What the figures depend on."""
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    libraries = {"LD_LIBRARY_PATH": f"{postgres}/lib"}
    version = subprocess.run([f"{postgres}/bin/postgres", "--version"], capture_output=True, text=True, env=libraries)
    return {
        "date": datetime.date.today().isoformat(),
        "command": command(arguments),
        "machine": f"{os.cpu_count()} cores, {model.group(1) if model else platform.machine()}, {memory_gib()} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "PostgreSQL": version.stdout.strip().rpartition(" ")[2],
    }


def command(arguments):
    """Without what names places on this machine."""
    kept = list(arguments[1:])
    for flag in ("--floor", "--json", "--walship", "--work"):
        if flag in kept:
            at = kept.index(flag)
            del kept[at : at + 2]
    kept = [argument for argument in kept if not argument.startswith("/")]
    return shlex.join(["scripts/bench", *kept])


def memory_gib():
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def data(cluster):
    size = int(cluster.sql("select sum(pg_database_size(oid)) from pg_database"))
    return {"cluster": f"{size / 2**20:.0f} MiB", "segments": f"{len(cluster.segments())} of 16 MiB"}


def text(result):
    lines = [f"{key}: {value}" for key, value in facts(result)]
    for title, head, rows in tables(result):
        widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]
        lines += ["", title]
        for line in [head, *rows]:
            cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
            lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write_markdown(page, result):
    """Replaces what stands between the page's markers for this kind of result."""
    lines = [f"- {key}: {'`' + value + '`' if key == 'command' else value}" for key, value in facts(result)]
    for title, head, rows in tables(result):
        lines += ["", f"**{title}**", "", *markdown_rows([head, ["---"] + ["--:"] * (len(head) - 1), *rows])]
    before, after = marked(page, "levels" in result)
    page.write_text("\n".join([before, *lines, after]))


def marked(page, levels):
    """The page up to and with the marker that begins the figures, and from the one that ends them."""
    kind = "levels" if levels else "operations"
    begin, end = f"<!-- bench: {kind} -->", f"<!-- end: {kind} -->"
    before, _, rest = page.read_text().partition(begin) if page.exists() else ("", "", "")
    after = rest.partition(end)[2]
    if not after:
        raise Failure(f"{page} has no lines {begin} and {end} to write between")
    return before + begin, end + after


def markdown_rows(rows):
    return ["| " + " | ".join(row) + " |" for row in rows]


def facts(result):
    yield from result["machine"].items()
    yield from result.get("versions", {}).items()
    for who, why in result.get("missing", {}).items():
        yield f"NOT MEASURED: {who}", why


def tables(result):
    if "levels" in result:
        yield level_table(result["levels"])
        return
    rows = result["rows"]
    for store in dict.fromkeys(row["store"] for row in rows):
        for operation, title in TITLES.items():
            chosen = [row for row in rows if row["store"] == store and row["operation"] == operation]
            spawn = [row for row in rows if row["store"] == store and row["who"] == SPAWN]
            if chosen:
                yield f"{title}, {store}", HEAD, list(operation_rows(chosen, spawn))


def level_table(levels):
    head = ["data", "level", "ratio", "MB compressed in 1 s of CPU", "decompressed"]
    rows = []
    for row in levels:
        speeds = (f"{row[direction]:.0f}" for direction in ("compress_mb_s", "decompress_mb_s"))
        rows.append([row["data"], str(row["level"]), f"{row['ratio']:.2f}", *speeds])
    return "zstd levels", head, rows


def operation_rows(rows, spawn):
    """The floor last; push and restore stand on the floor of a process that does nothing."""
    spawned = median_of(spawn[0], "wall") if spawn and rows[0]["operation"] in ("push", "restore") else 0
    spawned_cpu = median_of(spawn[0], "cpu") if spawned else 0
    by_name = {row["who"]: row for row in rows}
    floor = median_of(by_name[FLOOR], "wall") + spawned
    ours = [row for row in rows if is_walship(row["who"])]
    for who, row in sorted(by_name.items(), key=lambda item: (item[0] == FLOOR, not is_walship(item[0]))):
        wall, is_floor = median_of(row, "wall"), who == FLOOR
        walls = [run["wall"] + (spawned if is_floor else 0) for run in row["runs"]]
        server = median_of(row, "server_cpu")
        label = f"{who} ({row['codec']})" if "fastest" in row["codec"] else who
        yield [
            f"floor (of which /bin/true {seconds(spawned)})" if is_floor and spawned else label,
            seconds(floor if is_floor else wall),
            f"{seconds(min(walls))} to {seconds(max(walls))}",
            seconds(median_of(row, "cpu") + (spawned_cpu if is_floor else 0)),
            seconds(server) if server else "",
            "" if is_floor else f"{median_of(row, 'memory') / 2**20:.1f} MiB",
            f"{median_of(row, 'stored') / 2**20:.2f} MiB" if median_of(row, "stored") else "",
            "1.00" if is_floor else f"{wall / floor:.2f}",
            advantage(ours, row) if ours and not (is_floor or is_walship(who)) else "",
        ]


def is_walship(who):
    return who.startswith("walship")


def advantage(ours, theirs):
    """How many times faster walship is, in wall time and in CPU; see the rule in docs/benchmarks.md."""
    fair = [
        row for row in ours if row["codec"] == theirs["codec"] or median_of(row, "stored") <= median_of(theirs, "stored")
    ]
    chosen = (fair or ours)[0]
    wall = median_of(theirs, "wall") / median_of(chosen, "wall")
    cpu = total_cpu(theirs) / total_cpu(chosen)
    against = chosen["who"].removeprefix("walship").strip()
    note = "stores less" if not fair else against
    return f"{wall:.2f}x wall, {cpu:.2f}x CPU" + (f" ({note})" if note else "")


def total_cpu(row):
    return median([run["cpu"] + run["server_cpu"] for run in row["runs"]])


def median_of(row, what):
    return median([run[what] for run in row["runs"]])


def seconds(value):
    return f"{value * 1000:.1f} ms" if value < 0.9995 else f"{value:.2f} s"
