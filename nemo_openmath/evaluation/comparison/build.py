"""Compare runs, and write comparison.html, comparison.md and comparison.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase

import orjson

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.outputs import partial_file
from nemo_openmath.core.records import Mode, write_json
from nemo_openmath.core.records.encoding import again
from nemo_openmath.data.records.stored import RecordFolder
from nemo_openmath.evaluation.comparison.common import common_modes
from nemo_openmath.evaluation.comparison.markdown import markdown
from nemo_openmath.evaluation.comparison.numbers import ModeComparison, compare_mode
from nemo_openmath.evaluation.comparison.page import RunComparison, RunFacts, render
from nemo_openmath.evaluation.comparison.reading import NamedFolders, ReadRun, read_runs
from nemo_openmath.evaluation.metrics import CompareAnswers
from nemo_openmath.evaluation.viewer.sources import find_sources

JSON, PAGE, TEXT = "comparison.json", "comparison.html", "comparison.md"


def compare_runs(
    named: Sequence[NamedFolders],
    *,
    modes: Sequence[Mode] | None = None,
    seed: int = 0,
    compare: CompareAnswers,
    advance: Callable[[int], None] = lambda _: None,
    viewer: str = "",
    view_command: str = "",
) -> RunComparison:
    """Return the comparison of runs. Raises UserError naming what cannot be compared, and why."""
    runs = [run for each in named for run in read_runs(each, advance)]
    if len(named) == 1:  # checkpoints of one run: their own names are enough
        for run in runs:
            run.name = run.name.removeprefix(f"{named[0].name}: ")
    if len(runs) > len(ascii_uppercase):
        raise UserError(f"{len(runs)} runs are too many for one page", remedy=f"compare {len(ascii_uppercase)} at most")
    for run, letter in zip(runs, ascii_uppercase, strict=False):
        run.letter = letter
    commons, notes = common_modes(runs, modes)
    compared = [compare_mode(common, seed=seed, compare=compare, advance=advance) for common in commons]
    return RunComparison([_facts(run) for run in runs], list(_with_texts(compared, runs)), notes, viewer, view_command)


def write_comparison(comparison: RunComparison, output: Path) -> None:
    """Write the files of a comparison, each whole or not at all; the JSON, by which the folder is known, first."""
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / JSON, comparison.to_json())
    for name, text in ((TEXT, markdown(comparison)), (PAGE, render(comparison))):
        partial = partial_file(output / name)
        partial.write_text(text, encoding="utf-8")
        partial.replace(output / name)


def _facts(run: ReadRun) -> RunFacts:
    graders = dict.fromkeys(run.graders[folder] for folder in run.folders if folder in run.graders)
    return RunFacts(run.letter, run.name, [str(folder) for folder in run.folders], run.models, "; ".join(graders))


def _with_texts(compared: Sequence[ModeComparison], runs: Sequence[ReadRun]) -> Iterable[ModeComparison]:
    """Yield the comparisons with the texts of the problems whose verdict differs, where a folder beside has them."""
    wanted = {row.problem for numbers in compared for row in numbers.differing}
    texts = _texts(wanted, [folder for run in runs for folder in run.folders]) if wanted else {}
    for numbers in compared:
        rows = [replace(row, text=texts.get(row.problem, "")) for row in numbers.differing]
        yield replace(numbers, differing=rows)


def _texts(wanted: set[str], folders: Sequence[Path]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for folder in find_sources(folders).problems:
        if len(texts) < len(wanted):
            texts |= {i: text for i, text in _problems(folder) if i in wanted and i not in texts}
    return texts


def _problems(folder: RecordFolder) -> Iterable[tuple[str, str]]:
    for file, row, line in folder.lines():
        try:
            values = orjson.loads(line)
            yield values["id"], str(values["problem"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"is no problem ({error!r})", file=file, row=row, remedy=again(file)) from error
