"""TensorRT-LLM's legacy checkpoint (versions 0.18 to 1.2): config.json and one safetensors file per rank.

Written from the format alone, tensorrt_llm is not imported. Rank = pp * TP + tp; layers count from 0 in every pipeline
stage. Per rank:

    attention.qkv    [q_r; k_r; v_r]: this rank's heads; a KV head is repeated on several ranks where there are fewer
                     KV heads than ranks
    attention.dense  columns of o_proj          mlp.fc   rows of gate_proj (yes: gate_proj)
    mlp.gate         rows of up_proj            mlp.proj columns of down_proj
    lm_head          rows, the vocabulary padded with zeros to a multiple of TP; written for tied models too

For ``int8`` (W8A16) and ``int4`` (W4A16) the tensors stay as they are: TensorRT-LLM quantizes them when it loads them.
From an FP8 folder (``openmath quantize --format fp8`` or ``fp8_kv``, or ModelOpt's own) every linear layer has e4m3
``weight``, fp32 ``weights_scaling_factor`` [1] and ``activation_scaling_factor`` [1], the same on every rank; parts of
a fused layer that have different scales are rounded again to the largest. With an FP8 cache every layer has
``attention.kv_cache_scaling_factor`` fp32 [1], the larger of the key's and the value's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nemo_openmath.checkpoints.formats.safetensors import write_file
from nemo_openmath.checkpoints.formats.trtllm_redrafter import TrtllmDrafter
from nemo_openmath.checkpoints.lazy import Elementwise, InMemory, LazyTensor, StackedRows
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.configs import ARCHITECTURES, ModelConfig

TOKENIZER = "tokenizer"
"""Folder of the tokenizer's files and generation_config.json: the ranks' config.json is no model's."""
E4M3 = torch.float8_e4m3fn


def write(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    config: ModelConfig,
    *,
    tp: int,
    pp: int,
    dtype: torch.dtype,
    algorithm: str | None,
    cache_algorithm: str | None,
    drafter: TrtllmDrafter | None = None,
) -> None:
    """Write config.json and the files of all ranks. ``tensors``: under HF names, FP8 payloads with their scales;
    ``drafter``: is written beside the model."""
    described = _config(config, tp, pp, str(dtype).removeprefix("torch."), algorithm, cache_algorithm)
    described = described if drafter is None else drafter.described(described)
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    for stage in range(pp):
        for rank in range(tp):
            stored = _rank(tensors, config, tp, pp, rank, stage)
            stored |= {} if drafter is None else drafter.tensors(tp, rank)
            write_file(folder / f"rank{stage * tp + rank}.safetensors", stored)


def commands(dst: str | Path) -> list[str]:
    """Return what to run where TensorRT-LLM is installed: build the engine, then serve it.

    It is served with the tokenizer that lies in the checkpoint, which says where texts end.
    """
    described = json.loads((Path(dst) / "config.json").read_text())
    layout, dtype = described["mapping"], described["dtype"]
    engine = f"{Path(dst)}-engine"
    plugin = f"--gemm_plugin {'auto' if described['quantization']['quant_algo'] == 'FP8' else dtype}"
    plugin += " --workers 8" if layout["world_size"] >= 8 else ""
    plugin += " --use_fp8_context_fmha enable" if described["quantization"]["kv_cache_quant_algo"] else ""
    sizes = f"--max_seq_len {min(described['max_position_embeddings'], 32768)} --max_batch_size 16"
    if "redrafter_num_beams" in described:
        return [
            f"trtllm-build --checkpoint_dir {dst} --output_dir {engine} {plugin} {sizes} "
            "--speculative_decoding_mode explicit_draft_tokens",
            f"python TensorRT-LLM/examples/run.py --engine_dir {engine} --tokenizer_dir {Path(dst) / TOKENIZER} "
            "--max_output_len 1024 --input_text 'What is 2 + 2?'",
        ]
    return [
        f"trtllm-build --checkpoint_dir {dst} --output_dir {engine} {plugin} {sizes}",
        f"trtllm-serve {engine} --backend trt --tokenizer {Path(dst) / TOKENIZER} "
        f"--tp_size {layout['tp_size']} --pp_size {layout['pp_size']}",
    ]


def check_layout(config: ModelConfig, tp: int, pp: int) -> None:
    heads, groups, inner = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    if tp < 1 or pp < 1:
        raise UserError(f"tp = {tp}, pp = {pp}", remedy="both are at least 1")
    for problem, divides in (
        (f"{heads} attention heads are not divisible by tp = {tp}", heads % tp == 0),
        (f"{groups} KV heads and tp = {tp} do not divide", max(groups, tp) % min(groups, tp) == 0),
        (f"intermediate_size {inner} is not divisible by tp = {tp}", inner % tp == 0),
        (f"{config.num_hidden_layers} layers are not divisible by pp = {pp}", config.num_hidden_layers % pp == 0),
    ):
        if not divides:
            raise UserError(problem, remedy="choose another --tp or --pp")


def _rank(
    tensors: Mapping[str, LazyTensor], config: ModelConfig, tp: int, pp: int, rank: int, stage: int
) -> dict[str, LazyTensor]:
    """The tensors of one rank."""
    stored: dict[str, LazyTensor] = {}
    if stage == 0:
        stored["transformer.vocab_embedding.weight"] = tensors["model.embed_tokens.weight"]
    count = config.num_hidden_layers // pp
    for number in range(count):
        hf, ours = f"model.layers.{stage * count + number}.", f"transformer.layers.{number}."
        q, k, v = _one_scale(
            tensors, [f"{hf}self_attn.{name}_proj." for name in "qkv"], f"{ours}attention.qkv.", stored
        )
        q, k, v = _part(q, tp, rank), _kv_heads(k, config, tp, rank), _kv_heads(v, config, tp, rank)
        stored[f"{ours}attention.qkv.weight"] = StackedRows([q, k, v])
        if config.qkv_bias:
            q, k, v = (tensors[f"{hf}self_attn.{name}_proj.bias"] for name in "qkv")
            q, k, v = _part(q, tp, rank), _kv_heads(k, config, tp, rank), _kv_heads(v, config, tp, rank)
            stored[f"{ours}attention.qkv.bias"] = StackedRows([q, k, v])
        if (key := f"{hf}self_attn.k_proj.k_scale") in tensors:
            scales = (tensors[key], tensors[f"{hf}self_attn.v_proj.v_scale"])
            largest = max(float(scale.full()) for scale in scales)
            stored[f"{ours}attention.kv_cache_scaling_factor"] = InMemory(torch.tensor([largest]))
        for name in "qk" if config.qk_norm else "":
            stored[f"{ours}attention.{name}_layernorm.weight"] = tensors[f"{hf}self_attn.{name}_norm.weight"]
        stored[f"{ours}input_layernorm.weight"] = tensors[f"{hf}input_layernorm.weight"]
        stored[f"{ours}post_layernorm.weight"] = tensors[f"{hf}post_attention_layernorm.weight"]
        for name, source, cut in (
            ("attention.dense.", "self_attn.o_proj.", _columns),
            ("mlp.fc.", "mlp.gate_proj.", _part),
            ("mlp.gate.", "mlp.up_proj.", _part),
            ("mlp.proj.", "mlp.down_proj.", _columns),
        ):
            (weight,) = _one_scale(tensors, [hf + source], ours + name, stored)
            stored[f"{ours}{name}weight"] = cut(weight, tp, rank)
    if stage == pp - 1:
        stored["transformer.ln_f.weight"] = tensors["model.norm.weight"]
        head = tensors["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
        missing = -head.shape[0] % tp
        if missing:
            head = StackedRows([head, InMemory(torch.zeros((missing, head.shape[1]), dtype=head.dtype))])
        stored["lm_head.weight"] = _part(head, tp, rank)
    return stored


def _one_scale(
    tensors: Mapping[str, LazyTensor], sources: Sequence[str], name: str, stored: dict[str, LazyTensor]
) -> list[LazyTensor]:
    """The weights of ``sources``, which TensorRT-LLM holds as one matrix ``name``. FP8: under one scale, which is put
    into ``stored``."""
    weights = [tensors[f"{source}weight"] for source in sources]
    if weights[0].dtype != E4M3:
        return weights
    scales = [float(tensors[f"{source}weight_scale"].full()) for source in sources]
    largest = max(scales)
    inputs = max(float(tensors[f"{source}input_scale"].full()) for source in sources)
    stored[f"{name}weights_scaling_factor"] = InMemory(torch.tensor([largest]))
    stored[f"{name}activation_scaling_factor"] = InMemory(torch.tensor([inputs]))
    return [w if s == largest else _rescaled(w, s / largest) for w, s in zip(weights, scales, strict=True)]


def _rescaled(weight: LazyTensor, factor: float) -> LazyTensor:
    return Elementwise((weight,), lambda parts: (parts[0].float() * factor).to(E4M3), E4M3)


def _part(tensor: LazyTensor, tp: int, rank: int) -> LazyTensor:
    size = tensor.shape[0] // tp
    return tensor.rows(rank * size, (rank + 1) * size)


def _kv_heads(tensor: LazyTensor, config: ModelConfig, tp: int, rank: int) -> LazyTensor:
    if config.num_key_value_heads >= tp:
        return _part(tensor, tp, rank)
    head = rank * config.num_key_value_heads // tp
    return tensor.rows(head * config.head_dim, (head + 1) * config.head_dim)


def _columns(tensor: LazyTensor, tp: int, rank: int) -> LazyTensor:
    size = tensor.shape[1] // tp
    return tensor.columns(rank * size, (rank + 1) * size) if tp > 1 else tensor


def _config(
    config: ModelConfig, tp: int, pp: int, dtype: str, algorithm: str | None, cache: str | None
) -> dict[str, Any]:
    """config.json as TensorRT-LLM's QWenConfig reads it."""
    return {
        "architecture": ARCHITECTURES[config.model_type],
        "qwen_type": config.model_type,
        "dtype": dtype,
        "logits_dtype": "float32",
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": config.rope_theta,
        "rotary_scaling": None,
        "hidden_act": "silu",
        "norm_epsilon": config.rms_norm_eps,
        "attn_bias": config.qkv_bias,
        "mlp_bias": False,
        "qk_layernorm": config.qk_norm,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "tie_word_embeddings": False,  # the file holds lm_head in any case
        "use_logn_attn": False,
        "disable_weight_only_quant_plugin": False,
        "moe_intermediate_size": 0,
        "moe_shared_expert_intermediate_size": 0,
        "num_labels": 1,
        "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp, "gpus_per_node": 8},
        "quantization": {
            "quant_algo": algorithm,
            "kv_cache_quant_algo": cache,
            "exclude_modules": ["lm_head"] if algorithm == "FP8" else None,
        },
    }
