"""Whether what a stage is to read can be read by it: known before its folder is touched."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.manifest import PLAN
from nemo_openmath.core.records.store import refuse_no_records
from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.recipe.file import shown
from nemo_openmath.recipe.stage_entries import StageEntry, noun


def check_inputs(entry: StageEntry, inputs: Mapping[str, Sequence[Path]], *, layouts: bool = True) -> None:
    """Check the files and folders (port -> paths) that a stage is to read.

    With ``layouts``, the stage's own check is made as well: it may depend on the number of processes.

    Raises UserError with the line of the stage or of the setting that names a path.
    """
    for port, paths in inputs.items():
        product = entry.stage.takes.get(port)
        if product is None:  # files of others
            continue
        for path in paths:
            if product == "model":
                check_model(entry, path, f"from.{port}", tokenizer=False)
            elif product == "records":  # files of others, too
                if (path / PLAN).is_file():
                    _check_records(entry, port, product, path)
            elif product[0].isupper():
                _check_records(entry, port, product, path)
            elif not path.is_dir():
                problem = f"takes {noun(product)}, and {shown(path)} is a file"
                raise entry.error(problem, "name a folder", f"from.{port}")
    if layouts:
        check_stage(entry, inputs)


def check_stage(entry: StageEntry, inputs: Mapping[str, Sequence[Path]]) -> None:
    """Make the check of the stage itself. Raises UserError with the line of the stage."""
    _as_of(entry, lambda: entry.stage.check(inputs))


def check_ready(entry: StageEntry, inputs: Mapping[str, Sequence[Path]]) -> None:
    """Make the stage's check of inputs that are all there. Raises UserError with the line of the stage."""
    _as_of(entry, lambda: entry.stage.check_ready(inputs, entry.seed))


def check_model(entry: StageEntry, folder: Path, setting: str, *, tokenizer: bool = True) -> None:
    """Check a folder that an engine is to load, or a stage to read. Raises UserError with the place of the stage's
    ``setting`` that names it."""
    if not folder.is_dir():
        raise entry.error(f"is no folder: {shown(folder)}", "name the folder of a Hugging Face model", setting)
    inside = folder / "model" if (folder / "model" / "config.json").is_file() else folder  # of a checkpoint
    config = inside / "config.json"
    if not config.is_file():
        raise entry.error(f"no config.json in {shown(folder)}", "name the folder of a Hugging Face model", setting)
    with contextlib.suppress(UnicodeDecodeError):
        try:
            json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise entry.error(f"{config}: not JSON ({error})", "copy it again", setting) from None
    if tokenizer:
        _as_of(entry, lambda: ChatTokenizer.load(folder), setting)


def _check_records(entry: StageEntry, port: str, product: str, path: Path) -> None:
    """Raise UserError where a path is not the folder of a finished stage."""
    try:
        refuse_no_records(path)
    except UserError as error:
        readers = [kind for kind, stage in stage_kinds().items() if stage.product() == product and stage.reads_files()]
        remedy = "name a finished stage, or its folder in another run"
        if readers:
            remedy += f"; read files of others by a stage of {' or '.join(readers)}, and name that stage here"
        problem = f"takes {noun(product)} of a finished stage, and {shown(path)} {error.problem}"
        raise entry.error(problem, remedy, f"from.{port}") from error


def _as_of(entry: StageEntry, check: Callable[[], object], setting: str = "") -> None:
    """Say which stage, or setting of one, an error is about."""
    try:
        check()
    except UserError as error:
        raise entry.error(str(error), setting=setting) from error
