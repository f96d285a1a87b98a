"""Findings as text that fits 100 columns, with and without colours."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.style import Style
from rich.text import Text

from nemo_openmath.launch.doctor.finding import Colour, Report
from nemo_openmath.launch.doctor.nodes import Visit, differences, findings_of

WIDTH = 100
_NAME = 22  # columns
_STYLES = {
    Colour.GREEN: Style(color="green"),
    Colour.YELLOW: Style(color="yellow", bold=True),
    Colour.RED: Style(color="red", bold=True),
    Colour.NOT_HERE: Style(dim=True),
}


def report_lines(report: Report) -> Iterator[Text]:
    """Yield the lines of a report: each group with its findings, and at the end how many have which colour."""
    for group in dict.fromkeys(finding.group for finding in report.findings):
        yield Text(group, Style(bold=True))
        absent = []
        for finding in report.findings:
            if finding.group != group:
                continue
            if finding.colour is Colour.NOT_HERE:
                absent.append(f"{finding.name} ({finding.text})" if finding.text else finding.name)
                continue
            text = " ".join(finding.text.split())
            yield from _row(finding.colour, finding.name, text)
            if finding.remedy:
                yield from _row(None, "", f"-> {finding.remedy}")
        if absent:
            yield from _row(Colour.NOT_HERE, "", ", ".join(absent))
    counts = ", ".join(f"{report.count(c)} {c}" for c in Colour)
    yield Text(f"{report.host}, {report.output}: {counts}; {report.seconds:.1f} s")


def _row(colour: Colour | None, name: str, text: str) -> Iterator[Text]:
    """A finding's colour, name and text; the text goes on below itself."""
    label = str(colour or "")
    indent = 2 + 9 + (_NAME if name or colour is None else 0)
    room = WIDTH - indent
    for number, line in enumerate(textwrap.wrap(text, room, break_on_hyphens=False) or [""]):
        row = Text("  ")
        if number == 0:
            row.append(f"{label:<9}", _STYLES[colour] if colour else "")
            if indent > 11:
                row.append(f"{name:<{_NAME - 1}} ")
        else:
            row.append(" " * (indent - 2))
        yield row.append(line)


_LETTERS = {Colour.GREEN: ".", Colour.YELLOW: "Y", Colour.RED: "R", Colour.NOT_HERE: "-", None: "?"}


def node_lines(visits: Sequence[Visit]) -> Iterator[Text]:
    """Yield the lines about the nodes of each partition: a table of nodes and probes, what is yellow and red and on
    which nodes, and in what the nodes differ."""
    for visit in visits:
        reports = visit.reports
        yield Text(f"partition {visit.partition}: {len(reports)} of {visit.job.nodes} nodes", Style(bold=True))
        if visit.problem:
            yield from _row(Colour.RED, "", visit.problem)
        if not reports:
            continue
        yield from _table(reports)
        for colour in (Colour.RED, Colour.YELLOW):
            for finding, hosts in findings_of(reports, colour):
                where = "" if len(hosts) == len(reports) else f"{shortened(hosts)}: "
                yield from _row(colour, finding.name, where + " ".join(finding.text.split()))
                if finding.remedy:
                    yield from _row(None, "", f"-> {finding.remedy}")
        for name, key, nodes in differences(reports):
            text = "; ".join(f"{value} on {shortened(of)}" for value, of in nodes.items())
            yield from _row(None, "nodes differ", f"{name}, {key}: {text}")
    missing = sum(visit.job.nodes - len(visit.reports) for visit in visits)
    counts = ", ".join(f"{sum(r.count(c) for v in visits for r in v.reports)} {c}" for c in Colour)
    yield Text(f"{counts}" + (f"; {missing} nodes did not report" if missing else ""))


def _table(reports: Sequence[Report]) -> Iterator[Text]:
    """A row for each finding that is not green or absent on all nodes, a column for each node."""
    names = list(dict.fromkeys((f.group, f.name) for report in reports for f in report.findings))
    colours = [{(f.group, f.name): f.colour for f in report.findings} for report in reports]
    rows = [(name, [of.get(name) for of in colours]) for name in names]
    shown = [(name, of) for name, of in rows if len(seen := {*of} - {None}) > 1 or seen & {Colour.YELLOW, Colour.RED}]
    hosts = [report.host for report in reports]
    width = 2 + 13 + _NAME
    per_block = max(1, (WIDTH - width) // (max(map(len, hosts)) + 1))
    for first in range(0, len(hosts), per_block):
        part = range(first, min(first + per_block, len(hosts)))
        yield Text(" " * width + " ".join(hosts[i] for i in part))
        for (group, name), of in shown:
            row = Text(f"  {group:<12} {name:<{_NAME}}")
            for i in part:
                row.append(f"{_LETTERS[of[i]]:<{len(hosts[i])}} ", _STYLES.get(of[i], ""))  # type: ignore[arg-type]
            row.rstrip()
            yield row
    equal = len(rows) - len(shown)
    yield Text(f"  {equal} more are green, or not here, on all nodes (. green, Y yellow, R red, - not here, ? unknown)")


def shortened(hosts: Sequence[str], most: int = 4) -> str:
    """Return names of nodes in few words."""
    return ", ".join(hosts[:most]) + (f" and {len(hosts) - most} more" if len(hosts) > most else "")
