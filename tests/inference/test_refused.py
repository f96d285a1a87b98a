"""What the engine refuses: one refused unit is counted, an engine that refuses every request ends the stage."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import ChatTokenizer, Transcript
from nemo_openmath.cli.main import main
from nemo_openmath.competition.solver import SolverSettings
from nemo_openmath.competition.stage import Compete, CompeteConfig
from nemo_openmath.core.engine import ContextOverflow, EngineError, Finish, InvalidRequest, WrongServer
from nemo_openmath.core.errors import Incomplete, UserError
from nemo_openmath.core.records import Generation, Group, Problem, read_drops, read_records
from nemo_openmath.core.records.store import write_records
from nemo_openmath.core.stage import Refusals, Stage, StageContext
from nemo_openmath.evaluation.stage import ComputeMetrics, MetricsConfig
from nemo_openmath.grading import GradingPool, grade_file
from nemo_openmath.inference.rollout.stage import Generate, GenerateConfig
from nemo_openmath.recipe.generate import summary
from nemo_openmath.synthesis.genselect.groups import Groups, GroupsConfig
from nemo_openmath.synthesis.genselect.select import GenSelect, GenSelectConfig
from nemo_openmath.synthesis.judge.stage import JudgeAnswers, JudgeConfig
from nemo_openmath.synthesis.problems.classify import Classify, ClassifyConfig
from nemo_openmath.synthesis.solutions.filters import Filter, FilterConfig
from nemo_openmath.synthesis.solutions.grade import GradeConfig, GradeSolutions
from nemo_openmath.synthesis.solutions.label import Hardness, HardnessConfig
from nemo_openmath.synthesis.solutions.summarize import Summarize, SummarizeConfig
from tests.support.engines import ScriptedEngine
from tests.support.services import Lent, stage_context

PROBLEMS = [Problem.make(f"What is {n} plus {n}?", expected_answer=str(2 * n)) for n in range(5)]
LONG = Problem.make("What is 7 plus 7? " + "Think well. " * 9, expected_answer="14")


def saying(
    tokenizer: ChatTokenizer, text: str, check: Callable[[str], None] = lambda _: None, finish: Finish = Finish.STOP
) -> ScriptedEngine:
    """An engine that says ``text``, except where ``check`` raises for the text of a prompt."""

    def answer(prompt: str) -> str:
        check(prompt)
        return text

    return ScriptedEngine(tokenizer, answer, finish)


def fits(text: str) -> None:
    if "Think well." in text:
        raise ContextOverflow(90, 60)


def poisoned(text: str) -> None:
    if "Think well." in text:
        raise InvalidRequest("HTTP 400: flagged by the content filter")


def refuses(text: str) -> None:
    raise InvalidRequest("HTTP 400: this model has no parameter 'top_k'")


def has_moved(text: str) -> None:
    raise WrongServer("HTTP 404: Not Found")


def run(stage: Stage, engine: ScriptedEngine | None, output: Path, **inputs: list[Any]) -> StageContext:
    ports: dict[str, list[Path]] = {port.removesuffix("?"): [] for port in stage.ports}
    for port, given in inputs.items():
        folder = output.parent / f"{output.name}-{port}"
        write_records(folder, given)
        ports[port] = [folder]

    async def work() -> StageContext:
        tokenizer = None if engine is None else engine.tokenizer
        lent = Lent(engine=engine, tokenizer=tokenizer, sandbox=object(), grading=pool)  # no code is run
        context = stage_context(ports, output, services=lent)
        await stage.run(context)
        return context

    with GradingPool(workers=1) as pool:
        return asyncio.run(work())


def test_python_that_a_model_does_not_call_is_said_and_named(
    tokenizer: ChatTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that was not trained to call code writes a fence, and makes its output up."""
    said = {
        "fence": "So:\n```python\nprint(1)\n```\n```output\n2\n```\n\\boxed{2}",
        "none": "```\n1+1\n```\n\\boxed{2}",
    }
    caplog.set_level(logging.INFO, logger="nemo_openmath")
    for name, text in said.items():
        caplog.clear()
        engine = saying(tokenizer, text)
        made = run(Generate(GenerateConfig(mode="tir", samples=2)), engine, tmp_path / name, problems=PROBLEMS[1:2])
        assert made.metrics.get("solutions_with_uncalled_code", 0) == (2 if name == "fence" else 0)
        assert ("2 of 2 solutions wrote Python that nothing ran" in caplog.text) == (name == "fence")
        graded = [g.with_(verdict="equal", predicted_answer="2") for g in read_records(tmp_path / name, Generation)]
        run(Filter(FilterConfig()), None, tmp_path / f"{name}-kept", generations=graded)
        reasons = {drop.reason for _, drop in read_drops(tmp_path / f"{name}-kept")}
        assert reasons == {"its code was not called" if name == "fence" else "no code was run"}


def test_what_could_not_be_tried_is_in_no_share(
    tokenizer: ChatTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = saying(tokenizer, "It is \\boxed{2}.", poisoned)
    run(Generate(GenerateConfig()), engine, tmp_path / "solutions", problems=[*PROBLEMS, LONG])
    capsys.readouterr()
    assert (
        "; 5 of 5 solutions have an answer; 1 of 5 are right (20.0%, 95% interval 0.5–71.6 over 5 problems)"
        in summary(tmp_path)
    )
    (part,) = (tmp_path / "solutions").glob("part-*.jsonl")
    with pytest.raises(SystemExit, match="0"):
        main(["grade", str(part), "--output", str(tmp_path / "graded.jsonl")])
    assert "right: 1 of 5 (20.0%, 95% interval 0.5–71.6 over 5 problems); " in capsys.readouterr().out


@pytest.mark.parametrize("finish", [Finish.STOP, Finish.LENGTH])
def test_a_summary_that_was_cut_off_is_none(tokenizer: ChatTokenizer, tmp_path: Path, finish: Finish) -> None:
    """It would teach to end a text in the middle of a sentence."""
    engine = saying(tokenizer, "It is \\boxed{2}.")
    run(Generate(GenerateConfig()), engine, tmp_path / "g", problems=PROBLEMS[1:2])
    solutions = [g.with_(verdict="equal", predicted_answer="2") for g in read_records(tmp_path / "g", Generation)]
    writer = saying(tokenizer, "So \\boxed{2}, and then<|im_end|>", finish=finish)
    run(Summarize(SummarizeConfig()), writer, tmp_path / "s", generations=solutions, problems=PROBLEMS[1:2])
    texts = [Transcript.from_json(g.transcript).summary for g in read_records(tmp_path / "s", Generation)]
    assert texts == (["So \\boxed{2}, and then"] if finish is Finish.STOP else [])
    reasons = [drop.reason for _, drop in read_drops(tmp_path / "s")]
    assert reasons == ([] if finish is Finish.STOP else ["no summary was finished"])


@pytest.mark.parametrize("check", [fits, poisoned])
def test_a_problem_that_cannot_be_tried_is_counted_apart(
    check: Callable[[str], None], tokenizer: ChatTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Through generation, grading, groups, selection and metrics: said with count and example, in no mean."""
    caplog.set_level(logging.INFO, logger="nemo_openmath")
    engine = saying(tokenizer, "It is \\boxed{2}.", check)
    benchmark = [*PROBLEMS, LONG]
    made = run(Generate(GenerateConfig(samples=2)), engine, tmp_path / "g", problems=benchmark)
    assert made.metrics["untried"] == 2
    assert LONG.id in made.metrics["untried_example"]
    solutions = list(read_records(tmp_path / "g", Generation))
    assert [g.problem_id for g in solutions if not g.tried] == [LONG.id] * 2
    graded = run(GradeSolutions(GradeConfig()), None, tmp_path / "graded", generations=solutions)
    assert {k: v for k, v in graded.metrics.items() if k in ("equal", "not_equal", "untried")} == {
        "equal": 2,
        "not_equal": 8,
        "untried": 2,
    }
    rows = list(read_records(tmp_path / "graded", Generation))
    assert {g.verdict for g in rows if not g.tried} == {"unknown"}
    said = grade_file(tmp_path / "g" / "part-00000-of-00001.jsonl", tmp_path / "graded.jsonl")
    assert said == {
        "equal": 2, "not_equal": 8, "unknown": 2, "timeout": 0, "total": 12, "no_answer": 2, "untried": 2
    }  # fmt: skip
    run(
        Groups(GroupsConfig(sizes=(2, 2), groups=1, mixed=False)),
        None,
        tmp_path / "groups",
        problems=benchmark,
        generations=rows,
    )
    groups = list(read_records(tmp_path / "groups", Group))
    chooser = saying(tokenizer, "Judgment: 0")
    run(GenSelect(GenSelectConfig()), chooser, tmp_path / "chosen", groups=groups)
    chosen = list(read_records(tmp_path / "chosen", Generation))
    measured = run(
        ComputeMetrics(MetricsConfig(checkpoint="base", ks=[1, 2])), None, tmp_path / "m",
        generations=rows + chosen, problems=benchmark,
    )  # fmt: skip
    apart = [
        {"checkpoint": "base", "mode": m, "problems": 1, "of": 6, "example": LONG.id} for m in ("cot", "genselect")
    ]
    assert measured.metrics["apart"] == apart
    assert set(measured.metrics["undecided"].values()) == {0}
    assert {row["problems"] for row in measured.metrics["results"]} == {5}
    assert measured.metrics["results"][0]["value"] == pytest.approx(1 / 5)
    assert "cot: 1 of 6 problems are in no mean" in caplog.text


def test_candidates_that_do_not_fit_are_counted_apart(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    def group(problem: Problem, filler: str) -> Group:
        return Group.make(
            problem.id, ("a", "b"), turn=0, problem=problem.problem, summaries=(filler, filler), answers=("0", "1"),
            correct=(True, False), expected_answer="0", k=2,
        )  # fmt: skip

    groups = [group(PROBLEMS[0], "so"), group(PROBLEMS[1], "Think well.")]
    engine = saying(tokenizer, "Judgment: 0", fits)
    run(GenSelect(GenSelectConfig()), engine, tmp_path / "s", groups=groups)
    chosen = list(read_records(tmp_path / "s", Generation))
    measured = run(ComputeMetrics(MetricsConfig()), None, tmp_path / "m", generations=chosen, problems=PROBLEMS[:2])
    assert measured.metrics["apart"] == [
        {"checkpoint": "model", "mode": "genselect", "problems": 1, "of": 2, "example": PROBLEMS[1].id}
    ]
    run(GenSelect(GenSelectConfig(keep_correct=True)), engine, tmp_path / "t", groups=groups)
    assert [drop.reason for _, drop in read_drops(tmp_path / "t")] == ["prompt longer than the context"]


def test_an_untried_generation_says_nothing_of_hardness_and_is_dropped_by_name(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    run(Generate(GenerateConfig()), saying(tokenizer, "\\boxed{2}", fits), tmp_path / "g", problems=[PROBLEMS[1], LONG])
    (right,) = (g for g in read_records(tmp_path / "g", Generation) if g.tried)
    (untried,) = (g for g in read_records(tmp_path / "g", Generation) if not g.tried)
    right = right.with_(predicted_answer="2", verdict="equal")
    untried = untried.with_(id="other", problem_id=right.problem_id)
    run(Hardness(HardnessConfig()), None, tmp_path / "h", problems=[PROBLEMS[1]], generations=[right, untried])
    assert [p.pass_rate for p in read_records(tmp_path / "h", Problem)] == [1.0]
    run(Filter(FilterConfig()), None, tmp_path / "f", generations=[right, untried])
    assert [drop.reason for _, drop in read_drops(tmp_path / "f")] == ["prompt longer than the context"]


GENERATIONS = [
    Generation(
        id=p.id, problem_id=p.id, mode="cot", model="m", sample=0, transcript={}, finish="stop",
        predicted_answer="x", expected_answer="y", verdict="unknown",
    )
    for p in PROBLEMS
]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "inputs"),
    [
        (Generate(GenerateConfig()), {"problems": PROBLEMS}),
        (Generate(GenerateConfig(samples=4, least=2, count="agreement")), {"problems": PROBLEMS}),
        (Classify(ClassifyConfig()), {"problems": PROBLEMS}),
        (JudgeAnswers(JudgeConfig()), {"generations": GENERATIONS, "problems": PROBLEMS}),
        (Compete(CompeteConfig(engine="m", mode="cot", solver=SolverSettings(batch=4))), {"problems": PROBLEMS}),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_an_engine_that_refuses_everything_ends_the_stage_and_leaves_nothing(
    stage: Stage, inputs: dict[str, list[Any]], tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"refused every .*no parameter 'top_k'.*settings right"):
        run(stage, saying(tokenizer, "", refuses), tmp_path / "out", **inputs)
    assert not [line for part in tmp_path.glob("out/journal-*") for line in part.read_bytes().splitlines()]


@pytest.mark.parametrize("check", [refuses, has_moved])
def test_the_stage_ends_as_soon_as_it_is_sure(
    check: Callable[[str], None], tokenizer: ChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refusals, "SURE", 3)
    engine = saying(tokenizer, "", check)
    with pytest.raises(UserError, match=r"refused every request \(3\), the first with: HTTP 40"):
        run(Generate(GenerateConfig(samples=50, concurrency=1)), engine, tmp_path / "out", problems=PROBLEMS)
    assert len(engine.requests) <= 4


def test_judging_goes_on_where_one_question_is_refused(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    more = GENERATIONS[0].with_(id="long", problem_id=LONG.id)
    engine = saying(tokenizer, "Judgement: Yes", poisoned)
    inputs = {"generations": [more, *GENERATIONS], "problems": [LONG, *PROBLEMS]}
    assert run(JudgeAnswers(JudgeConfig()), engine, tmp_path / "j", **inputs).metrics["refused"] == 1
    verdicts = {g.id: g.verdict for g in read_records(tmp_path / "j", Generation)}
    assert verdicts.pop("long") == "unknown"
    assert set(verdicts.values()) == {"equal"}


def test_a_server_that_is_away_is_still_tried_again(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    def away(text: str) -> None:
        raise EngineError("connection lost", retryable=True)

    with pytest.raises(Incomplete, match="connection lost"):
        run(Generate(GenerateConfig()), saying(tokenizer, "", away), tmp_path / "out", problems=PROBLEMS)
