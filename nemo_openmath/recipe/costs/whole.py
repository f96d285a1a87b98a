"""A recipe on a cluster: the hours of every job, and the time along the graph of what reads what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from nemo_openmath.core.errors import UserError
from nemo_openmath.launch.cluster import Cluster
from nemo_openmath.launch.model_server import ModelServer
from nemo_openmath.launch.serving import AskedModel, entry_of
from nemo_openmath.launch.values import time_limit
from nemo_openmath.recipe.costs.assumptions import CostAssumptions
from nemo_openmath.recipe.costs.counts import StageCounts
from nemo_openmath.recipe.costs.decoding import (
    AnswerShape,
    DecodedModel,
    Decoding,
    best_decoding,
    decoded_model,
    decoding,
    prompt_seconds,
)
from nemo_openmath.recipe.costs.models import RecipeModel, model_of
from nemo_openmath.recipe.costs.processors import processor_seconds
from nemo_openmath.recipe.costs.requests import StageRequests, stage_requests
from nemo_openmath.recipe.costs.saving import FailureOptions, SavingCosts, saving_costs
from nemo_openmath.recipe.costs.storage import StageStorage, stage_storage
from nemo_openmath.recipe.costs.timetable import timetable
from nemo_openmath.recipe.costs.trainings import TrainingPlan, plan_training
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.training.planning.gpus import Gpu, gpu
from nemo_openmath.training.planning.workload import PlanOptions
from nemo_openmath.training.stage import Sft


@dataclass(frozen=True)
class CostOptions:
    """What a price depends on beside the recipe and the cluster file."""

    assumptions: CostAssumptions
    failures: FailureOptions
    numbers: PlanOptions
    mfu: float
    headroom: float
    kind: str | None = None
    """The kind of GPUs, in place of what the cluster file says."""


@dataclass(frozen=True)
class GenerationCosts:
    """What the answers of one model to one stage cost."""

    stage: str
    engine: str
    """As the recipe names it."""
    model: str
    where: str
    """``job`` (a server in each job), ``pool``, or ``elsewhere`` (at the URL that the recipe says)."""
    servers: int
    """At the same time."""
    server_gpus: int
    in_flight: float
    """Answers that a server decodes at once."""
    tokens_per_gpu: float
    """Decoded in a second."""
    answers: float
    answer_tokens: float
    prompt_tokens: float
    gpu_seconds: float
    """Of decoding and of computing prompts, without the servers' start."""
    given: bool
    """Whether ``tokens_per_gpu`` was given and not estimated."""
    controls: float = 0.0
    """Those of the answers that are to planted cases."""


@dataclass(frozen=True)
class StageCosts:
    """What a stage costs. Hours are those that its jobs hold, of GPUs, of nodes with GPUs, and of cores without."""

    stage: str
    kind: str
    jobs: int
    running: int
    nodes: int
    """Of a job, or of its server."""
    gpus: int
    """Of each node."""
    gpu_hours: float = 0.0
    elsewhere_hours: float = 0.0
    """GPU-hours of a server that is not in the cluster file."""
    node_hours: float = 0.0
    core_hours: float = 0.0
    seconds: float = 0.0
    """From the start of its first job to the end of its last."""
    again: int = 0
    """How often a job reaches its time limit and goes on."""
    records: float | None = None
    disk: StageStorage = field(default_factory=lambda: StageStorage(0, 0))
    generations: tuple[GenerationCosts, ...] = ()
    unpriced: str = ""
    """Why nothing is said of its hours."""
    beside: str = ""
    """Why its hours are without those of a second model, which has a server of its own."""


@dataclass(frozen=True)
class RecipeCosts:
    """What a whole recipe costs on a cluster."""

    name: str
    stages: tuple[StageCosts, ...]
    trainings: tuple[TrainingPlan, ...]
    saving: tuple[SavingCosts, ...]
    """Of each training."""
    path: tuple[str, ...]
    """The stages that the time of the whole hangs on, in order."""
    seconds: float
    """Until the last stage ends, without waiting for machines."""

    @property
    def gpu_hours(self) -> float:
        """Return the GPU-hours of all stages, in the cluster."""
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def elsewhere_hours(self) -> float:
        """Return the GPU-hours of servers that are not in the cluster file."""
        return sum(stage.elsewhere_hours for stage in self.stages)


def recipe_costs(
    recipe: Recipe, cluster: Cluster, counts: Mapping[str, StageCounts], options: CostOptions
) -> RecipeCosts:
    """Return what each stage of a recipe costs on a cluster, and how long the whole takes.

    Raises UserError for a training whose layout does not divide its GPUs, or that nothing fits.
    """
    pricing = _Pricing(recipe, cluster, counts, options)
    storage = stage_storage(recipe, options.assumptions, counts, options.numbers)
    stages = [pricing.stage(name, storage[name]) for name in recipe.stages]
    shared = {part.stage: part.engine for stage in stages for part in stage.generations if part.where != "job"}
    times = timetable(recipe, {stage.stage: stage.seconds for stage in stages}, shared)
    return RecipeCosts(
        recipe.name, tuple(stages), tuple(pricing.trainings), tuple(pricing.saving), times.path, times.seconds
    )


@dataclass(frozen=True)
class _Machines:
    """What the jobs of a stage get."""

    jobs: int
    running: int
    nodes: int
    gpus: int
    cpus: int
    limit: float
    """Seconds; infinity where there is none."""


class _Pricing:
    """Prices stage after stage; what it learns of trainings lies in ``trainings`` and ``saving``."""

    def __init__(self, recipe: Recipe, cluster: Cluster, counts: Mapping[str, StageCounts], options: CostOptions):
        self.recipe, self.cluster, self.counts, self.options = recipe, cluster, counts, options
        self.trainings: list[TrainingPlan] = []
        self.saving: list[SavingCosts] = []

    def stage(self, name: str, disk: StageStorage) -> StageCosts:
        """Return what one stage costs."""
        stage, machines = self.recipe.stages[name].stage, self._machines(name)
        base = StageCosts(
            stage=name,
            kind=stage.kind,
            jobs=machines.jobs,
            running=machines.running,
            nodes=machines.nodes,
            gpus=machines.gpus,
            records=self.counts[name].left,
            disk=disk,
        )
        if isinstance(stage, Sft):
            return self._training(base, machines)
        if stage.engines():
            return self._generation(base, machines)
        speed = self.options.failures.speed
        alone = processor_seconds(self.recipe, name, self.counts[name], machines.cpus, speed)
        if alone is None:
            return replace(base, unpriced="how fast it is, is not known")
        return self._hours(base, machines, alone / machines.running)

    def _machines(self, name: str) -> _Machines:
        got = self.cluster.resources(name, self.recipe.stages[name].stage.kind)
        jobs = (got.array or 1) if self.recipe.stages[name].stage.splits else 1
        limit = math.inf if got.time is None else time_limit(got.time)
        running = min(jobs, got.running or jobs)
        return _Machines(jobs, running, got.nodes or 1, got.gpus or 0, got.cpus or 1, limit)

    def _gpu(self, name: str) -> Gpu:
        word = self.options.kind or self.cluster.resources(name, self.recipe.stages[name].stage.kind).gpu
        if word is None:
            raise UserError(
                "which GPUs?", remedy="give --gpu KIND, or write gpu: h100 under default in the cluster file"
            )
        return gpu(word)

    def _hours(self, base: StageCosts, machines: _Machines, seconds: float) -> StageCosts:
        """Fill in the hours of jobs that take ``seconds`` together, one wave of an array after the other."""
        job = seconds * machines.running / machines.jobs  # of each job
        hours = job * machines.jobs / 3600
        return replace(
            base,
            gpu_hours=hours * machines.nodes * machines.gpus,
            node_hours=hours * machines.nodes if machines.gpus else 0.0,
            core_hours=0.0 if machines.gpus else hours * machines.cpus,
            seconds=seconds,
            again=_again(job, machines.limit),
        )

    def _training(self, base: StageCosts, machines: _Machines) -> StageCosts:
        name, kind = base.stage, self._gpu(base.stage)
        options, gpus = self.options, machines.nodes * machines.gpus
        plan = plan_training(
            self.recipe,
            name,
            kind,
            gpus,
            options.numbers,
            counts=self.counts,
            mfu=options.mfu,
            headroom=options.headroom,
            said_by="nodes x gpus of the cluster file",
        )
        own, steps = plan.plan.configured, plan.plan.work.steps
        assert own is not None
        settings = self.recipe.stages[name].stage.config.training.checkpoints
        saving = saving_costs(plan.plan.work, own, machines.nodes, settings, options.failures)
        self.trainings.append(plan)
        self.saving.append(saving)
        if steps is None:
            return replace(base, unpriced="how many steps it takes, is not known")
        seconds = steps * own.time.total / (1 - (saving.own_lost or 0.0))
        return self._hours(base, machines, seconds)

    def _generation(self, base: StageCosts, machines: _Machines) -> StageCosts:
        requests = stage_requests(self.recipe, base.stage, self.options.assumptions, self.counts)
        if not requests:
            return replace(base, unpriced="how many questions it asks, is not known")
        parts = [self._answers(request, machines) for request in requests]
        of_own = [p for p, request in zip(parts, requests, strict=True) if isinstance(p, str) and not request.served]
        if of_own:
            return replace(base, unpriced=of_own[0])
        beside = "; ".join(part for part in parts if isinstance(part, str))  # a server of its own: nothing is held here
        costs = replace(base, beside=beside, generations=tuple(part for part in parts if not isinstance(part, str)))
        for part in costs.generations:
            costs = self._add(costs, part, machines)
        asking = costs.seconds * machines.running * machines.cpus / 3600
        in_jobs = any(part.where == "job" for part in costs.generations)
        job = costs.seconds * machines.running / machines.jobs
        return replace(costs, core_hours=0.0 if in_jobs else asking, again=_again(job, machines.limit))

    def _add(self, costs: StageCosts, part: GenerationCosts, machines: _Machines) -> StageCosts:
        """Add the hours of the servers of one model."""
        server = self._server(part.engine)
        gpus = part.servers * part.server_gpus
        load = 60 * self.options.assumptions.load_minutes
        if part.where == "elsewhere" or server is None:
            return replace(
                costs,
                elsewhere_hours=costs.elsewhere_hours + part.gpu_seconds / 3600,
                seconds=costs.seconds + part.gpu_seconds / gpus,
            )
        starts = machines.jobs if part.where == "job" else server.jobs
        held = part.gpu_seconds + starts * load * server.nodes * server.gpus
        waves = -(-machines.jobs // machines.running) if part.where == "job" else 1
        return replace(
            costs,
            nodes=server.nodes,
            gpus=server.gpus,
            gpu_hours=costs.gpu_hours + held / 3600,
            node_hours=costs.node_hours + held / 3600 / server.gpus,
            seconds=costs.seconds + part.gpu_seconds / gpus + waves * load,
        )

    def _server(self, engine: str) -> ModelServer | None:
        """The cluster's server of a model; None where it is asked where the recipe says."""
        made = engine if engine in self.recipe.stages else None
        return entry_of(self.cluster, AskedModel(engine, None if made else engine, engine, made))

    def _answers(self, request: StageRequests, machines: _Machines) -> GenerationCosts | str:
        """What the answers of one model cost; a sentence where nothing can be said."""
        server, model = self._server(request.engine), model_of(self.recipe, request.engine)
        if request.engine == "teacher" and self.recipe.teacher.is_stand_in:
            return "the stand-in teacher is no model"
        own = request.engine != "teacher" and server is None and not request.served
        if own and self.recipe.student.kind != "http":
            return f"{model.name} generates inside the stage's own process"
        sizes = decoded_model(model)
        if sizes is None:
            return f"the sizes of {model.name} are not known"
        if server is not None and server.gpus == 0:
            return f"{model.name} is served without GPUs"
        kind = self._gpu(request.stage)
        answer = AnswerShape(request.prompt_tokens, request.answer_tokens, request.together)
        asked = float(request.concurrency * machines.running)
        shape = self._shape(sizes, kind, server, machines, asked, answer)
        if isinstance(shape, str):
            return f"{model.name} {shape}"
        where, servers, choice = shape
        given = self._given(request, model)
        speed = choice.tokens_per_gpu if given is None else given
        work = request.answers * request.answer_tokens / speed
        work += request.prompts * prompt_seconds(sizes, kind, self.options.assumptions, request.prompt_tokens)
        return GenerationCosts(
            stage=request.stage,
            engine=request.engine,
            model=model.name,
            where=where,
            servers=servers,
            server_gpus=choice.gpus,
            in_flight=choice.in_flight,
            tokens_per_gpu=speed,
            answers=request.answers,
            answer_tokens=request.answer_tokens,
            prompt_tokens=request.prompt_tokens,
            gpu_seconds=work,
            given=given is not None,
            controls=request.controls,
        )

    def _given(self, request: StageRequests, model: RecipeModel) -> float | None:
        speeds = self.options.assumptions.tokens_per_gpu
        return next((speeds[n] for n in (request.stage, request.engine, model.name) if n in speeds), None)

    def _shape(
        self,
        sizes: DecodedModel,
        kind: Gpu,
        server: ModelServer | None,
        machines: _Machines,
        asked: float,
        answer: AnswerShape,
    ) -> tuple[str, int, Decoding] | str:
        """(where, servers at a time, speed of one); the end of a sentence where the model does not fit."""
        assumptions = self.options.assumptions
        if server is None:  # a node of the same GPUs is taken to serve it
            best = best_decoding(sizes, kind, assumptions, job_gpus=kind.per_node, asked=asked, answer=answer)
            if best is None:
                return f"does not fit 32 x {kind.name}"
            return "elsewhere", max(1, kind.per_node // best.gpus), best
        servers = (server.jobs or machines.running) * server.replicas
        choice = decoding(
            sizes,
            kind,
            assumptions,
            gpus=server.world,
            asked=max(1.0, asked / servers),
            answer=answer,
            pipeline=server.world // server.tensor,
        )
        if choice is None:
            return f"does not fit a server of {server.world} x {kind.name}"
        return "pool" if server.jobs else "job", servers, choice


def _again(seconds: float, limit: float) -> int:
    return max(0, math.ceil(seconds / limit) - 1) if math.isfinite(limit) else 0


def unknown_sources(recipe: Recipe, counts: Mapping[str, StageCounts]) -> Sequence[str]:
    """Return the stages of records of which nothing says how many there are, though all that they read is known."""
    blank = [n for n, e in recipe.stages.items() if counts[n].left is None and e.stage.record is not None]
    return [n for n in blank if not any(above in blank for above in recipe.read_by(recipe.stages[n]))]
