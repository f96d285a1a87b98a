"""The jobs of a run, or its stages, as a graph: columns of text that fit a terminal, and a picture.

A job stands one level behind the last of those that it waits for. Arrows that other arrows imply are left out. Nodes of
a picture may be grouped in lanes, which stand one below the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

GRAPH = "graph.svg"
BOX, TALL, ACROSS, DOWN = 160, 32, 176, 54  # sizes of the picture in pixels: a box, and from one to the next
_LETTERS = 22  # of a name that fit a box
_HEAD, _GAP = 26, 26  # the name of a lane, and what is free below a lane


@dataclass(frozen=True)
class Node:
    """A job, or a stage, as the graph shows it."""

    name: str
    after: tuple[str, ...]
    state: str = ""
    """A word of job_states.JobState; empty where nothing is submitted."""
    note: str = ""
    """Behind the name in text: nodes, tasks."""
    lane: str = ""
    """The group that it stands in, of a picture."""
    look: str = ""
    """What the box looks like: ``model``, ``file``; empty where the state says it."""


def levels(nodes: Sequence[Node]) -> dict[str, int]:
    """Return how many jobs stand before each, along the longest way."""
    out: dict[str, int] = {}
    for node in nodes:  # in the order in which they are submitted: what is waited for comes first
        out[node.name] = 1 + max((out[name] for name in node.after if name in out), default=-1)
    return out


def direct(nodes: Sequence[Node]) -> dict[str, tuple[str, ...]]:
    """Return of each job those that it waits for and that no other of them waits for."""
    behind: dict[str, set[str]] = {}
    out = {}
    for node in nodes:
        known = [name for name in node.after if name in behind]
        implied = set[str]().union(*(behind[name] for name in known))
        out[node.name] = tuple(name for name in known if name not in implied)
        behind[node.name] = implied | set(known)
    return out


def graph_lines(nodes: Sequence[Node], width: int = 100) -> list[str]:
    """Return the graph as text: a line for each job, indented by its level, with the jobs that it waits for."""
    level, waits = levels(nodes), direct(nodes)
    deepest = max(level.values(), default=0)
    step = min(2.0, width / 3 / max(1, deepest))  # so that a third of the width is left free at least
    lines = []
    for node in nodes:
        state = f" [{node.state}]" if node.state else ""
        head = f"{' ' * int(step * level[node.name])}{node.name}{state}"
        head += f" ({node.note})" if node.note else ""
        names = list(waits[node.name])
        tail = ""
        for i, name in enumerate(names):
            more = f"{tail}{', ' if i else '  <- '}{name}"
            rest = len(names) - i
            if len(head + more) > width - (len(f" and {rest - 1} more") if rest > 1 else 0):
                tail += f" and {rest} more" if i else f"  <- {rest} jobs"
                break
            tail = more
        lines.append((head + tail)[:width])
    return lines


_STYLE = """\
.jobs text { font: 12px system-ui, sans-serif; fill: #1b1d20; }
.jobs .sub { font-size: 10px; fill: #585f67; }
.jobs rect { fill: #f4f4f0; stroke: #8a9099; stroke-width: 1.2; }
.jobs path { fill: none; stroke: #9aa1a9; }
.jobs .done rect { fill: #dff0d4; stroke: #2a6b0c; }
.jobs :is(.running, .ready) rect { fill: #d6ebf8; stroke: #0a6aa6; }
.jobs :is(.failed, .gone) rect { fill: #f8ddd6; stroke: #a8321f; }
.jobs .cancelled rect { fill: #f3e9e6; stroke: #a8321f; stroke-dasharray: 4 3; }
.jobs .model rect { fill: #e8dcf5; stroke: #7a3fa8; }
.jobs .file rect { stroke-dasharray: 4 3; }
.jobs .lane { font-weight: 600; }
.jobs .band { stroke-dasharray: 2 4; }
.jobs :is(.again, .starting) rect { fill: #fff2cc; stroke: #b08900; }
@media (prefers-color-scheme: dark) {
.jobs text { fill: #e8eaed; }
.jobs .sub { fill: #a3abb5; }
.jobs rect { fill: #1c1f24; stroke: #6b737d; }
.jobs path { stroke: #59616b; }
.jobs .done rect { fill: #1f3317; }
.jobs :is(.running, .ready) rect { fill: #12303f; }
.jobs :is(.failed, .gone) rect { fill: #43201a; }
.jobs .cancelled rect { fill: #2e211f; }
.jobs .model rect { fill: #33204a; }
.jobs :is(.again, .starting) rect { fill: #3a3113; }
}"""


def graph_svg(nodes: Sequence[Node], title: str) -> str:
    """Return the graph as a picture that needs nothing else: levels from top to bottom, states as colours and words."""
    waits, lanes = direct(nodes), _lanes(nodes)
    tops: dict[str, float] = {}  # of lanes that have a name
    down, below = dict[str, float](), 8.0
    for lane, own in lanes.items():
        if lane:
            tops[lane] = below
            below += _HEAD
        level = levels(own)
        down |= {name: below + at * DOWN for name, at in level.items()}
        below += max(level.values()) * DOWN + TALL + (_GAP if lane else 0)
    rows: dict[int, list[str]] = {}
    order = {at: number for number, at in enumerate(sorted(set(down.values())))}
    for node in nodes:
        rows.setdefault(order[down[node.name]], []).append(node.name)
    across = _across(rows, waits)
    width = max(across.values(), default=0) * ACROSS + BOX + 16
    height = below + 8
    place = {node.name: (8 + across[node.name] * ACROSS, down[node.name]) for node in nodes}
    lines = [_band(lane, top, width) for lane, top in tops.items()]
    lines += [_arrow(place[name], place[node.name]) for node in nodes for name in waits[node.name]]
    boxes = [_box(node, place[node.name]) for node in nodes]
    label = escape(title, quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="jobs" role="img" aria-label="{label}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">\n'
        f"<title>{label}</title>\n<style>{_STYLE}</style>\n" + "\n".join([*lines, *boxes]) + "\n</svg>\n"
    )


def _lanes(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """Return the nodes of each lane, the lanes in the order in which they are named."""
    lanes: dict[str, list[Node]] = {}
    for node in nodes:
        lanes.setdefault(node.lane, []).append(node)
    return lanes


def _band(lane: str, top: float, width: float) -> str:
    """The line above a lane, and its name."""
    return (
        f'<path class="band" d="M8,{top:.0f}H{width - 8:.0f}"/>'
        f'<text class="lane" x="8" y="{top + 16:.0f}">{escape(lane)}</text>'
    )


def _across(rows: Mapping[int, Sequence[str]], waits: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Places of the jobs in their rows: each below those that it waits for, where there is room."""
    across: dict[str, float] = {}
    for level in sorted(rows):
        wanted = {}
        for i, name in enumerate(rows[level]):
            before = [across[other] for other in waits[name]]
            wanted[name] = sum(before) / len(before) if before else float(i)
        last = -1.0
        for name in sorted(rows[level], key=lambda name: wanted[name]):
            last = across[name] = max(wanted[name], last + 1)
        over = (max(across[name] for name in rows[level]) - max(wanted.values())) / 2
        shift = min(over, min(across[name] for name in rows[level]))
        for name in rows[level]:
            across[name] -= shift
    return across


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y, to_x, to_y = start[0] + BOX / 2, start[1] + TALL, end[0] + BOX / 2, end[1]
    bend = (DOWN - TALL) / 2 + (to_y - y) / 4
    return f'<path d="M{x:.0f},{y:.0f}C{x:.0f},{y + bend:.0f} {to_x:.0f},{to_y - bend:.0f} {to_x:.0f},{to_y:.0f}"/>'


def _box(node: Node, place: tuple[float, float]) -> str:
    x, y = place
    name = node.name if len(node.name) <= _LETTERS else f"{node.name[: _LETTERS - 1]}…"
    under = ", ".join(filter(None, [node.state, node.note]))
    kind = node.look or ("again" if node.state == "queued again" else node.state.partition(" ")[0])
    waits = f" after {', '.join(node.after)}" if node.after else ""
    return (
        f'<g class="{escape(kind)}"><title>{escape(f"{node.name}: {under}{waits}")}</title>'
        f'<rect x="{x:.0f}" y="{y:.1f}" width="{BOX}" height="{TALL}" rx="5"/>'
        f'<text x="{x + 9:.0f}" y="{y + 14:.1f}">{escape(name)}</text>'
        f'<text class="sub" x="{x + 9:.0f}" y="{y + 26:.1f}">{escape(under)}</text></g>'
    )
