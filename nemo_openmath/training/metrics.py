"""Watching a training: metrics.jsonl, a console line, TensorBoard and wandb; the guard that stops it."""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import MissingExtra, OpenMathError, UserError
from nemo_openmath.core.progress import Progress
from nemo_openmath.training.config import Guard, TrainingConfig


class TrainingMetrics:
    """Appends a line per step to ``OUTPUT/metrics.jsonl`` (rank 0 alone). A resume cuts lines of steps done again, and
    puts back the line of the checkpoint's own step, ``last``, where a kill came between the save and the line."""

    def __init__(self, output: Path, config: TrainingConfig, first_step: int, last: Mapping[str, Any] | None = None):
        path = output / "metrics.jsonl"
        kept, newest = [], 0
        if path.exists():
            for line in path.read_text(errors="replace").splitlines():
                try:
                    step = int(json.loads(line)["step"])
                except (ValueError, KeyError, TypeError):
                    continue  # torn by a kill
                if newest < step <= first_step:
                    kept.append(line)
                    newest = step
        if last is not None and newest < first_step == last.get("step"):
            kept.append(json.dumps(last))
        partial = path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in kept))
        partial.rename(path)
        self._file = path.open("a")
        self._board = _tensorboard(output, first_step) if config.tensorboard else None
        self._wandb = _wandb(config.wandb_project, output) if config.wandb_project else None

    def write(self, record: Mapping[str, Any], *, boards: bool = True) -> None:
        """``boards``: also to TensorBoard and wandb."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if not boards:
            return
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float) and key != "step"}
        if self._board is not None:
            for key, value in numbers.items():
                self._board.add_scalar(key, value, record["step"])
        if self._wandb is not None:
            self._wandb.log(numbers, step=record["step"])

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def console_line(record: Mapping[str, Any], num_steps: int) -> str:
    """One line for people."""
    line = (
        f"step {record['step']}/{num_steps}  loss {record['loss']:.4f}  grad {record['grad_norm']:.3f}  "
        f"lr {record['lr']:.2e}  {record['tokens_per_second']:,.0f} tok/s  {record['seconds']:.2f}s  "
        f"MFU {record['mfu']:.0%}  fill {record['fill']:.0%}  {record['peak_memory_bytes'] / 2**30:.1f} GiB"
    )
    return line + (f"  validation {record['validation_loss']:.4f}" if "validation_loss" in record else "")


def show(line: str, progress: Progress) -> None:
    """Rank 0's line on a progress bar: ``step 12/400 ...`` moves it, anything else is said."""
    words = line.split()
    at = words[1].partition("/") if len(words) > 1 and words[0] == "step" else ("", "", "")
    if at[0].isdigit() and at[2].isdigit():
        progress.begin(int(at[2]), int(at[0]))
        progress.advance(0, " ".join(words[2:]))
    else:
        progress.say(line)


class TrainingDiverged(OpenMathError):
    """Loss or gradient norm is not finite, or the loss jumped; names the samples of the batch."""


class LossGuard:
    """Checks each step before the weights change. ``recent``: the last losses, kept with checkpoints, so that a resumed
    training stops where the uninterrupted one would."""

    def __init__(self, config: Guard, recent: Sequence[float] = ()):
        self.config = config
        self._recent: deque[float] = deque(recent, maxlen=config.window)

    @property
    def recent(self) -> list[float]:
        return list(self._recent)

    def for_batch(self, step: int, names: Sequence[str]) -> Callable[[float, float], None]:
        """A check of (loss, gradient norm) that names the batch's samples, ``names``, when it raises."""

        def check(loss: float, norm: float) -> None:
            problem = ""
            if not (math.isfinite(loss) and math.isfinite(norm)):
                problem = f"loss {loss} and gradient norm {norm} at step {step}"
            elif self.config.spike_factor and len(self._recent) == self.config.window:
                mean = sum(self._recent) / len(self._recent)
                if loss > self.config.spike_factor * mean:
                    problem = f"loss {loss:.4f} at step {step} is over {self.config.spike_factor} x its mean {mean:.4f}"
            if problem:
                shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
                raise TrainingDiverged(f"{problem}; weights unchanged; samples of the batch: {shown}")
            self._recent.append(loss)

        return check


def _tensorboard(output: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra("tensorboard", "watch", "training.tensorboard") from None
    return SummaryWriter(str(output / "tensorboard"), purge_step=first_step + 1)  # steps done again replace the old


def _wandb(project: str, output: Path) -> Any:
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError:
        raise MissingExtra("wandb", "watch", "training.wandb_project") from None
    name = hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:16]  # a resumed training goes on in its own run
    try:
        return wandb.init(project=project, dir=str(output), id=name, name=output.name, resume="allow")
    except wandb.errors.Error as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"wandb: {said}", remedy="run wandb login, or set WANDB_MODE=offline") from None
