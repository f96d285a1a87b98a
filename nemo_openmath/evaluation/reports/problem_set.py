"""The problem set as the report shows it: what each stage read, made and dropped; how far two models agree; precision
and recall against labelled threads. ``recipe/problem_report.py`` fills it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nemo_openmath.evaluation.reports.formats import in_order
from nemo_openmath.evaluation.two_models import ModelAgreement


@dataclass(frozen=True, slots=True)
class StageBalance:
    """What came of what a stage read: ``read + further == kept + merged + dropped``."""

    stage: str
    kind: str
    read: int
    """Units: threads, rows or problems."""
    further: int
    """What units left beyond the first thing each: the second problem of a thread."""
    kept: int
    """Records, each id once: what the next stage reads."""
    merged: int
    """Records that are equal to another one, by id."""
    drops: Mapping[str, int]
    """Reason -> drops."""

    @property
    def dropped(self) -> int:
        return sum(self.drops.values())


@dataclass(frozen=True, slots=True)
class StageAgreement:
    """How far a second model agrees with a stage's own."""

    stage: str
    engine: str
    second_engine: str
    agreement: ModelAgreement


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """The problem set of a run."""

    balances: Sequence[StageBalance] = ()
    agreements: Sequence[StageAgreement] = ()
    truth: Sequence[Mapping[str, Any]] = ()
    """Rows of evaluation.problems: see evaluation.problem_stages.TruthCounts.rows, and ``of``, the stage's name."""
    samples: bool = False
    """Whether a page of samples is written beside the report."""
    notes: Sequence[str] = field(default_factory=tuple)
    """Sentences about what could not be read, and about records that stages have marked."""

    def to_json(self) -> dict[str, Any]:
        """Return it as data."""
        return {
            "stages": [{**asdict(row), "dropped": row.dropped} for row in self.balances],
            "agreement": [_agreement_json(row) for row in self.agreements],
            "truth": [dict(row) for row in self.truth],
            "notes": list(self.notes),
        }


def _agreement_json(row: StageAgreement) -> dict[str, Any]:
    values = asdict(row.agreement)
    table = [{"first": a, "second": b, "units": count} for (a, b), count in row.agreement.table.items()]
    return {"stage": row.stage, "engine": row.engine, "second_engine": row.second_engine, **values, "table": table}


def problem_set_section(problems: ProblemSet) -> dict[str, Any] | None:
    """Return the tables of the page; None where there is no problem set."""
    if not (problems.balances or problems.truth):
        return None
    return {
        "balances": [_balance_line(row) for row in problems.balances],
        "agreements": [_agreement_line(row) for row in problems.agreements],
        "truth": [
            {"name": name, "lines": [_truth_line(row) for row in problems.truth if row["stage"] == name]}
            for name in in_order(row["stage"] for row in problems.truth)
        ],
        "samples": problems.samples,
        "notes": list(problems.notes),
    }


def _balance_line(row: StageBalance) -> dict[str, Any]:
    return {
        "stage": row.stage,
        "kind": row.kind,
        "read": f"{row.read:,}",
        "further": f"+{row.further:,}" if row.further else "",
        "dropped": f"−{row.dropped:,}" if row.dropped else "",
        "merged": f"−{row.merged:,}" if row.merged else "",
        "kept": f"{row.kept:,}",
        "drops": [
            {"reason": reason, "count": f"{count:,}", "share": f"{count / row.read:.2%}" if row.read else ""}
            for reason, count in sorted(row.drops.items(), key=lambda item: (-item[1], item[0]))
        ],
    }


def _agreement_line(row: StageAgreement) -> dict[str, Any]:
    of = row.agreement
    return {
        "stage": row.stage,
        "models": f"{row.engine}, {row.second_engine}",
        "units": f"{of.units:,}",
        "share": f"{of.agreed / of.units:.1%}",
        "range": f"{of.low:.1%}–{of.high:.1%}",
        "same": f"{of.same:,}",
        "kappa": "" if of.kappa is None else f"{of.kappa:.2f}".replace("-", "−"),
        "kappa_range": ""
        if of.kappa_low is None or of.kappa_high is None
        else f"{of.kappa_low:.2f} to {of.kappa_high:.2f}".replace("-", "−"),
        "apart": [
            {"first": first, "second": second, "units": f"{count:,}"}
            for (first, second), count in sorted(of.table.items(), key=lambda item: (-item[1], item[0]))
            if first != second
        ],
    }


def _truth_line(row: Mapping[str, Any]) -> dict[str, str]:
    def share(name: str) -> tuple[str, str]:
        if row[name] is None:
            return "", ""
        return f"{row[name]:.1%}", f"{row[f'{name}_low']:.1%}–{row[f'{name}_high']:.1%}"

    (precision, precision_range), (recall, recall_range) = share("precision"), share("recall")
    return {
        "name": row["what"],
        "right": f"{row['right']:,}",
        "wrong": f"{row['wrong']:,}",
        "missed": f"{row['missed']:,}",
        "precision": precision,
        "precision_range": precision_range,
        "recall": recall,
        "recall_range": recall_range,
    }
