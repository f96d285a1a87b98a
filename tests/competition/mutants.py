"""Break each bound of the competition's solver, one at a time, and see it caught: ``python -m tests.competition.mutants``.

A mutant is a change of one place of the code. It names what has to catch it: simulated contests (``chaos``), or a file
of tests. Each of these has to fail on the mutant, and all of them hold on the code as it is. The code is changed in a
copy of the repository.

    python -m tests.competition.mutants [WORD...]    only mutants whose name, file or catcher has one of the words

Some eight minutes on one core.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parents[2]
CHAOS, LIVE = "chaos", "test_lab_live"
CONTESTS = 300
PATIENCE = 600.0  # seconds; a mutant that hangs is caught as well
_LIVE_POLICY = "decide(\n                self._settings,"
_LIVE_DECIDE = '__import__("dataclasses").replace(self._settings, {})'


@dataclass(frozen=True)
class Mutant:
    """A change of one place, and what catches it."""

    name: str
    file: str
    """Below ``nemo_openmath/competition``."""
    old: str
    new: str
    caught_by: tuple[str, ...]

    def apply(self, top: Path) -> None:
        """Change the copy at ``top``. Raises AssertionError where the place is not there once."""
        path = top / "nemo_openmath/competition" / self.file
        text = path.read_text()
        assert text.count(self.old) == 1, f"{self.name}: {text.count(self.old)} such places in {self.file}"
        changed = text.replace(self.old, self.new)
        compile(changed, str(path), "exec")
        path.write_text(changed)

    def undo(self, top: Path) -> None:
        """Restore the copy."""
        file = f"nemo_openmath/competition/{self.file}"
        shutil.copyfile(TOP / file, top / file)


def _solver(name: str, old: str, new: str, *caught_by: str) -> Mutant:
    return Mutant(name, "solver.py", old, new, caught_by)


def _policy(name: str, old: str, new: str, *caught_by: str) -> Mutant:
    return Mutant(name, "policy.py", old, new, caught_by)


def _bank(name: str, old: str, new: str, *caught_by: str) -> Mutant:
    return Mutant(name, "bank.py", old, new, caught_by)


def _stage(name: str, old: str, new: str, *caught_by: str) -> Mutant:
    return Mutant(name, "stage.py", old, new, caught_by)


def _live(name: str, **settings: str) -> Mutant:
    """The live solver decides by other settings than the replay."""
    changed = ", ".join(f"{setting}={value}" for setting, value in settings.items())
    return _solver(
        f"live: {name}", _LIVE_POLICY, _LIVE_POLICY.replace("self._settings", _LIVE_DECIDE.format(changed)), LIVE
    )


MUTANTS = (
    # -- the deadline of a problem
    _solver("the deadline is not waited for", "until = decision.until\n", "until = 1e6\n", CHAOS, "test_solver"),
    _policy("sampling ends after the deadline", "return max(0.0, deadline - self", "return 9 + max(0.0, deadline - self", CHAOS, "test_policy"),
    _policy("a tenth of a short problem is not kept", "min(self.closing_seconds, 0.1 * deadline)", "self.closing_seconds", "test_policy"),
    _solver("requests have no end of their own", "ends_at=self._time.began + ends_at,", "ends_at=None,", "test_solver"),
    _solver("requests may end by themselves at any time", "self._closing(1 / 3)", "self._closing(3)", CHAOS, "test_solver"),
    _solver("cancelling may take any time", "min(self._time.now() + self._settings.cancel_seconds, self._closing(2 / 3))", "1e6", CHAOS, "test_solver"),
    _solver("cancelling may take until the deadline", "min(self._time.now() + self._settings.cancel_seconds, self._closing(2 / 3))", "self._closing(2 / 3)", CHAOS),
    _solver("cancelling may take its seconds after the deadline", "min(self._time.now() + self._settings.cancel_seconds, self._closing(2 / 3))", "self._time.now() + self._settings.cancel_seconds", CHAOS),
    Mutant("the clock runs backwards", "waiting.py", "max(self._latest, self._clock.now() - self.began)", "self._clock.now() - self.began", ("test_waiting",)),
    Mutant("what ends at once is not waited for", "waiting.py", "range(_TURNS)", "range(0)", ("test_waiting",)),
    # -- what runs on
    _solver("stragglers are not cancelled", "        for task in running:\n            task.cancel()\n        if running:", "        if running:", "test_solver"),
    _solver("who gives a question up cancels nothing", "            for task in tasks:\n                task.cancel()\n            self._solver.leftovers", "            self._solver.leftovers", CHAOS, "test_serving"),
    _solver("what does not end is forgotten", "self._solver.leftovers.add(tasks)", "pass", CHAOS, "test_solver"),
    Mutant("selections are not cancelled", "selecting.py", "                task.cancel()\n", "                pass\n", (CHAOS,)),
    Mutant("what is left behind is not cancelled again", "waiting.py", "        for task in tuple(self._tasks):\n            task.cancel()\n", "", ("test_waiting",)),
    Mutant("what is left behind is waited for without an end", "waiting.py", ".all(tuple(self._tasks), seconds)", ".all(tuple(self._tasks), 1e9)", ("test_waiting",)),
    # -- agreement and the rest of the policy
    _policy("nobody agrees", "enough = agree if heard == agree else agree + 1", "enough = 99", "test_policy", "test_solver"),
    _policy("of equal votes one agrees", " and sum(count == most for count in votes) == 1", "", "test_solver"),
    _policy("stragglers are waited for", "if len(running) <= policy.stragglers and any", "if len(running) < policy.stragglers and any", "test_policy", "test_solver"),
    _policy("what was lost is begun again without an end", "min(len(losses), policy.replace)", "len(losses)", CHAOS, "test_policy"),
    _policy("what was lost is not begun again", "begun - min(len(losses), policy.replace)", "begun", "test_policy", "test_solver"),
    # -- selections
    _solver("a selection has until the deadline", "until=min(now + policy.select_seconds, self._deadline - 0.1 * policy.closing(self._deadline)),", "until=self._deadline - 0.1 * policy.closing(self._deadline),", CHAOS),
    _solver("a selection has its seconds after the deadline", "until=min(now + policy.select_seconds, self._deadline - 0.1 * policy.closing(self._deadline)),", "until=now + policy.select_seconds,", CHAOS),
    Mutant("a selection has any time", "selecting.py", "await time.all(tasks, until)", "await asyncio.wait(tasks)", (CHAOS, "test_solver")),
    _policy("a selection is asked for without time", "if deadline - 0.1 * policy.closing(deadline) - now <", "if 1e9 <", "test_policy", "test_solver"),
    # -- grading
    _solver("the grader may take any time", "self._grading_until = self._time.now() + self._settings.grading_seconds", "self._grading_until = 1e9", CHAOS, "test_solver"),
    _solver("the grader may take its seconds after the deadline", "min(self._grading_until, self._closing(0.9))", "self._grading_until", CHAOS, "test_solver"),
    _solver("the grader holds up the sampling", "until = min(until, self._grading_until)", "pass", "test_solver"),
    _solver("a grader that fails ends the contest", "error = asyncio.CancelledError() if task.cancelled() else task.exception()", "task.result()\n            error = None", CHAOS, "test_solver"),
    _stage("the stage compares answers without limits", "            vote=grader.majority,\n", "", CHAOS),
    Mutant("the service compares answers without limits", "serving/opening.py", ", vote=grading.majority)", ")", ("test_serving",)),
    _stage("a verdict may take any time", "await time.all(list(tasks.values()), bound)", "await asyncio.wait(list(tasks.values()))", CHAOS, "test_stage"),
    # -- what fails
    Mutant("a dead sandbox ends the contest", "trials.py", "except Exception as error:  # whatever", "except ZeroDivisionError as error:  # whatever", (CHAOS, "test_solver")),
    Mutant("a stream that breaks off is not asked for again", "../inference/rollout/watch.py", "TRIES = 4 ", "TRIES = 1 ", ("test_solver",)),
    _solver("who looks on costs the answer", "except Exception as error:  # who", "except ZeroDivisionError as error:  # who", CHAOS),
    # -- answers
    Mutant("any answer is submitted", "trials.py", "rule.read(trial.written)", 'ReadAnswer(trial.written, "kept")', (CHAOS, "test_solver", LIVE)),
    _solver("nothing is found at the deadline", "search=search and self._settings.partial_weight > 0", "search=False", CHAOS, "test_solver", LIVE),
    # -- the bank
    _bank("the bank is below nothing", "max(self.base + min(self.saved, self.most), kept)", "self.base + min(self.saved, self.most)", "test_bank"),
    _bank("the bank gives more than it may", "min(self.saved, self.most)", "self.saved", CHAOS, "test_bank"),
    _bank("there is no total", "if self.total is not None:\n            left", "if False:\n            left", CHAOS, "test_bank", LIVE),
    _bank("the others have no reserve", "left - kept * others", "left", CHAOS, "test_bank"),
    _bank("the reserve takes from the bank", "kept = min(self.base, self.reserve)", "kept = self.reserve", "test_bank"),
    _bank("the total is used up by nobody", "self.spent += seconds", "pass", CHAOS, "test_bank", LIVE),
    _bank("nothing is owed", "self.saved += self.base - seconds", "self.saved = max(0.0, self.saved + self.base - seconds)", "test_bank"),
    _stage("the reserve of others is forgotten", "self.bank.allowance(self.to_come)", "self.bank.allowance()", CHAOS, LIVE),
    _stage("what is done between problems is free", "self.bank.allowance(self.to_come) - late", "self.bank.allowance(self.to_come)", "test_stage"),
    _stage("the contest's clock stands", "spent = max(0.0, now - self.mark)", "spent = 0.0", CHAOS, "test_stage", LIVE),
    _stage("a run that goes on has a full bank", "self.bank.spend(note.seconds if note.spent is None else note.spent)", "pass", "test_stage"),
    # -- Kaggle
    Mutant("the call waits for a loop that hangs", "kaggle.py", "timeout=max(0.0, allowed - (time.monotonic() - began))", "timeout=None", ("test_serving",)),
    Mutant("the call raises", "kaggle.py", "        except Exception:\n            log.exception(\"no answer;", "        except ZeroDivisionError:\n            log.exception(\"no answer;", ("test_serving",)),
    # -- the live solver does other things than the replay
    _live("one less has to agree", agree="max(1, self._settings.agree - 1)"),
    _live("stragglers are waited for", stragglers="0"),
    _live("there is no second round", second="0"),
    _live("bayes is sure of less", bayes="__import__('nemo_openmath.competition.policy').competition.policy.BayesPrior(0.5)"),
    _live("a quarter more time is kept for the end", closing_seconds="1.25 * self._settings.closing_seconds"),
    _solver("live: votes are equal", "return choose(policy, ended), False", 'return choose(__import__("dataclasses").replace(policy, entropy_weight=0.0), ended), False', LIVE),
    _solver("live: unfinished solutions have whole votes", "return choose(policy, ended), False", 'return choose(__import__("dataclasses").replace(policy, partial_weight=1.0), ended), False', LIVE),
    _solver("live: stragglers are searched", "await self._cut_off(Stop(reason).search)", "await self._cut_off(True)", LIVE),
    _solver("live: equal answers are those written alike", "self._grouping.take(self._graded, task.result())", "self._grouping.spell(self._graded)", LIVE),
    _solver("live: requests end as sampling does", "ends_at = policy.requests_end(self._deadline)", "ends_at = policy.sampling_ends(self._deadline)", LIVE),
    _stage("live: nothing is left over", "self.bank.spend(note.spent or 0.0)", "self.bank.spend(self.config.base_seconds)", LIVE),
)  # fmt: skip


class Checked:
    """A copy of the repository in which mutants are tried."""

    def __init__(self, folder: Path):
        self.top = folder
        for name in ("nemo_openmath", "tests"):
            shutil.copytree(TOP / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(TOP / "pyproject.toml", folder / "pyproject.toml")
        (folder / "examples").symlink_to(TOP / "examples")

    def fails(self, catcher: str) -> str | None:
        """Return how a catcher fails; None where it holds."""
        command = [sys.executable, "-m"]
        if catcher == CHAOS:
            command += ["tests.competition.chaos", "--contests", str(CONTESTS)]
        else:
            command += ["pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"]
            command += [f"tests/competition/{catcher}.py"]
        environment = os.environ | {"PYTHONPATH": str(self.top), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                command, cwd=self.top, env=environment, capture_output=True, text=True, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            return f"hangs for {PATIENCE:g} s"
        if done.returncode == 0:
            return None
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(("AssertionError: contest", "FAILED", "ERROR"))]
        return (told or lines)[-1][:160]


def main() -> int:
    words = sys.argv[1:]
    chosen = [m for m in MUTANTS if not words or any(w in f"{m.name} {m.file} {m.caught_by}" for w in words)]
    escaped, began = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        checked = Checked(Path(folder))
        for catcher in sorted({c for mutant in chosen for c in mutant.caught_by}):
            if (how := checked.fails(catcher)) is not None:
                print(f"{catcher} fails on the code as it is: {how}")
                return 1
        for mutant in chosen:
            mutant.apply(checked.top)
            for catcher in mutant.caught_by:
                how = checked.fails(catcher)
                escaped += how is None
                print(f"{mutant.name:<55} {catcher:<14} {'NOT CAUGHT' if how is None else how}", flush=True)
            mutant.undo(checked.top)
    tries = sum(len(mutant.caught_by) for mutant in chosen)
    print(f"{len(chosen)} mutants, {tries - escaped} of {tries} catches, {time.monotonic() - began:.0f} s")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
