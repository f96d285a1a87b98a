"""Bytes on disk by stage. Of records they are those that benchmarks/scale.py measures; of weights they are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nemo_openmath.core.records import Generation, Group, Problem, SftRow, Thread
from nemo_openmath.inference.rollout.stage import Generate
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.layout import Precision
from nemo_openmath.recipe.costs.assumptions import CostAssumptions, read_assumptions
from nemo_openmath.recipe.costs.counts import StageCounts, stage_counts
from nemo_openmath.recipe.costs.models import model_of
from nemo_openmath.recipe.costs.requests import answer_tokens
from nemo_openmath.recipe.costs.trainings import training_workload
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.synthesis.genselect.select import GenSelect
from nemo_openmath.synthesis.genselect.targets import Targets
from nemo_openmath.synthesis.solutions.summarize import Summarize
from nemo_openmath.training.planning.workload import PlanOptions
from nemo_openmath.training.stage import Sft

# Bytes of a record, by docs/background/performance.md (data generation at scale). A stage that learns something about
# a solution writes a narrow line; the text, compressed, and the token ids lie with the stage that generated it.
LINE = {Generation: 800, SftRow: 500, Problem: 1_000, Thread: 4_000, Group: 18_000}
BYTES_PER_TOKEN = 1.9  # of a generated solution: text and ids, compressed
CHARACTERS_PER_TOKEN = 3.9  # of published rows, which are stored as they are
TOKEN_BYTES, SAMPLE_BYTES = 4, 90  # of a token file: ids of 4 bytes; index, runs and id of a sample
PACK_ENTRY = 4.2  # bytes of a pack plan for each sample


@dataclass(frozen=True)
class StageStorage:
    """What a stage leaves on disk, in bytes."""

    lasting: int
    """When it has ended."""
    peak: int
    """At most, while it runs: a training writes a checkpoint before it removes an old one."""


def disk_bytes(recipe: Recipe) -> dict[str, int]:
    """Return the most bytes that each stage has on disk, by its settings and the recipe's own assumptions. Stages of
    which nothing says how many records they make count as 0."""
    assumptions = read_assumptions(recipe)
    return {name: s.peak for name, s in stage_storage(recipe, assumptions, stage_counts(recipe, assumptions)).items()}


def stage_storage(
    recipe: Recipe, assumptions: CostAssumptions, counts: Mapping[str, StageCounts], options: PlanOptions | None = None
) -> dict[str, StageStorage]:
    """Return what each stage leaves on disk. ``options``: of the trainings."""
    tokens = assumptions.solution_tokens  # of a mean training sample
    storage: dict[str, StageStorage] = {}
    for name, entry in recipe.stages.items():
        if isinstance(entry.stage, Sft):
            storage[name] = _training(recipe, name, counts, options)
        else:
            size = round(_bytes(recipe, entry, assumptions, counts[name], tokens))
            storage[name] = StageStorage(size, size)
    return storage


def checkpoint_bytes(model: ModelConfig, precision: Precision) -> int:
    """Return the bytes of a checkpoint: weights, Adam's two moments in fp32 and, in bf16, fp32 main weights."""
    return model.num_parameters * (2 + 12 if precision == "bf16" else 4 + 8)


def model_bytes(model: ModelConfig) -> int:
    """Return the bytes of a model folder in bf16."""
    return 2 * model.num_parameters


def _training(
    recipe: Recipe, name: str, counts: Mapping[str, StageCounts], options: PlanOptions | None
) -> StageStorage:
    """The checkpoints that stay, and while it runs those for resuming and the one that is written."""
    stage = recipe.stages[name].stage
    assert isinstance(stage, Sft)
    settings, model = stage.config.training, model_of(recipe, name).config
    if model is None:
        return StageStorage(0, 0)
    size = checkpoint_bytes(model, settings.precision)
    kept = settings.checkpoints
    steps = stage.config.steps
    if steps is None and counts[name].read is not None and settings.precision == "bf16":
        steps = training_workload(recipe, name, options, counts=counts).steps
    if steps is None:
        lasting = kept.least_kept
    else:
        lasting = len(kept.lasting(steps, steps / stage.config.epochs if stage.config.epochs else steps))
    resuming = kept.keep_last if kept.every else 0
    return StageStorage((lasting + resuming) * size, (lasting + resuming + 1) * size)


def _bytes(
    recipe: Recipe, entry: StageEntry, assumptions: CostAssumptions, counts: StageCounts, tokens: float
) -> float:
    stage, left = entry.stage, counts.left or 0.0
    if stage.makes == "model":
        model = model_of(recipe, entry.name).config
        return 0.0 if model is None else model_bytes(model)
    if stage.makes == "tokens":
        return left * (TOKEN_BYTES * tokens + SAMPLE_BYTES)
    if stage.makes == "packs":
        return left * PACK_ENTRY
    if stage.record is None:
        return 0.0
    if isinstance(stage, Generate | GenSelect):
        made = left if stage.kind != "genselect.select" else (counts.read or 0.0) * stage.config.samples
        return made * LINE[Generation] + made * BYTES_PER_TOKEN * answer_tokens(entry, assumptions)
    if isinstance(stage, Summarize | Targets):
        return left * (LINE[Generation] + BYTES_PER_TOKEN * answer_tokens(entry, assumptions))
    if stage.kind == "sft.read":
        return left * CHARACTERS_PER_TOKEN * tokens
    return left * LINE.get(stage.record, 0)
