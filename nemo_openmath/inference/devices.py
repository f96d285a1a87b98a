"""Which devices can be used on this machine."""

from __future__ import annotations

from nemo_openmath.core.errors import UserError


def check_device(device: str) -> None:
    """Raise UserError where torch has no such device here."""
    if device == "cpu":
        return
    import torch

    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError:
        raise UserError(f"no device {device!r}", remedy="use cpu, cuda or cuda:0") from None
    if kind == "cuda" and not torch.cuda.is_available():
        why = "torch was built without CUDA" if torch.version.cuda is None else "no GPU is visible"
        raise UserError(f"{device!r} cannot be used: {why}", remedy="use cpu")
    if kind == "cuda" and index >= torch.cuda.device_count():
        raise UserError(f"{device!r}, and there are {torch.cuda.device_count()} GPUs", remedy="count from cuda:0")
    if kind not in ("cpu", "cuda"):
        raise UserError(f"{device!r} is not supported", remedy="use cpu or cuda")
