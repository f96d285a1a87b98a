"""The table of pairs, pairs.txt."""

from __future__ import annotations

import re
from pathlib import Path

LINE = re.compile(r"(?P<a>.+?) (?P<verdict>==|!=|\?\?) (?P<b>.+) ## (?P<reason>.+)")
SECTION = re.compile(r"\[([^\[\]]+)\]")


def read_pairs() -> tuple[list[tuple[str, str, str, bool, str]], list[tuple[str, str, str]]]:
    """(kind, a, b, same, reason) of every line of the table, and the pairs that are for a judge."""
    rows, open_ = [], []
    kind = ""
    for number, line in enumerate((Path(__file__).parent / "pairs.txt").read_text("utf-8").splitlines(), 1):
        if not line or line.startswith("; "):
            continue
        if (section := SECTION.fullmatch(line)) is not None:
            kind = section[1]
            continue
        match = LINE.fullmatch(line)
        assert match is not None, f"line {number}"
        if match["verdict"] == "??":
            open_.append((kind, match["a"], match["b"]))
        else:
            rows.append((kind, match["a"], match["b"], match["verdict"] == "==", match["reason"]))
    return rows, open_


PAIRS, OPEN = read_pairs()
