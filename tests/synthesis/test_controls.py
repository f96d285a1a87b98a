"""Known cases planted in stages: what is measured is what the model does, and nothing of them is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.engine import Completion, EngineError, Request
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.failed import FailedTally
from nemo_openmath.core.records.observations import Observation, read_observations
from nemo_openmath.core.records.store import write_records
from nemo_openmath.core.stage import CONTROLS, Stage
from nemo_openmath.demo.controls import make_cases
from nemo_openmath.demo.rates import TeacherConfig
from nemo_openmath.demo.teacher import StandInTeacher
from nemo_openmath.evaluation.controls import measured, scores, warnings
from nemo_openmath.evaluation.reports.build import build_report
from nemo_openmath.evaluation.reports.controls import StageControls
from nemo_openmath.evaluation.reports.view import RunView
from nemo_openmath.grading import GradingPool
from nemo_openmath.synthesis.controls.bank import load_bank
from nemo_openmath.synthesis.controls.cases import CASES
from nemo_openmath.synthesis.controls.plant import KEY
from nemo_openmath.synthesis.problems.answers import ExtractAnswers, ExtractAnswersConfig
from nemo_openmath.synthesis.problems.benchmark_problems import BenchmarkProblems
from nemo_openmath.synthesis.problems.classify import CATEGORIES
from nemo_openmath.synthesis.problems.decontaminate import DecontaminateConfig
from nemo_openmath.synthesis.problems.extract import Extract
from nemo_openmath.synthesis.problems.prompted import OnePromptConfig
from tests.support.services import Lent, stage_context
from tests.synthesis.controlled_stages import BENCHMARK, STAGES, UNITS
from tests.synthesis.expected_controls import Expected

ERROR = 0.2
RATES = TeacherConfig(
    extract_error=ERROR,
    classify_error=ERROR,
    convert_error=ERROR,
    answer_error=ERROR,
    decontaminate_error=ERROR,
    judge_error=ERROR,
)
CANDIDATES: dict[str, Any] = {"candidates": 2}
EXPECTED = Expected(
    RATES, DecontaminateConfig(**CANDIDATES), BenchmarkProblems(("b", problem) for problem in BENCHMARK)
)


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("bank") / "cases.jsonl"
    file.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in make_cases(1, UNITS)))
    return file


class Planting:
    """A stage with planted cases of the tiny world, over the same real units."""

    def __init__(self, folder: Path, tokenizer: ChatTokenizer, grading: GradingPool, bank: Path):
        self.folder, self.bank, self.grading = folder, bank, grading
        self.engine = StandInTeacher(tokenizer, RATES)
        self.tokenizer = tokenizer

    def stage(self, kind: str, **settings: Any) -> Stage:
        make, config, _ = STAGES[kind]
        settings = {"controls": 1.0, "control_cases": self.bank} | settings
        if kind == "problems.decontaminate":
            settings |= CANDIDATES
        return make(config(**settings))

    async def run(
        self, kind: str, output: Path, *, shard: int = 0, shards: int = 1, partitions: int = 1, **settings: Any
    ) -> Path:
        inputs = {}
        for port, records in STAGES[kind][2].items():
            inputs[port] = [self.folder / f"{kind}-{port}"]
            if not inputs[port][0].exists():
                write_records(inputs[port][0], records)
        services = Lent(engine=self.engine, tokenizer=self.tokenizer, grading=self.grading)
        context = stage_context(inputs, output, services=services, shard=shard, shards=shards, partitions=partitions)
        await self.stage(kind, **settings).run(context)
        return output


@pytest.fixture
def planting(tmp_path: Path, tokenizer: ChatTokenizer, grading: GradingPool, bank: Path) -> Planting:
    return Planting(tmp_path, tokenizer, grading, bank)


def lines(folder: Path) -> set[bytes]:
    """The records of a stage, as lines: those in the folder itself."""
    return {line for file in folder.glob("part-*.jsonl") for line in file.read_bytes().splitlines()}


@pytest.mark.parametrize("kind", STAGES)
async def test_the_rates_of_errors_are_recovered_and_nothing_planted_is_left(
    kind: str, planting: Planting, tmp_path: Path
) -> None:
    planted = await planting.run(kind, tmp_path / "planted")
    stage = planting.stage(kind)
    row = measured(planted, CASES[kind].classes)
    assert (row["planted"], row["cases"]) == (UNITS, UNITS)
    bank = load_bank(kind, planting.bank)
    for score in row["scores"]:
        value = EXPECTED.value(bank, score["class"], score["measure"])
        assert score["low"] <= value <= score["high"], (score, value)
    texts = [orjson.dumps(getattr(case, "forum_post", None) or getattr(case, "problem", None)) for case in bank]
    plain = await planting.run(kind, tmp_path / "plain", controls=0.0, control_cases=None)
    for file in planted.glob("*.jsonl"):
        content = file.read_bytes()
        assert KEY.encode() not in content, file
        assert not any(text in content for text in texts), file
    assert lines(planted) == lines(plain)
    assert not (plain / CONTROLS).exists()
    settings = planting.stage(kind, controls=0.0, control_cases=None).settings()
    assert not any(name.startswith("control") for name in settings)
    assert {"controls", "control_cases"} <= stage.settings().keys()


def observed(folder: Path) -> dict[str, Observation]:
    observations = list(read_observations(folder / CONTROLS))
    assert len({o.id for o in observations}) == len(observations), "one was done twice"
    return {o.id: o for o in observations}


async def test_each_planted_unit_is_done_once_by_jobs_of_an_array_and_after_a_kill(
    planting: Planting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four partitions: by one job, by two, and by one that dies in the middle and leaves torn lines."""
    kind, rate = "problems.classify", {"controls": 0.3}
    whole = tmp_path / "whole"
    for shard in range(2):
        await planting.run(kind, whole, shard=shard, shards=2, partitions=4, **rate)
    assert 0.3 * UNITS - 4 <= len(observed(whole)) <= 0.3 * UNITS + 4
    complete, asked = planting.engine.complete, 0

    async def dies(request: Request) -> Completion:
        nonlocal asked
        if (asked := asked + 1) > 200:
            raise RuntimeError("killed")
        return await complete(request)

    monkeypatch.setattr(planting.engine, "complete", dies)
    killed = tmp_path / "killed"
    with pytest.raises(RuntimeError):
        await planting.run(kind, killed, partitions=4, concurrency=1, **rate)
    before = observed(killed)
    assert 0 < len(before) < len(observed(whole))
    for file in killed.glob("_controls/*-of-00004.jsonl"):
        with file.open("ab") as torn:
            torn.write(b'{"id":"control-')
    monkeypatch.setattr(planting.engine, "complete", complete)
    await planting.run(kind, killed, partitions=4, **rate)
    assert observed(killed) == observed(whole)
    assert observed(killed).items() >= before.items()
    assert lines(killed) == lines(whole)


async def test_a_planted_unit_that_fails_is_named_and_keeps_no_stage_from_ending(
    planting: Planting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, complete = "problems.extract", planting.engine.complete
    posts = [case.unit("x").forum_post for case in load_bank(kind, planting.bank)]

    async def fails(request: Request) -> Completion:
        prompt = planting.tokenizer.decode(request.prompt)
        if any(post in prompt for post in posts):
            raise EngineError("the server went away", retryable=True)
        return await complete(request)

    monkeypatch.setattr(planting.engine, "complete", fails)
    folder = await planting.run(kind, tmp_path / "out", controls=0.05)
    row = measured(folder, CASES[kind].classes)
    assert (row["planted"], row["failed"], FailedTally.read(folder).total) == (0, UNITS // 20, 0)
    (sentence,) = warnings("extracted", row, 0.9)
    begin = f"extracted: {UNITS // 20} controls failed after all attempts by EngineError, in no measure (control-0000"
    assert sentence.startswith(begin)
    assert sentence.endswith(": the server went away)")


GOOD = {
    "stage": "problems.extract_answers",
    "id": "a",
    "problem": "p",
    "forum_discussions": "d",
    "expected_answer": None,
}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ([], "no JSON object"),
        (GOOD | {"stage": "problems.select"}, "stage 'problems.select' has no cases"),
        (GOOD | {"answer": "4"}, "unknown field 'answer'"),
        ({name: value for name, value in GOOD.items() if name != "expected_answer"}, "no 'expected_answer'"),
        (GOOD | {"expected_answer": 4}, "expected_answer is 4, not a text"),
        (GOOD | {"id": "a b"}, "id 'a b' is not made of"),
        ({"stage": "problems.classify", "id": "a", "problem": "p", "category": "easy"}, "category 'easy' is unknown"),
        ({"stage": "problems.extract", "id": "a", "forum_post": "p", "problems": "p"}, "not a list of texts"),
    ],
)
def test_a_case_that_is_none_is_refused_by_file_and_row(row: Any, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(orjson.dumps(GOOD) + b"\n" + orjson.dumps(row) + b"\n")
    with pytest.raises(UserError) as error:
        ExtractAnswers(ExtractAnswersConfig(controls=0.1, control_cases=file))
    assert (error.value.file, error.value.row) == (file, 2)
    assert problem in error.value.problem
    file.write_bytes(orjson.dumps(GOOD) + b"\n")
    with pytest.raises(UserError, match=r"has no case of problems\.extract"):
        Extract(OnePromptConfig(controls=0.1, control_cases=file))


def observation(number: int, case: str, known: str, outcome: str) -> Observation:
    return Observation(id=f"control-{number:06d}-{case}", case=case, known=known, outcome=outcome)


def test_the_cases_are_the_sample_and_a_low_share_is_warned_about() -> None:
    seen = [observation(n, f"p{n % 12}", "proof", "proof" if n % 12 else "answer") for n in range(36)]
    seen += [observation(n, f"a{n}", "answer", "answer") for n in range(36, 48)]
    sensitivity, specificity = scores(seen, ("proof",))
    assert (sensitivity["cases"], sensitivity["wrong"]) == (12, 1), "three times the same case is one case"
    assert sensitivity["value"] == pytest.approx(11 / 12)
    assert (sensitivity["low"], sensitivity["high"]) == pytest.approx((0.6152, 0.9979), abs=1e-4), "Clopper, Pearson"
    assert (specificity["value"], specificity["wrong"]) == (1.0, 0)
    row = {"planted": 48, "scores": [sensitivity, specificity]}
    (sentence,) = warnings("classified", row, 0.95)
    assert sentence.startswith("classified: sensitivity for 'proof' is 91.7% (61.5–99.8), 1 of 12 controls wrong")
    assert warnings("classified", row, 0.9) == []
    assert "too few units" in warnings("classified", {"planted": 0, "scores": []}, 0.9)[0]


def test_categories_are_those_of_the_stage() -> None:
    assert set(CASES["problems.classify"].classes) == set(CATEGORIES)


def test_the_report_shows_the_measures_and_what_came_out_wrong(tmp_path: Path) -> None:
    write_records(
        tmp_path / "stage" / CONTROLS,
        [observation(n, f"case{n}", "same", "same" if n % 4 else "different") for n in range(20)],
    )
    (file,) = (tmp_path / "stage" / CONTROLS).glob("part-*.jsonl")
    with file.open("ab") as running:
        running.write(b'{"id":"control-0000')  # read while it is written
    row = StageControls("leaks", "problems.decontaminate", 0.1, 0.9, measured(tmp_path / "stage", ("same",)), False)
    build_report(RunView("run", [], controls=[row]), tmp_path)
    (stored,) = orjson.loads((tmp_path / "report.json").read_bytes())["controls"]
    assert (stored["planted"], stored["scores"][0]["value"], stored["finished"]) == (20, 0.75, False)
    assert stored["warnings"][0].startswith("leaks: sensitivity for 'same' is 75.0%")
    page = (tmp_path / "report.html").read_text()
    assert "sensitivity for same" in page
    assert "20 controls of 20 cases, so far" in page
    assert all(f'<th scope="row">case{n}</th>' in page for n in range(0, 20, 4))
