"""How the planted cases of each stage came out, as the report shows it. ``recipe/report_data.py`` fills it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_openmath.evaluation.controls import warnings
from nemo_openmath.evaluation.reports.formats import count_text, interval_text, value_text


@dataclass(frozen=True, slots=True)
class StageControls:
    """The planted cases of a stage."""

    stage: str
    kind: str
    rate: float
    """Planted units for each one that the model was asked about."""
    bound: float
    """A sensitivity or specificity below it is warned about."""
    measured: Mapping[str, Any]
    """See evaluation.controls.measured."""
    finished: bool = True
    """False where the stage still runs, or was stopped."""

    @property
    def warnings(self) -> list[str]:
        """Return a sentence for each measure below the bound."""
        return warnings(self.stage, self.measured, self.bound) if self.finished or self.measured["planted"] else []

    def to_json(self) -> dict[str, Any]:
        """Return it as data."""
        fields = {"stage": self.stage, "kind": self.kind, "rate": self.rate, "bound": self.bound}
        return {**fields, "finished": self.finished, **self.measured, "warnings": self.warnings}


def controls_section(rows: Sequence[StageControls]) -> dict[str, Any] | None:
    """Return the tables of the page; None where nothing was planted."""
    if not rows:
        return None
    return {
        "warnings": [sentence for row in rows for sentence in row.warnings],
        "stages": [
            {
                "name": row.stage,
                "note": _note(row),
                "lines": [_line(score, row.bound) for score in row.measured["scores"]],
                "examples": row.measured["examples"],
            }
            for row in rows
        ],
    }


def _note(row: StageControls) -> str:
    text = f"{row.kind}: {count_text(row.measured['planted'], 'control')} of {row.measured['cases']:,} cases"
    if row.measured["tokens"]:
        text += f", {row.measured['tokens']:,} tokens"
    if row.measured["failed"]:
        text += f", {row.measured['failed']:,} failed"
    return text if row.finished else f"{text}, so far"


def _line(score: Mapping[str, Any], bound: float) -> dict[str, str]:
    return {
        "name": f"{score['measure']} for {score['class']}",
        "value": value_text("share", score["value"]),
        "range": interval_text("share", score["low"], score["high"]),
        "cases": f"{score['cases']:,}",
        "wrong": f"{score['wrong']:,}",
        "word": "" if score["value"] >= bound else "below the bound",
    }
