"""What may fail in a training: a rank hangs, a disk is full, ranks see different files, a device breaks."""

from __future__ import annotations

import json
import pydoc
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.checkpoints.formats import step_folders
from nemo_openmath.core.errors import ExitCode, Hung
from nemo_openmath.training import rank_processes
from nemo_openmath.training.failures import meaning
from tests.support.disk import small_disk
from tests.support.ranks import run_ranks
from tests.training.packs import write_model
from tests.training.results import records


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 24 << 20) as mounted:
        yield mounted


def _end(folder: Path, name: str) -> str:
    """How a case ended: in both ranks alike."""
    first, second = ((folder / f"{name}-{rank}.end").read_text() for rank in (0, 1))
    assert first == second
    return first


def test_failed_saves_disagreement_and_a_hang(tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of two ranks, one after another in one start of processes.

    - A disk that is full for two steps costs two checkpoints and nothing else, be they written at once or meanwhile.
    - Three failed saves in a row end the training; when there is room, it goes on from its last good checkpoint.
    - Asked to stop on a full disk, it does not say that it has saved.
    - A rank that sees other files than the others is waited for, and named; no rank goes another way.
    - A rank that is stopped is found by the other one, which leaves its stacks.
    """
    model = str(write_model(tmp_path / "hf", "tied"))

    def case(name: str, *, steps: int = 6, asynchronous: bool = False, **trouble: Any) -> dict[str, Any]:
        saves = {"every": 1, "keep_last": 1, "asynchronous": asynchronous, "failed_saves": 3}
        config = {"lr": 1e-3, "distributed_optimizer": True, "checkpoints": saves}
        config["hang_seconds"] = trouble.pop("hang", 60)
        end = str(tmp_path / trouble.pop("end", name))
        what = {"kind": "train", "model": model, "config": config, "steps": steps, "end": end}
        return {**what, "output": str(disk / name), **trouble}

    cases = [
        {"kind": "disagreement", "output": str(disk / "files"), "end": str(tmp_path / "files")},
        case("goes-on", full=2, room=4),
        case("goes-on", steps=8, stale=True),
        case("asynchronous", asynchronous=True, full=2, room=4),
        case("full", end="full-1", full=3),
        case("full", end="full-2", steps=4),
        case("preempted", full=3, preempted=3),
        case("hang", stopped=2, hang=1.5, steps=4),
    ]
    monkeypatch.setattr(rank_processes, "KILL_AFTER_SECONDS", 0.2)  # for the rank that is stopped
    with pytest.raises(
        Hung, match=r"^hung in step 2 \(\w+\); suspected: rank 1 on .* \(its heartbeat stopped, last seen in step 1, "
    ):
        run_ranks("tests.training.troubled_ranks", 2, cases, tmp_path)

    seen, differs, missing, refused = _end(tmp_path, "files").splitlines()
    assert seen == "seen"
    assert re.match(r"MachineFailure: rank 1 on \S+ does not see the packs as others do, after 0 s; check the", differs)
    assert missing.startswith("UserError: packs.plan: cannot be used (No such file or directory)")
    assert refused.startswith("UserError: checkpoints: cannot be used (Permission denied)")

    for name in ("goes-on", "asynchronous"):
        assert _end(tmp_path, name) == "done"
        rows = records(disk / name)
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))  # lines waited for room, too
        assert not list((disk / name / "checkpoints").glob(".*"))  # nothing half-written
        step_folders.verify(step_folders.step_folder(disk / name / "checkpoints", len(rows)))
    assert len(records(disk / "goes-on")) == 8  # rank 0 alone listed the checkpoints

    failed = _end(tmp_path, "full-1")
    assert re.match(
        r"MachineFailure 77: .*/step-00000005: rank \d could not write the checkpoint: No space left ", failed
    )
    assert failed.endswith(
        "3 of 3 attempts in a row failed; make room, then run it again: it goes on from step-00000002"
    )
    assert _end(tmp_path, "full-2") == "done"
    assert _end(tmp_path, "preempted").endswith("it goes on from step-00000002")  # not "saved": exit code 77, not 75

    [suspect] = json.loads((disk / "hang/suspect-ranks.json").read_text())
    assert (suspect["rank"], suspect["node"]) == (1, socket.gethostname())
    [stacks] = (disk / "hang/stacks").iterdir()
    assert re.match(r"rank 0 on \S+: nothing advanced for \d+ s in step 2 ", stacks.read_text())
    assert "in train_step" in stacks.read_text()


@pytest.mark.parametrize(
    ("kind", "text", "code"),
    [
        ("torch.AcceleratorError", "CUDA error: uncorrectable ECC error encountered", ExitCode.MACHINE),
        ("torch.AcceleratorError", "CUDA error: unspecified launch failure", ExitCode.MACHINE),
        ("torch.AcceleratorError", "CUDA error: device-side assert triggered", None),  # an index of ours
        ("torch.AcceleratorError", "CUDA error: out of memory", ExitCode.USER_ERROR),
        ("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 MiB", ExitCode.USER_ERROR),
        (
            "torch.distributed.DistBackendError",
            "NCCL error: unhandled cuda error, ncclUnhandledCudaError",
            ExitCode.MACHINE,
        ),
        ("torch.distributed.DistBackendError", "NCCL error: remote process exited or there was a", ExitCode.FAILURE),
        ("torch.distributed.DistBackendError", "NCCL communicator was aborted on rank 3.", ExitCode.FAILURE),
        ("torch.distributed.DistNetworkError", "failed to recv, got 0 bytes", ExitCode.FAILURE),
        ("torch.distributed.DistStoreError", "Timed out after 4 seconds waiting for clients", ExitCode.MACHINE),
        ("RuntimeError", "[pair.cc:537] Read error [127.0.0.1]:24502: Connection reset by peer", ExitCode.FAILURE),
        ("RuntimeError", "Timed out waiting 6000ms for recv operation to complete", ExitCode.MACHINE),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`", ExitCode.MACHINE),
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)", None),
        ("ValueError", "CUDA error: in a message", None),
    ],
)
def test_errors_are_told_apart_by_type_and_text(kind: str, text: str, code: ExitCode | None) -> None:
    """The machine's; the user's sizes, with a remedy; another rank's death, which is no cause; None: a defect."""
    known = meaning(pydoc.locate(kind)(text))  # type: ignore[operator]
    assert (known and known.exit_code) == code
    assert code is not ExitCode.USER_ERROR or "training.recompute" in str(known)
