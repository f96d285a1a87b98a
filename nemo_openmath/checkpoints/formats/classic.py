"""Classic Megatron folders: one file per tensor- and pipeline-parallel rank, each with its slice of the model.

ROOT/latest_checkpointed_iteration.txt
ROOT/iter_0000100/mp_rank_TT/model_optim_rng.pt          one pipeline stage
ROOT/iter_0000100/mp_rank_TT_PPP/model_optim_rng.pt      several
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_openmath.checkpoints.formats import step_folders, torch_file
from nemo_openmath.checkpoints.formats.protocol import Contents
from nemo_openmath.checkpoints.lazy import LazyTensor, refuse_payloads
from nemo_openmath.checkpoints.names import pad_vocabulary, tp_join, tp_slice
from nemo_openmath.checkpoints.streaming import OutputFile, stream
from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.hf_config import read_config
from nemo_openmath.models.hf_mapping import StoredTensor, layer_of, stored_tensors

FILE = "model_optim_rng.pt"
_HEAD, _EMBEDDING = "output_layer.weight", "embedding.word_embeddings.weight"
_RANK = re.compile(r"mp_rank_(\d\d)(?:_(\d\d\d))?")


def open_folder(folder: Path, model_files: Path | None = None, strict: bool = True) -> Contents | None:
    """Open a folder that holds ``mp_rank_*``; None for others."""
    if not any(folder.glob("mp_rank_*")):
        return None
    files = model_files or step_folders.model_files_beside(folder)
    tensors, tp, pp, step = read(folder, ModelConfig.from_hf(files))
    refuse_payloads(folder, tensors)
    return Contents(folder, tensors, files, read_config(files), f"tp {tp} x pp {pp}", step)


def read(folder: Path, config: ModelConfig) -> tuple[dict[str, LazyTensor], int, int, int | None]:
    """Return the stored tensors of ``folder``, its tensor- and pipeline-parallel ranks, and its step."""
    ranks: dict[tuple[int, int], dict[str, Any]] = {}
    for path in sorted(folder.glob("mp_rank_*")):
        match = _RANK.fullmatch(path.name)
        if match:
            if not (path / FILE).is_file():
                raise DamagedFile(path / FILE, "missing", "copy the checkpoint again")
            ranks[int(match[1]), int(match[2] or 0)] = torch_file.load(path / FILE)
    if not ranks:
        names = ", ".join(sorted(path.name for path in folder.glob("mp_rank_*"))[:3])
        raise UserError(f"holds {names}", file=folder, remedy="folders mp_rank_TT or mp_rank_TT_PPP can be read")
    tp, pp = 1 + max(t for t, _ in ranks), 1 + max(p for _, p in ranks)
    missing = [
        f"mp_rank_{t:02d}" + (f"_{p:03d}" if pp > 1 else "")
        for p in range(pp)
        for t in range(tp)
        if (t, p) not in ranks
    ]
    if missing:
        raise DamagedFile(folder, f"missing {', '.join(missing)} of {tp} x {pp} ranks", "copy the checkpoint again")
    chunks = {place: _chunks(content, folder) for place, content in ranks.items()}
    offsets = _first_layers([chunks[0, stage] for stage in range(pp)])
    parts: dict[tuple[int, str], list[LazyTensor]] = {}
    for stage in range(pp):
        for rank in range(tp):
            for name, tensor in _global(chunks[rank, stage], offsets[stage]):
                parts.setdefault((stage, name), []).append(tensor)
    entries = {entry.name: entry for entry in stored_tensors(config)}
    fused = {entry.local_name(): entry.name for entry in entries.values()}
    stored: dict[str, LazyTensor] = {}
    for (_, local), slices in parts.items():
        name = fused.get(local, local)
        if len(slices) != tp or len({part.shape for part in slices}) > 1:
            shapes = ", ".join(str(part.shape) for part in slices)
            raise DamagedFile(folder, f"{name} has the shapes {shapes} on {tp} tensor-parallel ranks", "save it again")
        if name == _HEAD and name not in entries:  # tied: the last stage repeats the embedding, cut as it is
            stored[name] = tp_join(entries[_EMBEDDING], slices)
        elif name not in entries:  # for the caller to judge: it has no place in the model
            stored.setdefault(name, slices[0])
        elif name not in stored:
            stored[name] = tp_join(entries[name], slices)
    return stored, tp, pp, ranks[0, 0].get("iteration")


def _chunks(content: Any, folder: Path) -> list[dict[str, Any]]:
    """The model chunks of a rank file: one, or with interleaved stages model0, model1, ..."""
    keys = [] if not isinstance(content, dict) else [key for key in content if re.fullmatch(r"model\d*", str(key))]
    if not keys or not all(isinstance(content[key], dict) for key in keys):
        raise UserError("holds no model", file=folder, remedy=f"give a folder whose {FILE} files have a 'model' entry")
    return [content[key] for key in sorted(keys, key=lambda key: (len(key), key))]


def _first_layers(stages: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[int]]:
    """[stage][chunk] -> its first layer: chunk by chunk over all stages, each with the layers that it holds, so stages
    may be of unequal size."""
    first, at = [[0] * len(stage) for stage in stages], 0
    for chunk in range(max(len(stage) for stage in stages)):
        for number, stage in enumerate(stages):
            if chunk < len(stage):
                first[number][chunk] = at
                at += 1 + max((layer for name in stage[chunk] if (layer := layer_of(name)) is not None), default=-1)
    return first


def _global(chunks: Sequence[Mapping[str, Any]], offsets: Sequence[int]) -> Iterator[tuple[str, LazyTensor]]:
    """One rank's tensors under global layer numbers."""
    for chunk, offset in zip(chunks, offsets, strict=True):
        for name, tensor in chunk.items():
            if isinstance(tensor, LazyTensor):
                layer = layer_of(name)
                yield name if layer is None else f"decoder.layers.{layer + offset}." + name.split(".", 3)[3], tensor


def write(
    root: Path,
    stored: Mapping[str, LazyTensor],
    config: ModelConfig,
    *,
    tp: int = 1,
    pp: int = 1,
    step: int = 0,
    vocabulary_multiple: int = 128,
    fused_norms: bool = True,
) -> None:
    """Write ``root/iter_*`` for tp x pp ranks. ``fused_norms``: TransformerEngine's names, which Megatron-LM's default
    layers use; else the local layers'. The vocabulary is padded with zero rows to a multiple of
    ``vocabulary_multiple * tp`` as Megatron-LM pads it (``--make-vocab-size-divisible-by``)."""
    _check_layout(config, tp, pp)
    folder = root / f"iter_{step:07d}"
    for stage in range(pp):
        for rank in range(tp):
            model: dict[str, LazyTensor] = {}
            for entry in stored_tensors(config):
                if (name := _name_in_stage(entry, config, stage, pp, fused_norms)) is not None:
                    full = pad_vocabulary(entry, stored[entry.name], vocabulary_multiple * tp)
                    model[name] = tp_slice(entry, full, tp, rank)
            path = folder / (f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if pp > 1 else ""))
            path.mkdir(parents=True)
            _write_rank(path / FILE, model, step)
    (root / "latest_checkpointed_iteration.txt").write_text(f"{step}\n")


def _name_in_stage(entry: StoredTensor, config: ModelConfig, stage: int, pp: int, fused_norms: bool) -> str | None:
    """Return the name under which pipeline stage ``stage`` of ``pp`` holds a tensor; None where it does not hold it."""
    layers, last = config.num_hidden_layers // pp, stage == pp - 1
    if entry.layer is not None:
        here = entry.layer // layers == stage
        return entry.local_name(stage * layers, fused_norms=fused_norms) if here else None
    if entry.name == _EMBEDDING:
        return entry.name if stage == 0 else _HEAD if last and config.tie_word_embeddings else None
    return entry.name if last else None


def _write_rank(path: Path, model: dict[str, LazyTensor], step: int) -> None:
    source = stream(model)

    def pieces(_: LazyTensor) -> Iterator[Tensor]:
        return next(source)[1]  # the stream and the file hold the tensors in one order

    content = {"model": model, "checkpoint_version": 3.0, "iteration": step}
    with OutputFile(path) as file:
        torch_file.save(file.write, content, model.values(), pieces)


def _check_layout(config: ModelConfig, tp: int, pp: int) -> None:
    groups = config.num_key_value_heads
    for name, value, parts in (
        ("num_attention_heads", config.num_attention_heads, tp),
        ("num_key_value_heads", max(groups, tp), min(groups, tp)),  # fewer groups than ranks: Megatron shares them
        ("rows of Q, K and V", (config.num_attention_heads + 2 * groups) * config.head_dim, tp),
        ("intermediate_size", config.intermediate_size, tp),
        ("num_hidden_layers", config.num_hidden_layers, pp),
    ):
        if tp < 1 or pp < 1 or value % parts:
            raise UserError(f"{name} = {value} and {parts} ranks do not divide", remedy="choose another --tp or --pp")
