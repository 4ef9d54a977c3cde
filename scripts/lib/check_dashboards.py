#!/usr/bin/env python3
"""Checks the Grafana dashboards of deploy/monitoring without Grafana.

usage: check_dashboards.py [--prometheus URL [--without PREFIX]...] [FILE...]

Schema, unique ids, variables, units, layout. With --prometheus each query of each panel is asked there, with the
variables' values for "all", and must return something: that finds names that nobody exports. What begins with a PREFIX,
such as pgbouncer_ where there is none, is not asked.
"""

import argparse
import collections
import json
import pathlib
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

DASHBOARDS = pathlib.Path(__file__).resolve().parents[2] / "deploy/monitoring/grafana/dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {"short", "s", "bytes", "Bps", "ops", "percentunit", "bool_yes_no", "dateTimeAsIso"}
KINDS = {"row", "stat", "timeseries", "table"}
# A metric with its matchers, as far as it has any.
METRIC = re.compile(
    r"(?<![\w:])((?:walship|pg|pgbouncer|node|process)_\w+|(?:instance|cluster|archive):[\w:]+|ALERTS|up)\b(\{[^}]*\})?"
)
VARIABLES = {"cluster": ".+", "job": ".+", "archive": ".+", "__rate_interval": "1m", "__interval": "15s", "__range": "1h"}


def whole_problems(board):
    """What is wrong with a dashboard apart from its panels."""
    for key, kind in (("uid", str), ("title", str), ("schemaVersion", int), ("time", dict), ("panels", list)):
        if not isinstance(board.get(key), kind):
            yield f"has no {key} of type {kind.__name__}"
    if board.get("schemaVersion", 0) < 36:
        yield "schemaVersion is below 36, which knows no datasource by uid"
    if board.get("editable") is not False:
        yield "is editable: a change in Grafana would be lost with the next start"
    variables = {v["name"]: v for v in board.get("templating", {}).get("list", [])}
    source = variables.get("datasource", {})
    if (source.get("type"), source.get("query")) != ("datasource", "prometheus"):
        yield "has no variable `datasource` for a Prometheus"
    expressions = " ".join(t["expr"] for p in board.get("panels", []) for t in p.get("targets", []))
    for name in {"cluster", "job"} | set(variables) - {"datasource"}:
        if name not in variables:
            yield f"has no variable `{name}`"
        elif variables[name].get("datasource") != DATASOURCE:
            yield f"its variable `{name}` does not ask ${{datasource}}"
        if f"${name}" not in expressions:
            yield f"no panel uses ${name}"


def panel_problems(panel):
    kind = panel.get("type")
    if kind not in KINDS:
        yield f"is of a kind that is not checked: {kind}"
    if not panel.get("title"):
        yield "has no title"
    if kind == "row":
        return
    if panel.get("datasource") != DATASOURCE:
        yield "does not ask ${datasource}"
    config = panel.get("fieldConfig", {})
    units = [config.get("defaults", {}).get("unit")]
    units += [p["value"] for o in config.get("overrides", []) for p in o["properties"] if p["id"] == "unit"]
    for unit in units:
        if unit not in UNITS:
            yield f"has the unit {unit}"
    if not panel.get("targets"):
        yield "asks nothing"
    ids = [t.get("refId") for t in panel.get("targets", [])]
    if len(ids) != len(set(ids)):
        yield "has two queries with one refId"
    for target in panel.get("targets", []):
        yield from target_problems(kind, target)


def target_problems(kind, target):
    expr = target.get("expr", "")
    if target.get("datasource") != DATASOURCE:
        yield "has a query that does not ask ${datasource}"
    if kind != "table" and not target.get("legendFormat"):
        yield f"has a query without a legend: {expr}"
    for name, matchers in METRIC.findall(expr):
        if 'cluster=~"$cluster"' not in matchers:
            yield f"shows all clusters: {name}"
    for window in re.findall(r"\[([^]]*)\]", expr):
        if window != "$__rate_interval":
            yield f"looks over [{window}], not over [$__rate_interval]"


def layout_problems(panels):
    taken = {}
    for panel in panels:
        grid = panel.get("gridPos", {})
        if not all(isinstance(grid.get(key), int) and grid[key] >= (key in "wh") for key in "xywh"):
            yield f"{panel.get('title')}: has no gridPos"
            continue
        if grid["x"] + grid["w"] > 24:
            yield f"{panel['title']}: is wider than the page"
        cells = [(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])]
        for other in sorted({taken[cell] for cell in cells if cell in taken}):
            yield f"{panel['title']}: lies over {other}"
        taken |= dict.fromkeys(cells, panel["title"])


def twice(values):
    return sorted(str(value) for value, count in collections.Counter(values).items() if count > 1)


def board_problems(board):
    yield from whole_problems(board)
    panels = board.get("panels", [])
    for number in twice(p.get("id") for p in panels):
        yield f"two panels have the id {number}"
    for title in twice(p.get("title") for p in panels):
        yield f"two panels have the title {title}"
    for panel in panels:
        for problem in panel_problems(panel):
            yield f"{panel.get('title')}: {problem}"
    yield from layout_problems(panels)


def filled_in(expr):
    for name, value in VARIABLES.items():
        expr = re.sub(rf"\$(?:{name}\b|\{{{name}(?::\w+)?\}})", value, expr)
    return expr


def asked(url, expr):
    """How many series Prometheus returns for it."""
    query = urllib.parse.urlencode({"query": expr})
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/v1/query?{query}", timeout=30) as answer:
            return len(json.load(answer)["data"]["result"])
    except urllib.error.HTTPError as error:
        raise ValueError(json.load(error).get("error", str(error))) from error


def empty_queries(board, url, without):
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            expr = filled_in(target["expr"])
            if any(name.startswith(without) for name, _ in METRIC.findall(expr)):
                continue
            try:
                if asked(url, expr) == 0:
                    yield f"{panel['title']}: nothing for {expr}"
            except ValueError as error:
                yield f"{panel['title']}: {error} in {expr}"


def main():
    parser = argparse.ArgumentParser(description="Checks the Grafana dashboards of deploy/monitoring.")
    parser.add_argument("--prometheus", metavar="URL", help="ask each query there, and fail where nothing comes back")
    parser.add_argument("--without", metavar="PREFIX", action="append", default=[], help="metrics that are not exported there")
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    arguments = parser.parse_args()
    files = arguments.files or sorted(DASHBOARDS.glob("*.json"))
    problems, boards, queries = [], {}, 0
    for path in files:
        try:
            boards[path.name] = json.loads(path.read_text())
        except ValueError as error:
            problems.append(f"{path.name}: is no JSON: {error}")
    for name, board in boards.items():
        found = list(board_problems(board))
        if not found and arguments.prometheus:
            found = list(empty_queries(board, arguments.prometheus, tuple(arguments.without)))
        queries += sum(len(p.get("targets", [])) for p in board.get("panels", []))
        problems += [f"{name}: {problem}" for problem in found]
    problems += [f"two dashboards have the uid {uid}" for uid in twice(b.get("uid") for b in boards.values())]
    if not boards:
        problems.append(f"there is no dashboard in {DASHBOARDS}")
    if problems:
        sys.exit("\n".join(problems))
    how = f"each has data in {arguments.prometheus}" if arguments.prometheus else "not asked"
    print(f"{len(boards)} dashboards, {queries} queries: {how}")


if __name__ == "__main__":
    main()
