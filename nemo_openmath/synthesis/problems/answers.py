"""Extract expected answers from the discussions (paper section 2.1, step 4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from nemo_openmath.core.merging import merge
from nemo_openmath.core.records import Drop, Problem, Thread
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.records.key_set import KeySet
from nemo_openmath.core.records.store import read_file
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.controls.cases import AnswerCase
from nemo_openmath.synthesis.problems.attribution import PosedProblems, Whose
from nemo_openmath.synthesis.problems.checks import OF_ANSWER, ExtractedAnswer, bare_answer, first_failed, plain_labels
from nemo_openmath.synthesis.problems.posts import posts
from nemo_openmath.synthesis.problems.prompted import Discussed, DiscussedStage, Rejected

UNATTRIBUTED = "answer_unattributed"
"""Key in ``extra`` of a problem whose post poses several, where nothing says to which of them its answer belongs."""
OF_ANOTHER = Rejected("the answer is to another problem of the post")


class ExtractAnswers(DiscussedStage):
    """Give each problem the answer that its discussions settle on.

    The model is asked about each thread that poses the problem, and the answer of most threads holds (core/merging.py).
    An answer must pass the checks of an extracted answer (checks.py): it stands in the discussion, or follows from it.
    Where a post poses several problems, an answer that the replies give to another one alone is rejected, too
    (attribution.py). Where nothing says whose it is, the problem is marked in ``extra``, and counted in the metrics.
    A problem without an answer stays, as ``no_answer_extracted``: the majority of its solutions may label it later.
    """

    kind = "problems.extract_answers"
    version = 4  # 2: what is extracted is checked; 3: and is no answer to another problem of the post; 4: bold labels
    case = AnswerCase
    prompt = "extract-answer"

    def asks_about(self, problem: Problem) -> bool:
        return problem.expected_answer is None

    async def prepare(self, context: StageContext) -> None:
        self._several = _threads_of_several(context.read("problems", Problem))
        self._posts: dict[str, str] = {}  # of threads whose posts pose several problems
        await super().prepare(context)

    def take_post(self, thread: Thread) -> None:
        if PosedProblems.of(thread.forum_post, several=unit_key(thread.id) in self._several) is not None:
            self._posts[thread.id] = thread.forum_post

    def _posed(self, thread: str) -> PosedProblems | None:
        post = self._posts.get(thread)
        return None if post is None else PosedProblems.of(post, several=unit_key(thread) in self._several)

    async def run(self, context: StageContext) -> None:
        await super().run(context)
        parts = (read_file(file, Problem) for file in context.own_files())
        context.metrics[UNATTRIBUTED] = sum(UNATTRIBUTED in problem.extra for part in parts for problem in part)

    def outcome(self, result: Result) -> str:
        record = next(iter(result.records), None)
        return record.problem_type or "kept" if isinstance(record, Problem) else super().outcome(result)

    async def process(self, unit: Discussed, context: StageContext) -> Result:
        problem, discussions = unit
        if not self.asks_about(problem):
            return Result([problem], asked=False)
        versions: list[Problem] = []
        rejected: Drop | None = None
        threads = self.discussed(problem) or [""] * len(discussions)  # a planted unit has no thread
        for number, (thread, discussion) in enumerate(zip(threads, discussions, strict=True)):
            key = f"{problem.id}:{number}" if number else problem.id
            text = await self.shown([discussion])
            parse = partial(_checked, problem.problem, text, self._posed(thread))
            answer, reply = await self.question(context, key, parse, problem=problem.problem, forum_discussions=text)
            if isinstance(answer, Rejected):
                rejected = Drop(answer.reason, reply)
            elif answer:
                extra = problem.extra if answer[1] else problem.extra | {UNATTRIBUTED: True}
                answered = problem.with_(expected_answer=answer[0], problem_type="has_answer_extracted")
                versions.append(replace(answered, extra=extra))
        if versions:
            return Result([_agreed(versions, merge(versions, context.services.vote))])
        if rejected is not None:
            return Result(drops=[rejected])
        return Result([problem.with_(problem_type="no_answer_extracted")], asked=bool(discussions))


def _threads_of_several(problems: Iterable[Problem]) -> set[int]:
    """Return the keys of the parents of more than one problem."""
    seen, keys = KeySet(), (unit_key(parent) for problem in problems for parent in problem.parents)
    return {key for key in keys if not seen.add(key)}


def _agreed(versions: Sequence[Problem], merged: Problem) -> Problem:
    """Return the problem without the mark where one thread gives the agreed answer to it by name."""
    if all(UNATTRIBUTED in v.extra for v in versions if v.expected_answer == merged.expected_answer):
        return merged
    return replace(merged, extra={name: value for name, value in merged.extra.items() if name != UNATTRIBUTED})


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
    return OF_ANOTHER if whose is Whose.OTHER else (answer, whose is Whose.OWN)


def parse_answer(text: str) -> str | Rejected:
    """Return the answer of the line ``Answer: ...``, "" for "Not found"."""
    text = plain_labels(text)
    if text.strip(" \t\n.*`").lower() in ("not found", "answer: not found"):
        return ""
    head, _, answer = text.strip().partition("Answer:")
    answer = bare_answer(answer)
    return Rejected("the reply is no answer") if head or not answer or "\n" in answer else answer
