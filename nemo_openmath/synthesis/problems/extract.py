"""Extract the problems that the first posts of threads pose (paper section 2.1, step 1)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nemo_openmath.core.records import Drop, Problem, Thread
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.controls.cases import ExtractCase
from nemo_openmath.synthesis.problems.checks import (
    OF_EXTRACTED,
    ExtractedProblem,
    ShownText,
    first_failed,
    plain_labels,
)
from nemo_openmath.synthesis.problems.prompted import OnePromptConfig, PromptedStage, Rejected
from nemo_openmath.synthesis.problems.read import FORUM

EXTRACTED_WITH = "problems_in_post"
"""Key in ``extra`` of a problem that is one of several of its post: how many the model found there."""
_PROBLEM = re.compile(r"^Problem (\d{1,4}):[ \t]*", re.M)


class Extract(PromptedStage[OnePromptConfig, Thread]):
    """Extract the problems that a thread poses. Equal texts of one thread are one problem. The source of each is the
    forum of its thread, where that is known. Their parents are the thread and the threads that it stands for
    (``problems.group_threads``).

    Every problem must pass the checks of an extracted problem (checks.py). Where one of several fails in all attempts,
    the others of the last reply go on, and that one is dropped.
    """

    kind = "problems.extract"
    # 2: what is extracted is checked; 3: and compared with the examples of the prompt; 4: bold labels;
    # 5: problems say how many there are in their post
    version = 5
    case = ExtractCase
    prompt = "extract-problems"
    Config = OnePromptConfig
    ports = {"threads": "forum threads"}
    takes = {"threads": "Thread"}
    record = Problem

    def units(self, context: StageContext) -> Iterable[tuple[str, Thread]]:
        return ((thread.id, thread) for thread in context.read("threads", Thread))

    def outcome(self, result: Result) -> str:
        number = len(result.records)
        return f"{number} problem{'s' if number > 1 else ''}" if number else super().outcome(result)

    async def process(self, unit: Thread, context: StageContext) -> Result:
        post, prompt = ShownText(unit.forum_post), self.asked_text()
        checked: list[tuple[str, Rejected | None]] = []  # of the last reply

        def parse(reply: str) -> list[str] | Rejected:
            checked.clear()
            texts = parse_problems(reply)
            if isinstance(texts, Rejected):
                return texts
            checked.extend((text, first_failed(OF_EXTRACTED, ExtractedProblem(text, post, prompt))) for text in texts)
            return next((failed for _, failed in checked if failed is not None), texts)

        texts, reply = await self.question(context, unit.id, parse, forum_post=unit.forum_post)
        if isinstance(texts, Rejected) and not any(failed is None for _, failed in checked):
            return Result(drops=[Drop(texts.reason, reply)])
        if not checked:
            return Result(drops=[Drop("no problem in the post", unit.forum_post)])
        source = str(unit.extra.get(FORUM) or "forum")
        parents = (unit.id, *unit.parents)
        number = len({text for text, failed in checked if failed is None or failed.reason == OF_EXTRACTED[-1].reason})
        extra = {EXTRACTED_WITH: number} if number > 1 else {}
        kept = [text for text, failed in checked if failed is None]
        problems = [Problem.make(text, source=source, parents=parents, extra=extra) for text in kept]
        drops = [Drop(failed.reason, text) for text, failed in checked if failed is not None]
        return Result(list({problem.id: problem for problem in problems}.values()), drops)


def parse_problems(text: str) -> list[str] | Rejected:
    """Return the texts behind ``Problem i:``, which are numbered from 1; [] for "No problem"."""
    text = plain_labels(text)
    if text.strip(" \t\n.*`").lower() == "no problem":
        return []
    if not _PROBLEM.match(text):
        return Rejected("the reply is no list of problems")
    parts = _PROBLEM.split(text)[1:]
    if [int(number) for number in parts[::2]] != list(range(1, len(parts) // 2 + 1)):
        return Rejected("the problems of the reply are not numbered one by one")
    return [part.strip() for part in parts[1::2]]
