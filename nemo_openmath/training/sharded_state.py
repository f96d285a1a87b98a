"""megatron-core's descriptions of what a rank holds: where each parameter lies in which stored tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor

from nemo_openmath.checkpoints.formats import step_folders
from nemo_openmath.core.errors import DamagedFile
from nemo_openmath.models.build import PackedGPT, load_hf
from nemo_openmath.training.agreement import verify_together
from nemo_openmath.training.base_model import BaseModel


def sharded_state(
    models: list[PackedGPT], tensors: Mapping[Tensor, dict[str, Tensor]], writers: Mapping[Tensor, int]
) -> dict[str, Any]:
    """Return megatron-core's descriptions of the models' parameters and of their optimizer ``tensors``.

    ``writers`` names the data-parallel rank that writes each parameter; only this rank's are in the result.
    """
    model, moments, parameters = sharded_model(models), dict[str, Any](), parameters_by_name(models)
    rank = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    state: dict[str, Any] = {chunk: {} for chunk in model}
    for chunk, entries in model.items():
        for name, entry in entries.items():
            parameter = parameters[f"{chunk}.{name}"]
            if writers[parameter] != rank:
                continue
            if entry.replica_id[-1] != rank:  # (pipeline copy, tensor-parallel copy, data-parallel copy)
                raise RuntimeError(f"{entry.key}: replica {entry.replica_id} is not of data-parallel rank {rank}")
            entry = replace(entry, replica_id=(*entry.replica_id[:-1], 0))  # megatron-core writes copy 0
            state[chunk][name] = entry
            for kind, tensor in tensors[parameter].items():
                moments[f"{kind}.{chunk}.{name}"] = _like(entry, f"optimizer.{kind}.{entry.key}", tensor)
    return {**state, "optimizer": moments}


def sharded_model(models: list[PackedGPT]) -> dict[str, dict[str, Any]]:
    """Return megatron-core's description of each chunk's parameters: where each lies in which stored tensor."""
    metadata = {
        "non_homogeneous_layers": True,  # layers are stored one by one, under global numbers
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
    return {
        f"chunk{number}": {
            name: entry
            for name, entry in model.sharded_state_dict(metadata=metadata).items()
            if not name.endswith("_extra_state")
        }
        for number, model in enumerate(models)
    }


def load_base(base: BaseModel, models: list[PackedGPT]) -> None:
    """Fill ``models`` with the weights that a training starts from: of a Hugging Face folder, or of another training's
    checkpoint (or an average), which all ranks verify together."""
    if not base.is_checkpoint:
        load_hf(models, base.config, base.checkpoint.read)
        return
    verify_together(base.folder)
    state = base.folder / step_folders.STATE
    fill(models, dist_checkpointing.load(sharded_model(models), str(state), validate_access_integrity=False))


def fill(models: list[PackedGPT], loaded: dict[str, Any]) -> None:
    """Copy what was loaded for :func:`sharded_model` into the models. Raises DamagedFile where they do not match."""
    for number, model in enumerate(models):
        keys = model.load_state_dict(loaded[f"chunk{number}"], strict=False)
        missing = [k for k in keys.missing_keys if not k.endswith("_extra_state")]
        if missing or keys.unexpected_keys:
            raise DamagedFile("checkpoint", f"parameters {missing + keys.unexpected_keys} do not match the model")


def parameters_by_name(models: list[PackedGPT]) -> dict[str, Tensor]:
    """Return the parameters of all chunks, by ``chunk<number>.<name>``."""
    return {f"chunk{number}.{name}": p for number, model in enumerate(models) for name, p in model.named_parameters()}


def _like(
    entry: ShardedTensor | ShardedTensorFactory, key: str, tensor: Tensor
) -> ShardedTensor | ShardedTensorFactory:
    """Return the description of a tensor that is divided as ``entry`` is."""
    if isinstance(entry, ShardedTensorFactory):
        return replace(entry, key=key, data=tensor)
    return replace(entry, key=key, data=tensor, dtype=tensor.dtype)
