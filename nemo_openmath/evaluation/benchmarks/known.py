"""The benchmarks that are known by name.

Names of datasets are those of the Hugging Face Hub, as public evaluation code loads them. They are not looked up here:
`openmath benchmark prepare` holds what was loaded against the number of problems that is stated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_openmath.core.build import nearest
from nemo_openmath.core.errors import UserError

SUBSET = "subset_for_metrics"
"""The column of the reference pipeline that says to which part of a benchmark a problem belongs."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a benchmark."""

    name: str
    problems: int
    subset: str
    """Its value in ``subset_for_metrics``."""
    ids: str = ""
    """The beginning of its problems' ids, where several parts share a subset."""

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Return whether a prepared row is of this part."""
        return str(row.get(SUBSET)) == self.subset and str(row.get("id", "")).startswith(self.ids)


@dataclass(frozen=True, slots=True)
class KnownBenchmark:
    """A benchmark that is known by name."""

    name: str
    title: str
    problems: int
    """How many it has."""
    dataset: str = ""
    """On the Hugging Face Hub; empty where it comes as a file alone."""
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=dict)
    """What is wanted -> the column of the dataset."""
    only: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Column -> the values that rows of it have; other rows are left out, and counted."""
    parts: Sequence[Part] = ()
    note: str = ""


_COMP_MATH = (
    Part("aime24", 30, "aime24"),
    Part("aime25", 30, "aime25"),
    Part("hmmt-24-25", 196, "hmmt-24-25"),
    Part("hmmt-nov-2024", 62, "hmmt-24-25", "hmmt_N_2024"),
    Part("hmmt-feb-2024", 68, "hmmt-24-25", "hmmt_F_2024"),
    Part("hmmt-feb-2025", 66, "hmmt-24-25", "hmmt_F_2025"),
)
"""Table 4 of the paper."""
_ARENA = {"problem": "problem", "expected_answer": "answer", "id": "problem_idx"}

KNOWN = (
    KnownBenchmark(
        "comp-math-24-25",
        "Comp-Math-24-25: AIME and HMMT of 2024 and 2025 (paper, Table 4)",
        256,
        parts=_COMP_MATH,
        note="a file of the reference pipeline, with subset_for_metrics",
    ),
    KnownBenchmark(
        "aime24",
        "AIME I and II of 2024",
        30,
        "HuggingFaceH4/aime_2024",
        columns={"problem": "problem", "expected_answer": "answer", "id": "id"},
    ),
    KnownBenchmark("aime25", "AIME I and II of 2025", 30, "MathArena/aime_2025", columns=_ARENA),
    KnownBenchmark("aime26", "AIME I and II of 2026", 30, "MathArena/aime_2026", columns=_ARENA),
    KnownBenchmark("hmmt-feb-2025", "HMMT February 2025, as MathArena has it", 30, "MathArena/hmmt_feb_2025",
                   columns=_ARENA, note="fewer problems than in Comp-Math-24-25"),
    KnownBenchmark("hmmt-nov-2025", "HMMT November 2025", 30, "MathArena/hmmt_nov_2025", columns=_ARENA),
    KnownBenchmark("hmmt-feb-2026", "HMMT February 2026", 33, "MathArena/hmmt_feb_2026", columns=_ARENA),
    KnownBenchmark(
        "hle-math",
        "Humanity's Last Exam: mathematics, text only",
        975,
        "cais/hle",
        split="test",
        columns={"problem": "question", "expected_answer": "answer", "id": "id"},
        only={"category": ("Math",), "image": ("", None)},
        note="975 in the paper (5.2); the dataset was revised since, and access to it has to be asked for",
    ),
    KnownBenchmark(
        "math-500",
        "500 problems of MATH",
        500,
        "HuggingFaceH4/MATH-500",
        split="test",
        columns={"problem": "problem", "expected_answer": "answer", "id": "unique_id"},
    ),
)  # fmt: skip


def known(name: str) -> KnownBenchmark | None:
    """Return the benchmark of this name; None where it is not known."""
    return next((benchmark for benchmark in KNOWN if benchmark.name == name), None)


def part_of(benchmark: KnownBenchmark | None, name: str) -> Part:
    """Return a part by its name. Raises UserError where there is no such part."""
    parts = {part.name: part for part in (benchmark.parts if benchmark is not None else ())}
    if name not in parts:
        remedy = nearest(name, list(parts)) if parts else "leave out --part"
        raise UserError(f"no part {name!r}", remedy=remedy)
    return parts[name]
