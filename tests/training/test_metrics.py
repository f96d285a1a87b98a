"""What a training shows of its steps, and the guard that stops it before the weights are spoilt."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nemo_openmath.training.config import Guard, TrainingConfig
from nemo_openmath.training.metrics import LossGuard, TrainingDiverged, TrainingMetrics, console_line


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_not_finite_stops_with_the_samples_named(loss: float, norm: float) -> None:
    guard, names = LossGuard(Guard()), ("3/0", "3/1")
    guard.check(6, 1.0, 1.0, names)
    with pytest.raises(TrainingDiverged, match=r"step 7; weights unchanged; samples of the batch: 3/0, 3/1$"):
        guard.check(7, loss, norm, names)


def test_a_spike_is_over_the_running_mean() -> None:
    guard = LossGuard(Guard(spike_factor=2.0, window=3))
    for step, loss in enumerate((1.0, 9.0, 2.0)):  # no mean of three yet
        guard.check(step, loss, 1.0, ("a",))
    guard.check(3, 7.9, 1.0, ("a",))  # mean 4
    for same in (guard, LossGuard(Guard(spike_factor=2.0, window=3), guard.recent)):  # and after a resume
        with pytest.raises(TrainingDiverged):
            same.check(4, 12.7, 1.0, ("a",))  # mean 6.3


def test_a_resume_leaves_one_line_for_each_step(tmp_path: Path) -> None:
    """Killed after saving step 4 with its line not yet written, and with lines of steps to be done again."""
    log = tmp_path / "metrics.jsonl"
    for lines, kept in (("123", "123"), ("12356", "123"), ("1234567", "1234"), ("123412", "1234")):
        log.write_text("".join(f'{{"step": {n}, "loss": {n}.5}}\n' for n in lines) + '{"step": 8, "lo')
        TrainingMetrics(tmp_path, TrainingConfig(), 4, {"step": 4, "loss": 4.25}).close()
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert rows[3]["loss"] == (4.5 if "4" in kept else 4.25)


def test_lines_of_every_step_whatever_is_shown(tmp_path: Path) -> None:
    metrics = TrainingMetrics(tmp_path, TrainingConfig(log_every=3), 0)
    for step in (1, 2, 3):
        metrics.write({"step": step}, boards=step == 3)
    metrics.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_tensorboard_shows_steps_done_again_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed = TrainingMetrics(tmp_path, TrainingConfig(tensorboard=True), 0)
    for step in range(1, 7):
        killed.write({"step": step, "loss": 1.0})
    killed._board.flush()
    resumed = TrainingMetrics(tmp_path, TrainingConfig(tensorboard=True), 4)
    for step in (5, 6, 7):
        resumed.write({"step": step, "loss": 2.0})
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert shown == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0), (6, 2.0), (7, 2.0)]


def test_a_line_for_people() -> None:
    record = {"step": 3, "loss": 1.5, "grad_norm": 0.25, "lr": 1e-4, "tokens_per_second": 12345.6, "seconds": 2.0}
    line = console_line({**record, "mfu": 0.41, "fill": 0.98, "peak_memory_bytes": 3 << 30}, 9)
    expected = "step 3/9  loss 1.5000  grad 0.250  lr 1.00e-04  12,346 tok/s  2.00 s/step  MFU 41%  fill 98%  3.0 GiB"
    assert line == expected
