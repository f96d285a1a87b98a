"""What an error of torch means to whoever started a training: the machine, the user's sizes, or another rank's death.

The kinds are told apart by type and text, so that a launcher knows whether the same command may succeed elsewhere.
"""

from __future__ import annotations

import re

from nemo_openmath.core.errors import MachineFailure, OpenMathError, UserError

LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection closed by remote peer",
    "Connection was likely closed",
    "Connection refused",
    "Broken pipe",
    "remote process exited",
    "ncclRemoteError",
    "NCCL communicator was aborted",
    "failed to recv, got 0 bytes",
    "TCPStore server has shut down",
)
"""What a rank says whose peer has died: the cause is elsewhere."""
_NO_MEMORY = re.compile(r"out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
_DEFECT = "device-side assert"  # an index outside a table: our defect, on a sound device
_MACHINE = re.compile(
    r"CUDA (driver )?error|NCCL (error|WARN)|nccl(System|UnhandledCuda|Internal)Error|cuBLAS|CUBLAS_STATUS|cuDNN error"
    r"|\bECC\b|\bXid\b|Bus error|Stale file handle|Input/output error|No route to host|Network is unreachable"
    r"|Socket Timeout|Timed out (after|waiting)|Watchdog caught collective operation timeout",
    re.IGNORECASE,
)
_MACHINE_TYPES = ("DistBackendError", "AcceleratorError", "DistNetworkError", "DistStoreError")
_SIZES = (
    "set training.recompute, training.distributed_optimizer or a larger training.parallel.tp, pp or cp, or pack with a "
    "lower capacity; openmath plan shows what each needs"
)


def meaning(error: BaseException) -> OpenMathError | None:
    """Return what an error of torch or of its libraries means; None where it is a defect, of ours or another's.

    - UserError: the device's memory is too small for the sizes that were asked for.
    - MachineFailure: the device, the network or the disk failed.
    - OpenMathError: another rank is gone, and said why, or was killed.
    """
    if isinstance(error, OpenMathError):
        return error
    names, text = {kind.__name__ for kind in type(error).__mro__}, " ".join(str(error).split())
    short = text[:300]
    if "OutOfMemoryError" in names or ("RuntimeError" in names and _NO_MEMORY.search(text)):
        return UserError(f"the device's memory is too small ({short})", remedy=_SIZES)
    if not names & {"RuntimeError", "OSError"} or _DEFECT in text:
        return None
    if any(lost in text for lost in LOST_PEER):
        return OpenMathError(f"another rank is gone; the cause is what it said, or what killed it ({short})")
    if names & set(_MACHINE_TYPES) or _MACHINE.search(text):
        return MachineFailure(f"the machine failed ({short})")
    return None
