"""Which device a rank computes on: decided by all ranks alike, from what each of them sees, before they compute.

Every rank writes what it sees into the store of the process group and reads what the others see. With GPUs each rank
needs one of its own: two on one are refused by NCCL, and a rank without any would wait for the others in vain.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from nemo_openmath.core.errors import MachineFailure, UserError
from nemo_openmath.models.devices import DeviceChoice
from nemo_openmath.training.rank_watch import node_name

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

CPU = torch.device("cpu")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SeenGpus:
    """What a rank sees of its node's GPUs."""

    node: str
    visible: int
    """GPUs that torch counts here."""
    index: int = 0
    """The one that this rank would take; where each rank is shown a single one, that."""
    uuid: str = ""
    """Names that one, whatever number it has in which process."""
    promised: bool = False
    """Slurm says that this job has GPUs here, and nobody has hidden them."""


def seen_gpus(environment: Mapping[str, str] = os.environ) -> SeenGpus:
    """Return what this rank sees; it is number LOCAL_RANK of its node."""
    hidden = environment.get("CUDA_VISIBLE_DEVICES") == ""
    promised = not hidden and environment.get("SLURM_GPUS_ON_NODE", "0") not in ("", "0")
    visible = torch.cuda.device_count()
    if not visible:
        return SeenGpus(node_name(), 0, promised=promised)
    index = int(environment.get("LOCAL_RANK", "0")) % visible
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    return SeenGpus(node_name(), visible, index, uuid, promised)


def choose_device(choice: DeviceChoice, seen: Sequence[SeenGpus], rank: int) -> torch.device:
    """Return a rank's device from what all ranks see; all of them decide alike.

    ``auto`` is a GPU for each rank, or the CPU for all: where no rank sees a GPU, and on one machine with fewer GPUs
    than ranks. It is never the CPU where Slurm gave the job GPUs, or on several nodes with GPUs. Raises

    - UserError where there are not enough GPUs,
    - MachineFailure where some nodes have GPUs and others none.
    """
    if choice == "cpu":
        return CPU
    blind = sorted({gpus.node for gpus in seen if not gpus.visible})
    if len(blind) == len({gpus.node for gpus in seen}):
        if choice == "auto" and not any(gpus.promised for gpus in seen):
            return CPU
        raise UserError(
            f"torch {torch.__version__} sees no GPU on {', '.join(blind[:4])}",
            remedy="look at the driver, the container's --gpus or --nv, and whether this torch is built for CUDA; or "
            "set training.device to cpu",
        )
    if blind:
        raise MachineFailure(f"no GPU is seen on {', '.join(blind[:4])}, but on other nodes; look at their drivers")
    if len({(gpus.node, gpus.uuid) for gpus in seen}) == len(seen):
        return torch.device("cuda", seen[rank].index)
    on_nodes: dict[str, list[str]] = {}
    for gpus in seen:
        on_nodes.setdefault(gpus.node, []).append(gpus.uuid)
    few = next(
        f"{len(uuids)} ranks on {node} have {len(set(uuids))} of its GPUs to compute on"
        for node, uuids in on_nodes.items()
        if len(set(uuids)) < len(uuids)
    )
    if choice == "cuda" or len(on_nodes) > 1 or any(gpus.promised for gpus in seen):
        raise UserError(few, remedy="start as many ranks as GPUs, or set training.device to cpu")
    if rank == 0:
        log.warning(f"{few}: training on the CPU; for the GPU start as many ranks as GPUs")
    return CPU


def agree_on_device(choice: DeviceChoice, store: Store, rank: int, ranks: int) -> torch.device:
    """Return this rank's device, once all ``ranks`` have told in ``store`` what they see; see :func:`choose_device`."""
    if choice == "cpu":
        return CPU
    store.set(f"gpus/{rank}", json.dumps(asdict(seen_gpus())))
    told = store.multi_get([f"gpus/{other}" for other in range(ranks)])
    return choose_device(choice, [SeenGpus(**json.loads(text)) for text in told], rank)


def refuse_few_gpus(choice: DeviceChoice, ranks: int) -> None:
    """Raise UserError where this machine has fewer GPUs than ``ranks`` that must have one each."""
    if choice == "cuda" and ranks > (count := torch.cuda.device_count()):
        raise UserError(
            f"training.device = cuda: {ranks} processes, and torch sees {count} GPUs",
            remedy=f"start {count} processes" if count else "look at the driver, or set training.device to cpu",
        )


def hide_gpus() -> None:
    """Show no GPU to this process and to those that it starts: libraries that look for CUDA see the same machine as we
    do."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if torch.cuda.is_available():  # the driver was asked before
        torch.cuda.is_available = lambda: False
        torch.cuda.device_count = lambda: 0
