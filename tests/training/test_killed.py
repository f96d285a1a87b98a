"""Ranks that die: kill -9 between two steps and the resume, traceback of the first cause, no rank left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from nemo_openmath.core.errors import ExitCode, Preempted, UserError
from nemo_openmath.training.launch import spawn
from nemo_openmath.training.rank_processes import RankFailed
from tests.support.ranks import run_ranks
from tests.training.packs import write_model
from tests.training.results import assert_close, final_weights, records, weights_after

STEPS, KILLED_AT = 10, 6


def _run(folder: Path, cases: list[dict[str, Any]]) -> None:
    run_ranks("tests.training.training_ranks", 2, cases, folder)


@pytest.mark.slow
def test_kill_9_and_resume(tmp_path: Path) -> None:
    """Rank 1 is killed at a step; the rerun goes on from the newest valid checkpoint and ends as without the kill."""
    model = str(write_model(tmp_path / "hf", "tied"))
    config = {"lr": 1e-3, "checkpoints": {"every": 2, "keep_last": 2}}
    base = {"kind": "train", "model": model, "config": config, "steps": STEPS}
    killed = {**base, "output": str(tmp_path / "killed"), "signal": [1, int(signal.SIGKILL), KILLED_AT + 1]}
    with pytest.raises(RankFailed, match="SIGKILL"):
        _run(tmp_path, [killed])
    done = sorted(p.name for p in (tmp_path / "killed/checkpoints").glob("step-*"))
    assert done == ["step-00000004", "step-00000006"]
    newest = tmp_path / "killed/checkpoints/step-00000006/state/__1_0.distcp"
    newest.write_bytes(newest.read_bytes()[:100])  # and the disk lost a part: the one before is taken
    whole = {**base, "output": str(tmp_path / "whole")}
    _run(tmp_path, [{**base, "output": str(tmp_path / "killed")}, whole])
    assert [r["step"] for r in records(tmp_path / "killed")] == list(range(1, STEPS + 1))
    assert [r["loss"] for r in records(tmp_path / "killed")] == [r["loss"] for r in records(tmp_path / "whole")]
    assert_close(final_weights(tmp_path / "killed"), final_weights(tmp_path / "whole"), 0.0)


def _sweeps(root: Path, specs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each spec in a folder of its name; all in one process, which imports once."""
    files = []
    for name, spec in specs.items():
        files.append(root / f"{name}.json")
        files[-1].write_text(json.dumps({"output": str(root / name), "seed": 0, **spec}))
    command = [sys.executable, "-m", "tests.training.kill_sweep", *map(str, files)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return dict(zip(specs, map(json.loads, done.stdout.splitlines()[-len(specs) :]), strict=True))


def _config(**changes: Any) -> dict[str, Any]:
    settings = {"lr": 1e-3, "warmup": 0.2, "epsilon": 1e-6, "distributed_optimizer": True}
    saves = {"every": 1, "keep_last": 2, "asynchronous": changes.pop("asynchronous", False)}
    return {**settings, "checkpoints": saves, **changes}


def _line(row: dict[str, Any]) -> tuple[int, float, float]:
    return row["step"], row["loss"], row["grad_norm"]


def _sweep_and_compare(root: Path, *, steps: int, kills: int, asynchronous: tuple[bool, ...]) -> None:
    names = {each: "asynchronous" if each else "synchronous" for each in asynchronous}
    others = ({"tp": 2}, {"pp": 2, "vpp": 2}, {"cp": 2})
    layouts = [[2, _config()], *([2, _config(parallel=parallel, asynchronous=True)] for parallel in others)]
    layouts.append([1, _config(distributed_optimizer=False)])
    base = {"model": str(write_model(root / "hf", "tied")), "steps": steps, "kills": kills}
    found = _sweeps(
        root,
        {
            "whole": {**base, "kills": 0, "layouts": [[2, _config()]]},
            **{name: {**base, "layouts": [[2, _config(asynchronous=each)]]} for each, name in names.items()},
            "others": {**base, "layouts": layouts},
        },
    )
    print(found)
    whole = records(root / "whole")
    assert [row["step"] for row in whole] == list(range(1, steps + 1))
    for name in names.values():
        assert found[name]["kills"] > 1  # fewer than asked for where a lucky attempt came to the end
        assert [_line(row) for row in records(root / name)] == [_line(row) for row in whole]
        assert_close(weights_after(root / name, steps), weights_after(root / "whole", steps), 0.0)
    assert found["others"]["kills"] > 1
    assert [row["step"] for row in records(root / "others")] == list(range(1, steps + 1))
    for row, expected in zip(records(root / "others"), whole, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert_close(weights_after(root / "others", steps), weights_after(root / "whole", steps), 1e-5)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Between two steps, within one, within a save: every line of metrics.jsonl and every weight is exactly that of the
    uninterrupted run; within 1e-5 when each attempt has another layout."""
    _sweep_and_compare(tmp_path, steps=7, kills=3, asynchronous=(True,))


@pytest.mark.manual
def test_killed_at_random_moments_many_times(tmp_path: Path) -> None:
    """The same for as many kills as OPENMATH_KILLS says; `-s` shows what was hit."""
    kills = int(os.environ.get("OPENMATH_KILLS", "60"))
    _sweep_and_compare(tmp_path, steps=3 * kills, kills=kills, asynchronous=(False, True))


def test_a_failing_rank_takes_all_down_and_is_quoted() -> None:
    script = "import os,time\nif os.environ['RANK']=='1': raise RuntimeError('the cause')\ntime.sleep(3600)"
    start = time.monotonic()
    with pytest.raises(RankFailed, match=r"rank 1 died \(exit code 1\)(.|\n)*the cause"):
        spawn(2, [sys.executable, "-c", script])
    assert time.monotonic() - start < 1800


@pytest.mark.parametrize(("code", "error"), [(ExitCode.USER_ERROR, UserError), (ExitCode.PREEMPTED, Preempted)])
def test_exit_codes_mean_what_they_say(code: ExitCode, error: type[Exception]) -> None:
    script = f"import sys,os; print('rank '+os.environ['RANK']+': said', file=sys.stderr); sys.exit({int(code)})"
    with pytest.raises(error, match=r"^said$"):
        spawn(2, [sys.executable, "-c", script])


def test_ranks_die_with_their_parent() -> None:
    script = (
        "import sys; from nemo_openmath.training.launch import spawn\n"
        "spawn(2, [sys.executable, '-c', 'import os,time; print(os.getpid(), flush=True); time.sleep(3600)'])"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    parent.stdout.readline()
    ranks = psutil.Process(parent.pid).children()
    assert len(ranks) == 2
    parent.kill()
    _, alive = psutil.wait_procs(ranks, timeout=300)
    assert not alive
