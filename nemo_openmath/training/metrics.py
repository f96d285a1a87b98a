"""What a training shows of its steps: metrics.jsonl, a console line, TensorBoard and wandb; the guard that stops it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import MissingExtra, OpenMathError, UserError, words_of
from nemo_openmath.core.progress import Progress
from nemo_openmath.training.config import Guard, TrainingConfig

log = logging.getLogger(__name__)


class TrainingMetrics:
    """The record of a training's steps: a line each in ``OUTPUT/metrics.jsonl``, and TensorBoard and wandb where the
    settings say so. Rank 0 alone has one."""

    def __init__(self, output: Path, config: TrainingConfig, steps_done: int, last: Mapping[str, Any] | None = None):
        """Open the file for a training that goes on after ``steps_done`` steps: lines of steps that are done again are
        cut. ``last``, the line of the checkpoint's own step, is put back where a kill came between the save and the
        line."""
        path = output / "metrics.jsonl"
        _cut(path, steps_done, last)
        self._path, self._file = path, path.open("ab", buffering=0)
        self._unwritten = b""  # a full disk is waited for: lines are few, and the training goes on
        self._board = _tensorboard(output, steps_done) if config.tensorboard else None
        self._wandb = _wandb(config.wandb_project, output) if config.wandb_project else None

    def write(self, record: Mapping[str, Any], *, boards: bool = True) -> None:
        """Append the line of a step to the file; with ``boards`` also to TensorBoard and wandb."""
        self._unwritten += json.dumps(record).encode() + b"\n"
        self.flush()
        if not boards:
            return
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float) and key != "step"}
        if self._board is not None:
            try:
                for key, value in numbers.items():
                    self._board.add_scalar(key, value, record["step"])
            except OSError as error:  # it is for looking at: no reason to end a training
                log.warning(f"TensorBoard: nothing more is written ({words_of(error)})")
                self._board = None
        if self._wandb is not None:
            self._wandb.log(numbers, step=record["step"])

    def flush(self) -> None:
        """Write what waits for room, as far as there is some."""
        try:
            self._write()
        except OSError as error:
            lines = self._unwritten.count(b"\n")
            log.warning(f"{self._path}: {lines} lines wait for room ({error.strerror})")

    def close(self) -> None:
        """Close the file and what else is written to. Raises OSError where lines wait for room in vain."""
        try:
            self._write()
        finally:
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _write(self) -> None:
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]


def _cut(path: Path, steps_done: int, last: Mapping[str, Any] | None) -> None:
    lines, newest = [], 0
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            try:
                step = int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill
            if newest < step <= steps_done:
                lines.append(line)
                newest = step
    if last is not None and newest < steps_done == last.get("step"):
        lines.append(json.dumps(last))
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in lines))
    partial.rename(path)


def console_line(record: Mapping[str, Any], num_steps: int) -> str:
    """Return a step's line for people."""
    line = (
        f"step {record['step']}/{num_steps}  loss {record['loss']:.4f}  grad {record['grad_norm']:.3f}  "
        f"lr {record['lr']:.2e}  {record['tokens_per_second']:,.0f} tok/s  {record['seconds']:.2f} s/step  "
        f"MFU {record['mfu']:.0%}  fill {record['fill']:.0%}  {record['peak_memory_bytes'] / 2**30:.1f} GiB"
    )
    return line + (f"  validation {record['validation_loss']:.4f}" if "validation_loss" in record else "")


def show(line: str, progress: Progress) -> None:
    """Show a line of rank 0 on a progress bar: ``step 12/400 ...`` moves the bar, any other line stays above it."""
    words = line.split()
    step, _, num_steps = words[1].partition("/") if len(words) > 1 and words[0] == "step" else ("", "", "")
    if step.isdigit() and num_steps.isdigit():
        progress.begin(int(num_steps), int(step))
        progress.advance(0, " ".join(words[2:]))
    else:
        progress.log(line)


class TrainingDiverged(OpenMathError):
    """The loss or the gradient norm is not finite, or the loss jumped. The message names the batch's samples."""


class LossGuard:
    """Stops a training before a step spoils the weights. ``recent``: the last losses, which are kept with checkpoints,
    so that a resumed training stops where the uninterrupted one would."""

    def __init__(self, config: Guard, recent: Sequence[float] = ()):
        self.config = config
        self._recent: deque[float] = deque(recent, maxlen=config.window)

    @property
    def recent(self) -> list[float]:
        """Return the last losses, the oldest first."""
        return list(self._recent)

    def check(self, step: int, loss: float, grad_norm: float, sample_ids: Sequence[str]) -> None:
        """Take note of a step's loss. Raises TrainingDiverged, which names the batch's samples, where loss or gradient
        norm is not finite or the loss jumps."""
        problem = ""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            problem = f"loss {loss} and gradient norm {grad_norm} at step {step}"
        elif self.config.spike_factor and len(self._recent) == self.config.window:
            mean = sum(self._recent) / len(self._recent)
            if loss > self.config.spike_factor * mean:
                problem = f"loss {loss:.4f} at step {step} is over {self.config.spike_factor} x its mean {mean:.4f}"
        if problem:
            names = ", ".join(sample_ids[:20]) + (f" and {len(sample_ids) - 20} more" if len(sample_ids) > 20 else "")
            raise TrainingDiverged(f"{problem}; weights unchanged; samples of the batch: {names}")
        self._recent.append(loss)


def _tensorboard(output: Path, steps_done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra("tensorboard", "watch", "training.tensorboard") from None
    return SummaryWriter(str(output / "tensorboard"), purge_step=steps_done + 1)  # steps done again replace the old


def _wandb(project: str, output: Path) -> Any:
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError:
        raise MissingExtra("wandb", "watch", "training.wandb_project") from None
    name = hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:16]  # a resumed training goes on in its own run
    try:
        return wandb.init(project=project, dir=str(output), id=name, name=output.name, resume="allow")
    except wandb.errors.Error as error:
        problem = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"wandb: {problem}", remedy="run wandb login, or set WANDB_MODE=offline") from None
