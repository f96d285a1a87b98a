"""The losses of a trainer, read from a CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.training.certificate.files import Certificate

_COLUMNS = ("step", "loss", "micro_batch", "sample")


@dataclass(frozen=True)
class ReportedLoss:
    """A loss that a trainer reported: of a batch, of one of its micro-batches, or of one of its samples."""

    row: int  # of the file, from 1
    step: int
    loss: float
    digits: int = 17  # behind the point, as it was written: it is known to half a unit of the last one
    micro_batch: int | None = None
    sample: str | None = None

    @property
    def rounding(self) -> float:
        """Return how far the written loss may be from what the trainer had, in nats."""
        return 0.5 * 10.0**-self.digits


@dataclass
class LossFile:
    """The losses of a file, and what of it was not read."""

    losses: list[ReportedLoss]
    columns: list[str]  # that were read
    other_columns: list[str]
    later_steps: int = 0  # rows of steps behind the certified ones
    without_loss: int = 0  # rows, such as those of an evaluation

    def left_out(self) -> str:
        """Return a sentence of what was read and what was not; empty where all was read."""
        parts = []
        if self.other_columns:
            parts.append(f"columns {', '.join(self.columns)}, not {', '.join(self.other_columns)}")
        if self.later_steps:
            parts.append(f"not {_rows(self.later_steps)} of steps behind the certified ones")
        if self.without_loss:
            parts.append(f"not {_rows(self.without_loss)} without a loss")
        return f"read: {'; '.join(parts)}" if parts else ""


def _rows(number: int) -> str:
    return f"{number} row" if number == 1 else f"{number} rows"


def read_losses(file: Path, certificate: Certificate) -> LossFile:
    """Read a CSV with a heading: ``step`` and ``loss``, and ``micro_batch`` or ``sample`` where a row is of a part.

    Other columns, rows with no loss and rows of steps behind the certified ones, as a logger's file has them, are not
    read, and counted. Raises UserError that names the row: for what is no number, what the certificate does not hold,
    and what stands there twice.
    """
    rows = csv.reader(_lines(file))
    heading = [name.strip().lower() for name in next(rows, [])]
    columns, other_columns = _divided(heading, file)
    result = LossFile([], columns, other_columns)
    last = max(step.step for step in certificate.steps)
    seen: dict[tuple[int, int | None, str | None], int] = {}
    for cells in rows:
        row = rows.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(heading):
            raise UserError(f"{len(cells)} cells, the heading has {len(heading)}", file=file, row=row)
        values = {name: cell.strip() for name, cell in zip(heading, cells, strict=True) if name in result.columns}
        if not values["loss"] and result.other_columns:
            result.without_loss += 1
            continue
        if _is_number(values["step"]) and int(values["step"]) > last:
            result.later_steps += 1
            continue
        reported = _reported(values, file, row, certificate)
        key = (reported.step, reported.micro_batch, reported.sample)
        if key in seen:
            raise UserError(f"the same as row {seen[key]}", file=file, row=row, remedy="leave out one of them")
        seen[key] = row
        result.losses.append(reported)
    if result.later_steps and not result.losses:
        problem = f"no row is of step 1 to {last}, which the certificate has"
        raise UserError(problem, file=file, remedy=_OF_THE_FIRST)
    if not result.losses:
        raise UserError("no row holds a loss", file=file, remedy="write a row for each step, such as 1,2.3456")
    return result


_OF_THE_FIRST = "give losses of the weights that the model came with: of step 1, or with a learning rate of 0"


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read it ({error.strerror})", file=file, remedy="check the path") from None
    except UnicodeDecodeError:
        raise UserError("is no text", file=file, remedy="give a CSV with columns step,loss") from None


def _divided(heading: Sequence[str], file: Path) -> tuple[list[str], list[str]]:
    """Return the columns of a heading that are read, and those that are not."""
    ours = [name for name in heading if name in _COLUMNS]
    if not {"step", "loss"} <= set(ours) or len(set(ours)) < len(ours):
        problem = f"the heading is {','.join(heading) or 'missing'}"
        remedy = "name one column step and one loss: the mean of -log p over the targets of the step"
        raise UserError(problem, file=file, row=1, remedy=remedy)
    return ours, [name or "(no name)" for name in heading if name not in _COLUMNS]


def _reported(values: Mapping[str, str], file: Path, row: int, certificate: Certificate) -> ReportedLoss:
    steps = {step.step: step for step in certificate.steps}
    if not _is_number(values["step"]) or int(values["step"]) not in steps:
        problem = f"step {values['step'] or 'is missing'}: the certificate has steps 1 to {len(steps)}"
        raise UserError(problem, file=file, row=row, remedy=_OF_THE_FIRST)
    step = steps[int(values["step"])]
    try:
        if not values["loss"].isascii() or "_" in values["loss"]:
            raise ValueError
        loss = float(values["loss"])
    except ValueError:
        raise UserError(f"loss {values['loss']!r} is no number", file=file, row=row) from None
    if loss < 0:
        raise UserError(
            f"loss {values['loss']} is below 0", file=file, row=row, remedy="give the mean of -log p, in nats"
        )
    if not math.isfinite(loss):
        remedy = "a right trainer's loss is finite: look at the trainer's weights and numbers first"
        raise UserError(f"loss {values['loss']} is not finite", file=file, row=row, remedy=remedy)
    micro_batch, sample = values.get("micro_batch") or None, values.get("sample") or None
    if micro_batch is not None and sample is not None:
        raise UserError("names a micro-batch and a sample", file=file, row=row, remedy="name one of them")
    number = 1 + max(part.micro_batch for part in step.samples)
    if micro_batch is not None and not (_is_number(micro_batch) and int(micro_batch) < number):
        problem = f"micro-batch {micro_batch}: step {step.step} has 0 to {number - 1}"
        raise UserError(problem, file=file, row=row)
    if sample is not None and sample not in {part.id for part in step.samples}:
        raise UserError(f"sample {sample!r} is not in step {step.step} of the certificate", file=file, row=row)
    return ReportedLoss(
        row, step.step, loss, _digits(values["loss"]), None if micro_batch is None else int(micro_batch), sample
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _digits(text: str) -> int:
    """Return how many digits a number shows behind the point; ``1.5e-3`` shows four."""
    mantissa, _, exponent = text.lower().partition("e")
    return len(mantissa.partition(".")[2]) - int(exponent or 0)
