"""``failed_items``: how many units of a stage may fail before it counts as failed, alone and in an array of jobs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.engine import EngineError, WrongServer
from nemo_openmath.core.errors import ExitCode
from nemo_openmath.core.records import Manifest, Problem, read_drops, read_manifest
from nemo_openmath.core.records.failed import num_may_fail
from nemo_openmath.core.stage import Result, StageContext, UnitStage, register, stage_kinds

UNITS = 40


@dataclass(frozen=True)
class FragileConfig:
    units: PositiveInt = UNITS


class Fragile(UnitStage[FragileConfig, int]):
    """Fails at the units that ``poisoned`` names."""

    kind = "tests.fragile"
    Config = FragileConfig
    ports = {}
    record = Problem
    retries = 0
    poisoned: dict[int, Exception] = {}
    tried: list[int] = []

    def units(self, context: StageContext) -> Iterator[tuple[str, int]]:
        for number in range(self.config.units):
            yield Problem.make(f"What is {number}?").id, number

    async def process(self, unit: int, context: StageContext) -> Result:
        self.tried.append(unit)
        if unit in self.poisoned:
            raise self.poisoned[unit]
        return Result([Problem.make(f"What is {unit}?")])


@pytest.fixture(autouse=True)
def fragile(monkeypatch: pytest.MonkeyPatch) -> type[Fragile]:
    if Fragile.kind not in stage_kinds():
        register(Fragile)
    monkeypatch.setattr(Fragile, "poisoned", {})
    monkeypatch.setattr(Fragile, "tried", [])
    return Fragile


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "r.yaml"
    file.write_text(
        "name: r\nfailed_items: 0.05\npartitions: 4\nstages:\n  a: {run: tests.fragile}\n"
        "  b: {run: problems.near_duplicates, from: a}\n"
    )
    return file


def manifest(out: Path, stage: str = "a") -> Manifest | None:
    return read_manifest(out / stage)


def poison(*numbers: int) -> None:
    Fragile.tried.clear()
    Fragile.poisoned = {number: EngineError(f"no answer to {number}", retryable=True) for number in numbers}


def test_a_stage_finishes_without_few_failed_units_and_counts_them(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Above the share it ends with 3, and a higher one finishes it; below a lower one it has not finished."""
    out = tmp_path / "out"
    command = ["recipe", "run", str(recipe), "--output", str(out)]
    poison(3, 7, 9)
    assert run(command) is ExitCode.INCOMPLETE
    assert "3 units failed after 1 attempt, 3 by EngineError" in (text := " ".join(capsys.readouterr().err.split()))
    assert "and failed_items (0.05 of 40) allows 2; what finished is kept" in text
    assert manifest(out) is None
    assert not list(read_drops(out / "a")), "they are to be tried again"
    poison(3, 9)
    assert run(command) is ExitCode.OK
    assert sorted(Fragile.tried) == [3, 7, 9], "those that failed, first of all"
    finished = manifest(out)
    assert finished is not None
    assert finished.counts == {"units": 40, "records": 38, "merged": 0, "drops": 2, "failed": 2}
    assert finished.drops == {"failed after all attempts: EngineError": 2}
    assert sorted(drop.detail for _, drop in read_drops(out / "a")) == ["no answer to 3", "no answer to 9"]
    assert run(["records", "check", str(out / "a")]) is ExitCode.OK
    assert json.loads((out / "report.json").read_text())["drops"]["a"] == finished.drops
    poison(3)
    assert run(command) is ExitCode.OK
    assert not Fragile.tried, "it is finished"
    fewer = [*command, "failed_items=0.025"]
    assert run(fewer) is ExitCode.OK
    assert sorted(Fragile.tried) == [3, 9]
    again = manifest(out)
    assert again is not None
    assert again.counts["failed"] == 1
    assert again.fingerprint == finished.fingerprint
    below = manifest(out, "b")
    assert below is not None
    assert below.counts["units"] == 39, "what reads it is made again"
    capsys.readouterr()
    none = [*command, "stages.a.failed_items=0", "--from", "b"]
    assert run(none) is ExitCode.USER_ERROR
    reason = "stage 'a' is started (1 unit failed, and failed_items (0 of 40) allows none), and 'b' depends on it"
    assert reason in " ".join(capsys.readouterr().err.split())


def test_the_last_job_of_an_array_judges_all(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fragile: type[Fragile]
) -> None:
    """A job that is not the last one ends with 0 whatever failed, so that what waits for the array goes on waiting."""
    out = tmp_path / "out"
    command = ["recipe", "run", str(recipe), "--output", str(out), "--only", "a", "--shard"]
    poison(*range(0, 40, 10), 1)
    codes = [run([*command, f"{job}/4"]) for job in range(4)]
    assert codes == [ExitCode.OK] * 3 + [ExitCode.INCOMPLETE]
    assert "5 units failed" in (text := capsys.readouterr().err)
    assert "failed, which the last shard judges" in text
    with_failures = [job for job in range(4) if (out / f"a/failed-{job:05d}-of-00004.jsonl").exists()]
    assert len(with_failures) > 1
    last = with_failures[-1]
    poison(1)
    rest = [job for job in range(4) if job != last]
    assert [run([*command, f"{job}/4"]) for job in rest] == [ExitCode.OK] * 3
    assert manifest(out) is None, "not all failed units have been tried again: nobody judges"
    assert run([*command, f"{last}/4"]) is ExitCode.OK
    finished = manifest(out)
    assert finished is not None
    assert finished.counts["failed"] == 1
    assert finished.counts["units"] == UNITS
    assert run([*command, "0/4"]) is ExitCode.OK, "requeued: there is nothing to do"


def test_a_job_that_tries_again_is_waited_for_when_it_is_killed(recipe: Path, tmp_path: Path) -> None:
    """Its failed units are in no file while it runs: nobody takes its earlier end for the last word."""
    out = tmp_path / "out"
    command = ["recipe", "run", str(recipe), "--output", str(out), "--only", "a", "--shard"]
    poison(*range(40))
    assert run([*command, "0/4"]) is ExitCode.OK
    Fragile.poisoned = {number: KeyboardInterrupt() for number in range(40)}  # type: ignore[misc]
    assert run([*command, "0/4"]) is ExitCode.INTERRUPTED
    poison()
    assert [run([*command, f"{job}/4"]) for job in (1, 2, 3)] == [ExitCode.OK] * 3
    assert manifest(out) is None
    assert run([*command, "0/4"]) is ExitCode.OK
    finished = manifest(out)
    assert finished is not None
    assert finished.counts == {"units": 40, "records": 40, "merged": 0, "drops": 0}


def test_wrong_input_is_never_allowed(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    Fragile.poisoned = {3: WrongServer("HTTP 401: the key has expired")}
    assert run(["recipe", "run", str(recipe), "--output", str(out)]) is ExitCode.INCOMPLETE
    assert "HTTP 401: the key has expired), and failed_items allows no wrong input" in capsys.readouterr().err
    recipe.write_text("name: r\nstages:\n  a: {run: training.sft, failed_items: 0.1}\n")
    assert run(["recipe", "show", str(recipe)]) is ExitCode.USER_ERROR


@pytest.mark.parametrize(("share", "units", "number"), [(0.29, 100, 29), (0.001, 999, 0), (0.001, 1000, 1), (0, 9, 0)])
def test_a_share_is_the_decimal_number_that_was_written(share: float, units: int, number: int) -> None:
    assert num_may_fail(share, units) == number
