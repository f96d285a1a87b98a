"""``openmath certify`` and ``openmath diagnose``: the loss of a right trainer, and what a wrong one means."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import AGAIN, at_least, verb

_CODES = """exit codes of diagnose beside these: 4 a known fault gives the losses, 5 no known fault does,
6 they cannot be told apart from another fault's"""


def add(groups: Any) -> None:
    certify = verb(
        groups,
        "certify",
        "write the loss of packs that a right trainer reports, and those of known faults",
        _certify,
        interrupted=AGAIN,
    )
    certify.add_argument("packs", type=Path, metavar="PACKS", help="folder of a finished sft.pack")
    certify.add_argument("model", type=Path, metavar="MODEL", help="model folder, or a checkpoint step-*")
    certify.add_argument("--output", type=Path, required=True, metavar="CERT.json", help="certificate to write")
    certify.add_argument(
        "--packs",
        type=at_least(1),
        default=4,
        dest="number",
        metavar="N",
        help="packs of one batch, chosen to tell faults apart",
    )
    certify.add_argument(
        "--batch-samples", type=at_least(1), metavar="N", help="instead: batches of a training of ours, N samples each"
    )
    certify.add_argument("--steps", type=at_least(1), default=1, help="batches, with --batch-samples")
    certify.add_argument("--seed", type=int, default=0, help="of the order of packs, with --batch-samples")
    certify.add_argument(
        "--stages",
        type=at_least(3),
        nargs="*",
        metavar="N",
        help="pipeline stages (x chunks of each); default: those from 3 to 16 that divide the layers",
    )
    certify.add_argument(
        "--cp", type=at_least(2), nargs="*", default=[2, 4], metavar="N", help="context-parallel sizes"
    )
    certify.add_argument(
        "--dp", type=at_least(2), nargs="*", default=[2, 4, 8], metavar="N", help="data-parallel sizes"
    )
    certify.add_argument(
        "--weights", choices=["fp32", "bf16"], default="fp32", help="bf16: round them first, as a bf16 training does"
    )
    certify.add_argument("--rope-theta", type=float, metavar="B", help="in place of the model's")
    certify.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="to compute on")
    certify.add_argument("--data", type=Path, metavar="FILE", help="write the packs as JSON Lines for another trainer")
    diagnose = verb(groups, "diagnose", "name the fault that gives a trainer's losses", _diagnose, interrupted=AGAIN)
    diagnose.epilog = f"{diagnose.epilog}\n{_CODES}\n"
    diagnose.add_argument(
        "losses", type=Path, metavar="LOSSES", help="CSV with columns step,loss, and micro_batch or sample"
    )
    diagnose.add_argument("--certificate", type=Path, required=True, metavar="CERT.json")
    diagnose.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        help="in which the trainer computed: states the tolerance (default: fp32; what is right in bf16 is no fault)",
    )
    diagnose.add_argument("--tolerance", type=float, metavar="SHARE", help="relative, instead of the precision's")


def _certify(options: argparse.Namespace) -> None:
    from nemo_openmath.training.certificate.command import CertifyRequest, certify

    print(certify(CertifyRequest.of(options)))


def _diagnose(options: argparse.Namespace) -> None:
    from nemo_openmath.training.certificate.command import diagnose_file

    for line in diagnose_file(options.losses, options.certificate, options.precision, options.tolerance):
        print(line)
