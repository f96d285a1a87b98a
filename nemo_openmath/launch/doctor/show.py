"""Findings as text that fits 100 columns, with and without colours."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rich.style import Style
from rich.text import Text

from nemo_openmath.launch.doctor.finding import Colour, Report

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
