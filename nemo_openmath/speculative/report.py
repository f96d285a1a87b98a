"""What a trained drafter is worth, as JSON and as a page beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_openmath.core.records import write_json
from nemo_openmath.speculative.acceptance import Acceptance
from nemo_openmath.speculative.train import TrainedDrafter

ACCEPTANCE = "acceptance.json"
PAGE = "acceptance.md"
NAMES = {"redrafter": "ReDrafter", "eagle3": "EAGLE-3 head"}
_PAPER = " The paper's had so in 65% (section 6.3.2)."
_CHAIN = {"redrafter": "by one beam", "eagle3": "in a chain"}
_EVERYWHERE = (
    "A step takes longer than a pass over one token, the more so the more requests are decoded at once: at some "
    "number of them drafts cost what they save. That is of a machine and an engine, and is measured there, for each "
    "number of requests at once."
)
_SPEED = {
    "redrafter": [
        f"{_EVERYWHERE} On the embedded engine, in a checkout of this project:",
        "",
        "    python benchmarks/drafting.py MODEL --generations HELD_OUT --drafter FOLDER \\",
        "        --batches 1,4,16 --requests 16 --temperatures 0 --page speed.md",
        "",
        "MODEL and FOLDER: the model, and the folder of this page. HELD_OUT: that of the held-out solutions. "
        "`speed.md` is this page with the numbers behind it.",
    ],
    "eagle3": [f"{_EVERYWHERE} Serve the model with the head and without it, and send both the same requests."],
}


def write_report(folder: Path, trained: TrainedDrafter, facts: dict[str, Any]) -> None:
    """Write ``acceptance.json`` and ``acceptance.md``. ``facts``: what else the page says, by its name."""
    numbers = {"at_the_end": trained.acceptance.to_json(), "during_training": trained.measured}
    write_json(folder / ACCEPTANCE, numbers)
    (folder / PAGE).write_text(page(trained, facts), encoding="utf-8")


def page(trained: TrainedDrafter, facts: dict[str, Any]) -> str:
    """Return the page: what it saves, the acceptance by position, how to see the speed, how it rose, and the facts."""
    form = str(facts.get("form", "redrafter"))
    lines = [f"# {NAMES[form]}: what it saves", "", *_at_the_end(trained.acceptance, form)]
    lines += ["", "## How much faster", "", *_SPEED[form]]
    if trained.measured:
        lines += ["", "## During training", "", *_during(trained)]
    lines += ["", "## What was trained", "", *(f"- {name}: {value}" for name, value in facts.items())]
    return "\n".join(lines) + "\n"


def _at_the_end(acceptance: Acceptance, form: str) -> list[str]:
    if not acceptance.texts:
        return ["Nothing was held out, so it was not measured."]
    texts = "1 held-out text" if acceptance.texts == 1 else f"{acceptance.texts:,} held-out texts"
    if not acceptance.steps:
        return [f"Nothing was measured: {texts}, and in none of them a token behind the first."]
    number, share = acceptance.draft_tokens, acceptance.jointly[-1]
    paper = _PAPER if (form, number) == ("redrafter", 3) else ""
    drafts = "1 draft" if number == 1 else f"{number} drafts"
    lines = [
        f"**{acceptance.tokens_per_step:.2f} tokens a step instead of 1**, on {texts} of the model: "
        f"{acceptance.tokens:,} tokens in {acceptance.steps:,} steps. A step is one pass of the model over the newest "
        f"token and {drafts}, {_CHAIN[form]}; {acceptance.accepted_per_step:.2f} of them are accepted.",
        "",
        "| draft | accepted | of so many | share | it and all before it |",
        "|---|---|---|---|---|",
    ]
    rows = zip(acceptance.accepted, acceptance.judged, acceptance.by_position, acceptance.jointly, strict=True)
    lines += [
        f"| {place} | {right:,} | {of:,} | {_percent(alone)} | {_percent(joint)} |"
        for place, (right, of, alone, joint) in enumerate(rows, 1)
    ]
    lines += [
        "",
        "A draft counts where all before it were accepted and the answer goes on so far. The last column is the "
        "product of the shares.",
        "",
    ]
    if share is not None and number > 1:
        lines.append(f"- All {number} drafts are accepted in {share:.0%} of the steps.{paper}")
    if acceptance.outside:
        outside = acceptance.outside / acceptance.written
        lines.append(
            f"- {outside:.2%} of the tokens are not in the drafter's vocabulary: they are counted as not accepted."
        )
    return lines


def _during(trained: TrainedDrafter) -> list[str]:
    lines = ["| step | accepted a step | tokens a step | all accepted | texts |", "|---|---|---|---|---|"]
    for row in trained.measured:
        if row["steps"]:
            numbers = f"{row['accepted_per_step']:.2f} | {row['tokens_per_step']:.2f} | {_percent(row['jointly'][-1])}"
            lines.append(f"| {row['step']:,} | {numbers} | {row['texts']} |")
    return lines


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
