"""Extract the problems that the first posts of threads pose (paper section 2.1, step 1)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nemo_openmath.core.records import Drop, Problem, Thread
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.controls.cases import ExtractCase
from nemo_openmath.synthesis.problems.prompted import PromptedConfig, PromptedStage
from nemo_openmath.synthesis.problems.read import FORUM

_PROBLEM = re.compile(r"^Problem \d+:[ \t]*", re.M)


class Extract(PromptedStage[PromptedConfig, Thread]):
    """Extract the problems that a thread poses. Equal texts of one thread are one problem. The source of each is the
    forum of its thread, where that is known."""

    kind = "problems.extract"
    case = ExtractCase
    prompt = "extract-problems"
    Config = PromptedConfig
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
        if texts is None:
            return Result(drops=[Drop("unparsable answer", reply)])
        if not texts:
            return Result(drops=[Drop("no problem in the post", unit.forum_post)])
        source = str(unit.extra.get(FORUM) or "forum")
        problems = [Problem.make(text, source=source, parents=(unit.id,)) for text in texts]
        return Result(list({problem.id: problem for problem in problems}.values()))


def parse_problems(text: str) -> list[str] | None:
    """Return the texts behind ``Problem i:``, [] for "No problem", and None for anything else."""
    if text.rstrip(".").lower() == "no problem":
        return []
    if not _PROBLEM.match(text):
        return None
    parts = [part.strip() for part in _PROBLEM.split(text)[1:]]
    return parts if all(parts) else None
