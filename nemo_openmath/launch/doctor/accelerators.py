"""GPUs: what the driver says of them, and whether torch and TransformerEngine can use them."""

from __future__ import annotations

import csv
import importlib
import re
from collections.abc import Iterator

from nemo_openmath.launch.doctor.finding import Finding, FindingGroup
from nemo_openmath.launch.doctor.probing import Probe
from nemo_openmath.launch.doctor.software import installed, torch_build
from nemo_openmath.launch.doctor.system import System

GROUP = FindingGroup("GPU")
_FIELDS = "index,name,memory.total,memory.used,driver_version,ecc.errors.uncorrected.volatile.total,compute_mode"
_BUSY_MIB = 2048


def look_at_driver(system: System) -> Iterator[Finding]:
    """Yield what nvidia-smi says: the GPUs, their errors, who uses them, and whether the driver is new enough."""
    answer = system.ask(["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"], 15.0)
    if answer is None:
        if system.num_gpu_devices:
            text = f"{system.num_gpu_devices} device files, and no nvidia-smi"
            yield GROUP.red("GPUs", text, "start the container with the driver's tools (--gpus all, --nv)")
        else:
            yield GROUP.not_here("GPUs", "no NVIDIA GPU")
        return
    if answer.code:
        yield GROUP.red(
            "GPUs", f"nvidia-smi fails: {answer.line}", "reload or install the driver, then reboot the node"
        )
        return
    rows = [[cell.strip() for cell in row] for row in csv.reader(answer.text.splitlines()) if len(row) == 7]
    if not rows:
        yield GROUP.red(
            "GPUs", "nvidia-smi shows no GPU", "ask for GPUs (--gpus-per-node), or pass them to the container"
        )
        return
    names = sorted({f"{name}, {int(total) // 1024} GiB" for _, name, total, *_ in rows if total.isdigit()})
    numbers = {"names": names, "number": len(rows), "driver": rows[0][4]}
    text = f"{len(rows)} x {' and '.join(names)}, driver {rows[0][4]}"
    if len(names) > 1:
        yield GROUP.yellow("GPUs", text, "a training runs at the speed of the slowest: use equal ones", **numbers)
    else:
        yield GROUP.green("GPUs", text, **numbers)
    if bad := [f"GPU {row[0]}: {row[5]}" for row in rows if row[5].isdigit() and int(row[5])]:
        remedy = "drain the node and reset the GPU; replace it where they come back"
        yield GROUP.red("memory errors", f"uncorrected since the last reset: {', '.join(bad)}", remedy)
    if busy := [f"GPU {row[0]}: {row[3]} MiB" for row in rows if row[3].isdigit() and int(row[3]) > _BUSY_MIB]:
        text = f"somebody holds {', '.join(busy)}"
        yield GROUP.yellow("memory in use", text, "nvidia-smi names the processes; wait for them or end them")
    if exclusive := [row[0] for row in rows if row[6] not in ("Default", "[N/A]", "")]:
        text = f"{rows[0][6]} on GPU {', '.join(exclusive)}"
        yield GROUP.yellow(
            "compute mode", text, "servers with several processes a GPU need nvidia-smi --compute-mode=0"
        )
    yield from _runtime(system)


def _runtime(system: System) -> Iterator[Finding]:
    build = torch_build()
    answer = system.ask(["nvidia-smi"], 15.0)
    match = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", answer.text) if answer else None
    if build is not None and build[1] is not None and match:
        yield runtime((int(match[1]), int(match[2])), build[1])


def runtime(driver: tuple[int, int], torch_cuda: str) -> Finding:
    """Return the finding about a driver that knows CUDA up to ``driver``, for torch built for ``torch_cuda``."""
    major, minor = (int(part) for part in f"{torch_cuda}.0".split(".")[:2])
    text = f"the driver knows CUDA {driver[0]}.{driver[1]}, torch is built for {torch_cuda}"
    remedy = "a newer driver, the forward-compatibility package (cuda-compat), or torch for an older CUDA"
    if driver[0] < major:
        return GROUP.red("driver and CUDA", text, remedy)
    if driver < (major, minor):
        return GROUP.yellow("driver and CUDA", f"{text}: kernels that are compiled at run time may fail", remedy)
    return GROUP.green("driver and CUDA", text)


def look_at_devices(system: System) -> Iterator[Finding]:
    """Yield whether torch computes on every GPU, which NCCL it has, and whether TransformerEngine loads."""
    build = torch_build()
    if not system.num_gpu_devices:
        yield GROUP.not_here("NCCL", "no NVIDIA GPU")
        return
    if build is None or build[1] is None:
        return  # said of torch
    import torch

    if not torch.cuda.is_available():
        remedy = "look at CUDA_VISIBLE_DEVICES, the driver, and the container's --gpus or --nv"
        yield GROUP.red("torch on GPUs", "torch.cuda.is_available() is False", remedy)
        return
    sums = []
    for index in range(torch.cuda.device_count()):
        square = torch.ones(1024, 1024, dtype=torch.bfloat16, device=f"cuda:{index}")
        sums.append((square @ square).float().mean().item())
    if wrong := [index for index, value in enumerate(sums) if value != 1024.0]:
        yield GROUP.red("torch on GPUs", f"GPU {wrong[0]} computes {sums[wrong[0]]} for 1024", "drain the node")
    else:
        yield GROUP.green("torch on GPUs", f"{len(sums)} compute")
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    yield GROUP.green("NCCL", nccl, version=nccl)
    if installed("transformer-engine") is None:
        return
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # of whatever kind: it was built for another torch
        text = f"does not load: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
        remedy = "build it for this torch: pip install --no-build-isolation --force-reinstall"
        yield GROUP.red("TransformerEngine", text, remedy)
    else:
        yield GROUP.green("TransformerEngine", "loads")


PROBES = (
    Probe("GPU", "GPUs", look_at_driver, 40.0, "nvidia-smi hangs: drain and reboot the node"),
    Probe(
        "GPU", "torch on GPUs", look_at_devices, 120.0, "a GPU hangs or crashes: nvidia-smi, dmesg (Xid), then drain"
    ),
)
