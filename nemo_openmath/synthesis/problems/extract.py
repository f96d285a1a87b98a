"""Problems out of the first posts of threads (paper section 2.1, step 1)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nemo_openmath.core.records import Drop, Problem, Thread
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.problems.prompted import PromptedConfig, PromptedStage

_PROBLEM = re.compile(r"^Problem \d+:[ \t]*", re.M)


class Extract(PromptedStage[PromptedConfig, Thread]):
    """Thread -> the problems it poses, in order."""

    kind = "problems.extract"
    prompt = "extract-problems"
    Config = PromptedConfig
    ports = {"threads": "forum threads"}
    takes = {"threads": "Thread"}
    record = Problem

    def units(self, context: StageContext) -> Iterable[tuple[str, Thread]]:
        return ((thread.id, thread) for thread in context.read("threads", Thread))

    async def process(self, unit: Thread, context: StageContext) -> Result:
        found, answer = await self.question(context, unit.id, parse_problems, forum_post=unit.forum_post)
        if found is None:
            return Result(drops=[Drop("unparsable answer", answer)])
        if not found:
            return Result(drops=[Drop("no problem in the post", unit.forum_post)])
        problems = {p.id: p for p in (Problem.make(text, source="forum", parents=(unit.id,)) for text in found)}
        return Result(list(problems.values()))


def parse_problems(text: str) -> list[str] | None:
    """Texts of ``Problem i: ...``; [] for "No problem"; None for anything else."""
    if text.rstrip(".").lower() == "no problem":
        return []
    if not _PROBLEM.match(text):
        return None
    parts = [part.strip() for part in _PROBLEM.split(text)[1:]]
    return parts if all(parts) else None
