"""What a trained drafter is worth, as JSON and as a page beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_openmath.core.records import write_json
from nemo_openmath.speculative.acceptance import Acceptance
from nemo_openmath.speculative.train import TrainedDrafter

ACCEPTANCE = "acceptance.json"
PAGE = "acceptance.md"
_PAPER = "The paper's ReDrafter had all three drafts accepted in 65% of the steps (section 6.3.2)."


def write_report(folder: Path, trained: TrainedDrafter, facts: dict[str, Any]) -> None:
    """Write ``acceptance.json`` and ``acceptance.md``. ``facts``: what else the page says, by its name."""
    numbers = {"at_the_end": trained.acceptance.to_json(), "during_training": trained.measured}
    write_json(folder / ACCEPTANCE, numbers)
    (folder / PAGE).write_text(page(trained, facts), encoding="utf-8")


def page(trained: TrainedDrafter, facts: dict[str, Any]) -> str:
    """Return the page: the facts, the acceptance by position, and how it rose."""
    lines = ["# Drafter: what it saves", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", *_at_the_end(trained.acceptance)]
    if trained.measured:
        lines += ["", "## During training", "", *_during(trained)]
    return "\n".join(lines) + "\n"


def _at_the_end(acceptance: Acceptance) -> list[str]:
    if not acceptance.steps:
        return ["Nothing was held out, so it was not measured."]
    per_step = acceptance.accepted_per_step or 0.0
    texts = "1 held-out text" if acceptance.texts == 1 else f"{acceptance.texts:,} held-out texts"
    lines = [
        f"Measured on {texts} of the model, in {acceptance.steps:,} steps of decoding with one beam. "
        "A step is one pass of the model.",
        "",
        "| draft | accepted, where all before it were | it and all before it accepted |",
        "|---|---|---|",
    ]
    rows = zip(acceptance.by_position, acceptance.jointly, strict=True)
    lines += [f"| {number} | {_percent(alone)} | {_percent(joint)} |" for number, (alone, joint) in enumerate(rows, 1)]
    lines += [
        "",
        f"- {per_step:.2f} of {acceptance.draft_tokens} drafts are accepted in a step: {1 + per_step:.2f} tokens a "
        "step instead of 1.",
        f"- All {acceptance.draft_tokens} drafts are accepted in {acceptance.jointly[-1]:.0%} of the steps. {_PAPER}",
    ]
    if acceptance.outside:
        share = acceptance.outside / acceptance.written
        lines.append(
            f"- {share:.2%} of the tokens are not in the drafter's vocabulary: they are counted as not accepted."
        )
    return lines


def _during(trained: TrainedDrafter) -> list[str]:
    lines = ["| step | accepted a step | all accepted | texts |", "|---|---|---|---|"]
    for row in trained.measured:
        if row["steps"]:
            lines.append(
                f"| {row['step']:,} | {row['accepted_per_step']:.2f} | {row['jointly'][-1]:.0%} | {row['texts']} |"
            )
    return lines


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
