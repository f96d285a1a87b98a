"""Which devices can be used on this machine."""

from __future__ import annotations

from pathlib import Path

from nemo_openmath.core.errors import UserError


def check_device(device: str, setting: str, file: Path | None = None) -> None:
    """Raise UserError where torch has no such device here. ``setting`` names the setting, ``file`` where it stands."""
    if device == "cpu":
        return
    import torch

    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError:
        raise UserError(f"{setting}: no device {device!r}", file=file, remedy="use cpu, cuda or cuda:0") from None
    if kind == "cuda" and not torch.cuda.is_available():
        why = "torch was built without CUDA" if torch.version.cuda is None else "no GPU is visible"
        raise UserError(f"{setting}: {device!r} cannot be used: {why}", file=file, remedy=f"set {setting}: cpu")
    if kind == "cuda" and index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"{setting}: {device!r}, and there are {count} GPUs", file=file, remedy="count from cuda:0")
    if kind not in ("cpu", "cuda"):
        raise UserError(f"{setting}: {device!r} is not supported", file=file, remedy="use cpu or cuda")
