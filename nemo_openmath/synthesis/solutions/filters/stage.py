"""The stage ``solutions.filter``: rules, and how many solutions of a problem are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from nemo_openmath.chat import Transcript
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.records import Drop, Generation, read_manifest
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.records.manifest import TALLY
from nemo_openmath.core.records.types import Tallied
from nemo_openmath.core.stage import Result, StageContext, UnitStage
from nemo_openmath.synthesis.solutions.filters import rules as _rules  # noqa: F401  (fills RULES)
from nemo_openmath.synthesis.solutions.filters.config import FilterConfig
from nemo_openmath.synthesis.solutions.filters.final_answer import cut_after_answer
from nemo_openmath.synthesis.solutions.filters.rule import RULES, RuleSettings, Solution
from nemo_openmath.synthesis.solutions.shown import shown

_EXAMPLES = 5000  # drops that show their problem, about, in large sets; others name it


Reasons = dict[str, str | None]
"""Id of a solution -> why it is dropped, None where it is kept."""


class Filter(UnitStage[FilterConfig, tuple[Generation, Reasons | None]]):
    """Keep a graded generation, or drop it with the first reason that applies.

    Which rules are asked, and in which order, is the setting ``rules``; each looks at one solution alone.
    """

    kind = "solutions.filter"
    Config = FilterConfig
    ports = {"generations": "graded solutions"}
    takes = {"generations": "Generation"}
    record = Generation
    concurrency = 1
    choices = {"rules": {name: rule.meaning for name, rule in RULES.items()}}
    version = 4  # with max_tokens, what does not say its length is dropped

    async def prepare(self, context: StageContext) -> None:
        self._settings = RuleSettings(self.config, self._models_that_think(context))
        self._rules = [RULES[name] for name in self.config.rules]
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
            return Result([self._kept(generation)])
        question = unit_key(generation.id) % self._one_in == 0  # by id: the same ones after a kill, too
        return Result(drops=[Drop(reason, shown(generation, question=question))])

    def _models_that_think(self, context: StageContext) -> frozenset[tuple[str, str]]:
        """Return the (model, mode) pairs of which at least half of the finished solutions think: of all of them, not of
        a part of the work."""
        if self.config.think != "auto" or "thinking" not in self.config.rules:
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
        solution = Solution(generation, cut=self.config.cut_after_answer)
        for rule in self._rules:
            if (reason := rule.reason(solution, self._settings)) is not None:
                return reason
        return None

    def _kept(self, generation: Generation) -> Generation:
        """Return what is kept of a solution that passed."""
        if not self.config.cut_after_answer:
            return generation
        cut = cut_after_answer(Transcript.from_json(generation.transcript), generation.predicted_answer)
        if cut is None:
            return generation
        calls = min(generation.code_calls, len(cut.code_blocks()))
        return generation.with_(transcript=cut.to_json(), code_calls=calls, extra=generation.extra | {"cut": True})


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
