"""Reading, choosing, tokenizing and packing as stages of a recipe."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from nemo_openmath.errors import UserError
from nemo_openmath.pipeline import Result, Stage, StageContext, UnitStage, register
from nemo_openmath.pipeline.stage import RUNTIME
from nemo_openmath.records import Drop, RecordWriter, SftRow, unit_key
from nemo_openmath.records.ids import in_shard
from nemo_openmath.sft.formatting import MODES, Formatter, Reject
from nemo_openmath.sft.key_set import KeySet
from nemo_openmath.sft.pack_plan import Mixture, write_packs
from nemo_openmath.sft.reading import Row, read_source
from nemo_openmath.sft.selection import Choice, FormatRules
from nemo_openmath.sft.tokenization import write_tokens
from nemo_openmath.transcripts import load_template


@dataclass(frozen=True)
class ReadConfig:
    """``dataset``: a name of the Hub, instead of the port ``data``; ``split``: which of its splits. ``mode``: what rows
    are that do not say so (cot, tir, genselect). ``prompts``: the user's own template files, of cot and tir; genselect
    rows hold theirs."""

    dataset: str | None = None
    split: str | None = None
    mode: Literal["cot", "tir", "genselect"] | None = None
    prompts: dict[str, Path] = field(default_factory=dict)
    rules: FormatRules = field(default_factory=FormatRules)

    def __post_init__(self) -> None:
        for mode in self.prompts:
            if mode not in ("cot", "tir"):
                raise UserError(f"prompts: no prompt is put around rows of {mode!r}", remedy="name cot or tir")


@register
class Read(Stage[ReadConfig]):
    """Published data (nvidia/OpenMathReasoning, the reference's input/output files) -> SFT rows, rejects counted."""

    kind = "sft.read"
    Config = ReadConfig
    ports = {"data?": "files or folders: JSON Lines (.gz, .zst) or Parquet"}

    async def run(self, context: StageContext) -> None:
        config = self.config
        sources: list[str | Path] = [*context.inputs.get("data", ())]
        if config.dataset is not None:
            sources.append(config.dataset)
        if not sources:
            raise UserError(
                f"{context.name}: nothing to read", remedy="give files (from: {data: ./data/}) or dataset: and split:"
            )
        templates = {mode: load_template(mode, path) for mode, path in config.prompts.items()}
        formatter = Formatter(config.mode or (config.split if config.split in MODES else None), templates)
        await asyncio.to_thread(self._read, context, sources, formatter)

    def _read(self, context: StageContext, sources: list[str | Path], formatter: Formatter) -> None:
        seen = KeySet()
        with RecordWriter(context.output, shard=context.shard, shards=context.shards, flush_units=1) as writer:
            context.progress.begin(None, writer.recovered * _BLOCK)
            for number, source in enumerate(sources):
                for start, rows in _blocks(read_source(source, split=self.config.split, broken=True)):
                    records: list[SftRow] = []
                    drops: list[Drop] = []
                    for place, fields in rows:
                        try:
                            row = self._row(formatter, fields, seen)
                            records.append(row)
                        except Reject as error:
                            drops.append(Drop(error.reason, f"{place[0]}:{place[1]} {error.detail}"))
                    unit = f"{number}:{start}"
                    if in_shard(unit, context.shard, context.shards) and not writer.done(unit):
                        writer.commit(unit, records, drops)
                        context.progress.advance(len(rows))

    def _row(self, formatter: Formatter, fields: dict[str, Any] | str, seen: KeySet) -> SftRow:
        """Raises Reject."""
        if isinstance(fields, str):
            raise Reject("not a JSON object", fields)
        row = formatter.format(fields)
        if reason := self.config.rules.reject(row):
            raise Reject(reason, row.id)
        if not seen.add(unit_key(row.id)):
            raise Reject("duplicate", row.id)
        return row


_BLOCK = 256  # rows that are written, or written again after a kill, together


def _blocks(rows: Iterable[Row]) -> Iterator[tuple[int, list[Row]]]:
    """(number of the first row, rows) of consecutive blocks."""
    rows, start = iter(rows), 0
    while block := list(islice(rows, _BLOCK)):
        yield start, block
        start += len(block)


@dataclass(frozen=True)
class SelectConfig:
    """``choice``: by mode, problem source and pass rate (second round of section 5.1: sources [olympiad],
    max_pass_rate 0.3). ``rules``: rejects by format, for rows that were not read by ``sft.read``; None: no rejects."""

    choice: Choice = field(default_factory=Choice)
    rules: FormatRules | None = None


@register
class Select(UnitStage[SelectConfig, SftRow]):
    """SFT rows -> those to train on."""

    kind = "sft.select"
    Config = SelectConfig
    ports = {"rows": "SFT rows"}
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
    workers: int | None = field(default=None, metadata=RUNTIME)


@register
class Tokenize(Stage[TokenizeConfig]):
    """SFT rows -> token files, one folder per input: ``tokens-0``, ``tokens-1``, ..."""

    kind = "sft.tokenize"
    Config = TokenizeConfig
    ports = {"rows": "SFT rows", "model": "the model whose tokenizer is used"}
    makes = "tokens"

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
            totals["trained_tokens"] += folder.num_trained
            for reason, count in folder.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
            context.progress.advance()
        context.facts.update(totals, dropped=dropped)


@dataclass(frozen=True)
class PackConfig:
    """``capacity``: tokens of a pack (32768 in the paper). ``pad_multiple``: 2 x CP x TP of the layouts to train with.
    ``weights``: copies of each sample in an epoch, by mode. ``phases``: modes trained one after the other.
    ``at_least``: tokens that solutions of a mode have at least (second round: 5000 for cot and tir, section 5.1)."""

    capacity: int = 32768
    pad_multiple: int = 1
    weights: dict[str, float] = field(default_factory=dict)
    phases: list[list[str]] | None = None
    at_least: dict[str, int] = field(default_factory=dict)
    too_long: Literal["drop", "error"] = "drop"


@register
class PackSamples(Stage[PackConfig]):
    """Token files -> which samples lie together in a pack."""

    kind = "sft.pack"
    Config = PackConfig
    ports = {"tokens": "folders of sft.tokenize"}
    makes = "packs"
    version = 2  # other samples of a length lie together than before

    async def run(self, context: StageContext) -> None:
        folders: list[Path] = [t for f in context.inputs["tokens"] for t in sorted(f.glob("tokens-*"))]
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
