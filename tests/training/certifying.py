"""``python -m tests.training.certifying ROOT``: the certificates of the proofs, made in one process."""

import os
import sys
from pathlib import Path

from nemo_openmath.cli.main import run

root = Path(sys.argv[1])
code = run(
    [
        "certify",
        str(root / "packs"),
        str(root / "hf"),
        "--output",
        str(root / "cert.json"),
        "--batch-samples",
        "11",
        "--data",
        str(root / "data.jsonl"),
    ]
)

from nemo_openmath.training.certificate.alone import world_of_one  # noqa: E402
from nemo_openmath.training.certificate.first_step import make  # noqa: E402
from nemo_openmath.training.job import read_job  # noqa: E402

with world_of_one("cpu"):
    make(read_job(root / "job.yaml", ["parallel.pp=4"]), 4)
sys.stdout.flush()
os._exit(int(code))
