"""One training at a time in a folder, with real processes; what a training shows of its steps."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.data.packs.write import write_packs
from nemo_openmath.data.tokens.token_file import ShardWriter, write_manifest
from nemo_openmath.training import run_lock
from nemo_openmath.training.run_lock import LOCK, RunLock, refuse_locked
from tests.training.packs import write_model

STEPS = 6


# A process that holds the folder, and says that it is stopping when told so.
HOLD = """
import sys
from pathlib import Path
from nemo_openmath.training.run_lock import RunLock
lock = RunLock.take(Path(sys.argv[1]), 4)
print("held", flush=True)
sys.stdin.readline()
lock.stopping()
print("said", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_is_held_until_its_holder_dies(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", 0.0)
    message = rf"^{tmp_path}: the training of process {holder.pid} on \S+ \(4 ranks, since .* UTC\) is running in this "
    with pytest.raises(UserError, match=message):
        RunLock.take(tmp_path, 1)
    with pytest.raises(UserError, match=message):
        refuse_locked(tmp_path)
    holder.kill()
    holder.wait()
    refuse_locked(tmp_path)
    RunLock.take(tmp_path, 1).release()


def test_one_that_is_stopping_is_waited_for(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nemo_openmath")
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", -1.0)  # another is refused at once
    assert holder.stdin is not None
    assert holder.stdout is not None
    print("stop", file=holder.stdin, flush=True)
    assert holder.stdout.readline() == "said\n"
    refuse_locked(tmp_path)  # not refused
    lines: list[str] = []

    def kill_holder(record: logging.LogRecord) -> bool:
        lines.append(record.getMessage())
        assert holder.poll() is None
        holder.kill()
        return True

    run_lock.log.addFilter(kill_holder)
    try:
        RunLock.take(tmp_path, 1).release()
    finally:
        run_lock.log.removeFilter(kill_holder)
    [line] = lines
    assert re.fullmatch(
        rf"waiting for the training of process {holder.pid} on .*, which is stopping in {tmp_path}, "
        r"since \d\d:\d\d:\d\d \(0 s\); gives up at \d\d:\d\d:\d\d, in \d+ s",
        line,
    )


def test_the_later_training_has_a_folder_that_was_made_anew(tmp_path: Path) -> None:
    """The earlier one sees it before it saves."""
    first = RunLock.take(tmp_path, 1)
    first.check()
    (tmp_path / LOCK).unlink()
    second = RunLock.take(tmp_path, 1)
    second.check()
    first.stopping()  # must not write into the other's file
    second.check()
    assert "true" not in (tmp_path / LOCK).read_text()
    with pytest.raises(UserError, match="has taken this folder over; nothing more is saved"):
        first.check()


def test_a_folder_that_cannot_be_written_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out: cannot be used \(Not a directory\); a part of the path is a file"):
        RunLock.take(tmp_path / "file/out", 1)


def _job(root: Path) -> Path:
    """A training of STEPS steps on a model and packs made here."""
    write_model(root / "hf", "tied")
    (root / "tokens").mkdir()
    random = np.random.default_rng(0)
    with ShardWriter(root / "tokens/00000.tokens", tokenizer="t", vocab_size=512, source="s") as writer:
        for number in range(60):
            size = int(random.integers(20, 100))
            writer.add(str(number), "cot", random.integers(0, 512, size), [False] * 5 + [True] * (size - 5))
        writer.finish({})
    write_manifest(root / "tokens", ["00000.tokens"])
    write_packs(root / "tokens", capacity=128)
    data = {"folder": "tokens", "batch_samples": 10, "steps": STEPS}
    training = {"distributed_optimizer": True, "checkpoints": {"every": 1}, "profile": {"ranks": []}}
    (root / "job.yaml").write_text(json.dumps({"model": "hf", "data": data, "output": "out", "training": training}))
    return root / "job.yaml"


def _start(job: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nemo_openmath.training", str(job), "--processes", "2", *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)


@pytest.mark.slow
def test_two_trainings_in_one_folder(tmp_path: Path) -> None:
    """The second ends with exit code 2 and one line; the first, killed and run again, comes to its end."""
    job, out = _job(tmp_path), tmp_path / "out"
    first = _start(job, "data.steps=100000")  # more than it will come to
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("step 2/"):
            break
    second = _start(job)
    _, message = second.communicate(timeout=1200)
    assert second.returncode == ExitCode.USER_ERROR
    assert message.count("\n") == 1
    assert message.startswith(f"{out}: the training of process ")
    assert "(2 ranks, since " in message
    assert first.poll() is None  # undisturbed
    first.send_signal(signal.SIGKILL)  # its ranks die with it, wherever they are
    first.communicate()
    newest = max(int(p.name[5:]) for p in (out / "checkpoints").glob("step-*"))
    third = _start(job, f"data.steps={newest + 3}", f"profile.steps=[{newest + 2},{newest + 3}]")
    lines, message = third.communicate(timeout=1200)
    assert third.returncode == ExitCode.OK, message
    assert "resuming after step" in lines
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, newest + 4))
    _shows_where_the_time_went(out, rows)


def _shows_where_the_time_went(out: Path, rows: list[dict[str, Any]]) -> None:
    last, shares = len(rows), []
    for row in rows:
        parts = sum(row[f"{name}_seconds"] for name in ("read", "compute", "validation", "save"))
        assert parts == pytest.approx(row["seconds"], abs=5e-4)
        inside = sum(row[f"{name}_seconds"] for name in ("forward_backward", "gradient", "optimizer"))
        assert inside < row["compute_seconds"] + 5e-4
        shares.append(inside / row["compute_seconds"])
    assert max(shares) > 0.5  # of a step that no other process disturbed
    assert [row["step"] for row in rows if row.get("profiled")][-2:] == [last - 1, last]
    for step in (last - 1, last):
        for rank in (0, 1):
            stem = out / "profile" / f"step-{step:08d}-rank-{rank}"
            trace = json.loads(gzip.decompress(stem.with_name(f"{stem.name}.json.gz").read_bytes()))
            names = {event.get("name") for event in trace["traceEvents"]}
            assert {"forward_backward", "gradient", "optimizer", "aten::mm"} <= names
            assert "aten::mm" in stem.with_name(f"{stem.name}.txt").read_text()
    assert not list((out / "profile").glob(".*"))
