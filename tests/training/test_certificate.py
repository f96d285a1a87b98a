"""The loss certificate: each fault put into our trainer is named, and no other; our own layouts pass."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_openmath.cli import main as command
from nemo_openmath.core.errors import ExitCode
from nemo_openmath.data.batches.packed_data import PackedData
from nemo_openmath.data.packs.write import write_packs
from nemo_openmath.data.tokens.token_file import ShardWriter, write_manifest
from nemo_openmath.training.certificate.diagnose import Diagnosis, diagnose
from nemo_openmath.training.certificate.files import Certificate, ReportedLoss
from tests.support import models
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow

MODEL = models.TIED.with_changes(num_hidden_layers=12)
LENGTHS = (37, 23, 5, 41, 90, 38, 3, 17, 7, 30, 65)

# (layout, ranks, fault): as many as there are; right where it is None
PP4 = {"pp": 4}
CASES: list[tuple[dict[str, Any], int, str | None]] = [
    ({"pp": 3}, 3, None),
    ({"pp": 3}, 3, "middle_stages_as_one_sequence"),
    (PP4, 4, None),
    ({"pp": 2, "vpp": 3}, 4, None),
    ({"tp": 2, "sequence_parallel": True, "cp": 2}, 4, None),
    ({"cp": 2}, 4, None),
    *(
        (PP4, 4, name)
        for name in (
            "attention_across_samples",
            "pack_as_one_sequence",
            "middle_stages_as_one_sequence",
            "positions_not_reset",
            "rotary_base",
            "mask_late",
            "mask_early",
            "prompt_trained",
            "labels_not_shifted",
            "labels_shifted_twice",
            "boundary_targets",
            "micro_batch_means",
            "sample_means",
            "loss_summed",
            "divided_by_all_tokens",
            "scaled",
            "weights_not_loaded",
        )
    ),
    *(
        ({"cp": 2}, 4, name)
        for name in (
            "context_order",
            "context_order over the pack",
            "rank_positions",
            "padding_trained",
            "tokens_dropped",
        )
    ),
]


def _write_packs(folder: Path) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    with ShardWriter(folder / "00000.tokens", tokenizer="t", vocab_size=MODEL.vocab_size, source="s") as writer:
        for number, length in enumerate(LENGTHS):
            mask = np.arange(length) >= length // 3
            if number == 4:
                mask[40:50] = False  # what a tool wrote
            writer.add(f"sample-{number}", "cot", random.integers(2, MODEL.vocab_size, length), mask)
        writer.finish({})
    write_manifest(folder, ["00000.tokens"])
    write_packs(folder, capacity=128, pad_multiple=4)


def _name(layout: dict[str, Any], fault: str | None) -> str:
    return "-".join(f"{key}{int(value)}" for key, value in layout.items()) + f" {fault or 'right'}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the certificate (cert.json), of a job's (out/certificate.json) and of each case's loss."""
    root = tmp_path_factory.mktemp("certificate")
    models.make(root / "hf", MODEL)
    (root / "hf/tokenizer.json").unlink()
    _write_packs(root / "packs")
    data = f"data: {{folder: packs, steps: 2, batch_samples: {len(LENGTHS)}}}"
    job = root / "job.yaml"
    job.write_text(f"{{model: hf, {data}, output: out, training: {{certify: true}}}}")
    making = subprocess.Popen([sys.executable, "-m", "tests.training.certifying", str(root)])
    for world in (3, 4):
        cases = [
            {
                "job": str(job),
                "overrides": [f"parallel.{key}={value}" for key, value in layout.items()],
                "fault": fault,
                "output": str(root / _name(layout, fault)),
            }
            for layout, ranks, fault in CASES
            if ranks == world
        ]
        if world == 4:
            assert making.wait() == 0
            for fault in (None, "pack_as_one_sequence"):
                case = {"job": str(job), "overrides": ["parallel.pp=4"], "fault": fault, "train": True}
                cases.append({**case, "output": str(root / f"trained {fault}")})
        run_ranks("tests.training.faulty_ranks", world, cases, root)
    return root


@pytest.fixture(scope="module")
def certificate(root: Path) -> Certificate:
    return Certificate.read(root / "cert.json")


def _diagnose(certificate: Certificate, loss: float) -> Diagnosis:
    return diagnose(certificate, [ReportedLoss(2, 1, loss)], certificate.tolerances["fp32"])


@pytest.mark.parametrize(("layout", "fault"), [case[::2] for case in CASES], ids=lambda value: str(value))
def test_a_fault_is_named_and_no_other(
    root: Path, certificate: Certificate, layout: dict[str, Any], fault: str | None
) -> None:
    diagnosis = _diagnose(certificate, float((root / _name(layout, fault)).read_text()))
    if fault in (None, "positions_not_reset"):  # rotary angles see differences alone: the loss is right
        assert diagnosis.status == "certified", diagnosis
        assert diagnosis.right_gap < 2e-6
    else:
        assert diagnosis.names == [fault.split()[0]], diagnosis
        assert diagnosis.status == "fault"
    if fault == "middle_stages_as_one_sequence":
        assert diagnosis.explanations[0].variant.startswith(f"{layout['pp']} stages")
