"""Ask LLM judges, models that read the problem, whether two answers mean the same.

Identical answers and missing ones are decided without asking. A judgement counts only where the model ends with the
line that the prompt asks for and nowhere says the opposite. Any other reply is asked for again with another seed. After
the last attempt the vote is invalid.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_openmath.chat.prompts import Template, load_template
from nemo_openmath.core.engine import Engine, Finish, Sampling
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.tokenizer import Tokenizer
from nemo_openmath.grading import Grade, Verdict
from nemo_openmath.grading.judgement import parse_judgement
from nemo_openmath.inference.asking import PreparedPrompt


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """Settings of one judge."""

    votes: int = 1
    """Votes on each pair, at least one."""
    attempts: int = 3
    """Most requests for a valid vote, at least one."""
    temperature: float = 0.0
    """Sampling temperature of the first vote. Further votes and attempts use at least 0.7, for a greedy draw would
    repeat itself."""
    max_tokens: int = 2048
    """Longest reply, in tokens."""
    concurrency: int = 64
    """Requests in flight at once."""
    seed: int = 0
    """Seed of all draws."""


@dataclass(frozen=True, slots=True)
class Question:
    """One pair of answers to judge, with the problem that they answer."""

    problem: str
    predicted: str | None
    expected: str | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the judges say about a pair."""

    verdict: Verdict
    """equal or not_equal by the majority of the valid votes; unknown on a tie or without a valid vote."""
    reason: str
    votes: tuple[bool | None, ...] = ()
    """The votes of all judges in their order. None stands for an invalid vote."""
    asked: int = 0
    """Requests that were made."""
    invalid: str | None = None
    """An example of a reply that could not be read."""
    replies: tuple[str, ...] = ()
    """What was said with each vote, without the thinking; of an invalid vote its last reply, as it was. Empty of
    judgements of earlier versions, which did not keep it."""

    @property
    def grade(self) -> Grade:
        return Grade(self.verdict, self.reason)


@dataclass(frozen=True, slots=True)
class CastVote:
    """One vote of a judge."""

    vote: bool | None
    """None: no reply could be read."""
    asked: int
    """Requests that were made for it."""
    reply: str
    """What was said with it; of a vote that is None the last reply, whole."""


@dataclass
class Judge:
    """One model that judges, with its tokenizer.

    ``template``: the prompt; a path is a file of the user, None the shipped prompt. Raises UserError where votes or
    attempts are below 1.
    """

    engine: Engine
    tokenizer: Tokenizer
    settings: JudgeSettings = field(default_factory=JudgeSettings)
    template: Template | Path | None = None

    def __post_init__(self) -> None:
        if self.settings.votes < 1 or self.settings.attempts < 1:
            raise UserError("a judge needs at least one vote and one attempt", remedy="raise votes or attempts")
        if not isinstance(self.template, Template):
            self.template = load_template("judge", self.template)
        self._slots = asyncio.Semaphore(self.settings.concurrency)

    async def votes(self, question: Question) -> list[CastVote]:
        """Return the votes on a pair."""
        assert isinstance(self.template, Template)
        messages = self.template.messages(
            problem=question.problem, predicted_answer=question.predicted, expected_answer=question.expected
        )
        prompt = await PreparedPrompt.of(self.engine, self.tokenizer, messages)
        return list(await asyncio.gather(*(self._vote(prompt, question, i) for i in range(self.settings.votes))))

    async def _vote(self, prompt: PreparedPrompt, question: Question, index: int) -> CastVote:
        text = ""
        for attempt in range(self.settings.attempts):
            first = index == 0 and attempt == 0
            sampling = Sampling(
                max_tokens=self.settings.max_tokens,
                temperature=self.settings.temperature if first else max(self.settings.temperature, 0.7),
                seed=_seed(self.settings.seed, question, index, attempt),
            )
            async with self._slots:
                completion = await prompt.complete(sampling)
            text = completion.text
            answer = prompt.answer(text) if completion.finish is Finish.STOP else ""
            if (vote := parse_judgement(answer)) is not None:
                return CastVote(vote, attempt + 1, answer.strip())
        return CastVote(None, self.settings.attempts, text)


def _seed(seed: int, question: Question, index: int, attempt: int) -> int:
    """Derive a seed from the question, not from its place in a file: the order of pairs changes no judgement."""
    text = "\0".join(map(str, (seed, question.problem, question.predicted, question.expected, index, attempt)))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:4], "big")


def without_asking(question: Question) -> Judgement | None:
    """Return the judgement of a pair that nobody has to read, else None."""
    predicted, expected = (question.predicted or "").strip(), (question.expected or "").strip()
    if not expected:
        return Judgement(Verdict.UNKNOWN, "no expected answer")
    if not predicted:
        return Judgement(Verdict.NOT_EQUAL, "no predicted answer")
    return Judgement(Verdict.EQUAL, "identical") if predicted == expected else None


async def judge(question: Question, judges: Sequence[Judge]) -> Judgement:
    """Ask every judge for all its votes and return the majority. Nothing is asked where nothing is open.

    Raises EngineError when an engine could not answer.
    """
    if (known := without_asking(question)) is not None:
        return known
    cast = [vote for of_judge in await asyncio.gather(*(j.votes(question) for j in judges)) for vote in of_judge]
    votes, replies = tuple(vote.vote for vote in cast), tuple(vote.reply for vote in cast)
    asked = sum(vote.asked for vote in cast)
    invalid = next((vote.reply for vote in cast if vote.vote is None), None)
    yes, no = votes.count(True), votes.count(False)
    reason = f"judged {yes} to {no}" + (f", {votes.count(None)} invalid" if None in votes else "")
    if yes == no:
        return Judgement(Verdict.UNKNOWN, reason, votes, asked, invalid, replies)
    return Judgement(Verdict.EQUAL if yes > no else Verdict.NOT_EQUAL, reason, votes, asked, invalid, replies)
