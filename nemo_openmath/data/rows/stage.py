"""Reading published data as a stage of a recipe.

One process reads raw blocks and writes the records in their order; others parse, format and judge the rows between.
What is written depends on the data alone, not on the number of processes.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from nemo_openmath.chat import RENDERED, Transcript, load_template
from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.errors import MissingExtra, UserError
from nemo_openmath.core.records import Drop, Mode, RecordWriter, SftRow, unit_key
from nemo_openmath.core.records.ids import in_shard
from nemo_openmath.core.records.key_set import KeySet
from nemo_openmath.core.records.readers import BrokenRows, data_files
from nemo_openmath.core.stage import RUNTIME, Stage, StageContext
from nemo_openmath.data.rows.formatting import MODES, NOT_TEXT, Formatter, Reject
from nemo_openmath.data.rows.selection import FormatRules
from nemo_openmath.data.rows.sources import Block, files_of_split, read_blocks
from nemo_openmath.data.workers import cores, ordered


@dataclass(frozen=True)
class ReadConfig:
    """``dataset``: a name of the Hub, instead of the port ``data``; ``split``: which of its splits, or of those that
    the files of a folder are named after (reading.py). ``mode``: what rows are that do not say so (cot, tir,
    genselect). ``prompts``: the user's own template files, of cot and tir; genselect rows hold theirs. ``skip_broken``:
    rows of no known form or type are dropped and counted; otherwise the data is refused, naming the first and how many.
    ``workers``: processes that parse and format, by default one a core."""

    dataset: str | None = None
    split: str | None = None
    mode: Literal[Mode.COT, Mode.TIR, Mode.GENSELECT] | None = None
    prompts: dict[str, Path] = field(default_factory=dict)
    rules: FormatRules = field(default_factory=FormatRules)
    skip_broken: bool = False
    workers: PositiveInt | None = field(default=None, metadata=RUNTIME)

    def __post_init__(self) -> None:
        for mode in self.prompts:
            if mode not in (Mode.COT, Mode.TIR):
                raise UserError(f"prompts: no prompt is put around rows of {mode!r}", remedy="name cot or tir")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers: {self.workers}", remedy="give at least 1")


_KINDS = ("rows_without_thinking", "rows_that_think")


@dataclass(frozen=True, slots=True)
class _Made:
    """Of one block. ``rows``: (id, JSON of the SftRow, where it stood), or why there is none. ``broken``: (row, why) of
    those that are of no known form. ``counts``: of rows that are kept, what is worth knowing of them."""

    unit: str
    source: int
    place: str
    rows: list[tuple[str, bytes, str] | Drop]
    broken: list[tuple[int, str]]
    counts: Counter[str]


_COLUMNS = "unknown columns"
_BROKEN = ("not a JSON object", _COLUMNS, "not an SFT row")


class Read(Stage[ReadConfig]):
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
        config = self.config
        sources: list[str | Path] = [*context.inputs.get("data", ())]
        if config.dataset is not None:
            sources.append(config.dataset)
        if not sources:
            raise UserError(
                f"{context.name}: nothing to read", remedy="give files (from: {data: ./data/}) or dataset: and split:"
            )
        for mode, path in config.prompts.items():
            load_template(mode, path)  # what is wrong with it is said here
        await asyncio.to_thread(self._read, context, sources)

    def _read(self, context: StageContext, sources: list[str | Path]) -> None:
        seen, broken = KeySet(), BrokenRows(skip=self.config.skip_broken)
        counts: Counter[str] = Counter()
        mode = self.config.mode or (self.config.split if self.config.split in MODES else None)
        workers = self.config.workers or cores()
        made = ordered(_Maker, self._blocks(sources), mode, self.config.prompts, self.config.rules, workers=workers)
        with RecordWriter(context.output, shard=context.shard, shards=context.shards, flush_units=16) as writer:
            context.progress.begin(None)
            for block in made:
                file = _file(sources[block.source], block.place)
                for number, problem in block.broken:
                    broken(file, number, problem)
                broken.good += len(block.rows) - len(block.broken)
                if broken.refused:  # the rest is only counted
                    continue
                records: list[orjson.Fragment] = []
                drops: list[Drop] = []
                for row in block.rows:
                    if isinstance(row, Drop):
                        drops.append(row)
                    elif seen.add(unit_key(row[0])):
                        records.append(orjson.Fragment(row[1]))
                    else:
                        drops.append(Drop("duplicate", f"{row[2]} {row[0]}"))
                counts += block.counts
                if in_shard(block.unit, context.shard, context.shards) and not writer.done(block.unit):
                    writer.commit(block.unit, records, drops)
                context.progress.advance(len(block.rows))
        if not (broken.good or broken.count):
            raise UserError("there is no row in it", file=", ".join(map(str, sources)), remedy="give another file")
        broken.refuse()
        if context.shard == 0:  # every shard reads all rows
            context.facts.update(counts)
        if given := counts["rendered_prompts"]:
            context.progress.say(f"{given} inputs are rendered prompts: they are taken as given, not rendered again")
        if counts["rows_without_thinking"] and counts["rows_that_think"]:
            context.progress.say(
                f"{counts['rows_without_thinking']} of {sum(counts[c] for c in _KINDS)} solutions do not think; "
                "rules: {think: required} leaves them out"
            )

    def _blocks(self, sources: list[str | Path]) -> Iterator[tuple[int, Block]]:
        for number, source in enumerate(sources):
            for block in read_blocks(source, split=self.config.split):
                yield number, block


def _file(source: str | Path, place: str) -> Path:
    return Path(source) / place if Path(source).is_dir() else Path(source)


class _Maker:
    """Makes SFT rows of a block's rows."""

    def __init__(self, mode: str | None, prompts: dict[str, Path], rules: FormatRules):
        self._formatter = Formatter(mode, {name: load_template(name, path) for name, path in prompts.items()})
        self._rules = rules

    def __call__(self, task: tuple[int, Block]) -> _Made:
        number, block = task
        counts: Counter[str] = Counter()
        rows: list[tuple[str, bytes, str] | Drop] = []
        broken: list[tuple[int, str]] = []
        for (name, line), fields in block.rows():
            place = f"{name}:{line}"
            try:
                row, json = self._format(fields)
                transcript = Transcript.from_json(row.transcript)
                counts["rendered_prompts"] += transcript.messages[0].role == RENDERED if transcript.messages else 0
                if row.mode is not Mode.GENSELECT:
                    counts[_KINDS[transcript.thinks]] += 1
                rows.append((row.id, json, place))
            except Reject as error:
                rows.append(Drop(error.reason, f"{place} {error.detail}"))
                if error.reason in _BROKEN or error.reason.endswith(NOT_TEXT):
                    problem = error.detail if isinstance(fields, str) else f"{error.reason} ({error.detail})"
                    known = "; problem and generated_solution are read, or input and output"
                    broken.append((line, problem + (known if error.reason == _COLUMNS else "")))
        return _Made(f"{number}:{block.place}:{block.first}", number, block.place, rows, broken, +counts)

    def _format(self, fields: dict[str, Any] | str) -> tuple[SftRow, bytes]:
        """The row and its JSON. Raises Reject."""
        if isinstance(fields, str):
            raise Reject("not a JSON object", fields)
        row = self._formatter.format(fields)
        if reason := self._rules.reject(row):
            raise Reject(reason, row.id)
        try:
            return row, orjson.dumps(row)
        except TypeError as error:  # a row of ours that came through Parquet: half a character, bytes, a huge number
            raise Reject("cannot be written as JSON", str(error)) from error
