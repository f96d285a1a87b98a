"""Keep the solutions that are good enough to learn from (paper sections 2.3, 3.2 and 3.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from nemo_openmath.chat import Kind, Transcript
from nemo_openmath.core.bounds import NonNegativeInt, Share
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Drop, Generation, Mode, read_manifest
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.records.manifest import TALLY
from nemo_openmath.core.records.types import Tallied
from nemo_openmath.core.stage import Result, StageContext, UnitStage
from nemo_openmath.core.tags import CODE_START
from nemo_openmath.grading import extract_answer
from nemo_openmath.synthesis.solutions.shown import shown

_EXAMPLES = 5000  # drops that show their problem, about, in large sets; others name it
_ENDINGS = {
    Finish.BUDGET: "over the code budget",
    Finish.REPETITION: "repeats itself",
    Finish.CONTEXT: "prompt longer than the context",
    Finish.REFUSED: "refused by the engine",
}


@dataclass(frozen=True)
class FilterConfig:
    """Settings of ``solutions.filter``."""

    think: Literal["auto", "required", "optional"] = "auto"
    """Which solutions must think (<think> ... </think>) before they answer. "auto": those of a model and mode of which
    at least half of the finished solutions think; the whole text of other models is the answer. "required": all.
    "optional": none. Thinking that was begun must have ended in any case."""
    correct: bool = True
    """Keep only solutions with the verdict equal."""
    code: bool = True
    """TIR solutions must have run code."""
    max_blocks: NonNegativeInt = 0
    """Most code blocks of a TIR solution; two in stage 0 of the paper. 0: any number. Paper section 3.2."""
    answer_after_code: bool = True
    """TIR solutions may not box an answer before their first code block."""
    error_free: bool = False
    """No code block of a TIR solution may have ended in an error."""
    max_tokens: NonNegativeInt = 0
    """Longest solution, in tokens that the model wrote. 0: any length."""
    per_problem: NonNegativeInt = 0
    """Most solutions of a problem, chosen by a hash of their ids. 0: all."""
    easy: Share = 1.0
    """A problem is easy where a larger share of its samples than this passes the other rules."""
    easy_per_problem: NonNegativeInt = 0
    """Most solutions of an easy problem, so that harder problems keep more. 0: as ``per_problem`` says."""


Reasons = dict[str, str | None]
"""Id of a solution -> why it is dropped, None where it is kept."""


class Filter(UnitStage[FilterConfig, tuple[Generation, Reasons | None]]):
    """Keep a graded generation, or drop it with the first reason that applies."""

    kind = "solutions.filter"
    Config = FilterConfig
    ports = {"generations": "graded solutions"}
    takes = {"generations": "Generation"}
    record = Generation
    concurrency = 1
    version = 3  # solutions of models that do not think are kept; thinking stands at the beginning

    async def prepare(self, context: StageContext) -> None:
        self._thinkers = self._models_that_think(context)
        manifests = [read_manifest(folder) for folder in context.paths("generations")]
        self._one_in = max(1, sum(m.counts.get("records", 0) for m in manifests if m is not None) // _EXAMPLES)

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Generation, Reasons | None]]]:
        limited = self.config.per_problem or self.config.easy_per_problem
        reasons = self._reasons_with_quotas(context) if limited else None
        return ((g.id, (g, reasons)) for g in context.read("generations", Generation))

    async def process(self, unit: tuple[Generation, Reasons | None], context: StageContext) -> Result:
        generation, reasons = unit
        reason = self._reason(generation) if reasons is None else reasons[generation.id]
        if reason is None:
            return Result([generation])
        question = unit_key(generation.id) % self._one_in == 0  # by id: the same ones after a kill, too
        return Result(drops=[Drop(reason, shown(generation, question=question))])

    def _models_that_think(self, context: StageContext) -> frozenset[tuple[str, str]]:
        """Return the (model, mode) pairs of which at least half of the finished solutions think: of all of them, not of
        a part of the work."""
        if self.config.think != "auto":
            return frozenset()
        finished: Counter[tuple[str, str]] = Counter()
        thinking: Counter[tuple[str, str]] = Counter()
        for model, mode, thinks, count in _finished(context):
            finished[model, mode] += count
            thinking[model, mode] += count * thinks
        for model, mode in sorted(finished.keys() - +thinking):
            context.progress.log(f"{model} ({mode}) does not think: all text of its solutions is taken for the answer")
        return frozenset(key for key, count in finished.items() if 2 * thinking[key] >= count)

    def _reasons_with_quotas(self, context: StageContext) -> Reasons:
        """Return why each solution of a part of the work is dropped, None for those that are kept. Which are beyond
        their problem's quota is decided by a hash, whatever the order of the files."""
        good: dict[str, list[str]] = {}
        total: Counter[str] = Counter()
        reasons: Reasons = {}
        for generation in context.read("generations", Generation):
            total[generation.problem_id] += generation.tried
            reasons[generation.id] = self._reason(generation)
            if reasons[generation.id] is None:
                good.setdefault(generation.problem_id, []).append(generation.id)
        for problem, ids in good.items():
            easy = len(ids) / total[problem] > self.config.easy
            quota = (self.config.easy_per_problem if easy else 0) or self.config.per_problem
            if quota:
                reasons |= dict.fromkeys(sorted(ids, key=unit_key)[quota:], "enough solutions of this problem")
        return reasons

    def _reason(self, generation: Generation) -> str | None:
        config = self.config
        if not generation.finished:
            return _ENDINGS.get(generation.finish, f"unfinished ({generation.finish})")
        if generation.predicted_answer is None:
            return "no boxed answer"
        if config.correct and not generation.correct:
            return "wrong answer" if generation.verdict is Verdict.NOT_EQUAL else f"verdict {generation.verdict}"
        if config.max_tokens and generation.completion_tokens > config.max_tokens:
            return "too long"
        transcript = Transcript.from_json(generation.transcript, ids=False)
        thinking = transcript.thinking
        if thinking == "broken":
            return "no summary after the reasoning" if transcript.summary is None else "think tags out of order"
        if thinking == "none" and (config.think == "required" or (generation.model, generation.mode) in self._thinkers):
            return "no summary after the reasoning"
        return self._code_reason(generation, transcript) if generation.mode is Mode.TIR else None

    def _code_reason(self, generation: Generation, transcript: Transcript) -> str | None:
        config = self.config
        if config.code and generation.code_calls == 0:
            return "its code was not called" if transcript.has_uncalled_code else "no code was run"
        if config.max_blocks and generation.code_calls > config.max_blocks:
            return "too many code blocks"
        before = transcript.text.partition(CODE_START)[0]
        if config.answer_after_code and generation.code_calls and extract_answer(before).boxes:
            return "answer before the first code"
        if config.error_free and any(
            "Traceback" in s.text or "Error:" in s.text for s in transcript.segments() if s.kind is Kind.OUTPUT
        ):
            return "a code block failed"
        return None


def _finished(context: StageContext) -> Iterator[tuple[str, str, bool, int]]:
    """Yield (model, mode, whether they think, how many) of the finished solutions: from the folders' tallies, and where
    one has none, from the solutions themselves."""
    manifests = [read_manifest(folder) for folder in context.paths("generations")]
    tallies = [{} if manifest is None else manifest.metrics.get(TALLY, {}) for manifest in manifests]
    counts = [entry for tally in tallies for entry in Tallied.read(tally)]
    if all(tallies) and not any(of.thinks is None and of.finish == Finish.STOP for of, _ in counts):
        yield from ((of.model, of.mode, bool(of.thinks), count) for of, count in counts if of.finish == Finish.STOP)
        return
    for generation in replace(context, divided=()).read("generations", Generation):
        if generation.finished:
            thinks = generation.thinks
            if thinks is None:
                thinks = Transcript.from_json(generation.transcript, ids=False).thinks
            yield generation.model, generation.mode, thinks, 1
