"""Trainings: whether the layout suits nodes and GPUs, fits their memory, and can save before it is asked to leave."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.packs.plan import PLAN, PackPlan
from nemo_openmath.data.packs.stage import PackSamples
from nemo_openmath.evaluation.reports.formats import bytes_text
from nemo_openmath.launch import SlurmJob
from nemo_openmath.launch.values import memory_mb
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.recipe.costs.models import model_of
from nemo_openmath.recipe.costs.storage import checkpoint_bytes
from nemo_openmath.recipe.costs.trainings import advice, training_workload
from nemo_openmath.recipe.launch_check.findings import Finding, Note, Unseen
from nemo_openmath.recipe.launch_check.planned import PlannedLaunch
from nemo_openmath.recipe.model_sizes import config_folder
from nemo_openmath.recipe.preflight import caught
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.training.job import check_batch
from nemo_openmath.training.planning.gpus import GIB, Gpu
from nemo_openmath.training.planning.layouts import HEADROOM, make_plan, own_layout
from nemo_openmath.training.planning.memory import Layout, host_memory
from nemo_openmath.training.planning.table import describe
from nemo_openmath.training.stage import Sft

LARGE = 14e9
"""Bytes of a checkpoint above which a training without GPUs is a mistake: a billion parameters."""


def ranks_of(job: SlurmJob) -> int:
    """Return the ranks of a training's job: one for each GPU, or one a node without GPUs."""
    return job.nodes * max(job.gpus, 1)


def layouts(launch: PlannedLaunch) -> Iterator[Finding]:
    """Hold tensor, pipeline, context and data parallelism against the model, the packs, and the GPUs of the jobs."""
    for job, entry, stage in launch.trainings():
        training, ranks = stage.config.training, ranks_of(job)
        parallel, model = training.parallel, model_of(launch.recipe, entry.name)
        if model.config is None:
            yield Unseen(f"layout and memory of {entry.name}: nothing says how large {model.name} is")
            for folder in entry.inputs["model"]:
                if isinstance(folder, Path) and folder.is_dir():
                    for error in caught(partial(ModelConfig.from_hf, config_folder(folder))):
                        yield entry.error(str(error), setting="from.model")
        if ranks % parallel.model_parallel:
            yield _ranks(launch, job, entry, stage)
        elif model.config is not None:
            try:
                parallel.check(model.config, ranks)
            except UserError as error:
                yield entry.error(f"{error.problem} ({model.name})", error.remedy, "training")
        if job.gpus and parallel.tp > job.gpus:
            yield Note(
                f"{entry.name}: tensor parallelism of {parallel.tp} leaves the node ({job.gpus} GPUs): it works, at "
                "the network's speed instead of NVLink's"
            )
        if training.device == "cuda" and not job.gpus:
            remedy = f"give {entry.name} gpus: in the cluster file, or choose auto"
            yield entry.error("cuda, and its jobs have no GPU", remedy, "training.device")
        if training.device == "cpu" and job.gpus:
            yield Note(f"{entry.name}: training.device = cpu, and {job.gpus} GPUs a node compute nothing")
        if job.gpus and training.precision == "fp32":
            yield Note(
                f"{entry.name}: fp32 on GPUs is slow: their flash attention computes in bf16 (training.precision)"
            )
        if (replicas := ranks // parallel.model_parallel) > stage.config.batch_samples:
            yield Note(
                f"{entry.name}: {stage.config.batch_samples} samples a step for {replicas} data-parallel replicas: "
                "most of the GPUs compute nothing"
            )
        yield from _packs(launch, entry, stage, model.config)


def _ranks(launch: PlannedLaunch, job: SlurmJob, entry: StageEntry, stage: Sft) -> UserError:
    parallel, ranks, per_node = stage.config.training.parallel, ranks_of(job), max(job.gpus, 1)
    product = parallel.model_parallel
    nodes = math.lcm(product, per_node) // per_node
    return launch.error(
        launch.layer(job, "nodes", "gpus"),
        f"{entry.name} has {ranks} ranks ({job.nodes} nodes x {per_node}), no multiple of tp x pp x cp = "
        f"{parallel.tp} x {parallel.pp} x {parallel.cp} = {product} ({entry.origins.get('training', entry.origin)})",
        f"give {nodes} nodes, or a multiple of it; or change training.parallel of the recipe",
    )


def _packs(launch: PlannedLaunch, entry: StageEntry, stage: Sft, model: ModelConfig | None) -> Iterator[Finding]:
    """Hold packs against the layout and the model: those that are there, and those that are still to be made."""
    multiple = stage.config.training.parallel.sample_multiple
    positions = model.max_position_embeddings if model is not None else math.inf
    for port in ("packs", "validation"):
        for name in entry.inputs.get(port, ()):
            maker = launch.recipe.stages[name] if isinstance(name, str) else None
            if maker is None or maker.name not in launch.names:
                folder = launch.output / name  # an absolute path stays what it is
                if (folder / PLAN).is_file():
                    plan = PackPlan(folder)
                    plan.require_multiple(multiple)
                    if plan.longest > positions:
                        problem = (
                            f"the longest sample of {name} has {plan.longest} tokens, the model {positions} positions"
                        )
                        yield entry.error(problem, "set max_position_embeddings, or pack with a lower capacity")
                    if port == "packs":
                        check_batch(stage.config.batch_samples, len(plan.entries), folder)
            elif isinstance(maker.stage, PackSamples):
                config = maker.stage.config
                if config.pad_multiple % multiple:
                    problem = f"{config.pad_multiple}, and the layout of {entry.name} pads samples to a multiple of "
                    remedy = f"write pad_multiple: {math.lcm(config.pad_multiple, multiple)}"
                    yield maker.error(f"{problem}{multiple} (2 x cp)", remedy, "pad_multiple")
                if config.capacity > positions:
                    yield Note(
                        f"{entry.name}: packs of {config.capacity} tokens ({name}), and the model has {positions} "
                        "positions: the training ends as it starts where a sample is longer than these"
                    )


def memory(launch: PlannedLaunch) -> Iterator[Finding]:
    """Estimate the memory of a rank and hold it against the GPU's and the node's."""
    for job, entry, stage in launch.trainings():
        training, gpu = stage.config.training, launch.gpu_of(job)
        model, ranks = model_of(launch.recipe, entry.name).config, ranks_of(job)
        try:
            replicas = training.parallel.check(model, ranks) if model is not None else 0
        except UserError:  # told by `layouts`
            continue
        if model is None:
            continue
        if not job.gpus:
            if (size := checkpoint_bytes(model, training.precision)) > LARGE:
                yield launch.error(
                    launch.layer(job, "gpus"),
                    f"{entry.name} has no GPU, and a checkpoint of its model is of {bytes_text(size)}",
                    "give it gpus:",
                )
            continue
        layout = Layout(training.parallel, replicas, training.distributed_optimizer, training.recompute)
        yield from _host(launch, job, entry, model, layout)
        if training.precision == "fp32":
            continue  # estimates are of bf16
        if gpu is None:
            yield Unseen(f"memory of the GPUs of {entry.name}: write gpu: h100 (or another) under default")
            continue
        yield from _against_the_best(launch, entry, gpu, ranks)


def _against_the_best(launch: PlannedLaunch, entry: StageEntry, gpu: Gpu, ranks: int) -> Iterator[Finding]:
    """Hold the memory of a training's layout against the GPU, and its GPU-hours against those of the best layout."""
    work = training_workload(launch.recipe, entry.name, output=launch.output)
    own = own_layout(work, gpu, ranks)
    needed = own.memory.total
    text = f"{needed / GIB:.1f} GiB a GPU ({describe(own.layout)}), of {gpu.memory / GIB:.0f} ({gpu.name})"
    try:
        better = advice(launch.recipe, entry.name, make_plan(work, gpu, ranks))
    except UserError as error:  # nothing fits
        yield entry.error(
            f"needs some {text}", error.remedy.replace("--gpus", "nodes x gpus").replace("--", ""), "training"
        )
        return
    if needed > gpu.memory:
        assert better is not None
        yield entry.error(f"needs some {text}", f"write {' '.join(better.settings)}; or give more nodes", "training")
        return
    if needed > (1 - HEADROOM) * gpu.memory:
        yield Note(f"{entry.name}: an estimated {text}: too near to be sure of")
    if better is not None:
        yield Note(
            f"{entry.name}: by estimate its layout takes {better.own_hours:,.0f} GPU-hours, and "
            f"{better.offered_hours:,.0f} with {' '.join(better.settings)} (openmath plan)"
        )


def _host(
    launch: PlannedLaunch, job: SlurmJob, entry: StageEntry, model: ModelConfig, layout: Layout
) -> Iterator[Finding]:
    given = memory_mb(job.memory) if job.memory is not None else None
    if not given:  # nothing is said, or "0": all of the node
        return
    stage = entry.stage
    assert isinstance(stage, Sft)
    host = host_memory(model, layout, stage.config.training.precision)
    needed = max(host.saving, host.loading) * job.gpus
    if needed > given << 20:
        yield launch.error(
            launch.layer(job, "memory"),
            f"{job.memory} a node, and the {job.gpus} ranks of {entry.name} need {bytes_text(needed)} for checkpoints",
            'write memory: "0" (all of the node), or more',
        )


def saving(launch: PlannedLaunch) -> Iterator[Finding]:
    """Hold the bytes of a checkpoint against ``warn_seconds`` and the speed of the file system."""
    seconds, speed = launch.cluster.warn_seconds, launch.cluster.write_gb_per_second
    sizes: dict[int, list[str]] = {}
    for _, entry, stage in launch.trainings():
        if (model := model_of(launch.recipe, entry.name).config) is not None:
            sizes.setdefault(checkpoint_bytes(model, stage.config.training.precision), []).append(entry.name)
        if not stage.config.training.checkpoints.every:
            yield Note(f"{entry.name}: checkpoints.every is 0: a failure before the first save loses all until then")
    for size, names in sizes.items():
        text = f"a checkpoint of {', '.join(names)} ({bytes_text(size)})"
        if seconds == 0:
            yield Note(f"{text}: warn_seconds is 0, so a job that reaches its time limit saves nothing")
        elif speed is None and size > seconds * 1e8:
            yield Note(
                f"{text} is saved within warn_seconds ({seconds} s) from {size / 1e9 / seconds:.1f} GB/s on; "
                "write_gb_per_second of the cluster file says how fast the file system is"
            )
        elif speed is not None and size > speed * 1e9 * seconds:
            needed = math.ceil(size / 1e9 / speed)
            problem = f"{text} takes {needed} s at {speed:g} GB/s (write_gb_per_second): the job is killed meanwhile"
            yield launch.error(("warn_seconds",), problem, f"write {math.ceil(needed * 1.2 / 60) * 60} or more")
