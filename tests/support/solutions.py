"""A made folder of a run with solutions for the browser of solutions: real records, written fast."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.core.records import Generation, Group, Problem
from nemo_openmath.core.records.notes import Selection
from nemo_openmath.core.records.store import write_records

HOSTILE = "</textarea></script><script>document.title='taken'</script><img src=x onerror=alert(1)>"


def transcript(problem: str, text: str, finished: bool = True) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": problem}],
        "pieces": [{"author": "model", "text": text, "ids": None}],
        "ended": finished,
    }


def solution(name: str, problem: Problem, text: str = "", **values: Any) -> Generation:
    """A solution whose fields are those of a graded right one, but for ``values``."""
    given = {
        "mode": "cot",
        "model": "m",
        "sample": 0,
        "finish": "stop",
        "predicted_answer": "3",
        "expected_answer": "3",
        "verdict": "equal",
        "completion_tokens": 10,
    }
    return Generation(id=name, problem_id=problem.id, transcript=transcript(problem.problem, text), **(given | values))


def make_run(folder: Path) -> dict[str, Any]:
    """Write stages ``problems``, ``graded``, ``groups`` and ``selected``; return the records by name."""
    sum_, root = Problem.make("What is the Sum of $1$ and\n $2$?"), Problem.make("Solve \\(x^2 = 4\\).")
    right = solution("g-right", sum_, "<think>so $\\frac{6}{2}$</think>It is \\boxed{3}.")
    wrong = solution("g-wrong", sum_, HOSTILE, predicted_answer=HOSTILE, verdict="not_equal", completion_tokens=900)
    cut = solution("g-cut", root, "long", mode="tir", finish="length", verdict="unknown", completion_tokens=500)
    group = Group.make(
        sum_.id, ("g-right", "g-wrong"), k=2, problem=sum_.problem, summaries=("a", "b"), answers=("3", "4")
    )
    note = Selection(group=group.id, chosen="g-right", candidates=2, turn=0).to_extra()
    chosen = solution("s-1", sum_, "Judgment: 0", mode="genselect", extra=note)
    write_records(folder / "problems", [sum_, root])
    write_records(folder / "graded", [right, wrong, cut])
    write_records(folder / "groups", [group])
    write_records(folder / "selected", [chosen])
    row = {
        "unit": "g-cut",
        "problem": root.problem,
        "predicted_answer": "3",
        "expected_answer": "3",
        "symbolic": "unknown",
        "symbolic_reason": "not alike",
        "judged": "equal",
        "judged_reason": "judged 1 to 0, 1 invalid",
        "votes": [True, None],
        "asked": 4,
        "invalid": f"I cannot say {HOSTILE}",
    }
    said = row | {"unit": "g-right", "votes": [True], "invalid": None, "judged_reason": "judged 1 to 0"}
    said |= {"replies": [f"Both are $\\frac{{6}}{{2}}$ {HOSTILE}\nJudgement: Yes"]}
    lines = [orjson.dumps(line) for line in (row, said)]  # the first of an earlier version, which kept no replies
    (folder / "graded" / "judgements-00000-of-00001.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return {"sum": sum_, "root": root, "group": group}


def write_many(folder: Path, count: int, problems: int) -> list[tuple[int, str, int]]:
    """Write ``count`` narrow lines of solutions of ``problems`` problems into one stage, and a stage of the problems.
    Return (number of the problem, verdict, tokens) of each. The solutions have no texts."""
    rng = random.Random(0)
    made = [Problem.make(f"Problem number {i}: find $x_{{{i}}}$.") for i in range(problems)]
    (folder / "many").mkdir(parents=True)
    (folder / "problems").mkdir()
    with (folder / "problems" / "part-00000-of-00001.jsonl").open("wb") as file:
        file.writelines(orjson.dumps({"id": p.id, "problem": p.problem}) + b"\n" for p in made)
    rows = []
    with (folder / "many" / "part-00000-of-00001.jsonl").open("wb") as file:
        for i in range(count):
            at, verdict, tokens = rng.randrange(problems), rng.choice(("equal", "not_equal")), rng.randrange(32768)
            rows.append((at, verdict, tokens))
            row = {"id": f"generation-{i:032x}", "problem_id": made[at].id, "mode": "cot", "model": "m", "sample": i}
            row |= {"finish": "stop", "expected_answer": "3", "predicted_answer": "4", "verdict": verdict}
            file.write(orjson.dumps(row | {"completion_tokens": tokens, "transcript": {}}) + b"\n")
    return rows
