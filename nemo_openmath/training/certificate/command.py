"""What the verbs ``certify`` and ``diagnose`` do."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.outputs import refuse_foreign_file, refuse_unwritable_file
from nemo_openmath.models.devices import DeviceChoice
from nemo_openmath.models.layout import Precision
from nemo_openmath.training.certificate.alone import world_of_one
from nemo_openmath.training.certificate.diagnose import diagnose
from nemo_openmath.training.certificate.files import FORMAT, RIGHT, Certificate
from nemo_openmath.training.certificate.losses import read_losses
from nemo_openmath.training.certificate.report import EXIT_CODES, NotCertified, advice, table, verdict


@dataclass(frozen=True)
class CertifyRequest:
    """What to certify; the verb's options of the same names."""

    packs: Path
    model: Path
    output: Path
    number: int
    batch_samples: int | None
    steps: int
    seed: int
    stages: tuple[int, ...] | None
    cp: tuple[int, ...]
    dp: tuple[int, ...]
    weights: Precision
    rope_theta: float | None
    data: Path | None
    device: DeviceChoice

    @classmethod
    def of(cls, options: argparse.Namespace) -> CertifyRequest:
        """Return the request of a command line."""
        values: dict[str, Any] = {name: getattr(options, name) for name in cls.__dataclass_fields__}
        for name in ("stages", "cp", "dp"):
            values[name] = None if values[name] is None else tuple(values[name])
        return cls(**values)


def certify(request: CertifyRequest) -> str:
    """Write the certificate and return what it says, for people. Raises UserError for what does not fit."""
    refuse_unwritable_file(request.output, "--output")
    refuse_foreign_file(request.output, "a loss certificate", _is_ours)
    with world_of_one(request.device):
        return _certify(request)


def _is_ours(line: bytes) -> bool:
    return line.strip() == b"{" or FORMAT.encode() in line


def _certify(request: CertifyRequest) -> str:
    from nemo_openmath.training.base_model import BaseModel  # torch takes seconds to import
    from nemo_openmath.training.certificate.certify import (
        chosen_packs,
        first_batches,
        make_certificate,
        stages_of,
        write_data,
    )
    from nemo_openmath.training.certificate.faults.batch import Layouts
    from nemo_openmath.training.worker import tokenizer_fingerprint

    changes = {} if request.rope_theta is None else {"rope_theta": request.rope_theta}
    base = BaseModel.open(request.model, changes)
    tokenizer = tokenizer_fingerprint(request.model)
    if request.batch_samples is None:
        data = chosen_packs(request.packs, request.number, tokenizer)
    else:
        data = first_batches(
            request.packs,
            batch_samples=request.batch_samples,
            steps=request.steps,
            seed=request.seed,
            tokenizer=tokenizer,
        )
    layers = base.config.num_hidden_layers
    stages = stages_of(layers) if request.stages is None else request.stages
    wrong = [number for number in stages if layers % number]
    if wrong:
        raise UserError(f"--stages {wrong[0]} does not divide the model's {layers} layers", file=request.model)
    layouts = Layouts(stages, request.cp, request.dp, tuple(sorted({1, data.pad_multiple})), data.capacity)
    certificate = make_certificate(base, data, layouts, request.weights)
    certificate.write(request.output)
    if request.data is not None:
        write_data(data, request.data)
    return f"{table(certificate)}\nwritten: {request.output}"


def diagnose_file(losses: Path, file: Path, precision: Precision | None, tolerance: float | None) -> Iterator[str]:
    """Yield lines of what the CSV ``losses`` says of a trainer. Raises UserError that names a bad row, and at the end
    NotCertified where it does not say that the trainer is right.

    Where nobody says in which precision the trainer computed, it is fp32, unless a right trainer in bf16 gives the
    losses, too: then no fault is named.
    """
    certificate = Certificate.read(file)
    is_open = precision is None and tolerance is None
    if tolerance is None:
        tolerance = certificate.tolerances[precision or "fp32"]
    if not 0 < tolerance < 1 or not math.isfinite(tolerance):
        raise UserError(f"--tolerance {tolerance}", remedy="choose a share of the loss, such as 1e-4")
    read = read_losses(losses, certificate)
    if left_out := read.left_out():
        yield left_out
    reported = read.losses
    diagnosis = diagnose(certificate, reported, tolerance)
    if is_open and diagnosis.status in ("fault", "unknown"):
        rounded = diagnose(certificate, reported, certificate.tolerances["bf16"])
        if RIGHT in rounded.names:
            names = f"right (in bf16) and {' or '.join(diagnosis.names) or 'unknown'}"
            yield f"cannot tell apart {names}: say in which precision it computed, --precision bf16 or fp32"
            raise NotCertified(f"{losses}: not certified", EXIT_CODES["undecided"])
    line = verdict(diagnosis, certificate)
    yield from (line, *advice(diagnosis, certificate))
    if diagnosis.status != "certified":
        raise NotCertified(f"{losses}: not certified", EXIT_CODES[diagnosis.status])
