"""What was measured, for people: on the terminal, in docs/benchmarks.md and in docs/benchmarks-results.md."""

import datetime
import os
import pathlib
import platform
import re
import shlex
import subprocess

import targets
from measure import Failure, median
from operations import FLOOR

TITLES = {
    "push": "W1, push of one 16 MiB segment",
    "ahead": "W1, push of a segment that the agent has stored",
    "restore": "Restore of one 16 MiB segment",
    "backlog": "W2, a backlog, simulated archiver",
    "archiver": "W2, a backlog, a real PostgreSQL's archiver",
    "restores": "W3, restores in sequence",
    "recovery": "W4, a real PostgreSQL's recovery",
    "backup": "W5, base backup",
    "recover": "W6, restore of the base backup, as each leaves it",
    "durable": "W6, restore of the base backup, until it is on the disk",
}
HEAD = [
    "", "runs", "wall, median", "range", "CPU", "server's CPU", "peak memory", "of the daemon", "stored", "to the floor",
    "walship is",
]  # fmt: skip


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
    """The command without flags that name places on this machine."""
    kept = list(arguments[1:])
    for flag in ("--examples", "--json", "--walship", "--work"):
        if flag in kept:
            at = kept.index(flag)
            del kept[at : at + 2]
    kept = [argument for argument in kept if not argument.startswith("/")]
    return shlex.join(["scripts/bench", *kept])


def memory_gib():
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def data(cluster):
    size = sum(path.stat().st_size for path in (cluster.data / "base").rglob("*") if path.is_file())
    return {"cluster": f"{size / 2**20:.0f} MiB", "segments": f"{len(cluster.segments())} of 16 MiB"}


def text(result):
    lines = [f"{key}: {value}" for key, value in facts(result)]
    summary = [] if "levels" in result else [targets.table(result)]
    for title, head, rows in [*summary, *tables(result)]:
        widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]
        lines += ["", title]
        for line in [head, *rows]:
            cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
            lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write_markdown(page, result):
    """Replaces the text between the markers for this kind of result: with every figure in the page of results, and in `page`
    with the targets and one short table for each workload."""
    about = [f"- {key}: {'`' + value + '`' if key == 'command' else value}" for key, value in facts(result)]
    kind = kind_of("levels" in result)
    write_between(results_page(page), kind, [*about, *markdown_tables(tables(result))])
    if kind == "operations":
        plot = page.with_suffix(".svg").name
        lines = [*about, *markdown_tables([targets.table(result), *summaries(result["rows"])])]
        lines += ["", f"![walship beside its peers: wall time as a multiple of the fastest]({plot})"]
        write_between(page, kind, lines)


def check_pages(page, levels):
    """Fails before anything is measured if the page lacks the markers."""
    for each in [results_page(page)] if levels else [results_page(page), page]:
        marked(each, kind_of(levels))


def results_page(page):
    """Beside the page, for all figures."""
    return page.with_name(f"{page.stem}-results.md")


def kind_of(levels):
    return "levels" if levels else "operations"


def write_between(page, kind, lines):
    before, after = marked(page, kind)
    page.write_text("\n".join([before, *lines, after]))


def marked(page, kind):
    """The page up to the marker that begins the figures, with it, and from the marker that ends them."""
    begin, end = f"<!-- bench: {kind} -->", f"<!-- end: {kind} -->"
    before, _, rest = page.read_text().partition(begin) if page.exists() else ("", "", "")
    after = rest.partition(end)[2]
    if not after:
        raise Failure(f"{page} has no lines {begin} and {end} to write between")
    return before + begin, end + after


def markdown_tables(chosen):
    for title, head, rows in chosen:
        yield from ["", f"**{title}**", "", *markdown_rows([head, ["---"] + ["--:"] * (len(head) - 1), *rows])]


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
    for operation, title in TITLES.items():
        for store in dict.fromkeys(row["store"] for row in rows):
            if chosen := [row for row in rows if row["store"] == store and row["operation"] == operation]:
                yield f"{title}, {store}", HEAD, list(operation_rows(chosen))


def summaries(rows):
    """For each workload the medians, and how many times faster walship is, with a column for each store."""
    for operation, title in TITLES.items():
        chosen = [row for row in rows if row["operation"] == operation]
        stores = list(dict.fromkeys(row["store"] for row in chosen))
        cells = {}
        for store in stores:
            here = [row for row in chosen if row["store"] == store]
            ours = [row for row in here if is_walship(row)]
            for row in sorted(here, key=by_kind):
                cells.setdefault(name(row), {})[store] = summary(ours, row)
        if cells:
            yield title, ["", *stores], [[who, *(of.get(store, "") for store in stores)] for who, of in cells.items()]


def summary(ours, row):
    wall = seconds(median_of(row, "wall"))
    if not ours or is_floor(row) or is_walship(row):
        return wall
    chosen, fair = rival(ours, row)
    times = median_of(row, "wall") / median_of(chosen, "wall")
    return f"{wall} ({times:.2f}x{'' if fair else ', stores less'})"


def level_table(levels):
    head = ["data", "level", "ratio", "MB compressed in 1 s of CPU", "decompressed"]
    rows = []
    for row in levels:
        speeds = (f"{row[direction]:.0f}" for direction in ("compress_mb_s", "decompress_mb_s"))
        rows.append([row["data"], str(row["level"]), f"{row['ratio']:.2f}", *speeds])
    return "zstd levels", head, rows


def operation_rows(rows):
    """walship first, floors last."""
    floor = next((median_of(row, "wall") for row in rows if row["who"] == FLOOR), None)
    ours = [row for row in rows if is_walship(row)]
    for row in sorted(rows, key=by_kind):
        wall = median_of(row, "wall")
        walls = [run["wall"] for run in row["runs"]]
        yield [
            name(row),
            str(len(walls)),
            seconds(wall),
            f"{seconds(min(walls))} to {seconds(max(walls))}",
            filled(median_of(row, "cpu"), seconds),
            filled(median_of(row, "server_cpu"), seconds),
            filled(0 if is_floor(row) else median_of(row, "memory"), mebibytes),
            filled(median_of(row, "daemon_memory"), mebibytes),
            filled(median_of(row, "stored"), mebibytes),
            f"{wall / floor:.2f}" if floor else "",
            advantage(ours, row) if ours and not (is_floor(row) or is_walship(row)) else "",
        ]


def by_kind(row):
    return is_floor(row), not is_walship(row)


def name(row):
    return f"{row['who']} ({row['codec']})" if "fastest" in row["codec"] else row["who"]


def is_walship(row):
    return row["who"].startswith("walship")


def is_floor(row):
    return not row["codec"]


def advantage(ours, theirs):
    """How many times faster walship is, in its fastest mode that compares fairly; see docs/benchmarks.md."""
    chosen, fair = rival(ours, theirs)
    wall = median_of(theirs, "wall") / median_of(chosen, "wall")
    cpu = total_cpu(theirs) / (total_cpu(chosen) or 1)
    against = chosen["who"].removeprefix("walship").strip(", ")
    note = ", ".join(filter(None, [against, "" if fair else "stores less"]))
    return f"{wall:.2f}x wall, {cpu:.2f}x CPU" + (f" ({note})" if note else "")


def rival(ours, theirs):
    """walship in its fastest mode that compares fairly, and whether any does."""
    same = [row for row in ours if row["codec"] == theirs["codec"]]
    fair = same or [row for row in ours if compares(row, theirs)]
    return min(fair or ours, key=lambda row: median_of(row, "wall")), bool(fair)


def compares(ours, theirs):
    """The same codec and level, or no more stored bytes."""
    return ours["codec"] == theirs["codec"] or median_of(ours, "stored") <= median_of(theirs, "stored")


def total_cpu(row):
    return median([run["cpu"] + run["server_cpu"] for run in row["runs"]])


def median_of(row, what):
    return median([run[what] for run in row["runs"]])


def filled(value, form):
    return form(value) if value else ""


def mebibytes(value):
    return f"{value / 2**20:.1f} MiB"


def seconds(value):
    return f"{value * 1000:.1f} ms" if value < 0.9995 else f"{value:.2f} s"
