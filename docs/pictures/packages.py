"""Draw the packages of a checkout and the imports between them, as an SVG picture.

    python docs/pictures/packages.py nemo_openmath > docs/pictures/packages.svg

A package stands one row above the highest package that it imports. A line goes down from a package to one that it
imports; where one goes up or sideways it is red. Imports under TYPE_CHECKING count as all others.
"""

from __future__ import annotations

import ast
import sys
from html import escape
from pathlib import Path

WIDTH, ROW, BOX_HEIGHT, MARGIN = 980, 84, 32, 20


Arrow = tuple[str, str]
"""The importing package and the imported one."""


def read(package: Path) -> tuple[set[str], set[Arrow]]:
    """Return the packages of a checkout and the arrows between them."""
    names: set[str] = set()
    arrows: set[Arrow] = set()
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        if parts[0] == "__init__":
            continue
        names.add(parts[0])
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            for target in _imported(node, package.name):
                if target != parts[0]:
                    arrows.add((parts[0], target))
    return names, {arrow for arrow in arrows if arrow[1] in names}


def _imported(node: ast.AST, root: str) -> list[str]:
    if isinstance(node, ast.ImportFrom) and node.module == root:
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(root + "."):
        return [(node.module or "").split(".")[1]]
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[1] for alias in node.names if alias.name.startswith(root + ".")]
    return []


def rows_of(names: set[str], arrows: set[Arrow]) -> dict[str, int]:
    """Return the row of each package, the lowest is 0. An import that closes a circle is left out of the count."""
    rows: dict[str, int] = {}

    def row(name: str, path: tuple[str, ...]) -> int:
        if name not in rows:
            below = [target for source, target in arrows if source == name and target not in (*path, name)]
            rows[name] = 1 + max((row(target, (*path, name)) for target in sorted(below)), default=-1)
        return rows[name]

    # The package that most others import is the ground: what it imports itself, if anything, points up.
    ground = max(sorted(names), key=lambda name: sum(1 for _, target in arrows if target == name))
    rows[ground] = 0
    for name in sorted(names):
        row(name, ())
    return rows


def draw(names: set[str], arrows: set[Arrow]) -> str:
    """Return the SVG text."""
    rows = rows_of(names, arrows)
    height = (max(rows.values()) + 1) * ROW + 2 * MARGIN + 20
    center: dict[str, tuple[float, float]] = {}
    boxes: list[str] = []
    for row in range(max(rows.values()) + 1):
        in_row = sorted(name for name in names if rows[name] == row)
        gap = (WIDTH - 2 * MARGIN) / len(in_row)
        for place, name in enumerate(in_row):
            x, y = MARGIN + gap * (place + 0.5), height - MARGIN - 20 - row * ROW - BOX_HEIGHT / 2
            half = min(gap / 2 - 6, 62)
            center[name] = x, y
            top = y - BOX_HEIGHT / 2
            boxes.append(
                f'<rect x="{x - half:.0f}" y="{top:.0f}" width="{2 * half:.0f}" height="{BOX_HEIGHT}" rx="6"/>'
                f'<text x="{x:.0f}" y="{y + 4:.0f}" class="name">{escape(name)}</text>'
            )
    lines: list[str] = []
    wrong = 0
    for source, target in sorted(arrows):
        (x1, y1), (x2, y2) = center[source], center[target]
        up = rows[source] <= rows[target]
        wrong += up
        y1 += BOX_HEIGHT / 2 * (-1 if up else 1)
        y2 += BOX_HEIGHT / 2 * (1 if up else -1)
        lines.append(
            f'<path d="M{x1:.0f} {y1:.0f} C{x1:.0f} {(y1 + y2) / 2:.0f} {x2:.0f} {(y1 + y2) / 2:.0f} {x2:.0f} {y2:.0f}"'
            + (' class="up"/>' if up else "/>")
        )
    caption = (
        f"{len(names)} packages on {max(rows.values()) + 1} rows, {len(arrows)} arrows, {wrong} of them up or sideways"
    )
    style = (
        "svg{font-family:system-ui,sans-serif}rect{fill:#eef2f7;stroke:#5b6b7f}.name{font-size:13px;font-weight:600}"
        "text{text-anchor:middle;fill:#1d2733}.size{font-size:10px}path{fill:none;stroke:#5b6b7f;stroke-opacity:.35}"
        ".up{stroke:#c62828;stroke-opacity:1;stroke-width:2}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}">'
        f'<style>{style}</style><rect width="{WIDTH}" height="{height}" style="fill:#fff;stroke:none"/>'
        f"{''.join(lines)}{''.join(boxes)}"
        f'<text x="{WIDTH / 2}" y="{height - 8}" class="size">{caption}</text></svg>\n'
    )


if __name__ == "__main__":
    sys.stdout.write(draw(*read(Path(sys.argv[1]))))
