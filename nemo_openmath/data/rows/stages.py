"""The stages ``sft.read`` (published data -> SFT rows) and ``sft.select`` (SFT rows -> those to train on).

Reading: one process hands out blocks of the data and writes the records in their order; others read, parse, format and
judge the rows between (``conversion.py``). A job of an array reads its own part of each source. What is written depends
on the data alone, not on the number of processes and jobs. So equal rows are all written: they are one record to every
reader (``core/merging.py``), in whatever parts of the data they stand.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, Self

import orjson

from nemo_openmath.chat import Transcript, load_template
from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.errors import MissingExtra, UserError
from nemo_openmath.core.records import Drop, Mode, RecordWriter, SftRow, unit_key
from nemo_openmath.core.records.encoding import parse_record
from nemo_openmath.core.records.readers import BrokenRows, data_files, row_at
from nemo_openmath.core.records.store import partition_files
from nemo_openmath.core.stage import RUNTIME, Result, Stage, StageContext, UnitStage
from nemo_openmath.data.rows.conversion import THINKING_COUNTS, BlockConverter, ConvertedBlock, unit_of
from nemo_openmath.data.rows.formatting import MODES
from nemo_openmath.data.rows.prompt_recovery import SAMPLE, RowQuestion, recover
from nemo_openmath.data.rows.selection import Choice, FormatRules
from nemo_openmath.data.rows.sources import Block, Place, Share, files_of_split, read_blocks
from nemo_openmath.data.workers import cores, ordered

RECOVERED = "genselect_rows_of_prompt_"
"""How the name of a metric begins that counts the rows of a prompt; its digest follows."""


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
    splits = True
    version = 5  # equal rows are merged by readers, like any equal records

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
        skip, alone = self.config.skip_broken, context.shards == 1
        broken = BrokenRows(skip=skip)
        with (
            RecordWriter(context.output, partition=context.shard, partitions=context.shards, flush_units=16) as writer,
            UnitCounts(context, writer) as counts,
        ):
            broken.good = counts.total["rows"] - counts.total["broken_rows"]
            context.progress.begin(None, counts.total["rows"])
            for block in self._converted(context, sources, counts):
                for place, problem in block.broken:
                    # The first is named where the data is refused; with skip_broken that is where no row is good.
                    named = not (broken.count or (skip and broken.good))
                    file = _file(sources[block.source], place.source)
                    broken(file, _row_number(file, place) if named else 0, problem)
                broken.good += len(block.rows) - len(block.broken)
                if broken.refused:  # the rest is only counted
                    continue
                if block.rows:
                    counts.add(block)
                    if not writer.done(block.unit):
                        records = [row for row in block.rows if not isinstance(row, Drop)]
                        writer.commit(block.unit, records, [row for row in block.rows if isinstance(row, Drop)])
                context.progress.advance(len(block.rows))
        if alone and not (broken.count or counts.total["rows"]):
            raise UserError("there is no row in it", file=", ".join(map(str, sources)), remedy="give another file")
        if alone or not skip:  # no job of an array knows whether all rows of all jobs are broken
            broken.refuse()
        _report(context, counts.total)
        if mode_of(self.config.mode, self.config.split) in (None, Mode.GENSELECT):
            note_prompts(context)

    def _converted(
        self, context: StageContext, sources: list[str | Path], done: UnitCounts
    ) -> Iterator[ConvertedBlock]:
        """Yield the blocks of this job's share of each source in their order, each converted by a worker, but those
        that are done."""
        split, share = self.config.split, Share(context.shard, context.shards)
        mode = mode_of(self.config.mode, split)
        blocks: Iterator[tuple[int, Block]] = (
            (number, block)
            for number, source in enumerate(sources)
            for block in read_blocks(source, split=split, share=share)
            if unit_of(number, block) not in done
        )
        workers = self.config.workers or cores()
        return ordered(BlockConverter, blocks, mode, self.config.prompts, self.config.rules, workers=workers)


class UnitCounts:
    """What was counted of each finished unit, written down beside the records: a restart need not read its rows
    again."""

    def __init__(self, context: StageContext, writer: RecordWriter):
        self._path = context.output / f".counts-{context.shard:05d}-of-{context.shards:05d}.jsonl"
        self._writer = writer
        self._units: set[int] = set()
        self.total: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._file = self._path.open("a+b", buffering=0)
        self._file.seek(0)
        whole = 0
        for line in self._file:
            try:
                unit, counts = orjson.loads(line)
            except ValueError:  # torn by a kill: units behind it are read again
                break
            whole += len(line)
            if self._writer.done(unit):
                self._note(unit, counts)
        self._file.truncate(whole)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, unit: str) -> bool:
        return unit_key(unit) in self._units

    def add(self, block: ConvertedBlock) -> None:
        """Write down the counts of a unit that is about to be stored."""
        counts = {"rows": len(block.rows), "broken_rows": len(block.broken)} | block.counts
        self._file.write(orjson.dumps([block.unit, counts]) + b"\n")
        self._note(block.unit, counts)

    def _note(self, unit: str, counts: Mapping[str, int]) -> None:
        if unit not in self:
            self._units.add(unit_key(unit))
            self.total.update(counts)


def mode_of(mode: str | None, split: str | None) -> str | None:
    """Return what rows are that do not say so themselves; None where nothing says it."""
    return mode or (split if split in MODES else None)


def note_prompts(context: StageContext) -> None:
    """Count, among the metrics, the rows of GenSelect that each prompt reproduces, of the first few: a
    model that is trained on them is to be asked with the same prompt."""
    sample: list[RowQuestion] = []
    file = partition_files(context.output, context.shard, context.shards)["part"]
    with file.open("rb") as lines:
        selections = ((row, line) for row, line in enumerate(lines, 1) if b'"mode":"genselect"' in line)
        for row, line in islice(selections, SAMPLE):
            messages = Transcript.from_json(parse_record(line, SftRow, file, row).transcript, ids=False).messages
            users = [m.content for m in messages if m.role == "user"]
            systems = [m.content for m in messages if m.role == "system"]
            if len(users) == 1 and len(users) + len(systems) == len(messages) and len(systems) < 2:
                sample.append(RowQuestion(users[0], systems[0] if systems else None))
    if not sample:
        return
    recovery = recover(sample, Mode.GENSELECT)
    context.metrics["genselect_rows_looked_at"] = len(sample)
    for prompt in recovery.prompts:
        context.metrics[f"{RECOVERED}{prompt.template.digest}"] = prompt.rows
        rows = f"{prompt.rows} of {len(sample)} genselect rows"
        context.progress.log(f"{rows} were written with the prompt {prompt.template.digest} (openmath data prompt)")


def _report(context: StageContext, counts: Counter[str]) -> None:
    context.metrics.update({name: counts[name] for name in ("rendered_prompts", *THINKING_COUNTS) if counts[name]})
    if rendered := counts["rendered_prompts"]:
        context.progress.log(f"{rendered} inputs are rendered prompts: they are taken as given, not rendered again")
    if counts["rows_without_thinking"] and counts["rows_that_think"]:
        context.progress.log(
            f"{counts['rows_without_thinking']} of {sum(counts[name] for name in THINKING_COUNTS)} solutions do not "
            "think; rules: {think: required} leaves them out"
        )


def _file(source: str | Path, name: str) -> Path:
    return Path(source) / name if Path(source).is_dir() else Path(source)


def _row_number(file: Path, place: Place) -> int:
    return row_at(file, place.number - 1) if place.is_byte else place.number


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
