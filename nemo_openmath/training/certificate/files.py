"""The files of a certificate, read and written by the standard library alone.

A certificate is JSON of this form, version 1:

    format, version     "openmath loss certificate", 1
    model               folder, digest (of the weights), config, weights (fp32, or bf16: rounded before they are used)
    packs               folder, digest (of packs and order), batch_samples, seed; or chosen (numbers in the plan)
    tolerances          {"fp32": ..., "bf16": ...}, relative, of the loss of a trainer that computes in this precision
    faults              {name: {"what", "where", "sources", "harmless"}}
    steps               a list, one for each global batch, all of the weights that the model came with:
        step            number from 1
        loss            that a right trainer reports: the mean of -log p over all target tokens of the batch
        target_tokens
        samples         [{"id", "micro_batch", "tokens", "target_tokens", "loss" (mean; null: no target)}]
        predicted       [{"fault", "variant", "tolerance", "loss", "micro_batches": [loss], "samples": [loss]}]
    unexercised         [[fault, variant], ...] that change nothing of these packs' losses
    inseparable         {precision: [[name, name], ...]} whose losses coincide; "right" is a right trainer

A program that holds losses against it needs no more than ``json``.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.outputs import partial_file

FORMAT = "openmath loss certificate"
VERSION = 1
RIGHT = "right"  # the name of a right trainer among those of faults
TOLERANCES = {"fp32": 1e-5, "bf16": 3e-3}

_REST = ("model", "packs", "faults", "unexercised", "inseparable", "tolerances")
_COLUMNS = ("step", "loss", "micro_batch", "sample")


@dataclass(frozen=True)
class CertifiedSample:
    """A sample of a batch, and its right loss."""

    id: str
    micro_batch: int  # number of its pack in the step, from 0
    tokens: int
    target_tokens: int
    loss: float | None  # mean over its target tokens


@dataclass(frozen=True)
class Predicted:
    """The losses of a step with one variant of a fault."""

    fault: str
    variant: str
    tolerance: float  # relative, of the prediction itself
    loss: float
    micro_batches: list[float | None]
    samples: list[float | None]


@dataclass(frozen=True)
class CertifiedStep:
    """A global batch: its right losses and those of faults."""

    step: int
    loss: float
    target_tokens: int
    samples: list[CertifiedSample]
    predicted: list[Predicted]

    def check(self) -> None:
        """Raise TypeError or ValueError where a loss is no finite number, or the batch's is not that of its samples."""
        parts = [loss for fault in self.predicted for loss in (*fault.micro_batches, *fault.samples)]
        parts += [sample.loss for sample in self.samples]
        losses = [self.loss, *(fault.loss for fault in self.predicted), *(loss for loss in parts if loss is not None)]
        if not all(math.isfinite(loss) for loss in (*losses, *(fault.tolerance for fault in self.predicted))):
            raise ValueError(f"a loss of step {self.step} is not finite")
        mean = sum((sample.loss or 0.0) * sample.target_tokens for sample in self.samples) / max(1, self.target_tokens)
        if not math.isclose(mean, self.loss, rel_tol=1e-6):
            raise ValueError(f"the loss of step {self.step} is {self.loss}, its samples' is {mean}")

    def right(self) -> Predicted:
        """Return the right losses in the form of predicted ones."""
        number = 1 + max(sample.micro_batch for sample in self.samples)
        sums, counts = [0.0] * number, [0] * number
        for sample in self.samples:
            counts[sample.micro_batch] += sample.target_tokens
            sums[sample.micro_batch] += (sample.loss or 0.0) * sample.target_tokens
        micro_batches = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
        return Predicted(RIGHT, "", 0.0, self.loss, micro_batches, [sample.loss for sample in self.samples])


@dataclass(frozen=True)
class Certificate:
    """What stands in cert.json; the module's text explains each field."""

    model: dict[str, Any]
    packs: dict[str, Any]
    faults: dict[str, dict[str, Any]]
    steps: list[CertifiedStep]
    unexercised: list[list[str]] = field(default_factory=list)
    inseparable: dict[str, list[list[str]]] = field(default_factory=dict)
    tolerances: dict[str, float] = field(default_factory=lambda: dict(TOLERANCES))

    def write(self, file: Path) -> None:
        """Write it, in one step."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        partial = partial_file(file)
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        partial.rename(file)

    @classmethod
    def read(cls, file: Path) -> Certificate:
        """Read a certificate. Raises UserError where the file is none, or one of a later version."""
        try:
            content = json.loads(file.read_text())
        except FileNotFoundError:
            raise UserError("no such file", file=file, remedy="make it with openmath certify") from None
        except ValueError as error:
            raise UserError(f"is no JSON ({error})", file=file, remedy="make it again with openmath certify") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError("is no loss certificate", file=file, remedy="make one with openmath certify")
        if content.get("version") != VERSION:
            problem = f"is of version {content.get('version')}, this program reads {VERSION}"
            raise UserError(problem, file=file, remedy="make it again with openmath certify")
        try:
            steps = [_step(step) for step in content["steps"]]
            rest = {name: content[name] for name in _REST}
            certificate = cls(steps=steps, **rest)
            certificate.check()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            problem = f"is not whole ({type(error).__name__}: {error})"
            raise UserError(problem, file=file, remedy="make it again with openmath certify") from None
        return certificate

    def check(self) -> None:
        """Raise AttributeError, KeyError, TypeError or ValueError where something in it is not what it should be."""
        if not self.steps:
            raise ValueError("it has no steps")
        for step in self.steps:
            step.check()
        for fault in self.faults.values():
            _ = fault["what"], fault["where"], fault["sources"], fault["harmless"]
        for precision in TOLERANCES:
            if not 0 < self.tolerances[precision] < 1:
                raise ValueError(f"the tolerance of {precision} is no share of the loss")


def _step(content: Mapping[str, Any]) -> CertifiedStep:
    samples = [CertifiedSample(**sample) for sample in content["samples"]]
    predicted = [Predicted(**fault) for fault in content["predicted"]]
    return CertifiedStep(content["step"], content["loss"], content["target_tokens"], samples, predicted)


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


def read_losses(file: Path, certificate: Certificate) -> list[ReportedLoss]:
    """Read a CSV with a heading: ``step`` and ``loss``, and ``micro_batch`` or ``sample`` where a row is of a part.

    Raises UserError that names the row: for what is no number, what the certificate does not hold, and what stands
    there twice.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read it ({error.strerror})", file=file, remedy="check the path") from None
    except UnicodeDecodeError:
        raise UserError("is no text", file=file, remedy="give a CSV with columns step,loss") from None
    rows = csv.reader(lines)
    heading = [name.strip().lower() for name in next(rows, [])]
    if not {"step", "loss"} <= set(heading) or len(set(heading)) < len(heading):
        problem = f"the heading is {','.join(heading) or 'missing'}"
        raise UserError(problem, file=file, row=1, remedy="begin the file with a line step,loss")
    for name in heading:
        if name not in _COLUMNS:
            raise UserError(f"unknown column {name!r}", file=file, row=1, remedy=f"use {', '.join(_COLUMNS)}")
    losses: list[ReportedLoss] = []
    seen: dict[tuple[int, int | None, str | None], int] = {}
    for cells in rows:
        row = rows.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(heading):
            raise UserError(f"{len(cells)} cells, the heading has {len(heading)}", file=file, row=row)
        values = {name: cell.strip() for name, cell in zip(heading, cells, strict=True)}
        reported = _reported(values, file, row, certificate)
        key = (reported.step, reported.micro_batch, reported.sample)
        if key in seen:
            raise UserError(f"the same as row {seen[key]}", file=file, row=row, remedy="leave out one of them")
        seen[key] = row
        losses.append(reported)
    if not losses:
        raise UserError("no row holds a loss", file=file, remedy="write a row for each step, such as 1,2.3456")
    return losses


def _reported(values: Mapping[str, str], file: Path, row: int, certificate: Certificate) -> ReportedLoss:
    steps = {step.step: step for step in certificate.steps}
    if not _is_number(values["step"]) or int(values["step"]) not in steps:
        problem = f"step {values['step'] or 'is missing'}: the certificate has steps 1 to {len(steps)}"
        remedy = "give losses of the weights that the model came with: of step 1, or with a learning rate of 0"
        raise UserError(problem, file=file, row=row, remedy=remedy)
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
