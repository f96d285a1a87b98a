"""What can be known before the first stage runs, checked then, and said all at once."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.errors import MissingExtra, SystemFailure, UserError, of_the_system, one_error
from nemo_openmath.core.records.manifest import refuse_inside_stage
from nemo_openmath.evaluation.reports.formats import bytes_text
from nemo_openmath.inference.http.server_pool import base_url
from nemo_openmath.inference.open import DRAFTER_NAMES, check_drafter
from nemo_openmath.models.devices import check_device
from nemo_openmath.recipe import identity
from nemo_openmath.recipe.file import Recipe, shown
from nemo_openmath.recipe.inputs import check_inputs, check_model, check_ready, check_stage
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.sandbox.service.client import check_url


def preflight(recipe: Recipe, names: Sequence[str], output: Path, *, layouts: bool = True) -> None:
    """Check what the stages ``names``, which will be run, need.

    Checked are files, models, tokenizers, devices, secrets, extras and the free space at ``output``. With ``layouts``,
    it is also checked whether trainings suit the processes that the recipe gives them; a launcher gives others. A model
    server is not asked: it may start later.

    Raises UserError that lists all that is wrong, and SystemFailure where nothing is but the free space.
    """
    errors = [*files_and_settings(recipe, names, output, layouts=layouts)]
    lacking = _disk_space(recipe, [recipe.entry(name) for name in names], output)
    if lacking is not None and not errors:  # no mistake: a job that begins while a disk is full is tried again
        raise lacking
    if errors:
        if lacking is not None:
            errors.append(UserError(lacking.problem, file=lacking.file, remedy=lacking.remedy))
        unique = list({str(error): error for error in errors}.values())
        raise one_error(unique, f"{recipe.path}: nothing was run")


def files_and_settings(
    recipe: Recipe, names: Sequence[str], output: Path, *, layouts: bool = True, elsewhere: bool = False
) -> Iterator[UserError]:
    """Yield an error for all that is wrong with what the stages ``names`` read and with the settings of what they ask.

    ``layouts``: see :func:`preflight`. ``elsewhere``: the stages run on other machines, so nothing is said of the
    devices and the packages of this one.
    """
    yield from recipe.missing_files(names)
    entries = [recipe.entry(name) for name in names]
    wrong: set[str] = set()  # what is wrong with a stage of a loop is said of its first iteration
    for entry in entries:
        for error in caught(partial(_inputs, entry, output, layouts, elsewhere)):
            if not (elsewhere and isinstance(error.__cause__, MissingExtra)) and recipe.written(entry) not in wrong:
                wrong.add(recipe.written(entry))
                yield error
    engines = {engine: entry for entry in reversed(entries) for engine in entry.stage.engines()}
    if "teacher" in engines:
        yield from _teacher(recipe)
    for entry in entries:
        renders = [recipe.teacher.renders if e == "teacher" else recipe.student.renders for e in entry.stage.engines()]
        if entry.stage.needs_chat and any(renders):
            yield entry.error(
                "calls of tools are for chat servers, and its engine is given token ids",
                "use api: chat, or tool_format tags or fences",
                "tool_format",
            )
    models = {name: entry for name, entry in engines.items() if name != "teacher"}
    for name, entry in models.items():
        if name not in recipe.stages and recipe.relative(name).exists():
            yield from caught(partial(check_model, entry, recipe.relative(name), entry.engine_setting(name)))
    if models:
        yield from _student(recipe, list(models), elsewhere)
        yield from _drafter(recipe, list(models), output)
    yield from _sandbox(recipe)


def stage_errors(entry: StageEntry, *, elsewhere: bool = False) -> Iterator[UserError]:
    """Yield what a stage itself says of its settings and of those of its files that are there. ``elsewhere``: see
    :func:`files_and_settings`."""
    for error in caught(partial(check_stage, entry, _present(entry))):
        if not (elsewhere and isinstance(error.__cause__, MissingExtra)):
            yield error


def caught(check: Callable[[], object]) -> list[UserError]:
    """Return the error that a check raises, if any."""
    try:
        check()
    except UserError as error:
        return [error]
    return []


def check_output(output: Path, files: Sequence[Path]) -> None:
    """Raise UserError where a run cannot be made in the folder ``output``.

    - The folder, or the nearest one above it that exists, cannot be written.
    - It belongs to a stage, whose readers would take the run for a part of it.
    - It holds something else than a run; ``files``, of the recipe, may lie there.
    """
    there = next(path for path in (output.absolute(), *output.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UserError(
            "is a file" if there.is_file() else "is no folder", file=there, remedy="choose another --output"
        )
    refuse_inside_stage(output)
    identity.refuse_foreign(output, files)
    probe = there / f".openmath-{os.getpid()}"  # os.access does not know of read-only file systems for root
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise of_the_system(error, there) or error from None


def _inputs(entry: StageEntry, output: Path, layouts: bool, elsewhere: bool) -> None:
    """Check the inputs that are there already. Where these are all and the stage runs here, its last check is made as
    well: a run that takes the place of another one removes that before its first stage."""
    present = _present(entry)
    read = [(port, path) for port, paths in present.items() if entry.stage.takes.get(port) != "model" for path in paths]
    for port, path in read:
        if output.resolve().is_relative_to(path.resolve()):
            raise entry.error(
                f"the output folder {shown(output)} lies inside what is read: {shown(path)}",
                "choose another --output, or read from a folder of its own",
                f"from.{port}",
            )
    check_inputs(entry, present, layouts=layouts)
    if not elsewhere and all(len(present[port]) == len(names) for port, names in entry.inputs.items()):
        check_ready(entry, present)


def _present(entry: StageEntry) -> dict[str, list[Path]]:
    """The files and folders that a stage reads and that are there, by port."""
    return {
        port: [name for name in names if isinstance(name, Path) and name.exists()]
        for port, names in entry.inputs.items()
    }


def _teacher(recipe: Recipe) -> Iterator[UserError]:
    teacher = recipe.teacher
    name = _section(recipe, "teacher")
    if teacher.url is not None:
        yield from _urls(recipe, f"{name}.url", [teacher.url])
    yield from _urls(recipe, f"{name}.urls", teacher.urls)
    remedy = "give the folder of the model's tokenizer"
    if teacher.tokenizer is None:
        yield recipe.error(f"{name}.tokenizer", "not set", remedy)
    elif not (folder := recipe.relative(teacher.tokenizer)).is_dir():
        yield recipe.error(f"{name}.tokenizer", f"no folder {shown(folder)}", remedy)
    else:
        for error in caught(lambda: ChatTokenizer.load(folder).with_options(teacher.template_options, teacher.renders)):
            yield recipe.error(f"{name}.tokenizer", str(error))
    if teacher.urls_file is not None and not teacher.urls_file.is_file():
        problem = f"no file {shown(teacher.urls_file)}"
        yield recipe.error(f"{name}.urls_file", problem, "write one URL a line there")
    yield from _unset(recipe, f"{name}.api_key_env", teacher.api_key_env)


def _section(recipe: Recipe, role: str) -> str:
    """What the file calls the settings of the teacher or the student: ``generate`` has one engine."""
    return "engine" if recipe.verb == "generate" else role


def _urls(recipe: Recipe, setting: str, urls: Sequence[str]) -> Iterator[UserError]:
    for url in urls:
        for error in caught(partial(base_url, url)):
            yield recipe.error(setting, error.problem, error.remedy)


def _unset(recipe: Recipe, setting: str, name: str | None) -> Iterator[UserError]:
    if name is not None and not os.environ.get(name):
        problem, remedy = f"the environment variable {name} is not set", f"export {name}=..., or remove the setting"
        yield recipe.error(setting, problem, remedy)


def _student(recipe: Recipe, models: Sequence[str], elsewhere: bool) -> Iterator[UserError]:
    """Check the engine of models that stages make."""
    student = recipe.student
    name = _section(recipe, "student")
    yield from _urls(recipe, f"{name}.urls", student.urls)
    if student.kind == "embedded" and not elsewhere:
        for error in caught(partial(check_device, student.device)):
            yield recipe.error(f"{name}.device", error.problem, error.remedy)
    if student.kind != "embedded" and student.model and len(models) > 1:
        yield recipe.error(
            f"{name}.model",
            f"is one model, and the stages ask for {len(models)}: {', '.join(models)}",
            "leave it out and serve each model under the path of its folder",
        )
    yield from _unset(recipe, f"{name}.api_key_env", student.api_key_env)


def _drafter(recipe: Recipe, models: Sequence[str], output: Path) -> Iterator[UserError]:
    """Check what guesses tokens for ``models``. A folder of this run and a model that a stage makes are not known yet:
    opening the engine asks again."""
    student = recipe.student
    if student.kind != "embedded" or student.drafter is None or student.drafter in DRAFTER_NAMES:
        return
    drafter = recipe.relative(student.drafter)
    if not drafter.exists() and any(drafter.absolute() == (output / name).absolute() for name in recipe.stages):
        return
    there = [recipe.relative(name) for name in models if name not in recipe.stages]
    errors = caught(partial(check_drafter, drafter, None)) or [
        error
        for model in there
        if (model / "config.json").is_file()
        for error in caught(partial(check_drafter, drafter, model))
    ]
    for error in errors:
        yield recipe.error(f"{_section(recipe, 'student')}.drafter", str(error))


def _sandbox(recipe: Recipe) -> Iterator[UserError]:
    if recipe.sandbox.url is not None:
        for error in caught(partial(check_url, recipe.sandbox.url)):
            yield recipe.error("sandbox.url", error.problem, error.remedy)
    yield from _unset(recipe, "sandbox.token_env", recipe.sandbox.token_env)


def _disk_space(recipe: Recipe, entries: Sequence[StageEntry], output: Path) -> SystemFailure | None:
    """Return an error where the checkpoints of trainings that have not begun cannot all fit."""
    from nemo_openmath.models.configs import ModelConfig
    from nemo_openmath.recipe.costs.storage import checkpoint_bytes
    from nemo_openmath.training.stage import Sft

    wanted: dict[str, int] = {}
    for entry in entries:
        model = next((n for n in entry.inputs.get("model", ()) if isinstance(n, Path)), None)
        begun = (output / entry.name / "checkpoints").exists()
        if isinstance(entry.stage, Sft) and model is not None and (model / "config.json").is_file() and not begun:
            with contextlib.suppress(UserError):  # said by the stage itself
                training = entry.stage.config.training
                size = checkpoint_bytes(ModelConfig.from_hf(model), training.precision)
                wanted[entry.name] = size * training.checkpoints.least_kept
    there = next((p for p in (output.absolute(), *output.absolute().parents) if p.is_dir()), None)
    if not wanted or there is None:
        return None
    total, free = sum(wanted.values()), shutil.disk_usage(there).free
    if total <= free:
        return None
    return SystemFailure(
        there,
        f"the checkpoints of {', '.join(wanted)} need some {bytes_text(total)}; free: {bytes_text(free)}",
        "free some space, give another --output, or keep fewer checkpoints (training.checkpoints)",
    )
