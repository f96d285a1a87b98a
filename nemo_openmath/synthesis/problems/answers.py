"""Extract expected answers from the discussions (paper section 2.1, step 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from nemo_openmath.core.merging import merge
from nemo_openmath.core.records import Drop, Problem, Thread
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.records.key_set import KeySet
from nemo_openmath.core.records.store import read_file
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.data.records.published import UNATTRIBUTED
from nemo_openmath.synthesis.controls.cases import AnswerCase
from nemo_openmath.synthesis.problems.attribution import PosedProblems, Whose
from nemo_openmath.synthesis.problems.checks import OF_ANSWER, ExtractedAnswer, bare_answer, first_failed, plain_labels
from nemo_openmath.synthesis.problems.extract import EXTRACTED_WITH
from nemo_openmath.synthesis.problems.posts import posts
from nemo_openmath.synthesis.problems.prompted import Discussed, DiscussedConfig, DiscussedStage, Rejected

NOBODYS = "nothing says whose the answer is"
"""Under which such units are counted and shown."""
OF_ANOTHER = "the answer is to another problem of the post"
"""Why a reply is asked for again, and under what units are shown for which no other came."""
ANOTHERS = "answer_of_another"
"""Key in ``extra`` of a problem without an answer for which the model gave the answer to another problem of the post;
and of their number in the metrics."""


@dataclass(frozen=True, slots=True)
class AnswerOfAnother(Rejected):
    """Stands in place of an answer that the replies give to another problem of the post alone."""

    answer: str


@dataclass(frozen=True)
class ExtractAnswersConfig(DiscussedConfig):
    """Settings of ``problems.extract_answers``."""

    unattributed: Literal["drop", "keep"] = "drop"
    """What becomes of an answer where a post poses several problems and nothing says whose it is. ``drop``: it is taken
    away, and the problem goes on as one without an answer. ``keep``: it stays, and an export says so in a column. Both
    note it in ``extra.answer_unattributed``."""


class ExtractAnswers(DiscussedStage[ExtractAnswersConfig]):
    """Give each problem the answer that its discussions settle on.

    The model is asked about each thread that poses the problem, and the answer of most threads holds (core/merging.py).
    An answer must pass the checks of an extracted answer (checks.py): it stands in the discussion, or follows from it.
    Where a post poses several problems, an answer that the replies give to another one alone is asked for again, and
    then taken away (attribution.py). So is one of which nothing says whose it is (``unattributed``). Both are counted.
    A problem without an answer stays, as ``no_answer_extracted``: the majority of its solutions may label it later.
    Where no reply could be read or passed the checks, the problem is dropped.
    """

    kind = "problems.extract_answers"
    # 2: what is extracted is checked; 3: and is no answer to another problem of the post; 4: bold labels;
    # 5: an answer that nothing attributes is taken away; 6: so is another problem's, which goes on without one
    version = 6
    case = AnswerCase
    prompt = "extract-answer"
    Config = ExtractAnswersConfig

    def asks_about(self, problem: Problem) -> bool:
        return problem.expected_answer is None

    async def prepare(self, context: StageContext) -> None:
        self._posed_by = _problems_of_several(context)
        self._posts: dict[str, str] = {}  # of threads whose posts pose several problems
        await super().prepare(context)

    def take_post(self, thread: Thread) -> None:
        if self._read(thread.id, thread.forum_post) is not None:
            self._posts[thread.id] = thread.forum_post

    def _posed(self, thread: str) -> PosedProblems | None:
        post = self._posts.get(thread)
        return None if post is None else self._read(thread, post)

    def _read(self, thread: str, post: str) -> PosedProblems | None:
        texts, number = self._posed_by.get(unit_key(thread), ((), 0))
        return PosedProblems.of(post, number=number, siblings=texts)

    async def run(self, context: StageContext) -> None:
        await super().run(context)
        counts = dict.fromkeys((UNATTRIBUTED, ANOTHERS), 0)
        for file in context.own_files():
            for problem in read_file(file, Problem):
                for name in counts:
                    counts[name] += bool(problem.extra.get(name))
        context.metrics.update(counts)

    def outcomes(self, result: Result) -> list[str]:
        names = {UNATTRIBUTED: NOBODYS, ANOTHERS: OF_ANOTHER}
        marks = [shown for name, shown in names.items() if any(record.extra.get(name) for record in result.records)]
        return [*super().outcomes(result), *marks]

    def outcome(self, result: Result) -> str:
        record = next(iter(result.records), None)
        return record.problem_type or "kept" if isinstance(record, Problem) else super().outcome(result)

    async def process(self, unit: Discussed, context: StageContext) -> Result:
        problem, discussions = unit
        if not self.asks_about(problem):
            return Result([problem], asked=False)
        versions: list[Problem] = []
        guesses: list[Problem] = []  # whose answer nothing attributes
        others: str | None = None  # the answer to another problem of the post
        rejected: Drop | None = None
        threads = self.discussed(problem) or [""] * len(discussions)  # a planted unit has no thread
        for number, (thread, discussion) in enumerate(zip(threads, discussions, strict=True)):
            key = f"{problem.id}:{number}" if number else problem.id
            text = await self.shown([discussion])
            parse = partial(_checked, problem.problem, text, self._posed(thread))
            answer, reply = await self.question(context, key, parse, problem=problem.problem, forum_discussions=text)
            if isinstance(answer, AnswerOfAnother):
                others = answer.answer
            elif isinstance(answer, Rejected):
                rejected = Drop(answer.reason, reply)
            elif answer:
                answered = problem.with_(expected_answer=answer[0], problem_type="has_answer_extracted")
                (versions if answer[1] else guesses).append(answered)
        if versions or (guesses and self.config.unattributed == "keep"):
            agreed = merge(versions + (guesses if self.config.unattributed == "keep" else []), context.services.vote)
            known = agreed.expected_answer is None or any(v.expected_answer == agreed.expected_answer for v in versions)
            return Result([agreed if known else _marked(agreed, agreed.expected_answer)])
        if guesses:
            given = merge(guesses, context.services.vote).expected_answer or guesses[0].expected_answer
            return Result([_marked(problem.with_(problem_type="no_answer_extracted"), given)])
        if others is not None:
            return Result([_marked(problem.with_(problem_type="no_answer_extracted"), others, ANOTHERS)])
        if rejected is not None:
            return Result(drops=[rejected])
        return Result([problem.with_(problem_type="no_answer_extracted")], asked=bool(discussions))


def _marked(problem: Problem, answer: str | None, name: str = UNATTRIBUTED) -> Problem:
    return replace(problem, extra=problem.extra | {name: answer})


def _problems_of_several(context: StageContext) -> dict[int, tuple[tuple[str, ...], int]]:
    """Return for the keys of threads that pose several problems: the texts of those that are here, and how many were
    extracted, as far as ``problems.extract`` has noted it."""
    seen, keys = KeySet(), set[int]()
    for problem in context.read("problems", Problem):
        for parent in problem.parents:
            if not seen.add(key := unit_key(parent)) or EXTRACTED_WITH in problem.extra:
                keys.add(key)
    posed: dict[int, tuple[tuple[str, ...], int]] = {}
    for problem in context.read("problems", Problem) if keys else ():
        noted = problem.extra.get(EXTRACTED_WITH)
        for key in keys.intersection(map(unit_key, problem.parents)):
            texts, number = posed.get(key, ((), 0))
            posed[key] = (*texts, problem.problem), max(number, noted if isinstance(noted, int) else 0)
    return posed


def _checked(
    problem: str, discussion: str, posed: PosedProblems | None, reply: str
) -> tuple[str, bool] | tuple[()] | Rejected:
    """Return the answer of a reply, and whether it is known to be the answer to this problem; () for "Not found"."""
    answer = parse_answer(reply)
    if isinstance(answer, Rejected):
        return answer
    if not answer:
        return ()
    if (failed := first_failed(OF_ANSWER, ExtractedAnswer(answer, discussion))) is not None:
        return failed
    whose = Whose.OWN if posed is None else posed.whose(answer, problem, posts(discussion))
    return AnswerOfAnother(OF_ANOTHER, answer) if whose is Whose.OTHER else (answer, whose is Whose.OWN)


def parse_answer(text: str) -> str | Rejected:
    """Return the answer of the line ``Answer: ...``, "" for "Not found"."""
    text = plain_labels(text)
    if text.strip(" \t\n.*`").lower() in ("not found", "answer: not found"):
        return ""
    head, _, answer = text.strip().partition("Answer:")
    answer = bare_answer(answer)
    return Rejected("the reply is no answer") if head or not answer or "\n" in answer else answer
