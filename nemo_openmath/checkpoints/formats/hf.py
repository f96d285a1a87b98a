"""A Hugging Face folder: which of its tensors are the model. Training, the embedded engine and all tools read it here.

What is opened is what transformers would load, or it is refused: other files of weights are named, quantized payloads
refused, and for the architectures that we know every tensor has its place and its shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nemo_openmath.checkpoints.formats import safetensors
from nemo_openmath.checkpoints.formats.protocol import Contents
from nemo_openmath.checkpoints.lazy import LazyTensor, equal, refuse_payloads
from nemo_openmath.core.errors import UserError
from nemo_openmath.models import hf_config
from nemo_openmath.models.hf_config import Described
from nemo_openmath.models.shapes import check_tensors

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def open_folder(folder: Path, model_files: Path | None = None, strict: bool = True) -> Contents | None:
    """Open a folder that has a config.json; return None for others.

    ``strict``: leave out what a model does not hold (RoPE's tables, a tied lm_head), and raise UserError for quantized
    folders, said to be so or not, and where the model is one that we know, for missing tensors, wrong shapes and
    tensors without a place. Else all that is there is opened. The notes name what is left out, other files of weights
    and fields of config.json that nobody uses.
    """
    if not (folder / "config.json").is_file():
        return None
    files = model_files or folder
    config = hf_config.read_config(files)
    tensors, read, others = safetensors.read_folder(folder)
    notes = [f"{folder}: not read, because they are not the model's: {', '.join(others)}"] if others else []
    if strict:
        hf_config.refuse_quantized(folder, config)
        refuse_payloads(folder, tensors)
        if config.get("model_type") in tuple(hf_config.ARCHITECTURES):
            described = hf_config.describe(files)
            tensors, left_out = without_copies(tensors, described, folder)
            notes += [*described.notes, *left_out]
            check_tensors(tensors, described.tensors(), folder)
    layout = f"{len(read)} file" + "s" * (len(read) > 1)
    return Contents(folder, tensors, files, config, layout, notes=tuple(notes))


def without_copies(
    tensors: Mapping[str, LazyTensor], described: Described, folder: Path
) -> tuple[dict[str, LazyTensor], list[str]]:
    """Return ``tensors`` without RoPE's tables, which are computed, and without a tied lm_head, and notes that say so.

    Raises UserError where config.json ties the lm_head to the embedding and the two differ: programs differ in which
    they take.
    """
    tables = {name for name in tensors if name.endswith("rotary_emb.inv_freq")}
    notes = []
    if tables:
        notes.append(f"{folder}: {len(tables)} tables of RoPE (rotary_emb.inv_freq) are left out: they are computed")
    weights = {name: tensor for name, tensor in tensors.items() if name not in tables}
    if described.tie_word_embeddings and HEAD in weights and EMBEDDING in weights:
        if not equal(weights[HEAD], weights[EMBEDDING]):
            raise UserError(
                f"{HEAD} differs from the embedding, and config.json ties the two: programs differ in which they take",
                file=folder,
                remedy="set tie_word_embeddings to false, or remove the tensor",
            )
        notes.append(f"{folder}: {HEAD} is left out: it is the embedding, to which config.json ties it")
        del weights[HEAD]
    return weights, notes
