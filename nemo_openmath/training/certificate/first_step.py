"""The certificate of a training's own first step: made before its ranks start, held against its loss before the weights
change.

    prepare        in the process that starts the ranks: a child computes OUTPUT/certificate.json, where it is missing
    check          in rank 0, with the loss of step 1
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_openmath.checkpoints.formats.step_folders import list_checkpoints
from nemo_openmath.core.errors import ExitCode, OpenMathError, UserError
from nemo_openmath.core.processes import child_environment, killed_with_parent
from nemo_openmath.models.layout import Precision
from nemo_openmath.training.certificate.diagnose import diagnose
from nemo_openmath.training.certificate.files import RIGHT, Certificate, UnusableCertificate
from nemo_openmath.training.certificate.losses import ReportedLoss
from nemo_openmath.training.certificate.report import NotCertified, advice, verdict
from nemo_openmath.training.config import TrainingJob

CERTIFICATE = "certificate.json"
log = logging.getLogger(__name__)


def prepare(
    job: TrainingJob, file: Path, processes: int, overrides: Sequence[str], on_line: Callable[[str], None]
) -> None:
    """Make the certificate of a job that asks for one, in a process of its own; nothing is done where the training has
    been begun already. ``file`` is the job's file. Raises UserError, and what the process died of."""
    if not job.training.certify or list_checkpoints(job.output / "checkpoints"):
        return
    command = [sys.executable, "-P", "-m", "nemo_openmath.training.certificate", str(file), *overrides]
    with tempfile.TemporaryFile("w+") as errors:  # a file takes them while the lines are read; a pipe fills up
        process = subprocess.Popen(
            [*command, "--processes", str(processes)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=child_environment(),
            preexec_fn=killed_with_parent(),
        )
        assert process.stdout is not None
        for line in process.stdout:
            on_line(line.rstrip())
        process.wait()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
    if process.returncode == ExitCode.USER_ERROR:
        raise UserError(last)
    if process.returncode:
        raise OpenMathError(f"the certificate was not made (exit code {process.returncode}): {last}")


def make(job: TrainingJob, processes: int) -> None:
    """Write OUTPUT/certificate.json of a job's first batch, where none lies there that fits it."""
    from nemo_openmath.data.batches.batch_sharding import shard_batch
    from nemo_openmath.training.certificate.certify import CertifiedData, make_certificate
    from nemo_openmath.training.certificate.faults.batch import Layouts
    from nemo_openmath.training.certificate.views import without_padding
    from nemo_openmath.training.worker import open_job

    base, source, _ = open_job(job)
    parallel, precision = job.training.parallel, job.training.precision
    dp = max(1, processes // parallel.model_parallel)
    stages = parallel.pp * parallel.vpp
    layouts = Layouts(
        stages=(stages,) if stages > 2 else (),
        cp=(parallel.cp,) if parallel.cp > 1 else (),
        dp=(dp,) if dp > 1 else (),
        paddings=(parallel.sample_multiple,),
    )
    layout = {**asdict(parallel), "dp": dp}
    file = job.output / CERTIFICATE
    if file.exists():
        difference = _difference_of_file(file, base.identity, source.fingerprint, precision, layout)
        if not difference:
            log.info(f"certificate: {file} is of this model, these packs and this layout")
            return
        log.info(f"certificate: {file} {difference}: made again")
    batch = source.batch(0)
    micro_batches = [pack for share in shard_batch(batch, dp, parallel) for pack in share]
    data = CertifiedData(
        [without_padding(micro_batches, batch)],
        {"folder": str(job.data.folder), "digest": source.fingerprint, "layout": layout},
        capacity=0,
        pad_multiple=1,
    )
    certificate = make_certificate(base, data, layouts, precision)
    job.output.mkdir(parents=True, exist_ok=True)
    certificate.write(file)


def _difference_of_file(
    file: Path, identity: Mapping[str, Any], packs: str, precision: Precision, layout: Mapping[str, int]
) -> str:
    """Return why the certificate that lies there cannot be taken; empty where it can."""
    try:
        certificate = Certificate.read(file)
    except UnusableCertificate as error:
        return error.problem
    difference = _difference(certificate, identity, packs, precision)
    if not difference and certificate.packs.get("layout") != layout:
        difference = "another layout"
    return f"is of {difference}" if difference else ""


def check(output: Path, identity: Mapping[str, Any], packs: str, precision: Precision, loss: float) -> str:
    """Return a line that says how the ``loss`` of step 1 stands to OUTPUT/certificate.json.

    ``identity``: :attr:`BaseModel.identity`; ``packs``: the data's fingerprint. A loss that is right, but is a fault's
    as well within the tolerance, passes, and the line names the fault. Raises NotCertified for any other, and UserError
    where the certificate is missing or is of another model or other packs.
    """
    file = output / CERTIFICATE
    certificate = Certificate.read(file)
    if difference := _difference(certificate, identity, packs, precision):
        raise UserError(f"is of {difference}", file=file, remedy="remove it, so that it is made again")
    diagnosis = diagnose(certificate, [ReportedLoss(1, 1, loss)], certificate.tolerances[precision])
    line = f"step 1: loss {loss:.6f}: {verdict(diagnosis, certificate)}"
    if RIGHT in diagnosis.names:
        return line
    raise NotCertified("; ".join([line, *advice(diagnosis, certificate), "weights unchanged"]))


def _difference(certificate: Certificate, identity: Mapping[str, Any], packs: str, precision: Precision) -> str:
    """Return in what a certificate is not of this training; empty where it is."""
    model = certificate.model
    if (model["digest"], model["config"]) != (identity["source"], identity["model"]):
        return "another model"
    if certificate.packs["digest"] != packs:
        return "other packs, or of another order of them"
    return f"weights in {model['weights']}" if model["weights"] != precision else ""
