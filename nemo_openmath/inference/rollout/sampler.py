"""One sample of one problem: its id, its seed, its prompt, its rollout and its record."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from nemo_openmath.chat import Template
from nemo_openmath.core.clock import SystemClock
from nemo_openmath.core.engine import Engine, Finish
from nemo_openmath.core.errors import Refused
from nemo_openmath.core.records import Generation, Mode, Problem
from nemo_openmath.core.records.answer_note import extra_for_solutions
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.sandbox import Sandbox
from nemo_openmath.core.tokenizer import Message, Tokenizer
from nemo_openmath.inference.rollout.loop import roll_out
from nemo_openmath.inference.rollout.outcome import Outcome
from nemo_openmath.inference.rollout.settings import RolloutSettings, draw_budget
from nemo_openmath.inference.rollout.watch import Watch

# the settings that are part of a sample's id
_IDENTIFYING = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "budgets", "code_seconds", "output_chars")


class Sampler:
    """Makes samples of problems with one engine, one prompt and one set of settings. ``seed``: of the stage;
    ``keep_ids``: records keep the token ids; ``recorded``: the prompt that records have in place of the one that was
    asked, where the model calls code in another way than by tags; ``timed``: records have the solution's times."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        sandbox: Sandbox | None,
        template: Template,
        mode: Mode,
        settings: RolloutSettings,
        seed: int,
        *,
        keep_ids: bool,
        recorded: Template | None = None,
        timed: bool = False,
    ):
        self._timed = timed
        self._recorded = recorded or template
        self._keep_ids = keep_ids
        self._engine, self._tokenizer, self._sandbox = engine, tokenizer, sandbox
        self._template, self._mode, self._settings, self._seed = template, mode, settings, seed
        self._sampling: dict[str, Any] = {k: v for k, v in asdict(settings).items() if k in _IDENTIFYING}
        if settings.tool_format != "tags":
            self._sampling["tool_format"] = settings.tool_format
        if options := engine.capabilities.options or tokenizer.options:
            self._sampling["options"] = options

    def id_of(self, problem: Problem, sample: int) -> str:
        """Return the id of the record of sample number ``sample``."""
        model, prompt = self._engine.model, self._template.digest
        return Generation.make_id(problem.id, self._mode, model, prompt, self._sampling, self._seed, sample)

    async def roll_out(self, problem: Problem, sample: int) -> Outcome:
        """Generate the solution of sample number ``sample``."""
        key = self.id_of(problem, sample)
        seed, budget = self._seed_and_budget(key)
        watch = Watch(SystemClock(), logprobs=True, streams=False) if self._timed else None
        outcome = await roll_out(
            self._engine,
            self._tokenizer,
            self._messages(self._template, problem, budget),
            self._settings,
            seed=seed,
            key=key,
            sandbox=self._sandbox,
            budget=budget,
            watch=watch,
        )
        if watch is None:
            return outcome
        answered, seconds = outcome.finish is Finish.STOP, outcome.cost.code_seconds
        return replace(outcome, timing=watch.timing(self._tokenizer, answered=answered, code_seconds=seconds))

    def untried(self, problem: Problem, sample: int, error: Refused) -> Generation:
        """Return the record of a sample that the engine refused: evaluation counts its problem apart."""
        _, budget = self._seed_and_budget(self.id_of(problem, sample))
        outcome = Outcome.untried(self._messages(self._template, problem, budget), self._tokenizer, error)
        generation = self.record(problem, sample, outcome)
        return generation.with_(extra=generation.extra | {"untried": str(error)})

    def record(self, problem: Problem, sample: int, outcome: Outcome) -> Generation:
        """Return the record of a sample that came out as ``outcome``."""
        key, cost = self.id_of(problem, sample), outcome.cost
        transcript = outcome.transcript if self._keep_ids else outcome.transcript.without_ids()
        _, budget = self._seed_and_budget(key)
        extra: dict[str, Any] = {"source": problem.source, "category": problem.category} | extra_for_solutions(problem)
        talked = self._engine.capabilities.conversations
        if self._mode == Mode.TIR and (talked or self._settings.tool_format != "tags"):
            transcript = replace(transcript, messages=self._messages(self._recorded, problem, budget))
            ids = "re-encoded" if talked else "rewritten"
            extra["asked"] = {
                "tool_format": self._settings.tool_format,
                "prompt": self._template.digest,
                "ids": ids,
            }
        if outcome.timing is not None:
            extra |= outcome.timing.to_extra()
        if cost.invented_outputs:
            extra["invented_outputs"] = cost.invented_outputs
        return Generation(
            id=key,
            parents=(problem.id,),
            problem_id=problem.id,
            mode=self._mode,
            model=self._engine.model,
            sample=sample,
            transcript=transcript.to_json(),
            thinks=transcript.thinks,
            finish=outcome.finish,
            expected_answer=problem.expected_answer,
            prompt_tokens=cost.prompt_tokens,
            completion_tokens=cost.completion_tokens,
            runner_tokens=cost.tool_tokens,
            code_calls=cost.code_calls,
            budget=budget or None,
            extra=extra,
        )

    def _seed_and_budget(self, key: str) -> tuple[int, int]:
        """The seed and the number of code executions of the sample with the id ``key``."""
        seed = derive_seed(self._seed, key)
        return seed, draw_budget(self._settings, seed) if self._mode == Mode.TIR else 0

    def _messages(self, template: Template, problem: Problem, budget: int) -> tuple[Message, ...]:
        fields: dict[str, object] = {"problem": problem.problem}
        if self._mode == Mode.TIR:
            fields["total_code_executions"] = budget
        return template.messages(**fields)
