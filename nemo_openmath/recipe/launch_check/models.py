"""Models, tokenizers, data and prompts: there, whole and readable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.manifest import PLAN
from nemo_openmath.core.records.readers import data_files, read_file_rows
from nemo_openmath.data.rows.sources import files_of_split
from nemo_openmath.data.rows.stages import ReadRows
from nemo_openmath.recipe.file import shown
from nemo_openmath.recipe.launch_check.findings import Finding
from nemo_openmath.recipe.launch_check.planned import PlannedLaunch
from nemo_openmath.recipe.model_sizes import config_folder, weight_files
from nemo_openmath.recipe.preflight import files_and_settings, stage_errors
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.synthesis.problems.read import ReadProblems
from nemo_openmath.synthesis.problems.threads import ReadThreads
from nemo_openmath.synthesis.solutions.read_generations import ReadGenerations

_FILES, _ROWS = 3, 5  # of an input, that are looked at
_BROKEN = 100  # broken rows at the beginning of a file, where broken rows are skipped


def recipe(launch: PlannedLaunch) -> Iterator[Finding]:
    """Ask what a run on this machine asks before it starts: folders, tokenizers, records of other runs, settings of
    teacher, student and sandbox, secrets of the environment."""
    yield from files_and_settings(launch.recipe, launch.names, launch.output, layouts=False, elsewhere=True)


def stages(launch: PlannedLaunch) -> Iterator[Finding]:
    """Ask each stage about the files that it reads and that are there."""
    for planned in launch.stages:
        if planned.job.work != "training":
            yield from stage_errors(planned.entry, elsewhere=True)


def weights(launch: PlannedLaunch) -> Iterator[Finding]:
    """Look whether the files of the weights are there: a download that was cut off has the small ones alone."""
    seen: set[Path] = set()
    for entry in (planned.entry for planned in launch.stages):
        for folder, setting in _weight_folders(launch, entry):
            if folder.resolve() not in seen and (config_folder(folder) / "config.json").is_file():
                seen.add(folder.resolve())
                if error := incomplete(folder, others=setting.startswith(("engine", "more_engines"))):
                    yield entry.error(*error, setting)


def incomplete(folder: Path, *, others: bool = False) -> tuple[str, str] | None:
    """Return what is missing of the weights of a model folder, and the remedy; None where all are there. ``others``:
    weights in another format will do, as for the servers of other programs."""
    files, again = weight_files(folder), "copy or download it again"
    if (
        others
        and files == []
        and any(next(config_folder(folder).glob(f"*.{end}"), None) for end in ("bin", "pt", "gguf"))
    ):
        return None
    if files is None:
        return f"the index of the weights in {shown(folder)} cannot be read", again
    if not files:
        return f"no *.safetensors in {shown(folder)}", "put the weights there, or change the path"
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        return f"{len(missing)} of {len(files)} files of weights are missing in {shown(folder)}: {missing[0]}", again
    return None


def _weight_folders(launch: PlannedLaunch, entry: StageEntry) -> Iterator[tuple[Path, str]]:
    """The model folders whose weights a stage reads, each with the setting that names it."""
    if entry.stage.makes != "tokens":  # a tokenizer is enough
        for port, product in entry.stage.takes.items():
            if product == "model":
                yield from ((name, f"from.{port}") for name in entry.inputs.get(port, ()) if isinstance(name, Path))
    student = launch.recipe.student
    if student.kind == "http" and (student.urls or student.urls_file):
        return  # their servers have them
    elsewhere = {server.served.model.asked for server in launch.servers if server.settings.model}
    for name in entry.stage.engines():
        if name not in ("teacher", *elsewhere) and name not in launch.recipe.stages:
            yield launch.recipe.relative(name), entry.engine_setting(name)


def rows(launch: PlannedLaunch) -> Iterator[Finding]:
    """Read the first rows of files that stages read."""
    for entry in (planned.entry for planned in launch.stages):
        for port, names in entry.inputs.items():
            if entry.stage.takes.get(port, "records") != "records":
                continue
            for path in names:
                if isinstance(path, Path) and path.exists() and not (path / PLAN).is_file():
                    yield from _first_rows(entry, path, f"from.{port}")


def _first_rows(entry: StageEntry, path: Path, setting: str) -> Iterator[Finding]:
    """Read the first rows of an input: one that is broken would have the stage refuse all of it."""
    stage, num_rows = entry.stage, 0
    skips = getattr(stage.config, "skip_broken", False)
    try:
        files = [f.path for f in stage.files(path)] if isinstance(stage, ReadGenerations) else data_files(path)
        if isinstance(stage, ReadRows):
            files = files_of_split(path, files, stage.config.split)
        for file in files[:_FILES]:
            for _, row, fields in islice(read_file_rows(file, _skipped() if skips else None), _ROWS):
                num_rows += 1
                if skips or not isinstance(stage, ReadThreads | ReadProblems | ReadGenerations):
                    continue
                if problem := stage.problem(fields):
                    yield entry.error(f"{file}:{row}: {problem}", "mend the file", setting)
                    return
    except UserError as error:
        yield entry.error(str(error), setting=setting)
        return
    if not num_rows:
        yield entry.error(f"there is no row in {shown(files[0])}", "give another file", setting)


def _skipped() -> Callable[[Path, int, str], None]:
    """Return what skips broken rows, and refuses a file that begins with many of them."""
    rows: list[int] = []

    def skip(file: Path, row: int, problem: str) -> None:
        rows.append(row)
        if len(rows) > _BROKEN:
            raise UserError(f"its first {_BROKEN} rows are broken: {problem}", file=file, row=rows[0])

    return skip
