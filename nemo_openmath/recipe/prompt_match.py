"""Whether a model is asked to select with the prompt that it was trained on.

A model that has learnt selections under one prompt selects worse under another, and nothing fails: so it is said, when
a run begins, when the stage begins, and in the report. What is known of a model is what the recipe trains it on: the
prompts of selections that it makes itself, and of published rows the prompt that ``sft.read`` recovered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nemo_openmath.core.errors import DamagedFile
from nemo_openmath.core.records import Mode, read_manifest
from nemo_openmath.data.rows.stages import RECOVERED, ReadRows, SelectRows, mode_of
from nemo_openmath.inference.rollout.stage import Generate
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.synthesis.genselect.select import GenSelect
from nemo_openmath.synthesis.genselect.tournament import Tournament


@dataclass(slots=True)
class TrainedPrompts:
    """The GenSelect prompts that a model of a recipe is trained on."""

    digests: dict[str, str] = field(default_factory=dict)
    """Digest -> the stage whose rows were written with it."""
    unknown: list[str] = field(default_factory=list)
    """Where rows come from whose prompts are not known."""
    pending: bool = False
    """Rows are still to be read."""


def trained_prompts(recipe: Recipe, output: Path, model: str) -> TrainedPrompts:
    """Return what is known, in the run at ``output``, of the prompts that the stage ``model`` was trained on."""
    trained = TrainedPrompts()
    waiting, seen = [model], {model}
    while waiting:
        entry = recipe.stages[waiting.pop()]
        stage = entry.stage
        if isinstance(stage, GenSelect | Tournament):
            trained.digests.setdefault(stage.template.digest, entry.name)
            continue
        if isinstance(stage, ReadRows):
            _add_rows(trained, stage, entry.name, output)
            continue
        other_modes = isinstance(stage, SelectRows) and stage.config.choice.modes is not None
        if isinstance(stage, Generate) or (other_modes and Mode.GENSELECT not in stage.config.choice.modes):
            continue
        for port, names in entry.inputs.items():
            for name in names:
                if isinstance(name, Path):
                    if port in ("rows", "selections", "tokens", "packs"):
                        trained.unknown.append(str(name))
                elif name not in seen:
                    seen.add(name)
                    waiting.append(name)
    return trained


def prompt_notes(recipe: Recipe, output: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each of the stages ``names`` that asks a model to select with another prompt than it was
    trained on, or where that is not known. A stage that makes training data asks whom it likes."""
    for name in names:
        stage = recipe.stages[name].stage
        if not isinstance(stage, GenSelect | Tournament) or stage.config.engine == "teacher":
            continue
        if isinstance(stage, GenSelect) and stage.config.keep_correct:
            continue
        model, asked = stage.config.engine, stage.template.digest
        trained = trained_prompts(recipe, output, model) if model in recipe.stages else TrainedPrompts()
        if asked in trained.digests or trained.pending:
            continue
        if trained.digests:
            known = ", ".join(f"{digest} ({source})" for digest, source in trained.digests.items())
            yield (
                f"{name} asks {model} with the GenSelect prompt {asked}, and it was trained on another: {known}; "
                "write prompt: FILE, which `openmath data prompt` recovers from rows"
            )
        else:
            of = f" (rows of {', '.join(trained.unknown)})" if trained.unknown else ""
            yield f"{name}: on which GenSelect prompt {model} was trained is unknown{of}; it is asked with {asked}"


def _add_rows(trained: TrainedPrompts, stage: ReadRows, name: str, output: Path) -> None:
    """Add what ``sft.read`` recovered of the rows that it read."""
    if mode_of(stage.config.mode, stage.config.split) in (Mode.COT, Mode.TIR):
        return
    try:
        manifest = read_manifest(output / name)
    except DamagedFile:
        manifest = None
    if manifest is None:
        trained.pending = True
        return
    digests = [key.removeprefix(RECOVERED) for key in manifest.metrics if key.startswith(RECOVERED)]
    for digest in digests:
        trained.digests.setdefault(digest, name)
    if not digests and manifest.metrics.get("genselect_rows_looked_at"):
        trained.unknown.append(name)
