"""What the templates of the browser print."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

import numpy as np
from jinja2 import DictLoader, Environment, StrictUndefined

from nemo_openmath.chat import Author, Kind, Transcript
from nemo_openmath.data.records.shown import excerpt, printable
from nemo_openmath.evaluation.reports import page as report_page
from nemo_openmath.evaluation.reports import svg
from nemo_openmath.evaluation.viewer.filters import ORDERS, FilteredRows, RowFilter, by_problem
from nemo_openmath.evaluation.viewer.index import FINISHES, MODES, VERDICTS, SolutionIndex
from nemo_openmath.evaluation.viewer.mathematics import MathWriter
from nemo_openmath.evaluation.viewer.solution import Judged, ShownSolution, find_row, name_of, read_solution

TEMPLATES = ("base", "macros", "home", "solutions", "problems", "solution", "compare", "error")
ROWS = 50
"""Rows of a page."""
SHOWN, ALL = 40_000, 2_000_000
"""Most characters of a segment, and where all of it is asked for."""
_EXCERPT = 160
_SHOWN_APART = frozenset(
    (
        *(
            "id",
            "problem_id",
            "mode",
            "model",
            "sample",
            "finish",
            "completion_tokens",
            "code_calls",
            "parents",
            "extra",
        ),
        *("expected_answer", "predicted_answer", "verdict", "verdict_reason"),
    )
)
"""Fields that have a place of their own on the page."""


class Pages:
    """The pages of one index, each as one HTML document."""

    def __init__(self, index: SolutionIndex, title: str):
        self.index, self.title = index, title
        self._rows = FilteredRows(index)

    def home(self) -> str:
        """Return the page of the stages."""
        columns = self.index.columns
        equal = VERDICTS.index("equal")
        stages = []
        for number, name in enumerate(self.index.stages):
            of = columns["stage"] == number
            count, right = int(of.sum()), int((of & (columns["verdict"] == equal)).sum())
            graded = int((of & (columns["verdict"] != len(VERDICTS) - 1)).sum())
            stages.append(
                {
                    "name": printable(name),
                    "address": RowFilter(stage=name).address(),
                    "count": f"{count:,}",
                    "problems": f"{len(np.unique(columns['problem'][of])):,}",
                    "modes": ", ".join(MODES[mode] for mode in np.unique(columns["mode"][of])),
                    "right": f"{right / graded:.1%}" if graded else "not graded",
                    "bar": svg.bar(right / graded, 2) if graded else "",
                    "tokens": f"{columns['tokens'][of].mean():,.0f}" if count else "",
                }
            )
        notes = [printable(note) for note in self.index.notes]
        if self.index.from_prompts:
            notes.append(f"The text of {self.index.from_prompts:,} problems is that of a prompt: no record has it.")
        return self._render("home", stages=stages, notes=notes, total=f"{len(self.index):,}")

    def solutions(self, chosen: RowFilter, page: int) -> str:
        """Return a page of the solutions for which a filter holds."""
        rows = self._rows.rows(chosen)
        paging = self._paging("/solutions", chosen, page, len(rows))
        start = (paging["page"] - 1) * ROWS
        lines = [self._line(int(row)) for row in rows[start : start + ROWS]]
        return self._render("solutions", lines=lines, paging=paging, **self._form(chosen))

    def problems(self, chosen: RowFilter, page: int, hardest_first: bool) -> str:
        """Return a page of the problems that the solutions of a filter are of."""
        counts = by_problem(self.index, self._rows.rows(chosen), hardest_first)
        paging = self._paging(
            "/problems", chosen, page, len(counts.numbers), {} if hardest_first else {"first": "easy"}
        )
        start = (paging["page"] - 1) * ROWS
        lines = []
        for at in range(start, min(start + ROWS, len(counts.numbers))):
            number, count, right = int(counts.numbers[at]), int(counts.solutions[at]), int(counts.right[at])
            name = self.index.problems.ids[number]
            lines.append(
                {
                    "text": excerpt(self.index.problems.text(number), _EXCERPT) or printable(name[:80]),
                    "address": chosen.address(problem=name),
                    "solutions": f"{count:,}",
                    "right": f"{right:,}",
                    "share": f"{right / count:.0%}",
                    "bar": svg.bar(right / count, 2),
                }
            )
        other = {"hardest": hardest_first, "turned": "/problems" + _with(chosen.address(), "first", "easy")}
        other["straight"] = "/problems" + chosen.address()
        return self._render("problems", lines=lines, paging=paging, **other, **self._form(chosen))

    def solution(self, name: str, whole: bool) -> str:
        """Return the page of ``STAGE:ID``."""
        writer = MathWriter()
        solution = read_solution(self.index, find_row(self.index, name))
        return self._render("solution", s=self._shown(solution, writer, whole), mathematics=writer.note())

    def compare(self, first: str, second: str, whole: bool) -> str:
        """Return the page of two solutions side by side."""
        writer = MathWriter()
        both = [read_solution(self.index, find_row(self.index, name)) for name in (first, second)]
        shown = [self._shown(solution, writer, whole) for solution in both]
        same = both[0].fields["problem_id"] == both[1].fields["problem_id"]
        names = [name_of(self.index, solution.row, solution.id) for solution in both]
        turned = "/compare?" + urlencode({"a": names[1], "b": names[0]})
        return self._render("compare", both=shown, same=same, turned=turned, mathematics=writer.note())

    def error(self, problem: str) -> str:
        """Return the page of a mistake."""
        return self._render("error", problem=printable(problem))

    # -- parts -----------------------------------------------------------------------------------------------------

    def _render(self, template: str, **values: Any) -> str:
        return environment().get_template(f"{template}.html.j2").render(title=printable(self.title), **values)

    def _form(self, chosen: RowFilter) -> dict[str, Any]:
        choices = {"stage": self.index.stages, "mode": MODES, "verdict": VERDICTS, "finish": FINISHES, "order": ORDERS}
        number = self.index.problems.number(chosen.problem) if chosen.problem else None
        problem = "" if number is None else self.index.problems.text(number)
        return {"chosen": chosen, "choices": choices, "problem": MathWriter().text(problem)}

    def _paging(
        self, path: str, chosen: RowFilter, page: int, count: int, more: dict[str, str] | None = None
    ) -> dict[str, Any]:
        pages = max(1, -(-count // ROWS))
        page = min(max(1, page), pages)

        def address(number: int) -> str:
            address = path + chosen.address(page=number)
            for name, value in (more or {}).items():
                address = _with(address, name, value)
            return address

        return {
            "page": page,
            "pages": f"{pages:,}",
            "count": f"{count:,}",
            "before": address(page - 1) if page > 1 else "",
            "behind": address(page + 1) if page < pages else "",
            "first": address(1),
            "last": address(pages),
        }

    def _line(self, row: int) -> dict[str, Any]:
        """A line of a list."""
        values = self.index.record(row).fields
        columns = self.index.columns
        name = name_of(self.index, row, str(values["id"]))
        answer, expected = values.get("predicted_answer"), values.get("expected_answer")
        return {
            "name": name,
            "address": "/solution?" + urlencode({"id": name}),
            "id": printable(str(values["id"]))[-12:],
            "stage": printable(self.index.stages[int(columns["stage"][row])]),
            "problem": excerpt(self.index.problems.text(int(columns["problem"][row])), _EXCERPT),
            "mode": str(values["mode"]),
            "sample": str(values.get("sample", "")),
            "answer": "" if answer is None else excerpt(str(answer), 40),
            "expected": "" if expected is None else excerpt(str(expected), 40),
            "verdict": VERDICTS[int(columns["verdict"][row])],
            "finish": str(values["finish"]),
            "tokens": f"{int(columns['tokens'][row]):,}",
        }

    def _shown(self, solution: ShownSolution, writer: MathWriter, whole: bool) -> dict[str, Any]:
        values = solution.fields
        name = name_of(self.index, solution.row, solution.id)
        limit = ALL if whole else SHOWN
        parts = [] if solution.transcript is None else list(_parts(solution.transcript, writer, limit))
        answers = {key: values.get(key) for key in ("predicted_answer", "expected_answer")}
        return {
            "id": printable(solution.id),
            "name": name,
            "address": "/solution?" + urlencode({"id": name}),
            "whole": "/solution?" + urlencode({"id": name, "all": 1}),
            "stage": printable(solution.stage),
            "problem": writer.text(solution.problem),
            "of_problem": "/solutions" + RowFilter(stage=solution.stage, problem=str(values["problem_id"])).address(),
            **{key: None if v is None else writer.answer(str(v)[:2000]) for key, v in answers.items()},
            "verdict": str(values.get("verdict") or "ungraded"),
            "reason": printable(str(values.get("verdict_reason") or "")),
            "facts": list(_facts(values)),
            "details": list(_details(values)),
            "judged": [self._judged(judged, writer) for judged in solution.judged],
            "candidates": [self._candidate(c) for c in solution.candidates],
            "others": [self._version(row, solution.id) for row in solution.others],
            "selections": [self._selection(row) for row in solution.selections],
            "parts": parts,
            "left_out": sum(part["left_out"] for part in parts),
            "finished": solution.transcript is None or solution.transcript.finished,
        }

    def _judged(self, judged: Judged, writer: MathWriter) -> dict[str, Any]:
        votes = ", ".join(map(_vote_word, judged.votes))
        texts = {
            "stage": judged.stage,
            "reason": judged.reason,
            "grader": judged.grader,
            "unreadable": judged.unreadable,
        }
        replies = [_reply(vote, text, writer) for vote, text in judged.replies]
        shown = {name: printable(text) for name, text in texts.items()}
        return {"verdict": judged.verdict, "votes": votes, "replies": replies} | shown

    def _candidate(self, candidate: Any) -> dict[str, Any]:
        row = candidate.row
        name = "" if row is None else name_of(self.index, row, candidate.id)
        return {
            "id": printable(candidate.id)[-12:],
            "address": "/solution?" + urlencode({"id": name}) if name else "",
            "answer": "nothing" if candidate.answer is None else excerpt(str(candidate.answer), 60),
            "chosen": candidate.chosen,
            "verdict": "" if row is None else VERDICTS[int(self.index.columns["verdict"][row])],
        }

    def _version(self, row: int, name: str) -> dict[str, str]:
        full = name_of(self.index, row, name)
        verdict = VERDICTS[int(self.index.columns["verdict"][row])]
        stage = printable(self.index.stages[int(self.index.columns["stage"][row])])
        return {"address": "/solution?" + urlencode({"id": full}), "stage": stage, "verdict": verdict}

    def _selection(self, row: int) -> dict[str, str]:
        return self._version(row, self.index.record(row).id)


def _vote_word(vote: bool | None) -> str:
    return {True: "equal", False: "not equal"}.get(vote, "unreadable")  # type: ignore[arg-type]


def _reply(vote: bool | None, text: str, writer: MathWriter) -> dict[str, Any]:
    """What a judge said, with its beginning only where it is very long."""
    left_out = max(0, len(text) - SHOWN)
    return {"vote": _vote_word(vote), "text": writer.text(text[:SHOWN]), "left_out": left_out}


def _facts(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is said of a solution in a few words."""
    yield "mode", str(values["mode"])
    yield "model", printable(str(values.get("model", "")))
    yield "sample", str(values.get("sample", ""))
    yield "ended by", str(values["finish"])
    yield "tokens", f"{values.get('completion_tokens', 0):,}"
    if values.get("code_calls"):
        yield "blocks of code run", f"{values['code_calls']:,}"


def _details(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the other fields, and what stands in ``extra``."""
    for name, value in values.items():
        if name not in _SHOWN_APART and value is not None:
            yield name.replace("_", " "), excerpt(str(value), 400)
    for name, value in (values.get("extra") or {}).items():
        yield printable(str(name))[:80], excerpt(str(value), 1000)


def _parts(transcript: Transcript, writer: MathWriter, limit: int) -> Iterator[dict[str, Any]]:
    """Yield the messages of a prompt, then the segments of the answer with their authors."""
    for message in transcript.messages:
        yield _part(str(message.role), "prompt", message.content, writer.text, limit)
    for segment in transcript.segments():
        as_it_is = segment.kind in (Kind.CODE, Kind.OUTPUT, Kind.NOTICE)
        text = segment.body.strip("\n") if as_it_is else segment.text.strip()
        by_tool = segment.kind in (Kind.OUTPUT, Kind.NOTICE)
        author = "sandbox" if by_tool else str(Author.MODEL)
        if text:
            write = printable if as_it_is else writer.text
            yield _part(f"{author}: {segment.kind}", str(segment.kind), text, write, limit) | {"as_it_is": as_it_is}


def _part(name: str, kind: str, text: str, write: Any, limit: int) -> dict[str, Any]:
    left_out = max(0, len(text) - limit)
    return {
        "name": printable(name)[:80],
        "kind": kind,
        "text": write(text[:limit]),
        "left_out": left_out,
        "as_it_is": False,
    }


def _with(address: str, name: str, value: str) -> str:
    return f"{address}{'&' if '?' in address else '?'}{urlencode({name: value})}"


@cache
def environment() -> Environment:
    """Return the templates. What is filled into them is escaped."""
    names = {f"{name}.html.j2": text_of(f"{name}.html.j2") for name in TEMPLATES}
    return Environment(
        loader=DictLoader(names), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def style() -> str:
    """Return the style sheet: that of the reports, and what the browser adds to it."""
    return report_page.text_of("report.css") + text_of("viewer.css")


def text_of(name: str) -> str:
    """Return a file of ``templates``."""
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")
