"""Records a second of one processor core, of the stages that need no model.

From docs/background/performance.md and the comments of launcher_scripts/slurm-pyxis.yaml: synthetic records of the
size of the paper's, two cores of a virtual machine, which vary by a third from hour to hour.
"""

from __future__ import annotations

from nemo_openmath.recipe.costs.counts import StageCounts
from nemo_openmath.recipe.costs.models import model_of
from nemo_openmath.recipe.file import Recipe

RATES = {
    "solutions.grade": 2_800.0,  # with its graders
    "solutions.majority_answers": 2_800.0,
    "solutions.answer_votes": 2_800.0,
    "solutions.calibrated_answers": 1_000.0,  # assumed
    "evaluation.metrics": 2_800.0,
    "solutions.hardness": 6_000.0,
    "solutions.filter": 6_000.0,
    "solutions.rows": 5_700.0,
    "sft.select": 5_700.0,
    "genselect.groups": 9_800.0,
    "problems.near_duplicates": 5_100.0,
    "problems.select": 5_000.0,  # assumed
    "problems.group_threads": 3_300.0,
    "problems.read_threads": 2_400.0,
    "problems.read_problems": 5_000.0,  # assumed
    "solutions.read_generations": 1_600.0,  # assumed: as sft.read
    "sft.read": 1_600.0,
    "sft.tokenize": 80.0,
    "sft.pack": 1_000_000.0,
}
READERS = 3  # processes of sft.read; more wait for the one that writes
START_SECONDS = 10.0  # of a process, from its start until it works; assumed


def processor_seconds(recipe: Recipe, name: str, counts: StageCounts, cpus: int, speed: float) -> float | None:
    """Return the seconds that a stage without a model takes on ``cpus`` cores of one job, alone.

    ``speed``: bytes/s of the disk, for stages that read and write weights. None of a stage that is not known.
    """
    entry = recipe.stages[name]
    if entry.stage.makes in ("model", "quantized"):
        config = model_of(recipe, name).config
        if config is None:
            return None
        stage_config = entry.stage.config
        if "training" in entry.inputs:  # fp32 main weights of each checkpoint
            read = 4 * (stage_config.count or len(stage_config.steps or (1,)))
        else:
            read = 2 * len(entry.inputs.get("models", (1,)))
        return START_SECONDS + (read + 2) * config.num_parameters / speed
    if entry.stage.kind == "evaluation.compare":
        return START_SECONDS
    rate, records = RATES.get(entry.stage.kind), counts.read if counts.read is not None else counts.left
    if rate is None or records is None:
        return None
    workers = {"sft.read": min(cpus, READERS), "sft.tokenize": cpus}.get(entry.stage.kind, 1)
    return START_SECONDS + records / rate / workers
