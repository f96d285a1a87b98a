"""Count where the answers of a stage's problems are from, and show examples."""

from __future__ import annotations

from collections import Counter

from nemo_openmath.core.records import Problem
from nemo_openmath.core.records.answer_note import AnswerOrigin, origin_of
from nemo_openmath.core.records.store import read_file
from nemo_openmath.core.stage import StageContext


def report_origins(context: StageContext) -> None:
    """Count the problems of this process by where their answers are from, and show examples of new answers."""
    origins: Counter[AnswerOrigin] = Counter()
    unreached, examples = 0, dict[AnswerOrigin, tuple[str, str]]()
    for file in context.own_files():
        for problem in read_file(file, Problem) if file.exists() else ():
            origins[origin := origin_of(problem)] += 1
            note = problem.extra["answer"]
            unreached += note.get("why", "").startswith("unreached")
            if origin is not AnswerOrigin.FORUM:
                text = f"{problem.problem:.200} {note['forum']!r} -> {problem.expected_answer!r}, {note.get('why', '')}"
                examples[origin] = min(examples.get(origin, (problem.id, text)), (problem.id, text))
    context.metrics |= {f"answers_{origin}": origins[origin] for origin in AnswerOrigin if origins[origin]}
    context.metrics |= {"answers_unreached": unreached} if unreached else {}
    context.metrics |= {f"example_{origin}": text for origin, (_, text) in sorted(examples.items())}
