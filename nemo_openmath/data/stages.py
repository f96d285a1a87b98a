"""Choosing, tokenizing and packing as stages of a recipe (reading is in ``read_stage.py``)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.bounds import NonNegativeFloat, NonNegativeInt, PositiveInt
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Drop, SftRow
from nemo_openmath.core.stage import RUNTIME, Result, Stage, StageContext, UnitStage
from nemo_openmath.data.packs.write import Mixture, write_packs
from nemo_openmath.data.rows.selection import Choice, FormatRules
from nemo_openmath.data.tokens.tokenization import write_tokens


@dataclass(frozen=True)
class SelectConfig:
    """``choice``: by mode, problem source and pass rate (second round of section 5.1: sources [olympiad],
    max_pass_rate 0.3). ``rules``: rejects by format, for rows that were not read by ``sft.read``; None: no rejects."""

    choice: Choice = field(default_factory=Choice)
    rules: FormatRules | None = None


class Select(UnitStage[SelectConfig, SftRow]):
    """SFT rows -> those to train on."""

    kind = "sft.select"
    Config = SelectConfig
    ports = {"rows": "SFT rows"}
    takes = {"rows": "SftRow"}
    record = SftRow
    concurrency = 1

    def units(self, context: StageContext) -> Iterable[tuple[str, SftRow]]:
        return ((row.id, row) for row in context.read("rows", SftRow))

    async def process(self, unit: SftRow, context: StageContext) -> Result:
        reason = self.config.choice.reject(unit)
        if reason is None and self.config.rules is not None:
            reason = self.config.rules.reject(unit)
        return Result([unit]) if reason is None else Result(drops=[Drop(reason, unit.id)])


@dataclass(frozen=True)
class TokenizeConfig:
    """``train_on_tool_output``: loss also on what the sandbox's runner wrote."""

    train_on_tool_output: bool = False
    workers: PositiveInt | None = field(default=None, metadata=RUNTIME)


class Tokenize(Stage[TokenizeConfig]):
    """SFT rows -> token files, one folder per input: ``tokens-0``, ``tokens-1``, ..."""

    kind = "sft.tokenize"
    Config = TokenizeConfig
    ports = {"rows": "SFT rows", "model": "the model whose tokenizer is used"}
    takes = {"rows": "SftRow", "model": "model"}
    makes = "tokens"
    version = 3  # one <think> at the beginning, one end of text; control tokens in texts are text

    def check(self, inputs: Mapping[str, Sequence[Path]]) -> None:
        for model in inputs.get("model", ()):
            ChatTokenizer.load(model)

    async def run(self, context: StageContext) -> None:
        context.progress.begin(len(context.inputs["rows"]))
        totals = {"samples": 0, "tokens": 0, "trained_tokens": 0}
        dropped: dict[str, int] = {}
        for i, rows in enumerate(context.inputs["rows"]):
            folder = await asyncio.to_thread(
                write_tokens,
                rows,
                context.one("model"),
                context.output / f"tokens-{i}",
                train_on_tool_output=self.config.train_on_tool_output,
                workers=self.config.workers,
            )
            totals["samples"] += len(folder)
            totals["tokens"] += folder.num_tokens
            totals["trained_tokens"] += folder.num_target_tokens
            for reason, count in folder.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
            context.progress.advance()
        context.facts.update(totals, dropped=dropped)


@dataclass(frozen=True)
class PackConfig:
    """``capacity``: tokens of a pack (32768 in the paper). ``pad_multiple``: 2 x CP of the layouts to train with.
    ``weights``: copies of each sample in an epoch, by mode. ``phases``: modes trained one after the other.
    ``at_least``: tokens that solutions of a mode have at least (second round: 5000 for cot and tir, section 5.1)."""

    capacity: PositiveInt = 32768
    pad_multiple: PositiveInt = 1
    weights: dict[str, NonNegativeFloat] = field(default_factory=dict)
    phases: list[list[str]] | None = None
    at_least: dict[str, NonNegativeInt] = field(default_factory=dict)
    too_long: Literal["drop", "error"] = "drop"  # what to do about samples above the capacity


class PackSamples(Stage[PackConfig]):
    """Token files -> which samples lie together in a pack."""

    kind = "sft.pack"
    Config = PackConfig
    ports = {"tokens": "folders of sft.tokenize"}
    takes = {"tokens": "tokens"}
    makes = "packs"
    version = 2  # other samples of a length lie together than before

    async def run(self, context: StageContext) -> None:
        folders: list[Path] = []
        for folder in context.inputs["tokens"]:
            found = sorted(folder.glob("tokens-*"), key=lambda path: int(path.name.removeprefix("tokens-")))
            if not found:
                raise UserError("no token files", file=folder, remedy="name a stage or folder of sft.tokenize")
            folders += found
        plan = await asyncio.to_thread(
            write_packs,
            folders,
            context.output,
            capacity=self.config.capacity,
            pad_multiple=self.config.pad_multiple,
            mixture=Mixture(self.config.phases, self.config.weights, self.config.at_least),
            too_long=self.config.too_long,
            seed=context.seed,
        )
        context.facts.update(
            packs=plan.num_packs, samples=len(plan.entries), fill=round(plan.fill, 4), dropped=plan.meta["dropped"]
        )
