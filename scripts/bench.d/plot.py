"""The plot for docs/benchmarks.md: wall time of everyone in each workload, as SVG."""

import html

import report

PANEL_WIDTH, LABEL_WIDTH, BAR, GAP, TITLE, MARGIN, COLUMNS = 430, 150, 13, 4, 30, 14, 2
# Colours that can be told apart by everyone, on a light ground and on a dark one.
COLOURS = {"walship": "#0072b2", "pgbackrest": "#e69f00", "wal-g": "#009e73", "walrus": "#cc79a7"}
FLOOR_COLOUR = "#999999"


def draw(result):
    """One panel for each workload and store, longest bar at its right edge, side by side by columns."""
    panels, tops = [], [MARGIN] * COLUMNS
    for title, rows in chosen_panels(result["rows"]):
        column = tops.index(min(tops))
        left = MARGIN + column * (PANEL_WIDTH + MARGIN)
        panels.append(panel(title, rows, left, tops[column]))
        tops[column] += TITLE + len(rows) * (BAR + GAP) + MARGIN
    width, height = MARGIN + COLUMNS * (PANEL_WIDTH + MARGIN), max(tops)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>', *panels, "</svg>", "",
    ])  # fmt: skip


def chosen_panels(rows):
    for operation, title in report.TITLES.items():
        for store in dict.fromkeys(row["store"] for row in rows):
            chosen = [row for row in rows if (row["operation"], row["store"]) == (operation, store)]
            if chosen:
                yield f"{title}, {store}", sorted(chosen, key=lambda row: report.median_of(row, "wall"))


def panel(title, rows, left, top):
    longest = max(report.median_of(row, "wall") for row in rows)
    parts = [f'<text x="{left}" y="{top + 18}" font-weight="bold">{html.escape(title)}</text>']
    for number, row in enumerate(rows):
        wall, y = report.median_of(row, "wall"), top + TITLE + number * (BAR + GAP)
        # Room at the right for the figure.
        length = wall / longest * (PANEL_WIDTH - LABEL_WIDTH - 60)
        colour = COLOURS.get(row["who"].split(",")[0].split(" ")[0], FLOOR_COLOUR)
        parts += [
            f'<text x="{left + LABEL_WIDTH - 6}" y="{y + BAR - 3}" text-anchor="end">{html.escape(row["who"])}</text>',
            f'<rect x="{left + LABEL_WIDTH}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<text x="{left + LABEL_WIDTH + length + 5:.1f}" y="{y + BAR - 3}">{report.seconds(wall)}</text>',
        ]
    return "\n".join(parts)
