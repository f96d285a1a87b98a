"""Measure the stages of a problem set against labelled threads: precision and recall of each, with examples."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Problem, Thread, read_drops, read_records, write_json
from nemo_openmath.core.records.store import unit_names
from nemo_openmath.core.stage import Stage, StageContext
from nemo_openmath.evaluation.intervals import share_interval
from nemo_openmath.evaluation.problem_truth import Matcher
from nemo_openmath.synthesis.problems.classify import CATEGORIES
from nemo_openmath.synthesis.problems.labelled import KNOWN, UNSAID, KnownProblem, known_problems

ROWS, MISTAKES = "truth.json", "mistakes.jsonl"
IN_BENCHMARK = "in the benchmark"  # what the reason of such a drop begins with
Same = Callable[[str, str], bool]
"""Whether two answers mean the same."""


@dataclass(frozen=True)
class ProblemTruthConfig:
    """Settings of ``evaluation.problems``: there is none."""


@dataclass
class TruthCounts:
    """Counts of what was right, wrong and missed, and each mistake as a row."""

    counts: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """(stage, what of it) -> right, wrong, missed."""
    mistakes: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        stage: str,
        what: str,
        *,
        right: bool = False,
        wrong: str = "",
        missed: str = "",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Count an item. ``wrong``, ``missed``: what went wrong, in words; both where one thing stands for another."""
        counts = self.counts.setdefault((stage, what), [0, 0, 0])
        counts[0] += right
        counts[1] += bool(wrong)
        counts[2] += bool(missed)
        if wrong or missed:
            self.mistakes.append({"stage": stage, "what": what, "wrong": wrong, "missed": missed, **(about or {})})

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the report: counts, precision and recall with their 95% intervals (Clopper and Pearson's);
        None where there is nothing to divide by. Stages stand in their order, what they made by name: not in the order
        of the records, which a kill changes."""
        stages = list(dict.fromkeys(stage for stage, _ in self.counts))
        ordered = sorted(self.counts.items(), key=lambda item: (stages.index(item[0][0]), item[0][1]))
        return [
            {
                "stage": stage,
                "what": what,
                "right": right,
                "wrong": wrong,
                "missed": missed,
                **_share("precision", right, wrong),
                **_share("recall", right, missed),
            }
            for (stage, what), (right, wrong, missed) in ordered
        ]


def _share(name: str, right: int, others: int) -> dict[str, float | None]:
    if not right + others:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = share_interval(np.repeat([1.0, 0.0], [right, others]))
    return {name: right / (right + others), f"{name}_low": low, f"{name}_high": high}


class MeasureProblems(Stage[ProblemTruthConfig]):
    """Measure extraction, classification, conversion, answers and decontamination against labelled threads.

    Precision is the share of what a stage made that is right, recall the share of what there was that it made. Each
    stage is measured on what reached it, so an error counts once, where it was made; the last row is that of the whole.
    The labels are the column ``known_problems`` of the threads (synthesis/problems/labelled.py). Every mistake is a
    line of ``mistakes.jsonl``.
    """

    kind = "evaluation.problems"
    Config = ProblemTruthConfig
    makes = "metrics"
    ports = {
        "truth": "threads with the column known_problems",
        "extracted": "folder of problems.extract",
        "classified?": "folder of problems.classify",
        "converted?": "folder of problems.convert_proofs",
        "answered?": "folder of problems.extract_answers",
        "decontaminated?": "folder of problems.decontaminate",
    }
    takes = {
        "truth": "Thread",
        "extracted": "Problem",
        "classified": "Problem",
        "converted": "Problem",
        "answered": "Problem",
        "decontaminated": "Problem",
    }

    def check(self, inputs: Mapping[str, Sequence[Path]]) -> None:
        """Refuse labels that are none, of threads that are there. Those of files are refused where they are read."""
        super().check(inputs)
        for folder in inputs.get("truth", ()):
            for thread in read_records(folder, Thread):
                known_problems(thread)

    async def run(self, context: StageContext) -> None:
        grader = await context.services.grading()

        def same(first: str, second: str) -> bool:
            return first == second or grader.compare(first, second).verdict is Verdict.EQUAL

        counts = await asyncio.to_thread(lambda: _Measurement(context, same).done())
        rows = counts.rows()
        write_json(context.output / ROWS, rows)
        lines = sorted(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in counts.mistakes)
        (context.output / MISTAKES).write_bytes(b"".join(lines))
        context.metrics["truth"] = rows


class _Measurement:
    """One reading of the stages' folders, in their order."""

    def __init__(self, context: StageContext, same: Same):
        self._context, self._same = context, same
        self._counts = TruthCounts()
        self._labels: dict[str, list[KnownProblem]] = {}
        """Id of a problem -> what is known of it, by each thread that poses it."""
        self._known: list[KnownProblem] = []
        """All known problems of the threads that were asked about."""
        self._threads: set[str] = set()

    def done(self) -> TruthCounts:
        self._extraction()
        if self._context.paths("classified"):
            self._classification()
        if self._context.paths("converted"):
            self._conversion()
        if self._context.paths("answered"):
            self._answers()
        if self._context.paths("decontaminated"):
            self._decontamination()
        self._whole()
        return self._counts

    # -- the stages ----------------------------------------------------------------------------------------------------

    def _extraction(self) -> None:
        truth = {}
        for thread in self._context.read("truth", Thread):
            if (known := known_problems(thread)) is not None:
                truth[thread.id] = known
        matchers = {name: Matcher(truth[name]) for name in self._units("extracted") if name in truth}
        if not matchers:
            raise UserError(
                f"{self._context.name}: none of the threads that were asked about is labelled ({KNOWN})",
                remedy="give the threads that problems.extract reads as truth",
            )
        self._known = [known for name in matchers for known in truth[name]]
        self._threads = set(matchers)
        stage = "extraction"
        for folder in self._context.paths("extracted"):
            for problem in read_records(folder, Problem):
                for parent in problem.parents:
                    if parent not in matchers:
                        continue
                    about = {"thread": parent, "problem": problem.problem}
                    if (taken := matchers[parent].take(problem.problem)) is None:
                        self._counts.add(stage, "problems", wrong="not posed by its thread", about=about)
                    else:
                        self._counts.add(stage, "problems", right=True)
                        self._labels.setdefault(problem.id, []).append(taken)
        for name, matcher in matchers.items():
            for left in matcher.left():
                self._counts.add(
                    stage, "problems", missed="not extracted", about={"thread": name, "problem": left.problem}
                )

    def _classification(self) -> None:
        classes = {problem.id: problem.category for problem in self._context.read("classified", Problem)}
        classes |= {unit: reason for unit, reason in self._drops("classified").items() if unit not in classes}
        for name in self._units("classified"):
            known, got = self._label(name, "category"), classes.get(name)
            if known is UNSAID or known is None:
                continue
            about = {"problem": self._labels[name][0].problem}
            if got == known:
                self._counts.add("classification", known, right=True)
                continue
            self._counts.add("classification", known, missed=f"taken for: {got}", about=about)
            if got in CATEGORIES:
                self._counts.add("classification", str(got), wrong=f"is: {known}", about=about)

    def _conversion(self) -> None:
        what = "proofs with a value"
        converted = {}
        for problem in self._context.read("converted", Problem):
            if problem.problem_type == "converted_proof":
                for parent in problem.parents:
                    converted[parent] = problem
        drops = self._drops("converted")
        for name in self._units("converted"):
            known = self._label(name, "converted_answer")
            made, reason = converted.get(name), drops.get(name)
            if known is UNSAID or (made is None and reason is None):  # no proof: it passed unchanged
                continue
            about = {"problem": self._labels[name][0].problem, "expected": known}
            if made is None:
                if known is not None:
                    self._counts.add("conversion", what, missed=f"dropped: {reason}", about=about)
                continue
            self._labels[made.id] = [label.as_converted() for label in self._labels[name]]
            answer = made.expected_answer or ""
            if known is not None and self._same(answer, known):
                self._counts.add("conversion", what, right=True)
            else:
                missed = "" if known is None else "another answer"
                self._counts.add(
                    "conversion", what, wrong="another answer", missed=missed, about=about | {"got": answer}
                )

    def _answers(self) -> None:
        given = {}
        for problem in self._context.read("answered", Problem):
            if problem.problem_type != "converted_proof":
                given[problem.id] = problem.expected_answer
        drops = self._drops("answered")
        for name in self._units("answered"):
            if name not in given and name not in drops:
                continue
            for what, of in (("as the replies settle on", "discussed_answer"), ("as is true", "expected_answer")):
                known, got = self._label(name, of), given.get(name)
                if known is UNSAID or (known is None and (got is None or of == "expected_answer")):
                    continue
                about = {"problem": self._labels[name][0].problem, "expected": known, "got": got}
                right = known is not None and got is not None and self._same(got, known)
                wrong = "" if got is None or right else "another answer"
                missed = "" if known is None or right else wrong or f"none: {drops.get(name, 'not found')}"
                self._counts.add("answers", what, right=right, wrong=wrong, missed=missed, about=about)

    def _decontamination(self) -> None:
        drops = self._drops("decontaminated")
        for name in self._units("decontaminated"):
            leaked = self._leaked(name)
            if leaked is None:
                continue
            dropped = drops.get(name, "").startswith(IN_BENCHMARK)
            about = {"problem": self._labels[name][0].problem}
            wrong = drops.get(name, "") if dropped and not leaked else ""
            missed = "" if dropped or not leaked else drops.get(name) or "kept"
            if leaked or wrong:
                self._counts.add(
                    "decontamination", IN_BENCHMARK, right=leaked and dropped, wrong=wrong, missed=missed, about=about
                )

    def _whole(self) -> None:
        """Measure the problem set: what is in it and should be, and what should be and is not."""
        last = next(p for p in ("decontaminated", "answered", "converted", "classified", "extracted") if self._has(p))
        left = {known.problem for known in self._known if known.usable or known.as_converted().usable}
        for problem in self._context.read(last, Problem):
            labels = self._labels.get(problem.id, [])
            if not labels and self._threads.isdisjoint(problem.parents):
                continue
            wrong = self._fault(problem, labels)
            if not wrong:
                left -= {known.problem for known in labels}
            about = {"problem": problem.problem, "got": problem.expected_answer} if wrong else {}
            self._counts.add("the whole", "problem set", right=not wrong, wrong=wrong, about=about)
        for text in sorted(left):
            self._counts.add("the whole", "problem set", missed="not in it, or not rightly", about={"problem": text})

    def _fault(self, problem: Problem, labels: list[KnownProblem]) -> str:
        """Return what is wrong with a problem of the problem set; empty where nothing is known to be."""
        if not labels:
            return "not posed by its thread"
        if not any(known.usable for known in labels):
            return next((f"is: {known.category}" for known in labels if not known.in_benchmark), IN_BENCHMARK)
        known, got = self._label(problem.id, "expected_answer"), problem.expected_answer
        if known is None or known is UNSAID or got is None or self._same(got, known):
            return ""
        return f"another answer than {known}"

    # -- readings ------------------------------------------------------------------------------------------------------

    def _has(self, port: str) -> bool:
        return bool(self._context.paths(port))

    def _units(self, port: str) -> Iterator[str]:
        for folder in self._context.paths(port):
            yield from unit_names(folder)

    def _drops(self, port: str) -> Mapping[str, str]:
        """Unit -> reason of its drop."""
        return {unit: drop.reason for folder in self._context.paths(port) for unit, drop in read_drops(folder)}

    def _label(self, name: str, what: str) -> str | None:
        """Return what the labels of a problem say; ``UNSAID`` where they say nothing, or contradict each other."""
        values = {getattr(known, what) for known in self._labels.get(name, ())} - {UNSAID}
        return values.pop() if len(values) == 1 else UNSAID

    def _leaked(self, name: str) -> bool | None:
        values = {known.in_benchmark for known in self._labels.get(name, ())} - {None}
        return values.pop() if len(values) == 1 else None
