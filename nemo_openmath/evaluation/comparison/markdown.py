"""The numbers of a comparison as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from nemo_openmath.data.records.shown import excerpt, printable
from nemo_openmath.evaluation.comparison.numbers import TENTHS, ModeComparison
from nemo_openmath.evaluation.comparison.page import (
    RunComparison,
    curve_rows,
    difference_rows,
    samples_text,
    title_of,
    vote_word,
)


def markdown(comparison: RunComparison) -> str:
    """Return the comparison as a Markdown document."""
    lines = ["# Comparison of runs", ""]
    rows = [
        [run.letter, run.name, ", ".join(run.models), run.grader or "not known", ", ".join(run.folders)]
        for run in comparison.runs
    ]
    lines += _table(["run", "name", "model", "graded by", "solutions"], rows)
    lines += [line for note in comparison.notes for line in ("", printable(note))]
    for numbers in comparison.modes:
        lines += ["", *_mode(numbers)]
    return "\n".join(lines) + "\n"


def _mode(numbers: ModeComparison) -> Iterator[str]:
    yield f"## {_cell(title_of(numbers))}"
    yield ""
    cut = any(fewest < most for fewest, most in numbers.samples.values())
    yield f"Over the {numbers.problems:,} problems that all of them have; 95% intervals over problems." + (
        " Curves and differences go to the fewest samples that a problem has; a verdict is the vote of all samples of "
        "its problem."
        if cut
        else ""
    )
    yield ""
    yield from _table(
        [
            "run",
            "samples",
            "left out",
            "could not be asked",
            "open verdicts",
            "tokens, mean",
            "median",
            "p90",
            "longest",
        ],
        [
            [
                letter,
                samples_text(numbers, letter),
                *(f"{of[letter]:,}" for of in (numbers.left_out, numbers.not_asked, numbers.undecided)),
                *_tokens(numbers, letter),
            ]
            for letter in numbers.runs
        ],
    )
    yield from ("", "### Differences", "")
    yield from _table(
        ["", "before", "after", "difference", "95% interval", "reading"],
        [
            [row["name"], row["before"], row["after"], row["value"], row["range"], row["word"]]
            for row in difference_rows(numbers)
        ],
    )
    yield from ("", "### Curves", "")
    rows = [[row["name"], *(f"{v} ({i})" if i else v for v, i in row["cells"])] for row in curve_rows(numbers)]
    yield from _table(["metric", *numbers.runs], rows)
    yield from ("", "### Solutions by length", "")
    edges = numbers.length_edges
    bins = [f"{low:,.0f} to {high:,.0f}" for low, high in pairwise(edges)]
    yield from _counts("tokens", bins, numbers.lengths)
    if numbers.pass_rates:
        yield from ("", "### Problems by their share of right samples", "")
        tenths = [f"{100 * n // TENTHS}% to {100 * (n + 1) // TENTHS}%" for n in range(TENTHS)]
        yield from _counts("right samples", ["none", *tenths, "all"], numbers.pass_rates)
    yield from ("", "### Problems whose verdict differs", "")
    if not numbers.differing:
        yield "None."
        return
    yield from _table(
        ["problem", "expected", *numbers.runs],
        [
            [
                excerpt(row.text, 180) or row.problem,
                row.expected or "",
                *(f"{vote_word(row.vote[at])}, {row.right[at]:.0%} of {row.samples[at]}" for at in numbers.runs),
            ]
            for row in numbers.differing
        ],
    )


def _tokens(numbers: ModeComparison, letter: str) -> list[str]:
    of_run = numbers.quantiles.get(letter)
    names = ("mean", "median", "p90", "longest")
    return ["not known" if of_run is None else f"{of_run[name]:,.0f}" for name in names]


def _counts(name: str, bins: Sequence[str], counts: dict[str, list[int]]) -> list[str]:
    rows = [[bin_name, *(f"{of[n]:,}" for of in counts.values())] for n, bin_name in enumerate(bins)]
    return _table([name, *counts], rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    return lines + [f"| {' | '.join(_cell(text) for text in row)} |" for row in rows]


def _cell(text: str) -> str:
    """Return a text that is no markup of Markdown or HTML, and stays on one line."""
    line = " ".join(printable(text).split())
    for sign, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        line = line.replace(sign, name)
    for sign in "\\`*_[]|$":
        line = line.replace(sign, f"\\{sign}")
    return line
