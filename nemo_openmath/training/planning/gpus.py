"""The GPUs that we know: dense bf16 peak, memory and its speed, links; by the vendor's data sheets."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from nemo_openmath.core.errors import UserError

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU in the machine that it usually comes in."""

    name: str
    """Name in lower case, as on the command line."""
    devices: tuple[str, ...]
    """CUDA's whole names of the device, without the vendor's."""
    memory: int
    """Bytes that CUDA reports as total (a little below the data sheet's), rounded down to GiB."""
    peak: float
    """FLOP/s of dense bf16 matrix products."""
    nvlink_domain: int
    """GPUs that are joined by NVLink; 1 where there is none."""
    link: float
    """Bytes/s of one GPU, each way, inside the node: NVLink, or PCIe where the domain is 1."""
    network: float
    """Bytes/s, each way, of this GPU's share of the node's network."""
    memory_bandwidth: float
    """Bytes/s at which it reads its own memory."""
    per_node: int = 8
    """GPUs of a node."""
    other_names: tuple[str, ...] = ()
    """Other names that people give it on the command line, in lower case."""

    def bandwidth(self, members: int, span: int) -> float:
        """Return bytes/s of a ring of ``members`` ranks that lie in ``span`` neighbouring ranks. A ring that leaves the
        node uses the network cards of all its members there."""
        if span <= self.per_node:
            return self.link
        return min(self.link, self.network * max(1, members * self.per_node // span))


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        # NVIDIA H100 data sheet (SXM): 80 GB, 1,979 TFLOPS bf16 with sparsity (989 dense), memory 3.35 TB/s, NVLink
        # 900 GB/s both ways.
        # DGX H100 user guide: 8 GPUs, one 400 Gb/s ConnectX-7 for each.
        Gpu(
            "h100",
            ("H100 80GB HBM3", "H100 SXM5 80GB"),
            79 * GIB,
            989e12,
            8,
            450e9,
            50e9,
            3.35e12,
            other_names=("h100-80gb", "h100-sxm"),
        ),
        # NVIDIA H100 data sheet, PCIe: 80 GB at 2 TB/s, 1,513 TFLOPS with sparsity (756 dense), PCIe Gen5 128 GB/s both
        # ways; bridges join two GPUs alone. NVL: 94 GB at 3.9 TB/s, 1,671 with sparsity (835).
        Gpu("h100-pcie", ("H100 PCIe",), 79 * GIB, 756e12, 1, 64e9, 25e9, 2.0e12),
        Gpu("h100-nvl", ("H100 NVL",), 93 * GIB, 835e12, 1, 64e9, 25e9, 3.9e12, other_names=("h100-94gb",)),
        # NVIDIA H200 data sheet (SXM): 141 GB at 4.8 TB/s, compute and NVLink as H100; DGX H200: network as DGX H100.
        # NVL: 1,671 TFLOPS with sparsity (835 dense).
        Gpu("h200", ("H200", "H200 SXM"), 139 * GIB, 989e12, 8, 450e9, 50e9, 4.8e12, other_names=("h200-141gb",)),
        Gpu("h200-nvl", ("H200 NVL",), 139 * GIB, 835e12, 1, 64e9, 25e9, 4.8e12),
        # NVIDIA DGX B200 data sheet, per GPU: 180 GB at 8 TB/s, 4.5 PFLOPS bf16 with sparsity (2.25 dense), NVLink
        # 1.8 TB/s both ways, one 400 Gb/s ConnectX-7.
        Gpu("b200", ("B200",), 178 * GIB, 2250e12, 8, 900e9, 50e9, 8.0e12),
        # NVIDIA GB200 NVL72 data sheet, per GPU (of 72): 186 GB at 8 TB/s, 5 PFLOPS bf16 with sparsity (2.5 dense),
        # NVLink 1.8 TB/s both ways. A compute tray has 4 GPUs, each with a 400 Gb/s ConnectX-7; the NVLink between
        # trays is not counted.
        Gpu("gb200", ("GB200",), 184 * GIB, 2500e12, 4, 900e9, 50e9, 8.0e12, 4),
        # NVIDIA A100 80GB data sheet (SXM): 312 TFLOPS bf16 dense, memory 2,039 GB/s, NVLink
        # 600 GB/s both ways; PCIe: 1,935 GB/s, PCIe Gen4 64 GB/s both ways. 40 GB at 1,555 GB/s.
        # DGX A100 user guide: one 200 Gb/s ConnectX-6 for each GPU.
        Gpu(
            "a100",
            ("A100-SXM4-80GB",),
            79 * GIB,
            312e12,
            8,
            300e9,
            25e9,
            2.039e12,
            other_names=("a100-80gb", "a100-sxm"),
        ),
        Gpu("a100-40gb", ("A100-SXM4-40GB",), 39 * GIB, 312e12, 8, 300e9, 25e9, 1.555e12),
        Gpu("a100-pcie", ("A100 80GB PCIe", "A100-PCIE-80GB"), 79 * GIB, 312e12, 1, 32e9, 25e9, 1.935e12),
        Gpu("a100-pcie-40gb", ("A100-PCIE-40GB",), 39 * GIB, 312e12, 1, 32e9, 25e9, 1.555e12),
        # NVIDIA L4 data sheet: 24 GB at 300 GB/s, 242 TFLOPS bf16 with sparsity (121 dense), PCIe Gen4 x16 64 GB/s both
        # ways, no NVLink. 100 Gb/s for 8 GPUs, as in AWS g6.48xlarge.
        # NVIDIA L40S data sheet: 48 GB at 864 GB/s, 733 TFLOPS bf16 with sparsity (362 dense), PCIe Gen4 x16 64 GB/s
        # both ways, no NVLink. 400 Gb/s for 8 GPUs, as in AWS g6e.48xlarge.
        Gpu("l40s", ("L40S",), 44 * GIB, 362e12, 1, 32e9, 6.25e9, 0.864e12),
        Gpu("l4", ("L4",), 22 * GIB, 121e12, 1, 32e9, 1.5e9, 0.3e12),
    )
}


def gpu_of_device(device: str) -> Gpu | None:
    """Return the GPU that CUDA calls ``device`` (``NVIDIA H100 80GB HBM3``), by the whole name: an H100 PCIe has three
    quarters of the speed. None where we do not know it."""
    name = device.removeprefix("NVIDIA ").strip()
    return next((known for known in GPUS.values() if name in known.devices), None)


def gpu(name: str) -> Gpu:
    """Return the GPU of that name: ours (``h100``), or the product's, as nvidia-smi prints it
    (``NVIDIA H100 80GB HBM3``). Case, spaces, hyphens and the vendor's name do not matter.

    Raises UserError that lists the nearest and all known ones, and for GPUs that do not compute in bf16.
    """
    wanted = _plain(name)
    names = {_plain(text): known for known in GPUS.values() for text in _names(known)}
    if wanted in names:
        return names[wanted]
    if old := next((old for old in _WITHOUT_BF16 if re.match(rf"{old}(-|$)", wanted)), None):
        raise UserError(
            f"GPU {name!r}: a {old.upper()} has no bf16 matrix products, in which a training computes",
            remedy="set --gpu to one of " + ", ".join(GPUS),
        )
    near = list(dict.fromkeys(names[text].name for text in difflib.get_close_matches(wanted, names, 5, 0.6)))
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(f"no GPU is named {name!r}", remedy=f"{hint}set --gpu to one of {', '.join(GPUS)}")


_WITHOUT_BF16 = ("v100", "p100", "t4", "p4", "p40", "k80", "m60")


def _names(known: Gpu) -> tuple[str, ...]:
    return (known.name, *known.devices, *known.other_names)


def _plain(name: str) -> str:
    """Return a name's words in lower case, joined by hyphens, without ``NVIDIA`` and ``Tesla``."""
    words = re.findall(r"[a-z0-9.]+", name.lower())
    return "-".join(word for word in words if word not in ("nvidia", "tesla"))
