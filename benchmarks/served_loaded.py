"""Whether each tensor of an EAGLE-3 head lies in vLLM as its file says; run by ``served.py drafted`` with the Python of
vLLM.

vLLM's loader refuses a tensor that it does not know, and says nothing of one that is missing. Matrices are packed for
the CPU after loading: what they make of the unit matrix is compared.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def compare(worker: Any, folder: str) -> dict[str, list[str]]:
    """In the worker's process: names of tensors by what was found."""
    import torch
    from safetensors.torch import load_file

    file, head = load_file(f"{folder}/model.safetensors"), worker.model_runner.drafter.model
    layer, attention, mlp = "midlayer.", "midlayer.self_attn.", "midlayer.mlp."
    parts = {
        "model.fc": ["fc.weight"],
        "model.layers.0.self_attn.qkv_proj": [f"{attention}{name}_proj.weight" for name in "qkv"],
        "model.layers.0.self_attn.o_proj": [f"{attention}o_proj.weight"],
        "model.layers.0.mlp.gate_up_proj": [f"{mlp}{name}_proj.weight" for name in ("gate", "up")],
        "model.layers.0.mlp.down_proj": [f"{mlp}down_proj.weight"],
        "model.norm": ["norm.weight"],
        "lm_head": ["lm_head.weight"],
    }
    for norm in ("input_layernorm", "hidden_norm", "post_attention_layernorm"):
        parts[f"model.layers.0.{norm}"] = [f"{layer}{norm}.weight"]
    found: dict[str, list[str]] = {"equal": [], "different": []}
    for place, names in parts.items():
        expected, module = torch.cat([file.pop(name) for name in names]), head.get_submodule(place)
        held = module.weight
        if not held.numel():
            made = module(torch.eye(expected.shape[1], dtype=expected.dtype))
            held = (made[0] if isinstance(made, tuple) else made).t()
        same = torch.equal(held[: len(expected)], expected)  # rows are padded
        found["equal" if same else "different"] += names
    if "d2t" in file:
        same = torch.equal(head.draft_id_to_target_id, file.pop("d2t"))
        found["equal" if same else "different"].append("d2t")
    file.pop("t2d", None)  # which follows from d2t, and vLLM does not read
    own = {name.removesuffix(".weight") for name, _ in head.named_parameters()}
    shared = head.model.embed_tokens.weight is worker.model_runner.model.model.embed_tokens.weight
    known = {*parts, "draft_id_to_target_id", *(("model.embed_tokens",) if shared else ())}
    return found | {"not in vLLM": sorted(file), "not in the folder": sorted(own - known)}


def main() -> None:
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # a function goes to the worker
    from vllm import LLM

    model, head, output = sys.argv[1:]
    drafts = {"method": "eagle3", "model": head, "num_speculative_tokens": 1}
    llm = LLM(model, dtype="float32", enforce_eager=True, max_model_len=1024, speculative_config=drafts)
    (found,) = llm.collective_rpc(compare, args=(head,))
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
