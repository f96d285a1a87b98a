"""The competition as a stage: the bank over problems, what it writes, and what is left after a kill."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import ChatTokenizer, Transcript, load_template
from nemo_openmath.competition.bank import TimeBank
from nemo_openmath.competition.batch import sameness
from nemo_openmath.competition.solver import SolverSettings
from nemo_openmath.competition.stage import Compete, CompeteConfig
from nemo_openmath.competition.trials import Means
from nemo_openmath.core.grader import Grade, Verdict
from nemo_openmath.core.records import Generation, Mode, Problem, RecordWriter, read_records
from nemo_openmath.core.records.notes import Submission, Timing
from nemo_openmath.core.records.store import write_records
from nemo_openmath.core.stage import StageContext
from nemo_openmath.inference.rollout import RolloutSettings
from tests.competition.timed import Say, TimedEngine, TimedGrader, TimedSandbox, boxed
from tests.support.services import Lent, stage_context
from tests.support.virtual_time import VirtualClock, in_virtual_time

PROBLEMS = [Problem.make(f"What is {n} plus {n}?", expected_answer=str(2 * n)) for n in range(1, 6)]


def say(prompt: str, number: int) -> Say:
    """Problem n takes n seconds; the fourth never ends; one of the solutions of the second is wrong."""
    n = next(n for n in range(1, 6) if f"What is {n} plus" in prompt)
    wrong = n == 2 and number % 2
    return Say(boxed("0" if wrong else str(2 * n), thought=f"try {number}"), 60.0 if n == 4 else float(n))


def compete(
    tokenizer: ChatTokenizer, folder: Path, *, name: str = "out", clock: VirtualClock | None = None, **settings: Any
) -> StageContext:
    given = folder / "problems"
    if not given.exists():
        write_records(given, PROBLEMS)
    solver = {"batch": 4, "agree": 3, "rollout": RolloutSettings(max_tokens=400)} | settings.pop("solver", {})
    config = CompeteConfig(engine="m", mode=Mode.COT, solver=SolverSettings(**solver), **settings)
    stage = Compete(config)
    stage.clock = clock or VirtualClock()
    lent = Lent(engine=TimedEngine(tokenizer, say), tokenizer=tokenizer, sandbox=TimedSandbox())
    lent._grading = TimedGrader()  # type: ignore[assignment]
    context = stage_context({"problems": [given]}, folder / name, services=lent)
    in_virtual_time(stage.run(context))
    return context


SETTINGS: dict[str, Any] = {"base_seconds": 10.0, "bank_seconds": 6.0, "reserve_seconds": 1.0}


def test_a_contest_writes_what_a_replay_needs(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    context = compete(tokenizer, tmp_path, **SETTINGS)
    records = list(read_records(context.output, Generation))
    submissions = [r for r in records if r.mode == Mode.COMPETITION]
    attempts = [r for r in records if r.mode == Mode.COT]
    assert [s.predicted_answer for s in submissions] == ["2", submissions[1].predicted_answer, "6", None, "10"]
    assert len(attempts) == 20 == len({a.id for a in attempts})
    for submission in submissions:
        mine = [a for a in attempts if submission.id in a.parents]
        assert sorted(a.sample for a in mine) == [0, 1, 2, 3]
        assert submission.completion_tokens == sum(a.completion_tokens for a in mine)
        timing = Timing.of(mine[0])
        assert timing is not None
        assert timing.points[-1][1] == mine[0].completion_tokens
    cut = [a for a in attempts if a.problem_id == PROBLEMS[3].id]
    assert {(a.finish, a.predicted_answer, Timing.of(a).cut) for a in cut} == {("time", None, True)}  # type: ignore[union-attr]
    assert Transcript.from_json(cut[0].transcript, ids=False).text.startswith("<think>"), "what there was is kept"
    notes = [Submission.of(s) for s in submissions]
    assert [round(n.seconds) for n in notes[:3]] == [1, 2, 3]
    assert [round(n.allowed or 0) for n in notes] == [10, 16, 16, 16, 16]
    assert notes[3].details["reason"] == "time"
    assert context.metrics["ended"] == {"agreement": 3, "finished": 1, "time": 1}
    assert (context.metrics["right"], context.metrics["problems"]) in ((3, 5), (4, 5))


def test_nothing_exceeds_the_total(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    context = compete(tokenizer, tmp_path, total_seconds=12.0, **(SETTINGS | {"reserve_seconds": 0.5}))
    notes = [Submission.of(r) for r in read_records(context.output, Generation) if r.mode == Mode.COMPETITION]
    assert sum(n.spent or 0 for n in notes) <= 12.0
    assert [round(n.allowed or 0, 1) for n in notes[:2]] == [10.0, 9.5]
    assert all(n.seconds <= (n.allowed or 0) + 1e-3 for n in notes)
    assert min(n.allowed or 0 for n in notes) >= 0.5 - 1e-6


def test_what_is_done_between_two_problems_is_paid_by_the_next(
    tokenizer: ChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, clock = RecordWriter.commit, VirtualClock()

    def slow(writer: RecordWriter, *args: Any, **options: Any) -> None:
        commit(writer, *args, **options)
        clock.offset += 2.0

    monkeypatch.setattr(RecordWriter, "commit", slow)
    context = compete(tokenizer, tmp_path, clock=clock, limit=3, **SETTINGS)
    notes = [Submission.of(r) for r in read_records(context.output, Generation) if r.mode == Mode.COMPETITION]
    assert [round(n.spent or 0) for n in notes] == [1, 2 + 2, 3 + 2]
    assert [round(n.allowed or 0) for n in notes] == [10, 16 - 2, 16 - 2]


CHILD = """
import sys
from pathlib import Path
import tests.competition.test_stage as test
from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.records import RecordWriter

commit, left = RecordWriter.commit, int(sys.argv[3])

def dying(writer, unit, records=(), drops=(), tokens=None):
    global left
    commit(writer, unit, records, drops, tokens)
    left -= 1
    if left == 0:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)

RecordWriter.commit = dying
test.compete(ChatTokenizer.load(sys.argv[1]), Path(sys.argv[2]), **test.SETTINGS)
"""


def test_a_contest_goes_on_after_a_kill_with_the_bank_that_it_had(
    tokenizer: ChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compete(tokenizer, tmp_path, name="whole", **SETTINGS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for kills in (2, 1):  # after the second problem, and after the third
        command = (sys.executable, "-c", CHILD, str(tokenizer.folder), str(tmp_path), str(kills))
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert child.returncode == -signal.SIGKILL, child.stderr
    stored = [r for r in read_records(tmp_path / "out", Generation) if r.mode == Mode.COMPETITION]
    assert len(stored) == 3
    banks: list[TimeBank] = []
    allowance = TimeBank.allowance

    def seen(bank: TimeBank, others: int = 0) -> float:
        banks.append(TimeBank(bank.base, bank.most, bank.saved, bank.total, bank.reserve, bank.spent))
        return allowance(bank, others)

    monkeypatch.setattr(TimeBank, "allowance", seen)
    context = compete(tokenizer, tmp_path, **SETTINGS)
    notes = [Submission.of(s) for s in stored]
    assert banks[0].spent == pytest.approx(sum(n.spent or 0 for n in notes), abs=1e-3)
    assert banks[0].saved == pytest.approx(30 - banks[0].spent, abs=1e-3)
    assert len(banks) == 2, "three problems were not solved again"

    def answers(folder: Path) -> list[tuple[str, str | None, float]]:
        records = [r for r in read_records(folder, Generation) if r.mode == Mode.COMPETITION]
        return [(r.problem_id, r.predicted_answer, round(Submission.of(r).allowed or 0, 1)) for r in records]

    assert answers(context.output) == answers(whole.output)
    for name in ("right", "problems", "ended", "reasons", "partial_answers"):
        assert context.metrics[name] == whole.metrics[name], name


def test_a_batch_of_copies_is_named_before_it_begins(tokenizer: ChatTokenizer) -> None:
    def line(temperature: float, *, mode: str = "tir", budgets: tuple[int, int] = (6, 6), same: bool = True) -> str:
        engine = TimedEngine(tokenizer, say, deterministic=same)
        rollout = RolloutSettings(temperature=temperature, budgets=budgets)
        return sameness(Means(engine, tokenizer, None, load_template(mode), rollout, VirtualClock()), 16, 1) or ""

    assert "15 of 16 solutions of each batch are copies" in line(0.0)
    assert "15 of 16" in line(0.0, mode="cot", budgets=(1, 8))
    assert line(0.6) == ""
    several = line(0.0, budgets=(1, 8))
    assert "different ones" in several
    assert "15 of 16" not in several
    assert "leaves to chance" in line(0.0, same=False)
    assert "warning" not in line(0.0, same=False)


def test_a_grader_that_hangs_leaves_the_verdict_open(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    async def never(self: Any, predicted: str | None, expected: str | None) -> Grade:
        await asyncio.sleep(1e9)
        raise AssertionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TimedGrader, "grade", never)
        context = compete(tokenizer, tmp_path, limit=1, **SETTINGS)
    records = list(read_records(context.output, Generation))
    assert {(r.verdict, r.verdict_reason) for r in records} == {(Verdict.UNKNOWN, "the grader did not answer in 10 s")}
    assert records[0].predicted_answer == "2"
