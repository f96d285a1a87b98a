"""What the author of a stage did wrong is said with the stage, the unit and the remedy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode
from nemo_openmath.core.records import Problem
from nemo_openmath.core.stage import Result, StageContext, StageDefect, UnitStage, kinds, register
from tests.support.services import run_stage

ONE = [Problem.make("1+1?")]


@dataclass(frozen=True)
class NoSettings:
    """None."""


class Faulty(UnitStage[NoSettings, Problem]):
    """A stage with the fault that a problem names."""

    kind = "tests.faulty"
    Config = NoSettings
    ports = {"problems": "problems", "more?": "further problems"}
    takes = {"problems": "Problem", "more": "Problem"}
    record = Problem
    reads: Sequence[str] = ("problems", "more")

    def units(self, context: StageContext) -> Iterable[tuple[str, Problem]]:
        return ((problem.id, problem) for port in self.reads for problem in context.read(port, Problem))

    async def process(self, unit: Problem, context: StageContext) -> Result:
        if unit.problem == "1+1?":
            return None  # type: ignore[return-value]
        raise ValueError("bad answer")


async def test_a_port_that_is_not_declared(tmp_path: Path) -> None:
    """One that may be left out, and is, reads as empty."""
    stage = Faulty(NoSettings())
    assert (await run_stage(stage, tmp_path / "empty", problems=[])).records == []
    stage.reads = ("problem",)
    with pytest.raises(StageDefect, match=r"input 'problem' is not declared; .* \(declared: problems, more\)"):
        await run_stage(stage, tmp_path, problems=ONE)


async def test_a_unit_without_a_result(tmp_path: Path) -> None:
    with pytest.raises(StageDefect, match=r"process\(\) returned None and not a Result; return Result\(") as error:
        await run_stage(Faulty(NoSettings()), tmp_path, problems=ONE)
    assert error.value.__notes__ == [f"unit {ONE[0].id} of tests.faulty"]


def test_the_command_names_stage_and_unit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "_KINDS", {"tests.faulty": Faulty})
    (tmp_path / "rows.jsonl").write_text('{"problem": "2+2?"}\n')
    file, out = tmp_path / "r.yaml", tmp_path / "out"
    file.write_text(
        "name: r\nstages:\n  a: {run: problems.read_problems, from: ./rows.jsonl}\n  b: {run: tests.faulty, from: a}\n"
    )
    assert run(["recipe", "run", str(file), "--output", str(out)]) is ExitCode.FAILURE
    unit = Problem.make("2+2?").id
    said = f"defect in stage 'b' (tests.faulty), unit {unit} of tests.faulty: ValueError: bad answer (--debug"
    assert said in capsys.readouterr().err


def test_two_stages_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "_KINDS", {})
    other = type("Other", (Faulty,), {})
    register(Faulty)
    register(Faulty)
    with pytest.raises(ValueError, match=r"\.Faulty and .*\.Other are both called 'tests\.faulty'; give one of them"):
        register(other)
