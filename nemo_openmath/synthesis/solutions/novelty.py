"""Keep the solutions whose code finds something new and saves real work: stage 0 of TIR (paper section 3.2).

Each block of code is shown with the text around it (fragments.py). A model votes on two questions (votes.py):

- novelty: does the code find what was not known before? It does where every valid vote says so.
- significance: trivial where one valid vote says so, else moderate where one does, else significant.

A block that ended in an error is not judged. It is neither novel nor significant, like a block without a valid vote,
and counts among the blocks of its solution.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import orjson

from nemo_openmath.chat import Transcript, load_template
from nemo_openmath.core.bounds import Bounds, NonNegativeInt, PositiveFloat, PositiveInt
from nemo_openmath.core.records import Drop, Generation, read_manifest
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.stage import RUNTIME, Result, StageContext, UnitStage
from nemo_openmath.synthesis.solutions.fragments import Fragment, fragments_of
from nemo_openmath.synthesis.solutions.votes import MOST_ATTEMPTS, Panel, VoteQuestion, Votes

NOVEL, VERIFICATION = "novel", "verification"
TRIVIAL, MODERATE, SIGNIFICANT = "trivial", "moderate", "significant"
_NOVELTY_WORDS = {r"(?:not|non)[\s-]novel": VERIFICATION, r"verif(?:ication|ying|ies|y)": VERIFICATION, NOVEL: NOVEL}
_SIGNIFICANCE_WORDS = {TRIVIAL: TRIVIAL, MODERATE: MODERATE, SIGNIFICANT: SIGNIFICANT}
_EXAMPLES = 2000  # drops that show a fragment, about, in large sets; others name their problem


@dataclass(frozen=True)
class NoveltyConfig:
    """Settings of ``solutions.novelty``."""

    engine: str = "teacher"
    """The model that votes: ``teacher``, the name of a stage that made a model, or a model folder."""
    votes: PositiveInt = 8
    """Votes on each block of code and question (the reference pipeline's number)."""
    context_chars: NonNegativeInt = 1500
    """Most characters of text that are shown before a block and behind it (the reference pipeline's number)."""
    attempts: Annotated[int, Bounds(1, MOST_ATTEMPTS)] = 3
    """How often a vote is asked for until the reply can be read."""
    temperature: PositiveFloat = 0.7
    """Sampling temperature. A greedy model would give one vote eight times."""
    max_tokens: PositiveInt = 2048
    """Longest reply, in tokens."""
    novelty_prompt: Path | None = None
    """A template file of the user's own for the question of novelty. null: the shipped one, classify-novelty."""
    significance_prompt: Path | None = None
    """A template file of the user's own for the question of significance. null: the shipped one,
    classify-significance."""
    concurrency: PositiveInt = field(default=256, metadata=RUNTIME)
    """Requests in flight at once. It changes the speed alone."""


@dataclass(frozen=True, slots=True)
class BlockDecision:
    """What the votes on a block of code come to. Both are None of a block that was not judged."""

    novelty: str | None
    significance: str | None
    novelty_votes: Votes = ()
    significance_votes: Votes = ()

    @classmethod
    def of(cls, novelty: Votes, significance: Votes) -> BlockDecision:
        """Return the decision of the votes."""
        valid = [vote for vote in novelty if vote is not None]
        weights = [vote for vote in significance if vote is not None]
        return cls(
            None if not valid else NOVEL if set(valid) == {NOVEL} else VERIFICATION,
            next((weight for weight in (TRIVIAL, MODERATE, SIGNIFICANT) if weight in weights), None),
            novelty,
            significance,
        )

    def __str__(self) -> str:
        return f"{self.novelty or 'none'}, {self.significance or 'none'}"

    def to_json(self) -> dict[str, Any]:
        """Return the decision as records hold it; of a block that was not judged without votes."""
        decision: dict[str, Any] = {"novelty": self.novelty, "significance": self.significance}
        if not self.novelty_votes:
            return decision
        votes = {"novelty": list(self.novelty_votes), "significance": list(self.significance_votes)}
        return decision | {"votes": votes}


def drop_reason(decisions: Sequence[BlockDecision]) -> str | None:
    """Return why a solution with such blocks is dropped; None where it is kept: with a block that is novel and
    significant, or with more than half of its blocks novel and moderate."""
    novel = [decision.significance for decision in decisions if decision.novelty == NOVEL]
    if SIGNIFICANT in novel or 2 * novel.count(MODERATE) > len(decisions):
        return None
    if not decisions:
        return "no code to judge"
    if not any(decision.novelty_votes for decision in decisions):
        return "all of its code failed"
    if novel:
        return "too little of its code is more than trivial" if MODERATE in novel else "its new code is trivial"
    if any(decision.novelty == VERIFICATION for decision in decisions):
        return "its code finds nothing new"
    return "no vote on its code could be read"


class Novelty(UnitStage[NoveltyConfig, Generation]):
    """Keep solutions with code that is novel and significant, by the votes of a model; paper section 3.2.

    Kept is a solution with a block that is novel and significant, or with more than half of its blocks novel and
    moderate. What was decided of each block, and the votes, stand in the record (``extra.novelty``). Every reply
    stands in ``votes-*.jsonl``. Votes and decisions are counted in ``novelty.json``, equal blocks once, and among the
    stage's metrics where it runs as one job.
    """

    kind = "solutions.novelty"
    Config = NoveltyConfig
    ports = {"generations": "solutions with code"}
    takes = {"generations": "Generation"}
    record = Generation

    def __init__(self, config: NoveltyConfig):
        super().__init__(config)
        self.concurrency = config.concurrency
        self._questions = (
            VoteQuestion("novelty", load_template("classify-novelty", config.novelty_prompt), _NOVELTY_WORDS),
            VoteQuestion(
                "significance", load_template("classify-significance", config.significance_prompt), _SIGNIFICANCE_WORDS
            ),
        )

    def engines(self) -> tuple[str, ...]:
        return (self.config.engine,)

    async def prepare(self, context: StageContext) -> None:
        config = self.config
        engine, tokenizer = await context.services.engine(config.engine)
        self._panel = Panel(
            engine,
            tokenizer,
            context.output,
            f"{context.shard:05d}-of-{context.shards:05d}",
            votes=config.votes,
            attempts=config.attempts,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            seed=context.seed,
            concurrency=config.concurrency,
        )
        manifests = [read_manifest(folder) for folder in context.paths("generations")]
        self._one_in = max(1, sum(m.counts.get("records", 0) for m in manifests if m is not None) // _EXAMPLES)

    async def run(self, context: StageContext) -> None:
        try:
            await super().run(context)
        finally:
            if (panel := getattr(self, "_panel", None)) is not None:
                await panel.close()
        blocks = Counter(_decided(voted) for voted in self._panel.choices(self._questions))
        counts = self._panel.counts(self._questions) | {"blocks": dict(sorted(blocks.items()))}
        (context.output / "novelty.json").write_bytes(orjson.dumps(counts, option=orjson.OPT_INDENT_2))
        if context.shards == 1:
            context.metrics["novelty"] = counts

    def units(self, context: StageContext) -> Iterable[tuple[str, Generation]]:
        return ((g.id, g) for g in context.read("generations", Generation))

    async def process(self, unit: Generation, context: StageContext) -> Result:
        fragments = fragments_of(Transcript.from_json(unit.transcript, ids=False), self.config.context_chars)
        decisions = await asyncio.gather(*(self._decision(fragment) for fragment in fragments))
        asked = not all(fragment.failed for fragment in fragments)
        if (reason := drop_reason(decisions)) is not None:
            return Result(drops=[Drop(reason, self._example(unit, fragments, decisions))], asked=asked)
        extra = unit.extra | {"novelty": [decision.to_json() for decision in decisions]}
        return Result([unit.with_(extra=extra)], asked=asked)

    async def _decision(self, fragment: Fragment) -> BlockDecision:
        if fragment.failed:
            return BlockDecision(None, None)
        novelty, significance = await asyncio.gather(*(self._panel.vote(q, fragment.text) for q in self._questions))
        return BlockDecision.of(novelty, significance)

    def _example(self, unit: Generation, fragments: list[Fragment], decisions: list[BlockDecision]) -> str:
        """What was decided of each block, and the first of them as it was judged."""
        words = "; ".join(map(str, decisions))
        if not fragments or unit_key(unit.id) % self._one_in:
            return f"{words or 'no block'}: {unit.problem_id}"
        return f"{words}: {fragments[0].text}"


def _decided(voted: Mapping[str, set[str]]) -> str:
    """What the votes on a block come to, in words."""
    return str(BlockDecision.of(tuple(voted.get("novelty", ())), tuple(voted.get("significance", ()))))
