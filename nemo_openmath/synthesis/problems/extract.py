"""Extract the problems that the first posts of threads pose (paper section 2.1, step 1)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nemo_openmath.core.records import Drop, Problem, Thread
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.controls.cases import ExtractCase
from nemo_openmath.synthesis.problems.prompted import OnePromptConfig, PromptedStage, Rejected
from nemo_openmath.synthesis.problems.read import FORUM

_PROBLEM = re.compile(r"^Problem \d+:[ \t]*", re.M)


class Extract(PromptedStage[OnePromptConfig, Thread]):
    """Extract the problems that a thread poses. Equal texts of one thread are one problem. The source of each is the
    forum of its thread, where that is known. Their parents are the thread and the threads that it stands for
    (``problems.group_threads``)."""

    kind = "problems.extract"
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
        texts, reply = await self.question(context, unit.id, parse_problems, forum_post=unit.forum_post)
        if isinstance(texts, Rejected):
            return Result(drops=[Drop(texts.reason, reply)])
        if not texts:
            return Result(drops=[Drop("no problem in the post", unit.forum_post)])
        source = str(unit.extra.get(FORUM) or "forum")
        problems = [Problem.make(text, source=source, parents=(unit.id, *unit.parents)) for text in texts]
        return Result(list({problem.id: problem for problem in problems}.values()))


def parse_problems(text: str) -> list[str] | Rejected:
    """Return the texts behind ``Problem i:``, [] for "No problem"."""
    if text.rstrip(".").lower() == "no problem":
        return []
    parts = [part.strip() for part in _PROBLEM.split(text)[1:]]
    return parts if _PROBLEM.match(text) and all(parts) else Rejected("the reply is no list of problems")
