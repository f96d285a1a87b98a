"""The page of samples: for each stage that asked a model, what went in, what the model said, and what came out.

All texts are of strangers and of models. They are escaped, and the page asks nothing of the network and runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_openmath.evaluation.reports.page import environment, text_of

SAMPLES_PAGE = "samples.html"
SHOWN = 6000
"""Most characters of one text."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")  # what is not seen, or turns text around


@dataclass(frozen=True, slots=True)
class StageSamples:
    """The sample of one stage."""

    stage: str
    kind: str
    outcomes: Mapping[str, Sequence[Mapping[str, Any]]]
    """Outcome -> rows of synthesis.problems.exchanges.read_samples."""
    counts: Mapping[str, int]
    """Outcome -> how many there are in all, where it is known."""


def write_samples_page(file: Path, label: str, stages: Sequence[StageSamples], posts: Mapping[str, str]) -> None:
    """Write the page, whole or not at all. ``posts``: id of a thread -> its first post."""
    page = (
        environment()
        .get_template("samples.html.j2")
        .render(label=label, css=text_of("report.css"), stages=[_stage(stage, posts) for stage in stages])
    )
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(_CONTROL.sub("\ufffd", page), encoding="utf-8", errors="replace")
    temporary.replace(file)


def _stage(stage: StageSamples, posts: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": stage.stage,
        "kind": stage.kind,
        "outcomes": [
            {
                "name": outcome,
                "shown": len(rows),
                "count": stage.counts.get(outcome),
                "items": [_item(row, posts) for row in rows],
            }
            for outcome, rows in stage.outcomes.items()
        ],
    }


def _item(row: Mapping[str, Any], posts: Mapping[str, str]) -> dict[str, Any]:
    asked = {text for exchange in row["asked"] for text in exchange["fields"].values()}
    threads = [{"id": name, "post": _shown(posts[name])} for name in row["sources"] if name in posts]
    return {
        "unit": row["unit"],
        "threads": [{**thread, "asked": posts[thread["id"]] in asked} for thread in threads],
        "sides": [_side(row, "the model"), *([_side(row["second"], "the second model")] if "second" in row else [])],
    }


def _side(side: Mapping[str, Any], name: str) -> dict[str, Any]:
    seen: set[tuple[str, str]] = set()
    return {
        "name": name,
        "asked": [
            {"fields": list(_new(exchange["fields"], seen)), "reply": _shown(exchange["reply"])}
            for exchange in side["asked"]
        ],
        "records": [{name: _shown(value) for name, value in record.items()} for record in side["records"]],
        "drops": [{"reason": drop["reason"], "detail": _shown(drop["detail"])} for drop in side["drops"]],
    }


def _new(fields: Mapping[str, str], seen: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the fields of a question that no question before had."""
    for name, text in fields.items():
        if (name, text) not in seen:
            seen.add((name, text))
            yield name.replace("_", " "), _shown(text)


def _shown(text: str) -> str:
    text = text.replace("\r\n", "\n")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}\n[{len(text) - SHOWN:,} more characters]"
