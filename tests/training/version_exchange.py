"""A training that other versions of torch and megatron-core go on with: tests/versions.sh runs it under each.

python -m tests.training.version_exchange write FOLDER   ten steps, saved at the fifth; in fp32 and in bf16
python -m tests.training.version_exchange read FOLDER    goes on from the fifth, also at another layout, and compares
"""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.support.ranks import run_ranks
from tests.training.packs import write_model
from tests.training.results import assert_close, final_weights, records

STEPS, SAVED = 10, 5
CONFIG: dict[str, Any] = {
    "lr": 1e-3,
    "warmup": 0.2,
    "epsilon": 1e-6,
    "distributed_optimizer": True,
    "checkpoints": {"every": SAVED, "keep_last": 0},
}
LAYOUTS: dict[str, dict[str, Any]] = {"DP2": {}, "TP2": {"parallel": {"tp": 2}}, "bf16": {"precision": "bf16"}}


def trained(folder: Path, name: str) -> Path:
    return folder / ("bf16" if name == "bf16" else "DP2")


def write(folder: Path) -> None:
    write_model(folder / "model", "tied")
    run(folder, [case(folder, name, trained(folder, name)) for name in ("DP2", "bf16")])


def read(folder: Path) -> None:
    """Raises AssertionError where what follows the checkpoint is not what the writer had."""
    with tempfile.TemporaryDirectory() as scratch:
        new = {name: Path(scratch) / name for name in LAYOUTS}
        run(
            folder,
            [case(folder, n, out) | {"start": str(trained(folder, n)), "until": SAVED} for n, out in new.items()],
        )
        for name, output in new.items():
            tolerance = 5e-3 if name == "bf16" else 1e-5
            got, whole = ({r["step"]: r["loss"] for r in records(p)} for p in (output, trained(folder, name)))
            assert sorted(got) == list(range(SAVED, STEPS + 1)), sorted(got)
            gap = max(abs(got[step] / whole[step] - 1) for step in got)
            assert gap < tolerance, (name, gap)
            assert_close(final_weights(output), final_weights(trained(folder, name)), tolerance)
            print(f"{name}: read by megatron-core {version('megatron-core')}: five steps, losses within {gap:.1e}")


def case(folder: Path, name: str, output: Path) -> dict[str, Any]:
    config = CONFIG | LAYOUTS[name]
    return {
        "kind": "train",
        "model": str(folder / "model"),
        "output": str(output),
        "steps": STEPS,
        "config": config,
    }


def run(folder: Path, cases: list[dict[str, Any]]) -> None:
    run_ranks("tests.training.training_ranks", 2, cases, folder)


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
