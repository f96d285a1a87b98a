"""A certificate's file, read and written by the standard library alone.

A certificate is JSON of this form, version 2:

    format, version     "openmath loss certificate", 2
    digest              SHA-256 in hexadecimal digits of all other fields, as compact JSON with sorted keys
    model               folder, digest (of the weights), config, weights (fp32, or bf16: rounded before they are used)
    packs               folder, digest (of packs and order), batch_samples, seed; or chosen (numbers in the plan)
    tolerances          {"fp32": ..., "bf16": ...}, relative, of the loss of a trainer that computes in this precision
    faults              {name: {"what", "where", "sources", "harmless", "some_data"}}
    steps               a list, one for each global batch, all of the weights that the model came with:
        step            number from 1
        loss            that a right trainer reports: the mean of -log p over all target tokens of the batch
        target_tokens
        samples         [{"id", "micro_batch", "tokens", "target_tokens", "loss" (mean; null: no target)}]
        predicted       [{"fault", "variant", "tolerance", "loss", "micro_batches": [loss], "samples": [loss]}]
    unexercised         [[fault, variant], ...] that change nothing of these packs' losses
    inseparable         {precision: [[name, name], ...]} whose losses coincide; "right" is a right trainer

A program that holds losses against it needs no more than ``json``. Version 1 had no digest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.outputs import partial_file

FORMAT = "openmath loss certificate"
VERSION = 2
RIGHT = "right"  # the name of a right trainer among those of faults
TOLERANCES = {"fp32": 1e-5, "bf16": 3e-3}

_REST = ("model", "packs", "faults", "unexercised", "inseparable", "tolerances")


class UnusableCertificate(UserError):
    """Raised for a certificate that is of another version, not whole, or was changed after it was made."""


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
        content = {"digest": digest(content), **content}
        partial = partial_file(file)
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        partial.rename(file)

    @classmethod
    def read(cls, file: Path) -> Certificate:
        """Read a certificate. Raises UserError where the file is none, and UnusableCertificate where it is one of
        another version, or not as it was written."""
        try:
            content = json.loads(file.read_text())
        except FileNotFoundError:
            raise UserError("no such file", file=file, remedy="make it with openmath certify") from None
        except ValueError as error:
            raise UserError(f"is no JSON ({error})", file=file, remedy="make it again with openmath certify") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError("is no loss certificate", file=file, remedy="make one with openmath certify")
        remedy = "make it again with openmath certify"
        if content.get("version") != VERSION:
            problem = f"is of version {content.get('version')}, this program reads {VERSION}"
            raise UnusableCertificate(problem, file=file, remedy=remedy)
        if content.pop("digest", None) != digest(content):
            problem = "is not whole (it was changed after it was made: its digest is another)"
            raise UnusableCertificate(problem, file=file, remedy=remedy)
        try:
            steps = [_step(step) for step in content["steps"]]
            rest = {name: content[name] for name in _REST}
            certificate = cls(steps=steps, **rest)
            certificate.check()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            problem = f"is not whole ({type(error).__name__}: {error})"
            raise UnusableCertificate(problem, file=file, remedy=remedy) from None
        return certificate

    def check(self) -> None:
        """Raise AttributeError, KeyError, TypeError or ValueError where something in it is not what it should be."""
        if not self.steps:
            raise ValueError("it has no steps")
        for step in self.steps:
            step.check()
        for fault in self.faults.values():
            _ = fault["what"], fault["where"], fault["sources"], fault["harmless"], fault["some_data"]
        for precision in TOLERANCES:
            if not 0 < self.tolerances[precision] < 1:
                raise ValueError(f"the tolerance of {precision} is no share of the loss")


def digest(content: Mapping[str, Any]) -> str:
    """Return the digest of a certificate's fields, that of the digest left out. It does not depend on their order, nor
    on white space."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _step(content: Mapping[str, Any]) -> CertifiedStep:
    samples = [CertifiedSample(**sample) for sample in content["samples"]]
    predicted = [Predicted(**fault) for fault in content["predicted"]]
    return CertifiedStep(content["step"], content["loss"], content["target_tokens"], samples, predicted)
