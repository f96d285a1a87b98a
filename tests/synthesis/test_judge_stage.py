"""The judging stage over real folders: open verdicts get one, decided ones stay, agreement is a fact of the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.records import Generation, Problem
from nemo_openmath.core.records.store import read_records, write_records
from nemo_openmath.demo.teacher import StandInTeacher
from nemo_openmath.synthesis.judge import JudgeAnswers
from nemo_openmath.synthesis.judge.stage import JudgeConfig
from tests.support.services import Lent, stage_context

PROBLEM = Problem.make("What is 3 + 4?")


def generation(number: int, predicted: str | None, verdict: str) -> Generation:
    return Generation(
        id=f"g{number}",
        problem_id=PROBLEM.id,
        mode="cot",
        model="m",
        sample=number,
        transcript={},
        finish="stop",
        expected_answer="7",
        predicted_answer=predicted,
        verdict=verdict,
        verdict_reason="symbolic",
    )


async def run(
    tokenizer: ChatTokenizer, folder: Path, *, shards: int = 1, **config: Any
) -> tuple[dict[str, Generation], dict[str, Any]]:
    graded = [
        generation(0, "7", "unknown"),
        generation(1, "8", "timeout"),
        generation(2, None, "unknown"),
        generation(3, "8", "equal"),  # a symbolic verdict is never overruled
        generation(4, "9", "not_equal"),
    ]
    folder.mkdir(exist_ok=True)
    write_records(folder / "problems", [PROBLEM])
    write_records(folder / "graded", graded)
    inputs = {"generations": [folder / "graded"], "problems": [folder / "problems"]}
    output = folder / "judged"
    lent = Lent(engine=StandInTeacher(tokenizer), tokenizer=tokenizer)
    for shard in range(shards):
        context = stage_context(inputs, output, services=lent, seed=7, shard=shard, shards=shards)
        await JudgeAnswers(JudgeConfig(votes=3, **config)).run(context)
    return {g.id: g for g in read_records(output, Generation)}, context.metrics


async def test_open_verdicts_are_decided(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    judged, facts = await run(tokenizer, tmp_path)
    assert {k: g.verdict for k, g in judged.items()} == {
        "g0": "equal",
        "g1": "not_equal",
        "g2": "not_equal",
        "g3": "equal",
        "g4": "not_equal",
    }
    assert judged["g0"].verdict_reason == "identical"
    assert judged["g1"].verdict_reason.startswith("judged ")
    assert judged["g4"].verdict_reason == "symbolic"
    assert facts["judging"]["requests"] == 3


async def test_everything_measures_agreement(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    judged, facts = await run(tokenizer, tmp_path, everything=True, more_engines=("another",))
    assert judged["g3"].verdict == "equal"
    report = facts["judging"]
    assert report["table"]["equal/not_equal"] == 1
    assert report["rate"] == 0.5
    assert [d["predicted_answer"] for d in report["disagreements"]] == ["8"]
    assert report["requests"] == 18


async def test_agreement_survives_a_restart(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    _, facts = await run(tokenizer, tmp_path, everything=True)
    before = facts["judging"]
    output = tmp_path / "judged"
    with (output / "judgements-00000-of-00001.jsonl").open("ab") as file:
        file.write(b'{"unit": "torn')
    inputs = {"generations": [tmp_path / "graded"], "problems": [tmp_path / "problems"]}
    lent = Lent(engine=StandInTeacher(tokenizer), tokenizer=tokenizer)
    context = stage_context(inputs, output, services=lent, seed=7)
    await JudgeAnswers(JudgeConfig(votes=3, everything=True)).run(context)  # nothing is left to judge
    assert context.metrics["judging"] == before
    assert orjson.loads((output / "agreement.json").read_bytes()) == before


async def test_a_torn_line_costs_no_judgement_behind_it(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    _, whole = await run(tokenizer, tmp_path / "whole", everything=True)
    (output := tmp_path / "torn" / "judged").mkdir(parents=True)
    (output / "judgements-00000-of-00001.jsonl").write_bytes(b'{"unit": "g0", "probl')
    _, facts = await run(tokenizer, tmp_path / "torn", everything=True)
    assert facts["judging"] == whole["judging"]


async def test_agreement_of_shards_is_that_of_the_whole(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    _, facts = await run(tokenizer, tmp_path / "whole", everything=True)
    judged, _ = await run(tokenizer, tmp_path / "shards", everything=True, shards=2)
    assert len(judged) == 5
    assert len(list((tmp_path / "shards" / "judged").glob("judgements-*.jsonl"))) == 2
    assert orjson.loads((tmp_path / "shards" / "judged" / "agreement.json").read_bytes()) == facts["judging"]


async def test_judges_overrule_where_a_recipe_says_so(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    judged, _ = await run(tokenizer, tmp_path, everything=True, overrule=True)
    assert judged["g3"].verdict == "not_equal"
    assert judged["g3"].verdict_reason == "judged 0 to 3; the grader: equal, symbolic"
    assert judged["g4"].verdict_reason == "symbolic", "both agree"
    assert {name: g.extra.get("judged") for name, g in judged.items()} == {
        "g0": None,  # identical: nobody was asked
        "g1": "not_equal",
        "g2": None,
        "g3": "not_equal",
        "g4": "not_equal",
    }
    with pytest.raises(ValueError, match="everything"):
        JudgeConfig(overrule=True)
