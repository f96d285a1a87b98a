"""What each stage asks its models: how many questions, how long the prompts and the answers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nemo_openmath.competition.stage import Compete
from nemo_openmath.core.stage import Stage
from nemo_openmath.inference.rollout.stage import Generate
from nemo_openmath.recipe.costs.assumptions import CostAssumptions
from nemo_openmath.recipe.costs.counts import StageCounts
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.synthesis.controls.plant import ControlledStage
from nemo_openmath.synthesis.genselect.groups import Groups
from nemo_openmath.synthesis.genselect.select import GenSelect
from nemo_openmath.synthesis.genselect.targets import Targets
from nemo_openmath.synthesis.genselect.tournament import Tournament
from nemo_openmath.synthesis.judge.stage import JudgeAnswers
from nemo_openmath.synthesis.problems.classify import Classify
from nemo_openmath.synthesis.problems.decontaminate import Decontaminate, DecontaminateConfig
from nemo_openmath.synthesis.problems.prompted import PromptedStage
from nemo_openmath.synthesis.solutions.novelty import Novelty
from nemo_openmath.synthesis.solutions.summarize import Summarize

PROMPT_TOKENS = 300.0  # an instruction and a problem
PAIR_TOKENS = 1300.0  # the instruction of decontamination, which has three examples, and two problems
KIND_TOKENS = 700.0  # the instruction of a question of classification, which has three examples, and a problem
THREAD_TOKENS = 2500.0  # the instruction of extraction and the like, which has three examples, and a forum's thread
SUMMARY_TOKENS = 500.0
PROPOSED = 2.75  # benchmark problems that stand out from others enough to be shown with a clean problem, of five
MEAN_CANDIDATES = 9.0  # of a comparison: 2 to 16
BLOCKS = 1.5  # of code in a solution of stage 0, which has two at most
CHARACTERS_PER_TOKEN = 3.5
JUDGED = 0.1  # of the answers, that the symbolic grader leaves open


@dataclass(frozen=True)
class StageRequests:
    """What a stage asks one model."""

    stage: str
    engine: str
    """As the recipe names it: ``teacher``, a stage, or a folder."""
    prompts: float
    """Prompts that are computed; several answers to one prompt compute it once."""
    prompt_tokens: float
    """Tokens of a mean prompt."""
    answers: float
    answer_tokens: float
    """Tokens of a mean answer."""
    concurrency: int
    """Answers that a job has in flight, at most."""
    together: int
    """Answers to the same prompt that are asked for at the same time."""
    controls: float = 0.0
    """Those of the answers that are to planted cases."""
    served: bool = False
    """Whether a server is asked that the stage names itself."""

    @property
    def tokens(self) -> float:
        """Return the tokens that are decoded in all."""
        return self.answers * self.answer_tokens


def stage_requests(
    recipe: Recipe, name: str, assumptions: CostAssumptions, counts: Mapping[str, StageCounts]
) -> list[StageRequests]:
    """Return what a stage asks each of its models; nothing where it asks none, or where nothing says how often."""
    entry = recipe.stages[name]
    stage, numbers = entry.stage, counts[name]
    if not stage.engines() or numbers.read is None:
        return []
    answer, prompt = answer_tokens(entry, assumptions), assumptions.prompt_tokens.get(name)
    asked = assumptions.asked.get(name)
    if isinstance(stage, Generate):
        answers = numbers.left or 0.0
        prompts = min(stage.config.limit or numbers.read, numbers.read)
    elif isinstance(stage, Compete):
        prompts = numbers.read
        answers = prompts * stage.config.solver.batch
    elif isinstance(stage, GenSelect):
        answers = numbers.read * stage.config.samples
        prompts = numbers.read
        prompt = prompt or PROMPT_TOKENS + SUMMARY_TOKENS * _candidates(recipe, entry)
    elif isinstance(stage, Summarize):
        prompts = numbers.read * (1.0 if asked is None else asked)
        answers = prompts * stage.config.candidates
        prompt = prompt or PROMPT_TOKENS + assumptions.solution_tokens
    elif isinstance(stage, Tournament):
        matches = -(-stage.config.candidates // stage.config.size)
        prompts = answers = (numbers.problems or 0.0) * stage.config.repeats * (matches + (matches > 1))
        prompt = prompt or PROMPT_TOKENS + SUMMARY_TOKENS * min(stage.config.candidates, stage.config.size)
    elif isinstance(stage, Targets):
        prompts = numbers.read
        answers = prompts * stage.config.candidates
        prompt = prompt or PROMPT_TOKENS + SUMMARY_TOKENS * MEAN_CANDIDATES + assumptions.solution_tokens
    elif isinstance(stage, Novelty):
        prompts = numbers.read * (BLOCKS if asked is None else asked) * 2  # novelty, and significance
        answers = prompts * stage.config.votes
        prompt = prompt or PROMPT_TOKENS + 2 * stage.config.context_chars / CHARACTERS_PER_TOKEN
    elif isinstance(stage, JudgeAnswers):
        prompts = answers = numbers.read * (JUDGED if asked is None else asked) * stage.config.votes
    else:
        most = 1.0
        if isinstance(stage, Decontaminate):
            most = _shown(stage.config) * (2 if stage.config.orders == "both" else 1)
            prompt = prompt or PAIR_TOKENS
        elif isinstance(stage, Classify):
            most = float(len(stage.config.questions))
            prompt = prompt or KIND_TOKENS
        prompts = answers = numbers.read * (most if asked is None else asked)
        if "threads" in entry.inputs:
            prompt = prompt or THREAD_TOKENS
    together = 1
    if isinstance(stage, Summarize | Targets):
        together = stage.config.candidates
    elif isinstance(stage, Novelty):
        together = stage.config.votes
    requests = 1 if isinstance(stage, Novelty) else together  # its concurrency counts requests
    concurrency = requests * getattr(stage.config, "concurrency", 256)
    shape = StageRequests(name, "", prompts, prompt or PROMPT_TOKENS, answers, answer, concurrency, together)
    if isinstance(stage, PromptedStage):
        asked_models = [_of_first(shape, stage.config.engine, stage)]
        if (second := stage.config.second_engine) is not None:
            share, served = stage.config.second_share, stage.config.second_server is not None
            of_second = replace(shape, engine=second, prompts=shape.prompts * share, answers=shape.answers * share)
            asked_models.append(replace(of_second, served=served))
        return asked_models
    return [_of_first(shape, engine, stage) for engine in dict.fromkeys(stage.engines())]


def _of_first(shape: StageRequests, engine: str, stage: Stage[Any]) -> StageRequests:
    """Return what a model of a stage is asked that is asked about all units, and about the planted cases."""
    planted = stage.config.controls if isinstance(stage, ControlledStage) and stage.cases else 0.0
    return replace(
        shape,
        engine=engine,
        prompts=shape.prompts * (1 + planted),
        answers=shape.answers * (1 + planted),
        controls=shape.answers * planted,
    )


def _shown(config: DecontaminateConfig) -> float:
    """The mean number of benchmark problems that the model is shown with a clean one."""
    stands_out = config.retriever == "lexical" and config.stand_out >= DecontaminateConfig.stand_out
    return min(config.candidates, PROPOSED) if stands_out else config.candidates


def answer_tokens(entry: StageEntry, assumptions: CostAssumptions) -> float:
    """Return the mean tokens of what the model of a stage writes to one question."""
    if (given := assumptions.tokens.get(entry.name)) is not None:
        return given
    stage = entry.stage
    if isinstance(stage, Generate | GenSelect | Tournament):
        return min(assumptions.solution_tokens, stage.config.max_tokens / 2)
    if isinstance(stage, Compete):
        return min(assumptions.solution_tokens, stage.config.solver.rollout.max_tokens / 2)
    if isinstance(stage, Summarize | Targets):
        return min(SUMMARY_TOKENS, stage.config.max_tokens / 2)
    return min(assumptions.reply_tokens, getattr(stage.config, "max_tokens", 2 * assumptions.reply_tokens) / 2)


def _candidates(recipe: Recipe, entry: StageEntry) -> float:
    """The mean number of candidates in a group of those that a selection reads."""
    sizes = [
        recipe.stages[name].stage.config.sizes
        for name in entry.inputs.get("groups", ())
        if isinstance(name, str) and isinstance(recipe.stages[name].stage, Groups)
    ]
    return sum(low + high for low, high in sizes) / (2 * len(sizes)) if sizes else MEAN_CANDIDATES
