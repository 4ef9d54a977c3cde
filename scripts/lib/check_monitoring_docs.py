#!/usr/bin/env python3
"""Checks that docs/monitoring.md and docs/runbook.md tell the truth about deploy/monitoring.

Every metric that walship exports, and that a rule or a panel uses, has a row, with its panels and all alerts that use it. Every alert has its section in the runbook, a test in which it fires, and every annotation.
"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy/monitoring"
METRIC = re.compile(r"(?<![\w:])((?:walship|pg|pgbouncer|node|process|probe)_\w+|(?:instance|cluster|archive):[\w:]+)")
ANNOTATIONS = {"summary", "description", "action", "runbook_url"}
# Labels and words of a histogram, no metrics of their own.
SUFFIX = re.compile(r"(walship_\w+_duration_seconds)_(?:bucket|count|sum)$")


def metrics_in(expression):
    bare = re.sub(r'"[^"]*"', '""', re.sub(r"\bby \([^)]*\)|\bon \([^)]*\)", "", expression))
    return {SUFFIX.sub(r"\1", name) for name in METRIC.findall(bare)}


def rules():
    """Kind, name, metrics and annotations of each rule."""
    for path in sorted((DEPLOY / "rules").glob("*.yml")):
        parts = re.split(r"^      - (record|alert): (\S+)$", path.read_text(), flags=re.M)
        for kind, name, body in zip(parts[1::3], parts[2::3], parts[3::3]):
            body = re.sub(r"^ *#.*$", "", body, flags=re.M)
            expression = re.split(r"^        (?:for|labels|annotations):", body.split("expr:", 1)[1], flags=re.M)[0]
            annotations = dict(re.findall(r"^          (\w+): (.+)$", body.partition("annotations:")[2], flags=re.M))
            yield kind, name, metrics_in(expression), annotations


def panels():
    """Title and metrics of each panel."""
    for path in sorted((DEPLOY / "grafana/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            yield panel["title"], set().union(*(metrics_in(t["expr"]) for t in panel.get("targets", [])), set())


def users(found, recorded):
    """For each metric, who uses it, also by way of recorded series."""
    made = {}
    for name, metrics in found:
        todo, seen = set(metrics), set()
        while todo:
            metric = todo.pop()
            if metric not in seen:
                seen.add(metric)
                todo |= recorded.get(metric, set())
        for metric in seen:
            made.setdefault(metric, set()).add(name)
    return made


def documented():
    """For each metric with a row in docs/monitoring.md: its panels and its alerts there."""
    made = {}
    for line in (ROOT / "docs/monitoring.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| `") or len(cells) != 5:
            continue
        shown = [set(re.split(r"; ", cell)) - {"–"} for cell in cells[3:]]
        for name in re.findall(r"`(\w+)", cells[0]):
            made[name] = shown
    return made


def wrong_rows(in_panels, in_alerts, rows):
    used = {metric for metric in set(in_panels) | set(in_alerts) if ":" not in metric}
    for metric in sorted(used - set(rows)):
        yield f"docs/monitoring.md has no row of {metric}"
    for metric, (shown, alerts) in sorted(rows.items()):
        titles = in_panels.get(metric, set())
        if not shown <= titles or bool(shown) != bool(titles):
            yield f"docs/monitoring.md: {metric} is in the panels {sorted(titles)}, not in {sorted(shown)}"
        if alerts != in_alerts.get(metric, set()):
            yield f"docs/monitoring.md: {metric} is in the alerts {sorted(in_alerts.get(metric, ()))}, not in {sorted(alerts)}"


def wrong_alerts(alerts):
    sections = set(re.findall(r"^## (\w+)$", (ROOT / "docs/runbook.md").read_text(), flags=re.M))
    tests = "".join(path.read_text() for path in sorted((DEPLOY / "tests").glob("*.yml")))
    fired = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:", tests))
    for name, annotations in alerts:
        if set(annotations) != ANNOTATIONS:
            yield f"{name}: has the annotations {sorted(annotations)}"
        if annotations.get("runbook_url") != f"docs/runbook.md#{name.lower()}":
            yield f"{name}: its runbook_url is {annotations.get('runbook_url')}"
        if name not in sections:
            yield f"docs/runbook.md has no section {name}"
        if name not in fired:
            yield f"{name}: fires in no test"
    for name in sorted(sections - {name for name, _ in alerts}):
        yield f"docs/runbook.md: no alert is called {name}"


def exported():
    """The names in walship's own code. A counter's ends there without `_total`."""
    for path in [*(ROOT / "src/agent/metrics").glob("*.rs"), ROOT / "src/verbs/status/metrics.rs"]:
        code = path.read_text().partition("#[cfg(test)]")[0]
        yield from re.findall(r'"((?:walship|pg|pgbouncer|process)_\w*[a-z])"', code)


def main():
    found = list(rules())
    recorded = {name: metrics for kind, name, metrics, _ in found if kind == "record"}
    # A series that remembers itself is made from the other metrics.
    in_alerts = users([(name, metrics) for kind, name, metrics, _ in found if kind == "alert"], recorded)
    in_panels = users(panels(), recorded)
    rows = documented()
    problems = list(wrong_rows(in_panels, in_alerts, rows))
    problems += [f"docs/monitoring.md has no row of {name}, which walship exports"
                 for name in sorted(set(exported())) if not {name, f"{name}_total"} & set(rows)]
    problems += wrong_alerts([(name, annotations) for kind, name, _, annotations in found if kind == "alert"])
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(rows)} metrics and {len({name for kind, name, *_ in found if kind == 'alert'})} alerts are documented")


if __name__ == "__main__":
    main()
