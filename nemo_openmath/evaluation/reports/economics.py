"""What the tokens of a run bought, as the report shows it. ``recipe/economics`` fills it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nemo_openmath.evaluation.reports.formats import in_order, mode_name


@dataclass(frozen=True, slots=True)
class YieldRow:
    """What a model's samples of a class of problems came to. Samples that no filter has decided are not counted."""

    model: str
    mode: str
    kind: str
    """What the class is made by: problem_type, category, source, pass rate; ``all`` for all problems."""
    value: str
    problems: int
    solved: int
    """Problems with an accepted sample."""
    samples: int
    tokens: int
    accepted: int
    per_million: float
    """Accepted samples in a million generated tokens."""
    low: float | None
    """Lower end of its 95% interval, over problems; None where there are too few."""
    high: float | None


@dataclass(frozen=True, slots=True)
class SpentRow:
    """What a stage's samples of problems cost that were solved already."""

    stage: str
    model: str
    mode: str
    wanted: int
    """Accepted samples of a problem that are enough: what the filters keep at most, 1 where they keep all."""
    kept_all: bool
    """Whether the filters keep more than ``wanted``."""
    tokens: int
    beyond: int
    """Tokens of the samples, by their numbers, behind the ``wanted``-th that was good enough to be kept."""
    share: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class LossRow:
    """Tokens of samples that were not kept, by the first reason that a filter gave."""

    model: str
    mode: str
    reason: str
    samples: int
    tokens: int
    share: float
    """Of the tokens of all decided samples of the model and mode."""
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A sentence about the next run, and the numbers that it rests on."""

    text: str
    tokens: int
    """Tokens that it is about: the larger, the more it matters."""


@dataclass(frozen=True, slots=True)
class Economics:
    """What the tokens of a run bought."""

    models: Sequence[YieldRow] = ()
    classes: Sequence[YieldRow] = ()
    spent: Sequence[SpentRow] = ()
    losses: Sequence[LossRow] = ()
    suggestions: Sequence[Suggestion] = ()
    notes: Sequence[str] = ()
    """Sentences about what is not counted."""

    def to_json(self) -> dict[str, Any]:
        """Return it as data: lists of rows with the names of the fields."""
        rows = ("models", "classes", "spent", "losses", "suggestions")
        return {name: [asdict(row) for row in getattr(self, name)] for name in rows} | {"notes": list(self.notes)}


def economics_section(economics: Economics) -> dict[str, Any] | None:
    """Return the tables of the page; None where nothing was counted."""
    if not economics.models:
        return None
    return {
        "suggestions": [suggestion.text for suggestion in economics.suggestions],
        "models": [_yield_line(row) for row in economics.models],
        "classes": [
            {
                "name": kind.replace("_", " "),
                "lines": [_yield_line(row) for row in economics.classes if row.kind == kind],
            }
            for kind in in_order(row.kind for row in economics.classes)
        ],
        "spent": [
            {
                "name": f"{row.stage} ({row.model}, {mode_name(row.mode)})",
                "wanted": f"{row.wanted:,}{', all are kept' if row.kept_all else ''}",
                "tokens": f"{row.tokens:,}",
                "beyond": f"{row.beyond:,}",
                "share": f"{row.share:.1%}",
                "range": _range(row.low, row.high, 100, 1),
            }
            for row in economics.spent
        ],
        "losses": [
            {
                "name": row.reason,
                "model": f"{row.model}, {mode_name(row.mode)}",
                "samples": f"{row.samples:,}",
                "tokens": f"{row.tokens:,}",
                "share": f"{row.share:.1%}",
                "range": _range(row.low, row.high, 100, 1),
            }
            for row in economics.losses
        ],
        "notes": list(economics.notes),
    }


def _yield_line(row: YieldRow) -> dict[str, str]:
    return {
        "value": row.value,
        "name": f"{row.model}, {mode_name(row.mode)}",
        "problems": f"{row.problems:,}",
        "solved": f"{row.solved / row.problems:.0%}" if row.problems else "",
        "samples": f"{row.samples:,}",
        "tokens": f"{row.tokens:,}",
        "accepted": f"{row.accepted:,}",
        "rate": f"{row.per_million:,.{digits(row.per_million)}f}",
        "range": _range(row.low, row.high, 1, digits(row.per_million)),
    }


def digits(value: float) -> int:
    """Return how many decimals an amount is shown with."""
    return 0 if value >= 100 else 1


def _range(low: float | None, high: float | None, scale: float, decimals: int) -> str:
    if low is None or high is None:
        return ""
    return f"{scale * low:,.{decimals}f}–{scale * high:,.{decimals}f}"
