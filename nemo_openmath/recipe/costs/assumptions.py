"""The numbers that no setting says: given in a recipe's ``x-plan`` or on the command line, or assumed.

x-plan:                          # in a recipe; `openmath plan` alone reads it
  records: {threads: 620000}     # what a stage leaves
  kept: {cot_kept: 0.62}         # the share of its records that a stage leaves
  tokens: {cot_r1: 9000}         # of a mean answer
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from nemo_openmath.core.bounds import NonNegativeFloat, PositiveFloat, PositiveShare, Share
from nemo_openmath.core.build import Builder, nearest
from nemo_openmath.core.config import Source
from nemo_openmath.core.errors import UserError
from nemo_openmath.recipe.costs.models import model_of
from nemo_openmath.recipe.file import Recipe

SECTION = "x-plan"


@dataclass(frozen=True)
class CostAssumptions:
    """What a plan assumes where no setting says it. Names are those of stages."""

    records: dict[str, NonNegativeFloat] = field(default_factory=dict)
    """Records that a stage leaves, such as the rows of a file that is not there yet."""
    kept: dict[str, Share] = field(default_factory=dict)
    """Share of its records that a stage leaves; of ``genselect.groups``, of its problems that get groups. 1 where a
    stage is not named."""
    asked: dict[str, NonNegativeFloat] = field(default_factory=dict)
    """Questions that a stage asks its model about a record. Assumed: 0.1 of a judge, whom only open verdicts reach;
    of a decontamination 2.75 candidates in all orders, or all candidates where none has to ``stand_out``; 1 of others.
    What ``controls`` plant is added."""
    samples: dict[str, NonNegativeFloat] = field(default_factory=dict)
    """Mean samples that a generation makes of a problem, where hardness or agreement decides it. Assumed: half way
    between ``least`` and ``samples``."""
    tokens: dict[str, PositiveFloat] = field(default_factory=dict)
    """Mean tokens of a model's answer. Assumed: see ``solution_tokens`` and ``reply_tokens``; of summaries 500."""
    prompt_tokens: dict[str, PositiveFloat] = field(default_factory=dict)
    """Mean tokens of a prompt. Assumed: 300; of two problems to compare 1,300; of a forum thread 1,500; of a summary
    the solution; of a selection 500 for each candidate."""
    tokens_per_gpu: dict[str, PositiveFloat] = field(default_factory=dict)
    """Tokens that one GPU decodes in a second, by stage or by model, in place of the estimate: what you measured."""
    solution_tokens: PositiveFloat = 8700.0
    """Mean tokens of a solution or selection, but at most half of its ``max_tokens``: what ``benchmarks/scale.py``
    writes."""
    reply_tokens: PositiveFloat = 300.0
    """Mean tokens of a short reply: a judge's, an extracted problem's."""
    memory_share: PositiveShare = 0.6
    """Share of the data sheet's memory bandwidth that decoding reaches."""
    compute_share: PositiveShare = 0.4
    """Share of the data sheet's bf16 peak that a server reaches, in prompts and in decoding."""
    load_minutes: NonNegativeFloat = 10.0
    """Minutes from a job's start until its model server answers."""


def read_assumptions(recipe: Recipe, given: Sequence[str] = ()) -> CostAssumptions:
    """Return the assumptions of a recipe: those of its ``x-plan``, and ``key=value`` of ``given`` over them.

    Raises UserError that names a key that is none, and a stage that the recipe has not.
    """
    written = recipe.source or Source.read(recipe.path)
    source = Source({SECTION: copy.deepcopy(written.data.get(SECTION) or {})}, dict(written._origins), written.path)
    dotted: dict[str, tuple[str, str]] = {}  # a word that stands for it -> (section, name)
    for number, text in enumerate(given):
        if "=" not in text:
            raise UserError(f"--assume {text}", remedy="write key=value, such as tokens.cot=9000")
        section, _, name = text.partition("=")[0].strip().partition(".")
        if "." in name:  # of a model, such as tokens_per_gpu.Qwen2.5-14B
            dotted[word := f"name{number}"] = section, name
            text = f"{section}.{word}={text.partition('=')[2]}"
        source._override(f"{SECTION}.{text}")
    for word, (section, name) in dotted.items():
        source.data[SECTION][section][name] = source.data[SECTION][section].pop(word)
    builder = Builder(source.origin, Path(recipe.path).parent, taken_out=source.taken_out)
    assumptions = builder.build(CostAssumptions, source.data[SECTION], (SECTION,))
    for section in ("records", "kept", "asked", "samples", "tokens", "prompt_tokens"):
        for name in getattr(assumptions, section):
            if name not in recipe.stages:
                key = (SECTION, section, name)
                raise builder.error(key, "no such stage", nearest(name, list(recipe.stages)))
    engines = [engine for entry in recipe.stages.values() for engine in entry.stage.engines()]
    known = dict.fromkeys([*engines, *(model_of(recipe, engine).name for engine in engines), *recipe.stages])
    for name in assumptions.tokens_per_gpu:
        if name not in known:
            key = (SECTION, "tokens_per_gpu", name)
            raise builder.error(key, "no model or stage is called so", nearest(name, list(known)))
    return assumptions


def assumption_lines(recipe: Recipe, assumptions: CostAssumptions, given: Sequence[str]) -> list[str]:
    """Return what is assumed of records and of generation, with the origin of each number."""
    origins: dict[str, list[str]] = {}
    for section in fields(CostAssumptions):
        value = getattr(assumptions, section.name)
        for name, number in value.items() if isinstance(value, dict) else ():
            key = f"{section.name}.{name}"
            words = f"{key} {number:g}" if number < 1000 else f"{key} {number:,.0f}"
            origins.setdefault(_origin(recipe, given, key), []).append(words)
    texts = [f"{origin}: {', '.join(words)}" for origin, words in origins.items()]
    numbers = {
        "solution_tokens": "tokens of a solution, at most half of its max_tokens (what benchmarks/scale.py writes)",
        "reply_tokens": "tokens of a short reply",
        "memory_share": "of the memory bandwidth in decoding",
        "compute_share": "of the peak in decoding and in prompts",
        "load_minutes": "minutes until a model server answers",
    }
    for name, words in numbers.items():
        origin = _origin(recipe, given, name)
        texts.append(f"{origin}: {name} {getattr(assumptions, name):,g}: {words}")
    texts.append("records a second of stages without a model, and bytes: docs/background/performance.md, measured")
    texts.append("anything: --assume key=value, or x-plan: in the recipe")
    return texts


def _origin(recipe: Recipe, given: Sequence[str], setting: str) -> str:
    """Where an assumption comes from: ``--assume``, ``x-plan`` of a file, or ``assumed``."""
    if any(text.partition("=")[0].strip() == setting for text in given):
        return "--assume"
    origin = Source.read(recipe.path).origin((SECTION, *setting.split(".")))
    written = setting.split(".")[0] in (Source.read(recipe.path).data.get(SECTION) or {})
    return f"x-plan of {Path(origin.file).name}" if written else "assumed"


def unknown_records(recipe: Recipe, names: Sequence[str]) -> UserError:
    """Return the error that lists the stages of which nothing says how many records they leave."""
    return UserError(
        f"how many records are in {', '.join(names)}? No file is there to count them",
        file=recipe.path,
        remedy=f"give --assume records.{names[0]}=N, or write {SECTION}: {{records: {{{names[0]}: N}}}}",
    )
