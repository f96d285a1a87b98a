"""The stages ``sft.read`` (published data -> SFT rows) and ``sft.select`` (SFT rows -> those to train on).

Reading: one process reads raw blocks and writes the records in their order; others parse, format and judge the rows
between (``conversion.py``). What is written depends on the data alone, not on the number of processes.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nemo_openmath.chat import load_template
from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.errors import MissingExtra, UserError
from nemo_openmath.core.records import Drop, EncodedRecord, Mode, RecordWriter, SftRow, unit_key
from nemo_openmath.core.records.ids import partition_of
from nemo_openmath.core.records.key_set import KeySet
from nemo_openmath.core.records.readers import BrokenRows, data_files
from nemo_openmath.core.stage import RUNTIME, Result, Stage, StageContext, UnitStage
from nemo_openmath.data.rows.conversion import THINKING_COUNTS, BlockConverter, ConvertedBlock
from nemo_openmath.data.rows.formatting import MODES
from nemo_openmath.data.rows.selection import Choice, FormatRules
from nemo_openmath.data.rows.sources import Block, files_of_split, read_blocks
from nemo_openmath.data.workers import cores, ordered


@dataclass(frozen=True)
class ReadConfig:
    """Settings of ``sft.read``."""

    dataset: str | None = None
    """Name of a dataset of the Hugging Face Hub; where the port ``data`` is given too, it is read after that."""
    split: str | None = None
    """Which split of the dataset is read, or which of those that the files and folders of ``data`` are named after;
    null: all files, and no dataset."""
    mode: Literal[Mode.COT, Mode.TIR, Mode.GENSELECT] | None = None
    """What rows are that do not say so themselves; null: what the split's name or their own text says."""
    prompts: dict[str, Path] = field(default_factory=dict)
    """Your own template files, by mode, for cot and tir; genselect rows hold their prompts."""
    rules: FormatRules = field(default_factory=FormatRules)
    """Rejects by format; see ``rules.*``."""
    skip_broken: bool = False
    """Rows of no known form or type are dropped and counted; otherwise the data is refused, with the place of the
    first such row and their number."""
    workers: PositiveInt | None = field(default=None, metadata=RUNTIME)
    """Processes that parse and format; null: one a core."""

    def __post_init__(self) -> None:
        for mode in self.prompts:
            if mode not in (Mode.COT, Mode.TIR):
                raise UserError(f"prompts: no prompt is put around rows of {mode!r}", remedy="name cot or tir")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers: {self.workers}", remedy="give at least 1")


class ReadRows(Stage[ReadConfig]):
    """Published data (nvidia/OpenMathReasoning, the reference's input/output files) -> SFT rows, rejects counted."""

    kind = "sft.read"
    Config = ReadConfig
    ports = {"data?": "files or folders: JSON Lines (.gz, .zst) or Parquet"}
    takes = {"data": "records"}
    record = SftRow
    version = 4  # rendered prompts of any family as given, one <think>, one end of text

    def check(self, inputs: Mapping[str, Sequence[Path]]) -> None:
        for mode, path in self.config.prompts.items():
            load_template(mode, path)
        for source in inputs.get("data", ()):
            files_of_split(source, data_files(source), self.config.split)
        if self.config.dataset is not None and importlib.util.find_spec("datasets") is None:
            raise MissingExtra("datasets", "datasets", "reading a dataset by name")

    async def run(self, context: StageContext) -> None:
        sources: list[str | Path] = [*context.paths("data")]
        if self.config.dataset is not None:
            sources.append(self.config.dataset)
        if not sources:
            raise UserError(
                f"{context.name}: nothing to read", remedy="give files (from: {data: ./data/}) or dataset: and split:"
            )
        for mode, path in self.config.prompts.items():
            load_template(mode, path)  # a template that is wrong is refused here, not in a worker
        await asyncio.to_thread(self._read, context, sources)

    def _read(self, context: StageContext, sources: list[str | Path]) -> None:
        seen, broken = KeySet(), BrokenRows(skip=self.config.skip_broken)
        counts: Counter[str] = Counter()
        with RecordWriter(context.output, partition=context.shard, partitions=context.shards, flush_units=16) as writer:
            context.progress.begin(None)
            for block in self._converted(sources):
                file = _file(sources[block.source], block.place)
                for number, problem in block.broken:
                    broken(file, number, problem)
                broken.good += len(block.rows) - len(block.broken)
                if broken.refused:  # the rest is only counted
                    continue
                records, drops = _without_duplicates(block, seen)
                counts += block.counts
                if partition_of(block.unit, context.shards) == context.shard and not writer.done(block.unit):
                    writer.commit(block.unit, records, drops)
                context.progress.advance(len(block.rows))
        if not (broken.good or broken.count):
            raise UserError("there is no row in it", file=", ".join(map(str, sources)), remedy="give another file")
        broken.refuse()
        _report(context, counts)

    def _converted(self, sources: list[str | Path]) -> Iterator[ConvertedBlock]:
        """The blocks of all sources in their order, each converted by a worker."""
        split = self.config.split
        mode = self.config.mode or (split if split in MODES else None)
        blocks: Iterator[tuple[int, Block]] = (
            (number, block) for number, source in enumerate(sources) for block in read_blocks(source, split=split)
        )
        workers = self.config.workers or cores()
        return ordered(BlockConverter, blocks, mode, self.config.prompts, self.config.rules, workers=workers)


def _without_duplicates(block: ConvertedBlock, seen: KeySet) -> tuple[list[EncodedRecord], list[Drop]]:
    """Return the block's rows and its drops; a row whose id was seen before is a drop."""
    records: list[EncodedRecord] = []
    drops: list[Drop] = []
    for row in block.rows:
        if isinstance(row, Drop):
            drops.append(row)
        elif seen.add(unit_key(row[0].id)):
            records.append(row[0])
        else:
            drops.append(Drop("duplicate", f"{row[1]} {row[0].id}"))
    return records, drops


def _report(context: StageContext, counts: Counter[str]) -> None:
    if context.shard == 0:  # every shard reads all rows
        context.metrics.update(counts)
    if rendered := counts["rendered_prompts"]:
        context.progress.log(f"{rendered} inputs are rendered prompts: they are taken as given, not rendered again")
    if counts["rows_without_thinking"] and counts["rows_that_think"]:
        context.progress.log(
            f"{counts['rows_without_thinking']} of {sum(counts[name] for name in THINKING_COUNTS)} solutions do not "
            "think; rules: {think: required} leaves them out"
        )


def _file(source: str | Path, place: str) -> Path:
    return Path(source) / place if Path(source).is_dir() else Path(source)


@dataclass(frozen=True)
class SelectConfig:
    """Settings of ``sft.select``."""

    choice: Choice = field(default_factory=Choice)
    """Which rows, by mode, problem source and pass rate. Paper section 5.1, second round: sources [olympiad],
    max_pass_rate 0.3."""
    rules: FormatRules | None = None
    """Rejects by format, for rows that ``sft.read`` did not read; null: no rejects."""


class SelectRows(UnitStage[SelectConfig, SftRow]):
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
